"""Regional SUVR and texture: what a blurred image loses though it wins PSNR.

Intensities are turned back to SUVR by the range in each volume's sidecar. Regions are the built-in ones of
`resdm_suite.anatomy`, in MNI space; ``summary`` is the cortical composite of the tracer (its regions' voxels pooled).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from resdm_suite.anatomy import REFERENCE, SUMMARY, Grid, mni_map, regions
from resdm_suite.evaluation.image_quality import read_index, read_volume, volume_pairs
from resdm_suite.paths import sidecar_path
from resdm_suite.profiles import Config


def to_suvr(intensity: np.ndarray, suvr_range: tuple[float, float]) -> np.ndarray:
    """Undo the fixed intensity scaling: [0, 1] → [low, high] SUVR."""
    low, high = suvr_range
    return low + (high - low) * np.asarray(intensity)


def sidecar_range(path: str | Path) -> tuple[float, float]:
    """The SUVR range that intensities 0 and 1 of a PET stand for, from the sidecar beside it.

    Raises
    ------
    FileNotFoundError
        No sidecar.
    ValueError
        The intensities were not scaled by a fixed range, which alone keeps SUVR.
    """
    sidecar = sidecar_path(path)
    if not sidecar.is_file():
        raise FileNotFoundError(f"{sidecar}: no sidecar beside {Path(path).name}; its SUVR cannot be known")
    intensity = json.loads(sidecar.read_text(encoding="utf-8")).get("intensity", {})
    if intensity.get("kind") != "fixed" or len(intensity.get("suvr_range", ())) != 2:
        raise ValueError(
            f"{sidecar}: intensity is {intensity or 'not stated'}; SUVR needs kind 'fixed' with a suvr_range "
            "(preprocess.intensity: fixed)"
        )
    low, high = intensity["suvr_range"]
    return float(low), float(high)


def regional_means(volume: np.ndarray, grid: Grid, tracer: str) -> dict[str, float]:
    """Mean of a volume in every built-in region and in the tracer's ``summary``.

    Parameters
    ----------
    volume : ndarray (X, Y, Z)
        SUVR on ``grid``.
    grid : Grid
    tracer : {"amyloid", "tau"}

    Returns
    -------
    dict of str to float
        ``summary`` first, then the regions in the order of `resdm_suite.anatomy.regions`.
    """
    volume = np.asarray(volume, dtype=np.float64)
    return {name: float(volume[mask].mean()) for name, mask in _masks(grid, tracer).items()}


def real_regional_means(path: str | Path, suvr: np.ndarray, grid: Grid, tracer: str) -> dict[str, float]:
    """`regional_means` of a preprocessed real PET as preprocessing measured them, before it clipped the SUVR range.

    Parameters
    ----------
    path : path
        The PET; its sidecar has them as ``regional_suvr``.
    suvr : ndarray (X, Y, Z)
        The same PET, clipped: it is measured where the sidecar has none.
    grid : Grid
    tracer : {"amyloid", "tau"}
    """
    said = json.loads(sidecar_path(path).read_text(encoding="utf-8"))
    return said.get("regional_suvr") or regional_means(suvr, grid, tracer)


@cache
def _masks(grid: Grid, tracer: str) -> dict[str, np.ndarray]:
    masks = regions(grid)
    return {"summary": np.any([masks[name] for name in SUMMARY[tracer]], axis=0)} | masks


def texture(real: np.ndarray, synthetic: np.ndarray, mask: np.ndarray) -> float:
    """Gradient energy of the synthetic volume over that of the real one.

    1 is as much fine structure as the real image, less is blurred, more is noisy. The real PET's own noise counts as
    structure, so even the best possible mean prediction stays below 1. Only neighbours that are both inside the mask
    are compared: the step at the brain's edge is in both images and would hide the difference.

    Parameters
    ----------
    real, synthetic : ndarray (X, Y, Z)
        Intensities or SUVR, the same scale.
    mask : ndarray (X, Y, Z), bool
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


