"""Intervals of one person: predictors on errors of known size, what is stored, and what a person is told."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from stored_cohort import make_config, write_volumes

from resdm.io import write_csv
from resdm_suite.evaluation import intervals
from resdm_suite.evaluation.intervals import PREDICTORS, compare_intervals, stated_status, write_calibration
from resdm_suite.paths import CALIBRATION
from resdm_suite.records import RecordError
from resdm_suite.reporting.tables import Table
from resdm_suite.reporting.trust import audit_table, interval_table, refusal_table
from resdm_suite.reporting.uncertainty import with_intervals

PEOPLE, REGIONS = 300, 6


def simulate(kind, seed):
    """Errors (N, R), features (N, 3) and spread (N, R), with a part of the error that one predictor can know."""
    rng = np.random.default_rng(seed)
    features, spread = rng.normal(size=(PEOPLE, 3)), rng.uniform(0.02, 0.3, (PEOPLE, REGIONS))
    size = {"person_scale": 0.1 * np.exp(0.8 * features[:, :1]), "ensemble": spread}.get(kind, 0.1)
    shift = 0.2 * features[:, :1] if kind == "person_shift" else 0
    return shift + size * rng.normal(size=(PEOPLE, REGIONS)), features, spread


@pytest.mark.parametrize("kind", PREDICTORS)
def test_the_predictor_that_knows_the_error_has_the_best_score_at_nominal_coverage(kind):
    scores = {}
    person, (new, *known) = [f"sub-{i}" for i in range(PEOPLE)], simulate(kind, 1)
    for name in PREDICTORS:
        centre, half = intervals.intervals(name, *simulate(kind, 0), person)(*known)
        assert np.mean(np.abs(new - centre) <= half) == pytest.approx(intervals.LEVEL, abs=0.04)
        scores[name] = intervals.interval_score(new, centre, half).mean()
    assert scores[kind] <= 1.02 * min(scores.values())
    if kind != "map":
        assert scores[kind] < 0.95 * scores["map"]


def test_few_people_get_intervals_that_hold():
    """30 validation people: coverage of further people over many draws."""
    rng, inside = np.random.default_rng(0), {name: [] for name in PREDICTORS}
    for _ in range(20):
        residual, features, spread = (rng.normal(size=(60, n)) for n in (5, 4, 5))
        spread = np.abs(spread)
        for name in PREDICTORS:
            state = intervals.intervals(name, residual[:30], features[:30], spread[:30], range(30))
            centre, half = state(features[30:], spread[30:])
            inside[name].append(np.mean(np.abs(residual[30:] - centre) <= half))
    assert all(0.87 < np.mean(shares) < 0.94 for shares in inside.values()), inside


def test_the_interval_score_charges_width_and_misses():
    score = intervals.interval_score(np.array([0.0, 0.3]), np.zeros(2), np.full(2, 0.2))
    np.testing.assert_allclose(score, [0.4, 0.4 + 20 * 0.1])


def test_status_is_undetermined_where_the_interval_spans_the_cutoff():
    found = [intervals.status(*ends, 1.11) for ends in ((1.12, 1.4), (0.8, 1.10), (1.0, 1.2), (1.11, 1.2), (0.9, 1.11))]
    assert found == ["positive", "negative", "undetermined", "positive", "undetermined"]


# ── stored ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def config(tmp_path):
    """Regional SUVRs of made-up people by a method with a known error, and by two more of its trainings."""
    config = make_config(tmp_path)
    method = config.methods["ResDM"]
    repeats = {name: dataclasses.replace(method, seed=int(name[-1])) for name in ("ResDM@seed1", "ResDM@seed2")}
    config, rng = dataclasses.replace(config, methods={"ResDM": method} | repeats), np.random.default_rng(0)
    splits = ["train"] * 12 + ["validation"] * 30 + ["test"] * 30
    write_volumes(config, splits)
    truth = rng.normal(1.2, 0.1, len(splits))
    for name in config.methods:
        rows = [
            {"person": f"sub-{i:04d}", "session": "ses-M000", "split": split, "tracer": tracer, "region": region}
            | {"mean": truth[i] + size * rng.normal(), "std": 0.001, "real": truth[i]}
            for i, split in enumerate(splits) if split != "train"
            for tracer in ("amyloid", "tau") for region, size in (("summary", 0.1), ("occipital", 0.02))
        ]  # fmt: skip
        write_csv(config.predictions(name, "samples") / "regional.csv", pd.DataFrame(rows))
    return config


def test_predictors_are_compared_on_stored_samples(config):
    table = compare_intervals(config, "ResDM")
    assert len(table) == 2 * 2 * len(PREDICTORS)
    rows = table.set_index(["unit", "predictor"]).loc[("summary", "map")]
    np.testing.assert_allclose(rows["width"], 2 * 1.645 * 0.1, rtol=0.35)
    assert (table.loc[table["predictor"] == "map", "gain"] == 0).all()
    assert table["coverage"].between(0.75, 1).all()
    assert (table["gain_low"] <= table["gain"]).all()
    alone = dataclasses.replace(config, methods={"ResDM": config.methods["ResDM"]})
    assert "ensemble" not in set(compare_intervals(alone, "ResDM")["predictor"])
    page = with_intervals(Table("uncertainty", "Title", "", pd.DataFrame({"n": pd.array([], "Int64")}), (), ()), table)
    text = page.markdown()
    assert f"| map | {100 * table.loc[0, 'coverage']:.0f} [" in text
    assert "| centre by person |" in text
    better = table.query("unit == 'regions' and tracer == 'tau' and gain_low > 0")
    assert ("tau-PET: none" in page.notes[0]) == better.empty
    assert page.frame.query("measure == 'width_90' and unit == 'person, summary'")["value"].gt(0).all()


def test_the_calibration_is_of_these_weights_and_this_many_people(config, tmp_path):
    path = write_calibration(config, "ResDM", "abc", tmp_path)
    known = intervals.read_calibration(tmp_path, "abc")
    assert known["tau"]["people"] == 30
    assert known["tau"]["half_width"]["summary"] == pytest.approx(0.1645, rel=0.35)
    assert known["tau"]["half_width"]["occipital"] < 0.3 * known["tau"]["half_width"]["summary"]
    assert intervals.read_calibration(tmp_path, "other weights") == {}
    assert intervals.read_calibration(tmp_path / "nowhere", "abc") == {}
    path.write_text("[")
    with pytest.raises(RecordError, match=rf"{CALIBRATION}: damaged"):
        intervals.read_calibration(tmp_path, "abc")


def test_too_few_people_give_no_calibration(config, tmp_path):
    samples = config.predictions("ResDM", "samples") / "regional.csv"
    frame = pd.read_csv(samples)
    few = [f"sub-{i:04d}" for i in range(12, 12 + intervals.MIN_PEOPLE - 1)]
    write_csv(samples, frame[frame["person"].isin(few) | (frame["split"] == "test") | (frame["tracer"] == "tau")])
    assert list(json.loads(write_calibration(config, "ResDM", "abc", tmp_path).read_text())["tracers"]) == ["tau"]
    assert set(compare_intervals(config, "ResDM")["tracer"]) == {"tau"}


def test_a_tracer_that_no_test_person_has_is_left_out(config, tmp_path):
    samples = config.predictions("ResDM", "samples") / "regional.csv"
    write_csv(samples, pd.read_csv(samples).query("split != 'test' or tracer != 'tau'"))
    index = pd.read_csv(config.volumes / "index.csv")
    write_csv(config.volumes / "index.csv", index.assign(age=70.0))
    assert set(compare_intervals(config, "ResDM")["tracer"]) == {"amyloid"}
    write_calibration(config, "ResDM", "abc", tmp_path)
    assert set(stated_status(config, "ResDM", intervals.read_calibration(tmp_path, "abc"))["tracer"]) == {"amyloid"}


def test_what_the_intervals_of_test_people_state(config):
    """Half-widths of 0 state everyone, of 9 nobody; an error beyond the cut-off is not right."""
    index = pd.read_csv(config.volumes / "index.csv")
    write_csv(config.volumes / "index.csv", index.assign(age=70.0))
    samples = pd.read_csv(config.predictions("ResDM", "samples") / "regional.csv")
    samples = samples.query("split == 'test' and tracer == 'tau' and region == 'summary'").set_index("person")
    cutoff = config.cohort.tau_cutoff
    for half, undetermined in ((0.0, 0), (9.0, 30)):
        people = stated_status(config, "ResDM", {"tau": {"half_width": {"summary": half}}})
        assert len(people) == 30
        assert (people["stated"] == "undetermined").sum() == undetermined
        assert people["inside"].sum() == undetermined
    sharp = stated_status(config, "ResDM", {"tau": {"half_width": {"summary": 0.0}}}).set_index("person")
    same = (samples["mean"] >= cutoff) == (samples["real"] >= cutoff)
    pd.testing.assert_series_equal(sharp["right"].astype(bool), same[sharp.index], check_names=False)
    assert 0 < sharp["right"].sum() < 30
    assert stated_status(config, "ResDM", {}).empty


def test_tables_of_trust_without_a_check_a_calibration_and_an_audit(config):
    refused = pd.DataFrame(columns=["fault", "share", "low", "high", "n", "auroc", "worst"])
    shares = pd.DataFrame(columns=["tracer", "measure", "share", "low", "high", "n"])
    for table, said in (
        (refusal_table(config, "ResDM", None, refused), "No check is stored"),
        (interval_table(config, "ResDM", shares), "has no calibration"),
        (audit_table(config, "ResDM", {}), "was not audited"),
    ):
        assert said in table.markdown()
        assert table.latex()
