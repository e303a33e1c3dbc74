"""Stages tied together, from a preprocessed cohort on disk to scores."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_resdm
from stored_cohort import GRID, LABELS, make_config, person, write_volumes
from tiny_methods import AdversarialConfig, PlainConfig, with_method

from resdm.checkpoint import CheckpointError
from resdm.io import sha256, write_json
from resdm.settings import TrainingConfig
from resdm_suite.apps.model_folder import load_card
from resdm_suite.apps.synthesis import synthesise_method
from resdm_suite.apps.training import train_method, validation_score
from resdm_suite.evaluation.image_quality import psnr, score_people, ssim
from resdm_suite.paths import synthetic_path

SPLITS = ["train"] * 4 + ["validation"] * 2 + ["test"] * 3


@pytest.fixture
def config(tmp_path):
    """A profile with a preprocessed cohort on disk."""
    training = TrainingConfig(epochs=2, batch_size=2, validate_every=1, accelerator="cpu", threads=1, shift_voxels=1)
    methods = {"Plain": PlainConfig(), "GAN": AdversarialConfig(), "ResDM": tiny_resdm(sampling_steps=2)}
    config = make_config(tmp_path, training=training, methods=methods)
    write_volumes(config, SPLITS, without_tau=(0, 6))
    return config


def test_from_volumes_to_scores(config):
    folder = train_method(config, "Plain", progress=False)
    assert folder == config.model("Plain")
    assert not (folder / "state.pt").exists()
    record = json.loads((folder / "provenance.json").read_text())
    assert (record["method"], record["config"]) == ("Plain", config.digest())
    assert record["inputs"] == {"work/tiny/volumes/index.csv": sha256(config.volumes / "index.csv")}
    out = synthesise_method(config, "Plain", progress=False)
    assert out == config.predictions("Plain")
    scores = pd.read_csv(out / "scores.csv")
    assert len(scores) == (3 * 2 - 1) * 2  # three people, one without tau, two regions
    recomputed = score_people(config, "Plain")
    pd.testing.assert_frame_equal(scores, recomputed, rtol=1e-6)
    for i in (6, 7, 8):
        assert synthetic_path(out, f"sub-{i:04d}", "ses-M000", LABELS["tau"]).is_file()  # also where no real one is
    assert not (out / "trace.npz").exists()


def test_conditions_have_separate_folders_and_the_trace_has_the_factual_prompt(config):
    train_method(config, "ResDM", progress=False)
    factual = synthesise_method(config, "ResDM", progress=False)
    before = (factual / "scores.csv").read_bytes()
    validation = synthesise_method(config, "ResDM", split="validation", progress=False)
    assert validation == factual.with_name("factual_validation")
    people = [set(pd.read_csv(out / "scores.csv")["person"]) for out in (factual, validation)]
    assert people[0].isdisjoint(people[1])
    assert (factual / "scores.csv").read_bytes() == before
    tracer_only = synthesise_method(config, "ResDM", "tracer_only", progress=False)
    assert tracer_only == config.predictions("ResDM", "tracer_only")
    sidecars = [json.loads(next(folder.rglob("sub-0007*.json")).read_text()) for folder in (factual, tracer_only)]
    assert [one["prompt"] for one in sidecars] == [{"age": 67.0, "sex": "M"}, {"age": None, "sex": None}]
    assert [one["steps"] for one in sidecars] == [2, 2]
    with np.load(factual / "trace.npz") as trace:
        assert trace["mri"].shape == GRID.shape
        np.testing.assert_array_equal(trace["mri"], np.load(config.volumes / "cohort.npy")[7, 0])  # 6 has no tau
        assert "67.0-year-old male" in str(trace["prompts"][0])
    assert not (tracer_only / "trace.npz").exists()


def test_best_weights_are_chosen_as_the_released_code_does(config):
    volumes = person(0), person(1)
    expected = psnr(volumes[0]["tau"], volumes[1]["tau"]) + 10 * ssim(volumes[0]["tau"], volumes[1]["tau"])[0]
    assert validation_score(volumes[0]["tau"], volumes[1]["tau"]) == expected
    history = pd.read_csv(train_method(config, "Plain", progress=False) / "history.csv")
    card = load_card(config.model("Plain"))
    assert card.score == pytest.approx(history["validation"].max())
    assert history["validation"].max() == pytest.approx(history.filter(regex="validation_").sum(axis=1).max())


def test_a_model_of_another_configuration_is_not_used(config):
    train_method(config, "Plain", progress=False)
    with pytest.raises(CheckpointError, match=r"methods\.Plain\.width: 2 in the model, 4 in the profile"):
        synthesise_method(with_method(config, "Plain", width=4), "Plain", progress=False)
    with pytest.raises(CheckpointError, match="GAN: no such model folder; train the method first"):
        synthesise_method(config, "GAN", progress=False)


def test_other_volumes_are_other_data(config):
    train_method(config, "Plain", progress=False)
    card = json.loads((config.volumes / "cohort.json").read_text())
    write_json(config.volumes / "cohort.json", card | {"digest": "def"})
    with pytest.raises(CheckpointError, match=r"data\.digest: abc in the model, def now"):
        train_method(config, "Plain", progress=False)