def regional_suvr(
    config: Config, method: str, index: pd.DataFrame | None = None, condition: str = "factual"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Regional SUVR and texture of every synthetic PET beside the real one.

    Parameters
    ----------
    config : Config
    method : str
        A method's name, or ``template``.
    index : DataFrame, optional
        Sessions; the test people by default.
    condition : str

    Returns
    -------
    regional : DataFrame
        method, person, session, tracer, region, real, synthetic (SUVR).
    textures : DataFrame
        method, person, session, tracer, texture (ratio, see `texture`).
    """
    grid = Grid.of(config.preprocess.grid)
    brain = mni_map("brain", grid)
    rows, ratios = [], []
    for person, session, tracer, real_path, synthetic_path in volume_pairs(
        config, method, read_index(config) if index is None else index, condition
    ):
        who = {"method": method, "person": person, "session": session, "tracer": tracer}
        scale = sidecar_range(real_path)  # intensities of a prediction stand for what the real ones stand for
        real = to_suvr(read_volume(real_path, grid), scale)
        synthetic = to_suvr(read_volume(synthetic_path, grid), scale)
        means = [real_regional_means(real_path, real, grid, tracer), regional_means(synthetic, grid, tracer)]
        rows += [who | {"region": r, "real": means[0][r], "synthetic": means[1][r]} for r in means[0]]
        ratios.append(who | {"texture": texture(real, synthetic, brain)})
    columns = ["method", "person", "session", "tracer"]
    return (
        pd.DataFrame(rows, columns=[*columns, "region", "real", "synthetic"]),
        pd.DataFrame(ratios, columns=[*columns, "texture"]),
    )


def agreement(regional: pd.DataFrame, drop_reference: bool = True) -> pd.DataFrame:
    """How well synthetic regional SUVR agree with real ones, over people.

    Parameters
    ----------
    regional : DataFrame
        From `regional_suvr`, of one or more methods. Sessions of a person are averaged first.
    drop_reference : bool
        Leave out the tracer's reference region, which is 1 by construction.

    Returns
    -------
    DataFrame
        One row a method, tracer and region: n (people), r (Pearson; NaN where the synthetic values do not vary, as the
        template's), bias (mean of synthetic − real, SUVR), bias_low, bias_high (t interval, 95 %), error (mean
        absolute, SUVR), icc (see `icc`).
    """
    keys = ["method", "tracer", "region", "person"]
    people = regional.groupby(keys, sort=False)[["real", "synthetic"]].mean().reset_index()
    rows = []
    for (method, tracer, region), part in people.groupby(["method", "tracer", "region"], sort=False):
        if drop_reference and region == REFERENCE[tracer]:
            continue
        real, synthetic = part["real"].to_numpy(), part["synthetic"].to_numpy()
        difference = synthetic - real
        rows.append(
            {"method": method, "tracer": tracer, "region": region, "n": len(part), "r": correlation(real, synthetic)}
            | dict(zip(("bias", "bias_low", "bias_high"), _mean_interval(difference), strict=True))
            | {"error": float(np.abs(difference).mean()), "icc": icc(real, synthetic)}
        )
    return pd.DataFrame(rows)


def texture_summary(textures: pd.DataFrame) -> pd.DataFrame:
    """Texture by method and tracer: mean and standard deviation over people, and how many."""
    people = textures.groupby(["method", "tracer", "person"], sort=False)["texture"].mean().reset_index()
    return people.groupby(["method", "tracer"], sort=False)["texture"].agg(["mean", "std", "count"]).reset_index()


def correlation(x: Iterable[float], y: Iterable[float]) -> float:
    """Pearson's r; NaN where one side does not vary or there are fewer than three pairs."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 3 or np.ptp(x) < 1e-9 or np.ptp(y) < 1e-9:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def icc(real: Iterable[float], synthetic: Iterable[float]) -> float:
    """Intraclass correlation ICC(A,1): two-way, absolute agreement, single measure (McGraw and Wong 1996).

    Unlike r it falls with a bias or with a wrong scale. NaN for fewer than three pairs.
    """
    table = np.column_stack([np.asarray(real, dtype=np.float64), np.asarray(synthetic, dtype=np.float64)])
    n, k = table.shape
    if n < 3:
        return float("nan")
    grand = table.mean()
    rows = k * np.sum((table.mean(axis=1) - grand) ** 2) / (n - 1)
    columns = n * np.sum((table.mean(axis=0) - grand) ** 2) / (k - 1)
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + grand
    error = np.sum(rest**2) / ((n - 1) * (k - 1))
    below = rows + (k - 1) * error + k * (columns - error) / n
    return float((rows - error) / below) if below > 0 else float("nan")


def _mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half
