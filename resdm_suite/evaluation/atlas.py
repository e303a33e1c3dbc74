"""Regions beyond the built-in ones: an atlas, and the Centiloid volumes of interest; and the Centiloid scale.

An atlas is a label image in MNI152 space. Labels are resampled to the profile's grid by nearest neighbour; those with
fewer than `MIN_VOXELS` there are left out and named.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn import datasets
from nilearn.image import resample_img

from resdm_suite.anatomy import Grid
from resdm_suite.cohorts.tables import read_table
from resdm_suite.preprocessing.scans import image_data, open_image

MIN_VOXELS = 4
"""Smallest region on the grid: the mean of fewer voxels depends on the grid more than on the region."""

FETCHED = ("aal", "harvard_oxford")
"""Atlases that nilearn downloads."""

CENTILOID = {
    "11CPIB": (100 / 1.067, -100 * 1.009 / 1.067),
    "18FAV45": (175.4, -182.3),
    "18FFBB": (153.4, -154.9),
}
"""BIDS label of an amyloid tracer → slope and intercept of CL = slope · SUVR + intercept, over the standard volumes.

Standard cortex over whole cerebellum, after the non-linear registration of SPM8 (Klunk et al. 2015, Alzheimers Dement
11:1). PiB: Klunk et al., 50 to 70 min. Florbetapir: Navitsky et al. 2018 (Alzheimers Dement 14:1565), 50 to 60 min.
Florbetaben: Rowe et al. 2017 (Eur J Nucl Med Mol Imaging 44:2053), 90 to 110 min.

