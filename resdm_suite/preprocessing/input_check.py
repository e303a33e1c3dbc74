"""Is a preprocessed T1 like those that a model was trained on? Named measures, each compared with training people.

A network returns a plausible PET for any image. `fit` therefore describes the T1s of the training people: registration,
contrast, intensities, sharpness, symmetry, and the place of the coarse image in their principal components. A measure
counts by its distance from their median, in units of their spread; the score of a scan is that of its worst measure.
The threshold is a quantile of validation people's scores, so that `FALSE_ALARMS` of people like them are refused.

Distances in the principal components are measured on people whom the components were not fitted to: training people's
own would be too small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from skimage.measure import block_reduce
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits

from resdm.weights import read_weights, save_weights
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.paths import INPUT_CHECK, sidecar_path
from resdm_suite.preprocessing.dataset import CohortDataset
from resdm_suite.profiles import Config
from resdm_suite.records import alone, read_json

REVISION = 1
"""Raise it whenever the same cohort gives another check."""

FALSE_ALARMS = 0.05
"""Share of people like the validation people whose T1 is refused, over all measures together."""

PHANTOM_TOLERANCE = 2.0
"""Multiple of the threshold up to which a model of phantoms takes a real T1, with a warning.

A real T1 is never quite like a phantom: the one measured has a score of 1.4 times the default model's threshold. The
same with a gross fault (T2, FLAIR, CT, an infant's, after contrast agent) has 3 times or more.
"""

MIN_TRAINING, MIN_HELD_OUT = 20, 19
"""Fewest training people to describe, and fewest people by whom a threshold of `FALSE_ALARMS` is defined."""

_CELL_MM = 6.0  # measures are taken on cells of about this size, whatever the grid
_COARSE = 2  # cells per side of the blocks of the principal components
_COMPONENTS, _FOLDS = 20, 5
_DARK = 0.1  # of the intensity that preprocessing scales to 1


@dataclass(frozen=True)
class InputCheck:
    """The training people's T1s, and the threshold of validation people.

    Parameters
    ----------
    grid : Grid
    tissue : Tensor (V,), uint8
        Cells of the brain by the mean training T1: its darkest third (0), middle (1), brightest (2).
    quantiles : Tensor (101,)
        Of the intensities in the brain, mean over people.
    mean, components, deviation : Tensor (C,), (K, C), (K,)
        Principal components of the coarse T1.
    training : dict
        Measure → its median; the spread below and above it, in standard deviations of a Gaussian of the same 5th and
        95th percentile; 1st and 99th percentile. Without measures that do not vary.
    threshold : float
        Score above which a T1 is unlike the training people's.
    held_out : int
        People by whom the threshold is set.
    """

    grid: Grid
    tissue: torch.Tensor
    quantiles: torch.Tensor
    mean: torch.Tensor
    components: torch.Tensor
    deviation: torch.Tensor
    training: dict[str, list[Any]] = field(default_factory=dict)
    threshold: float = math.inf
    held_out: int = 0

    def measure(self, mri: np.ndarray, mni_to_t1: Any, correlation: float) -> dict[str, float]:
        """Measures of a preprocessed T1 (X, Y, Z), by name.

        ``mni_to_t1`` (4, 4) and ``correlation`` with the MNI152 T1 are what preprocessing recorded.
        """
        cells, other_side = _cells(mri, self.grid), _cells(mri[::-1], self.grid)
        brain, blocks = _brain(self.grid)
        inside = cells[brain]
        contrast = max(float(inside.std()), 1e-6)
        tissue = self.tissue.numpy()
        fine = (cells - ndimage.gaussian_filter(cells, 1.0))[brain]
        ordered = np.quantile(inside, np.linspace(0, 1, len(self.quantiles)))
        coarse = _blocks(cells)[blocks] - self.mean.numpy()
        scores = self.components.numpy() @ coarse
        scale = np.linalg.svd(np.asarray(mni_to_t1, dtype=np.float64)[:3, :3], compute_uv=False)
        return {
            "fit to the MNI152 T1": float(correlation),
            "size of the head relative to MNI152": float(np.cbrt(scale.prod())),
            "stretch of the head along one axis": float(scale.max() / scale.min()),
            "brightness of white matter": float(inside[tissue == 2].mean()),
            "brightness of grey matter": float(inside[tissue == 1].mean()),
            "brightness of fluid": float(inside[tissue == 0].mean()),
            "dark share of the brain": float(np.mean(inside < _DARK)),
            "distance of the intensity histogram": float(np.abs(ordered - self.quantiles.numpy()).mean()),
            "detail": float(fine.std()) / contrast,
            "difference between left and right": float((inside - other_side[brain]).std()) / contrast,
            "distance of the coarse anatomy": float(np.sqrt(np.mean((scores / self.deviation.numpy()) ** 2))),
            "anatomy that no training person has": float(np.std(coarse - scores @ self.components.numpy())),
        }

    def scores(self, measured: dict[str, float]) -> dict[str, float]:
        """Distance of each measure from the training people's median, in units of their spread to that side."""
        away = {name: measured[name] - middle for name, (middle, *_) in self.training.items()}
        return {
            name: abs(away[name]) / spreads[int(away[name] > 0)] for name, (_, spreads, *_) in self.training.items()
        }

    def fault(self, measured: dict[str, float], tolerance: float = 1.0) -> str:
        """The three worst measures beyond ``tolerance`` times the threshold, with training people's range; or empty."""
        scores = {name: np.nan_to_num(score, nan=np.inf) for name, score in self.scores(measured).items()}
        beyond = [name for name in scores if scores[name] > tolerance * self.threshold]
        return "; ".join(
            "{} {:.3g} (training people {:.3g} to {:.3g})".format(name, measured[name], *self.training[name][2:])
            for name in sorted(beyond, key=scores.get, reverse=True)[:3]
        )

    def save(self, folder: str | Path) -> Path:
        """Write `INPUT_CHECK` into a model folder."""
        values = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        plain = {name: value for name, value in asdict(self).items() if name not in values}
        save_weights(Path(folder) / INPUT_CHECK, values, plain)
        return Path(folder) / INPUT_CHECK

    @classmethod
    def read(cls, folder: str | Path) -> InputCheck | None:
        """From a model folder; None where it has none. Raises `CheckpointError` for a damaged file."""
        path = Path(folder) / INPUT_CHECK
        if not path.is_file():
            return None
        plain, values = read_weights(path, "an input check", "train again")
        grid = Grid(tuple(plain["grid"]["shape"]), plain["grid"]["voxel_mm"])
        return cls(**plain | values | {"grid": grid})


@alone("input check")
def of_cohort(config: Config) -> InputCheck | None:
    """The check of a profile's cohort, see `fit`: fitted once for all methods and stored below ``input_check/``."""
    cohort = read_json(config.volumes / "cohort.json")["digest"]
    folder = config.work / "input_check" / f"{cohort[:16]}-{REVISION}"
    check = InputCheck.read(folder)
    if check is None and (check := fit(config)):
        check.save(folder)
    return check


def fit(config: Config) -> InputCheck | None:
    """Describe the training people's T1s and set the threshold by validation people.

    With fewer validation people than `MIN_HELD_OUT`, training people are added, measured outside their own fold. None
    where both together, or the training sessions, are too few.
    """
    train, held_out = CohortDataset(config, "train"), CohortDataset(config, "validation")
    if train.index["person"].nunique() < MIN_TRAINING:
        return None
    grid = Grid.of(config.preprocess.grid)
    with threadpool_limits(1):  # the same bytes on any number of cores
        check, measured = _describe(grid, train, config)
        scores = [_first_sessions(check, train, measured)] if held_out.index["person"].nunique() < MIN_HELD_OUT else []
        held_out_measures = [_measure(check, held_out, config, i) for i in range(len(held_out))]
        scores.append(_first_sessions(check, held_out, held_out_measures))
    ordered = np.sort(np.concatenate(scores))
    if len(ordered) < MIN_HELD_OUT:
        return None
    # conformal: a further person of the same kind lies above it with a probability of at most FALSE_ALARMS
    threshold = ordered[min(math.ceil((1 - FALSE_ALARMS) * (len(ordered) + 1)), len(ordered)) - 1]
    return replace(check, threshold=float(threshold), held_out=len(ordered))


def _describe(grid: Grid, train: CohortDataset, config: Config) -> tuple[InputCheck, list[dict[str, float]]]:
    """The training people without a threshold, and the measures of each session without its own fold."""
    cells = np.stack([_cells(train.mri(i), grid) for i in range(len(train))])
    brain, blocks = _brain(grid)
    inside = cells[:, brain]
    limits = np.quantile(inside.mean(0), [1 / 3, 2 / 3])
    tissue = np.digitize(inside.mean(0), limits).astype(np.uint8)
    quantiles = np.quantile(inside, np.linspace(0, 1, 101), axis=1).mean(1)
    coarse = np.stack([_blocks(one)[blocks] for one in cells])

    def without(rows: np.ndarray) -> InputCheck:
        basis = PCA(min(_COMPONENTS, len(rows) - 1), svd_solver="full").fit(rows)
        deviation = np.sqrt(np.maximum(basis.explained_variance_, 1e-12))
        arrays = quantiles, basis.mean_, basis.components_, deviation
        arrays = [array.astype(np.float32, "C") for array in arrays]  # in memory as in the file: the same last bits
        return InputCheck(grid, *map(torch.from_numpy, [tissue, *arrays]))

    people, measured = train.index["person"], [{}] * len(train)
    for fitted, left_out in GroupKFold(min(_FOLDS, people.nunique())).split(coarse, groups=people):
        fold = without(coarse[fitted])
        for i in left_out:
            measured[i] = _measure(fold, train, config, i)
    training = {}
    for name in measured[0]:
        values = [one[name] for one in measured]
        q01, q05, middle, q95, q99 = np.quantile(values, [0.01, 0.05, 0.5, 0.95, 0.99]).tolist()
        spreads = [(middle - q05) / 1.645, (q95 - middle) / 1.645]
        if min(spreads) > 1e-9:  # else many are equal, as heads that are in MNI space already
            training[name] = [middle, spreads, q01, q99]
    return replace(without(coarse), training=training), measured


def _measure(check: InputCheck, people: CohortDataset, config: Config, i: int) -> dict[str, float]:
    row = people.index.iloc[i]
    sidecar = sidecar_path(config.volumes / row.get("t1w", ""))
    matrix = read_json(sidecar)["transform"] if sidecar.is_file() else np.eye(4)
    return check.measure(people.mri(i), matrix, float(row.get("t1_correlation", 1.0)))


def _first_sessions(check: InputCheck, people: CohortDataset, measured: Sequence[dict[str, float]]) -> np.ndarray:
    """Scores of each person's first session: sessions of one person are not independent."""
    first = np.flatnonzero(~people.index["person"].duplicated())
    return np.array([max(check.scores(measured[i]).values(), default=0.0) for i in first])


def _cells(volume: np.ndarray, grid: Grid) -> np.ndarray:
    """A volume (X, Y, Z) averaged to cells of about `_CELL_MM`."""
    return block_reduce(np.asarray(volume, dtype=np.float32), max(1, round(_CELL_MM / grid.voxel_mm)), np.mean)


def _blocks(cells: np.ndarray) -> np.ndarray:
    return block_reduce(cells, _COARSE, np.mean)


@cache
def _brain(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Cells and blocks of cells of which half or more is brain."""
    share = _cells(mni_map("brain", grid), grid)
    return share >= 0.5, _blocks(share) >= 0.5
