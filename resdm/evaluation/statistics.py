"""Paired tests and intervals over people.

The unit is the person: the sessions of one person are averaged first, then people are compared, resampled and
counted. So a person with many visits weighs no more than another, and no test takes two visits for independent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from resdm.config import TRACERS
from resdm.evaluation.image_quality import HIGHER_IS_BETTER, METRICS

REPEATS = 10_000
"""Bootstrap resamples."""


def by_person(scores: pd.DataFrame, values: Iterable[str] = METRICS) -> pd.DataFrame:
    """One row a person: the mean over that person's sessions.

    Parameters
    ----------
    scores : DataFrame
        Rows of ``scores.csv``, with or without ``method``: any of ``method, tracer, region`` stay apart.
    values : iterable of str
        Columns to average.

    Returns
    -------
    DataFrame
        Sorted by method (in order of appearance), tracer, region, person.
    """
    keys = [key for key in ("method", "tracer", "region", "person") if key in scores]
    frame = scores
    if "method" in keys:
        frame = scores.assign(method=pd.Categorical(scores["method"], list(dict.fromkeys(scores["method"]))))
    means = frame.groupby(keys, observed=True, sort=True)[list(values)].mean().reset_index()
    return means.astype({"method": str}) if "method" in keys else means


def bootstrap_mean(
    values: np.ndarray, *, seed: int, repeats: int = REPEATS, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean.

    Parameters
    ----------
    values : ndarray (n,)
        One value a person. NaN where it cannot be resampled (fewer than two values, or an infinite one).
    seed : int
        The same seed and n draw the same people, so intervals of several methods are paired.
    repeats : int
    level : float

    Returns
    -------
    tuple of float
        Lower and upper end.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(len(values), size=(repeats, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(p_values: Iterable[float]) -> np.ndarray:
    """Holm's step-down adjustment of a family of p values; NaN stays NaN and counts for nothing."""
    p = np.asarray(list(p_values), dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return adjusted


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of ``a`` with ``b`` over people.

    Parameters
    ----------
    n : int
        People.
    difference, low, high : float
        Mean of a − b with its 95 % bootstrap interval.
    rank_biserial : float
        Matched-pairs rank-biserial correlation in [−1, 1]: 1 where a is above b in everyone.
    p : float
        Wilcoxon signed-rank test, not corrected for the number of comparisons.
    """

    n: int
    difference: float
    low: float
    high: float
    rank_biserial: float
    p: float


def compare(a: np.ndarray, b: np.ndarray, *, seed: int, alternative: str = "two-sided") -> Comparison:
    """Compare two methods over the same people.

    Parameters
    ----------
    a, b : ndarray (n,)
        One value a person, in the same order.
    seed : int
        Of the bootstrap.
    alternative : {"two-sided", "greater", "less"}
        Of the test: ``greater`` is a > b.

    Notes
    -----
    Pairs without a difference are left out of the test and the rank correlation (Wilcoxon's way), not of the mean.
    Without any difference p is 1. The test is exact for up to 50 people without ties, as scipy decides.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"a paired comparison needs two lists of equal length; found {a.shape} and {b.shape}")
    if np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("a paired comparison needs a number for everyone; found NaN")
    difference = np.subtract(a, b, out=np.zeros_like(a), where=a != b)  # inf − inf counts as no difference
    moved = difference[difference != 0]
    if len(moved) == 0:
        p, correlation = 1.0, 0.0
    else:
        p = float(stats.wilcoxon(moved, alternative=alternative).pvalue)
        ranks = stats.rankdata(np.abs(moved))
        correlation = float(np.sum(np.sign(moved) * ranks) / ranks.sum())
    low, high = bootstrap_mean(difference, seed=seed)
    mean = float(difference.mean()) if len(difference) else float("nan")
    return Comparison(len(a), mean, low, high, correlation, p)


def paired(scores: pd.DataFrame, a: str, b: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of two methods over the same people, in the order of their identifiers.

    Parameters
    ----------
    scores : DataFrame
        `by_person` rows of one tracer and region.
    a, b : str
        Methods.
    metric : str

    Raises
    ------
    ValueError
        Where the two were not scored on the same people: names the methods and the people.
    """
    columns = [scores[scores["method"] == name].set_index("person")[metric].sort_index() for name in (a, b)]
    if columns[0].empty or not columns[0].index.equals(columns[1].index):
        apart = sorted(set(columns[0].index) ^ set(columns[1].index))
        raise ValueError(
            f"{a!r} and {b!r} were not scored on the same people ({len(columns[0])} and {len(columns[1])}; "
            f"only one has {', '.join(apart[:5]) or 'any'}); synthesise and score both again"
        )
    return columns[0].to_numpy(), columns[1].to_numpy()


def beats(
    scores: pd.DataFrame, method: str, other: str = "template", *, region: str = "brain", seed: int
) -> pd.DataFrame:
    """Whether a method is better than another on every tracer and metric, by one-sided paired tests.

    Parameters
    ----------
    scores : DataFrame
        Stored scores with ``method``, see `resdm.evaluation.image_quality.read_scores`.
    method, other : str
    region : {"whole", "brain"}
    seed : int

    Returns
    -------
    DataFrame
        One row a tracer and metric: n, people won (fraction), difference towards better (positive is better; fractions
        and dB) with its 95 % interval, rank-biserial correlation, one-sided p and Holm's p over all rows. Empty where
        one of the two has no scores at all: the profile does not run it.
    """
    if not {method, other} <= set(scores["method"]):
        return pd.DataFrame()
    people = by_person(scores[scores["region"] == region])
    rows = []
    for tracer in dict.fromkeys(people["tracer"]):
        part = people[people["tracer"] == tracer]
        for metric in METRICS:
            a, b = paired(part, method, other, metric)
            if not HIGHER_IS_BETTER[metric]:
                a, b = b, a  # so that a positive difference is an improvement
            result = compare(a, b, seed=seed, alternative="greater")
            rows.append(
                {
                    "method": method,
                    "other": other,
                    "tracer": tracer,
                    "region": region,
                    "metric": metric,
                    "n": result.n,
                    "won": float(np.mean(a > b)),
                    "improvement": result.difference,
                    "ci_low": result.low,
                    "ci_high": result.high,
                    "rank_biserial": result.rank_biserial,
                    "p": result.p,
                }
            )
    frame = pd.DataFrame(rows)
    return frame.assign(p_holm=holm(frame["p"]))


def typical_session(scores: pd.DataFrame, method: str = "ResDM", *, region: str = "brain") -> tuple[str, str]:
    """The session that figures show: the one whose PSNR of ``method`` is the median, so that nobody picks it.

    Of the sessions scored on both tracers, PSNR is averaged over the two; taken is the lower of the two middle ones
    where their number is even, and the first by identifier where several are equal.

    Returns
    -------
    tuple of str
        Person and session.
    """
    chosen = scores[(scores["method"] == method) & (scores["region"] == region)]
    sessions = chosen.groupby(["person", "session"])
    psnr = sessions["psnr"].mean()[sessions["tracer"].nunique() == len(TRACERS)]
    if psnr.empty:
        raise ValueError(f"no session of {method!r} is scored on both tracers in region {region!r}")
    person, session = psnr.sort_index().sort_values(kind="stable").index[(len(psnr) - 1) // 2]
    return person, session
