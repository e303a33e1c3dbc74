"""Image quality of synthetic PET: MAE, PSNR and SSIM, over the whole volume and inside the brain.

Conventions, the same for every method:

* Intensities are in [0, 1], so the data range is 1, said explicitly. (The released code leaves it out of SSIM; then
  scikit-image raises, or, in old versions, takes 2 for floats, which inflates the value.)
* ``whole``, as the paper: all voxels of the grid, background included. Background is easy, so these values are higher.
* ``brain``: voxels of the MNI152 brain mask (`resdm_suite.anatomy.mni_map`), the same mask for everyone.
* SSIM is 3D with scikit-image's defaults (uniform 7 × 7 × 7 window, sample covariance), as the released code calls it.
  ``whole`` is scikit-image's own mean, which leaves out a border of half a window; ``brain`` is the mean of the SSIM
  map over the mask, so windows at the brain's edge see some background.
* A perfect prediction has a PSNR of infinity, written ``inf`` in CSV; it is neither capped nor hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import pandas as pd
from skimage.metrics import structural_similarity

from resdm.io import write_csv
from resdm.settings import TRACERS
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.cohorts.leakage import check_leakage, check_tested
from resdm_suite.paths import synthetic_path
from resdm_suite.profiles import Config

DATA_RANGE = 1.0
"""Range of the intensities, for PSNR and SSIM."""

METRICS = ("mae", "psnr", "ssim")
"""Columns of ``scores.csv``: MAE and SSIM as fractions, PSNR in dB."""

HIGHER_IS_BETTER = {"mae": False, "psnr": True, "ssim": True}

REGIONS = ("whole", "brain")

_WINDOWS = {
    "uniform": {"win_size": 7},
    "gaussian": {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
}


def mae(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean absolute error, as a fraction of the intensity range.

    Parameters
    ----------
    real, synthetic : ndarray (X, Y, Z)
        Intensities in [0, 1].
    mask : ndarray (X, Y, Z), bool, optional
        Voxels to take; all by default.
    """
    return float(np.mean(np.abs(_difference(real, synthetic, mask))))


def psnr(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, 10 log₁₀(1 / MSE); infinite for a perfect prediction.

    Parameters are those of `mae`.
    """
    mse = float(np.mean(_difference(real, synthetic, mask) ** 2))
    return float(10 * np.log10(DATA_RANGE**2 / mse)) if mse > 0 else float("inf")


def ssim(
    real: np.ndarray,
    synthetic: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    window: Literal["uniform", "gaussian"] = "uniform",
) -> float:
    """Mean structural similarity, 3D.

    Parameters
    ----------
    real, synthetic : ndarray (X, Y, Z)
        Intensities in [0, 1], at least 7 voxels an axis (11 for ``gaussian``).
    mask : ndarray (X, Y, Z), bool, optional
        Voxels of the SSIM map to average; by default all but a border of half a window, as scikit-image does.
    window : {"uniform", "gaussian"}
        ``uniform`` is this project's choice for every table. ``gaussian`` is that of Wang et al. 2004 (σ 1.5 voxels,
        population covariance), for comparison with papers and libraries that use it.
    """
    mean, similarity = _ssim(real, synthetic, window)
    return mean if mask is None else float(similarity[_checked(mask, real)].mean())


def _ssim(real: np.ndarray, synthetic: np.ndarray, window: str) -> tuple[float, np.ndarray]:
    _difference(real, synthetic, None)  # for its check
    mean, similarity = structural_similarity(
        real.astype(np.float64), synthetic.astype(np.float64), data_range=DATA_RANGE, full=True, **_WINDOWS[window]
    )
    return float(mean), similarity


def _difference(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    if real.shape != synthetic.shape:
        raise ValueError(f"volumes of unequal grid: real {real.shape}, synthetic {synthetic.shape}")
    difference = synthetic.astype(np.float64) - real.astype(np.float64)
    return difference if mask is None else difference[_checked(mask, real)]


def _checked(mask: np.ndarray, volume: np.ndarray) -> np.ndarray:
    if mask.shape != volume.shape or mask.dtype != bool or not mask.any():
        raise ValueError(
            f"mask: expected a boolean array of shape {volume.shape} with a voxel in it; "
            f"found {mask.dtype} {mask.shape} with {int(np.count_nonzero(mask))}"
        )
    return mask


# ── stored volumes ────────────────────────────────────────────────────────────────────────────────


def read_volume(path: str | Path, grid: Grid) -> np.ndarray:
    """A stored volume on the profile's grid, checked.

    Parameters
    ----------
    path : path
        NIfTI, RAS+, MNI152.
    grid : Grid

    Returns
    -------
    ndarray (X, Y, Z), float32
        Intensities in [0, 1].

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Another shape or affine, voxels that are not finite, or intensities outside [0, 1]: names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such volume")
    image = nib.load(path)
    if image.shape != grid.shape or not np.allclose(image.affine, grid.affine, atol=1e-3):
        raise ValueError(
            f"{path}: expected the profile's grid, {grid.shape} voxels of {grid.voxel_mm} mm from "
            f"{_point(grid.affine)}; found {image.shape} from {_point(image.affine)}. Make it again with this profile"
        )
    volume = image.get_fdata(dtype=np.float32)
    broken = int(np.count_nonzero(~np.isfinite(volume)))
    if broken:
        raise ValueError(f"{path}: {broken} of {volume.size} voxels are not finite (NaN or infinite)")
    low, high = float(volume.min()), float(volume.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"{path}: intensities run from {low:.3f} to {high:.3f}; expected [0, 1] (is this a volume in SUVR?)"
        )
    return volume


