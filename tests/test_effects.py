"""Status, sex and age from stored readings: numbers recomputed, planted effects found, no effect on null cohorts."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics
from stored_cohort import make_config
from stored_readings import SWEEP, make_age, make_scores, make_sex, make_status, store_readings, store_scores

from resdm_suite.evaluation import conditioning
from resdm_suite.evaluation.conditioning import age_effects, age_summary, sex_effects, sex_order, sex_summary
from resdm_suite.evaluation.readings import read_readings
from resdm_suite.evaluation.statistics import person_weights
from resdm_suite.evaluation.status import status_reliability, status_summary, trainings

SOURCES = {"ResDM": 2.0, "DDPM": 1.2, "real": 4.0, "template": 0.0, "mri": 1.2}
SEX_SCORES, AGE_SCORES = {"no_sex": 0.3, "wrong_sex": 0.6}, {"no_age": 0.3, "shuffled_age": 0.5}


def of_scikit_learn(part: pd.DataFrame) -> dict[str, float]:
    """The metrics of readings, sessions weighted."""
    weights, called = person_weights(part["person"]), (part["score"] >= part["threshold"]).astype(int)
    return {
        "auc": metrics.roc_auc_score(part["label"], part["score"], sample_weight=weights),
        "acc": metrics.accuracy_score(part["label"], called, sample_weight=weights),
        "f1": metrics.f1_score(part["label"], called, sample_weight=weights),
        "brier": metrics.brier_score_loss(part["label"], part["score"], sample_weight=weights),
    }


# ── status ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def status():
    return make_status(SOURCES)[0]


def summarise(status, sources, bases=()):
    return status_summary(status, sources, bases, seed=0).set_index(["source", "tracer", "metric"])


@pytest.fixture(scope="module")
def summary(status):
    return summarise(status, SOURCES, ("mri", "age_sex"))


def test_status_metrics_equal_scikit_learn_over_the_folds(status, summary):
    part = status[(status["source"] == "ResDM") & (status["tracer"] == "tau")]
    by_fold = pd.DataFrame([of_scikit_learn(rows) for _, rows in part.groupby("fold")])
    for metric in ("auc", "acc", "f1"):
        row = summary.loc[("ResDM", "tau", metric)]
        assert row[["mean", "std"]].tolist() == pytest.approx([by_fold[metric].mean(), by_fold[metric].std()])
        assert row["ci_low"] < row["mean"] < row["ci_high"]
    averaged = part.groupby(["person", "session"])[["label", "score", "threshold"]].mean().reset_index()
    expected = of_scikit_learn(averaged)
    for metric, name in (("auc_mean_score", "auc"), ("brier", "brier")):
        assert summary.loc[("ResDM", "tau", metric), "mean"] == pytest.approx(expected[name])


def test_people_are_counted_not_scans(status, summary):
    row = summary.loc[("real", "amyloid", "auc")]
    assert (row["n"], row["sessions"], row["folds"]) == (40, 47, 5)
    assert row["positive"] == status[(status["tracer"] == "amyloid") & (status["label"] == 1)]["person"].nunique()
    flat = summary.loc[("template", "tau", "auc")]  # an uninformative source
    assert flat[["mean", "std", "ci_low", "ci_high"]].tolist() == [0.5, 0, 0.5, 0.5]
    bins = status_reliability(status, ["real", "template"])
    assert bins.groupby(["source", "tracer"])["n"].sum().tolist() == pytest.approx([40] * 4)
    assert (bins["source"] == "template").sum() == 2


def test_a_score_of_age_and_sex_is_uninformative_at_equal_age_and_sex(status):
    part = status[status["source"] == "ResDM"]
    known = part["age"] + 6 * (part["sex"] == "M")
    people = part["person"].unique()
    noise = part["person"].map(pd.Series(np.random.default_rng(0).normal(0, 5, len(people)), people))
    part = part.assign(score=1 / (1 + np.exp(0.2 * (75 - known))), label=(known + noise > 78).astype(int))
    rows = summarise(part, ["ResDM"]).loc["ResDM"]
    assert rows.loc[("tau", "auc_mean_score"), "ci_low"] > 0.6
    adjusted = rows.loc[("tau", "auc_adjusted"), ["mean", "ci_low", "ci_high"]]
    assert adjusted.tolist() == pytest.approx([0.5] * 3, abs=0.1)


def test_gains_are_paired(status, summary):
    gains = summary.xs("auc_mean_score", level="metric")
    assert set(gains.index[gains["over_mri"].isna()].get_level_values("source")) == {"mri"}
    assert gains.loc[("real", "tau"), "over_mri_low"] > 0
    assert gains.loc[("template", "tau"), "over_mri_high"] < 0
    expected = gains.loc[("ResDM", "tau"), "mean"] - gains.loc[("mri", "tau"), "mean"]
    assert gains.loc[("ResDM", "tau"), "over_mri"] == pytest.approx(expected)
    assert gains["over_age_sex"].isna().all(), "it was not read"
    copy = status[status["source"] == "mri"].assign(source="copy")
    same = summarise(pd.concat([status, copy]), ["copy"], ["mri"])
    assert (same[["over_mri", "over_mri_low", "over_mri_high"]] == 0).all(axis=None)


def test_trainings_are_one_row_whose_interval_includes_their_spread(status):
    """The mean of the metrics of each training, not the metric of an ensemble."""
    parts = [status[status["source"] == name] for name in ("ResDM", "DDPM", "mri")]
    names = ("X", "X@seed1", "X@seed2")
    assert trainings([*names, "Y"]) == {"X": list(names), "Y": ["Y"]}
    repeated = pd.concat([part.assign(source=name) for part, name in zip(parts, names, strict=True)])
    row = summarise(repeated, ["X"]).loc["X"]
    alone = [summarise(part.assign(source="X"), ["X"]).loc["X"] for part in parts]
    np.testing.assert_allclose(row["mean"], np.mean([rows["mean"] for rows in alone], axis=0))
    assert (row["trainings"] == 3).all()
    area = row.loc[("tau", "auc_mean_score")]
    between = np.std([rows.loc[("tau", "auc_mean_score"), "mean"] for rows in alone], ddof=1) / np.sqrt(3)
    assert area["ci_high"] - area["ci_low"] > 1.5 * 1.96 * between
    copies = summarise(pd.concat([parts[0].assign(source=name) for name in names]), ["X"]).loc["X"]
    columns = ["mean", "std", "ci_low", "ci_high"]
    np.testing.assert_allclose(copies[columns].to_numpy(), alone[0][columns].to_numpy())  # no spread between trainings


def test_targets_are_separate_and_one_class_alone_has_no_auc(status):
    both = pd.concat([status, status.assign(target="planted", label=1 - status["label"])])
    rows = status_summary(both, SOURCES, seed=0).set_index(["target", "source", "tracer", "metric"])["mean"]
    assert list(dict.fromkeys(rows.index.get_level_values("target"))) == ["planted", "label"]
    assert rows["planted", "real", "tau", "auc"] == pytest.approx(1 - rows["label", "real", "tau", "auc"])
    alone = summarise(status.assign(label=1), ["ResDM"]).loc["ResDM"]
    assert alone.loc[("tau", "auc"), ["mean", "ci_low", "ci_high"]].isna().all()
    assert alone.loc[("tau", "acc"), "mean"] > 0


@pytest.mark.parametrize(("fault", "message"), [
    (lambda s: s[~((s["source"] == "DDPM") & (s["person"] == "sub-0003"))],
     r"'ResDM' and 'DDPM'.*sub-0003.*run the evaluators again"),
    (lambda s: s[~((s["source"] == "mri") & (s["fold"] == 2) & (s["person"] == "sub-0007"))],
     r"'mri', amyloid: 'fold 0' and 'fold 2'.*sub-0007"),
    (lambda s: pd.concat([s, s.head(1)]), r"sub-0000 ses-M000 twice"),
])  # fmt: skip
def test_faulty_status_readings_are_named(status, fault, message):
    with pytest.raises(ValueError, match=message):
        status_summary(fault(status), SOURCES, seed=0)


# ── sex ───────────────────────────────────────────────────────────────────────────────────────────


def test_sex_metrics_equal_scikit_learn():
    expected = [math.log(4), -math.log(4)]
    assert conditioning.own_sex_logit(np.array([1, 0]), np.array([0.8, 0.8])) == pytest.approx(expected)
    assert np.isfinite(conditioning.own_sex_logit(np.array([1, 0]), np.array([1.0, 1.0]))).all()
    sex = make_sex(1.0)
    table = sex_summary(sex, "ResDM", seed=0).set_index(["tracer", "prompt", "metric"])
    part = sex[(sex["tracer"] == "tau") & (sex["condition"] == "no_sex")]
    logit = np.average(conditioning.own_sex_logit(part["label"], part["score"]), weights=person_weights(part["person"]))
    for metric, value in (of_scikit_learn(part) | {"logit": logit}).items():
        if metric != "brier":
            row = table.loc[("tau", "none", metric)]
            assert (row["value"], row["n"]) == (pytest.approx(value), 40)
            assert row["low"] <= row["value"] <= row["high"]
    assert table.loc[("tau", "real", "auc"), "source"] == "real"


def test_a_planted_effect_of_sex_is_found_with_its_size():
    effects = sex_effects(make_sex(1.0), make_scores(SEX_SCORES), "ResDM", seed=0).set_index(["name", "tracer"])
    for tracer in ("amyloid", "tau"):
        rows = effects.xs(tracer, level="tracer")
        positive = ["auc_right_wrong", "acc_right_wrong", "logit_right_none", "logit_none_wrong", "psnr_right_wrong"]
        assert (rows.loc[positive, "low"] > 0).all()
        assert not rows.loc[positive, "covers_zero"].any()
        for name, size in (("logit_right_wrong", 2.0), ("psnr_right_wrong", 0.6)):  # +1 and −1, for any shift
            assert rows.loc[name, "low"] < size < rows.loc[name, "high"]
    order = sex_order(make_sex(1.0), "ResDM", seed=0)
    assert (order["p_holm"] < 0.001).all()
    assert order["claim"].tolist() == ["right > none", "none > wrong", "right > wrong"] * 2
    opposite = sex_order(make_sex(-1.0), "ResDM", seed=0)
    assert (opposite["p"] > 0.99).all()
    assert (opposite["high"] < 0).all()


def test_an_evaluator_at_chance_gives_no_interval():
    effects = sex_effects(make_sex(1.0), make_scores(SEX_SCORES), "ResDM", seed=0)
    folds = pd.DataFrame({"tracer": ["amyloid", "tau"], "held_out_p": [0.3, 0.001]})
    left = conditioning.without_chance(effects, folds)
    gone = (left["tracer"] == "amyloid") & ~left["name"].str.startswith("psnr")
    assert gone.sum() == 12
    assert left.loc[gone, ["low", "high", "covers_zero"]].isna().all(axis=None)
    pd.testing.assert_series_equal(left["estimate"], effects["estimate"])
    pd.testing.assert_frame_equal(left[~gone], effects[~gone])


def test_without_an_effect_of_sex_intervals_cover_zero():
    sex, scores = make_sex(0.0), make_scores(dict.fromkeys(SEX_SCORES, 0.0))
    strict = sex_effects(sex, scores, "ResDM", seed=0, level=1 - 0.05 / 30)
    assert len(strict) == 30
    assert strict["covers_zero"].all()
    assert sex_effects(sex, scores, "ResDM", seed=0)["covers_zero"].mean() >= 0.9  # one in twenty misses by chance
    assert (sex_order(sex, "ResDM", seed=0)["p_holm"] > 0.05).all()


def test_the_order_is_tested_by_wilcoxon_over_people():
    sex = make_sex(0.2).query("tracer == 'amyloid'")
    logits = sex.assign(logit=conditioning.own_sex_logit(sex["label"], sex["score"]))
    people = logits.pivot_table(index="person", columns="condition", values="logit")
    row = sex_order(make_sex(0.2), "ResDM", seed=0).iloc[2]
    test = stats.wilcoxon(people["factual"], people["wrong_sex"], alternative="greater")
    assert (row["p"], row["n"]) == (pytest.approx(test.pvalue), 40)


# ── age ───────────────────────────────────────────────────────────────────────────────────────────


def test_r_equals_scipy():
    age = make_age(0.4)
    table = age_summary(age, "ResDM", seed=0).set_index(["tracer", "condition", "against"])
    assert table.loc[("tau", "real", "own"), ["n", "sessions"]].tolist() == [40, 47]
    one = age[(age["tracer"] == "tau") & (age["session"] == "ses-M000")]  # one visit each: weights are equal
    rows = age_summary(one, "ResDM", seed=0).set_index(["condition", "against"])
    assert len(table) == 2 * len(rows) == 10
    for (condition, against), row in rows.iterrows():
        part = one[one["condition"] == condition]
        years = part["age" if against == "own" else "prompt_age"]
        assert row["r"] == pytest.approx(stats.pearsonr(years, part["predicted"])[0])
        assert row["error"] == pytest.approx((years - part["predicted"]).abs().mean())
        assert row["low"] < row["r"] < row["high"]


def test_a_planted_effect_of_age_is_found_with_its_size():
    table = pd.DataFrame([[60.0, 65.0, 70.0], [70.0, 70.0, 70.0], [71.0, 70.0, 69.0]], columns=[60.0, 70.0, 80.0])
    assert conditioning.sweep_slopes(table).tolist() == pytest.approx([0.5, 0, -0.1])  # by hand
    effects = age_effects(make_age(0.4), make_scores(AGE_SCORES), "ResDM", seed=0).set_index(["name", "tracer"])
    assert len(effects) == 10
    for tracer in ("amyloid", "tau"):
        for name in ("slope_sweep", "slope_shuffled"):
            row = effects.loc[(name, tracer)]
            assert row["low"] < 0.4 < row["high"] < row["low"] + 0.2
        assert effects.loc[("r_with_without", tracer), "low"] > 0
        assert not effects.loc[("psnr_own_shuffled", tracer), "covers_zero"]


def test_without_an_effect_of_age_intervals_cover_zero():
    """Even if predicted age follows the person's age, which the MRI shows."""
    scores = make_scores(dict.fromkeys(AGE_SCORES, 0.0))
    for seed in range(3):
        age = make_age(0.0, seed=seed)
        assert age_effects(age, scores, "ResDM", seed=0, level=1 - 0.05 / 10)["covers_zero"].all()
        r = age_summary(age, "ResDM", seed=0).set_index(["tracer", "condition", "against"])["r"]
        assert r["tau", "factual", "prompt"] > 0.2


