"""Paired tests and intervals over people.

The unit is the person: the sessions of one person are averaged first, then people are compared, resampled and
counted. So a person with many visits weighs no more than another, and no test takes two visits for independent.

Trainings ``X``, ``X@seed1``, … of one method are one row ``X``: a person's value is their average, tests are over
people, and intervals resample people and, independently for each method, its trainings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from resdm.settings import TRACERS
from resdm_suite.evaluation.image_quality import HIGHER_IS_BETTER, METRICS

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

    Raises
    ------
    ValueError
        See `check_trainings`.
    """
    keys = [key for key in ("method", "tracer", "region", "person") if key in scores]
    frame = scores
    if "method" in keys:
        check_trainings(scores)
        frame = scores.assign(method=pd.Categorical(scores["method"], list(dict.fromkeys(scores["method"]))))
    means = frame.groupby(keys, observed=True, sort=True)[list(values)].mean().reset_index()
    return means.astype({"method": str}) if "method" in keys else means


def check_trainings(scores: pd.DataFrame) -> None:
    """Raise `ValueError` where repeated trainings of a method (``X``, ``X@…``) were not scored on the same sessions."""
    keys = [key for key in ("person", "session", "tracer", "region") if key in scores]
    named = scores.assign(row=scores["method"].str.partition("@")[0])
    trainings = named.groupby("row")["method"].nunique()
    scored = named.groupby(["row", *keys])["method"].nunique()
    uneven = scored[scored != scored.index.get_level_values("row").map(trainings)]
    if len(uneven):
        method, *who = uneven.index[0]
        raise ValueError(
            f"{method!r}: its seeds were not scored on the same people ({' '.join(who)} has {uneven.iloc[0]} of "
            f"{trainings[method]}); synthesise and score them again"
        )


def trained(scores: pd.DataFrame, method: str, metric: str) -> pd.DataFrame:
    """A method's values by training and person.

    Parameters
    ----------
    scores : DataFrame
        `by_person` rows of one tracer and region; trainings of ``X`` are ``X`` and ``X@…``.
    method : str
    metric : str

    Returns
    -------
    DataFrame (trainings, people)
    """
    chosen = scores[scores["method"].str.partition("@")[0] == method]
    return chosen.pivot_table(metric, "method", "person")


def resampled_means(values: np.ndarray, *, seed: int, repeats: int = REPEATS, stream: int = 1) -> np.ndarray:
    """Means over resampled people and, where a method was trained several times, over resampled trainings.

    Parameters
    ----------
    values : ndarray (n,) or (k, n)
        One value a person, or one a training and person.
    seed : int
        The same seed and n draw the same people, so what is resampled of several methods is paired.
    repeats : int
    stream : int
        Of the trainings' draws: methods that are compared draw theirs independently, each from a stream of its own.

    Returns
    -------
    ndarray (repeats,)
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    k, n = values.shape
    people = np.random.default_rng(seed).integers(n, size=(repeats, n))
    means = np.stack([one[people].mean(axis=1) for one in values])  # (k, repeats)
    if k == 1:
        return means[0]
    trainings = np.random.default_rng([seed, stream]).multinomial(k, np.full(k, 1 / k), size=repeats)  # (repeats, k)
    return np.sum(trainings.T * means, axis=0) / k


def bootstrap_mean(
    values: np.ndarray, *, seed: int, minus: np.ndarray | None = None, repeats: int = REPEATS, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over people, and over trainings where there are several.

    Parameters
    ----------
    values : array (n,) or (k, n)
        See `resampled_means`.
    minus : array (n,) or (k, n), optional
        Values of another method over the same people: the interval is that of the mean paired difference.
    seed, repeats
        See `resampled_means`.
    level : float

    Returns
    -------
    tuple of float
        Lower and upper end; NaN for fewer than two people, or where a value is infinite.
    """
    both = [np.asarray(one, dtype=np.float64) for one in (values, minus) if one is not None]
    if both[0].shape[-1] < 2 or not all(np.isfinite(one).all() for one in both):
        return float("nan"), float("nan")
    resampled = [resampled_means(one, seed=seed, repeats=repeats, stream=i) for i, one in enumerate(both, 1)]
    return _ends(resampled[0] if minus is None else resampled[0] - resampled[1], level)