def _point(affine: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.1f}" for value in affine[:3, 3]) + ") mm"


def read_index(config: Config, split: str | None = "test") -> pd.DataFrame:
    """``volumes/index.csv``: one row a session, identifiers as text.

    Parameters
    ----------
    config : Config
    split : {"train", "validation", "test"} or None
        Keep the people of one split; ``None`` keeps all.

    Raises
    ------
    FileNotFoundError, ValueError
        No index, columns that it lacks, or nobody in the split.
    LeakageError
        A person in more than one split.
    """
    path = config.volumes / "index.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no index of preprocessed volumes; run the preprocessing first")
    index = pd.read_csv(path, dtype={"person": str, "session": str})
    needed = ["person", "session", "split"]
    needed += [column for t in TRACERS for column in (f"present_{t}", f"{t}_tracer", t)]
    missing = [column for column in needed if column not in index]
    if missing:
        raise ValueError(f"{path}: columns missing: {', '.join(missing)}; run the preprocessing again")
    check_leakage(index, str(path))
    kept = index if split is None else index[index["split"] == split]
    if kept.empty:
        there = ", ".join(sorted(map(str, set(index["split"])))) or "none"
        raise ValueError(f"{path}: no session in split {split!r}; splits there: {there}")
    return kept.reset_index(drop=True)


def check_people(frame: pd.DataFrame, config: Config, path: Path) -> None:
    """Raise `LeakageError` where a stored table (at ``path``) holds people whom ``index.csv`` does not test.

    Nothing is checked where there is no index: tables can be made from stored scores alone.
    """
    if (config.volumes / "index.csv").is_file():
        check_tested(frame, read_index(config, None), str(path))


def volume_pairs(
    config: Config, method: str, index: pd.DataFrame, condition: str = "factual"
) -> Iterator[tuple[str, str, str, Path, Path]]:
    """Every real PET of an index beside the synthetic one.

    Parameters
    ----------
    config : Config
    method : str
        A method's name, or ``template`` for the mean PET of the training people.
    index : DataFrame
        Rows of ``index.csv``, see `read_index`.
    condition : str

    Yields
    ------
    tuple
        Person, session, tracer (``amyloid`` or ``tau``), path of the real PET, path of the synthetic PET. A session
        without one tracer's PET gives no pair for it.
    """
    return _pairs(config, index, None if method == "template" else config.predictions(method, condition))


def _pairs(config: Config, index: pd.DataFrame, folder: Path | None) -> Iterator[tuple[str, str, str, Path, Path]]:
    for row in index.to_dict("records"):
        for tracer in TRACERS:
            if int(row[f"present_{tracer}"]):
                synthetic = (
                    config.volumes / f"template_{tracer}.nii.gz"
                    if folder is None
                    else synthetic_path(folder, row["person"], row["session"], row[f"{tracer}_tracer"])
                )
                yield row["person"], row["session"], tracer, config.volumes / row[tracer], synthetic


