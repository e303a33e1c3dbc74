"""Agreement: against published values, closed forms and data whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from resdm_suite.evaluation.agreement import agreement_table, bland_altman, concordance, intraclass, pearson, slope

SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
"""Table 2 of Shrout and Fleiss 1979: six targets, four judges."""


def test_intraclass_of_the_published_example():
    agreement, consistency = (intraclass(SHROUT_FLEISS, kind) for kind in ("agreement", "consistency"))
    assert (round(agreement.value, 2), round(consistency.value, 2)) == (0.29, 0.71)  # as printed
    assert (round(agreement.low, 2), round(agreement.high, 2)) == (0.02, 0.76)
    assert (round(consistency.low, 2), round(consistency.high, 2)) == (0.34, 0.95)


def test_intraclass_by_hand():
    assert intraclass(np.array([[1, 2], [2, 3], [3, 4]])).value == pytest.approx(2 / 3)  # mean squares 2, 1.5 and 0
    assert intraclass(np.array([[1, 2], [2, 3], [3, 4]]), "consistency").value == 1  # ignores the bias
    assert intraclass(np.array([[1, 3], [2, 2], [3, 1]])).value < 0


def test_intraclass_of_opposite_ratings_has_no_interval():
    """Satterthwaite's degrees of freedom are nearly 0, and the quantile of F infinite."""
    ratings = np.array([[1.01572696, 1.00935236], [1.01538749, 1.00960938], [1.01146025, 1.01210322]])
    n, rows, columns = 3, 2 * ratings.mean(1).var(ddof=1), 3 * ratings.mean(0).var(ddof=1)
    error = (ratings - ratings.mean(1)[:, None] - ratings.mean(0) + ratings.mean()).var(ddof=0) * 6 / 2
    found = intraclass(ratings)
    assert found.value == pytest.approx((rows - error) / (rows + error + 2 * (columns - error) / n))
    assert np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize("kind", ["agreement", "consistency"])
def test_intraclass_intervals_have_their_nominal_coverage(kind):
    """500 cohorts of 30 people whose true ICC is 0.8: the interval of 95 % contains it in about 95 % of them."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(500):
        truth = rng.normal(0, 1, (30, 1))
        found = intraclass(truth + rng.normal(0, 0.5, (30, 2)), kind)
        hits += found.low <= 0.8 <= found.high
    assert 0.925 <= hits / 500 <= 0.975


def test_bland_altman_by_hand():
    found = bland_altman([1, 2, 3, 4], [2, 2, 4, 6])  # differences 1, 0, 1, 2
    sd, t = math.sqrt(2 / 3), stats.t.ppf(0.975, 3)
    assert (found["bias"].value, found["sd"].value) == (1, pytest.approx(sd))
    assert found["bias"].high == pytest.approx(1 + t * sd / 2)
    assert found["upper"].value == pytest.approx(1 + 1.959964 * sd)
    assert found["lower"].value == pytest.approx(1 - 1.959964 * sd)
    rim = t * sd * math.sqrt(1 / 4 + 1.959964**2 / 6)
    assert found["upper"].high - found["upper"].value == pytest.approx(rim)


def test_concordance_in_closed_form():
    x = np.array([1.0, 2, 3, 4, 5])
    assert concordance(x, x).value == pytest.approx(1)
    assert concordance(x, -x + 6).value == pytest.approx(-1)
    shifted = concordance(x, x + 1)  # 2 · 2 / (2 + 2 + 1)
    assert shifted.value == pytest.approx(0.8)
    rng = np.random.default_rng(2)
    y = x.repeat(20) + rng.normal(0, 1, 100)
    found = concordance(x.repeat(20), y)
    assert found.low < found.value < found.high
    assert found.value < pearson(x.repeat(20), y).value


def test_pearson_and_slope_by_hand():
    x, y = [0, 1, 2, 3], [0, 1, 1, 2]  # slope 0.6, r² = 0.9
    assert slope(x, y).value == pytest.approx(0.6)
    assert pearson(x, y).value == pytest.approx(math.sqrt(0.9))
    half = stats.norm.ppf(0.975)
    assert pearson(x, y).low == pytest.approx(math.tanh(math.atanh(math.sqrt(0.9)) - half))
    error = math.sqrt(0.2 / 2 / 5)  # residual sum 0.2, two degrees of freedom, spread of x 5
    assert slope(x, y).high == pytest.approx(0.6 + stats.t.ppf(0.975, 2) * error)


def test_sessions_of_a_person_count_once():
    rows = [("a", 1.0, 1.2), ("a", 1.2, 1.4), ("b", 1.5, 1.5), ("c", 2.0, 2.1), ("d", 1.7, 1.6)]
    values = pd.DataFrame(rows, columns=["person", "real", "synthetic"]).assign(method="m", region="r")
    (row,) = agreement_table(values, ["method", "region"]).to_dict("records")
    assert row["n"] == 4
    assert row["bias"] == pytest.approx(np.mean([0.2, 0.0, 0.1, -0.1]))


def test_undefined_estimates_are_nan_and_wrong_input_is_refused():
    assert math.isnan(pearson([1, 1, 1], [1, 2, 3]).value)
    assert math.isnan(intraclass(np.ones((5, 2))).value)
    assert math.isnan(intraclass(np.ones((2, 2))).value)
    assert math.isnan(intraclass(np.array([[0.0, 0.25]] * 4), "consistency").value)  # a change that is 0 in everyone
    assert bland_altman([1, 2], [2, 3])["bias"].value == 1
    assert math.isnan(bland_altman([1, 2], [2, 3])["upper"].value)
    for call in (bland_altman, concordance, pearson, slope):
        with pytest.raises(ValueError, match="equal length"):
            call([1, 2], [1])
        with pytest.raises(ValueError, match="number for everyone"):
            call([1, 2, math.nan], [1, 2, 3])
    with pytest.raises(ValueError, match="agreement or consistency"):
        intraclass(SHROUT_FLEISS, "absolute")
