"""One T1-weighted MRI onto the profile's grid: affine registration, N4, and intensities in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its users call it so
from nibabel.affines import voxel_sizes
from scipy import ndimage

from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.cohorts.manifest import SPACE
from resdm_suite.paths import stem
from resdm_suite.preprocessing.measures import LIMITS, blur
from resdm_suite.preprocessing.registration import Scan, register_affine, resample
from resdm_suite.preprocessing.scans import VolumeError, read_scan
from resdm_suite.profiles import Config, PreprocessConfig

MIN_TEMPLATE_CORRELATION = 0.3
"""Correlation with the MNI152 T1 below which a scan cannot be in MNI152, regardless of the manifest."""

_MAX_T1_VOXEL_MM = 4.5  # as coarse as the coarsest phantoms
_CONTRAST_GRID = Grid((48, 56, 48), 4.0)  # of `tissue_contrast`
_MAX_FLUID, _MAX_FLUID_BETWEEN, _MAX_DEPTH = 0.56, 0.5, 0.5  # see `looks_like_pet`

_OTHER_SCANS = {
    "pet": "a PET", "ct": "a CT", "t2w": "a T2-weighted MRI", "flair": "a FLAIR MRI", "t2star": "a T2*-weighted MRI",
    "pdw": "a proton-density MRI", "bold": "a functional MRI", "dwi": "a diffusion MRI", "mask": "a mask",
}  # fmt: skip
"""BIDS suffixes of files that are no T1-weighted MRI."""


def preprocess_mri(path: str | Path, config: Config) -> tuple[np.ndarray, dict[str, Any]]:
    """One T1-weighted MRI, brain only or whole head, onto the profile's grid, as `preprocess` does it.

    Parameters
    ----------
    path : path
        NIfTI in its native space.
    config : Config

    Returns
    -------
    array : ndarray (X, Y, Z), float32
        Intensities in [0, 1].
    info : dict
        ``transform`` (4, 4) as lists: MNI mm → T1 mm; ``t1_correlation``: with the MNI152 T1 inside the brain;
        ``fluid``, ``depth``: see `tissue_contrast`; ``bias_field``, ``intensity``.

    Raises
    ------
    VolumeError
        The file cannot be read, is not a single volume, is too coarse, looks like a CT or a PET, or does not fit the
        MNI152 T1.
    """
    suffix = stem(Path(path).name).rpartition("_")[2].lower()
    if suffix in _OTHER_SCANS:
        raise VolumeError(f"{path}: {_OTHER_SCANS[suffix]} by its name; expected a T1-weighted MRI")
    scan = read_scan(path)
    air = float(np.mean((scan.data < -700) & (scan.data > -1300)))
    if air > 0.05:  # a large part of any CT is air at −1000, and no MRI is that negative
        raise VolumeError(
            f"{path}: {100 * air:.0f} % of its voxels lie near −1000, as air does in a CT (Hounsfield units); expected "
            "a T1-weighted MRI"
        )
    mean_mm = float(np.prod(voxel_sizes(scan.affine)) ** (1 / 3))
    if mean_mm > _MAX_T1_VOXEL_MM:
        raise VolumeError(
            f"{path}: voxels of {mean_mm:.1f} mm (mean of the three axes), expected {_MAX_T1_VOXEL_MM:g} or less: it "
            "shows too little anatomy to tell a T1 from a PET; take the scan before it was resampled"
        )
    array, mni_to_t1, info = t1_on_grid(scan, config.preprocess, path)
    least = LIMITS["correlation"][0]
    if info["t1_correlation"] < least:
        raise VolumeError(
            f"{path}: does not fit the MNI152 T1 (correlation {info['t1_correlation']:.2f} inside the brain, expected "
            f"{least} or more); is it a T1-weighted MRI of a head, with its orientation right?"
        )
    fluid, depth = tissue_contrast(scan, mni_to_t1)
    if looks_like_pet(fluid, depth):
        raise VolumeError(
            f"{path}: looks like a PET, not a T1-weighted MRI: fluid is {fluid:.2f} times as bright as white matter, "
            f"and grey matter {100 * depth:.0f} % of the way down to it (expected {_MAX_FLUID} or less, and "
            f"{100 * _MAX_DEPTH:.0f} % or less where fluid is above {_MAX_FLUID_BETWEEN})"
        )
    return array, {"transform": mni_to_t1.tolist(), "fluid": fluid, "depth": depth} | info


def tissue_contrast(scan: Scan, mni_to_t1: np.ndarray) -> tuple[float, float]:
    """Brightness of fluid relative to white matter, and position of grey matter between white (0) and fluid (1).

    Tissue means by least squares on the tissue maps, on a grid of 4 mm.
    """
    gm, wm = (mni_map(name, _CONTRAST_GRID) for name in ("gm", "wm"))
    inside = ndimage.binary_erosion(mni_map("brain", _CONTRAST_GRID), iterations=2)
    values = resample(scan, _CONTRAST_GRID.affine, _CONTRAST_GRID.shape, mni_to_t1)[inside]
    maps = np.column_stack([gm[inside], wm[inside], np.clip(1 - gm - wm, 0, 1)[inside]])
    grey, white, fluid = np.linalg.lstsq(maps, values)[0]
    if not white > fluid:
        return np.inf, 0.0
    return float(fluid / white), float((white - grey) / (white - fluid))


def looks_like_pet(fluid: float, depth: float) -> bool:
    """Whether a `tissue_contrast` is that of a PET.

    In a T1 fluid is dark. In a PET all tissues take up tracer and the scanner blurs them. Where white matter binds
    most, as in amyloid PET without amyloid, grey matter is nearly as dark as fluid.
    """
    return fluid > _MAX_FLUID or (fluid > _MAX_FLUID_BETWEEN and depth > _MAX_DEPTH)


@contextmanager
def registration_errors(path: str | Path) -> Iterator[None]:
    """Turn SimpleITK's errors into a `VolumeError` that names the file."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise VolumeError(f"{path}: cannot be registered ({reason}); is it a scan of a head?") from None


