"""Registration recovers the transforms that made the scans, in any storage; one resampling keeps left and right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from native_scans import SOURCE, make_visit, rotation, save, scan_of, storage
from nibabel.affines import apply_affine

from resdm_suite.anatomy import CENTRE_MM, Grid, brain_points, mni_map
from resdm_suite.preprocessing.registration import register_affine, register_rigid
from resdm_suite.preprocessing.resampling import Scan, displacement, resample
from resdm_suite.preprocessing.scans import read_scan


@pytest.mark.parametrize(("seed", "pose", "mm", "limits"), [
    (0, {"t1_code": "RAS", "pet_code": "LAS"}, 4.0, (1.5, 1.5, 2.0)),
    (1, {"t1_code": "PSR", "pet_code": "LPS"}, 4.0, (1.5, 1.5, 2.0)),
    (2, {"t1_code": "LAS", "pet_code": "SAR"}, 4.0, (1.5, 1.5, 2.0)),
    (4, {}, 6.0, (3.0, 3.0, 3.0)),
    (5, {"turn": 15, "shift": 25, "neck": True}, 4.0, (2.0, 2.0, 4.0)),
    (7, {"shear": 0.1}, 4.0, (1.5, 1.5, 2.0)),
], ids=["left-handed PET", "both permuted", "left-handed T1", "coarse", "head with neck", "sheared"])  # fmt: skip
def test_known_transforms_are_recovered(seed, pose, mm, limits):
    """Mean errors in mm over the brain: T1 → MNI, PET → T1, and both composed.

    PET turned by 15 degrees and moved by 10 mm; oblique, anisotropic storage. The transform of the PET is rigid.
    """
    visit, points = make_visit(seed, **pose), brain_points()
    mni_to_t1 = register_affine(visit.t1, mm)
    t1_to_pet = register_rigid(visit.t1, visit.pet, mni_to_t1, mm)
    in_t1 = apply_affine(visit.mni_to_t1, points)
    assert displacement(mni_to_t1, visit.mni_to_t1, points).mean() < limits[0]
    assert displacement(t1_to_pet, visit.t1_to_pet, in_t1).mean() < limits[1]
    assert displacement(t1_to_pet @ mni_to_t1, visit.t1_to_pet @ visit.mni_to_t1, points).mean() < limits[2]
    np.testing.assert_allclose(t1_to_pet[:3, :3] @ t1_to_pet[:3, :3].T, np.eye(3), atol=1e-9)
    assert np.linalg.det(t1_to_pet[:3, :3]) == pytest.approx(1)
    np.testing.assert_array_equal(t1_to_pet[3], [0, 0, 0, 1])


def test_the_same_scans_give_the_same_bytes():
    """Also for a scan with cached working copies and a brain mask of an earlier registration from elsewhere."""
    visit, moved = make_visit(9), np.eye(4)
    moved[0, 3] = 20
    first = register_affine(visit.t1, 6.0)
    register_rigid(visit.t1, visit.pet, first @ moved, 6.0)
    one = register_rigid(visit.t1, visit.pet, first, 6.0)
    assert visit.t1.derived
    t1, pet = replace(visit.t1), replace(visit.pet)
    assert "derived" not in vars(t1)
    assert first.tobytes() == register_affine(t1, 6.0).tobytes()
    for t1 in (replace(visit.t1), visit.t1):
        assert one.tobytes() == register_rigid(t1, pet, first, 6.0).tobytes()


def test_displacement_is_the_distance_between_images_of_points():
    shifted = np.eye(4)
    shifted[:3, 3] = 3, 4, 0
    np.testing.assert_allclose(displacement(shifted, np.eye(4), brain_points()), 5)
    turned = displacement(rotation((0, 0, 90)), np.eye(4), np.array([[10.0, 0, 0]]))
    np.testing.assert_allclose(turned, 10 * np.sqrt(2))


@pytest.mark.parametrize("code", ["RAS", "LAS", "LPS", "PSR", "IAL"])
@pytest.mark.parametrize("tilt", [(0, 0, 0), (9, -14, 6)])
def test_left_stays_left_from_nifti_to_grid(tmp_path, code, tilt):
    """A marker in the left frontal lobe, through files in any storage order, is at its voxel of the grid."""
    marker = np.array([-38.0, 30.0, 25.0])
    volume = np.exp(-((SOURCE.mm() - marker[:, None, None, None]) ** 2).sum(0) / (2 * 5.0**2))
    shape = (60, 66, 62)
    scan = scan_of(volume, storage(code, (3, 3.2, 3.4), shape, np.array(CENTRE_MM), tilt), shape, np.eye(4))
    stored = read_scan(save(tmp_path / "marker.nii.gz", scan.data, scan.affine))
    grid = Grid((32, 32, 32), 6.0)
    found = resample(stored, grid.affine, grid.shape)
    centre = (grid.mm() * found).reshape(3, -1).sum(1) / found.sum()
    np.testing.assert_allclose(centre, marker, atol=0.3)


def test_resampling_on_its_own_grid_changes_nothing():
    shape = (9, 10, 11)
    scan = Scan(np.random.default_rng(0).random(shape, dtype=np.float32), storage("LPS", (3, 3, 3), shape, np.zeros(3)))
    np.testing.assert_allclose(resample(scan, scan.affine, shape), scan.data, atol=1e-6)


def test_coarse_grids_average_instead_of_aliasing():
    """Stripes of 2 mm become grey on a grid of 6 mm, where mere sampling would keep them."""
    stripes = np.tile((np.arange(96) % 2)[:, None, None], (1, 96, 96)).astype(np.float32)
    affine = storage("RAS", (2, 2, 2), stripes.shape, np.zeros(3))
    grid = Grid((20, 20, 20), 6.0)
    coarse = resample(Scan(stripes, affine), grid.affine, grid.shape, np.eye(4))
    inner = coarse[8:-8, 8:-8, 8:-8]
    assert np.abs(inner - 0.5).max() < 0.06
    plain = stripes[1::3][8:-8]
    assert np.abs(plain - 0.5).max() == 0.5


def test_the_direction_of_a_matrix_is_from_grid_to_scan():
    """Of a scan whose world is 12 mm to the right of MNI space."""
    grid = Grid((32, 32, 32), 6.0)
    brain = mni_map("t1", grid)
    moved = Scan(brain, grid.affine + np.array([[0, 0, 0, 12.0], [0] * 4, [0] * 4, [0] * 4]))
    to_scan = np.eye(4)
    to_scan[0, 3] = 12
    np.testing.assert_allclose(resample(moved, grid.affine, grid.shape, to_scan), brain, atol=1e-6)
