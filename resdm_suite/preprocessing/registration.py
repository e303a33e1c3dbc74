"""Registration by SimpleITK: T1 → MNI152 (affine) and PET → T1 (rigid).

Every transform is a (4, 4) matrix between world coordinates in RAS millimetres that maps **points of the fixed image to
points of the moving image**, as in ITK: ``mni_to_t1`` gives the position in the T1 of a point of MNI space, which is
what resampling the T1 onto an MNI grid needs. They compose by matrix product, ``mni_to_pet = t1_to_pet @ mni_to_t1``,
and an image is interpolated once, from its native voxels to the grid.

The search works on copies of the scans, averaged to a few millimetres along the world's axes, so oblique, anisotropic,
left-handed or sheared storage makes no difference. One thread and seeded sampling: the same scans give the same bytes.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import cache, wraps
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its users call it so
from nibabel.affines import apply_affine
from scipy import ndimage

from resdm_suite.anatomy import CENTRE_MM, Grid, mni_map
from resdm_suite.preprocessing.resampling import Scan, resample

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # people run in parallel instead; and sums keep their order
sitk.ProcessObject.GlobalWarningDisplayOff()  # a start without overlap is dropped

COARSE_MM = 8.0
"""Resolution of the first search: it finds a head rotated by 15 degrees."""

_MARGIN_MM = 25.0  # of background around the head in a working copy

_BRAIN_GRID = Grid((64, 72, 64), 3.0)  # for the transfer of the brain mask to a scan


# ── the two registrations ─────────────────────────────────────────────────────────────────────────


def register_affine(t1: Scan, finest_mm: float) -> np.ndarray:
    """T1 → MNI152, 12 parameters, by mutual information inside the (slightly dilated) MNI brain.

    A search over rotation, shift and size at `COARSE_MM` (Powell), then gradient steps over all twelve parameters
    down to ``finest_mm``. The mask is the template's, so scalp and neck of the T1 have no influence.

    Returns
    -------
    ndarray (4, 4)
        ``mni_to_t1``: MNI mm → T1 mm.
    """
    coarse, *finer = _levels(finest_mm)
    pair = _to_template(t1, coarse)
    centre = np.array(CENTRE_MM)
    # possible middles of the brain: in a scan of the brain only; of the whole head; in MNI space already
    middles = _centre_of_mass(pair.moving), _below_the_crown(pair.moving), centre
    start = _search(pair, [_start(sitk.Similarity3DTransform(), centre, middle - centre) for middle in middles])
    matrix = _matrix(start)
    affine = _start(sitk.AffineTransform(3), centre, apply_affine(matrix, centre) - centre)
    affine.SetMatrix(matrix[:3, :3].ravel().tolist())
    for mm in finer:
        _optimise(affine, _to_template(t1, mm))
    return _matrix(affine)


def register_rigid(t1: Scan, pet: Scan, mni_to_t1: np.ndarray, finest_mm: float) -> np.ndarray:
    """PET → T1 of the same person, 6 parameters, by mutual information inside the brain.

    ``mni_to_t1`` (4, 4), of `register_affine`, carries the MNI brain mask to the T1. Returns ``t1_to_pet`` (4, 4): T1
    mm → PET mm.
    """
    coarse, *finer = _levels(finest_mm)
    pair = _to_t1(t1, pet, mni_to_t1, coarse)
    middle = apply_affine(mni_to_t1, np.array(CENTRE_MM))
    field = apply_affine(pet.affine, (np.array(pet.data.shape) - 1) / 2)
    # by the tracer's centre of mass; by the stored coordinates; by the middle of the field of view
    shifts = _centre_of_mass(pair.moving) - middle, np.zeros(3), field - middle
    rigid = _search(pair, [_start(sitk.Euler3DTransform(), middle, shift) for shift in shifts])
    for mm in finer:
        _optimise(rigid, _to_t1(t1, pet, mni_to_t1, mm))
    return _matrix(rigid)


# ── images and optimiser ──────────────────────────────────────────────────────────────────────────


class _Pair(NamedTuple):
    """Images that the metric compares at one resolution."""

    mm: float
    fixed: Scan
    moving: Scan
    mask: sitk.Image  # on the fixed image


def _levels(finest_mm: float) -> list[float]:
    """Resolutions in mm, from `COARSE_MM` down to the finest by halves."""
    levels = [finest_mm]
    while 2 * levels[-1] < COARSE_MM:
        levels.append(2 * levels[-1])
    return [COARSE_MM, *levels[::-1]]


def _per_scan(function: Callable[..., Any]) -> Callable[..., Any]:
    """Cache results with their scan: the T1's copies are used for its registration and that of both PETs."""

    @wraps(function)
    def cached(scan: Scan, *arguments: Hashable) -> Any:
        key = (function.__name__, *arguments)
        if key not in scan.derived:
            scan.derived[key] = function(scan, *arguments)
        return scan.derived[key]

    return cached


