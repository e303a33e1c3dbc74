"""Scans of the manifest → volumes on the profile's grid, with intensities in [0, 1], and one array of all of them.

For one session: T1 → MNI affine, PET → T1 rigid, composed, every scan interpolated once; the T1's bias field removed
(N4) and its bright end scaled to 1; each PET divided by the mean of its reference region (SUVR) and a fixed range of
SUVR mapped to [0, 1]; all voxels outside the MNI brain set to 0. What lies beyond the range is clipped; a PET's sidecar
has the percentage of brain voxels that were, and its regional SUVR from before. The reference region is measured on the
profile's grid, where every later stage measures too, so that its mean is 1 there; where the scan's edge cuts it, in the
part that the scan holds. A session whose ``space`` is MNI152 is resampled by its headers and registered to nothing.

What is finished is not done again: each session leaves a record with the digests of its inputs and settings, written
last; a killed call loses the sessions in work, no more. ``excluded.csv`` says which sessions of the manifest are not in
``index.csv``, and why.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk  # noqa: N813 - its own users call it so
from joblib import Parallel, delayed, effective_n_jobs
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.filebasedimages import SerializableImage
from numpy.typing import ArrayLike
from scipy import ndimage
from tqdm.auto import tqdm

from resdm.io import atomic, remove, sha256, write_csv, write_json, write_text
from resdm.settings import TRACERS, to_dict
from resdm.timing import forecaster
from resdm_suite.anatomy import REFERENCE, SUMMARY, Grid, mni_map, regions
from resdm_suite.cohorts.manifest import SPACE, ManifestError, read_manifest
from resdm_suite.paths import sidecar_path
from resdm_suite.preprocessing.registration import Scan, displacement, register_affine, register_rigid, resample, smooth
from resdm_suite.profiles import Config, PreprocessConfig

REVISION = 5
"""Raised whenever the same scans and settings would give other volumes, so that old ones are made anew."""

LEAST_FIT = 0.3
"""Correlation with the MNI152 T1 below which a scan that should lie in MNI152 already does not lie there."""

LEAST_COVERAGE = 0.5
"""Part of the reference region that a PET must hold; its mean over less would be that of the region's rim."""

FLAGS = {
    "correlation": (0.6, np.inf),
    "reference_coverage": (0.95, np.inf),
    "similarity": (1.06, np.inf),
    "reference_cov": (-np.inf, 0.4),
    "suvr_max": (1.1, 6.0),
    "clipped_percent": (-np.inf, 0.5),
    "frame_minutes": (-np.inf, 40.0),
}
"""Measures of quality and the range beyond which a session is flagged for somebody to look at."""

_QUALITY = ("similarity", "reference_mean", "reference_cov", "suvr_max", "clipped_percent")

_COARSEST_MM = 4.5  # T1: as fine as the coarsest phantoms

_LOOK, _FLUID, _DEPTH = Grid((48, 56, 48), 4.0), (0.5, 0.56), 0.5  # beyond, a scan looks like a PET, see `_looks`

_OTHER_SCANS = {
    "pet": "a PET", "ct": "a CT", "t2w": "a T2-weighted MRI", "flair": "a FLAIR MRI", "t2star": "a T2*-weighted MRI",
    "pdw": "a proton-density MRI", "bold": "a functional MRI", "dwi": "a diffusion MRI", "mask": "a mask",
}  # fmt: skip
"""BIDS suffixes of files that are no T1-weighted MRI."""


