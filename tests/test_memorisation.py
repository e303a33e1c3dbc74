"""Memorised training people are found before a model is shared."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_network, tiny_regression
from sklearn.metrics import roc_auc_score
from stored_cohort import make_config, write_volumes
from tiny_methods import PlainConfig, build, save_profile_model

from resdm.checkpoint import CheckpointError
from resdm.io import sha256, write_json
from resdm.settings import TrainingConfig
from resdm_suite.apps import cli
from resdm_suite.apps.hub import check_memorisation
from resdm_suite.apps.memorisation import audit_method
from resdm_suite.apps.model_card import render
from resdm_suite.apps.model_folder import load_card
from resdm_suite.apps.training import train_method
from resdm_suite.evaluation.memorisation import LIMIT, memorisation
from resdm_suite.paths import MEMORISATION


def audited(rng, members, others, advantage):
    """People whose error is a standard normal, lower by an advantage for training people."""
    member = np.repeat([True, False], [members, others])
    frame = pd.DataFrame({"person": [f"sub-{i}" for i in range(len(member))], "member": member})
    frame["error"] = 5 + rng.normal(size=len(member)) - advantage * member
    return frame.assign(nearest=np.where(member, 1.0, 2.0), own=member.astype(float))


@pytest.mark.parametrize(("advantage", "refused"), [(0.0, False), (1.0, False), (2.5, True)])
def test_membership_by_the_error(advantage, refused):
    frame = audited(np.random.default_rng(0), 100, 90, advantage)
    found = memorisation(frame, seed=0)
    assert found["auc"] == pytest.approx(roc_auc_score(frame["member"], -frame["error"]))
    assert found["auc_low"] < found["auc"] < found["auc_high"]
    assert (found["auc_low"] > LIMIT) == refused
    assert (found["training"], found["other"], found["nearest_training"], found["own_other"]) == (100, 90, 1.0, 0.0)


def cohort(root, training, epochs, linear_path):
    """A profile of one small network; what the PETs of a person have above the mean does not follow from the T1."""
    network = tiny_network(stem="haar", linear_path=linear_path)
    config = make_config(root, methods={"regression": tiny_regression(network=network, learning_rate=1e-3, ema=0.0)})
    run = {"accelerator": "cpu", "threads": 1, "batch_size": 10, "shift_voxels": 0, "validate_every": epochs}
    config = dataclasses.replace(config, training=TrainingConfig(epochs=epochs, **run))
    write_volumes(config, ["train"] * training + ["validation"] * 5 + ["test"] * 15)
    return config


@pytest.mark.parametrize(("people", "epochs", "caught"), [(10, 200, True), (25, 1, False)])
def test_ten_people_trained_for_two_hundred_epochs_are_caught(tmp_path, capsys, people, epochs, caught):
    config = cohort(tmp_path, people, epochs, linear_path=caught)
    folder = train_method(config, "regression", progress=False)
    path = audit_method(config, "regression", progress=False)
    found = json.loads(path.read_text())
    assert path == folder / MEMORISATION
    assert (found["training"], found["other"]) == (people, 20)
    assert (found["auc_low"] > LIMIT) == caught
    assert found["error_training"] < found["error_other"] or not caught
    assert (found["own_training"] > found["own_other"] + 0.3) == caught
    assert f"AUC {found['auc']:.2f} [{found['auc_low']:.2f}" in (folder / "README.md").read_text()
    assert "sub-0" not in path.read_text()
    assert cli.main(["model", "push", str(folder), "lab/none"]) == 2  # no Hub here
    error = capsys.readouterr().err
    assert ("its training people can be identified by the error of their synthetic PET: AUC" in error) == caught
    assert "--accept-memorisation" in error or not caught


def test_a_model_of_real_people_needs_an_audit_of_its_weights(tmp_path):
    config = make_config(tmp_path, methods={"Plain": PlainConfig()})
    for kind in ("other", "phantom"):
        config = dataclasses.replace(config, cohort=dataclasses.replace(config.cohort, kind=kind))
        card = load_card(save_profile_model(tmp_path / kind, build(config, "Plain"), config, "Plain"))
        assert "Not measured: `resdm audit tiny Plain`." in render(card)
        if kind == "other":
            with pytest.raises(CheckpointError, match="measure it by `resdm audit`, or use --accept-memorisation"):
                check_memorisation(card)
        else:
            check_memorisation(card)
        found = {"auc": 0.9, "auc_low": 0.85, "auc_high": 0.95} | {"model": sha256(card.folder / "model.safetensors")}
        write_json(card.folder / MEMORISATION, found)
        with pytest.raises(CheckpointError, match=r"AUC 0\.90 \[0\.85, 0\.95\], lower end above 0\.8"):
            check_memorisation(card)
        write_json(card.folder / MEMORISATION, found | {"model": "other weights"})
        assert "Not measured" in render(card)
