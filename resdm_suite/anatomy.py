"""The common space: the grid over the MNI brain, nilearn's MNI152 maps on it, and the built-in regions.

World coordinates are MNI152 millimetres, RAS+. All maps come with nilearn, so nothing is downloaded. The built-in
regions are ellipsoids in MNI mm, cut with the grey-matter map: sufficient for reference regions, phantoms and
comparisons within a cohort, but no substitute for an atlas.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np

from resdm_suite.profiles import GridConfig

CENTRE_MM = (0.0, -17.0, 5.0)
"""Middle of the MNI152 brain's bounding box (nilearn's mask: x −72…72, y −107…73, z −72…82)."""


@dataclass(frozen=True)
class Grid:
    """A box of isotropic voxels centred on the MNI brain, RAS+.

    Parameters
    ----------
    shape : tuple of int
        Voxels along x (left to right), y (back to front), z (down to up).
    voxel_mm : float
    """

    shape: tuple[int, int, int]
    voxel_mm: float

    @classmethod
    def of(cls, config: GridConfig) -> Grid:
        """The grid of a profile."""
        return cls(tuple(config.shape), config.voxel_mm)

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices → MNI mm, shape (4, 4)."""
        affine = np.diag([self.voxel_mm] * 3 + [1.0])
        affine[:3, 3] = np.array(CENTRE_MM) - self.voxel_mm * (np.array(self.shape) - 1) / 2
        return affine

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """MNI mm along x, y and z."""
        return tuple(self.affine[i, 3] + self.voxel_mm * np.arange(n) for i, n in enumerate(self.shape))

    def mm(self) -> np.ndarray:
        """MNI mm of every voxel, shape (3, X, Y, Z)."""
        return np.stack(np.meshgrid(*self.axes, indexing="ij"))

    def image(self, array: np.ndarray) -> nib.Nifti1Image:
        """A NIfTI image of an array on this grid, sform and qform both set to MNI152 (code 4)."""
        if array.shape[:3] != self.shape:
            raise ValueError(f"array of shape {array.shape} does not fit a grid of {self.shape}")
        image = nib.Nifti1Image(array, self.affine)
        image.set_sform(self.affine, code=4)
        image.set_qform(self.affine, code=4)
        image.header.set_xyzt_units("mm")
        return image

    def read(self, path: str | Path) -> np.ndarray:
        """A volume (X, Y, Z), float32, that a stage stored on this grid.

        Raises `FileNotFoundError`, or `ValueError` naming the file for an unreadable one or another grid.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such volume; run its stage first")
        try:
            image = nib.load(path)
            fits = image.shape == self.shape and np.allclose(image.affine, self.affine, atol=1e-3)
            volume = image.get_fdata(dtype=np.float32) if fits else None  # not what a faulty header claims
        except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, OSError, EOFError, ValueError,
                OverflowError, MemoryError, zlib.error) as error:  # fmt: skip
            raise ValueError(
                f"{path}: cannot be read as NIfTI ({str(error).strip()}); delete it and run its stage again"
            ) from None
        if volume is None:
            corners = ["({:.1f}, {:.1f}, {:.1f}) mm".format(*affine[:3, 3]) for affine in (image.affine, self.affine)]
            raise ValueError(
                f"{path}: volumes of unequal grid: found {image.shape} voxels from {corners[0]}, expected "
                f"the profile's {self.shape} of {self.voxel_mm:g} mm from {corners[1]}; delete it and run its stage "
                "again"
            )
        return volume


_LOADERS = {  # of nilearn.datasets
    "t1": "load_mni152_template",
    "gm": "load_mni152_gm_template",
    "wm": "load_mni152_wm_template",
    "brain": "load_mni152_brain_mask",
}


@cache
def mni_map(name: str, grid: Grid) -> np.ndarray:
    """One of nilearn's packaged MNI152 maps on a grid, read-only, float32 in [0, 1] (``brain``: bool).

    Parameters
    ----------
    name : {"t1", "gm", "wm", "brain"}
        T1 template (brain only), grey- and white-matter probability, brain mask.
    grid : Grid

    Returns
    -------
    ndarray (X, Y, Z)
        The 1 mm map is smoothed to the voxel size first, so coarse grids do not alias.
    """
    from nilearn import datasets  # here: it takes a second, and training needs no map
    from nilearn.image import resample_img, smooth_img

    source = getattr(datasets, _LOADERS[name])(resolution=1)
    source = smooth_img(nib.Nifti1Image(source.get_fdata(dtype=np.float32), source.affine), 0.8 * grid.voxel_mm)
    place = {"target_affine": grid.affine, "target_shape": grid.shape}
    image = resample_img(source, **place, interpolation="linear", copy_header=True, force_resample=True)
    array = np.clip(image.get_fdata(dtype=np.float32), 0.0, 1.0)
    array = array >= 0.5 if name == "brain" else array
    array.setflags(write=False)
    return array


@cache
def brain_points(grid: Grid = Grid((28, 28, 28), 8.0)) -> np.ndarray:
    """MNI mm of the MNI152 brain's voxels on a grid, by default of 8 mm, (N, 3)."""
    return grid.mm()[:, mni_map("brain", grid)].T


