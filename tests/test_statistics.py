"""Tests and intervals against scipy, hand-computed cases and simulated coverage."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from resdm_suite.evaluation.statistics import beats, by_person, holm, interval, paired, paired_test, typical_session


def test_holm_by_hand():
    # sorted 0.01·4, 0.02·3, 0.03·2, 0.04·1 → 0.04, 0.06, 0.06, 0.06 by the running maximum
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    adjusted = holm([0.01, np.nan, 0.04])
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.04])
    assert np.isnan(adjusted[1])
    assert holm([]).size == 0


def test_holm_controls_what_bonferroni_does_and_is_never_stricter():
    p = np.random.default_rng(0).uniform(size=20)
    adjusted = holm(p)
    assert (adjusted <= np.minimum(20 * p, 1) + 1e-12).all()
    assert (adjusted >= p).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_compare_is_scipys_wilcoxon(alternative):
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.3, 1, 30), rng.normal(0, 1, 30)
    result = paired_test(a, b, seed=0, alternative=alternative)
    assert result.p == pytest.approx(stats.wilcoxon(a, b, alternative=alternative).pvalue)
    assert result.difference == pytest.approx(np.mean(a - b))
    assert result.low < result.difference < result.high


def test_compare_by_hand():
    # five people, all better: the exact two-sided p is 2 / 2⁵
    result = paired_test([2, 4, 6, 8, 10.5], [1, 2, 3, 4, 5], seed=0)
    assert result.p == pytest.approx(2 / 32)
    assert result.rank_biserial == 1
    # differences 1, −2, 3: ranks +1, −2, +3 of 6
    assert paired_test([1, 0, 3], [0, 2, 0], seed=0).rank_biserial == pytest.approx(2 / 6)


def test_compare_without_difference_and_with_infinite_values():
    same = paired_test([1.0, 2.0, np.inf], [1.0, 2.0, np.inf], seed=0)
    assert (same.p, same.difference, same.rank_biserial) == (1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="NaN"):
        paired_test([1.0, np.nan], [1.0, 2.0], seed=0)
    with pytest.raises(ValueError, match="equal length"):
        paired_test([1.0], [1.0, 2.0], seed=0)


def test_bootstrap_is_seeded():
    values = np.random.default_rng(2).normal(size=25)
    assert interval(values, seed=3) == interval(values, seed=3)
    assert interval(values, seed=3) != interval(values, seed=4)
    low, high = interval(values + 5, seed=3)  # paired: the same people are drawn for every method
    assert (low, high) == pytest.approx(tuple(np.array(interval(values, seed=3)) + 5))


def test_bootstrap_near_the_normal_interval():
    values = np.random.default_rng(5).normal(10, 2, 400)
    half = 1.96 * values.std() / 20
    assert interval(values, seed=0) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_bootstrap_covers():
    rng = np.random.default_rng(6)
    samples = rng.exponential(1.0, (300, 40))  # skewed, true mean 1
    intervals = [interval(sample, seed=i, repeats=500) for i, sample in enumerate(samples)]
    covered = np.mean([low <= 1 <= high for low, high in intervals])
    assert 0.88 <= covered <= 0.98


def test_bootstrap_of_too_little():
    assert np.isnan(interval([1.0], seed=0)).all()
    assert np.isnan(interval([1.0, np.inf], seed=0)).all()


def scores(**methods: list[float]) -> pd.DataFrame:
    """Two sessions of the first person, one of each other; PSNR as given, on both tracers and in the brain."""
    rows = []
    for method, values in methods.items():
        people = ["a", "a", *"bcdefghij"[: len(values) - 2]]
        sessions = ["1", "2", *["1"] * (len(values) - 2)]
        for who, session, value in zip(people, sessions, values, strict=True):
            for tracer in ("amyloid", "tau"):
                row = {"method": method, "person": who, "session": session, "tracer": tracer, "region": "brain"}
                rows.append(row | {"mae": 1 / value, "psnr": value, "ssim": value / 100})
    return pd.DataFrame(rows)


def test_sessions_are_averaged_within_a_person_first():
    people = by_person(scores(B=[10, 20, 30], A=[1, 3, 5]))
    amyloid = people[people["tracer"] == "amyloid"]
    assert list(amyloid["method"]) == ["B", "B", "A", "A"]  # order of appearance
    assert list(amyloid["psnr"]) == [15, 30, 2, 5]  # not (10, 20, 30)


def test_paired_needs_the_same_people():
    people = by_person(scores(A=[1, 3, 5, 7], B=[1, 3, 5]))
    with pytest.raises(ValueError, match=r"'A' and 'B'.*only one has c"):
        paired(people[people["tracer"] == "tau"], "A", "B", "psnr")


def test_beats_the_template():
    rng = np.random.default_rng(0)
    template = rng.uniform(20, 25, 10)
    table = scores(ResDM=list(template + rng.uniform(1, 2, 10)), template=list(template))
    result = beats(table, "ResDM", seed=0)
    assert list(result["metric"]) == ["mae", "psnr", "ssim"] * 2
    assert (result["won"] == 1).all()
    assert (result["improvement"] > 0).all()  # for MAE, less is better
    assert (result["ci_low"] > 0).all()
    assert (result["n"] == 9).all()  # people, not sessions
    assert result["p"].iloc[0] == pytest.approx(1 / 2**9)
    assert result["p_holm"].tolist() == pytest.approx([6 / 2**9] * 6)
    assert beats(table, "ResDM", "regression", seed=0).empty  # the profile does not run it
    both = beats(table, "ResDM", ["template", "regression", "ResDM"], metrics=["psnr"], seed=0)
    assert both["other"].tolist() == ["template"] * 2  # by tracer
    assert both["p_holm"].tolist() == pytest.approx([2 / 2**9] * 2)
    worse = beats(table, "template", "ResDM", seed=0)
    assert (worse["p"] > 0.99).all()


def test_trainings_are_averaged_by_person_and_resampled_for_themselves():
    rng = np.random.default_rng(0)
    one, other, template = rng.normal(25, 1, 8), rng.normal(26, 1, 8), rng.normal(24, 1, 8)
    table = scores(**{"A": [one[0], *one], "A@seed1": [other[0], *other], "B": [template[0], *template]})
    part = by_person(table).query("tracer == 'tau'")
    a, b = paired(part, "A", "B", "psnr")
    assert a == pytest.approx(np.stack([one, other]))
    found = paired_test(a, b, seed=3)
    mean = (one + other) / 2 - template
    assert (found.n, found.difference) == (8, pytest.approx(mean.mean()))
    assert found.p == pytest.approx(stats.wilcoxon(mean).pvalue)
    people_alone = interval(mean, seed=3)
    assert found.high - found.low > people_alone[1] - people_alone[0]  # trainings vary too
    once = paired_test(np.stack([one, one]), template, seed=3)  # trainings that agree add nothing
    assert (once.low, once.high) == pytest.approx(interval(one - template, seed=3))
    fewer = table[~((table["method"] == "A@seed1") & (table["person"] == "c"))]
    with pytest.raises(ValueError, match=r"'A': its seeds were not scored on the same people \(c 1 "):
        by_person(fewer)


def test_typical_session_is_the_median_one():
    table = scores(ResDM=[20, 29, 26, 24, 22], template=[1, 2, 3, 4, 5])
    assert typical_session(table) == ("c", "1")  # of 20, 22, 24, 26, 29
    without_tau = table[~((table["person"] == "c") & (table["tracer"] == "tau"))]
    assert typical_session(without_tau) == ("d", "1")  # lower middle of 20, 22, 26, 29
    with pytest.raises(ValueError, match="both tracers"):
        typical_session(table[table["tracer"] == "tau"])


def test_an_interval_is_as_wide_as_people_and_trainings_make_it():
    """In closed form, for a sum of both: the variance of the mean is the sum of two, each over its number."""
    draw = np.random.default_rng(1)
    people, trainings = draw.normal(size=(60, 1)), draw.normal(size=(1, 6))
    low, high = interval((3 + people + trainings).T, seed=0)
    deviation = (people.var() / 60 + trainings.var() / 6) ** 0.5
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.05)
    assert low < 3 + people.mean() + trainings.mean() < high
    one = interval(people.T, seed=0)
    assert one[1] - one[0] == pytest.approx(2 * 1.96 * (people.var() / 60) ** 0.5, rel=0.05)
    assert np.isnan(interval(trainings.T, seed=0)).all()  # one person tells nothing of people
