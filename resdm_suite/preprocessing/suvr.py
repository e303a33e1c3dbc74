"""One PET onto the profile's grid as SUVR: reference region, regional means, and intensities in [0, 1]."""

from typing import Any

import numpy as np
from nibabel.affines import apply_affine

from resdm_suite.anatomy import REFERENCE, Grid, measured_regions, mni_map, regions
from resdm_suite.preprocessing.resampling import Scan, resample, smooth
from resdm_suite.preprocessing.scans import VolumeError
from resdm_suite.profiles import PreprocessConfig

MIN_REFERENCE_COVERAGE = 0.5
"""Part of the reference region that a PET must hold; the mean over less would be that of the region's rim."""


def units(settings: PreprocessConfig, tracer: str, *, difference: bool = False) -> str:
    """``Units`` of a PET as the suite stores it, in [0, 1], or of differences and standard deviations of such PETs."""
    low, high = settings.suvr_range[tracer]
    if not settings.in_suvr:
        return "1 (each scan scaled to [0, 1]; no SUVR)"
    return f"1 (SUVR = {'' if difference or not low else f'{low:g} + '}{high - low:g} × value)"


def pet_on_grid(
    pet: Scan, mni_to_pet: np.ndarray, tracer: str, settings: PreprocessConfig, path: str
) -> tuple[np.ndarray, dict[str, Any], dict[str, float]]:
    """A PET in [0, 1] on the grid, entries of its sidecar, and measures of SUVR and quality.

    Raises `VolumeError` if the scan holds too little of the reference region, or the region has no uptake.
    """
    grid = Grid.of(settings.grid)
    brain = mni_map("brain", grid)
    if settings.smooth_mm:
        pet = smooth(pet, settings.smooth_mm)
    array = resample(pet, grid.affine, grid.shape, mni_to_pet)
    reference, coverage = _reference_values(array, pet, mni_to_pet, grid, tracer, path)
    mean = float(reference.mean()) if len(reference) else 0.0
    if not mean > 0:
        found = f"the reference region ({REFERENCE[tracer]}) holds a mean of {mean:g}, expected more than 0"
        raise VolumeError(f"{path}: {found}; does the scan cover the cerebellum?")
    array = array / mean
    parts = measured_regions(grid, tracer)
    regional = {name: float(array[mask].mean(dtype=np.float64)) for name, mask in parts.items()}  # before clipping
    low, high = settings.suvr_range[tracer]
    if not settings.in_suvr:
        low, high = float(array[brain].min()), float(array[brain].max())
    clipped = float(100 * np.mean((array[brain] < low) | (array[brain] > high)))
    measured = {"suvr": regional["summary"], "reference_mean": mean, "reference_cov": float(reference.std() / mean)}
    measured |= {"suvr_max": float(array[brain].max()), "reference_coverage": coverage, "clipped_percent": clipped}
    array = np.clip((array - low) / (high - low), 0, 1)
    if settings.mask:
        array[~brain] = 0
    sidecar = {"intensity": {"kind": settings.intensity, "suvr_range": [low, high]}}
    sidecar |= {"reference_region": REFERENCE[tracer], "reference_mean": mean}
    sidecar |= {"clipped_percent": clipped, "regional_suvr": regional}
    if pet.frames:
        sidecar["frames"] = pet.frames
        names = {"minutes": "frame_minutes", "minutes_outside_window": "minutes_outside_window"}
        measured |= {name: pet.frames[key] for key, name in names.items() if key in pet.frames}
    return array, sidecar, measured


def _reference_values(
    array: np.ndarray, pet: Scan, mni_to_pet: np.ndarray, grid: Grid, tracer: str, path: str
) -> tuple[np.ndarray, float]:
    """Values of the reference region inside the scan, and the part of the region that the scan holds.

    Beyond the scan's edge the grid is 0; counted as uptake, it would raise every SUVR.
    """
    mask = regions(grid)[REFERENCE[tracer]]
    voxels = apply_affine(np.linalg.inv(pet.affine) @ mni_to_pet, grid.mm()[:, mask].T)
    ends = np.array(pet.data.shape) - 1
    coverage = float(np.mean(np.all((voxels > -0.5) & (voxels < ends + 0.5), axis=1)))
    if coverage < MIN_REFERENCE_COVERAGE:
        found, expected = (f"{100 * share:.0f} %" for share in (coverage, MIN_REFERENCE_COVERAGE))
        fault = f"holds {found} of the reference region ({REFERENCE[tracer]}), expected {expected} or more"
        raise VolumeError(f"{path}: {fault}; does the scan cover the cerebellum, and is its affine right?")
    return array[mask][np.all((voxels >= 0) & (voxels <= ends), axis=1)], coverage
