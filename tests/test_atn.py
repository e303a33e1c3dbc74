"""Joint A/T/(N) profiles: null readings stay null, planted agreement is found, N follows its rule."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from notebook_cells import check_latex, run_cells
from stored_cohort import GRID, make_cohort, make_config, save
from stored_readings import make_status, store_readings

from resdm.io import write_csv
from resdm_suite.anatomy import regions
from resdm_suite.evaluation import atn
from resdm_suite.evaluation.statistics import person_weights
from resdm_suite.profiles import MIN_GROUP_SIZE

NULL, BASES = 1e-9, ["majority", "age_sex"]


def joint(sources: dict[str, float], people: int = 60, seed: int = 0) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Readings of one target and references of the same people; N is drawn, and its call is right in four of five."""
    status, _ = make_status({"age_sex": 1.0, "majority": 0.0} | sources, people=people, seed=seed)
    who = status[status["tracer"] == "amyloid"].drop_duplicates(["person", "session"])
    known = who[["person", "session"]].assign(split="test", A=who["label"])
    tau = status[status["tracer"] == "tau"].drop_duplicates(["person", "session"])
    known = known.merge(tau[["person", "session", "label"]].rename(columns={"label": "T"}))
    rng = np.random.default_rng([seed, 5])
    known["N"] = rng.integers(0, 2, len(known))
    known["called"] = np.where(rng.uniform(size=len(known)) < 0.8, known["N"], 1 - known["N"])
    train = known.assign(split="train", person="train-" + known["person"])
    return status, {"label": pd.concat([train, known], ignore_index=True)}


def test_calls_that_are_independent_of_pathology_show_nothing():
    """κ and net reclassification have zero in their interval, but for the 5 % of chance."""
    covered = []
    for seed in range(4):
        status, people = joint({"ResDM": NULL, "age_sex": NULL}, people=40, seed=seed)
        frame = atn.joint_summary(status, people, ["ResDM"], ["age_sex"], seed=0)
        profiles = frame[frame["markers"].isin(["A", "T", "AT"])]
        chance = profiles[profiles["metric"] == "kappa"]
        covered += [(chance["ci_low"] <= 0) & (chance["ci_high"] >= 0)]
        covered += [(profiles["over_age_sex_low"] <= 0) & (profiles["over_age_sex_high"] >= 0)]
    assert pd.concat(covered).mean() >= 0.88


def test_planted_agreement_is_found_and_the_better_source_reclassifies():
    status, people = joint({"ResDM": 4.0, "DDPM": 1.0})
    frame = atn.joint_summary(status, people, ["ResDM", "DDPM", "majority"], BASES, seed=0)
    rows = frame.set_index(["source", "markers", "metric"])
    assert rows.loc[("ResDM", "AT", "kappa"), "ci_low"] > 0.4
    assert rows.loc[("ResDM", "AT", "acc"), "over_age_sex_low"] > 0
    assert rows.loc[("DDPM", "AT", "kappa"), "mean"] < rows.loc[("ResDM", "AT", "kappa"), "mean"]
    assert (rows.loc["majority"].xs("kappa", level="metric")[["mean", "ci_low", "ci_high"]] == 0).all(axis=None)
    assert len(frame) == 3 * len(atn.JOINT) * len(atn.METRICS)


def test_accuracies_by_hand():
    status, people = joint({"ResDM": 2.0})
    frame = atn.joint_summary(status, people, ["ResDM", "age_sex"], BASES, seed=0)
    found = frame.set_index(["source", "markers", "metric"])
    wide = status.assign(right=(status["score"] >= status["threshold"]) == (status["label"] == 1))
    wide = wide.pivot_table("right", ["source", "fold", "person", "session"], "tracer").astype(bool).reset_index()
    wide = wide.merge(people["label"].query("split == 'test'")[["person", "session", "N", "called"]])
    right = {"A": wide["amyloid"], "T": wide["tau"], "AT": wide["amyloid"] & wide["tau"]}
    right["ATN"] = right["AT"] & (wide["N"] == wide["called"])
    for markers, values in right.items():
        by_person = wide.assign(value=values).groupby(["source", "fold", "person"])["value"].mean()
        expected = by_person.groupby("source").mean()
        for source in ("ResDM", "age_sex"):
            assert found.loc[(source, markers, "acc"), "mean"] == pytest.approx(expected[source])
        gain = found.loc[("ResDM", markers, "acc"), "over_age_sex"]
        assert gain == pytest.approx(expected["ResDM"] - expected["age_sex"])
    nri = 2 * found.loc[("ResDM", "A", "balanced"), "over_age_sex"]  # sensitivities and specificities, by fold
    rates = {}
    for source in ("ResDM", "age_sex"):
        part = status[(status["source"] == source) & (status["tracer"] == "amyloid")]
        part = part.assign(right=(part["score"] >= part["threshold"]) == (part["label"] == 1))
        part["weight"] = part.groupby("fold")["person"].transform(lambda who: person_weights(who))
        shares = part.groupby(["fold", "label"]).apply(lambda one: np.average(one["right"], weights=one["weight"]))
        rates[source] = shares.groupby("fold").sum().mean()
    assert nri == pytest.approx(rates["ResDM"] - rates["age_sex"])