# ── scores ────────────────────────────────────────────────────────────────────────────────────────


def score_people(predictions: str | Path, index: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Score every synthetic PET that has a real one beside it.

    Parameters
    ----------
    predictions : path
        A predictions folder, ``predictions/<method>/<condition>``.
    index : DataFrame
        The sessions to score, rows of ``index.csv`` (see `read_index`; the test people by default).
    config : Config

    Returns
    -------
    DataFrame
        The rows of ``scores.csv``: person, session, tracer, region (``whole``, ``brain``), mae, psnr, ssim.

    Raises
    ------
    FileNotFoundError, ValueError
        A missing volume, or one that does not fit (see `read_volume`): names the file.
    """
    return _scores(list(_pairs(config, index, Path(predictions))), config)


def template_scores(config: Config, index: pd.DataFrame | None = None) -> pd.DataFrame:
    """The row that every method must beat: the mean PET of the training people as everyone's prediction.

    Like `score_people`, on ``volumes/template_<tracer>.nii.gz``; ``index`` defaults to the test people.
    """
    return _scores(list(_pairs(config, read_index(config) if index is None else index, None)), config)


def _scores(pairs: list[tuple[str, str, str, Path, Path]], config: Config) -> pd.DataFrame:
    absent = [str(path) for *_, synthetic in pairs for path in [synthetic] if not path.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{absent[0]}: no synthetic PET ({len(absent)} of {len(pairs)} are missing); run the synthesis first"
        )
    grid = Grid.of(config.preprocess.grid)
    brain = mni_map("brain", grid)
    rows = []
    for person, session, tracer, real_path, synthetic_path_ in pairs:
        real, synthetic = read_volume(real_path, grid), read_volume(synthetic_path_, grid)
        mean, similarity = _ssim(real, synthetic, "uniform")
        who = {"person": person, "session": session, "tracer": tracer}
        for region, mask, value in (("whole", None, mean), ("brain", brain, float(similarity[brain].mean()))):
            quality = {"mae": mae(real, synthetic, mask), "psnr": psnr(real, synthetic, mask), "ssim": value}
            rows.append(who | {"region": region} | quality)
    return pd.DataFrame(rows, columns=["person", "session", "tracer", "region", *METRICS])


def score_method(config: Config, method: str, condition: str = "factual", index: pd.DataFrame | None = None) -> Path:
    """Score one method's stored predictions, or ``template``, and write its ``scores.csv``.

    ``index`` defaults to the test people. Returns the path of the scores.
    """
    index = read_index(config) if index is None else index
    if method == "template":
        return write_scores(config, method, template_scores(config, index), condition)
    return write_scores(config, method, score_people(config.predictions(method, condition), index, config), condition)


def write_scores(config: Config, method: str, scores: pd.DataFrame, condition: str = "factual") -> Path:
    """Write ``predictions/<method>/<condition>/scores.csv``; ``template`` is written like a method."""
    return write_csv(config.predictions(method, condition) / "scores.csv", scores, "%.9g")


def read_scores(config: Config, methods: Iterable[str], condition: str = "factual") -> pd.DataFrame:
    """The stored scores of several methods as one frame, with a first column ``method``.

    Raises
    ------
    FileNotFoundError
        A method without ``scores.csv``: names the file.
    ValueError
        A file without the columns of ``scores.csv``.
    LeakageError
        Scores of people whom ``index.csv``, where it is there, does not test.
    """
    frames = []
    for method in methods:
        path = config.predictions(method, condition) / "scores.csv"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no scores of {method!r}; run its synthesis first")
        frame = pd.read_csv(path, dtype={"person": str, "session": str})
        missing = [c for c in ("person", "session", "tracer", "region", *METRICS) if c not in frame]
        if missing:
            raise ValueError(f"{path}: columns missing: {', '.join(missing)}; run the synthesis of {method!r} again")
        check_people(frame, config, path)
        frame.insert(0, "method", method)
        frames.append(frame)
    if not frames:
        raise ValueError("read_scores: no method named")
    return pd.concat(frames, ignore_index=True)
