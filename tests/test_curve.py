"""Training people and quality: nested parts by person, equal steps, unchanged test people, and the comparison."""

from __future__ import annotations

import json
from dataclasses import replace

import ablation
import curve
import numpy as np
import pandas as pd
import pytest
import search
import trials
from conftest import tiny_regression, tiny_resdm
from sklearn.metrics import roc_auc_score
from stored_cohort import make_config, person, save, write_volumes

from resdm.baselines.linear import LinearConfig
from resdm.io import write_csv
from resdm.settings import TrainingConfig
from resdm_suite.evaluation.image_quality import read_index, read_scores
from resdm_suite.evaluation.statistics import interval
from resdm_suite.preprocessing.dataset import CohortDataset
from resdm_suite.profiles import CohortConfig, Config, check_name, load_config

SPLITS = ["train"] * 8 + ["validation"] * 2 + ["test"] * 6


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Config:
    """Eight training people, of whom the first has two sessions, and status of both classes."""
    training = TrainingConfig(epochs=2, batch_size=1, validate_every=1, accelerator="cpu", threads=1, shift_voxels=0)
    methods = {"ResDM": tiny_resdm(sampling_steps=1), "regression": tiny_regression()}
    methods["linear"] = LinearConfig(mri_components=(2,), pet_components=(2,), penalties=(1.0,))
    cohort = CohortConfig(kind="other")
    config = make_config(tmp_path_factory.mktemp("curve"), training=training, methods=methods, cohort=cohort)
    write_volumes(config, SPLITS)
    index = pd.read_csv(config.volumes / "index.csv")
    index.loc[1, ["person", "session"]] = ["sub-0000", "ses-M012"]
    status = {f"{tracer}_status": np.arange(len(index)) % 2 for tracer in ("amyloid", "tau")}
    write_csv(config.volumes / "index.csv", index.assign(t1w=index["amyloid"], **status))
    for tracer in ("amyloid", "tau"):
        save(config.volumes / f"template_{tracer}.nii.gz", person(0)[tracer])
    return config


def test_parts_are_nested_by_person_with_the_steps_of_everyone(source):
    everyone, parts = read_index(source, None), {}
    assert source.training.epochs * 8 == 16  # sessions of training people
    for seed in (0, 1):
        for size in (2, 4, 7):
            config = curve.derived(source, size, seed)
            check_name(config.profile, "")  # a stored model is read by it
            index = read_index(config, None)
            train = index[index["split"] == "train"]
            parts[size, seed] = set(train["person"])
            assert len(parts[size, seed]) == size
            assert not set(train["person"]) & set(everyone[everyone["split"] != "train"]["person"])
            for split in ("validation", "test"):
                pd.testing.assert_frame_equal(read_index(config, split), read_index(source, split))
            steps = config.training.epochs * len(train)
            assert abs(steps - 16) <= len(train) / 2
            data, whole = CohortDataset(config, "train"), CohortDataset(source, "train")
            for i, row in enumerate(data.index[["person", "session"]].to_numpy()):
                (place,) = np.flatnonzero((whole.index[["person", "session"]].to_numpy() == row).all(axis=1))
                assert (data[i]["volumes"] == whole[int(place)]["volumes"]).all()
        assert parts[2, seed] < parts[4, seed] < parts[7, seed]
    assert parts[4, 0] != parts[4, 1]
    assert curve.derived(source, 4, 0).methods["ResDM"].seed == 0
    own = source.methods | {"ResDM": replace(source.methods["ResDM"], batch_size=4)}  # 2 epochs of 2 steps, or 4 of 1
    assert curve.derived(replace(source, methods=own), 2, 2).training.epochs == 4
    cards = {(curve.derived(source, *key).volumes / "cohort.json").read_text() for key in parts}
    digests = {json.loads(card)["digest"] for card in cards}
    assert len(digests) == 5, "of everyone, both seeds have the same people"
    for size in (1, 8):
        with pytest.raises(ValueError, match=rf"index\.csv: 7 training people; --sizes {size} must be 2 to that many"):
            curve.derived(source, size, 0)


