"""What readings say: numbers recomputed, effects found where planted and none where not, faults named."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics
from stored_cohort import make_config
from stored_readings import SWEEP, make_age, make_scores, make_sex, make_status, store_readings, store_scores

from resdm_suite.evaluation.conditioning import (
    AGE_PROMPTS,
    SEX_PROMPTS,
    age_effects,
    age_summary,
    age_sweep,
    own_sex_logit,
    prompt_scores,
    sex_effects,
    sex_order,
    sex_summary,
    sweep_slopes,
    without_chance,
)
from resdm_suite.evaluation.readings import read_readings
from resdm_suite.evaluation.statistics import person_weights
from resdm_suite.evaluation.status import status_reliability, status_summary, trainings

SOURCES = {"ResDM": 2.0, "DDPM": 1.2, "real": 4.0, "template": 0.0, "mri": 1.2}


@pytest.fixture(scope="module")
def status():
    return make_status(SOURCES)[0]


@pytest.fixture(scope="module")
def summary(status):
    return status_summary(status, SOURCES, ("mri", "age_sex"), seed=0).set_index(["source", "tracer", "metric"])


class TestStatus:
    def test_every_number_is_scikit_learns_over_the_folds(self, status, summary):
        part = status[(status["source"] == "ResDM") & (status["tracer"] == "tau")]
        found = {"auc": [], "acc": [], "f1": []}
        for _, rows in part.groupby("fold"):
            weights, called = person_weights(rows["person"]), (rows["score"] >= rows["threshold"]).astype(int)
            found["auc"].append(metrics.roc_auc_score(rows["label"], rows["score"], sample_weight=weights))
            found["acc"].append(metrics.accuracy_score(rows["label"], called, sample_weight=weights))
            found["f1"].append(metrics.f1_score(rows["label"], called, sample_weight=weights))
        for metric, values in found.items():
            row = summary.loc[("ResDM", "tau", metric)]
            assert row["mean"] == pytest.approx(np.mean(values))
            assert row["std"] == pytest.approx(np.std(values, ddof=1))
            assert row["ci_low"] < row["mean"] < row["ci_high"]
        people = part.groupby(["person", "session"])[["label", "score"]].mean().reset_index()
        area = metrics.roc_auc_score(people["label"], people["score"], sample_weight=person_weights(people["person"]))
        assert summary.loc[("ResDM", "tau", "auc_mean_score"), "mean"] == pytest.approx(area)
        error = metrics.brier_score_loss(
            people["label"], people["score"], sample_weight=person_weights(people["person"])
        )
        assert summary.loc[("ResDM", "tau", "brier"), "mean"] == pytest.approx(error)

    def test_at_equal_age_and_sex(self, status):
        """A score that is age and sex alone tells a status that follows them, and nothing at equal age and sex."""
        part = status[status["source"] == "ResDM"]
        known = part["age"] + 6 * (part["sex"] == "M")
        people = part["person"].unique()
        noise = part["person"].map(pd.Series(np.random.default_rng(0).normal(0, 5, len(people)), people))
        part = part.assign(score=1 / (1 + np.exp(0.2 * (75 - known))), label=(known + noise > 78).astype(int))
        rows = status_summary(part, ["ResDM"], seed=0).set_index(["tracer", "metric"])
        assert rows.loc[("tau", "auc_mean_score"), "ci_low"] > 0.6
        adjusted = rows.loc[("tau", "auc_adjusted"), ["mean", "ci_low", "ci_high"]]
        assert adjusted.tolist() == pytest.approx([0.5] * 3, abs=0.1)

    def test_people_are_counted_not_scans(self, status, summary):
        row = summary.loc[("real", "amyloid", "auc")]
        assert (row["n"], row["sessions"], row["folds"]) == (40, 47, 5)
        positive = status[(status["tracer"] == "amyloid") & (status["label"] == 1)]["person"].nunique()
        assert row["positive"] == positive

    def test_a_flat_source_knows_nothing(self, summary):
        row = summary.loc[("template", "tau", "auc")]
        assert row[["mean", "std", "ci_low", "ci_high"]].tolist() == [0.5, 0, 0.5, 0.5]

    def test_gains_are_paired(self, status, summary):
        gains = summary.xs("auc_mean_score", level="metric")
        assert gains["over_mri"].isna().groupby("source").all().pipe(lambda g: set(g[g].index)) == {"mri"}
        assert gains.loc[("real", "tau"), "over_mri_low"] > 0
        assert gains.loc[("template", "tau"), "over_mri_high"] < 0
        expected = gains.loc[("ResDM", "tau"), "mean"] - gains.loc[("mri", "tau"), "mean"]
        assert gains.loc[("ResDM", "tau"), "over_mri"] == pytest.approx(expected)
        assert gains["over_age_sex"].isna().all(), "it was not read"
        copy = status[status["source"] == "mri"].assign(source="copy")
        same = status_summary(pd.concat([status, copy]), ["copy"], ["mri"], seed=0)
        assert (same[["over_mri", "over_mri_low", "over_mri_high"]] == 0).all(axis=None)

    def test_trainings_are_one_row_whose_interval_holds_them_too(self, status):
        """The mean of the metrics of each training, not the metric of an ensemble."""
        parts = [status[status["source"] == name] for name in ("ResDM", "DDPM", "mri")]
        names = ("X", "X@seed1", "X@seed2")
        repeated = pd.concat([p.assign(source=name) for p, name in zip(parts, names, strict=True)])
        assert trainings([*names, "Y"]) == {"X": list(names), "Y": ["Y"]}
        one = status_summary(repeated, ["X"], seed=0).set_index(["tracer", "metric"])
        own = [status_summary(p, [p["source"].iloc[0]], seed=0).set_index(["tracer", "metric"]) for p in parts]
        np.testing.assert_allclose(one["mean"], np.mean([rows["mean"] for rows in own], axis=0))
        assert (one["trainings"] == 3).all()
        row = one.loc[("tau", "auc_mean_score")]
        means = [rows.loc[("tau", "auc_mean_score"), "mean"] for rows in own]
        between = 1.96 * np.std(means, ddof=1) / np.sqrt(3)
        assert row["ci_high"] - row["ci_low"] > 1.5 * between
        copies = pd.concat([parts[0].assign(source=name) for name in names])  # no spread between trainings
        same = status_summary(copies, ["X"], seed=0).set_index(["tracer", "metric"])
        columns = ["mean", "std", "ci_low", "ci_high"]
        np.testing.assert_allclose(same[columns].to_numpy(), own[0][columns].to_numpy())

    def test_targets_stand_apart(self, status):
        both = pd.concat([status, status.assign(target="planted", label=1 - status["label"])])
        rows = status_summary(both, SOURCES, seed=0).set_index(["target", "source", "tracer", "metric"])["mean"]
        assert list(dict.fromkeys(rows.index.get_level_values("target"))) == ["planted", "label"]
        assert rows["planted", "real", "tau", "auc"] == pytest.approx(1 - rows["label", "real", "tau", "auc"])

    def test_reliability_counts_everyone(self, status):
        bins = status_reliability(status, ["real", "template"])
        assert bins.groupby(["source", "tracer"])["n"].sum().tolist() == pytest.approx([40] * 4)
        assert (bins["source"] == "template").sum() == 2

    def test_one_class_alone_has_no_auc(self, status):
        alone = status_summary(status.assign(label=1), ["ResDM"], seed=0).set_index(["tracer", "metric"])
        assert alone.loc[("tau", "auc"), ["mean", "ci_low", "ci_high"]].isna().all()
        assert alone.loc[("tau", "acc"), "mean"] > 0

    def test_faults_are_named(self, status):
        gone = status[~((status["source"] == "DDPM") & (status["person"] == "sub-0003"))]
        with pytest.raises(ValueError, match=r"'ResDM' and 'DDPM'.*sub-0003.*run the evaluators again"):
            status_summary(gone, SOURCES, seed=0)
        fold = status[~((status["source"] == "mri") & (status["fold"] == 2) & (status["person"] == "sub-0007"))]
        with pytest.raises(ValueError, match=r"'mri', amyloid: 'fold 0' and 'fold 2'.*sub-0007"):
            status_summary(fold, SOURCES, seed=0)
        with pytest.raises(ValueError, match=r"sub-0000 ses-M000 twice"):
            status_summary(pd.concat([status, status.head(1)]), SOURCES, seed=0)


class TestSex:
    def test_log_odds_lean_to_the_own_sex(self):
        assert own_sex_logit(np.array([1, 0]), np.array([0.8, 0.8])) == pytest.approx([math.log(4), -math.log(4)])
        assert np.isfinite(own_sex_logit(np.array([1, 0]), np.array([1.0, 1.0]))).all()

    def test_summary_is_scikit_learns(self):
        sex = make_sex(1.0)
        table = sex_summary(sex, "ResDM", seed=0).set_index(["tracer", "prompt", "metric"])
        part = sex[(sex["tracer"] == "tau") & (sex["condition"] == "no_sex")]
        weights, called = person_weights(part["person"]), (part["score"] >= 0.5).astype(int)
        expected = {
            "auc": metrics.roc_auc_score(part["label"], part["score"], sample_weight=weights),
            "acc": metrics.accuracy_score(part["label"], called, sample_weight=weights),
            "f1": metrics.f1_score(part["label"], called, sample_weight=weights),
            "logit": np.average(own_sex_logit(part["label"], part["score"]), weights=weights),
        }
        for metric, value in expected.items():
            row = table.loc[("tau", "none", metric)]
            assert row["value"] == pytest.approx(value)
            assert row["low"] <= row["value"] <= row["high"]
            assert row["n"] == 40
        assert table.loc[("tau", "real", "auc"), "source"] == "real"

    def test_a_planted_effect_is_found_and_its_size(self):
        scores = make_scores({"no_sex": 0.3, "wrong_sex": 0.6})
        effects = sex_effects(make_sex(1.0), scores, "ResDM", seed=0).set_index(["name", "tracer"])
        for tracer in ("amyloid", "tau"):
            for name in ("auc_right_wrong", "acc_right_wrong", "logit_right_none", "logit_none_wrong"):
                assert not effects.loc[(name, tracer), "covers_zero"]
                assert effects.loc[(name, tracer), "low"] > 0
            row = effects.loc[("logit_right_wrong", tracer)]
            assert row["low"] < 2.0 < row["high"]  # planted: +1 and −1, whatever the shift of synthetic PET
            row = effects.loc[("psnr_right_wrong", tracer)]
            assert row["low"] < 0.6 < row["high"]
            assert not row["covers_zero"]
        order = sex_order(make_sex(1.0), "ResDM", seed=0)
        assert (order["p_holm"] < 0.001).all()
        assert order["claim"].tolist() == ["right > none", "none > wrong", "right > wrong"] * 2

    def test_an_evaluator_at_chance_gives_no_interval(self):
        effects = sex_effects(make_sex(1.0), make_scores({"no_sex": 0.3, "wrong_sex": 0.6}), "ResDM", seed=0)
        left = without_chance(effects, pd.DataFrame({"tracer": ["amyloid", "tau"], "held_out_p": [0.3, 0.001]}))
        gone = (left["tracer"] == "amyloid") & ~left["name"].str.startswith("psnr")
        assert gone.sum() == 12
        assert left.loc[gone, ["low", "high", "covers_zero"]].isna().all(axis=None)
        pd.testing.assert_series_equal(left["estimate"], effects["estimate"])
        pd.testing.assert_frame_equal(left[~gone], effects[~gone])

    def test_the_wrong_order_is_not_confirmed(self):
        order = sex_order(make_sex(-1.0), "ResDM", seed=0)
        assert (order["p"] > 0.99).all()
        assert (order["high"] < 0).all()

    def test_on_a_null_cohort_intervals_cover_zero(self):
        scores = make_scores({"no_sex": 0.0, "wrong_sex": 0.0})
        effects = sex_effects(make_sex(0.0), scores, "ResDM", seed=0, level=1 - 0.05 / 30)
        assert len(effects) == 30
        assert effects["covers_zero"].all()
        plain = sex_effects(make_sex(0.0), scores, "ResDM", seed=0)
        assert plain["covers_zero"].mean() >= 0.9  # one in twenty misses by chance
        assert (sex_order(make_sex(0.0), "ResDM", seed=0)["p_holm"] > 0.05).all()

    def test_order_is_scipys_wilcoxon_over_people(self):
        sex = make_sex(0.2)
        part = sex[sex["tracer"] == "amyloid"]
        logits = part.assign(logit=own_sex_logit(part["label"], part["score"]))
        people = logits.pivot_table(index="person", columns="condition", values="logit")
        row = sex_order(sex, "ResDM", seed=0).iloc[2]
        test = stats.wilcoxon(people["factual"], people["wrong_sex"], alternative="greater")
        assert row["p"] == pytest.approx(test.pvalue)
        assert row["n"] == 40

    def test_a_prompt_that_was_not_read_is_named(self):
        sex = make_sex(1.0)
        with pytest.raises(ValueError, match=r"sex from ResDM, 'wrong_sex', amyloid: no row"):
            sex_summary(sex[sex["condition"] != "wrong_sex"], "ResDM", seed=0)
        with pytest.raises(ValueError, match=r"sex from DDPM, 'factual'"):
            sex_summary(sex, "DDPM", seed=0)


class TestAge:
    def test_r_is_scipys(self):
        age = make_age(0.4)
        table = age_summary(age, "ResDM", seed=0).set_index(["tracer", "condition", "against"])
        one = age[(age["tracer"] == "tau") & (age["session"] == "ses-M000")]  # one visit each: weights are equal
        first = age_summary(one, "ResDM", seed=0).set_index(["tracer", "condition", "against"])
        for condition, against, column in (
            ("real", "own", "age"), ("factual", "prompt", "prompt_age"), ("no_age", "own", "age"),
            ("shuffled_age", "prompt", "prompt_age"), ("shuffled_age", "own", "age"),
        ):  # fmt: skip
            part = one[one["condition"] == condition]
            row = first.loc[("tau", condition, against)]
            assert row["r"] == pytest.approx(stats.pearsonr(part[column], part["predicted"])[0])
            assert row["error"] == pytest.approx((part[column] - part["predicted"]).abs().mean())
            assert row["low"] < row["r"] < row["high"]
        assert table.loc[("tau", "real", "own"), ["n", "sessions"]].tolist() == [40, 47]
        assert len(table) == 10

    def test_slopes_by_hand(self):
        table = pd.DataFrame([[60.0, 65.0, 70.0], [70.0, 70.0, 70.0], [71.0, 70.0, 69.0]], columns=[60.0, 70.0, 80.0])
        assert sweep_slopes(table).tolist() == pytest.approx([0.5, 0, -0.1])

    def test_a_planted_effect_is_found_and_its_size(self):
        scores = make_scores({"no_age": 0.3, "shuffled_age": 0.5})
        effects = age_effects(make_age(0.4), scores, "ResDM", seed=0).set_index(["name", "tracer"])
        for tracer in ("amyloid", "tau"):
            for name in ("slope_sweep", "slope_shuffled"):
                row = effects.loc[(name, tracer)]
                assert row["low"] < 0.4 < row["high"]
                assert row["high"] - row["low"] < 0.2
            assert effects.loc[("r_with_without", tracer), "low"] > 0
            assert not effects.loc[("psnr_own_shuffled", tracer), "covers_zero"]
        assert len(effects) == 10

    def test_on_a_null_cohort_intervals_cover_zero(self):
        """Though predicted age follows the own age, which the MRI shows."""
        scores = make_scores({"no_age": 0.0, "shuffled_age": 0.0})
        for seed in range(3):
            age = make_age(0.0, seed=seed)
            effects = age_effects(age, scores, "ResDM", seed=0, level=1 - 0.05 / 10)
            assert effects["covers_zero"].all()
            r = age_summary(age, "ResDM", seed=0).set_index(["tracer", "condition", "against"])["r"]
            assert r["tau", "factual", "prompt"] > 0.2

    def test_without_a_sweep(self):
        scores = make_scores({"no_age": 0.0, "shuffled_age": 0.0})
        effects = age_effects(make_age(0.3, sweep=()), scores, "ResDM", seed=0)
        assert "slope_sweep" not in set(effects["name"])
        assert age_sweep(make_age(0.3, sweep=()), "ResDM", "tau").shape[1] == 0
        assert age_sweep(make_age(0.3), "ResDM", "tau").columns.tolist() == list(SWEEP)

    def test_a_constant_reading_has_no_r(self):
        age = make_age(0.3).assign(predicted=74.0)
        table = age_summary(age, "ResDM", seed=0)
        assert table[["r", "low", "high"]].isna().all(axis=None)
        effects = age_effects(age, make_scores({"no_age": 0.0, "shuffled_age": 0.0}), "ResDM", seed=0)
        rows = effects.set_index(["name", "tracer"])["covers_zero"]
        assert rows["r_with_without", "tau"] is pd.NA  # not known, not zero
        assert rows["slope_sweep", "tau"]

    def test_faults_are_named(self):
        age = make_age(0.3)
        gone = age[~((age["condition"] == "age_70") & (age["person"] == "sub-0004"))]
        with pytest.raises(ValueError, match="sub-0004 is not read at every age"):
            age_sweep(gone, "ResDM", "tau")
        blank = age.assign(prompt_age=age["prompt_age"].where(age["person"] != "sub-0001"))
        with pytest.raises(ValueError, match=r"sub-0001 ses-M000 has no prompt_age under 'factual'"):
            age_summary(blank, "ResDM", seed=0)


class TestStored:
    def test_round_trip(self, tmp_path):
        config, sex = make_config(tmp_path), make_sex(1.0)
        store_readings(config, sex=sex)
        back = read_readings(config, "sex")
        pd.testing.assert_frame_equal(back.fillna({"prompt": ""}), sex, check_exact=False)
        store_scores(config, make_scores({"no_sex": 0.3, "wrong_sex": 0.6}))
        scores = prompt_scores(config, "ResDM", SEX_PROMPTS.values())
        kept = sex_effects(back, scores, "ResDM", seed=0)
        fresh = sex_effects(sex, make_scores({"no_sex": 0.3, "wrong_sex": 0.6}), "ResDM", seed=0)
        pd.testing.assert_frame_equal(kept, fresh)

    def test_what_is_missing_is_named(self, tmp_path):
        config = make_config(tmp_path)
        with pytest.raises(FileNotFoundError, match=r"status\.csv: no stored readings; run the evaluators"):
            read_readings(config, "status")
        store_readings(config, age=make_age(0.3).drop(columns="predicted"))
        with pytest.raises(ValueError, match=r"age\.csv: columns missing: predicted"):
            read_readings(config, "age")
        with pytest.raises(FileNotFoundError, match=r"factual.scores\.csv"):
            prompt_scores(config, "ResDM", AGE_PROMPTS)

    def test_everyone_needs_every_prompt(self):
        scores = make_scores({"no_sex": 0.3, "wrong_sex": 0.6})
        gone = scores[~((scores["condition"] == "no_sex") & (scores["person"] == "sub-0002"))]
        with pytest.raises(ValueError, match="sub-0002 is not scored under every prompt"):
            sex_effects(make_sex(1.0), gone, "ResDM", seed=0)