def test_constant_readings_and_a_missing_sweep():
    scores = make_scores(dict.fromkeys(AGE_SCORES, 0.0))
    constant = make_age(0.3).assign(predicted=74.0)
    assert age_summary(constant, "ResDM", seed=0)[["r", "low", "high"]].isna().all(axis=None)
    rows = age_effects(constant, scores, "ResDM", seed=0).set_index(["name", "tracer"])["covers_zero"]
    assert rows["r_with_without", "tau"] is pd.NA  # not known, not zero
    assert rows["slope_sweep", "tau"]
    unswept = make_age(0.3, sweep=())
    assert "slope_sweep" not in set(age_effects(unswept, scores, "ResDM", seed=0)["name"])
    assert conditioning.age_sweep(unswept, "ResDM", "tau").shape[1] == 0
    assert conditioning.age_sweep(make_age(0.3), "ResDM", "tau").columns.tolist() == list(SWEEP)


# ── faults and storage ────────────────────────────────────────────────────────────────────────────


def test_faulty_prompted_readings_are_named():
    sex, age = make_sex(1.0), make_age(0.3)
    with pytest.raises(ValueError, match=r"sex from ResDM, 'wrong_sex', amyloid: no row"):
        sex_summary(sex[sex["condition"] != "wrong_sex"], "ResDM", seed=0)
    with pytest.raises(ValueError, match=r"sex from DDPM, 'factual'"):
        sex_summary(sex, "DDPM", seed=0)
    with pytest.raises(ValueError, match="sub-0004 is not read at every age"):
        conditioning.age_sweep(age[~((age["condition"] == "age_70") & (age["person"] == "sub-0004"))], "ResDM", "tau")
    with pytest.raises(ValueError, match=r"sub-0001 ses-M000 has no prompt_age under 'factual'"):
        age_summary(age.assign(prompt_age=age["prompt_age"].where(age["person"] != "sub-0001")), "ResDM", seed=0)
    scores = make_scores(SEX_SCORES)
    gone = scores[~((scores["condition"] == "no_sex") & (scores["person"] == "sub-0002"))]
    with pytest.raises(ValueError, match="sub-0002 is not scored under every prompt"):
        sex_effects(sex, gone, "ResDM", seed=0)


def test_stored_readings_give_the_same_effects_and_missing_ones_are_named(tmp_path):
    config, sex, scores = make_config(tmp_path), make_sex(1.0), make_scores(SEX_SCORES)
    with pytest.raises(FileNotFoundError, match=r"factual.scores\.csv"):
        conditioning.prompt_scores(config, "ResDM", conditioning.AGE_PROMPTS)
    with pytest.raises(FileNotFoundError, match=r"status\.csv: no stored readings; run the evaluators"):
        read_readings(config, "status")
    store_readings(config, sex=sex, age=make_age(0.3).drop(columns="predicted"))
    with pytest.raises(ValueError, match=r"age\.csv: columns missing: predicted"):
        read_readings(config, "age")
    store_scores(config, scores)
    back = read_readings(config, "sex")
    pd.testing.assert_frame_equal(back.fillna({"prompt": ""}), sex, check_exact=False)
    found = conditioning.prompt_scores(config, "ResDM", conditioning.SEX_PROMPTS.values())
    expected = sex_effects(sex, scores, "ResDM", seed=0)
    pd.testing.assert_frame_equal(sex_effects(back, found, "ResDM", seed=0), expected)