def test_trials_hold_out_each_training_person_once_and_see_no_test_person(source, monkeypatch, tmp_path):
    monkeypatch.setattr(search, "load_config", lambda name: source)
    monkeypatch.setattr(search, "tried", lambda: {"regression-0": source.methods["regression"]})
    monkeypatch.setattr(search, "run_jobs", lambda _, jobs, at_once: [search.main(words) for words in jobs.values()])
    everyone, held_out = read_index(source, None), []
    test_people = set(everyone[everyone["split"] == "test"]["person"])
    for fold in range(search.FOLDS):
        index = read_index(search.part(source, "regression-0", fold), None)
        held_out += set(index[index["split"] == "test"]["person"])
        assert not set(index["person"]) & test_people
        validation = index[index["split"] == "validation"]["person"].tolist()
        assert validation == read_index(source, "validation")["person"].tolist()
    assert sorted(held_out) == sorted(set(everyone[everyone["split"] == "train"]["person"]))

    path = tmp_path / "trials.csv"
    path.write_text(f"{','.join(trials.COLUMNS)}\n1,ResDM,0,,0,26.0,27.0,,,,,,CPU\n", encoding="utf-8")
    monkeypatch.setattr(trials, "PATH", path)
    search.main(["--folds", "1", "3"])
    search.main(["--folds", "3"])  # again
    table = trials.read_trials(path)
    assert table["trial"].tolist() == ["1", "regression-0", "regression-0"]
    assert table["fold"].tolist() == ["0", "1", "3"]
    config = search.part(source, "regression-0", 3)
    scores = read_scores(config, ["regression-0"]).query("region == 'brain' and tracer == 'tau'")
    assert table.loc[2, "psnr_tau"] == pytest.approx(scores["psnr"].mean(), abs=6e-4)


def test_the_competitors_have_the_best_of_equally_many_tracked_settings():
    tried, table = search.tried(), trials.summary(trials.read_trials()).set_index("trial")
    counts = pd.Series([name.rpartition("-")[0] for name in tried]).value_counts()
    assert counts.to_dict() == dict.fromkeys(("Pix2Pix", "SC-GAN", "DDPM", "TransUNet", "ResViT"), 8)
    phantom = load_config("phantom")
    most = table.loc[list(tried), "trainings"].groupby(table["method"]).transform("max")
    for method, part in table.loc[list(tried)][table.loc[list(tried), "trainings"] == most].groupby("method"):
        best = part[["psnr_amyloid", "psnr_tau"]].mean(axis=1).idxmax()
        assert search.in_words(phantom.method(method)) == search.in_words(tried[best]), method


def test_ablation_names_can_be_read_back(source, monkeypatch):
    monkeypatch.setattr(ablation, "load_config", lambda name: source)
    config = ablation.derived("tiny", None, [0])
    check_name(config.profile, "")
    assert config.volumes.resolve() == source.volumes.resolve()


def test_a_run_writes_its_results_and_a_second_one_trains_nothing(source, monkeypatch, tmp_path):
    monkeypatch.setattr(curve, "load_config", lambda name: source)
    monkeypatch.setattr(curve, "run_jobs", lambda _, jobs, at_once: [curve.main(words) for words in jobs.values()])
    arguments = ["--sizes", "5", "--seeds", "0", "--out", str(tmp_path)]
    curve.main(arguments)
    models = sorted((source.root / "work").glob("curve-*/models/*/model.safetensors"))
    assert len(models) == 6
    before = {path: path.stat().st_mtime_ns for path in models}
    table, first = pd.read_csv(tmp_path / "curve.csv"), (tmp_path / "curve.csv").read_bytes()
    curve.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in models} == before
    assert (tmp_path / "curve.csv").read_bytes() == first
    assert set(table["size"]) == {0, 5, 7}
    named = table[table["size"] > 0].groupby(["tracer", "metric", "size"])["method"].agg(tuple)
    assert set(named) == {curve.METHODS}
    stored = pd.read_csv(source.root / "work/curve-tiny-5-seed0/predictions/ResDM/factual/scores.csv")
    row = table.query("size == 5 and method == 'ResDM' and tracer == 'tau' and metric == 'psnr'").iloc[0]
    assert (row["n"], row["trainings"]) == (6, 1)
    assert row["value"] == pytest.approx(stored.query("region == 'brain' and tracer == 'tau'")["psnr"].mean(), rel=1e-5)
    assert (table.query("method == 'template' and metric == 'auc'")["value"] == 50).all()
    page = (tmp_path / "curve.md").read_text()
    assert "15 to 16 optimiser steps" in page or "16 to 16 optimiser steps" in page
    assert not any(b"sub-" in path.read_bytes() for path in tmp_path.iterdir())


