"""A scan in its native space, smoothed and sampled on a grid.

Apart from `resdm_suite.preprocessing.registration`, since neither needs SimpleITK.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

FWHM_PER_VOXEL = 0.8
"""FWHM of the smoothing before sampling, in units of the sampling distance (as in `resdm_suite.anatomy.mni_map`)."""

_SIGMA = 1 / np.sqrt(8 * np.log(2))  # of a Gaussian, per FWHM


@dataclass(frozen=True, eq=False)
class Scan:
    """A volume in its native space.

    Parameters
    ----------
    data : ndarray (X, Y, Z), float32
    affine : ndarray (4, 4)
        Voxel indices → RAS world, mm.
    frames : dict
        Number and weights of the frames that were averaged; empty for a single volume.
    """

    data: np.ndarray
    affine: np.ndarray
    frames: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def derived(self) -> dict[tuple[Hashable, ...], Any]:
        """Results of ``_per_scan`` functions."""
        return {}


def smooth(scan: Scan, fwhm_mm: Sequence[float] | float) -> Scan:
    """Gaussian smoothing by ``fwhm_mm`` along each voxel axis."""
    sigma = np.asarray(fwhm_mm) * _SIGMA / voxel_sizes(scan.affine)
    return replace(scan, data=ndimage.gaussian_filter(scan.data, sigma, truncate=3)) if np.any(sigma) else scan


def resample(scan: Scan, affine: np.ndarray, shape: tuple[int, ...], to_scan: np.ndarray | None = None) -> np.ndarray:
    """Sample a scan on a grid: average to the grid's voxel size if that is coarser, then interpolate linearly, once.

    ``affine`` (4, 4) leads from the grid's isotropic voxels to its world, ``to_scan`` (4, 4) from there to the scan's
    world, mm; by default the two are the same. The result is float32, 0 outside the scan.
    """
    target = voxel_sizes(affine).max()
    averaged = smooth(scan, FWHM_PER_VOXEL * np.sqrt(np.maximum(target**2 - voxel_sizes(scan.affine) ** 2, 0)))
    to_voxel = np.linalg.inv(scan.affine) @ (np.eye(4) if to_scan is None else to_scan) @ affine
    return ndimage.affine_transform(
        averaged.data, to_voxel[:3, :3], to_voxel[:3, 3], output_shape=tuple(shape), output=np.float32, order=1
    )


def displacement(one: np.ndarray, other: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Distance in mm between the images of each of ``points`` (N, 3) under two matrices."""
    return np.linalg.norm(apply_affine(one, points) - apply_affine(other, points), axis=1)