class VolumeError(ValueError):
    """A scan that cannot be used: names the file, what was found and expected, and the remedy."""


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def read_scan(path: str | Path, *, frames: bool = False) -> Scan:
    """Read a NIfTI and check that it can be a scan of a head.

    Parameters
    ----------
    path : path
    frames : bool
        Take 4D too and average over time, as PET comes, by the durations in the sidecar (see `_frame_weights`).

    Returns
    -------
    Scan
        float32; ``frames`` says what was averaged.

    Raises
    ------
    VolumeError
        Not readable, wrong number of dimensions, no orientation or two that contradict each other, voxel sizes that are
        no millimetres, voxels that are not finite, or all the same.
    """
    path = Path(path)
    if path.is_dir():
        raise VolumeError(f"{path}: found a folder, expected a NIfTI file; name the file in it")
    try:
        image = nib.load(path)
        shape = image.shape
        if image.get_data_dtype().kind not in "buif":
            raise TypeError(f"voxels of type {image.get_data_dtype()}, expected plain numbers")
        data = np.asarray(_voxels(image, path), dtype=np.float32)
    except FileNotFoundError:
        raise VolumeError(f"{path}: no such file; correct its path in the manifest, or copy the scan there") from None
    except _UNREADABLE as error:
        raise VolumeError(f"{path}: cannot be read as NIfTI ({error}); copy or convert the scan again") from None
    said: dict[str, Any] = {}
    if data.ndim == 4 and (frames or shape[3] == 1):
        weights, known = _frame_weights(path, shape[3])
        said = {"number": shape[3], **known} if shape[3] > 1 else {}
        # NaN in any frame stays NaN
        data = data.mean(axis=3) if weights is None else np.tensordot(data, weights.astype(np.float32), 1)
    if data.ndim != 3:
        expected = "3D, or 4D with frames" if frames else "one 3D volume"
        raise VolumeError(
            f"{path}: found {len(shape)} dimensions {shape}, expected {expected}; choose or average the volumes"
        )
    if min(data.shape) < 8:
        raise VolumeError(
            f"{path}: found {shape} voxels, expected a 3D scan of the whole head, 8 or more an axis; choose "
            "the scan itself, not a part or a localiser"
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    if isinstance(image, nib.Nifti1Pair):
        _check_orientation(image, path)
    size = voxel_sizes(affine)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-3 * size.prod():
        raise VolumeError(f"{path}: its affine is no map to millimetres: {affine.tolist()}; convert the scan again")
    if size.min() < 0.2 or size.max() > 15:
        said = " × ".join(f"{mm:g}" for mm in size)
        raise VolumeError(f"{path}: voxels of {said} mm, expected 0.2 to 15 mm; are the units millimetres?")
    broken = int(np.count_nonzero(~np.isfinite(data)))
    if broken:
        raise VolumeError(
            f"{path}: {broken} of {data.size} voxels are not finite (NaN or infinite); set what lies outside to 0"
        )
    if data.max() <= 0 or data.min() == data.max():
        raise VolumeError(
            f"{path}: empty, all voxels lie from {data.min():g} to {data.max():g}, expected a scan; copy or "
            "convert it again"
        )
    return Scan(data, affine, said)


def _frame_weights(path: Path, number: int) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Share of each frame's duration in that of all, from the sidecar beside a PET; what it is, and minutes in all.

    None, for equal weights, where the durations are equal, are not known, or cannot be those of the frames.
    """
    try:
        sidecar = sidecar_path(path)
        durations = np.array(json.loads(sidecar.read_text(encoding="utf-8"))["FrameDuration"], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError):
        return None, {"weights": "equal: no FrameDuration beside the scan"}
    if durations.shape != (number,):
        said = f"FrameDuration tells of {durations.size} frames, the file holds {number}"
        return None, {"weights": f"equal: {said}"}
    if not (np.isfinite(durations).all() and durations.min() > 0):
        return None, {"weights": "equal: FrameDuration has a frame of no duration"}
    shares = durations / durations.sum() if np.ptp(durations) else None
    a_minute = 60_000 if durations.max() > 10_000 else 60  # some converters write milliseconds
    return shares, {"weights": "FrameDuration", "minutes": round(float(durations.sum()) / a_minute, 3)}


_UNREADABLE = (
    nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, OSError, EOFError, TypeError, ValueError,
    OverflowError, MemoryError, zlib.error,
)  # fmt: skip


def _voxels(image: nib.spatialimages.SpatialImage, path: Path) -> ArrayLike:
    """Voxels of an image, a gzip read to its end, where its checksum is: nibabel stops at the last voxel.

    Unpacked once, into memory; an image of two files is unpacked by nibabel.
    """
    if path.suffix != ".gz":
        return image.dataobj
    with gzip.open(path) as stream:
        content = stream.read()
    single = isinstance(image, SerializableImage)
    return type(image).from_bytes(content).dataobj if single else image.dataobj


def _raw_header(image: nib.Nifti1Pair) -> nib.Nifti1Header:
    """The header as it is stored: nibabel turns voxel sizes of 0 into 1."""
    place = image.file_map.get("header", image.file_map["image"])
    with place.get_prepare_fileobj("rb") as stream:
        return type(image.header).from_fileobj(stream, check=False)


def _check_orientation(image: nib.Nifti1Pair, path: Path) -> None:
    """Raise `VolumeError` where the header gives no way to millimetres of left, front and up, or two that disagree.

    Where sform and qform claim different spaces (the scanner's and a template's, say), the sform is used and the qform
    may say something else; but left cannot be right in any space.
    """
    header = image.header
    codes = int(header["sform_code"]), int(header["qform_code"])
    if codes == (0, 0):
        raise VolumeError(
            f"{path}: no orientation (sform and qform codes are 0), so left and right cannot be told; "
            "convert the scan from DICOM again"
        )
    units = header.get_xyzt_units()[0]
    if units not in ("mm", "unknown"):
        raise VolumeError(f"{path}: its header counts in {units}, expected mm; correct the header's units")
    sizes = _raw_header(image)["pixdim"][1:4]
    if codes[0] == 0 and not np.all(np.abs(sizes) > 0):
        said = " × ".join(f"{mm:g}" for mm in sizes)
        raise VolumeError(f"{path}: voxels of {said} mm in its header; convert the scan from DICOM again")
    if 0 in codes:
        return
    sform, qform = image.get_sform(), image.get_qform()
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise VolumeError(
            f"{path}: sform and qform disagree on which side is left; find out which is right, and set the other's "
            "code to 0"
        )
    apart = form_difference(image)
    if codes[0] == codes[1] and apart > 20:
        raise VolumeError(
            f"{path}: sform and qform (both of code {codes[0]}) put a corner {apart:.0f} mm apart; find out which is "
            "right, and set the other's code to 0"
        )


def form_difference(image: nib.Nifti1Pair) -> float:
    """Largest distance in mm between where sform and qform put a corner of the scan; NaN where one is not set."""
    if image.header["sform_code"] == 0 or image.header["qform_code"] == 0:
        return np.nan
    ends = [(0, n - 1) for n in image.shape[:3]]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3)
    return float(displacement(image.get_sform(), image.get_qform(), corners).max())


# ── one T1 ────────────────────────────────────────────────────────────────────────────────────────


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
        ``fluid``, ``depth``: by which a PET is told from a T1, see `_looks`;
        ``intensity``.

    Raises
    ------
    VolumeError
        A file that cannot be read, is no single volume, is coarser than `_COARSEST_MM`, looks like a CT or a PET, or
        does not fit the MNI152 T1.
    """
    suffix = Path(path).name.removesuffix(".gz").removesuffix(".nii").rpartition("_")[2].lower()
    if suffix in _OTHER_SCANS:
        raise VolumeError(f"{path}: {_OTHER_SCANS[suffix]} by its name; expected a T1-weighted MRI")
    settings, scan = config.preprocess, read_scan(path)
    _check_not_ct(scan, path)
    mean_mm = float(np.prod(voxel_sizes(scan.affine)) ** (1 / 3))
    if mean_mm > _COARSEST_MM:
        raise VolumeError(
            f"{path}: voxels of {mean_mm:.1f} mm (mean of the three axes), expected {_COARSEST_MM:g} or less: it shows "
            "too little anatomy to tell a T1 from a PET; take the scan before it was resampled"
        )
    array, mni_to_t1, info = _t1_on_grid(scan, settings, path)
    least = FLAGS["correlation"][0]
    if info["t1_correlation"] < least:
        raise VolumeError(
            f"{path}: does not fit the MNI152 T1 (correlation {info['t1_correlation']:.2f} inside the brain, expected "
            f"{least} or more); is it a T1-weighted MRI of a head, with its orientation right?"
        )
    fluid, depth = _looks(scan, mni_to_t1)
    if fluid > _FLUID[1] or (fluid > _FLUID[0] and depth > _DEPTH):
        raise VolumeError(
            f"{path}: looks like a PET, not a T1-weighted MRI: fluid is {fluid:.2f} times as bright as white matter, "
            f"and grey matter {100 * depth:.0f} % of the way down to it (expected {_FLUID[1]} or less, and "
            f"{100 * _DEPTH:.0f} % or less where fluid is above {_FLUID[0]})"
        )
    return array, {"transform": mni_to_t1.tolist(), "fluid": fluid, "depth": depth} | info


def _looks(scan: Scan, mni_to_t1: np.ndarray) -> tuple[float, float]:
    """Brightness of fluid over that of white matter, and how far grey matter lies from white (0) to fluid (1).

    Tissue means by least squares on the tissue maps, on a grid of 4 mm. In a T1 fluid is dark; in a PET all tissues
    take up tracer and the scanner blurs, and where white matter binds most, as in amyloid PET without amyloid, grey is
    nearly as dark as fluid.
    """
    gm, wm = (mni_map(name, _LOOK) for name in ("gm", "wm"))
    inside = ndimage.binary_erosion(mni_map("brain", _LOOK), iterations=2)
    here = resample(scan, _LOOK.affine, _LOOK.shape, mni_to_t1)[inside]
    maps = np.column_stack([gm[inside], wm[inside], np.clip(1 - gm - wm, 0, 1)[inside]])
    grey, white, fluid = np.linalg.lstsq(maps, here)[0]
    if not white > fluid:
        return np.inf, 0.0
    return float(fluid / white), float((white - grey) / (white - fluid))


def _check_not_ct(scan: Scan, path: str | Path) -> None:
    """Raise `VolumeError` for Hounsfield units: air at −1000 is a large part of any CT, and no MRI is that negative."""
    air = float(np.mean((scan.data < -700) & (scan.data > -1300)))
    if air > 0.05:
        raise VolumeError(
            f"{path}: {100 * air:.0f} % of its voxels lie near −1000, as air does in a CT (Hounsfield units); expected "
            "a T1-weighted MRI"
        )


@contextmanager
def _registering(path: str | Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # SimpleITK's
        said = str(error).strip().splitlines()[-1]
        raise VolumeError(f"{path}: cannot be registered ({said}); is it a scan of a head?") from None


def _t1_on_grid(
    t1: Scan, settings: PreprocessConfig, path: str | Path, space: str = ""
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The T1 in [0, 1] on the grid, the matrix MNI → T1, and what the sidecar says."""
    grid = Grid.of(settings.grid)
    brain = mni_map("brain", grid)
    mni_to_t1 = np.eye(4)
    if not space:
        with _registering(path):
            mni_to_t1 = register_affine(t1, settings.registration_mm)
    array = np.maximum(resample(t1, grid.affine, grid.shape, mni_to_t1), 0)
    if settings.n4:
        array /= np.exp(_log_bias(t1, mni_to_t1, grid))
    here, template = (_blur(volume, grid)[brain] for volume in (array, mni_map("t1", grid)))
    correlation = float(np.corrcoef(here, template)[0, 1]) if here.any() else 0.0
    if space and correlation < LEAST_FIT:
        raise VolumeError(
            f"{path}: the manifest says that it lies in {space}, but it does not fit the {SPACE} T1 there (correlation "
            f"{correlation:.2f} inside the brain, expected {LEAST_FIT} or more); leave the space empty to register it"
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

    White matter is the flattest tissue, so the field is found in fewer rounds and more exactly than from the whole
    brain. The field is smooth over centimetres: it is estimated on a grid twice as coarse (4 mm at least).
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


# ── one PET ───────────────────────────────────────────────────────────────────────────────────────


def _pet_on_grid(
    pet: Scan, mni_to_pet: np.ndarray, tracer: str, settings: PreprocessConfig, path: str
) -> tuple[np.ndarray, dict[str, Any], dict[str, float]]:
    """A PET in [0, 1] on the grid, what its sidecar says, and what was measured in it (SUVR and quality)."""
    grid = Grid.of(settings.grid)
    brain, masks = mni_map("brain", grid), regions(grid)
    if settings.smooth_mm:
        pet = smooth(pet, settings.smooth_mm)
    array = resample(pet, grid.affine, grid.shape, mni_to_pet)
    voxels = apply_affine(np.linalg.inv(pet.affine) @ mni_to_pet, grid.mm()[:, masks[REFERENCE[tracer]]].T)
    ends = np.array(pet.data.shape) - 1
    covered = float(np.mean(np.all((voxels > -0.5) & (voxels < ends + 0.5), axis=1)))
    if covered < LEAST_COVERAGE:
        raise VolumeError(
            f"{path}: holds {100 * covered:.0f} % of the reference region ({REFERENCE[tracer]}), expected "
            f"{100 * LEAST_COVERAGE:.0f} % or more; does the scan cover the cerebellum, and is its affine right?"
        )
    # of what the scan holds: beyond its edge the grid is 0, which is no uptake and would raise every SUVR
    reference = array[masks[REFERENCE[tracer]]][np.all((voxels >= 0) & (voxels <= ends), axis=1)]
    mean = float(reference.mean()) if len(reference) else 0.0
    if not mean > 0:
        raise VolumeError(
            f"{path}: the reference region ({REFERENCE[tracer]}) holds a mean of {mean:g}, expected more than 0; "
            "does the scan cover the cerebellum?"
        )
    array = array / mean
    parts = {"summary": np.any([masks[name] for name in SUMMARY[tracer]], axis=0)} | masks
    regional = {name: float(array[mask].mean(dtype=np.float64)) for name, mask in parts.items()}  # before clipping
    low, high = settings.suvr_range[tracer]
    if settings.intensity == "minmax":
        low, high = float(array[brain].min()), float(array[brain].max())
    measured = {
        "suvr": regional["summary"],
        "reference_mean": mean,
        "reference_cov": float(reference.std() / mean),
        "suvr_max": float(array[brain].max()),
        "reference_coverage": covered,
        "clipped_percent": float(100 * np.mean((array[brain] < low) | (array[brain] > high))),
    }
    array = np.clip((array - low) / (high - low), 0, 1)
    if settings.mask:
        array[~brain] = 0
    said = {"intensity": {"kind": settings.intensity, "suvr_range": [low, high]}, "reference_region": REFERENCE[tracer]}
    said |= {name: measured[name] for name in ("reference_mean", "clipped_percent")} | {"regional_suvr": regional}
    if pet.frames:  # a scan of more than 40 minutes began long before the tracer's window, and its SUVR is no late one
        said["frames"] = pet.frames
        measured |= {"frame_minutes": pet.frames["minutes"]} if "minutes" in pet.frames else {}
    return array, said, measured


def _blur(array: np.ndarray, grid: Grid) -> np.ndarray:
    """Smoothed by 6 mm FWHM, so that measures of quality mean the same on fine and coarse grids."""
    return smooth(Scan(array, grid.affine), 6.0).data


def _information(one: np.ndarray, other: np.ndarray) -> float:
    """Normalised mutual information (Studholme et al. 1999): (H(a) + H(b)) / H(a, b); 1 if unrelated, 2 if equal."""
    joint = np.histogram2d(one, other, bins=24)[0]

    def entropy(counts: np.ndarray) -> float:
        p = counts[counts > 0] / counts.sum()
        return float(-(p * np.log(p)).sum())

    return (entropy(joint.sum(0)) + entropy(joint.sum(1))) / entropy(joint)


# ── one session ───────────────────────────────────────────────────────────────────────────────────


def _scans(row: dict[str, Any]) -> dict[str, str]:
    """The session's files in the manifest, by what they are."""
    return {what: row[what] for what in ("t1w", *TRACERS) if row[what]}


def _outputs(row: dict[str, Any]) -> dict[str, str]:
    """Where the session's volumes lie, relative to ``volumes/``."""
    folder, stem = f"{row['person']}/{row['session']}", f"{row['person']}_{row['session']}"
    names = {"t1w": f"{folder}/anat/{stem}_space-{SPACE}_desc-preproc_T1w.nii.gz"}
    for tracer in TRACERS:
        if row[tracer]:
            label = row[f"{tracer}_tracer"]
            names[tracer] = f"{folder}/pet/{stem}_trc-{label}_space-{SPACE}_desc-preproc_pet.nii.gz"
    return names


def _record_path(config: Config, row: dict[str, Any]) -> Path:
    return config.volumes / row["person"] / row["session"] / f"{row['person']}_{row['session']}_desc-preproc.json"


def _settings_digest(config: Config) -> str:
    return f"{config.digest('preprocess')}-{REVISION}"


def _record(config: Config, row: dict[str, Any], settings: str) -> dict[str, Any] | None:
    """The session's record, if its volumes were made from these very scans under these settings (their digest)."""
    try:
        record = json.loads(_record_path(config, row).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if record.get("settings") != settings or record.get("outputs") != _outputs(row):
        return None
    if record.get("space", "") != row["space"]:
        return None
    scans = _scans(row)
    if set(record["inputs"]) != set(scans) or not all(
        (config.volumes / p).is_file() for p in record["outputs"].values()
    ):
        return None
    for what, path in scans.items():
        known, now = record["inputs"][what], os.stat(path)
        if now.st_size != known["bytes"]:
            return None
        if now.st_mtime_ns != known["mtime_ns"] and sha256(path) != known["sha256"]:
            return None  # written again and different; a mere copy is no change
    return record


def _write_session(config: Config, row: dict[str, Any]) -> None:
    """Preprocess one session and write its volumes, sidecars and, last, its record."""
    settings, digest = config.preprocess, _settings_digest(config)
    grid = Grid.of(settings.grid)
    inputs, scans = {}, {}
    for what, path in _scans(row).items():
        status = os.stat(path)
        inputs[what] = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256(path)}
        scans[what] = read_scan(path, frames=what != "t1w")
    outputs = _outputs(row)
    record_path = _record_path(config, row)
    remove(record_path)

    def write(what: str, array: np.ndarray, transform: np.ndarray, sidecar: dict[str, Any]) -> None:
        path = config.volumes / outputs[what]
        with atomic(path) as temporary:
            nib.save(grid.image(array.astype(np.float32)), temporary)
        source = {"file": Path(row[what]).name, "sha256": inputs[what]["sha256"]}
        head = {"space": SPACE, "source": source, "transform": transform.tolist(), "settings": digest}
        write_json(sidecar_path(path), head | sidecar)

    brain = mni_map("brain", grid)
    t1, mni_to_t1, said = _t1_on_grid(scans["t1w"], settings, row["t1w"], row["space"])
    similarity, blurred = said.pop("t1_correlation"), _blur(t1, grid)[brain]
    arrived = {"registered": False} if row["space"] else {}
    write("t1w", t1, mni_to_t1, {"registration_similarity": similarity} | arrived | said)
    measured = {"t1_correlation": similarity}
    for tracer in TRACERS:
        if tracer in scans:
            t1_to_pet = np.eye(4)
            if not row["space"]:
                with _registering(row[tracer]):
                    t1_to_pet = register_rigid(scans["t1w"], scans[tracer], mni_to_t1, settings.registration_mm)
            mni_to_pet = t1_to_pet @ mni_to_t1
            array, said, found = _pet_on_grid(scans[tracer], mni_to_pet, tracer, settings, row[tracer])
            found["similarity"] = _information(blurred, _blur(array, grid)[brain])
            said |= {"tracer": row[f"{tracer}_tracer"], "t1_to_pet": t1_to_pet.tolist()}
            write(tracer, array, mni_to_pet, {"registration_similarity": found["similarity"]} | arrived | said)
            measured |= {f"{tracer}_{name}": value for name, value in found.items()}
    written = {config.volumes / name for path in outputs.values() for name in (path, path[:-7] + ".json")}
    for stale in set(record_path.parent.glob("*/*_desc-preproc_*")) - written:  # of a PET that the manifest had once
        stale.unlink()
    record = {"settings": digest, "inputs": inputs, "outputs": outputs, "measured": measured}
    write_json(record_path, record | ({"space": row["space"]} if row["space"] else {}))


# ── the cohort ────────────────────────────────────────────────────────────────────────────────────


def preprocess(config: Config, *, jobs: int = 1, progress: bool = True) -> pd.DataFrame:
    """Preprocess every session of the manifest that is not done yet, and pack them all into ``cohort.npy``.

    Every scan still to do is read and checked before the first is worked on. A session that turns out bad only then
    (a PET without cerebellum) stops no other: all are done, then the bad ones are told together.

    Parameters
    ----------
    config : Config
        Reads ``manifest.csv``, writes below ``volumes/``. ``cohort.skip_unreadable`` and ``cohort.exclude_flagged``
        leave sessions out, with their reason in ``excluded.csv``; without them nobody is left out.
    jobs : int
        Processes, one thread each; -1 for as many as cores. The volumes do not depend on it.
    progress : bool
        Show bars.

    Returns
    -------
    DataFrame
        ``index.csv``: one row a session, in the order of ``cohort.npy``.

    Raises
    ------
    ManifestError, LeakageError
        A manifest that cannot be used.
    VolumeError
        Scans that cannot be used, each named; or every session left out.
    """
    frame = read_manifest(config.manifest)
    if (frame["split"] == "").any():
        row = frame[frame["split"] == ""].iloc[0]
        raise ManifestError(
            f"{config.manifest}: {row['person']} {row['session']} has no split; make the manifest again with "
            "`resdm manifest`, or fill the column"
        )
    regions(Grid.of(config.preprocess.grid))  # a grid that holds no reference region is refused now
    rows = frame.to_dict("records")
    settings = _settings_digest(config)
    todo = [row for row in rows if _record(config, row, settings) is None]
    bad: dict[tuple[str, str], list[str]] = {}

    def run(work: Callable[[Config, dict[str, Any]], list[str]], label: str) -> None:
        here = [row for row in todo if _key(row) not in bad]
        workers = min(effective_n_jobs(jobs), max(len(here), 1))
        parallel = Parallel(n_jobs=workers, return_as="generator")
        forecast = forecaster(label, len(here), "sessions", warm=workers)
        results = parallel(delayed(work)(config, row) for row in here)
        bar = tqdm(results, total=len(here), desc=label, unit="session", disable=not progress or not here)
        for number, (row, problems) in enumerate(zip(here, bar, strict=True), start=1):
            if progress:
                forecast(number)
            if problems:
                bad[_key(row)] = problems
        if bad and not config.cohort.skip_unreadable:
            problems = [problem for _, problems in sorted(bad.items()) for problem in problems]
            leave = "; mend these, or leave their sessions out by cohort.skip_unreadable: true"
            raise VolumeError("\n".join(problems) + (f"\n{len(problems)} scans{leave}" if len(problems) > 1 else ""))

    run(_problems, "checks")
    run(_attempt, "preprocessing")
    read = [
        None if _key(row) in bad else json.loads(_record_path(config, row).read_text(encoding="utf-8")) for row in rows
    ]
    return _pack(config, frame, read, bad)


def cohort_flow(config: Config) -> pd.DataFrame:
    """``flow.csv`` of the manifest, and how many of its people came through preprocessing.

    Returns
    -------
    DataFrame
        step, people, sessions. After the source's steps: ``scans usable`` and ``passes QC``, those without a flag;
        whoever is flagged stays in the cohort unless ``cohort.exclude_flagged``.

    Raises
    ------
    FileNotFoundError
        Where the cohort is not preprocessed.
    """
    manifest, path = read_manifest(config.manifest, files=False), config.work / "flow.csv"
    index, excluded = config.volumes / "index.csv", config.volumes / "excluded.csv"
    if not index.is_file():
        raise FileNotFoundError(f"{index}: no preprocessed cohort; run `resdm preprocess` first")
    if path.is_file():
        flow = pd.read_csv(path)
    else:  # a manifest written by hand
        flow = pd.DataFrame([("kept", manifest["person"].nunique(), len(manifest))], columns=_FLOW)
    text = {"person": str, "session": str}
    kept = pd.read_csv(index, dtype=text).assign(step="")
    left = pd.read_csv(excluded, dtype=text) if excluded.is_file() else pd.DataFrame(columns=_EXCLUDED)
    usable = pd.concat([kept, left[left["step"] == "flagged"]])
    clean = kept[kept["flags"].isna()]
    steps = [(step, part["person"].nunique(), len(part)) for step, part in
             (("scans usable", usable), ("passes QC", clean))]  # fmt: skip
    return pd.concat([flow, pd.DataFrame(steps, columns=_FLOW)], ignore_index=True)


_FLOW = ["step", "people", "sessions"]
_EXCLUDED = ["person", "session", "split", "step", "reason"]


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["person"], row["session"]


def _problems(config: Config, row: dict[str, Any]) -> list[str]:
    """What is wrong with the scans of a session."""
    problems, digests = [], {}
    for what, path in _scans(row).items():
        stem = Path(path).name.removesuffix(".gz").removesuffix(".nii")
        other = "_pet" if what == "t1w" else "_T1w"
        if stem.endswith(other):
            problems.append(f"{path}: by its name no {what} scan; put each scan in its own column of the manifest")
            continue
        try:
            read_scan(path, frames=what != "t1w")
        except VolumeError as error:
            problems.append(str(error))
            continue
        twin = digests.setdefault(sha256(path), what)
        if twin != what:
            problems.append(f"{path}: the same bytes as the session's {twin}; correct the path in column {what}")
    return problems


def _attempt(config: Config, row: dict[str, Any]) -> list[str]:
    """Preprocess a session; what is wrong with it where that cannot be done."""
    try:
        _write_session(config, row)
    except VolumeError as error:
        return [str(error)]
    return []


def _index(config: Config, frame: pd.DataFrame, records: list[dict[str, Any]]) -> pd.DataFrame:
    """``index.csv`` from the manifest and what was measured."""
    cohort = config.cohort
    rows = []
    for row, record in zip(frame.to_dict("records"), records, strict=True):
        measured, outputs = record["measured"], record["outputs"]
        line = {name: row[name] for name in ("person", "session", "split", "age", "sex", "diagnosis")}
        line |= {f"present_{tracer}": int(tracer in outputs) for tracer in TRACERS}
        line |= {f"{tracer}_tracer": row[f"{tracer}_tracer"] if tracer in outputs else "" for tracer in TRACERS}
        for tracer in TRACERS:
            given = row[f"{tracer}_suvr"]
            line[f"{tracer}_suvr"] = measured.get(f"{tracer}_suvr", np.nan) if np.isnan(given) else given
        cutoffs = {"amyloid": cohort.amyloid_cutoff.get(row["amyloid_tracer"], np.nan), "tau": cohort.tau_cutoff}
        for tracer, cutoff in cutoffs.items():
            status, suvr = row[f"{tracer}_status"], line[f"{tracer}_suvr"]
            known = np.isfinite(suvr) and np.isfinite(cutoff)
            line[f"{tracer}_status"] = int(suvr >= cutoff) if pd.isna(status) and known else status
        line |= {what: outputs.get(what, "") for what in ("t1w", *TRACERS)}
        line |= {name: row[name] for name in ("education", "mmse")}
        line["t1_correlation"] = measured["t1_correlation"]
        for tracer in TRACERS:
            line |= {f"{tracer}_{name}": measured.get(f"{tracer}_{name}", np.nan) for name in _QUALITY}
        line["flags"] = ";".join(_flags(measured))
        rows.append(line)
    return pd.DataFrame(rows).astype({f"{tracer}_status": "Int64" for tracer in TRACERS})


def _flags(measured: dict[str, float]) -> list[str]:
    """What a person should look at: a measure beyond `FLAGS`, with its value."""
    said = []
    for name, value in measured.items():
        scan, _, measure = name.partition("_")
        low, high = FLAGS.get(measure, (-np.inf, np.inf))
        if not low <= value <= high:
            said.append(f"{scan} {measure.replace('_', ' ')} {value:.2f}")
    return said


def _pack(
    config: Config,
    frame: pd.DataFrame,
    records: list[dict[str, Any] | None],
    bad: dict[tuple[str, str], list[str]],
) -> pd.DataFrame:
    """Write ``cohort.npy``, the templates and, last, ``index.csv``, unless they are of these very volumes already."""
    grid, folder = Grid.of(config.preprocess.grid), config.volumes
    usable = [number for number, record in enumerate(records) if record is not None]
    left = [(*key, "unusable", " ".join("; ".join(problems).split())) for key, problems in sorted(bad.items())]
    if not usable:
        _nobody(config, left)
    records = [records[number] for number in usable]
    index = _index(config, frame.iloc[usable], records)
    flagged = (index["flags"] != "") & config.cohort.exclude_flagged
    left += [(row.person, row.session, "flagged", row.flags) for row in index[flagged].itertuples()]
    excluded = pd.DataFrame(left, columns=["person", "session", "step", "reason"]).sort_values(["person", "session"])
    excluded = excluded.merge(frame[["person", "session", "split"]])[_EXCLUDED]
    if len(left) == len(frame):
        _nobody(config, left)
    told = folder / "excluded.csv"
    if not told.is_file() or told.read_text(encoding="utf-8") != excluded.to_csv(index=False, lineterminator="\n"):
        write_csv(told, excluded)
    records = [record for record, out in zip(records, flagged, strict=True) if not out]
    index = index[~flagged].reset_index(drop=True)

    text = index.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    made_from = [
        [record["settings"], {k: v["sha256"] for k, v in record["inputs"].items()}, *_space(record)]
        for record in records
    ]
    digest = hashlib.sha256(json.dumps([text, made_from]).encode()).hexdigest()
    card = {"grid": to_dict(config.preprocess.grid), "settings": config.digest("preprocess"), "digest": digest}
    targets = folder / "cohort.json", folder / "cohort.npy", folder / "index.csv"
    try:
        current = json.loads(targets[0].read_text(encoding="utf-8")) == card and targets[1].is_file()
        if current and targets[2].read_text(encoding="utf-8") == text:
            return index
    except (OSError, ValueError):
        pass

    targets[0].unlink(missing_ok=True)
    sums = {tracer: np.zeros(grid.shape) for tracer in TRACERS}
    shape = (1 + len(TRACERS), *grid.shape)
    header = {"descr": "<f2", "fortran_order": False, "shape": (len(index), *shape)}
    # person after person, not by a memory map: on a full disk a write fails with a reason, a page with a dead process
    with atomic(targets[1]) as temporary, open(temporary, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for split, record in zip(index["split"], records, strict=True):
            session = np.zeros(shape, "<f2")
            for channel, what in enumerate(("t1w", *TRACERS)):
                if what in record["outputs"]:
                    volume = _volume(folder / record["outputs"][what], grid)
                    session[channel] = volume
                    if what in sums and split == "train":
                        sums[what] += volume
            stream.write(session.tobytes())
    training = index[index["split"] == "train"]
    for tracer, total in sums.items():
        path, n = folder / f"template_{tracer}.nii.gz", int(training[f"present_{tracer}"].sum())
        path.unlink(missing_ok=True)
        if n:
            with atomic(path) as temporary:
                nib.save(grid.image((total / n).astype(np.float32)), temporary)
    write_json(
        folder / "dataset_description.json",
        {
            "Name": f"Preprocessed volumes of profile {config.profile}",
            "BIDSVersion": "1.9.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "resdm preprocess"}],
        },
    )
    write_json(targets[0], card)
    write_text(targets[2], text)
    return index


def _nobody(config: Config, left: list[tuple[str, str, str, str]]) -> NoReturn:
    raise VolumeError(
        f"{config.manifest}: all {len(left)} sessions are left out, the first because: {left[0][3]}; mend the scans, "
        "or set cohort.exclude_flagged and cohort.skip_unreadable to false"
    )


def _space(record: dict[str, Any]) -> list[str]:
    return [record["space"]] if "space" in record else []


def _volume(path: Path, grid: Grid) -> np.ndarray:
    """A preprocessed volume, checked to lie on the grid."""
    image = nib.load(path)
    if image.shape != grid.shape or not np.allclose(image.affine, grid.affine, atol=1e-3):
        raise VolumeError(
            f"{path}: volumes of unequal grid: found {image.shape} at {voxel_sizes(image.affine)[0]:g} mm, expected "
            f"{grid.shape} at {grid.voxel_mm:g} mm; delete the file and preprocess again"
        )
    return image.get_fdata(dtype=np.float32)