def made_up(gains: dict[int, float], people: int = 40) -> pd.DataFrame:
    """Rows of `collect`: ResDM above linear by a gain in PSNR, and in the score of positives, at each size."""
    draw, frames = np.random.default_rng(0), []
    label, own = np.arange(people) % 2, draw.normal(25, 2, people)
    head = {"person": [f"sub-{i:02d}" for i in range(people)], "session": "ses-M000", "label": label}
    for size, gain in gains.items():
        for seed, by in ((0, 0.1), (1, -0.1)):
            noise = draw.normal(0, 0.5, people)
            for method, more in (("ResDM", gain + by), ("regression", 0.0), ("linear", 0.0)):
                for tracer in ("amyloid", "tau"):
                    values = {"psnr": own + more, "suvr": 1 + (0.5 + more) * label + noise}
                    where = {"size": size, "seed": seed, "method": method, "tracer": tracer}
                    frames.append(pd.DataFrame(head | values | where))
    return pd.concat(frames)


def test_values_gains_and_where_the_network_overtakes():
    sessions = made_up({25: -1.0, 50: 0.02, 100: 1.0})
    table = curve.compare(sessions, seed=0).set_index(["tracer", "metric", "size", "method"])
    for size, gain in ((25, -1.0), (50, 0.02), (100, 1.0)):
        row, part = table.loc["tau", "psnr", size, "ResDM"], sessions.query("size == @size and tracer == 'tau'")
        values = part.query("method == 'ResDM'").pivot_table("psnr", "seed", "person").to_numpy()
        assert (row["n"], row["trainings"]) == (40, 2)
        assert (row["value"], row["gain"]) == pytest.approx((values.mean(), gain))
        assert (row["low"], row["high"]) == pytest.approx(interval(values, seed=0), abs=0.02)  # other draws
        assert (row["gain_low"], row["gain_high"]) == pytest.approx((gain - 0.1, gain + 0.1))  # the same for everyone
        areas = [100 * roc_auc_score(one["label"], one["suvr"])
                 for _, one in part.query("method == 'ResDM'").groupby("seed")]  # fmt: skip
        assert table.loc[("tau", "auc", size, "ResDM"), "value"] == pytest.approx(np.mean(areas))
    assert table.xs("regression", level="method")["gain"].abs().max() == 0
    assert table.xs("linear", level="method")["gain"].isna().all()
    fewest = curve.fewest_people(table.reset_index()).set_index(["metric", "method"])
    assert fewest.loc[("psnr", "ResDM"), ["average", "interval"]].to_numpy().tolist() == [["50", "100"]] * 2
    assert set(fewest.xs("regression", level="method")[["average", "interval"]].to_numpy().ravel()) == {"none"}


def test_a_score_without_a_label_counts_for_the_psnr_alone():
    sessions = made_up({25: 0.0, 50: 0.5})
    sessions.loc[sessions["person"] == "sub-00", "label"] = np.nan
    counts = curve.compare(sessions, seed=0).groupby("metric")["n"].unique().map(list).to_dict()
    assert counts == {"psnr": [40], "auc": [39]}


def test_a_failed_job_is_named(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.exit('no space' if sys.argv[1] == 'b' else 0)\n")
    curve.run_jobs(script, {"first": ["a"]}, 1)
    with pytest.raises(RuntimeError, match="second: no space"):
        curve.run_jobs(script, {"first": ["a"], "second": ["b"]}, 2)