# name: centre (mm, right hemisphere; x = 0 for a midline region), radii (mm), tissue map it is cut with
_ELLIPSOIDS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], str]] = {
    "precuneus": ((9, -62, 40), (11, 16, 18), "gm"),
    "posterior_cingulate": ((7, -42, 28), (9, 14, 13), "gm"),
    "anterior_cingulate": ((7, 34, 14), (9, 18, 20), "gm"),
    "frontal": ((30, 40, 22), (26, 30, 32), "gm"),
    "lateral_temporal": ((58, -26, -4), (15, 36, 14), "gm"),
    "inferior_temporal": ((50, -30, -26), (16, 32, 11), "gm"),
    "medial_temporal": ((26, -14, -24), (12, 22, 12), "gm"),
    "parietal": ((44, -52, 44), (20, 22, 20), "gm"),
    "sensorimotor": ((38, -20, 58), (22, 16, 20), "gm"),
    "occipital": ((20, -90, 6), (22, 16, 26), "gm"),
    "striatum": ((20, 8, 2), (13, 16, 13), "gm"),
    "thalamus": ((11, -18, 8), (10, 14, 9), "gm"),
    "cerebellum": ((0, -64, -36), (54, 32, 22), "brain"),
    "inferior_cerebellum": ((0, -64, -48), (52, 30, 12), "gm"),
    "pons": ((0, -26, -34), (14, 12, 16), "brain"),
}
SUMMARY = {
    "amyloid": ("frontal", "anterior_cingulate", "posterior_cingulate", "precuneus", "parietal", "lateral_temporal"),
    "tau": ("medial_temporal", "inferior_temporal", "lateral_temporal"),
}
"""Regions of the cortical summary: global amyloid, and the meta-temporal composite of tau."""
REFERENCE = {"amyloid": "cerebellum", "tau": "inferior_cerebellum"}
"""Reference region by tracer: whole cerebellum for amyloid, inferior cerebellar grey for tau."""


@cache
def regions(grid: Grid) -> dict[str, np.ndarray]:
    """The built-in regions on a grid.

    Returns
    -------
    dict of str to ndarray (X, Y, Z), bool
        Cortical and deep regions are disjoint (a voxel goes to the nearest ellipsoid) and cut with grey matter
        at half its local peak; ``cerebellum`` contains ``inferior_cerebellum``.

    Raises
    ------
    ValueError
        The grid is too coarse or too small to hold a region: names it.
    """
    brain, gm = mni_map("brain", grid), mni_map("gm", grid)
    x, y, z = grid.mm()
    distance = {}
    for name, (centre, radii, _) in _ELLIPSOIDS.items():
        axes = zip((np.abs(x) if centre[0] else x, y, z), centre, radii, strict=True)
        distance[name] = np.sqrt(sum((axis - middle) ** 2 / radius**2 for axis, middle, radius in axes))
    competing = [name for name in _ELLIPSOIDS if name != "inferior_cerebellum"]
    nearest = np.argmin([distance[name] for name in competing], axis=0)
    masks = {}
    for name, (_, _, tissue) in _ELLIPSOIDS.items():
        owner = "cerebellum" if name == "inferior_cerebellum" else name
        mask = (distance[name] <= 1) & (nearest == competing.index(owner)) & brain
        if tissue == "gm" and mask.any():
            mask &= gm >= 0.5 * np.quantile(gm[mask], 0.95)
        if not mask.any():
            raise ValueError(f"grid {grid} holds no voxel of region {name!r}; use a finer or larger grid")
        mask.setflags(write=False)
        masks[name] = mask
    return masks


@cache
def measured_regions(grid: Grid, tracer: str) -> dict[str, np.ndarray]:
    """The tracer's ``summary`` (voxels pooled), then `regions`."""
    masks = regions(grid)
    return {"summary": np.any([masks[name] for name in SUMMARY[tracer]], axis=0)} | masks
