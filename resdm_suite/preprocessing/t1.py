"""One T1-weighted MRI onto the profile's grid: affine registration, N4, and intensities in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from resdm_suite.anatomy import CENTRE_MM, Grid, mni_map
from resdm_suite.cohorts.manifest import SPACE
from resdm_suite.cohorts.tables import read_sidecar
from resdm_suite.paths import stem
from resdm_suite.preprocessing.measures import LIMITS, blur
from resdm_suite.preprocessing.resampling import Scan, resample, smooth
from resdm_suite.preprocessing.scans import VolumeError, read_scan
from resdm_suite.profiles import Config, PreprocessConfig

T1_UNITS = "1 (T1 scaled to [0, 1])"
"""``Units`` of a preprocessed T1."""

MIN_TEMPLATE_CORRELATION = 0.3
"""Correlation with the MNI152 T1 below which a scan cannot be in MNI152, regardless of the manifest."""

_MAX_T1_VOXEL_MM = 4.5  # as coarse as the coarsest phantoms
_CONTRAST_GRID = Grid((64, 72, 64), 3.0)  # of `tissue_contrast`
_MAX_FLUID = 0.65  # brightness of fluid relative to white matter; T1: 0.34 to 0.58, most PET: more
# Least detail of a T1 by voxel size (mm), measured with noise of up to 10 % of white matter in T1 and 12 % of the mean
# uptake in PET, which change it by 0.03 at most where no range is given:
#   T1:  a real one 0.86, smoothed by 4 mm 0.50; of 2 mm voxels 0.81, 3 mm 0.63, 4 mm 0.50, 4.5 mm 0.44;
#        phantoms of 3.5 mm 0.39 to 0.53 (140 sessions), of 4.1 mm 0.40 to 0.47 (22 sessions);
#   PET: 7 mm FWHM, of the tissues of a real T1 or of MNI152: voxels of 2 mm 0.32 to 0.43, of 3 mm 0.30 to 0.45, of 3.5
#        to 4.4 mm 0.27 to 0.36; phantoms 0.21 to 0.30. So a PET of coarse voxels may pass, and one of 6 mm FWHM, which
#        has 0.36 to 0.50.
_LEAST_DETAIL = (3.0, 3.4), (0.47, 0.34)

_OTHER_SCANS = {
    "pet": "a PET", "ct": "a CT", "t2w": "a T2-weighted MRI", "flair": "a FLAIR MRI", "t2star": "a T2*-weighted MRI",
    "pdw": "a proton-density MRI", "bold": "a functional MRI", "dwi": "a diffusion MRI", "mask": "a mask",
}  # fmt: skip
"""BIDS suffixes of files that are no T1-weighted MRI."""


def preprocess_mri(path: str | Path, config: Config) -> tuple[np.ndarray, dict[str, Any]]:
    """One T1-weighted MRI, brain only or whole head, onto the profile's grid, as `volumes.preprocess` does it.

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
        ``fluid``, ``depth``, ``detail``: see `tissue_contrast`; ``bias_field``, ``intensity``.

    Raises
    ------
    VolumeError
        The file cannot be read, is not a single volume, is too coarse, has another contrast than a T1, or does not fit
        the MNI152 T1.
    """
    scan = brain_only(read_t1(path), config.preprocess, path)
    array, mni_to_t1, info = t1_on_grid(scan, config.preprocess, path)
    contrast = check_contrast(scan, mni_to_t1, info["t1_correlation"], path)
    return array, {"transform": mni_to_t1.tolist()} | contrast | info


def read_t1(path: str | Path) -> Scan:
    """Read a T1-weighted MRI; `VolumeError` if its name, sidecar, air or voxels are those of another scan."""
    suffix = stem(Path(path).name).rpartition("_")[2].lower()
    if suffix in _OTHER_SCANS:
        raise VolumeError(f"{path}: {_OTHER_SCANS[suffix]} by its name; expected a T1-weighted MRI")
    sidecar = read_sidecar(path) or {}
    modality = str(sidecar.get("Modality", "PT" if "TracerName" in sidecar else "MR"))
    if not modality.startswith("MR"):
        raise VolumeError(f"{path}: modality {modality} by its JSON sidecar, expected MR; give a T1-weighted MRI")
    scan = read_scan(path)
    air = float(np.mean((scan.data < -700) & (scan.data > -1300)))
    if air > 0.05:  # a large part of any CT is air at −1000, and no MRI is that negative
        raise VolumeError(
            f"{path}: {100 * air:.0f} % of its voxels lie near −1000, as air does in a CT (Hounsfield units); give a "
            "T1-weighted MRI"
        )
    if _mean_voxel_mm(scan) > _MAX_T1_VOXEL_MM:
        raise VolumeError(
            f"{path}: voxels of {_mean_voxel_mm(scan):.1f} mm (mean of the three axes), expected {_MAX_T1_VOXEL_MM:g} "
            "or less: it shows too little anatomy to distinguish a T1 from a PET; use the scan before resampling"
        )
    return scan


def brain_only(t1: Scan, settings: PreprocessConfig, path: str | Path) -> Scan:
    """The T1 that is registered: with ``brain_mask: deepbet`` 0 outside the brain, by Fisch et al. 2024.

    `VolumeError` without deepbet, or where it finds no brain.
    """
    if settings.brain_mask == "mni":
        return t1
    try:
        _, mask, _ = _deepbet().run(nib.Nifti1Image(t1.data, t1.affine))
    except ImportError:
        remedy = "install it by `pip install 'resdm[deepbet]'`, or set brain_mask: mni"
        raise VolumeError(f"preprocess.brain_mask is deepbet, which is not installed; {remedy}") from None
    except (AssertionError, ValueError) as error:  # no voxel of brain
        raise VolumeError(f"{path}: deepbet finds no brain ({error}); is it a T1-weighted MRI of a head?") from None
    return replace(t1, data=np.where(np.asarray(mask.dataobj) > 0, t1.data, 0))


@cache
def _deepbet() -> Any:
    from deepbet import BrainExtraction  # here: it is optional

    return BrainExtraction(no_gpu=True)


def _mean_voxel_mm(scan: Scan) -> float:
    return float(np.prod(voxel_sizes(scan.affine)) ** (1 / 3))


def check_contrast(scan: Scan, mni_to_t1: np.ndarray, correlation: float, path: str | Path) -> dict[str, float]:
    """`tissue_contrast` of a registered scan; `VolumeError` if it is not that of a T1.

    In a T1 white matter is brightest and fluid is dark. In T2, FLAIR and CT, and in PET of tau, glucose or much
    amyloid, grey matter is brighter. A PET without amyloid has the contrast of a T1, but the scanner blurs it.
    """
    least = LIMITS["correlation"][0]
    if correlation < least:
        raise VolumeError(
            f"{path}: does not fit the MNI152 T1 (correlation {correlation:.2f} inside the brain, expected "
            f"{least} or more); is it a T1-weighted MRI of a head, with its orientation right?"
        )
    contrast = tissue_contrast(scan, mni_to_t1)
    detail = float(np.interp(_mean_voxel_mm(scan), *_LEAST_DETAIL))
    if not contrast["depth"] > 0:
        raise VolumeError(
            f"{path}: grey matter or fluid is as bright as white matter, as in a PET, CT, T2 or FLAIR; give a "
            "T1-weighted MRI"
        )
    if contrast["fluid"] > _MAX_FLUID or contrast["detail"] < detail:
        raise VolumeError(
            f"{path}: looks like a PET, not a T1-weighted MRI: fluid is {contrast['fluid']:.2f} times as bright as "
            f"white matter (expected {_MAX_FLUID} or less), and detail below 6 mm, beyond noise, has "
            f"{contrast['detail']:.2f} times the contrast of coarse structure (expected {detail:.2f} or more); give "
            "the T1 before any smoothing"
        )
    return contrast


def tissue_contrast(scan: Scan, mni_to_t1: np.ndarray) -> dict[str, float]:
    """Contrast of the tissues, and sharpness, of a scan without its bias field.

    Returns
    -------
    dict
        ``fluid``: brightness relative to white matter; ``depth``: position of grey matter between white (0) and fluid
        (1), −1 if white matter is not brighter than fluid; ``detail``: SD of structure below 6 mm, without the noise
        that deep white matter shows, relative to the SD of 12 to 24 mm. Tissue means are least squares on the MNI152
        tissue maps. The field is a quadratic, fitted in turn.
    """
    grid, (inside, deep, tissues, terms) = _CONTRAST_GRID, _contrast_maps()
    image, here = resample(scan, grid.affine, grid.shape, mni_to_t1), terms[inside.ravel()]
    values, field = image[inside], np.zeros(terms.shape[1])
    for _ in range(4):
        grey, white, fluid = means = _least_squares(tissues, values / np.exp(here @ field))
        expected = tissues @ means
        used = (values > 0) & (expected > 0)
        weight = np.sqrt(expected[used, None])
        ratio = np.log(values[used] / expected[used])
        field = _least_squares(here[used] * weight, ratio * weight[:, 0])
    log_bias = np.clip(terms @ field, (here @ field).min(), (here @ field).max()).reshape(grid.shape)
    flat = Scan(image / np.exp(log_bias), grid.affine)
    blurred = [flat.data, *(smooth(flat, fwhm).data for fwhm in (6, 12, 24))]
    fine, coarse = blurred[0] - blurred[1], (blurred[2] - blurred[3])[inside].std()
    noise = fine[deep].var()
    detail = np.sqrt(max(fine[inside].var() - noise, 0)) / max(coarse, 1e-9)
    depth = (white - grey) / (white - fluid) if white > max(fluid, 0) else -1.0
    ratio = fluid / white if white > 0 else np.inf
    return {"fluid": float(ratio), "depth": float(depth), "detail": float(detail)}


def _least_squares(columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficients (k,) of well-conditioned columns (n, k), by normal equations: faster than `numpy.linalg.lstsq`."""
    return np.linalg.pinv(columns.T @ columns) @ (columns.T @ values)


