"""Image quality of synthetic PET: MAE, PSNR and SSIM, over the whole volume and inside the brain.

Conventions, the same for every method:

* Intensities are in [0, 1], so the data range is 1, given explicitly. (The released code omits it for SSIM:
  scikit-image then raises, or, in old versions, takes 2 for floats, which inflates the value.)
* ``whole``, as the paper: all voxels of the grid. Background is easy, so these values are higher.
* ``brain``: voxels of the MNI152 brain mask (`resdm_suite.anatomy.mni_map`), the same mask for everyone.
* SSIM is 3D with scikit-image's defaults (uniform 7 × 7 × 7 window, sample covariance), as in the released code.
  ``whole`` is scikit-image's mean, which leaves out a border of half a window; ``brain`` is the mean of the SSIM map
  over the mask, so windows at the brain's edge contain some background.
* A perfect prediction has a PSNR of infinity, written ``inf`` in CSV.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from skimage.metrics import structural_similarity

from resdm.io import write_csv
from resdm.settings import SEXES, TRACERS
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.cohorts.leakage import check_leakage, check_tested
from resdm_suite.evaluation.stored import SESSION, Numbers, read_table, read_volume
from resdm_suite.paths import synthetic_path, visible, write_description
from resdm_suite.profiles import Config
from resdm_suite.records import write_record

METRICS = ("mae", "psnr", "ssim")
"""Columns of ``scores.csv``: MAE and SSIM as fractions, PSNR in dB."""

LOWER_IS_BETTER = ("mae", "brier")
"""Metrics that are losses; of all others, more is better."""

REGIONS = ("whole", "brain")

_SCORES = {"person": str, "session": str, "tracer": TRACERS, "region": REGIONS}
_SCORES |= {"mae": Numbers(0, 1.01), "psnr": Numbers(high=math.inf), "ssim": Numbers(-1.01, 1.01)}
_INDEX = {"person": str, "session": str, "split": ("train", "validation", "test")}
_INDEX |= {f"present_{t}": (0, 1) for t in TRACERS}
_INDEX |= dict.fromkeys(name for t in TRACERS for name in (f"{t}_tracer", t))
_PEOPLE = {"age": Numbers(0, 130), "sex": SEXES, "t1w": str} | {f"{t}_status": (0, 1, math.nan) for t in TRACERS}


def mae(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Mean absolute error of two arrays of one shape, in [0, 1]: volumes, or their voxels in a mask."""
    return float(np.mean(np.abs(synthetic.astype(np.float64) - real.astype(np.float64))))


