"""Statistics of sessions in which every person counts once, and their intervals over people and trainings.

A session weighs one over the number of its person's sessions, so that repeat visits add nothing to a person's weight
and a status or an age that changed between visits stays what it was. Intervals come from resampling people with all
their sessions and, independently, the trainings of a method. Every statistic takes weights of one resample or of many,
``(…, sessions)``, and gives ``(…)``.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import stats

from resdm_suite.evaluation.statistics import REPEATS


def person_weights(people: Iterable[str]) -> np.ndarray:
    """The weight of every session: one over the number of its person's sessions.

    Parameters
    ----------
    people : iterable of str, length n
        Whose session each row is.

    Returns
    -------
    ndarray (n,)
    """
    _, which, counts = np.unique(np.asarray(list(people), dtype=str), return_inverse=True, return_counts=True)
    return 1 / counts[which]


def resamples(people: Iterable[str], *, seed: int, repeats: int = REPEATS) -> np.ndarray:
    """Weights of bootstrap resamples of people, each with all sessions.

    Parameters
    ----------
    people : iterable of str, length n
    seed : int
        The same seed and the same people draw the same resamples, so that what is computed on them is paired.
    repeats : int

    Returns
    -------
    ndarray (repeats, n)
        `person_weights`, times how often the person was drawn.
    """
    names, which, counts = np.unique(np.asarray(list(people), dtype=str), return_inverse=True, return_counts=True)
    if len(names) == 0:
        return np.empty((repeats, 0))
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=repeats)
    return (drawn / counts)[:, which]


def training_shares(trainings: int, *, seed: int, repeats: int = REPEATS) -> np.ndarray:
    """Weights of bootstrap resamples of a method's trainings.

    Parameters
    ----------
    trainings : int
    seed : int
        Another one than that of `resamples`, and another for each method: their trainings are independent.
    repeats : int

    Returns
    -------
    ndarray (repeats, trainings)
        Each row sums to 1: the share of every training in the mean over them. One training has no spread.

    Notes
    -----
    Of k trainings k − 1 are drawn. Drawing k, as is usual where there are many, gives the mean of k values a variance
    that is too small by the factor (k − 1)/k, a third of it for three trainings (Rao and Wu 1988, JASA 83:231).
    """
    if trainings == 1:
        return np.ones((repeats, 1))
    even = np.full(trainings, 1 / trainings)
    return np.random.default_rng(seed).multinomial(trainings - 1, even, size=repeats) / (trainings - 1)


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a resampled statistic.

    Resamples in which it is not defined (one class alone, an age that does not vary) are left out; NaN where those are
    more than half.
    """
    known = values[np.isfinite(values)]
    if 2 * len(known) < len(values) or len(known) < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# ── classification ────────────────────────────────────────────────────────────────────────────────


