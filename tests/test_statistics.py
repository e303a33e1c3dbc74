"""Tests and intervals against scipy, hand-computed cases and simulated coverage."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from resdm_suite.evaluation.statistics import (
    REPEATS,
    beats,
    by_person,
    holm,
    interval,
    paired,
    paired_test,
    percentile_interval,
    person_resamples,
    person_weights,
    training_resamples,
    typical_session,
)

# ── the bootstrap ─────────────────────────────────────────────────────────────────────────────────


def test_the_interval_of_a_mean_is_scipys_bootstrap():
    values = np.random.default_rng(2).normal(10, 2, 25)
    for level in (0.95, 0.9):
        theirs = stats.bootstrap(
            (values,), np.mean, n_resamples=REPEATS, method="percentile", confidence_level=level,
            rng=np.random.default_rng(3),
        ).confidence_interval  # fmt: skip
        assert interval(values, seed=3, level=level) == pytest.approx(theirs, abs=1e-12)
    assert interval(values, seed=3) != interval(values, seed=4)
    shifted = interval(values + 5, seed=3)  # the same people are drawn for every method
    assert shifted == pytest.approx(tuple(np.array(interval(values, seed=3)) + 5))


def test_sessions_of_a_person_are_averaged_before_the_bootstrap():
    values, people = pd.Series([1.0, 3.0, 5.0, 8.0, 2.0]), list("aabcd")
    assert interval(values, by=people, seed=0) == interval([2.0, 5.0, 8.0, 2.0], seed=0)
    other = pd.Series([1.0, 1.0, 1.0, 2.0, 4.0])
    assert interval(values, by=people, minus=other, seed=0) == pytest.approx(interval([1.0, 4, 6, -2], seed=0))


def test_an_interval_is_as_wide_as_people_and_trainings_make_it():
    """In closed form, for a sum of both: trainings are few, so their variance is the unbiased one."""
    rng = np.random.default_rng(1)
    people, trainings = rng.normal(size=(1, 60)), rng.normal(size=(6, 1))
    low, high = interval(3 + people + trainings, seed=0)
    deviation = (people.var() / 60 + trainings.var(ddof=1) / 6) ** 0.5
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.05)
    assert low < 3 + people.mean() + trainings.mean() < high


def test_intervals_of_too_few_or_infinite_values_are_nan():
    for values in ([1.0], [1.0, np.inf], np.ones((6, 1))):
        assert np.isnan(interval(values, seed=0)).all()
    assert np.isnan(percentile_interval(np.array([np.nan, np.nan, np.nan, 1.0, 2.0]))).all()
    assert percentile_interval(np.array([np.nan, 1.0, 2.0, 3.0]), 0.5) == (1.5, 2.5)
    assert np.isnan(person_resamples(["a", "a"], seed=0)).all(), "of one person all resamples are equal"


def test_resamples_draw_people_with_all_sessions():
    assert person_weights(["a", "b", "a", "c", "a"]).tolist() == pytest.approx([1 / 3, 1, 1 / 3, 1, 1 / 3])
    assert person_weights([]).size == 0
    weights = person_resamples(["b", "a", "b", "c"], seed=1, repeats=500)
    assert weights.sum(axis=1) == pytest.approx(np.full(500, 3))  # people
    assert (weights[:, 0] == weights[:, 2]).all()
    assert set(np.unique(weights[:, 1])) <= {0, 1, 2, 3}
    assert weights[:, 1].mean() == pytest.approx(1, abs=0.1)
    assert (weights == person_resamples(["b", "a", "b", "c"], seed=1, repeats=500)).all()
    assert (weights != person_resamples(["b", "a", "b", "c"], seed=2, repeats=500)).any()


def test_trainings_are_resampled_with_the_variance_of_their_mean():
    assert (training_resamples(1, seed=0, repeats=5) == 1).all()
    for count in (2, 3, 6):
        shares = training_resamples(count, seed=1, repeats=40_000)
        assert shares.sum(axis=1) == pytest.approx(np.ones(40_000))
        values = np.random.default_rng(count).normal(size=count)
        assert (shares @ values).mean() == pytest.approx(values.mean(), abs=0.02)
        assert (shares @ values).var() == pytest.approx(values.var(ddof=1) / count, rel=0.03)


# ── tests ─────────────────────────────────────────────────────────────────────────────────────────


def test_holm():
    # sorted 0.01·4, 0.02·3, 0.03·2, 0.04·1 → 0.04, 0.06, 0.06, 0.06 by the running maximum
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.01, np.nan, 0.04]) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert holm([]).size == 0


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_a_paired_test_is_scipys_wilcoxon(alternative):
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.3, 1, 30), rng.normal(0, 1, 30)
    result = paired_test(a, b, seed=0, alternative=alternative)
    assert result.p == pytest.approx(stats.wilcoxon(a, b, alternative=alternative).pvalue)
    assert result.difference == pytest.approx(np.mean(a - b))
    assert (result.low, result.high) == interval(a - b, seed=0)


def test_a_paired_test_by_hand():
    # five people, all better: the exact two-sided p is 2 / 2⁵
    result = paired_test([2, 4, 6, 8, 10.5], [1, 2, 3, 4, 5], seed=0)
    assert (result.p, result.rank_biserial) == (pytest.approx(2 / 32), 1)
    # differences 1, −2, 3: ranks +1, −2, +3 of 6
    assert paired_test([1, 0, 3], [0, 2, 0], seed=0).rank_biserial == pytest.approx(2 / 6)
    same = paired_test([1.0, 2.0, np.inf], [1.0, 2.0, np.inf], seed=0)
    assert (same.p, same.difference, same.rank_biserial) == (1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="NaN"):
        paired_test([1.0, np.nan], [1.0, 2.0], seed=0)
    with pytest.raises(ValueError, match="equal length"):
        paired_test([1.0], [1.0, 2.0], seed=0)


# ── stored scores ─────────────────────────────────────────────────────────────────────────────────


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


def test_paired_values_need_the_same_people():
    people = by_person(scores(A=[1, 3, 5, 7], B=[1, 3, 5]))
    with pytest.raises(ValueError, match=r"'A' and 'B'.*only one has c"):
        paired(people[people["tracer"] == "tau"], "A", "B", "psnr")


def test_beats_the_template():
    rng = np.random.default_rng(0)
    template = rng.uniform(20, 25, 10)
    table = scores(ResDM=list(template + rng.uniform(1, 2, 10)), template=list(template))
    result = beats(table, "ResDM", seed=0)
    assert list(result["metric"]) == ["mae", "psnr", "ssim"] * 2
    assert (result[["improvement", "ci_low"]] > 0).all(axis=None)  # for MAE, less is better
    assert result[["won", "n"]].drop_duplicates().to_numpy().tolist() == [[1, 9]]  # people, not sessions
    assert result["p"].iloc[0] == pytest.approx(1 / 2**9)
    assert result["p_holm"].tolist() == pytest.approx([6 / 2**9] * 6)
    assert beats(table, "ResDM", "regression", seed=0).empty  # the profile does not run it
    both = beats(table, "ResDM", ["template", "regression", "ResDM"], metrics=["psnr"], seed=0)
    assert both["other"].tolist() == ["template"] * 2  # by tracer
    assert both["p_holm"].tolist() == pytest.approx([2 / 2**9] * 2)
    assert (beats(table, "template", "ResDM", seed=0)["p"] > 0.99).all()


def test_trainings_are_averaged_by_person_and_resampled_independently():
    rng = np.random.default_rng(0)
    one, other, template = rng.normal(25, 1, 8), rng.normal(26, 1, 8), rng.normal(24, 1, 8)
    table = scores(**{"A": [one[0], *one], "A@seed1": [other[0], *other], "B": [template[0], *template]})
    a, b = paired(by_person(table).query("tracer == 'tau'"), "A", "B", "psnr")
    assert a == pytest.approx(np.stack([one, other]))
    result = paired_test(a, b, seed=3)
    mean = (one + other) / 2 - template
    assert (result.n, result.difference) == (8, pytest.approx(mean.mean()))
    assert result.p == pytest.approx(stats.wilcoxon(mean).pvalue)
    people_alone = interval(mean, seed=3)
    assert result.high - result.low > people_alone[1] - people_alone[0]  # trainings vary too
    equal = paired_test(np.stack([one, one]), template, seed=3)  # equal trainings add nothing
    assert (equal.low, equal.high) == pytest.approx(interval(one - template, seed=3))
    fewer = table[~((table["method"] == "A@seed1") & (table["person"] == "c"))]
    with pytest.raises(ValueError, match=r"'A': its seeds were not scored on the same people \(c 1 "):
        by_person(fewer)


def test_the_typical_session_has_the_median_psnr():
    table = scores(ResDM=[20, 29, 26, 24, 22], template=[1, 2, 3, 4, 5])
    assert typical_session(table) == ("c", "1")  # of 20, 22, 24, 26, 29
    without_tau = table[~((table["person"] == "c") & (table["tracer"] == "tau"))]
    assert typical_session(without_tau) == ("d", "1")  # lower middle of 20, 22, 26, 29
    assert typical_session(table[table["tracer"] == "tau"]) == ("c", "1")  # a cohort of one tracer
    with pytest.raises(ValueError, match="no session of 'Base' is scored in region 'brain'"):
        typical_session(table, "Base")