def psnr(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, 10 log₁₀(1 / MSE), infinite for a perfect prediction; input as `mae`."""
    mse = float(np.mean((synthetic.astype(np.float64) - real.astype(np.float64)) ** 2))
    return float(10 * np.log10(1 / mse)) if mse > 0 else float("inf")


def ssim(real: np.ndarray, synthetic: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean structural similarity of the inner voxels, and its map; of volumes (X, Y, Z), 7 voxels or more an axis."""
    real, synthetic = real.astype(np.float64), synthetic.astype(np.float64)
    mean, similarity = structural_similarity(real, synthetic, data_range=1.0, full=True)
    return float(mean), similarity


# ── stored volumes ────────────────────────────────────────────────────────────────────────────────


def read_index(config: Config, split: str | None = "test") -> pd.DataFrame:
    """``volumes/index.csv`` of one split, or of all for ``None``: one row per session, identifiers as text.

    Raises `FileNotFoundError` or `ValueError` (see `stored.read_table`; nobody in the split), and `LeakageError` for a
    person in more than one split.
    """
    path = config.volumes / "index.csv"
    index = read_table(path, _INDEX, SESSION, "index of preprocessed volumes", "the preprocessing", _PEOPLE)
    for tracer in TRACERS:
        nameless = (index[f"present_{tracer}"] == 1) & index[[f"{tracer}_tracer", tracer]].isna().any(axis=1)
        if nameless.any():
            row = nameless.argmax() + 2
            raise ValueError(f"{path}, row {row}: {tracer} PET without a path or tracer; run the preprocessing again")
    check_leakage(index, str(path))
    chosen = index if split is None else index[index["split"] == split]
    if chosen.empty:
        splits = ", ".join(sorted(map(str, set(index["split"])))) or "none"
        raise ValueError(f"{path}: no session in split {split!r}; splits there: {splits}")
    return chosen.reset_index(drop=True)


def has_all_tracers(index: pd.DataFrame) -> pd.Series:
    """Whether a session of an index has every tracer that any of its sessions has."""
    present = index[[f"present_{tracer}" for tracer in TRACERS]] == 1
    return present.loc[:, present.any()].all(axis=1)


def check_people(frame: pd.DataFrame, config: Config, path: Path) -> None:
    """Raise where a stored table (at ``path``) holds people whom ``index.csv`` does not test, or does not hold.

    Without an index nothing is checked: tables can be made from stored scores alone.
    """
    if (config.volumes / "index.csv").is_file():
        index = read_index(config, None)
        check_tested(frame, index, str(path))
        unknown = ~pd.MultiIndex.from_frame(frame[SESSION]).isin(pd.MultiIndex.from_frame(index[SESSION]))
        if unknown.any():
            who, row = " ".join(frame.loc[unknown, SESSION].iloc[0]), unknown.argmax() + 2
            raise ValueError(f"{path}, row {row}: {who} is not in index.csv; make this table again")


def volume_pairs(
    config: Config, method: str, index: pd.DataFrame, condition: str = "factual"
) -> Iterator[tuple[str, str, str, Path, Path]]:
    """Every real PET of an index with the synthetic one of a method, or the mean PET for ``template``.

    Yields person, session, tracer (``amyloid`` or ``tau``), path of the real PET, path of the synthetic PET. A session
    without a tracer's PET has no pair for it.
    """
    folder = config.predictions(method, condition)
    for row in index.to_dict("records"):
        for tracer in TRACERS:
            if int(row[f"present_{tracer}"]):
                synthetic = synthetic_path(folder, row["person"], row["session"], row[f"{tracer}_tracer"])
                if method == "template":
                    synthetic = config.volumes / f"template_{tracer}.nii.gz"
                yield row["person"], row["session"], tracer, config.volumes / row[tracer], synthetic


# ── scores ────────────────────────────────────────────────────────────────────────────────────────


def score_people(
    config: Config, method: str, index: pd.DataFrame | None = None, condition: str = "factual"
) -> pd.DataFrame:
    """Score every synthetic PET that has a real one: person, session, tracer, region (``whole``, ``brain``), `METRICS`.

    ``method`` may be ``template``, the mean PET of the training people; ``index`` defaults to the test people.
    """
    pairs = list(volume_pairs(config, method, read_index(config) if index is None else index, condition))
    absent = [path for *_, path in pairs if not path.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{absent[0]}: no synthetic PET ({len(absent)} of {len(pairs)} are missing); run the synthesis first"
        )
    grid = Grid.of(config.preprocess.grid)
    brain = mni_map("brain", grid)
    rows = []
    for person, session, tracer, *paths in pairs:
        head = {"person": person, "session": session, "tracer": tracer}
        rows += [head | scores for scores in score_pair(*(read_volume(path, grid) for path in paths), brain)]
    return pd.DataFrame(rows, columns=["person", "session", "tracer", "region", *METRICS])


def score_pair(real: np.ndarray, synthetic: np.ndarray, brain: np.ndarray) -> list[dict[str, Any]]:
    """`METRICS` of a synthetic volume (X, Y, Z) in [0, 1], one entry for each of ``REGIONS``; ``brain`` is the mask."""
    mean, similarity = ssim(real, synthetic)
    whole = {"mae": mae(real, synthetic), "psnr": psnr(real, synthetic), "ssim": mean}
    pair = real[brain], synthetic[brain]
    inside = {"mae": mae(*pair), "psnr": psnr(*pair), "ssim": float(similarity[brain].mean())}
    return [{"region": "whole"} | whole, {"region": "brain"} | inside]


def score_method(config: Config, method: str, index: pd.DataFrame | None = None, condition: str = "factual") -> Path:
    """Write `score_people` as ``predictions/<method>/<condition>/scores.csv``, also of ``template``; its path."""
    scores = score_people(config, method, index, condition)
    return write_csv(config.predictions(method, condition) / "scores.csv", scores, "%.9g")


def record_predictions(config: Config, folder: Path, method: str, stage: str) -> None:
    """The record of a folder of predictions: all files in it, made of the volumes by a model."""
    name = f"Synthetic PET of profile {config.profile} by {method}" + f" ({config.notice})" * bool(config.notice)
    write_description(folder, name, stage, {"volumes": config.volumes})
    inputs = [config.model(method) / "model.safetensors", config.volumes / "index.csv", config.volumes / "cohort.json"]
    write_record(folder, stage, visible(folder, "**/*"), inputs)


def read_scores(config: Config, methods: Iterable[str], condition: str = "factual") -> pd.DataFrame:
    """The stored scores of several methods as one frame, with a first column ``method``.

    Raises `FileNotFoundError` or `ValueError` naming a file that is missing or faulty (see `stored.read_table`), and
    `LeakageError` for scores of people whom ``index.csv``, where it exists, does not test.
    """
    frames = []
    for method in methods:
        path = config.predictions(method, condition) / "scores.csv"
        frame = read_table(path, _SCORES, list(_SCORES)[:4], f"scores of {method!r}", f"the synthesis of {method!r}")
        check_people(frame, config, path)
        frame.insert(0, "method", method)
        frames.append(frame)
    if not frames:
        raise ValueError("read_scores: no method named")
    return pd.concat(frames, ignore_index=True)