@cache
def _template(mm: float) -> tuple[Scan, sitk.Image]:
    """The MNI152 T1 and its dilated brain mask."""
    grid = Grid(tuple(int(np.ceil(extent / mm)) for extent in (180, 216, 190)), mm)
    brain = _dilate(mni_map("brain", grid), mm)
    return Scan(mni_map("t1", grid), grid.affine), _image(Scan(brain, grid.affine))


def _to_template(t1: Scan, mm: float) -> _Pair:
    fixed, mask = _template(mm)
    return _Pair(mm, fixed, _working_copy(t1, mm), mask)


def _to_t1(t1: Scan, pet: Scan, mni_to_t1: np.ndarray, mm: float) -> _Pair:
    mask = _brain_mask(t1, mm, tuple(map(tuple, mni_to_t1)))
    return _Pair(mm, _working_copy(t1, mm), _working_copy(pet, mm), mask)


@_per_scan
def _brain_mask(t1: Scan, mm: float, mni_to_t1: tuple[tuple[float, ...], ...]) -> sitk.Image:
    """The dilated MNI brain on a T1's working copy."""
    copy = _working_copy(t1, mm)
    brain = Scan(mni_map("brain", _BRAIN_GRID).astype(np.float32), _BRAIN_GRID.affine)
    inside = resample(brain, copy.affine, copy.data.shape, np.linalg.inv(mni_to_t1)) >= 0.5
    return _image(Scan(_dilate(inside, mm), copy.affine))


@_per_scan
def _head(scan: Scan) -> tuple[float, np.ndarray, np.ndarray]:
    """Brightest tissue, and the head's first and last corner along the world's axes, mm."""
    bright = np.percentile(scan.data, 99.5)
    inside = np.argwhere(scan.data > 0.1 * bright)
    low, high = inside.min(0) - 0.5, inside.max(0) + 0.5
    world = apply_affine(scan.affine, list(product(*zip(low, high, strict=True))))
    return bright, world.min(0), world.max(0)


@_per_scan
def _working_copy(scan: Scan, mm: float) -> Scan:
    """The head of a scan at ``mm`` isotropic along the world's axes, brightest tissue at about 1.

    A margin of background belongs to the image, so that a shifted head still overlaps.
    """
    bright, start, stop = _head(scan)
    start, stop = start - _MARGIN_MM, stop + _MARGIN_MM
    affine = np.diag([mm, mm, mm, 1.0])
    affine[:3, 3] = start
    data = resample(scan, affine, tuple(np.ceil((stop - start) / mm).astype(int) + 1))
    return Scan(np.clip(data / bright, 0, 1.2), affine)


def _image(scan: Scan) -> sitk.Image:
    """A SimpleITK image whose physical space is RAS world; the affine must lie along the axes."""
    data = scan.data.astype(np.uint8) if scan.data.dtype == bool else scan.data
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    image.SetSpacing(np.diag(scan.affine)[:3].tolist())
    image.SetOrigin(scan.affine[:3, 3].tolist())
    return image


