"""``preprocess.brain_mask``: the T1 that is registered has no skull; digests of profiles without it stay the same."""

from __future__ import annotations

import sys
import types

import nibabel as nib
import numpy as np
import pytest
from conftest import changed
from native_scans import make_visit, save

from resdm.settings import to_dict
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.preprocessing import registration, t1
from resdm_suite.preprocessing.resampling import Scan, resample
from resdm_suite.preprocessing.scans import VolumeError
from resdm_suite.profiles import Config, GridConfig, PreprocessConfig, load_config, read_config

SETTINGS = PreprocessConfig(grid=GridConfig((32, 32, 32), 6.0), registration_mm=6.0, brain_mask="deepbet")


@pytest.fixture
def head(monkeypatch):
    """A head with neck, and in place of the network the true brain on the scan's voxels."""
    visit, fine = make_visit(5, neck=True), Grid((64, 72, 64), 3.0)
    brain = Scan(mni_map("brain", fine).astype(np.float32), fine.affine)
    inside = resample(brain, visit.t1.affine, visit.t1.data.shape, np.linalg.inv(visit.mni_to_t1)) >= 0.5

    class Found:
        def __init__(self, no_gpu):
            assert no_gpu

        def run(self, image):
            np.testing.assert_allclose(image.affine, visit.t1.affine, atol=1e-4)
            assert image.get_fdata().any(), "Not enough foreground to calculate bounding box"
            return None, nib.Nifti1Image(inside.astype(np.uint8), image.affine), 0.0

    monkeypatch.setitem(sys.modules, "deepbet", types.SimpleNamespace(BrainExtraction=Found))
    t1._deepbet.cache_clear()
    yield visit, inside
    t1._deepbet.cache_clear()


def test_the_t1_has_no_skull(head):
    visit, inside = head
    found = t1.brain_only(visit.t1, SETTINGS, "t1.nii.gz")
    np.testing.assert_array_equal(found.data, np.where(inside, visit.t1.data, 0))
    assert (visit.t1.data[~inside] > 100).any()
    plain = changed(SETTINGS, brain_mask="mni")
    assert t1.brain_only(visit.t1, plain, "t1.nii.gz") is visit.t1


def test_a_single_scan_is_preprocessed_like_the_cohort(head, tmp_path, monkeypatch):
    """What is registered is the T1 without its skull."""
    visit, inside = head
    path = save(tmp_path / "sub-1_T1w.nii.gz", visit.t1.data, visit.t1.affine)
    seen = []
    monkeypatch.setattr(registration, "register_affine", lambda scan, mm: seen.append(scan) or visit.mni_to_t1)
    monkeypatch.setattr(t1, "check_contrast", lambda *_: {})
    config = Config(profile="tiny", preprocess=SETTINGS)
    array, info = t1.preprocess_mri(path, config)
    np.testing.assert_allclose(seen[0].data, np.where(inside, visit.t1.data, 0), atol=1e-3)
    assert info["t1_correlation"] > 0.8
    assert array.max() == 1


def test_no_brain_and_no_package_are_named(head, monkeypatch):
    visit, _ = head
    empty = changed(visit.t1, data=np.zeros_like(visit.t1.data))
    with pytest.raises(VolumeError, match=r"t1\.nii\.gz: deepbet finds no brain"):
        t1.brain_only(empty, SETTINGS, "t1.nii.gz")
    monkeypatch.setitem(sys.modules, "deepbet", None)
    t1._deepbet.cache_clear()
    with pytest.raises(VolumeError, match=r"not installed; install it by `pip install 'resdm\[deepbet\]'`"):
        t1.brain_only(visit.t1, SETTINGS, "t1.nii.gz")


def test_digests_without_the_setting_are_those_from_before_it(tmp_path):
    """The default is written nowhere; deepbet is, and is read back."""
    assert "brain_mask" not in to_dict(PreprocessConfig())
    assert to_dict(SETTINGS)["brain_mask"] == "deepbet"
    profile = load_config("phantom")
    assert profile.digest("preprocess") == "6f5e98038d43be54"
    masked = changed(profile, preprocess={"brain_mask": "deepbet"})
    assert masked.digest("preprocess") != profile.digest("preprocess")
    (tmp_path / "mine.yaml").write_text("cohort: {kind: other}\npreprocess: {brain_mask: deepbet}\n")
    assert read_config(tmp_path / "mine.yaml").preprocess.brain_mask == "deepbet"