@cache
def _contrast_maps() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inner brain and deep white matter (X, Y, Z), tissues of the inner brain (n, 3), the field's terms (X·Y·Z, 10)."""
    grid = _CONTRAST_GRID
    inside = ndimage.binary_erosion(mni_map("brain", grid), iterations=2)
    deep = ndimage.binary_erosion(mni_map("wm", grid) > 0.9) & inside
    gm, wm = (mni_map(name, grid)[inside] for name in ("gm", "wm"))
    tissues = np.column_stack([gm, wm, np.clip(1 - gm - wm, 0, 1)])
    x, y, z = ((grid.mm() - np.reshape(CENTRE_MM, (3, 1, 1, 1))) / 80).reshape(3, -1)
    terms = np.column_stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z])
    return inside, deep, tissues, terms


@contextmanager
def registration_errors(path: str | Path) -> Iterator[None]:
    """Turn SimpleITK's errors into a `VolumeError` that names the file."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise VolumeError(f"{path}: cannot be registered ({reason}); is it a scan of a head?") from None


def t1_on_grid(
    t1: Scan, settings: PreprocessConfig, path: str | Path, space: str = "", given: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The T1 in [0, 1] on the grid, the matrix MNI → T1, and entries of its sidecar.

    ``given`` is the matrix, if it is known; else the T1 is registered. ``space`` is that of the manifest, for messages.
    """
    grid = Grid.of(settings.grid)
    brain = mni_map("brain", grid)
    mni_to_t1 = given
    if mni_to_t1 is None:
        from resdm_suite.preprocessing.registration import register_affine  # SimpleITK: stored volumes need none

        with registration_errors(path):
            mni_to_t1 = register_affine(t1, settings.registration_mm)
    array = np.maximum(resample(t1, grid.affine, grid.shape, mni_to_t1), 0)
    if settings.n4:
        array /= np.exp(_log_bias(t1, mni_to_t1, grid))
    scan, template = (blur(volume, grid)[brain] for volume in (array, mni_map("t1", grid)))
    correlation = float(np.corrcoef(scan, template)[0, 1]) if scan.any() else 0.0
    if given is not None and correlation < MIN_TEMPLATE_CORRELATION:
        stated, column = (f"it is in {space}", "space") if space else ("a transform leads there", "transform")
        raise VolumeError(
            f"{path}: the manifest states that {stated}, but it does not fit the {SPACE} T1 there (correlation "
            f"{correlation:.2f} inside the brain, expected {MIN_TEMPLATE_CORRELATION} or more); leave the {column} "
            "empty to register it"
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
    from resdm_suite.preprocessing.registration import sitk  # set to one thread

    image = sitk.GetImageFromArray(np.maximum(array, 0))
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([20, 20])
    n4.SetConvergenceThreshold(1e-3)
    n4.Execute(image, sitk.GetImageFromArray(mask.astype(np.uint8)))
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image))
    field -= field[mask].mean()
    return resample(Scan(field, coarse.affine), grid.affine, grid.shape)
