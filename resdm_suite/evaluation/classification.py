"""Classification and association over sessions with weights, for one resample or many at once.

Every statistic takes weights ``(…, n)`` of n sessions, see `resdm_suite.evaluation.statistics.person_resamples`, and
gives ``(…)``. Ten thousand resamples are one matrix product, for which scikit-learn has no counterpart; a test compares
each with scikit-learn.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

CALIPER = 5.0
"""Years: largest difference in age between a positive and a negative that `adjusted_auc` compares."""


def auc(label: np.ndarray, score: np.ndarray, weights: np.ndarray, pairs: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve: how often a positive scores above a negative; ties count half.

    ``label`` (n,) is 0 or 1; of several scores (k, n) the mean area is given, in the time of one. ``pairs`` (positives,
    negatives) weights each comparison. NaN where no comparison has weight.
    """
    positive = np.asarray(label) == 1
    above = [np.sign(np.subtract.outer(row[positive], row[~positive])) for row in np.atleast_2d(score)]
    above = np.mean(above, axis=0) / 2 + 0.5  # (positives, negatives): of one score 1, ½ or 0
    ill, well = weights[..., positive], weights[..., ~positive]
    if pairs is None:
        return _ratio(np.sum((ill @ above) * well, axis=-1), ill.sum(axis=-1) * well.sum(axis=-1))
    return _ratio(np.sum((ill @ (above * pairs)) * well, axis=-1), np.sum((ill @ pairs) * well, axis=-1))


def adjusted_auc(
    label: np.ndarray, score: np.ndarray, weights: np.ndarray, age: np.ndarray, sex: np.ndarray
) -> np.ndarray:
    """Area under the covariate-adjusted ROC curve: positives against negatives of the same sex and similar age.

    0.5 for a score that follows from age (years) and sex alone; NaN where no two people can be compared.

    Notes
    -----
    A covariate-adjusted ROC curve ranks a positive among the negatives of the same covariates (Janes and Pepe 2009,
    Biometrika 96:371): here the same sex, and an age within `CALIPER` years. Positives are older on average, so
    comparisons with an older positive and those with a younger one get the same total weight; age then favours neither
    class. No form of the dependence is assumed, and any increasing function of the score has the same area.
    """
    positive = np.asarray(label) == 1
    gap = np.subtract.outer(age[positive], age[~positive])
    near = (np.abs(gap) <= CALIPER) & np.equal.outer(sex[positive], sex[~positive])
    halves = [auc(label, score, weights, near * np.heaviside(sign * gap, 0.5)) for sign in (1, -1)]
    return np.mean(halves, axis=0)


