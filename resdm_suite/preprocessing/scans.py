"""Reading scans: one NIfTI or MGH file → one volume, with every check that a scan of a head must pass."""

import math
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.openers import ImageOpener
from nibabel.quaternions import quat2mat

from resdm_suite.preprocessing.frames import FrameError, average_frames
from resdm_suite.preprocessing.resampling import Scan, displacement

MAX_AXIS = 1024
"""Voxels along an axis that a scan of a head has at most."""

nib.imageglobals.logger.setLevel("CRITICAL")  # its warnings on headers: our errors name the fault

_CHUNK = 1 << 20  # bytes read at once
_UNITS = {0: "mm", 1: "meter", 2: "mm", 3: "micron"}  # of NIfTI; 0: not stated


class VolumeError(ValueError):
    """A scan that cannot be used: names the file, the fault, the expected content and the remedy."""


def read_scan(path: str | Path, *, frames: bool = False, tracer: str = "") -> Scan:
    """Read a NIfTI or MGH file and check that it can be a scan of a head.

    The header is checked first, then the size of the file against it, so that no more memory is taken than the file
    fills. Other formats are refused: several of them, such as Analyze 7.5, do not define which side is left.

    Parameters
    ----------
    path : path
    frames : bool
        Accept 4D too (PET) and average over time, see `resdm_suite.preprocessing.frames.average_frames`.
    tracer : str
        BIDS label of a PET's tracer, for the window of its frames.

    Returns
    -------
    Scan
        float32; ``frames`` describes the averaging.

    Raises
    ------
    VolumeError
        Unreadable; wrong number of dimensions; no orientation, or two contradictory ones; voxel sizes that are not in
        millimetres; voxels that are not finite, or all equal; frames without any in the tracer's window.
    """
    path = Path(path)
    image = open_image(path)
    shape, affine = _check_shape(image, path, frames), np.asarray(image.affine, dtype=np.float64)
    _check_affine(affine, path)
    if isinstance(image, nib.Nifti1Pair):
        _check_orientation(image, path)
    data, averaging = image_data(image, path).reshape(shape), {}
    if frames:
        try:
            data, averaging = average_frames(data.reshape(*shape[:3], -1), path, tracer)
        except FrameError as error:
            raise VolumeError(f"{path}: {error}") from None
    if bad := int(np.count_nonzero(~np.isfinite(data))):
        fault = f"{bad} of {data.size} voxels are not finite (NaN or infinite)"
        raise VolumeError(f"{path}: {fault}; set missing voxels to 0")
    if data.max() <= 0 or data.min() == data.max():
        fault = f"empty, all voxels lie from {data.min():g} to {data.max():g}, expected a scan"
        raise VolumeError(f"{path}: {fault}; copy or convert it again")
    return Scan(data, affine, averaging)


def read_transform(path: str | Path, points: np.ndarray) -> tuple[np.ndarray, float]:
    """The affine map nearest to an ITK transform, as fMRIPrep and PETPrep write them (``mode-image_xfm``).

    A warp to a template also removes what makes a brain smaller or its ventricles larger, which predicts uptake. The
    suite's volumes keep it, so that scans are placed alike whoever registered them.

    Parameters
    ----------
    path : path
        ITK transform file (``.h5``, ``.txt``, ``.mat``).
    points : ndarray (N, 3)
        RAS mm in the fixed image, over which the map is nearest in mean square.

    Returns
    -------
    ndarray (4, 4)
        Fixed mm → moving mm, RAS.
    float
        Root mean square of what the map leaves out, mm; 0 of an affine transform.

    Raises
    ------
    VolumeError
        No transform of 3D points.
    """
    import SimpleITK as sitk  # noqa: N813 - its users call it so; stored volumes are read without it

    to_ras = np.array([-1.0, -1.0, 1.0])  # of ITK's LPS
    try:
        transform = sitk.ReadTransform(str(path))
        moved = np.array([transform.TransformPoint(point) for point in (points * to_ras).tolist()]) * to_ras
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise VolumeError(
            f"{path}: no ITK transform of 3D points ({reason}); leave its column empty to register"
        ) from None
    homogeneous, matrix = np.column_stack([points, np.ones(len(points))]), np.eye(4)
    matrix[:3] = np.linalg.lstsq(homogeneous, moved)[0].T
    left_out = np.sqrt(((moved - homogeneous @ matrix[:3].T) ** 2).sum(1).mean())
    if not (np.isfinite(matrix).all() and np.linalg.det(matrix[:3, :3]) > 0):
        raise VolumeError(
            f"{path}: maps a brain to its mirror image, or to nothing; leave its column empty to register"
        )
    return matrix, float(left_out)


