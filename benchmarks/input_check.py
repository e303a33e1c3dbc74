#!/usr/bin/env python
"""How well `resdm synthesise` tells gross faults of a T1 from the T1s of test people.

Faults are planted in the test people's raw T1s (brain-only phantoms), which are then preprocessed as by `resdm
synthesise`, registration included. The input check was fitted on training people and its threshold set on validation
people; test people play no part in either.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage
from scipy.spatial.transform import Rotation
from sklearn.metrics import roc_auc_score

from resdm.io import write_csv, write_text
from resdm_suite.cohorts.manifest import read_manifest
from resdm_suite.evaluation.classification import wilson
from resdm_suite.preprocessing.input_check import InputCheck
from resdm_suite.preprocessing.resampling import Scan, smooth
from resdm_suite.preprocessing.scans import VolumeError
from resdm_suite.preprocessing.t1 import check_contrast, read_t1, t1_on_grid
from resdm_suite.profiles import Config, load_config

HERE = Path(__file__).resolve().parent

TISSUES = (0.0, 0.17, 0.58, 0.92, 1.1)
"""Signal of air, fluid, grey and white matter in a T1 of a phantom, relative to its white matter at 0.92."""


def remap(scan: Scan, *signals: float) -> Scan:
    """Another contrast: the signal of air, fluid, grey matter, white matter, and of what is brighter."""
    return replace(scan, data=np.interp(_scaled(scan), TISSUES, signals).astype(np.float32))


def _scaled(scan: Scan) -> np.ndarray:
    """Intensities with white matter at about 0.92."""
    return 0.92 * scan.data / np.percentile(scan.data[scan.data > 0], 90)


def _mm(scan: Scan) -> np.ndarray:
    """Position of every voxel relative to the middle of the brain (X, Y, Z, 3), RAS mm."""
    index = np.stack(np.meshgrid(*map(np.arange, scan.data.shape), indexing="ij"), -1)
    return apply_affine(scan.affine, index) - apply_affine(scan.affine, ndimage.center_of_mass(scan.data > 0))


def _about_the_middle(scan: Scan, matrix: np.ndarray) -> Scan:
    """The head turned or scaled about the middle of the brain, in the header."""
    middle = apply_affine(scan.affine, ndimage.center_of_mass(scan.data > 0))
    move = np.eye(4)
    move[:3, :3], move[:3, 3] = matrix, middle - matrix @ middle
    return replace(scan, affine=move @ scan.affine)


def _shell(scan: Scan, levels: Sequence[float], ends_mm: Sequence[float]) -> np.ndarray:
    """Layers around the brain: the signal of each up to its distance from the brain."""
    outside = ndimage.distance_transform_edt(scan.data <= 0, sampling=voxel_sizes(scan.affine))
    within = [(outside > 0) & (outside <= end) for end in ends_mm]
    return np.select(within, levels, 0.0).astype(np.float32)


def lesions(scan: Scan, rng: np.random.Generator) -> Scan:
    """FLAIR: dark fluid, bright grey matter, and bright lesions in the white matter."""
    flair = remap(scan, 0, 0.1, 0.85, 0.6, 0.6)
    points = rng.choice(np.argwhere((_scaled(scan) > 0.8) & (np.abs(_mm(scan)).max(-1) < 45)), 12)
    seeds = np.ones(scan.data.shape, bool)
    seeds[tuple(points.T)] = False
    near = ndimage.distance_transform_edt(seeds, sampling=voxel_sizes(scan.affine)) < 6
    return replace(flair, data=np.where(near & (scan.data > 0), np.float32(1.3), flair.data))


def bias_field(scan: Scan, rng: np.random.Generator) -> Scan:
    """A surface coil at one side: a factor of about 6 from front to back and 3 from left to right."""
    x, y, z = np.moveaxis(_mm(scan), -1, 0) / 80
    return replace(scan, data=(scan.data * np.exp(0.9 * y + 0.55 * x + 0.5 * z * z)).astype(np.float32))


def vessels(scan: Scan, rng: np.random.Generator) -> Scan:
    """After contrast agent: bright sinuses along the midline and at the base, bright vessels on the surface."""
    mm, inside = _mm(scan), scan.data > 0
    depth = ndimage.distance_transform_edt(inside, sampling=voxel_sizes(scan.affine))
    sinus = (depth < 9) & (np.abs(mm[..., 0]) < 6) & (mm[..., 2] > 0)
    base = (depth < 9) & (mm[..., 2] < -20) & (mm[..., 1] < -30)
    seeds = ~inside | (depth > 9)
    tubes = ndimage.binary_dilation(~seeds & (rng.random(scan.data.shape) < 0.01)) & inside
    return replace(scan, data=np.where((sinus | base | tubes) & inside, 2.2 * scan.data.max(), scan.data))


def cut(scan: Scan, rng: np.random.Generator) -> Scan:
    """A field of view that ends 25 mm above the middle of the brain."""
    return replace(scan, data=np.where(_mm(scan)[..., 2] < 25, scan.data, np.float32(0)))


def skull(scan: Scan, rng: np.random.Generator) -> Scan:
    """The whole head where training people have brains only: dark skull, bright scalp."""
    return replace(scan, data=scan.data + np.float32(scan.data.max()) * _shell(scan, (0.1, 0.75), (6, 14)))


def ct(scan: Scan, rng: np.random.Generator) -> Scan:
    """A CT in a brain window: a flat noisy brain, grey matter a little brighter, inside a skull that dominates."""
    flat = remap(scan, 0, 0.26, 0.37, 0.3, 0.3).data + 0.03 * rng.standard_normal(scan.data.shape) * (scan.data > 0)
    return replace(scan, data=np.maximum(flat + _shell(scan, (1.0,), (7,)), 0).astype(np.float32))


def ct_stripped(scan: Scan, rng: np.random.Generator) -> Scan:
    """The same without its skull."""
    flat = remap(scan, 0, 0.7, 1.0, 0.85, 0.85).data + 0.06 * rng.standard_normal(scan.data.shape) * (scan.data > 0)
    return replace(scan, data=np.maximum(flat, 0).astype(np.float32))


FAULTS: dict[str, Callable[[Scan, np.random.Generator], Scan]] = {
    "T2: contrast inverted": lambda scan, rng: remap(scan, 0, 1.1, 0.65, 0.4, 0.4),
    "FLAIR with lesions": lesions,
    "FLAIR, grey and white matter alike": lambda scan, rng: remap(scan, 0, 0.1, 0.7, 0.7, 0.7),
    "CT with skull": ct,
    "CT, skull-stripped": ct_stripped,
    "strong bias field": bias_field,
    "cropped field of view": cut,
    "skull and scalp left in": skull,
    "infant: 0.72 of the size, little contrast": lambda scan, rng: _about_the_middle(
        remap(scan, 0, 0.25, 0.75, 0.85, 0.9), 0.72 * np.eye(3)
    ),
    "monkey: 0.45 of the size": lambda scan, rng: _about_the_middle(scan, 0.45 * np.eye(3)),
    "blurred by 12 mm": lambda scan, rng: smooth(scan, 12.0),
    "stored upside down": lambda scan, rng: _about_the_middle(scan, Rotation.from_euler("x", 180, True).as_matrix()),
    "after contrast agent": vessels,
}
"""Name → a T1 of a phantom with the fault."""


def measure(config: Config, check: InputCheck, path: str, name: str, seed: int) -> dict[str, object]:
    """Score of one T1 with a fault (empty: as it is), the worst measure, and what the checks before say."""
    scan, row = read_t1(path), {"fault": name, "scan": Path(path).name}
    if name:
        scan = FAULTS[name](scan, np.random.default_rng(seed))
    try:
        mri, matrix, info = t1_on_grid(scan, config.preprocess, path)
    except VolumeError:
        return row | {"score": np.inf, "worst": "no registration", "refused_before": True}
    try:
        check_contrast(scan, matrix, info["t1_correlation"], path)
        before = False
    except VolumeError:
        before = True
    scores = check.scores(check.measure(mri, matrix, info["t1_correlation"]))
    worst = max(scores, key=scores.get)
    return row | {"score": scores[worst], "worst": worst, "refused_before": before}


def summarise(frame: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """One row per fault: AUROC against the unchanged scans, share refused by the input check, and by either check."""
    plain, rows = frame.loc[frame["fault"] == "", "score"], []
    for name, part in frame.groupby("fault", sort=False):
        refused = part["score"] > threshold
        row = {"fault": name or "none", "n": len(part), "refused": refused.mean()}
        row |= dict(zip(("low", "high"), map(float, wilson(refused.mean(), len(part))), strict=True))
        row |= {"refused_before": part["refused_before"].mean(), "either": (refused | part["refused_before"]).mean()}
        labels, scores = np.repeat([0, 1], [len(plain), len(part)]), np.concatenate([plain, part["score"]])
        row |= {"auroc": roc_auc_score(labels, np.minimum(scores, 1e6)) if name else np.nan}
        rows.append(row | {"worst": part["worst"].mode()[0]})
    return pd.DataFrame(rows)


def markdown(config: Config, check: InputCheck, table: pd.DataFrame) -> str:
    """The results as a page."""
    lines = [
        "# Faults of a T1 that `resdm synthesise` finds",
        "",
        f"{config.notice or 'ADNI'}. `python benchmarks/input_check.py`: profile `{config.profile}`. Threshold "
        f"{check.threshold:.2f}, set by {check.held_out} people who were not used to fit the check. One T1 per test "
        "person. AUROC: unchanged against changed scans by their score. “Refused” is by the input check, in brackets "
        "the 95 % Wilson interval; “before”: by the checks of contrast and registration alone.",
        "",
        "| fault | scans | AUROC | refused (%) | before (%) | either (%) | worst measure |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in table.to_dict("records"):
        refused = f"{100 * row['refused']:.0f} [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"
        cells = [row["fault"], row["n"], "–" if np.isnan(row["auroc"]) else f"{row['auroc']:.3f}", refused]
        cells += [f"{100 * row['refused_before']:.0f}", f"{100 * row['either']:.0f}", row["worst"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Plant every fault in test people's T1s, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="phantom")
    parser.add_argument("--method", default="ResDM")
    parser.add_argument("--people", type=int, default=1000, help="test people, at most")
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    config = load_config(options.profile)
    check = InputCheck.read(config.model(options.method))
    if check is None:
        parser.error(f"{config.model(options.method)}: no input check there; run `resdm train` first")
    rows = read_manifest(config.manifest).query("split == 'test'").drop_duplicates("person")[: options.people]
    jobs = [(path, name, seed) for name in ("", *FAULTS) for seed, path in enumerate(rows["t1w"])]
    found = Parallel(options.jobs)(delayed(measure)(config, check, *job) for job in jobs)
    table = summarise(pd.DataFrame(found), check.threshold)
    write_csv(options.out / "input_check.csv", table, "%.4g")
    write_text(options.out / "input_check.md", markdown(config, check, table))
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
