"""Statistics in which every person counts once, against scikit-learn, scipy and by hand."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from resdm_suite.evaluation import classification
from resdm_suite.evaluation.classification import accuracy, adjusted_auc, auc, balanced_accuracy, brier, f1, kappa
from resdm_suite.evaluation.statistics import percentile_interval, person_resamples, person_weights


@pytest.fixture
def readings():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 40)
    score = np.round(rng.uniform(size=40) / 2 + label / 3, 1)  # with ties
    people = [f"p{i % 25}" for i in range(40)]
    return label, score, person_weights(people), people


def test_classification_equals_scikit_learn(readings):
    label, score, weights, _ = readings
    called = (score >= 0.5).astype(int)
    for ours, theirs, values in (
        (auc, metrics.roc_auc_score, score), (brier, metrics.brier_score_loss, score),
        (accuracy, metrics.accuracy_score, called), (f1, metrics.f1_score, called),
    ):  # fmt: skip
        assert ours(label, values, weights) == pytest.approx(theirs(label, values, sample_weight=weights), abs=1e-12)


def test_many_resamples_and_several_scores_equal_one_by_one(readings):
    label, score, _, people = readings
    rng, many = np.random.default_rng(1), person_resamples(people, seed=0, repeats=20)
    uniform, calls = rng.uniform(size=(3, 40)), rng.integers(0, 2, (3, 40))
    _, age, sex, _ = covariates(40, 0)
    adjusted = partial(adjusted_auc, age=age, sex=sex)
    pairs = [(function, uniform) for function in (auc, adjusted, brier)]
    for function, values in pairs + [(function, calls) for function in (accuracy, f1, balanced_accuracy, kappa)]:
        one_by_one = [[function(label, row, weights) for row in values] for weights in many]
        assert function(label, values, many) == pytest.approx(np.mean(one_by_one, axis=1))
    for function in (classification.weighted_pearson, classification.weighted_slope):
        assert function(label, score, many) == pytest.approx([float(function(label, score, one)) for one in many])


# ── at equal age and sex ──────────────────────────────────────────────────────────────────────────


def covariates(n: int, seed: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray, np.ndarray]:
    """Age and sex of n people, and a status that old age and being a woman predict."""
    rng = np.random.default_rng(seed)
    age, woman = rng.normal(72, 7, n), rng.integers(0, 2, n)
    label = (rng.uniform(size=n) < 1 / (1 + np.exp(-0.15 * (age - 72) - 1.5 * (woman - 0.5)))).astype(int)
    return rng, age, np.where(woman == 1, "F", "M"), label


@pytest.mark.parametrize("score_of", [
    lambda age, woman: age + 8 * woman,
    lambda age, woman: 1 / (1 + np.exp(-0.3 * (age - 78) - 2 * woman)),  # saturates
    lambda age, woman: -np.log(age - 30) - woman * (age - 60),  # inverted, with interaction
])  # fmt: skip
def test_age_and_sex_alone_are_uninformative_at_equal_age_and_sex(score_of):
    plain, adjusted = [], []
    for seed in range(6):
        _, age, sex, label = covariates(400, seed)
        score = score_of(age, (sex == "F").astype(float))
        plain.append(abs(auc(label, score, np.ones(400)) - 0.5))
        adjusted.append(float(adjusted_auc(label, score, np.ones(400), age, sex)))
    assert min(plain) > 0.15
    assert np.mean(adjusted) == pytest.approx(0.5, abs=0.01)


def test_disease_beyond_age_and_sex_is_found():
    """The score is age, sex and one standard deviation of disease: at equal age and sex its AUC is Φ(1/√2)."""
    areas = []
    for seed in range(6):
        rng, age, sex, label = covariates(600, seed)
        score = 0.05 * age + 0.5 * (sex == "M") + label + rng.normal(size=600)
        areas.append(float(adjusted_auc(label, score, np.ones(600), age, sex)))
        assert adjusted_auc(label, np.exp(score), np.ones(600), age, sex) == pytest.approx(areas[-1])
    assert np.mean(areas) == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)), abs=0.015)


def test_adjusted_auc_by_hand():
    label, score = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.2, 0.5, 0.5, 0.1])
    age, sex = np.array([70.0, 70.0, 68.0, 71.0, 70.0]), np.array(["F", "M", "F", "F", "M"])
    # woman of 70: above the one of 68 (she is older) and the one of 71 (younger); man of 70: above the one of his age
    assert adjusted_auc(label, score, np.ones(5), age, sex) == 1
    lower = np.array([0.3, 0.2, 0.5, 0.1, 0.1])  # older: below and, for half a comparison, above; younger: above
    assert adjusted_auc(label, lower, np.ones(5), age, sex) == pytest.approx((0.5 / 1.5 + 1) / 2)
    apart = np.array([70.0, 70.0, 70.0 + classification.CALIPER + 0.1, 60.0, 80.0])
    assert np.isnan(adjusted_auc(label, score, np.ones(5), apart, sex))


# ── others ────────────────────────────────────────────────────────────────────────────────────────


def test_undefined_statistics_are_nan():
    one = np.ones(3)
    assert np.isnan(auc(one, np.arange(3.0), one))
    assert np.isnan(f1(np.zeros(3), np.zeros(3), one))
    assert np.isnan(f1(np.zeros(3), np.ones(3), one))
    assert f1(np.ones(3), np.zeros(3), one) == 0
    assert np.isnan(classification.weighted_pearson(np.arange(3.0), np.full(3, 70.1), one))
    assert np.isnan(kappa(np.zeros(3, int), np.zeros(3, int), one))
    assert np.isnan(classification.weighted_slope(np.zeros(3), np.arange(3.0), one))


def test_pearson_and_slope():
    rng = np.random.default_rng(3)
    x, y = rng.normal(70, 8, 30), rng.normal(70, 3, 30)
    y += 0.5 * x
    counts = rng.integers(0, 4, 30)
    for weights in (np.ones(30), counts.astype(float)):
        repeated = [np.repeat(values, weights.astype(int)) for values in (x, y)]
        assert classification.weighted_pearson(x, y, weights) == pytest.approx(stats.pearsonr(*repeated)[0])
    (slope,), *_ = np.linalg.lstsq(x[:, None], y, rcond=None)
    assert classification.weighted_slope(x, y, np.ones(30)) == pytest.approx(slope)


def test_reliability():
    rng = np.random.default_rng(4)
    score = rng.uniform(size=5000)
    label = (rng.uniform(size=5000) < score).astype(int)
    bins = classification.reliability(score, label, np.ones(5000), bins=5)
    assert bins["n"].tolist() == [1000] * 5
    assert np.abs(bins["predicted"] - bins["observed"]).max() < 0.05  # calibrated
    inside = label[np.argsort(score)][:1000].sum()
    ends = stats.binomtest(int(inside), 1000).proportion_ci(method="wilson")
    assert classification.wilson(bins["observed"][0], 1000) == pytest.approx((ends.low, ends.high))
    flat = classification.reliability(np.full(5000, 0.4), label, np.ones(5000))
    assert len(flat) == 1  # equal scores share a bin
    assert flat["observed"][0] == pytest.approx(label.mean())


# ── coverage of the intervals ─────────────────────────────────────────────────────────────────────


def test_intervals_over_people_cover():
    """200 cohorts in which half of the people have three identical visits; scans taken for people cover less."""
    rng, hits = np.random.default_rng(5), {"people": 0, "scans": 0}
    truth, which = stats.norm.cdf(1 / np.sqrt(2)), np.repeat(np.arange(60), np.where(np.arange(60) % 2, 3, 1))
    for trial in range(200):
        label = rng.integers(0, 2, 60)
        score = rng.normal(size=60) + label
        for unit, people in (("people", which), ("scans", np.arange(len(which)))):
            weights = person_resamples(people, seed=trial, repeats=400)
            low, high = percentile_interval(auc(label[which], score[which], weights))
            hits[unit] += low <= truth <= high
    assert 0.90 <= hits["people"] / 200 <= 0.99
    assert hits["scans"] < hits["people"]


# ── profiles and decisions ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def profiles():
    rng = np.random.default_rng(2)
    people = [f"p{i % 40}" for i in range(60)]
    label = rng.choice([0, 1, 2, 3, 5, 7], 60)
    chosen, other = rng.uniform(size=(3, 60)) < 0.5, rng.integers(0, 8, (3, 60))  # also classes without people
    called = np.where(chosen, label, other)
    return label, called, person_weights(people), people


def test_scores_of_profiles_equal_scikit_learn(profiles):
    label, called, weights, _ = profiles
    for row in called:
        expected = metrics.cohen_kappa_score(label, row, sample_weight=weights)
        assert kappa(label, row, weights) == pytest.approx(expected, abs=1e-12)
        members = [label == one for one in np.unique(label)]  # scikit-learn warns of called classes without people
        recalls = [np.average(row[part] == label[part], weights=weights[part]) for part in members]
        assert balanced_accuracy(label, row, weights) == pytest.approx(np.mean(recalls), abs=1e-12)
    known = np.isin(called[0], label)
    expected = metrics.balanced_accuracy_score(label[known], called[0][known], sample_weight=weights[known])
    assert balanced_accuracy(label[known], called[0][known], weights[known]) == pytest.approx(expected, abs=1e-12)


def test_net_benefit_in_closed_form(readings):
    label, score, weights, people = readings
    thresholds = np.array([0.1, 0.25, 0.5])
    shares = weights / weights.sum()
    for scores in (score, np.ones(40)):  # the second calls everyone
        hits, alarms = (np.array([shares[(scores >= t) & (label == one)].sum() for t in thresholds]) for one in (1, 0))
        expected = hits - alarms * thresholds / (1 - thresholds)
        assert classification.net_benefit(label, scores, weights, thresholds) == pytest.approx(expected)
    many = person_resamples(people, seed=0, repeats=5)
    one_by_one = np.array([classification.net_benefit(label, score, one, thresholds) for one in many])
    assert classification.net_benefit(label, score, many, thresholds) == pytest.approx(one_by_one)
