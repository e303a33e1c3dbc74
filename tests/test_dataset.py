"""The cohort as a torch data set: what an item holds, one augmentation for all volumes, and what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import changed
from torch.utils.data import DataLoader

from resdm.io import write_csv, write_json
from resdm.settings import TrainingConfig, to_dict
from resdm_suite.preprocessing.dataset import CohortDataset, CohortError, augment, collate
from resdm_suite.profiles import CohortConfig, Config, GridConfig, PreprocessConfig

SHAPE = (16, 18, 20)
SPLIT = ["train", "test", "train", "validation", "train", "train", "test"]


@pytest.fixture
def config(tmp_path):
    """Seven sessions whose amyloid is the T1 and whose tau is the T1 halved; session 2 has no tau."""
    config = Config(
        profile="tiny", cohort=CohortConfig(kind="other"), preprocess=PreprocessConfig(grid=GridConfig(SHAPE, 8.0)),
        training=TrainingConfig(shift_voxels=2, flip=True), root=tmp_path,
    )  # fmt: skip
    people = len(SPLIT)
    t1 = np.zeros((people, *SHAPE))
    t1[:, 3:-3, 3:-3, 3:-3] = np.random.default_rng(0).uniform(0.2, 1, (people, 10, 12, 14))
    volumes = np.stack([t1, t1, t1 / 2], axis=1).astype(np.float16)
    volumes[2, 2] = 0
    index = pd.DataFrame({"person": [f"sub-{i}" for i in range(people)], "session": "ses-1", "split": SPLIT})
    index = index.assign(age=60.5 + index.index, sex=list("FMFMFMF"), present_amyloid=1, present_tau=1)
    index.loc[2, "present_tau"] = 0
    write_csv(config.volumes / "index.csv", index)
    np.save(config.volumes / "cohort.npy", volumes)
    card = {"grid": to_dict(config.preprocess.grid), "settings": config.digest("preprocess"), "digest": ""}
    write_json(config.volumes / "cohort.json", card)
    return config


def stored(config):
    return np.load(config.volumes / "cohort.npy").astype(np.float32)


def test_a_split_follows_the_index(config):
    data = CohortDataset(config, "train")
    assert len(data) == 4
    assert data.index["person"].tolist() == ["sub-0", "sub-2", "sub-4", "sub-5"]
    for i, row in enumerate((0, 2, 4, 5)):
        item = data[i]
        np.testing.assert_array_equal(item["volumes"].numpy(), stored(config)[row])
        np.testing.assert_array_equal(data.mri(i), stored(config)[row, 0])
        assert (item["age"], item["sex"]) == (60.5 + row, "FMFMFMF"[row])
        assert item["present"].tolist() == [True, row != 2]
    with pytest.raises(IndexError):
        data[4]


def test_collate_makes_a_batch(config):
    data = CohortDataset(config, "train")
    batch = collate([data[1], data[3]])
    assert batch.mri.shape == (2, 1, *SHAPE)
    assert batch.pet.shape == (2, 2, *SHAPE)
    assert batch.mri.dtype == batch.pet.dtype == torch.float32
    assert batch.present.tolist() == [[True, False], [True, True]]
    assert (batch.prior.age, batch.prior.sex) == ((62.5, 65.5), ("F", "M"))
    assert not batch.pet[0, 1].any()


def test_augmentation_moves_all_volumes_together(config):
    """Amyloid stays the T1 and tau half of it, under any transform; most items move."""
    data, plain = CohortDataset(config, "train", augment=True), CohortDataset(config, "train")
    moved = 0
    for epoch in range(6):
        data.set_epoch(epoch)
        for i in range(len(data)):
            t1, amyloid, tau = data[i]["volumes"]
            assert torch.equal(t1, amyloid)
            if data.index["present_tau"][i]:
                torch.testing.assert_close(tau, t1 / 2, atol=1e-3, rtol=0)
            else:
                assert not tau.any()
            moved += not torch.equal(t1, plain[i]["volumes"][0])
            assert np.array_equal(data.mri(i), plain.mri(i))
    assert moved >= 20


def test_an_augmentation_is_a_shift_with_zeros_and_a_flip():
    """All 27 shifts by up to a voxel occur, mirrored and not, and nothing else."""
    volumes = np.zeros((2, 9, 9, 9), np.float32)
    volumes[:, 3, 4, 5] = 1, 2
    seen = set()
    for seed in range(800):
        moved = augment(volumes, 1, True, np.random.default_rng(seed))
        assert moved.sum() == 3
        places = [tuple(int(i) for i in np.argwhere(channel)[0]) for channel in moved]
        assert places[0] == places[1]
        seen.add(places[0])
    mirrored = 9 - 1 - 3
    near = {(x + i, 4 + j, 5 + k) for x in (3, mirrored) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)}
    assert seen == near
    edge = np.ones((1, 5, 5, 5), np.float32)
    for seed in range(20):
        moved = augment(edge, 2, False, np.random.default_rng(seed))
        by = np.random.default_rng(seed).integers(-2, 2, 3, endpoint=True)
        assert moved.sum() == np.prod(5 - np.abs(by))  # the new rim is 0
    assert edge.all()
    np.testing.assert_array_equal(augment(volumes, 0, False, np.random.default_rng(1)), volumes)


def test_items_depend_on_seed_epoch_and_index(config):
    def epoch(data, number):
        data.set_epoch(number)
        return torch.stack([data[i]["volumes"] for i in range(len(data))])

    data, other = (CohortDataset(config, "train", augment=True) for _ in range(2))
    second = epoch(data, 1)
    assert not torch.equal(epoch(data, 0), second)
    assert torch.equal(epoch(other, 1), second)  # independent of earlier requests
    assert torch.equal(torch.stack([other[i]["volumes"] for i in reversed(range(4))]), second.flip(0))
    reseeded = CohortDataset(changed(config, seed=1), "train", augment=True)
    assert not torch.equal(epoch(reseeded, 1), second)


def test_workers_and_one_process_agree(config):
    data = CohortDataset(config, "train", augment=True)
    data.set_epoch(3)
    assert len(pickle.dumps(data)) < 20_000  # the memory map does not travel
    alone = collate([data[i] for i in range(4)])
    (parallel,) = DataLoader(data, batch_size=4, collate_fn=collate, num_workers=1)
    assert torch.equal(alone.mri, parallel.mri)
    assert torch.equal(alone.pet, parallel.pet)
    assert alone.prior == parallel.prior


@pytest.mark.parametrize(("changes", "messages"), [
    ({"grid": GridConfig((16, 18, 24), 8.0)}, ["volumes of unequal grid", "[16, 18, 24]", "run `resdm preprocess`"]),
    ({"grid": GridConfig(SHAPE, 7.0)}, ["volumes of unequal grid", "of 7 mm", "run `resdm preprocess`"]),
    ({"mask": False}, ["made under other settings"]),
    ({}, ["holds 5 sessions of 3 volumes, index.csv has 7"]),
])  # fmt: skip
def test_volumes_of_other_settings_or_of_another_index_are_refused(config, changes, messages):
    np.save(config.volumes / "cohort.npy", stored(config)[:5].astype(np.float16))
    with pytest.raises(CohortError) as error:
        CohortDataset(changed(config, preprocess=changes), "train")
    assert all(message in str(error.value) for message in messages)


def test_missing_parts_are_named(config):
    with pytest.raises(ValueError, match="no split 'dev'"):
        CohortDataset(config, "dev")
    index = config.volumes / "index.csv"
    write_csv(index, pd.read_csv(index).assign(split="train"))
    with pytest.raises(CohortError, match="no session in split 'test'"):
        CohortDataset(config, "test")
    (config.volumes / "cohort.npy").unlink()
    with pytest.raises(CohortError, match=r"cohort\.npy: not there; run `resdm preprocess`"):
        CohortDataset(config, "train")
