"""The brain's box: what networks see of the grid, and that nothing is lost by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, tiny_resdm
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_methods import PlainConfig

from resdm.batch import Prior
from resdm.checkpoint import CheckpointError, check_model, load_card, save_model
from resdm.io import write_csv, write_json
from resdm.method import build_method
from resdm.settings import TrainingConfig, to_dict
from resdm_suite.anatomy import Box, Grid, brain_box, mni_map, working_box
from resdm_suite.apps.prediction import Model
from resdm_suite.apps.stages import _on_grid, validation_score
from resdm_suite.preprocessing.dataset import CohortDataset, augment
from resdm_suite.profiles import CohortConfig, Config, GridConfig, PreprocessConfig, load_config

GRID = GridConfig((32, 36, 32), 6.0)
PROFILES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def make_config(root: Path = Path(), crop: bool = True, **training) -> Config:
    """A 6 mm grid, of which the brain fills a half."""
    return Config(
        profile="tiny",
        cohort=CohortConfig(kind="other"),
        preprocess=PreprocessConfig(grid=GRID),
        training=TrainingConfig(crop=crop, **{"shift_voxels": 0, "accelerator": "cpu"} | training),
        methods={"ResDM": tiny_resdm(sampling_steps=2), "Plain": PlainConfig()},
        root=root,
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_the_box_of_every_profile_holds_the_brain_wherever_it_is_shifted(profile):
    config = load_config(profile)
    config = replace(config, training=replace(config.training, crop=True))
    grid, shift = Grid.of(config.preprocess.grid), config.training.shift_voxels
    brain = mni_map("brain", grid)
    for name, settings in config.methods.items():
        box = working_box(config, name)
        assert all(n % settings.multiple == 0 or n == m for n, m in zip(box.shape, grid.shape, strict=True))
        assert box.crop(brain).sum() == brain.sum()
        for axis in range(3):
            for by in (-shift, shift):
                # What the box loses of a shifted brain, the grid's own edge loses.
                whole = augment_by(brain, axis, by)
                assert box.crop(whole).sum() == whole.sum()


def augment_by(volume: np.ndarray, axis: int, by: int) -> np.ndarray:
    """A volume moved along an axis, zeros coming in."""
    out = np.zeros_like(volume)
    n = volume.shape[axis]
    to, come = [slice(None)] * 3, [slice(None)] * 3
    to[axis], come[axis] = slice(max(by, 0), n + min(by, 0)), slice(max(-by, 0), n + min(-by, 0))
    out[tuple(to)] = volume[tuple(come)]
    return out


def test_the_box_of_the_papers_grid():
    """98 × 120 × 104 of 128³ by the 1 mm mask; half-filled voxels at the sides count where half is brain."""
    box = brain_box(Grid((128, 128, 128), 1.5))
    assert box.shape == (96, 120, 104)
    assert np.prod(box.shape) / 128**3 == pytest.approx(0.571, abs=5e-4)
    margin = brain_box(Grid((128, 128, 128), 1.5), margin=2)
    assert margin.shape == (100, 124, 108)
    assert brain_box(Grid((128, 128, 128), 1.5), multiple=8).shape == (96, 120, 104)
    assert brain_box(Grid((24, 24, 24), 8.0), least=24).shape == (24, 24, 24)


def test_when_the_whole_grid_is_seen():
    config = make_config()
    assert working_box(config, "ResDM") == brain_box(Grid.of(GRID))
    whole = Box.whole(GRID.shape)
    assert working_box(make_config(crop=False), "ResDM") == whole
    assert working_box(replace(config, preprocess=replace(config.preprocess, mask=False)), "ResDM") == whole
    deep = load_config("phantom128")
    assert working_box(deep, "ResDM") == Box.whole((128, 128, 128))  # the default
    deep = replace(deep, training=replace(deep.training, crop=True))
    # Pix2Pix and SC-GAN would lose a level of the seven.
    assert working_box(deep, "Pix2Pix") == working_box(deep, "SC-GAN") == Box.whole((128, 128, 128))
    assert working_box(deep, "ResViT").shape == (96, 120, 104)


def test_padding_is_the_inverse_of_cropping():
    box = Box((6, 7, 8), (1, 0, 2), (5, 4, 8))
    volumes = np.random.default_rng(0).random((3, 6, 7, 8))
    again = box.pad(box.crop(volumes))
    inside = np.zeros((6, 7, 8), bool)
    inside[1:5, 0:4, 2:8] = True
    np.testing.assert_array_equal(again, volumes * inside)
    np.testing.assert_array_equal(box.crop(again), box.crop(volumes))
    with pytest.raises(ValueError, match=r"volumes of \(6, 7, 8\) voxels do not fill a box of \(4, 4, 6\)"):
        box.pad(volumes)


def test_coarser_maps_fill_the_box():
    box = Box((6, 6, 6), (1, 1, 1), (5, 5, 5))
    coarse = np.arange(1.0, 9.0).reshape(1, 2, 2, 2)
    padded = _on_grid(coarse, box)
    np.testing.assert_array_equal(box.crop(padded)[0], coarse[0].repeat(2, 0).repeat(2, 1).repeat(2, 2))
    assert padded.sum() == 8 * coarse.sum()
    assert _on_grid(coarse, Box.whole((6, 6, 6))) is coarse


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_a_box_is_cut_after_the_transform(shift):
    box = Box((9, 10, 11), (2, 0, 1), (8, 8, 11))
    volumes = np.random.default_rng(0).random((2, 9, 10, 11))
    for seed in range(30):
        whole, part = (augment(volumes, shift, True, np.random.default_rng(seed), b) for b in (None, box))
        np.testing.assert_array_equal(part, box.crop(whole))


def test_a_data_set_gives_the_box(tmp_path):
    config = make_config(tmp_path, shift_voxels=2, flip=True)
    volumes = (np.random.default_rng(0).random((3, 3, *GRID.shape)) * mni_map("brain", Grid.of(GRID))).astype(
        np.float16
    )
    config.volumes.mkdir(parents=True)
    np.save(config.volumes / "cohort.npy", volumes.astype(np.float16))
    columns = {"person": ["a", "b", "c"], "session": "1", "split": ["train", "train", "test"], "age": 70.0, "sex": "F"}
    write_csv(config.volumes / "index.csv", pd.DataFrame(columns | {"present_amyloid": 1, "present_tau": 1}))
    card = {"grid": to_dict(GRID), "settings": config.digest("preprocess"), "digest": ""}
    write_json(config.volumes / "cohort.json", card)
    box = working_box(config, "ResDM")
    assert np.prod(box.shape) < np.prod(GRID.shape)
    for augmented in (False, True):
        whole = CohortDataset(config, "train", augment=augmented)
        part = CohortDataset(config, "train", augment=augmented, box=box)
        for epoch in range(4):
            whole.set_epoch(epoch)
            part.set_epoch(epoch)
            seen, all_ = part[1]["volumes"].numpy(), whole[1]["volumes"].numpy()
            np.testing.assert_array_equal(seen, box.crop(all_))
            assert seen.sum(dtype=float) == pytest.approx(all_.sum(dtype=float), rel=1e-6)  # no brain is lost
            assert np.array_equal(part.mri(1), whole.mri(1))  # the whole T1


def test_predictions_keep_the_grid_and_are_zero_outside(tmp_path):
    config = make_config()
    box = working_box(config, "ResDM")
    torch.manual_seed(0)
    folder = save_model(tmp_path / "m", build_method(config.method("ResDM"), box.shape), config, "ResDM")
    model = Model.load(folder)
    brain = mni_map("brain", model.grid)
    mri = np.random.default_rng(1).random(GRID.shape, dtype=np.float32) * brain
    pet = model.synthesise(mri, 70.0, "F", seed=3)
    assert pet.shape == (2, *GRID.shape)
    assert model.box == box
    outside = np.ones(GRID.shape, bool)
    outside[box.slices] = False
    assert outside.any()
    assert not pet[:, outside].any()
    assert pet.any()
    cropped = torch.from_numpy(box.crop(mri).copy())[None, None]
    with torch.no_grad():
        expected = model.method.synthesise(
            cropped, Prior((70.0,), ("F",)), torch.Generator().manual_seed(3), steps=None
        )
    inside = box.crop(brain)
    np.testing.assert_array_equal(box.crop(pet)[:, inside], expected[0].numpy()[:, inside])
    assert expected[0].numpy()[:, ~inside].any()
    assert not pet[:, ~brain].any()


def test_without_a_mask_the_network_is_believed_everywhere(tmp_path):
    config = make_config(crop=False)
    config = replace(config, preprocess=replace(config.preprocess, mask=False))
    torch.manual_seed(0)
    model = Model.load(save_model(tmp_path, build_method(config.method("ResDM"), GRID.shape), config, "ResDM"))
    pet = model.synthesise(np.random.default_rng(1).random(GRID.shape, dtype=np.float32), 70.0, "F", seed=3)
    assert pet[:, ~mni_map("brain", model.grid)].any()
    assert model.sidecar("tau", None, None)["masked"] is False


def test_where_the_network_is_pointwise_the_box_changes_nothing(tmp_path):
    """1 × 1 × 1 convolutions without noise: the same values in the brain, and 0 around it."""
    volumes = {}
    for crop in (True, False):
        config = make_config(crop=crop)
        torch.manual_seed(0)
        method = build_method(config.method("Plain"), GRID.shape)
        method.net[0] = torch.nn.Conv3d(1, 2, 1)
        method.forward = lambda mri, prior, noise, net=method.net: net(mri)
        pet = Model(
            method.eval(), load_card(save_model(tmp_path / str(crop), method, config, "Plain")), torch.device("cpu")
        )
        mri = np.random.default_rng(1).random(GRID.shape, dtype=np.float32) * mni_map("brain", pet.grid)
        volumes[crop] = pet.synthesise(mri, None, None, seed=0)
    np.testing.assert_allclose(volumes[True], volumes[False], atol=1e-6)
    assert volumes[True].any()


def test_the_validation_score_is_of_the_grid():
    box = Box((20, 20, 20), (2, 3, 2), (18, 19, 18))
    rng = np.random.default_rng(0)
    real, synthetic = rng.random((2, *box.shape))
    assert validation_score(real, synthetic, box) == validation_score(box.pad(real), box.pad(synthetic))
    assert validation_score(real, synthetic, box) != validation_score(real, synthetic)
    mask = np.zeros(box.grid, bool)
    mask[4:16, 5:17, 4:16] = True
    masked = validation_score(real, synthetic, box, mask)
    assert (
        masked == validation_score(box.pad(real), box.pad(synthetic) * mask) != validation_score(real, synthetic, box)
    )


def test_a_model_remembers_its_box(tmp_path):
    config = make_config()
    torch.manual_seed(0)
    folder = save_model(tmp_path / "m", build_method(config.method("Plain"), GRID.shape), config, "Plain")
    assert load_card(folder).config.training.crop
    check_model(load_card(folder), config, "Plain")
    with pytest.raises(CheckpointError, match=r"training\.crop: True in the model, False in the profile"):
        check_model(load_card(folder), make_config(crop=False), "Plain")
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    tree["training"]["crop"] = False
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(CheckpointError, match=r"training\.crop: True in the weights, False in config\.yaml"):
        load_card(folder)


def test_a_model_of_before_the_box_keeps_the_whole_grid(tmp_path):
    config = make_config()
    folder = save_model(tmp_path / "m", build_method(config.method("Plain"), GRID.shape), config, "Plain")
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["resdm"])
    for key in ("training.crop", "training.shift_voxels"):
        del meta["settings"][key]
    save_file(load_file(path), path, metadata={"resdm": json.dumps(meta)})
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    del tree["training"]["crop"]
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    assert Model.load(folder).box == Box.whole(GRID.shape)


def test_stored_nifti_has_the_grid(tmp_path):
    config = make_config()
    box = working_box(config, "Plain")
    folder = save_model(tmp_path / "m", build_method(config.method("Plain"), box.shape), config, "Plain")
    model = Model.load(folder)
    pet = model.synthesise(np.zeros(GRID.shape, np.float32), None, None, seed=0)
    model.write(tmp_path / "a_pet.nii.gz", pet[0], model.sidecar("tau", None, None))
    image = nib.load(tmp_path / "a_pet.nii.gz")
    assert image.shape == GRID.shape
    np.testing.assert_array_equal(image.affine, Grid.of(GRID).affine)