def _ends(resampled: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
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
        Mean of a − b with its 95 % bootstrap interval, over people and over trainings where there are several.
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
    a, b : ndarray (n,) or (trainings, n)
        One value a person, in the same order; of several trainings, the test is on the person's average.
    seed : int
        Of the bootstrap.
    alternative : {"two-sided", "greater", "less"}
        Of the test: ``greater`` is a > b.

    Notes
    -----
    Pairs without a difference are left out of the test and the rank correlation (Wilcoxon's way), not of the mean.
    Without any difference p is 1. The test is exact for up to 50 people without ties, as scipy decides.
    """
    values = [np.atleast_2d(np.asarray(one, dtype=np.float64)) for one in (a, b)]  # (trainings, n) each
    a, b = (one.mean(axis=0) for one in values)
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
    if len(values[0]) == len(values[1]) == 1 or not np.isfinite(np.concatenate(values)).all():
        low, high = bootstrap_mean(difference, seed=seed)
    else:
        low, high = bootstrap_mean(values[0], minus=values[1], seed=seed)
    mean = float(difference.mean()) if len(difference) else float("nan")
    return Comparison(len(a), mean, low, high, correlation, p)


def paired(scores: pd.DataFrame, a: str, b: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of two methods over the same people (trainings, n), in the order of their identifiers.

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
    tables = [trained(scores, name, metric) for name in (a, b)]
    people = [table.columns for table in tables]
    if people[0].empty or not people[0].equals(people[1]):
        apart = sorted(set(people[0]) ^ set(people[1]))
        raise ValueError(
            f"{a!r} and {b!r} were not scored on the same people ({len(people[0])} and {len(people[1])}; "
            f"only one has {', '.join(apart[:5]) or 'any'}); synthesise and score both again"
        )
    return tables[0].to_numpy(), tables[1].to_numpy()


def beats(
    scores: pd.DataFrame,
    method: str,
    others: str | Iterable[str] = "template",
    *,
    metrics: Iterable[str] = METRICS,
    region: str = "brain",
    seed: int,
) -> pd.DataFrame:
    """Whether a method is better than others on every tracer and metric, by one-sided paired tests.

    Parameters
    ----------
    scores : DataFrame
        Stored scores with ``method``, see `resdm_suite.evaluation.image_quality.read_scores`.
    method : str
    others : str or iterable of str
        Left out are those without any score: the profile does not run them.
    metrics : iterable of str
    region : {"whole", "brain"}
    seed : int

    Returns
    -------
    DataFrame
        One row an other method, tracer and metric: n, people won (fraction), improvement (difference towards better,
        positive is better; fractions and dB) with its 95 % interval, rank-biserial correlation, one-sided p and Holm's
        p over all rows. Empty where there is nothing to compare.
    """
    people = by_person(scores[scores["region"] == region])
    there = set(people["method"].str.partition("@")[0])
    rows = []
    for other in [others] if isinstance(others, str) else others:
        for tracer in dict.fromkeys(people["tracer"]) if {method, other} <= there and method != other else ():
            part = people[people["tracer"] == tracer]
            for metric in metrics:
                a, b = paired(part, method, other, metric)
                if not HIGHER_IS_BETTER[metric]:
                    a, b = b, a  # so that a positive difference is an improvement
                result = compare(a, b, seed=seed, alternative="greater")
                rows.append(
                    {"method": method, "other": other, "tracer": tracer, "region": region, "metric": metric}
                    | {"n": result.n, "won": float(np.mean(a.mean(axis=0) > b.mean(axis=0)))}
                    | {"improvement": result.difference, "ci_low": result.low, "ci_high": result.high}
                    | {"rank_biserial": result.rank_biserial, "p": result.p}
                )
    frame = pd.DataFrame(rows)
    return frame.assign(p_holm=holm(frame["p"])) if rows else frame


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