def test_confusions_count_every_person_once_and_hide_small_profiles():
    status, people = joint({"ResDM": 2.0})
    calls = atn.confusions(status, people, ["ResDM", "majority"])
    part = calls.query("source == 'ResDM' and markers == 'AT'")
    test = people["label"].query("split == 'test'")
    expected = pd.Series(person_weights(test["person"])).groupby((test["A"] + 2 * test["T"]).to_numpy()).sum()
    rows = part.groupby("profile", sort=False)["people"].sum(min_count=1)
    assert list(rows.index) == ["A−T−", "A+T−", "A−T+", "A+T+"]
    for found, people_there in zip(rows, expected.reindex(range(4)).fillna(0), strict=True):
        assert np.isnan(found) if people_there < MIN_GROUP_SIZE else found == pytest.approx(people_there)
    assert rows.notna().all()
    few = atn.confusions(*joint({"ResDM": 2.0}, people=30), ["ResDM"]).query("markers == 'ATN'")
    assert few.groupby("profile")["people"].sum(min_count=1).isna().any()
    constant = calls.query("source == 'majority' and markers == 'AT'").groupby("call")["people"].sum()
    assert (constant > 0).sum() == 1


def test_decision_curves_of_everyone_and_of_a_perfect_score():
    status, _ = joint({"ResDM": NULL, "real": 1.0})
    perfect = status["source"] == "real"
    status.loc[perfect, "score"] = status.loc[perfect, "label"].astype(float)
    thresholds = np.array([0.2, 0.5])
    curves = atn.decision_curves(status, ["real", "ResDM", "age_sex"], thresholds, seed=0)
    rows = curves.query("tracer == 'amyloid'").set_index(["source", "threshold"])
    who = status.query("tracer == 'amyloid' and source == 'real' and fold == 0")
    prevalence = np.average(who["label"], weights=person_weights(who["person"]))
    for threshold in thresholds:
        odds = threshold / (1 - threshold)
        assert rows.loc[("real", threshold), "net_benefit"] == pytest.approx(prevalence)
        assert rows.loc[("all", threshold), "net_benefit"] == pytest.approx(prevalence - (1 - prevalence) * odds)
        assert rows.loc[("real", threshold), "over_base_low"] > 0
    assert rows.loc["age_sex"]["over_base"].isna().all()


# ── N ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def scanned(tmp_path):
    """Twenty training and four test people; the T1 of person i has the intensity i / 100 in the region of N."""
    config, mask, rows = make_config(tmp_path), regions(GRID)[atn.REGION], []
    for i in range(24):
        who = f"sub-{i:04d}"
        save(config.volumes / f"{who}.nii.gz", np.where(mask, i / 100, 0.9))
        row = {"person": who, "session": "ses-M000", "split": "train" if i < 20 else "test", "age": 70.0, "sex": "F"}
        row |= {"diagnosis": "CN" if i % 2 else "AD", "t1w": f"{who}.nii.gz"}
        for tracer in ("amyloid", "tau"):
            row |= {f"present_{tracer}": 1, tracer: "x", f"{tracer}_tracer": "x", f"{tracer}_status": i % 2}
        rows.append(row)
    write_csv(config.volumes / "index.csv", pd.DataFrame(rows))
    return config


@pytest.mark.parametrize(("diagnosis", "positive"), [(True, 3), (False, 2)])
def test_n_is_darker_than_nine_of_ten_cognitively_normal_training_people(scanned, diagnosis, positive):
    path = scanned.volumes / "index.csv"
    if not diagnosis:  # then of all training people
        write_csv(path, pd.read_csv(path).assign(diagnosis=None))
    frame = atn.neurodegeneration(scanned, "label")
    assert frame["intensity"].to_numpy() == pytest.approx(np.arange(24) / 100)
    assert list(np.flatnonzero(frame["called"])) == list(range(positive))  # test people do not move the cut-off
    assert (frame["called"] == frame["N"]).all()


def test_planted_n_is_of_the_severity(scanned, monkeypatch):
    who = pd.read_csv(scanned.volumes / "index.csv")[["person", "session"]]
    severity = np.where(np.arange(24) < 20, np.arange(24.0) % 7, 100.0)
    monkeypatch.setattr(atn, "read_causes", lambda config: who.assign(severity=severity))
    frame = atn.neurodegeneration(scanned, "planted")
    cut = np.quantile(severity[1:20:2], 0.9)
    assert list(frame["N"]) == list((severity > cut).astype(int))
    assert frame["N"].iloc[20:].all()
    assert not frame["called"].iloc[20:].any(), "the call is by the MRI"


# ── the notebook ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("error:Attempting to set identical")
@pytest.mark.parametrize("tracers", [["amyloid", "tau"], ["amyloid"]], ids=["both", "one"])
def test_the_notebook_of_a_small_cohort(tmp_path, tracers):
    config, _ = make_cohort(tmp_path, {})
    status, folds = make_status({"ResDM": 2.0, "mri": 1.0, "real": 4.0, "age_sex": 0.5, "majority": 0.0}, people=6)
    status, folds = (frame[frame["tracer"].isin(tracers)] for frame in (status, folds))
    store_readings(config, status=status, status_folds=folds)
    table = run_cells("19", config)["table"]
    assert (config.figures / "atn.png").is_file()
    check_latex(table.latex())
    assert ("No profile is defined" in table.markdown()) == (len(tracers) == 1)
    assert table.frame["source"].nunique() == (5 if len(tracers) == 2 else 0)