def form_difference(image: nib.Nifti1Pair) -> float:
    """Largest distance in mm between a scan's corners by sform and by qform; NaN if one is not set or is none."""
    if image.header["sform_code"] == 0 or image.header["qform_code"] == 0:
        return np.nan
    corners = np.array(list(product(*((0, n - 1) for n in image.shape[:3]))))
    return float(displacement(image.header.get_sform(), _qform(image.header), corners).max())


def open_image(path: Path, *, header_only: bool = False) -> nib.spatialimages.SpatialImage:
    """A NIfTI or MGH image whose file holds all voxels that its header states; no voxel is in memory yet.

    The file is read to its end, unless ``header_only``. Raises `VolumeError` if it is no such file.
    """
    if path.is_dir():
        raise VolumeError(f"{path}: found a folder, expected a NIfTI file; name the file in it")
    try:
        image = nib.load(path)
        if not isinstance(image, (nib.Nifti1Pair, nib.MGHImage)):
            raise TypeError(f"found {type(image).__name__}, a format that may not define which side is left")
        if image.get_data_dtype().kind not in "buif":
            raise TypeError(f"voxels of type {image.get_data_dtype()}, expected plain numbers")
        if isinstance(image, nib.MGHImage) and not _states_orientation(path):
            raise TypeError("no orientation (goodRASFlag is 0)")
        if isinstance(image, nib.Nifti1Pair) and np.isinf(_stored_header(image)["scl_slope"]):
            raise TypeError("scl_slope is infinite")
        if isinstance(image, nib.Nifti1Image) and image.dataobj.offset < image.header.single_vox_offset:
            raise ValueError(f"vox_offset is {image.dataobj.offset}: the voxels would begin inside the header")
        if not header_only:
            _check_size(image)
    except FileNotFoundError as error:
        remedy = "correct its path in the table, or copy the scan there"
        raise VolumeError(f"{Path(error.filename or path)}: no such file; {remedy}") from None
    except Exception as error:  # a broken header raises whatever nibabel, numpy or zlib meet first
        raise _unreadable(path, error) from None
    return image


