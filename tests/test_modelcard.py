"""The card of a model: cohort and scores in aggregate, no person."""

from __future__ import annotations

import dataclasses
import re

import pandas as pd
import pytest
import yaml
from stored_cohort import make_cohort
from tiny_methods import PlainConfig, build, save_profile_model

from resdm.io import sha256, write_csv
from resdm_suite.apps.model_card import render, show, write_card
from resdm_suite.apps.model_folder import load_card
from resdm_suite.cohorts.leakage import LeakageError
from resdm_suite.evaluation.image_quality import read_index, score_people


@pytest.fixture
def config(tmp_path):
    config, _ = make_cohort(tmp_path, {"Plain": 0.5})
    config = dataclasses.replace(config, methods={"Plain": PlainConfig()})
    save_profile_model(config.model("Plain"), build(config, "Plain"), config, "Plain", step=12, epoch=3)
    return config


def head_of(text):
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_head_is_the_hubs(config):
    head, body = head_of(write_card(config, "Plain").read_text(encoding="utf-8"))
    assert head["license"] == "mit"
    assert (head["library_name"], head["pipeline_tag"]) == ("resdm", "image-to-image")
    assert {"pet", "synthetic", "phantom"} <= set(head["tags"])
    assert body.lstrip().startswith("# Plain: amyloid and tau PET from T1-weighted MRI")
    for heading in ("Training cohort", "Intended use", "Limits", "Metrics"):
        assert f"\n## {heading}\n" in body
    assert "Synthetic, not for clinical use; made by a phantom-trained model." in body


def test_the_cohort_in_aggregate_without_identifiers(config):
    text = write_card(config, "Plain").read_text(encoding="utf-8")
    index = read_index(config, "train")
    assert f"| people | {index['person'].nunique()} |" in text
    age = index.drop_duplicates("person")["age"]
    assert f"| age at first session (years) | {age.mean():.1f} ± {age.std():.1f} |" in text
    assert "| sex | 1 F, 1 M |" in text
    assert "| sessions with tau PET | 2 (2 18FAV1451) |" in text
    assert not re.search(r"sub-\d", text.replace("sub-01_T1w.nii.gz", ""))  # the one in the example of its use
    assert not re.search("ses-", text)
    assert str(config.root) not in text


def test_scores_are_added_and_weights_are_unchanged(config):
    path, weights = write_card(config, "Plain"), config.model("Plain") / "model.safetensors"
    before = sha256(weights)
    assert "not scored yet" in path.read_text()
    scores = score_people(config, "Plain")
    write_csv(config.predictions("Plain") / "scores.csv", scores)
    text = write_card(config, "Plain").read_text()
    one = scores.query("tracer == 'tau' and region == 'brain'").groupby("person")["psnr"].mean()
    assert f"| {one.mean():.2f} ± {one.std():.2f} |" in text
    assert f"n = {scores['person'].nunique()}." in text
    assert sha256(weights) == before == load_card(config.model("Plain")).digest
    assert before in text
    one = scores["person"] == scores["person"].iloc[0]
    trained = scores[one].assign(person="sub-0006", psnr=99.0)  # a training person
    write_csv(config.predictions("Plain") / "scores.csv", pd.concat([scores, trained]))
    with pytest.raises(LeakageError, match="sub-0006 in train"):
        write_card(config, "Plain")
    assert path.read_text() == text


def test_show_renders_a_missing_card_and_reports_a_foreign_one(config):
    card = load_card(config.model("Plain"))
    assert show(card.folder) == render(card)
    assert "Its people are not described here." in show(card.folder)
    path = write_card(config, "Plain")
    assert show(card.folder) == path.read_text()
    path.write_text(path.read_text().replace(card.digest, "0" * 64))
    assert show(card.folder).endswith(f"those beside it have SHA-256 `{card.digest}`.\n")


@pytest.mark.parametrize(("kind", "licence"), [("dlbs", "mit"), ("adni", "other"), ("other", "other")])
def test_licence_and_limits_follow_the_cohort(config, kind, licence):
    card = load_card(config.model("Plain"))
    own = dataclasses.replace(card.config, cohort=dataclasses.replace(card.config.cohort, kind=kind))
    head, body = head_of(render(dataclasses.replace(card, config=own)))
    assert head["license"] == licence
    assert ("license_name" in head) == (licence == "other")
    assert "phantom" not in head["tags"]
    assert "phantoms only" not in body