def auc(label: np.ndarray, score: np.ndarray, weights: np.ndarray, pairs: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Parameters
    ----------
    label : ndarray (n,)
        0 or 1.
    score : ndarray (n,) or (k, n)
        Of several scores, their mean area is given: the same as one by one, k times as fast.
    weights : ndarray (…, n)
    pairs : ndarray (positives, negatives), optional
        How much each comparison counts; all alike by default.

    Returns
    -------
    ndarray (…)
        NaN where no comparison has weight.
    """
    positive = np.asarray(label) == 1
    above = [np.sign(np.subtract.outer(row[positive], row[~positive])) for row in np.atleast_2d(score)]
    above = np.mean(above, axis=0) / 2 + 0.5  # (positives, negatives): of one score 1, ½ or 0
    ill, well = weights[..., positive], weights[..., ~positive]
    if pairs is None:
        return _ratio(np.sum((ill @ above) * well, axis=-1), ill.sum(axis=-1) * well.sum(axis=-1))
    return _ratio(np.sum((ill @ (above * pairs)) * well, axis=-1), np.sum((ill @ pairs) * well, axis=-1))


CALIPER = 5.0
"""Years: largest difference in age between a positive and a negative that `adjusted_auc` compares."""


def adjusted_auc(
    label: np.ndarray, score: np.ndarray, weights: np.ndarray, age: np.ndarray, sex: np.ndarray
) -> np.ndarray:
    """Area under the covariate-adjusted ROC curve: positives against negatives of the same sex and similar age.

    Parameters
    ----------
    label, score, weights
        See `auc`.
    age : ndarray (n,)
        Years.
    sex : ndarray (n,)

    Returns
    -------
    ndarray (…)
        0.5 for a score that follows from age and sex alone; NaN where nobody can be compared.

    Notes
    -----
    A covariate-adjusted ROC curve ranks a positive among the negatives of the same covariates (Janes and Pepe 2009,
    Biometrika 96:371). Here these are the negatives of the same sex within `CALIPER` years. Positives are older on
    average, inside the caliper too; so the comparisons in which the positive is the older and those in which it is the
    younger weigh the same in sum. Age within the caliper then favours neither class. Unlike a regression of the score
    on age and sex this assumes no form of the dependence, and any increasing function of the score has the same area.
    """
    positive = np.asarray(label) == 1
    gap = np.subtract.outer(age[positive], age[~positive])
    near = (np.abs(gap) <= CALIPER) & np.equal.outer(sex[positive], sex[~positive])
    halves = [auc(label, score, weights, near * np.heaviside(sign * gap, 0.5)) for sign in (1, -1)]
    return np.mean(halves, axis=0)


def accuracy(label: np.ndarray, called: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of weight whose call, 0 or 1, (n,) or (k, n), is the label; of several calls the mean share."""
    return _ratio(weights @ np.atleast_2d(label == called).mean(axis=0), weights.sum(axis=-1))


def f1(label: np.ndarray, called: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of the positive class; NaN where nobody is positive and nobody is called so.

    Of several calls, (k, n), the mean.
    """
    positive, calls = np.asarray(label) == 1, np.atleast_2d(called).T == 1  # (n,), (n, k)
    hit = weights @ (positive[:, None] & calls).astype(float)
    either = (weights @ positive.astype(float))[..., None] + weights @ calls.astype(float)
    return _ratio(2 * hit, either).mean(axis=-1)


def roc(label: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve: false and true positive rates from (0, 0) to (1, 1), one point a distinct score.

    The rate of a class without weight is NaN.
    """
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)  # equal scores move together
    rates = []
    for value in (0, 1):
        weight = np.where(label[order] == value, weights[order], 0.0)
        total = np.full(np.count_nonzero(last), weight.sum())
        rates.append(np.append(0.0, _ratio(np.cumsum(weight)[last], total)))
    return rates[0], rates[1]


def brier(label: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean squared distance of a probability from the label: 0 is perfect, 0.25 is saying one half of everyone.

    Of several scores, (k, n), the mean.
    """
    return _ratio(weights @ np.atleast_2d((label - score) ** 2).mean(axis=0), weights.sum(axis=-1))


def reliability(label: np.ndarray, score: np.ndarray, weights: np.ndarray, bins: int = 5) -> pd.DataFrame:
    """Stated probability against observed frequency, in bins of about equal weight.

    Parameters
    ----------
    label, score, weights : ndarray (n,)
    bins : int
        At most; equal scores share a bin.

    Returns
    -------
    DataFrame
        One row a bin: score (mean), observed (share of positives), low, high (Wilson interval, 95 %), n (weight).
    """
    place = np.unique(score, return_inverse=True)[1]
    weight = np.bincount(place, weights)
    middle = np.cumsum(weight) - weight / 2
    which = np.minimum((middle / weight.sum() * bins).astype(int), bins - 1)[place]
    rows = []
    for number in np.unique(which):
        inside = which == number
        n = weights[inside].sum()
        observed = weights[inside] @ label[inside] / n
        low, high = _wilson(observed, n)
        rows.append(
            {"score": weights[inside] @ score[inside] / n, "observed": observed, "low": low, "high": high, "n": n}
        )
    return pd.DataFrame(rows)


def _wilson(share: float, n: float, level: float = 0.95) -> tuple[float, float]:
    z2 = float(stats.norm.ppf((1 + level) / 2)) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


# ── two quantities ───────────────────────────────────────────────────────────────────────────────────


def pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted correlation; NaN where one side does not vary.

    Parameters
    ----------
    x, y : ndarray (n,)
    weights : ndarray (…, n)

    Returns
    -------
    ndarray (…)
    """
    x, y = x - np.mean(x), y - np.mean(y)  # so that the moments below lose no digits
    total = weights.sum(axis=-1)
    mx, my = weights @ x / total, weights @ y / total
    xx, yy = weights @ x**2 / total - mx**2, weights @ y**2 / total - my**2
    varies = (xx > 1e-12) & (yy > 1e-12)
    below = np.where(varies, np.sqrt(np.maximum(xx * yy, 0.0)), 0.0)
    return _ratio(weights @ (x * y) / total - mx * my, below)


def slope(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least-squares slope through the origin, of changes y on changes x; NaN where x does not change."""
    return _ratio(weights @ (x * y), weights @ x**2)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) > 0)