def image_data(image: nib.spatialimages.SpatialImage, path: Path) -> np.ndarray:
    """All voxels of an image as float32, scaled; `VolumeError` if they cannot be read."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite, and is found there
            return np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> VolumeError:
    reason = " ".join(f"{error}".split()) or type(error).__name__
    return VolumeError(f"{path}: cannot be read as NIfTI ({reason}); copy the scan or convert it from DICOM again")


def _check_size(image: nib.spatialimages.SpatialImage) -> None:
    """Compare the bytes in a file, decompressed, with those that its header states."""
    proxy, file = image.dataobj, image.file_map["image"].filename
    plane = math.prod(sorted(map(int, proxy.shape[:3]))[:2]) * proxy.dtype.itemsize
    voxels = math.prod(map(int, proxy.shape)) * proxy.dtype.itemsize
    expected, found = int(proxy.offset) + voxels, 0
    with ImageOpener(file) as stream:  # to its end, where a gzip file has its checksum
        while found - expected < plane and (chunk := stream.read(_CHUNK)):
            found += len(chunk)
    if not 0 <= expected <= found:
        raise ValueError(f"its header states {expected} bytes, the file holds {found}")
    if found - expected >= plane and isinstance(image, nib.Nifti1Pair):  # less is padding; MGH has entries at the end
        raise ValueError(f"its header states {expected} bytes, the file holds more: one of them is of another scan")


def _check_shape(image: nib.spatialimages.SpatialImage, path: Path, frames: bool) -> tuple[int, ...]:
    """Shape of the scan, without axes of length 1 at its end."""
    shape = tuple(map(int, image.shape))
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in ((3, 4) if frames else (3,)):
        expected = "3D, or 4D with frames" if frames else "one 3D volume"
        raise VolumeError(
            f"{path}: found {len(shape)} dimensions {shape}, expected {expected}; choose or average the volumes"
        )
    if min(shape[:3]) < 8 or max(shape[:3]) > MAX_AXIS:
        fault = f"found {shape} voxels, expected a 3D scan of the whole head, 8 or more an axis and at most {MAX_AXIS}"
        raise VolumeError(f"{path}: {fault}; choose the scan itself, not a part or a localiser")
    return shape


def _check_affine(affine: np.ndarray, path: Path) -> None:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-3 * voxel_sizes(affine).prod():
        raise VolumeError(f"{path}: its affine does not map to millimetres: {affine.tolist()}; convert the scan again")
    size = voxel_sizes(affine)
    if size.min() < 0.2 or size.max() > 15:
        sizes = " × ".join(f"{mm:g}" for mm in size)
        raise VolumeError(f"{path}: voxels of {sizes} mm, expected 0.2 to 15 mm; are the units millimetres?")


def _check_orientation(image: nib.Nifti1Pair, path: Path) -> None:
    """Refuse a header without orientation, or with two that contradict each other.

    With different codes (such as scanner and template) sform and qform may differ, and the sform is used. But left
    cannot be right in any space.
    """
    header, stored = image.header, _stored_header(image)
    codes = int(stored["sform_code"]), int(stored["qform_code"])
    if codes == (0, 0):
        fault = "no orientation (sform and qform codes are 0), so left and right are unknown"
        raise VolumeError(f"{path}: {fault}; convert the scan from DICOM again")
    if not all(0 <= code <= 5 for code in codes):
        raise VolumeError(f"{path}: sform and qform codes {codes} are not those of NIfTI (0 to 5); convert it again")
    units = _UNITS.get(int(stored["xyzt_units"]) % 8, "no known unit")
    if units != "mm":
        raise VolumeError(f"{path}: its header counts in {units}, expected mm; correct the header's units")
    sizes = stored["pixdim"][1:4]
    if codes[1] and not (np.isfinite(sizes).all() and np.all(np.abs(sizes) > 0)):
        shown = " × ".join(f"{mm:g}" for mm in sizes)
        raise VolumeError(f"{path}: voxels of {shown} mm in its header; convert the scan from DICOM again")
    if codes[1] == 0:
        return
    qform = _qform(header)
    if not np.isfinite(qform).all():
        raise VolumeError(f"{path}: its qform is no rotation; set its code to 0 if the sform is right")
    if codes[0] == 0:
        return
    remedy = "find out which is right, and set the other's code to 0"
    if np.linalg.det(header.get_sform()[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise VolumeError(f"{path}: sform and qform disagree on which side is left; {remedy}")
    apart = form_difference(image)
    if codes[0] == codes[1] and apart > 20:
        fault = f"sform and qform (both of code {codes[0]}) put a corner {apart:.0f} mm apart"
        raise VolumeError(f"{path}: {fault}; {remedy}")


def _qform(header: nib.Nifti1Header) -> np.ndarray:
    """The qform (4, 4); NaN if its quaternion is no rotation.

    As the NIfTI library does, a quaternion that rounding made a little longer than 1 is shortened to 1; nibabel refuses
    it.
    """
    vector = np.array([header[f"quatern_{name}"] for name in "bcd"], dtype=np.float64)
    length = float(vector @ vector)
    if not length <= 1.01:
        return np.full((4, 4), np.nan)
    if length <= 1:
        return header.get_qform()
    affine = np.eye(4)
    sides = header["pixdim"][1:4] * [1, 1, -1 if header["pixdim"][0] < 0 else 1]
    affine[:3, :3] = quat2mat([0, *vector / np.sqrt(length)]) * sides
    affine[:3, 3] = [header[f"qoffset_{axis}"] for axis in "xyz"]
    return affine


def _states_orientation(path: Path) -> bool:
    """Whether an MGH header has an orientation of its own: nibabel replaces a missing one by a usual one."""
    with ImageOpener(path) as stream:
        return any(stream.read(30)[28:])


def _stored_header(image: nib.Nifti1Pair) -> nib.Nifti1Header:
    """The header as stored: nibabel turns voxel sizes of 0 into 1."""
    holder = image.file_map.get("header", image.file_map["image"])
    with holder.get_prepare_fileobj("rb") as stream:
        return type(image.header).from_fileobj(stream, check=False)
