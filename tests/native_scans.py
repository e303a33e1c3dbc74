"""Scans of nilearn's MNI152 head in various poses and storage orders, with the true transforms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from resdm_suite.anatomy import CENTRE_MM, Grid, mni_map, regions
from resdm_suite.preprocessing.resampling import Scan

SOURCE = Grid((84, 96, 84), 2.25)


def rotation(degrees) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    return matrix


def about(matrix: np.ndarray, centre, shift=(0, 0, 0)) -> np.ndarray:
    """A linear map (4, 4) turned about a point, then shifted."""
    moved = matrix.copy()
    moved[:3, 3] = np.array(centre) - matrix[:3, :3] @ centre + shift
    return moved


def storage(code: str, voxel_mm, shape, centre, tilt=(0, 0, 0), shear: float = 0.0) -> np.ndarray:
    """An affine whose axes are stored in the order of a code, tilted, about ``centre``."""
    direction = np.zeros((3, 3))
    for stored, (axis, sign) in enumerate(axcodes2ornt(code)):
        direction[int(axis), stored] = sign
    affine = np.eye(4)
    sheared = np.eye(3) + shear * np.eye(3, k=1)
    affine[:3, :3] = rotation(tilt)[:3, :3] @ sheared @ direction @ np.diag(voxel_mm)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def scan_of(volume: np.ndarray, affine: np.ndarray, shape, world_to_mni: np.ndarray) -> Scan:
    """A volume on `SOURCE` as a scanner stores it."""
    to_voxel = np.linalg.inv(SOURCE.affine) @ world_to_mni @ affine
    data = ndimage.affine_transform(volume, to_voxel[:3, :3], to_voxel[:3, 3], output_shape=shape, order=1)
    return Scan(data.astype(np.float32), affine)


@dataclass(frozen=True)
class Visit:
    """A T1 and a PET of one head, and the truth as registration states it (fixed → moving)."""

    t1: Scan
    pet: Scan
    mni_to_t1: np.ndarray
    t1_to_pet: np.ndarray


def make_visit(
    seed: int, turn: float = 12, shift: float = 10, t1_code: str = "RAS", pet_code: str = "LAS", shear: float = 0.0,
    neck: bool = False,
) -> Visit:  # fmt: skip
    """Head size ±10 %, T1 turned by up to ``turn`` degrees about each axis, PET by 15 in all and moved by ``shift``."""
    rng = np.random.default_rng(seed)
    t1 = mni_map("t1", SOURCE).copy()
    if neck:
        t1 = t1 + _scalp_and_neck()
    uptake = 1.3 * mni_map("gm", SOURCE) + 0.9 * mni_map("wm", SOURCE)
    uptake = np.where(regions(SOURCE)["precuneus"], 1.5 * uptake, uptake)
    uptake = ndimage.gaussian_filter(uptake, 7 / 2.3548 / SOURCE.voxel_mm)

    size = np.eye(4)
    size[:3, :3] = np.diag(rng.uniform(0.9, 1.1, 3)) + rng.normal(0, 0.02, (3, 3))
    t1_to_mni = about(size @ rotation(rng.uniform(-turn, turn, 3)), CENTRE_MM, rng.uniform(-shift, shift, 3))
    mni_to_t1 = np.linalg.inv(t1_to_mni)
    middle = (mni_to_t1 @ [*CENTRE_MM, 1])[:3]
    axis, way = (v / np.linalg.norm(v) for v in rng.normal(size=(2, 3)))
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_rotvec(np.deg2rad(15) * axis).as_matrix()
    t1_to_pet = about(turned, middle, shift * way)

    shape, pet_shape = (58, 64, 60), (50, 56, 48)
    affine = storage(t1_code, (3.4, 3.4, 3.6), shape, middle + rng.uniform(-4, 4, 3), rng.uniform(-8, 8, 3), shear)
    there = scan_of(t1, affine, shape, t1_to_mni)
    bias = np.exp(0.15 * np.linspace(-1, 1, shape[0]))[:, None, None]
    noise = rng.normal(0, 15, shape) * (there.data > 0.05)
    t1_scan = Scan(np.maximum(800 * bias * there.data + noise, 0).astype(np.float32), affine)
    centre = (t1_to_pet @ [*middle, 1])[:3] + rng.uniform(-4, 4, 3)
    pet_affine = storage(pet_code, (4, 4, 4.2), pet_shape, centre, rng.uniform(-8, 8, 3))
    pet = scan_of(uptake, pet_affine, pet_shape, t1_to_mni @ np.linalg.inv(t1_to_pet))
    noise = rng.normal(0, 150, pet_shape) * (pet.data > 0.1)
    pet = Scan(np.maximum(3000 * pet.data + noise, 0).astype(np.float32), pet_affine)
    return Visit(t1_scan, pet, mni_to_t1, t1_to_pet)


def _scalp_and_neck() -> np.ndarray:
    """Dark skull, bright scalp, and muscle below: the surroundings of the brain in a native T1."""
    brain = mni_map("brain", SOURCE)
    from_brain = ndimage.distance_transform_edt(~brain, sampling=SOURCE.voxel_mm)
    x, y, z = SOURCE.mm()
    muscle = (((x / 55) ** 2 + ((y + 25) / 60) ** 2) < 1) & (z < -45) & (from_brain > 14)
    outside = np.select([brain | (from_brain <= 2), from_brain <= 8, from_brain <= 14], [0, 0.12, 0.8], 0.0)
    return np.where(muscle, 0.55, outside)


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None, codes: tuple[int, int] = (1, 1)) -> Path:
    """Write a NIfTI with given sform and qform codes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    image.set_sform(affine, code=codes[0])
    image.set_qform(affine, code=codes[1])
    nib.save(image, path)
    return path
