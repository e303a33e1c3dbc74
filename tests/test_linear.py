"""The linear controls against scikit-learn and numpy, and as methods like any other."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_network, tiny_prior, tiny_resdm
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge
from stored_cohort import make_config, write_volumes

from resdm.baselines.linear import DemographicsConfig, LinearConfig
from resdm.baselines.linear_path import LinearPathConfig
from resdm.batch import TRACERS, Batch, Prior
from resdm.checkpoint import load_model
from resdm.io import sha256
from resdm.method import build_method
from resdm.settings import TrainingConfig
from resdm_suite.apps.model_folder import load_card
from resdm_suite.apps.synthesis import synthesise_method
from resdm_suite.apps.training import train_method
from resdm_suite.preprocessing.dataset import CohortDataset
from resdm_suite.preprocessing.dataset import collate as cohort_collate

SHAPE, TRAINED, VALIDATION = (5, 4, 3), 24, 10
INSIDE = np.arange(60).reshape(SHAPE) % 4 != 0  # the rest is 0, as outside a brain


class People(list):
    """Sessions whose PETs are linear in a few factors of the MRI, in age and sex, and the MRI of the same voxel."""

    def __init__(self, n: int, seed: int, *, own: float = 0.0, factors: float = 0.0) -> None:
        rng, planted = np.random.default_rng(seed), np.random.default_rng(99)
        age, sex = rng.uniform(60, 90, n), rng.integers(2, size=n)
        loadings, effects = planted.normal(size=(3, 60)), planted.normal(size=(2, 3, 60))
        latent = rng.normal(size=(n, 3))
        mri = 0.5 + 0.02 * latent @ loadings + 0.01 * rng.normal(size=(n, 60)) + 0.001 * (age - 75)[:, None]
        pet = [0.5 + 0.002 * (age - 75)[:, None] * np.sign(e[0]) + 0.02 * sex[:, None] * e[1] + own * (mri - 0.5)
               + factors * latent @ planted.normal(size=(3, 60)) for e in effects]  # fmt: skip
        volumes = np.stack([mri, *pet], 1).reshape(n, 3, *SHAPE) * INSIDE
        self.age, self.sex = age, sex
        super().__init__(
            {"volumes": torch.from_numpy(v.astype(np.float32)), "present": True, "age": a, "sex": "FM"[s]}
            for v, a, s in zip(volumes, age, sex, strict=True)
        )

    def flat(self, channel: int) -> np.ndarray:
        """(n, voxels inside)."""
        return np.stack([one["volumes"][channel].numpy()[INSIDE] for one in self]).astype(np.float64)

    def design(self) -> np.ndarray:
        return np.column_stack([self.age, self.sex])


def collate(items) -> Batch:
    volumes = torch.stack([item["volumes"] for item in items])
    present = torch.tensor([np.broadcast_to(item["present"], 2).tolist() for item in items])
    prior = Prior(tuple(item["age"] for item in items), tuple(item["sex"] for item in items))
    return Batch(volumes[:, :1], volumes[:, 1:], present, prior)


def fitted(config, train: People, validation: People | None):
    method = build_method(config, SHAPE)
    return method, pd.DataFrame(method.fit(train, validation, collate))


def synthesised(method, people: People) -> np.ndarray:
    """(n, 2, X, Y, Z)."""
    batch = collate(people)
    return method.synthesise(batch.mri, batch.prior, torch.Generator()).numpy()


def residuals(people: People, trained: People, channel: int) -> np.ndarray:
    fit = LinearRegression().fit(trained.design(), trained.flat(channel))
    return people.flat(channel) - fit.predict(people.design())


def test_demographics_is_least_squares_on_age_and_sex_in_nonzero_voxels():
    train, validation = People(TRAINED, 0, own=0.5), People(VALIDATION, 1, own=0.5)
    method, rows = fitted(DemographicsConfig(), train, validation)
    np.testing.assert_array_equal(method.voxels, INSIDE)
    made = synthesised(method, validation)
    assert not made[:, :, ~INSIDE].any()
    for channel in (1, 2):
        expected = LinearRegression().fit(train.design(), train.flat(channel)).predict(validation.design())
        np.testing.assert_allclose(made[:, channel - 1, INSIDE], expected, atol=1e-5)
        error = ((expected - validation.flat(channel)) ** 2).mean(1)
        assert rows["validation"][channel - 1] == pytest.approx((-10 * np.log10(error)).mean(), rel=1e-4)


def test_unknown_age_and_sex_are_the_training_mean():
    train = People(TRAINED, 0)
    method, _ = fitted(DemographicsConfig(), train, None)
    mri = torch.zeros(4, 1, *SHAPE)
    mean = float(np.mean(train.age))
    prior = Prior((None, float("nan"), mean, None), ("F", "F", "F", None))
    one, other, stated, nothing = method.synthesise(mri, prior, torch.Generator())
    assert torch.equal(one, other)
    torch.testing.assert_close(one, stated)
    np.testing.assert_allclose(nothing[0].numpy()[INSIDE], train.flat(1).mean(0), atol=1e-5)
    alone, _ = fitted(DemographicsConfig(fields=("age",)), train, None)
    assert torch.equal(*alone.synthesise(mri[:2], Prior((70.0, 70.0), ("F", "M")), torch.Generator()))


@pytest.mark.parametrize(("few", "kept", "penalty"), [(3, 2, 0.1), (5, 4, 3.0), (0, 0, 0.3)])
def test_components_are_scikit_learns_pca_and_ridge(few, kept, penalty):
    train, validation = People(TRAINED, 0, factors=0.02), People(VALIDATION, 1, factors=0.02)
    config = LinearConfig(mri_components=(few,), pet_components=(kept,), penalties=(penalty,))
    method, rows = fitted(config, train, validation)
    made, mri = synthesised(method, validation), residuals(train, train, 0)
    for channel, tracer in ((1, "amyloid"), (2, "tau")):
        chosen = rows[(rows["tracer"] == tracer) & (rows["fit"] == "components")].iloc[0]
        voxelwise = rows[(rows["tracer"] == tracer) & (rows["fit"] == "voxelwise")].iloc[0]
        assert chosen["validation"] > voxelwise["validation"]  # so that it is what was kept
        pet = residuals(train, train, channel)
        rank = TRAINED - 3  # of residuals of 1, age and sex
        inner, outer = PCA(few or rank).fit(mri), PCA(kept or rank).fit(pet)
        eigenvalues = np.linalg.eigvalsh(mri @ mri.T)[-rank:]
        ridge = Ridge(alpha=penalty * eigenvalues.mean(), fit_intercept=False)
        ridge.fit(inner.transform(mri), outer.transform(pet))
        expected = outer.inverse_transform(ridge.predict(inner.transform(residuals(validation, train, 0))))
        expected = expected + validation.flat(channel) - residuals(validation, train, channel)
        np.testing.assert_allclose(made[:, channel - 1, INSIDE], expected, atol=2e-4)
        error = ((expected - validation.flat(channel)) ** 2).mean(1)
        assert chosen["validation"] == pytest.approx((-10 * np.log10(error)).mean(), abs=0.02)


def test_voxelwise_is_least_squares_of_every_voxel_where_that_is_best():
    train, validation = People(TRAINED, 0, own=0.8), People(VALIDATION, 1, own=0.8)
    config = LinearConfig(mri_components=(2,), pet_components=(1,), penalties=(1e-6,))
    method, rows = fitted(config, train, validation)
    best = rows.loc[rows.groupby("tracer")["validation"].idxmax()]
    assert set(best["fit"]) == {"voxelwise"}
    made, voxels = synthesised(method, validation)[:, 0, INSIDE], range(0, INSIDE.sum(), 7)
    for voxel in voxels:
        design, seen = (np.column_stack([p.design(), p.flat(0)[:, voxel]]) for p in (train, validation))
        expected = LinearRegression().fit(design, train.flat(1)[:, voxel]).predict(seen)
        np.testing.assert_allclose(made[:, voxel], expected, atol=1e-4)


def test_the_best_combination_on_validation_people_is_kept():
    train, validation = People(TRAINED, 0, factors=0.02), People(VALIDATION, 1, factors=0.02)
    config = LinearConfig(mri_components=(1, 3, 0), pet_components=(1, 3), penalties=(0.01, 1.0))
    method, rows = fitted(config, train, validation)
    assert rows.groupby("tracer").size().to_dict() == {"amyloid": 14, "tau": 14}
    made = synthesised(method, validation)
    for channel, tracer in ((1, "amyloid"), (2, "tau")):
        error = ((made[:, channel - 1, INSIDE] - validation.flat(channel)) ** 2).mean(1)
        best = rows.loc[rows["tracer"] == tracer, "validation"].max()
        assert (-10 * np.log10(error)).mean() == pytest.approx(best, abs=1e-2)


def test_a_missing_tracer_has_no_effect():
    train, validation = People(TRAINED, 0, factors=0.02), People(VALIDATION, 1)
    few = People(TRAINED, 0, factors=0.02)
    for people, noise in ((train, 0.0), (few, 1.0)):
        people[3] |= {"present": (True, False), "volumes": people[3]["volumes"].clone()}
        people[3]["volumes"][2] = noise * torch.from_numpy(INSIDE)
    first, second = (fitted(LinearConfig(), people, validation)[0].state_dict() for people in (train, few))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("trained", "validation", "message"), [
    (2, VALIDATION, "2 training sessions have amyloid PET, expected more than 2; leave the method"),
    (TRAINED, 0, r"no validation session has amyloid PET.*cohort\.split\.validation"),
])  # fmt: skip
def test_too_few_sessions_are_refused(trained, validation, message):
    with pytest.raises(ValueError, match=message):
        fitted(LinearConfig(), People(trained, 0), People(validation, 1) if validation else None)


# ── as a method like any other ────────────────────────────────────────────────────────────────────


@pytest.fixture
def config(tmp_path):
    methods = {"linear": LinearConfig(), "demographics": DemographicsConfig()}
    training = TrainingConfig(accelerator="cpu", threads=1, shift_voxels=3)
    config = make_config(tmp_path, methods=methods, training=training)
    write_volumes(config, ["train"] * 6 + ["validation"] * 3 + ["test"] * 2, without_tau=(0, 6))
    return config


@pytest.mark.parametrize("name", ["linear", "demographics"])
def test_from_volumes_to_scores(config, name):
    folder = train_method(config, name, progress=False)
    digest = sha256(folder / "model.safetensors")
    method, card = load_model(folder), load_card(folder)
    history = pd.read_csv(folder / "history.csv")
    assert card.score == pytest.approx(history.groupby("tracer")["validation"].max().sum())
    assert json.loads((folder / "timing.json").read_text())["parameters"] == sum(b.numel() for b in method.buffers())
    (folder / "model.safetensors").unlink()
    train_method(config, name, progress=False)
    assert sha256(folder / "model.safetensors") == digest
    scores = pd.read_csv(synthesise_method(config, name, progress=False) / "scores.csv")
    assert len(scores) == 2 * 2 * 2
    assert np.isfinite(scores[["mae", "psnr", "ssim"]]).all(axis=None)


def test_images_are_not_augmented(config):
    """A closed form passes once over the stored images."""
    still = dataclasses.replace(config, training=dataclasses.replace(config.training, shift_voxels=0), profile="still")
    still.volumes.parent.mkdir(parents=True)
    still.volumes.symlink_to(config.volumes)
    moved, unmoved = (load_model(train_method(c, "linear", progress=False)).state_dict() for c in (config, still))
    assert all(torch.equal(moved[name], unmoved[name]) for name in moved)


def test_the_linear_path_alone_is_the_start_of_resdm(tmp_path):
    """The same map as the path in ResDM's model folder, clipped; no network is stored."""
    resdm = tiny_resdm(network=tiny_network(linear_path=True), prior=tiny_prior(dropout=0.1))
    methods = {"ResDM": resdm, "alone": LinearPathConfig(prior=resdm.prior)}
    training = TrainingConfig(accelerator="cpu", threads=1, shift_voxels=0, epochs=1, batch_size=4)
    config = make_config(tmp_path, methods=methods, training=training)
    write_volumes(config, ["train"] * 12 + ["validation"] * 3 + ["test"] * 2, without_tau=(0, 12))
    whole, alone = (load_model(train_method(config, name, progress=False)) for name in methods)
    assert not [name for name in alone.state_dict() if name.startswith("unet.")]
    for name, buffer in whole.linear.state_dict().items():
        assert torch.equal(buffer, alone.linear.state_dict()[name]), name
    data = CohortDataset(config, "validation")
    errors = {}
    for one in (cohort_collate([data[i]]) for i in range(3)):
        pet = alone.synthesise(one.mri, one.prior, torch.Generator())
        assert torch.equal(pet, whole.estimate(one.mri, one.prior).clamp(0, 1))
        error = (alone.estimate(one.mri, one.prior) - one.pet)[0][:, alone.linear.voxels].double()
        for channel, tracer in enumerate(TRACERS):
            if one.present[0, channel]:
                errors.setdefault(tracer, []).append(-10 * np.log10(float(error[channel].square().mean())))
    history = pd.read_csv(config.model("alone") / "history.csv").set_index("tracer")["validation"]
    assert {tracer: len(values) for tracer, values in errors.items()} == {"amyloid": 3, "tau": 2}
    assert history.to_dict() == pytest.approx({tracer: np.mean(values) for tracer, values in errors.items()}, rel=1e-5)
    scores = pd.read_csv(synthesise_method(config, "alone", progress=False) / "scores.csv")
    assert np.isfinite(scores[["mae", "psnr", "ssim"]]).all(axis=None)
