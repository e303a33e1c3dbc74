"""Reading scans: one NIfTI file → one volume, with every check that a scan of a head must pass."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import SerializableImage
from numpy.typing import ArrayLike

from resdm_suite.paths import sidecar_path
from resdm_suite.preprocessing.registration import Scan, displacement

_UNREADABLE = (
    nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, OSError, EOFError, TypeError, ValueError,
    OverflowError, MemoryError, zlib.error,
)  # fmt: skip


class VolumeError(ValueError):
    """A scan that cannot be used: names the file, the fault, the expected content and the remedy."""


def read_scan(path: str | Path, *, frames: bool = False) -> Scan:
    """Read a NIfTI and check that it can be a scan of a head.

    Parameters
    ----------
    path : path
    frames : bool
        Accept 4D too (PET) and average over time, weighted by the frames' durations in the sidecar.

    Returns
    -------
    Scan
        float32; ``frames`` describes the averaging.

    Raises
    ------
    VolumeError
        Unreadable; wrong number of dimensions; no orientation, or two contradictory ones; voxel sizes that are not in
        millimetres; voxels that are not finite, or all equal.
    """
    path = Path(path)
    image, data = _load(path)
    shape, averaging = data.shape, {}
    if data.ndim == 4 and (frames or shape[3] == 1):
        weights, description = _frame_weights(path, shape[3])
        averaging = {"number": shape[3], **description} if shape[3] > 1 else {}
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
    _check_affine(affine, path)
    bad_voxels = int(np.count_nonzero(~np.isfinite(data)))
    if bad_voxels:
        raise VolumeError(
            f"{path}: {bad_voxels} of {data.size} voxels are not finite (NaN or infinite); set missing voxels to 0"
        )
    if data.max() <= 0 or data.min() == data.max():
        raise VolumeError(
            f"{path}: empty, all voxels lie from {data.min():g} to {data.max():g}, expected a scan; copy or "
            "convert it again"
        )
    return Scan(data, affine, averaging)


def form_difference(image: nib.Nifti1Pair) -> float:
    """Largest distance in mm between a scan's corners by sform and by qform; NaN if one is not set."""
    if image.header["sform_code"] == 0 or image.header["qform_code"] == 0:
        return np.nan
    ends = [(0, n - 1) for n in image.shape[:3]]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, 3)
    return float(displacement(image.get_sform(), image.get_qform(), corners).max())


def _load(path: Path) -> tuple[nib.spatialimages.SpatialImage, np.ndarray]:
    """An image and its voxels as float32."""
    if path.is_dir():
        raise VolumeError(f"{path}: found a folder, expected a NIfTI file; name the file in it")
    try:
        image = nib.load(path)
        if image.get_data_dtype().kind not in "buif":
            raise TypeError(f"voxels of type {image.get_data_dtype()}, expected plain numbers")
        return image, np.asarray(_voxels(image, path), dtype=np.float32)
    except FileNotFoundError:
        raise VolumeError(f"{path}: no such file; correct its path in the manifest, or copy the scan there") from None
    except _UNREADABLE as error:
        raise VolumeError(f"{path}: cannot be read as NIfTI ({error}); copy or convert the scan again") from None


def _voxels(image: nib.spatialimages.SpatialImage, path: Path) -> ArrayLike:
    """Voxels of an image. A gzip file is read to its end, where its checksum is: nibabel stops at the last voxel."""
    if path.suffix != ".gz":
        return image.dataobj
    with gzip.open(path) as stream:
        content = stream.read()
    one_file = isinstance(image, SerializableImage)
    return type(image).from_bytes(content).dataobj if one_file else image.dataobj


def _frame_weights(path: Path, number: int) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Each frame's share of the total duration, from a PET's sidecar, and a description with the minutes.

    None means equal weights: the durations are equal, unknown, or not those of the frames.
    """
    try:
        sidecar = json.loads(sidecar_path(path).read_text(encoding="utf-8"))
        durations = np.array(sidecar["FrameDuration"], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError):
        return None, {"weights": "equal: no FrameDuration beside the scan"}
    if durations.shape != (number,):
        return None, {"weights": f"equal: FrameDuration has {durations.size} frames, the file {number}"}
    if not (np.isfinite(durations).all() and durations.min() > 0):
        return None, {"weights": "equal: FrameDuration has a frame of no duration"}
    shares = durations / durations.sum() if np.ptp(durations) else None
    per_minute = 60_000 if durations.max() > 10_000 else 60  # some converters write milliseconds
    return shares, {"weights": "FrameDuration", "minutes": round(float(durations.sum()) / per_minute, 3)}


def _check_affine(affine: np.ndarray, path: Path) -> None:
    size = voxel_sizes(affine)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-3 * size.prod():
        raise VolumeError(f"{path}: its affine does not map to millimetres: {affine.tolist()}; convert the scan again")
    if size.min() < 0.2 or size.max() > 15:
        sizes = " × ".join(f"{mm:g}" for mm in size)
        raise VolumeError(f"{path}: voxels of {sizes} mm, expected 0.2 to 15 mm; are the units millimetres?")


def _check_orientation(image: nib.Nifti1Pair, path: Path) -> None:
    """Refuse a header without orientation, or with two that contradict each other.

    With different codes (such as scanner and template) sform and qform may differ, and the sform is used. But left
    cannot be right in any space.
    """
    header = image.header
    codes = int(header["sform_code"]), int(header["qform_code"])
    if codes == (0, 0):
        raise VolumeError(
            f"{path}: no orientation (sform and qform codes are 0), so left and right are unknown; "
            "convert the scan from DICOM again"
        )
    units = header.get_xyzt_units()[0]
    if units not in ("mm", "unknown"):
        raise VolumeError(f"{path}: its header counts in {units}, expected mm; correct the header's units")
    sizes = _stored_header(image)["pixdim"][1:4]
    if codes[0] == 0 and not np.all(np.abs(sizes) > 0):
        shown = " × ".join(f"{mm:g}" for mm in sizes)
        raise VolumeError(f"{path}: voxels of {shown} mm in its header; convert the scan from DICOM again")
    if 0 in codes:
        return
    if np.linalg.det(image.get_sform()[:3, :3]) * np.linalg.det(image.get_qform()[:3, :3]) < 0:
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


def _stored_header(image: nib.Nifti1Pair) -> nib.Nifti1Header:
    """The header as stored: nibabel turns voxel sizes of 0 into 1."""
    holder = image.file_map.get("header", image.file_map["image"])
    with holder.get_prepare_fileobj("rb") as stream:
        return type(image.header).from_fileobj(stream, check=False)
