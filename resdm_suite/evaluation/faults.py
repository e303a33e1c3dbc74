"""Signs that synthetic PET was rescaled, flipped, shifted or cropped, or is of other people.

Each check compares a method with real PET of the same people. It does not measure quality: inaccurate synthetic PET
passes, and accurate but mirrored PET does not. Tests are over people.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from scipy import ndimage, stats

from resdm_suite.anatomy import REFERENCE, Grid, mni_map, regions
from resdm_suite.evaluation.statistics import over_people
from resdm_suite.evaluation.suvr import to_suvr

Volumes = Sequence[np.ndarray]

ALPHA = 0.001
"""Level of the paired tests over people."""

REFERENCE_LIMITS = (0.6, 1.6)
"""SUVR of the reference region (median over people) outside which values are no SUVR. It is 1 by definition, lower in
heavily blurred images, and 0.33 where SUVR from 0 to 3 was mapped to [0, 1]."""

MIN_FILLED = 0.5
"""Least part of the reference region that a volume holds."""

FINE_MM = 6.0
"""Standard deviation of the Gaussian whose result is subtracted, to leave the structure that differs between people."""

MIN_LIKENESS = 3.0
"""Standard deviations by which one person must be more like a synthetic PET than the others are on average. In the
default phantom the own person is so by 4.4 (median over people), the nearest other one by 3.3 at most."""

MIN_PEOPLE = 10
"""Below this number of people only the checks of single volumes are made."""


class FaultError(ValueError):
    """Volumes that cannot be evaluated as they are: names the method, the fault and the remedy."""


def check_scale(name: str, tracer: str, volumes: Volumes, grid: Grid, suvr_range: tuple[float, float]) -> None:
    """Raise `FaultError` where volumes (X, Y, Z) in [0, 1] lack the reference region, or are not in SUVR."""
    inside = np.array([one[regions(grid)[REFERENCE[tracer]]] for one in volumes])  # (N, V)
    filled = np.mean(inside > 0, axis=1)
    if filled.min() < MIN_FILLED:
        raise FaultError(
            f"{name}, {tracer}: {np.count_nonzero(filled < MIN_FILLED)} of {len(volumes)} volumes lack the reference "
            f"region ({REFERENCE[tracer]}; one holds {100 * filled.min():.0f} % of it), so their SUVR cannot be "
            "checked; give volumes of the whole brain"
        )
    mean = float(np.median(to_suvr(inside, suvr_range).mean(axis=1)))
    if not REFERENCE_LIMITS[0] <= mean <= REFERENCE_LIMITS[1]:
        raise FaultError(
            f"{name}, {tracer}: the reference region ({REFERENCE[tracer]}) has a median SUVR of {mean:.2f}, expected "
            "1; give volumes in SUVR, or state by --scale which SUVR the values 0 and 1 stand for"
        )


def find_faults(
    name: str, tracer: str, real: Volumes, synthetic: Volumes, people: Sequence[str], grid: Grid,
    suvr_range: tuple[float, float],
) -> list[dict[str, Any]]:  # fmt: skip
    """Faults of a method's volumes (X, Y, Z) in [0, 1], one per session, as rows: method, tracer, fault, detail.

    Raises `FaultError` as `check_scale` does, and for images that were scaled one by one.
    """
    if _scaled_one_by_one(real, synthetic):
        raise FaultError(
            f"{name}, {tracer}: every image has the same largest value, in a single voxel, while the real ones differ: "
            "each was scaled by its own range, so its SUVR is lost; give volumes in SUVR"
        )
    check_scale(name, tracer, synthetic, grid, suvr_range)
    checks = [_flipped, _shifted, _mismatched] if len(set(people)) >= MIN_PEOPLE else []
    head = {"method": name, "tracer": tracer}
    return [head | fault for check in checks for fault in check(real, synthetic, people, grid)]


def _scaled_one_by_one(real: Volumes, synthetic: Volumes) -> bool:
    """Whether each image has been divided by its own maximum: all maxima are equal, and only one voxel reaches it."""
    if len(real) < 3:
        return False
    tops, real_tops = (np.array([one.max() for one in volumes]) for volumes in (synthetic, real))
    at_top = [np.count_nonzero(one >= top) for one, top in zip(synthetic, tops, strict=True)]
    return bool(np.ptp(tops) < 1e-4 * tops.max() and np.ptp(real_tops) > 0.01 and np.median(at_top) <= 2)


def _flipped(real: Volumes, synthetic: Volumes, people: Sequence[str], grid: Grid) -> Iterator[dict[str, str]]:
    """Left and right exchanged: the asymmetry of the synthetic PET is that of the real one with the opposite sign."""
    brain = mni_map("brain", grid)
    both = brain & brain[::-1]
    pairs = [[(one - one[::-1])[both] for one in pair] for pair in zip(real, synthetic, strict=True)]
    values = over_people(np.array([_correlation(*pair) for pair in pairs]), np.array(people)).to_numpy()
    if _above_zero(-values) and np.mean(values < 0) > 0.8:
        yield {
            "fault": "left and right exchanged",
            "detail": f"asymmetry correlates with the real one by {values.mean():.2f} (mean over people)",
        }


def _shifted(real: Volumes, synthetic: Volumes, people: Sequence[str], grid: Grid) -> Iterator[dict[str, str]]:
    """Displaced by a voxel: moved back, the synthetic PET is nearer to the real one in almost everyone."""
    inner = ndimage.binary_erosion(mni_map("brain", grid), iterations=2)
    steps = [step for step in product((-1, 0, 1), repeat=3) if any(step)]

    def fits(step: tuple[int, ...]) -> np.ndarray:
        moved = (np.roll(one, step, axis=(0, 1, 2)) for one in synthetic)
        values = np.array([_correlation(one[inner], other[inner]) for one, other in zip(real, moved, strict=True)])
        return over_people(values, np.array(people)).to_numpy()

    unmoved = fits((0, 0, 0))
    gains = {step: fits(step) - unmoved for step in steps}
    best = max(gains, key=lambda step: gains[step].mean())
    if _above_zero(gains[best]) and np.mean(gains[best] > 0) > 0.8:
        mm, share = " ".join(f"{0 - grid.voxel_mm * n:+g}" for n in best), 100 * np.mean(gains[best] > 0)
        yield {
            "fault": "shifted",
            "detail": f"by {mm} mm (x, y, z): moved back, it fits {share:.0f} % of people better",
        }


def _mismatched(real: Volumes, synthetic: Volumes, people: Sequence[str], grid: Grid) -> Iterator[dict[str, str]]:
    """Another person's PET: in both hemispheres, its fine structure is by far most like that of one other person.

    Coarse structure is not compared: people of one age and stage of disease share it.
    """
    brain, sigma, names = mni_map("brain", grid), FINE_MM / grid.voxel_mm, np.array(people)
    fine = [
        np.array([(one - ndimage.gaussian_filter(one, sigma))[brain] for one in volumes])
        for volumes in (real, synthetic)
    ]
    x, nearest, distance = grid.mm()[0][brain], [], []
    for half in (x < 0, x > 0):
        centred = [volumes[:, half] - volumes[:, half].mean(axis=0) for volumes in fine]
        norms = [np.linalg.norm(values, axis=1, keepdims=True) for values in centred]
        if min(norm.min() for norm in norms) < 1e-6:  # one image for several people
            return
        likeness = (centred[1] / norms[1]) @ (centred[0] / norms[0]).T  # (synthetic, real)
        nearest.append(likeness.argmax(axis=1))
        others = np.sort(likeness, axis=1)[:, :-1]
        distance.append((likeness.max(axis=1) - others.mean(axis=1)) / others.std(axis=1))
    other = (nearest[0] == nearest[1]) & (names[nearest[0]] != names) & (np.min(distance, axis=0) > MIN_LIKENESS)
    if other.any():
        pairs = [f"{names[i]} has the PET of {names[nearest[0][i]]}" for i in np.flatnonzero(other)]
        shown = "; ".join(pairs[:5]) + (f" … and {len(pairs) - 5} more" if len(pairs) > 5 else "")
        yield {"fault": "other people's PET", "detail": shown}


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    below = np.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / below if below > 0 else 0.0


def _above_zero(values: np.ndarray) -> bool:
    return bool(np.ptp(values) > 0 and stats.ttest_1samp(values, 0, alternative="greater").pvalue < ALPHA)