def t1_on_grid(
    t1: Scan, settings: PreprocessConfig, path: str | Path, space: str = ""
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The T1 in [0, 1] on the grid, the matrix MNI → T1, and entries of its sidecar.

    ``space`` is the scan's standard space, if it has one; empty: register it.
    """
    grid = Grid.of(settings.grid)
    brain = mni_map("brain", grid)
    mni_to_t1 = np.eye(4)
    if not space:
        with registration_errors(path):
            mni_to_t1 = register_affine(t1, settings.registration_mm)
    array = np.maximum(resample(t1, grid.affine, grid.shape, mni_to_t1), 0)
    if settings.n4:
        array /= np.exp(_log_bias(t1, mni_to_t1, grid))
    scan, template = (blur(volume, grid)[brain] for volume in (array, mni_map("t1", grid)))
    correlation = float(np.corrcoef(scan, template)[0, 1]) if scan.any() else 0.0
    if space and correlation < MIN_TEMPLATE_CORRELATION:
        raise VolumeError(
            f"{path}: the manifest states that it is in {space}, but it does not fit the {SPACE} T1 there (correlation "
            f"{correlation:.2f} inside the brain, expected {MIN_TEMPLATE_CORRELATION} or more); leave the space empty "
            "to register it"
        )
    one = float(np.percentile(array[brain], settings.mri_percentile))
    array = np.clip(array / one, 0, 1)
    if settings.mask:
        array[~brain] = 0
    intensity = {"kind": "percentile", "percentile": settings.mri_percentile, "value": one}
    bias_field = "N4" if settings.n4 else None
    return array, mni_to_t1, {"t1_correlation": correlation, "bias_field": bias_field, "intensity": intensity}


def _log_bias(t1: Scan, mni_to_t1: np.ndarray, grid: Grid) -> np.ndarray:
    """Logarithm of the T1's bias field on the grid, by N4 (Tustison et al. 2010) in MNI white matter.

    White matter is the flattest tissue, so the field needs fewer iterations and is more accurate than from the whole
    brain. It is smooth over centimetres, so a grid twice as coarse (4 mm at least) is enough.
    """
    mm = max(4.0, 2 * grid.voxel_mm)
    coarse = Grid(tuple(int(np.ceil(n * grid.voxel_mm / mm)) + 2 for n in grid.shape), mm)
    array = resample(t1, coarse.affine, coarse.shape, mni_to_t1)
    mask = (mni_map("wm", coarse) >= 0.5) & (array > 0)
    if not mask.any():
        return np.zeros(grid.shape, dtype=np.float32)
    image = sitk.GetImageFromArray(np.maximum(array, 0))
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([20, 20])
    n4.SetConvergenceThreshold(1e-3)
    n4.Execute(image, sitk.GetImageFromArray(mask.astype(np.uint8)))
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
    field -= field[mask].mean()
    return resample(Scan(field, coarse.affine), grid.affine, grid.shape)