@_per_scan
def _smooth_image(scan: Scan, sigma_mm: float) -> sitk.Image:
    """A SimpleITK image, smoothed as a registration method would do at every call."""
    return sitk.SmoothingRecursiveGaussian(_image(scan), sigma_mm)


def _dilate(mask: np.ndarray, mm: float) -> np.ndarray:
    """Grown by about 5 mm, so that the metric includes the brain's outline."""
    return ndimage.binary_dilation(mask, iterations=max(1, round(5 / mm)))


def _centre_of_mass(scan: Scan) -> np.ndarray:
    return apply_affine(scan.affine, np.array(ndimage.center_of_mass(scan.data)))


def _below_the_crown(scan: Scan) -> np.ndarray:
    """Middle of the brain in a scan of a whole head with neck: 80 mm below its top."""
    head = ndimage.binary_opening(scan.data > 0.15)
    if not head.any():
        return _centre_of_mass(scan)
    z = scan.affine[2, 3] + scan.affine[2, 2] * np.arange(head.shape[2])
    top = z[np.flatnonzero(head.any((0, 1)))[-1]]
    upper = head & (z > top - 140)
    return np.array([*_centre_of_mass(Scan(upper, scan.affine))[:2], top - 80])


def _matrix(transform: sitk.Transform) -> np.ndarray:
    """Any linear SimpleITK transform as a (4, 4) matrix."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, 3] = origin
    for axis, unit in enumerate(np.eye(3)):
        matrix[:3, axis] = np.array(transform.TransformPoint(unit.tolist())) - origin
    return matrix


def _method(pair: _Pair, points: int = 6000) -> sitk.ImageRegistrationMethod:
    """Mattes mutual information on about so many points of the mask."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(pair.mask)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetMetricSamplingStrategy(method.RANDOM)  # seeded; a regular stride may hit the same few planes
    voxels = np.count_nonzero(sitk.GetArrayViewFromImage(pair.mask))
    method.SetMetricSamplingPercentage(min(1.0, points / voxels), 1)
    # Central differences instead of ITK's Gaussian gradient filter: a fifth less error (T1, 60 phantom sessions of
    # 6 mm: mean 1.39 → 1.12 mm, highest 2.58 → 2.02) and a seventh less time; the images are smooth already.
    method.MetricUseMovingImageGradientFilterOff()
    return method


def _optimise(transform: sitk.Transform, pair: _Pair, points: int = 6000, *, powell: bool = False) -> None:
    """Improve ``transform`` in place; restore it if the optimiser ends at a worse value."""
    method = _method(pair, points)
    if powell:  # line searches without gradients find large rotations at which gradient steps stall (measured)
        method.SetOptimizerAsPowell(10, 6, 2.0, 0.5, 1e-2)
    else:  # steps of half a millimetre and less: with steps of 2 mm one phantom in 200 was lost
        method.SetOptimizerAsRegularStepGradientDescent(0.5, 0.01, 60, 0.75, 1e-6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    before, values = transform.GetParameters(), []
    method.AddCommand(sitk.sitkIterationEvent, lambda: values.append(method.GetMetricValue()))
    method.Execute(*(_smooth_image(scan, 0.4 * pair.mm) for scan in (pair.fixed, pair.moving)))
    if values and values[-1] > values[0]:
        transform.SetParameters(before)


def _search(pair: _Pair, starts: Sequence[sitk.Transform]) -> sitk.Transform:
    """Improve the start of highest mutual information by Powell's method."""
    fixed, moving = _image(pair.fixed), _image(pair.moving)

    def value(start: sitk.Transform) -> float:
        method = _method(pair, 1500)
        method.SetInitialTransform(start)
        try:
            return method.MetricEvaluate(fixed, moving)
        except RuntimeError:  # no overlap at all
            return np.inf

    best = min(starts, key=value)
    _optimise(best, pair, 1500, powell=True)
    return best


def _start(transform: sitk.Transform, centre: np.ndarray, shift: np.ndarray) -> sitk.Transform:
    transform.SetCenter(centre.tolist())
    transform.SetTranslation(shift.tolist())
    return transform
