"""Statistics of sessions in which every person counts once, and their intervals over people.

A session weighs one over the number of its person's sessions, so that repeat visits add nothing to a person's weight
and a status or an age that changed between visits stays what it was. Intervals come from resampling people with all
their sessions. Every statistic takes weights of one resample or of many, ``(…, sessions)``, and gives ``(…)``.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy import stats

from resdm.evaluation.statistics import REPEATS


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


def auc(label: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Parameters
    ----------
    label : ndarray (n,)
        0 or 1.
    score : ndarray (n,)
    weights : ndarray (…, n)

    Returns
    -------
    ndarray (…)
        NaN where a class has no weight.
    """
    positive = np.asarray(label) == 1
    above = np.sign(np.subtract.outer(score[positive], score[~positive])) / 2 + 0.5  # (positives, negatives): 1, ½ or 0
    won = np.sum((weights[..., positive] @ above) * weights[..., ~positive], axis=-1)
    return _ratio(won, weights[..., positive].sum(axis=-1) * weights[..., ~positive].sum(axis=-1))


def accuracy(label: np.ndarray, called: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of weight whose call, 0 or 1, is the label."""
    return _ratio(weights @ (label == called).astype(float), weights.sum(axis=-1))


def f1(label: np.ndarray, called: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of the positive class; NaN where nobody is positive and nobody is called so."""
    hit = weights @ ((label == 1) & (called == 1)).astype(float)
    return _ratio(2 * hit, weights @ (label == 1).astype(float) + weights @ (called == 1).astype(float))


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
    """Mean squared distance of a probability from the label: 0 is perfect, 0.25 is saying one half of everyone."""
    return _ratio(weights @ (label - score) ** 2, weights.sum(axis=-1))


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
