"""Regional SUVR and texture, which a blurred image loses even where it has the better PSNR.

Intensities are scaled back to SUVR by the range in each volume's sidecar. Regions are the built-in ones of
`resdm_suite.anatomy`, in MNI space; ``summary`` is the cortical composite of the tracer (its regions' voxels pooled).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from resdm_suite.anatomy import REFERENCE, Grid, measured_regions, mni_map
from resdm_suite.evaluation.agreement import agreement_table
from resdm_suite.evaluation.image_quality import read_index, volume_pairs
from resdm_suite.evaluation.stored import read_sidecar, read_volume
from resdm_suite.paths import sidecar_path
from resdm_suite.profiles import Config


def to_suvr(intensity: np.ndarray, suvr_range: tuple[float, float]) -> np.ndarray:
    """Undo the fixed intensity scaling: [0, 1] → [low, high] SUVR."""
    low, high = suvr_range
    return low + (high - low) * np.asarray(intensity)


def sidecar_range(path: str | Path) -> tuple[float, float]:
    """SUVR of intensities 0 and 1 of a PET, from the sidecar beside it.

    Raises `FileNotFoundError` without a sidecar, `ValueError` where no fixed range scaled the intensities: their SUVR
    is then lost.
    """
    match read_sidecar(path).get("intensity"):
        case {"kind": "fixed", "suvr_range": [int() | float() as low, int() | float() as high]} if low < high:
            return float(low), float(high)
        case intensity:
            raise ValueError(
                f"{sidecar_path(path)}: intensity is {intensity or 'not stated'}; SUVR needs kind 'fixed' with a "
                "suvr_range of two numbers (preprocess.intensity: fixed)"
            )


def regional_means(volume: np.ndarray, grid: Grid, tracer: str) -> dict[str, float]:
    """Mean of a volume (X, Y, Z) on ``grid`` in the tracer's ``summary``, then in every built-in region."""
    volume = np.asarray(volume, dtype=np.float64)
    return {name: float(volume[mask].mean()) for name, mask in measured_regions(grid, tracer).items()}


def real_regional_means(path: str | Path, suvr: np.ndarray, grid: Grid, tracer: str) -> dict[str, float]:
    """`regional_means` of a preprocessed real PET, measured before preprocessing clipped the SUVR range.

    They are ``regional_suvr`` in the sidecar beside ``path``. Without them ``suvr``, the clipped PET (X, Y, Z), is
    measured.
    """
    return read_sidecar(path).get("regional_suvr") or regional_means(suvr, grid, tracer)


def texture(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray) -> float:
    """Gradient energy of the synthetic volume over that of the real one, both (X, Y, Z) on the same scale.

    1 means as much fine structure as the real image, less is blurred, more is noisy. The real PET's noise counts as
    structure, so the best possible mean prediction stays below 1. Only neighbours that are both inside the boolean mask
    are compared: the step at the brain's edge is in both images and would hide the difference.
    """
    energies = [_gradient_energy(np.asarray(volume, dtype=np.float64), mask) for volume in (real, synthetic)]
    if energies[0] == 0:
        raise ValueError("texture: the real volume is flat inside the mask")
    return energies[1] / energies[0]


def _gradient_energy(volume: np.ndarray, mask: np.ndarray) -> float:
    energy = 0.0
    for axis in range(volume.ndim):
        step = np.diff(volume, axis=axis)
        both = np.take(mask, range(1, mask.shape[axis]), axis) & np.take(mask, range(mask.shape[axis] - 1), axis)
        energy += float(np.sum(step[both] ** 2))
    return energy


def suvr_pairs(
    config: Config, method: str, index: pd.DataFrame, condition: str = "factual"
) -> Iterator[tuple[dict[str, str], list[np.ndarray], tuple[dict[str, float], dict[str, float]]]]:
    """Every real PET of an index with the synthetic one of a method (see `volume_pairs`), in SUVR.

    Yields method, person, session and tracer; both volumes (X, Y, Z); and the regional means of both.
    """
    grid = Grid.of(config.preprocess.grid)
    for person, session, tracer, *paths in volume_pairs(config, method, index, condition):
        scale = sidecar_range(paths[0])  # intensities of a prediction have the scale of the real ones
        real, synthetic = (to_suvr(read_volume(path, grid), scale) for path in paths)
        means = real_regional_means(paths[0], real, grid, tracer), regional_means(synthetic, grid, tracer)
        head = {"method": method, "person": person, "session": session, "tracer": tracer}
        yield head, [real, synthetic], means


def summary_suvr(config: Config, method: str, index: pd.DataFrame, condition: str = "factual") -> pd.DataFrame:
    """Summary SUVR of `suvr_pairs`: method, person, session, tracer, real, synthetic."""
    rows = [
        head | {"real": real["summary"], "synthetic": synthetic["summary"]}
        for head, _, (real, synthetic) in suvr_pairs(config, method, index, condition)
    ]
    return pd.DataFrame(rows, columns=["method", "person", "session", "tracer", "real", "synthetic"])


def regional_suvr(
    config: Config, method: str, index: pd.DataFrame | None = None, condition: str = "factual"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Regional SUVR and texture of every synthetic PET and the real one.

    ``method`` may be ``template``; ``index`` defaults to the test people. The first frame has method, person, session,
    tracer, region, real, synthetic (SUVR), the second method, person, session, tracer, texture (see `texture`).
    """
    brain = mni_map("brain", Grid.of(config.preprocess.grid))
    rows, ratios = [], []
    for head, volumes, means in suvr_pairs(config, method, read_index(config) if index is None else index, condition):
        rows += [head | {"region": name, "real": means[0][name], "synthetic": means[1][name]} for name in means[0]]
        ratios.append(head | {"texture": texture(*volumes, brain)})
    columns = ["method", "person", "session", "tracer"]
    regional = pd.DataFrame(rows, columns=[*columns, "region", "real", "synthetic"])
    return regional, pd.DataFrame(ratios, columns=[*columns, "texture"])


def regional_agreement(regional: pd.DataFrame) -> pd.DataFrame:
    """Agreement of synthetic with real regional SUVR, over people (sessions averaged first).

    From `regional_suvr`, one row per method, tracer and region: n (people), r (Pearson), bias (mean of synthetic −
    real, SUVR), bias_low, bias_high (t interval, 95 %), error (mean absolute, SUVR), icc (ICC(A,1)). The tracer's
    reference region, 1 by construction, is left out.
    """
    keys = ["method", "tracer", "region"]
    chosen = regional[regional["region"] != regional["tracer"].map(REFERENCE)]
    people = chosen.groupby([*keys, "person"], sort=False)[["real", "synthetic"]].mean()
    error = (people["synthetic"] - people["real"]).abs().groupby(keys, sort=False).mean()
    table = agreement_table(chosen, keys).assign(error=error.to_numpy()).rename(columns={"icc_agreement": "icc"})
    return table[[*keys, "n", "r", "bias", "bias_low", "bias_high", "error", "icc"]]


def texture_summary(textures: pd.DataFrame) -> pd.DataFrame:
    """Texture by method and tracer: mean and std over people, and their count."""
    people = textures.groupby(["method", "tracer", "person"], sort=False)["texture"].mean().reset_index()
    return people.groupby(["method", "tracer"], sort=False)["texture"].agg(["mean", "std", "count"]).reset_index()