def accuracy(label: np.ndarray, called: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of weight whose call, 0 or 1, (n,) or (k, n), equals the label; of several calls the mean share."""
    return _ratio(weights @ np.atleast_2d(label == called).mean(axis=0), weights.sum(axis=-1))


def f1(label: np.ndarray, called: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of the positive class, of several calls (k, n) the mean; NaN without a positive label."""
    positive, calls = np.asarray(label) == 1, np.atleast_2d(called).T == 1  # (n,), (n, k)
    hit = weights @ (positive[:, None] & calls).astype(float)
    either = (weights @ positive.astype(float))[..., None] + weights @ calls.astype(float)
    return _ratio(2 * hit, either * positive.any()).mean(axis=-1)


def balanced_accuracy(label: np.ndarray, called: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of the share called right, NaN without weight of a class; of several calls (k, n) the mean.

    Labels and calls are whole numbers, one per class.
    """
    label = np.asarray(label)
    members = (label == np.unique(label)[:, None]).astype(float)  # (classes, n)
    hits = members * np.mean(np.atleast_2d(called) == label, axis=0)
    return _ratio(hits @ weights.T, members @ weights.T).mean(axis=0)


def kappa(label: np.ndarray, called: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cohen's κ of whole-numbered labels and calls, of several calls (k, n) the mean.

    0 for calls that are independent of the label, 1 for equal ones; NaN where label and call are one class.
    """
    label, calls, classes = np.asarray(label), np.atleast_2d(called), np.unique(label)[:, None]
    share = (label == classes) @ weights.T / weights.sum(axis=-1)  # (classes, …)
    values = []
    for row in calls:
        equal, *other = np.vstack([row == label, row == classes]).astype(float) @ weights.T / weights.sum(axis=-1)
        chance = np.sum(share * other, axis=0)
        values.append(_ratio(equal - chance, np.where(chance < 1 - 1e-12, 1 - chance, 0)))
    return np.mean(values, axis=0)


def net_benefit(label: np.ndarray, score: np.ndarray, weights: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Net benefit of treating people whose probability reaches a threshold (…, thresholds), per person.

    True positives less false positives times the odds p / (1 − p) of the threshold p (Vickers and Elkin 2006, Medical
    Decision Making 26:565). Of several scores (k, n) the mean. Treating nobody has 0.
    """
    positive = np.asarray(label) == 1
    gain = np.where(positive[:, None], 1.0, -thresholds / (1 - thresholds))  # (n, thresholds)
    treated = np.mean([row[:, None] >= thresholds for row in np.atleast_2d(score)], axis=0)
    return weights @ (treated * gain) / weights.sum(axis=-1)[..., None]


def brier(label: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean squared difference of a probability and the label, of several scores (k, n) the mean; 0 is perfect."""
    return _ratio(weights @ np.atleast_2d((label - score) ** 2).mean(axis=0), weights.sum(axis=-1))


def reliability(predicted: np.ndarray, observed: np.ndarray, weights: np.ndarray, bins: int = 5) -> pd.DataFrame:
    """Reliability curve in at most ``bins`` bins of about equal weight: predicted, observed (means), n (weight).

    Predictions are probabilities and observations labels, or both are squared errors. Equal predictions share a bin.
    """
    place = np.unique(predicted, return_inverse=True)[1]
    weight = np.bincount(place, weights)
    middle = np.cumsum(weight) - weight / 2
    which = np.minimum((middle / weight.sum() * bins).astype(int), bins - 1)[place]
    n = np.bincount(which, weights)
    sums = [np.bincount(which, weights * values)[n > 0] for values in (predicted, observed)]
    n = n[n > 0]
    return pd.DataFrame({"predicted": sums[0] / n, "observed": sums[1] / n, "n": n})


def wilson(share: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson interval, 95 %, of a share of n people; n need not be whole."""
    z2 = float(stats.norm.ppf(0.975)) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return np.maximum(0.0, middle - half), np.minimum(1.0, middle + half)


def share_of(flags: Sequence[bool]) -> dict[str, float]:
    """Share of people with a flag, its 95 % Wilson interval (``low``, ``high``) and ``n``; NaN of nobody."""
    n = len(flags)
    share = float(np.mean(flags)) if n else np.nan
    low, high = wilson(share, n) if n else (np.nan, np.nan)
    return {"share": share, "low": float(low), "high": float(high), "n": n}


def weighted_pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted correlation (…) of x and y (n,); NaN where one of them does not vary."""
    x, y = x - np.mean(x), y - np.mean(y)  # keeps the digits of the moments below
    total = weights.sum(axis=-1)
    mx, my = weights @ x / total, weights @ y / total
    xx, yy = weights @ x**2 / total - mx**2, weights @ y**2 / total - my**2
    varies = (xx > 1e-12) & (yy > 1e-12)
    below = np.where(varies, np.sqrt(np.maximum(xx * yy, 0.0)), 0.0)
    return _ratio(weights @ (x * y) / total - mx * my, below)


def weighted_slope(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least-squares slope through the origin, of changes y on changes x; NaN where x does not change."""
    return _ratio(weights @ (x * y), weights @ x**2)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) > 0)