Each equation is for that pipeline. Registration here is affine, so the result is an uncalibrated estimate. A Centiloid
needs a calibration on the data that GAAIN publishes (Klunk et al., level 2), given as ``fidelity.centiloid.equations``.
"""


class AtlasError(ValueError):
    """An atlas that is not available or does not fit: names the reason and the remedy."""


@dataclass(frozen=True)
class Atlas:
    """Regions on a grid: name, boolean masks (X, Y, Z), and the names of regions below `MIN_VOXELS`."""

    name: str
    masks: dict[str, np.ndarray]
    left_out: tuple[str, ...] = ()

    def means(self, volume: np.ndarray) -> dict[str, float]:
        """Mean of a volume (X, Y, Z) in every region."""
        volume = np.asarray(volume, dtype=np.float64)
        return {name: float(volume[mask].mean()) for name, mask in self.masks.items()}


def load_atlas(source: str, grid: Grid, labels: str | Path | None = None) -> Atlas:
    """An atlas on a grid; `AtlasError` where it is not available, no label image, or without a region on the grid.

    ``source`` is one of `FETCHED` (nilearn downloads it once) or the path of a label image. ``labels`` is a TSV with
    columns ``index`` and ``name`` for a path; without it labels are named by their number.
    """
    image, names = _fetch(source) if source in FETCHED else (_label_image(Path(source)), _names(labels))
    data = np.rint(_on_grid(image, grid)).astype(int)
    masks, small = {}, []
    for label in sorted({*np.unique(np.rint(image.get_fdata()).astype(int)), *names} - {0}):
        name, mask = names.get(label, str(label)), data == label
        if mask.sum() < MIN_VOXELS:
            small.append(name)
        else:
            masks[name] = mask
    if not masks:
        fault = f"none of its {len(small)} regions has {MIN_VOXELS} voxels of {grid.voxel_mm:g} mm"
        raise AtlasError(f"{source}: {fault}; is it in MNI152 space?")
    return Atlas(source if source in FETCHED else Path(source).name, masks, tuple(small))


def _on_grid(image: nib.Nifti1Image, grid: Grid) -> np.ndarray:
    """Labels at the voxels of a grid, by nearest neighbour."""
    place = {"target_affine": grid.affine, "target_shape": grid.shape}
    options = {"interpolation": "nearest", "copy_header": True, "force_resample": True}
    return resample_img(image, **place, **options).get_fdata()


def _label_image(path: Path) -> nib.Nifti1Image:
    if not path.is_file():
        raise AtlasError(f"{path}: no such label image; expected a path, or one of {', '.join(FETCHED)}")
    image = open_image(path)
    data = image_data(image, path)
    if data.ndim != 3 or not np.isfinite(data).all() or np.abs(data - np.rint(data)).max() > 1e-3:
        raise AtlasError(f"{path}: expected a 3D image of whole numbers (labels); found shape {data.shape}")
    return image


def _names(path: str | Path | None) -> dict[int, str]:
    if path is None:
        return {}
    if not Path(path).is_file():
        raise AtlasError(f"{path}: no such table of labels")
    table = read_table(Path(path), "\t")
    if not {"index", "name"} <= set(table):
        raise AtlasError(f"{path}: expected columns index and name, found {', '.join(table)}")
    unusable = ~table["index"].str.fullmatch(r"\d+") | (table["name"] == "")
    unusable |= table["index"].duplicated() | table["name"].duplicated()
    if unusable.any():
        line = unusable.idxmax()
        found = " ".join(map(repr, table.loc[line, ["index", "name"]]))
        raise AtlasError(f"{path}, row {line}: {found}; expected a whole number and a name, each of them once")
    return dict(zip(table["index"].astype(int), table["name"], strict=True))


def _fetch(source: str) -> tuple[nib.Nifti1Image, dict[int, str]]:
    """An atlas of nilearn and its names by label; label 0 is the background."""
    try:
        if source == "aal":
            atlas = datasets.fetch_atlas_aal(verbose=0)
            names = {int(index): name for index, name in zip(atlas.indices, atlas.labels, strict=True) if int(index)}
        else:
            atlas = datasets.fetch_atlas_harvard_oxford("cort-maxprob-thr25-2mm", verbose=0)
            names = dict(list(enumerate(atlas.labels))[1:])
        return nib.load(atlas.maps) if isinstance(atlas.maps, str | Path) else atlas.maps, names
    except Exception as error:  # requests, urllib, tarfile and nilearn raise different ones
        raise AtlasError(
            f"atlas {source!r} could not be downloaded by nilearn ({type(error).__name__}: {error}). Fetch it on a "
            "machine with a network, copy nilearn's data folder here and name it in NILEARN_DATA; or give the path of "
            "a label image (fidelity.atlas)"
        ) from error


def centiloid_regions(cortex: str | Path, reference: str | Path, grid: Grid) -> Atlas:
    """The Centiloid volumes of interest on a grid: ``cortex`` and ``reference``, from two mask images in MNI152.

    The Global Alzheimer's Association Interactive Network publishes them (``voi_ctx_2mm.nii``, ``voi_WhlCbl_2mm.nii``).
    """
    masks = {}
    for name, path in (("cortex", cortex), ("reference", reference)):
        if not Path(path).is_file():
            raise AtlasError(
                f"{path}: no such Centiloid {name} mask; the volumes are published by GAAIN (voi_ctx_2mm.nii and "
                "voi_WhlCbl_2mm.nii), see fidelity.centiloid"
            )
        image = open_image(Path(path))
        mask = nib.Nifti1Image((image_data(image, Path(path)) > 0.5).astype(np.uint8), image.affine)
        masks[name] = _on_grid(mask, grid) > 0.5
        if masks[name].sum() < MIN_VOXELS:
            raise AtlasError(f"{path}: {int(masks[name].sum())} voxels on the grid; is it a mask in MNI152 space?")
    return Atlas("Centiloid VOIs", masks)


def centiloid(suvr: float, tracer: str, equations: Mapping[str, tuple[float, float]] = CENTILOID) -> float:
    """SUVR → Centiloid scale by the tracer's linear equation; NaN for a tracer without one.

    >>> round(centiloid(1.009, "11CPIB")), round(centiloid(1.009 + 1.067, "11CPIB"))
    (0, 100)
    """
    if tracer not in equations:
        return float("nan")
    slope, intercept = equations[tracer]
    return slope * suvr + intercept
