"""Agreement of two measurements of the same people: Bland–Altman, ICC, concordance, slope, each with its interval.

Sources: Bland and Altman 1986 and 1999 (limits and their intervals); Shrout and Fleiss 1979 and McGraw and Wong 1996
(ICC and intervals from the F distribution); Lin 1989 and 2000 (concordance). All formulas take their rows for
independent: the sessions of one person are averaged first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

FEWEST = 3
"""Pairs below which nothing but the bias is estimated."""


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its interval; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class BlandAltman:
    """Differences ``second − first``: their mean, their spread and the limits of agreement, in the unit measured.

    Parameters
    ----------
    n : int
        Pairs.
    bias : Estimate
        With its t interval.
    sd : float
        Standard deviation of the differences.
    lower, upper : Estimate
        Limits bias ∓ 1.96 SD between which 95 % of differences are expected, each with its own interval.
    """

    n: int
    bias: Estimate
    sd: float
    lower: Estimate
    upper: Estimate


def bland_altman(first: Iterable[float], second: Iterable[float], level: float = 0.95) -> BlandAltman:
    """Bias and limits of agreement (Bland and Altman 1999, equations 3.1 and 3.2).

    Parameters
    ----------
    first, second : array of float (n,)
        Measurements of the same people in the same order; the difference is second − first.
    level : float
        Of the intervals.

    Raises
    ------
    ValueError
        Lists of unequal length, empty, or with values that are not finite.
    """
    x, y = _pairs(first, second)
    difference, n = y - x, len(x)
    mean = float(difference.mean())
    if n < FEWEST:
        return BlandAltman(n, Estimate(mean), math.nan, Estimate(math.nan), Estimate(math.nan))
    sd = float(difference.std(ddof=1))
    t = float(stats.t.ppf((1 + level) / 2, n - 1))
    z = float(stats.norm.ppf(0.975))  # of the limits: 95 % of differences whatever the intervals' level
    half = t * sd / math.sqrt(n)
    rim = t * sd * math.sqrt(1 / n + z**2 / (2 * (n - 1)))
    ends = [Estimate(mean + side * z * sd, mean + side * z * sd - rim, mean + side * z * sd + rim) for side in (-1, 1)]
    return BlandAltman(n, Estimate(mean, mean - half, mean + half), sd, *ends)


def intraclass(ratings: np.ndarray, kind: str = "agreement", level: float = 0.95) -> Estimate:
    """Intraclass correlation of single measurements, two-way, with the interval from F.

    Parameters
    ----------
    ratings : ndarray (n, k)
        A row a person, a column a measurement.
    kind : {"agreement", "consistency"}
        ``agreement`` is ICC(2,1) of Shrout and Fleiss, ICC(A,1) of McGraw and Wong: a bias or a wrong scale lowers it.
        ``consistency`` is ICC(3,1), ICC(C,1): a bias does not.
    level : float

    Returns
    -------
    Estimate
        NaN for fewer than three people, or where nothing varies.

    Raises
    ------
    ValueError
        Another kind, fewer than two columns, or values that are not finite.
    """
    table = np.asarray(ratings, dtype=np.float64)
    if kind not in ("agreement", "consistency"):
        raise ValueError(f"no intraclass correlation {kind!r}; there are: agreement, consistency")
    if table.ndim != 2 or table.shape[1] < 2 or not np.isfinite(table).all():
        raise ValueError(f"ratings of shape {table.shape}: expected people × two or more columns, all finite")
    n, k = table.shape
    if n < FEWEST:
        return Estimate(math.nan)
    grand = table.mean()
    rows = k * float(np.sum((table.mean(axis=1) - grand) ** 2)) / (n - 1)
    columns = n * float(np.sum((table.mean(axis=0) - grand) ** 2)) / (k - 1)
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + grand
    error = float(np.sum(rest**2)) / ((n - 1) * (k - 1))
    if rows + error + columns <= 1e-24 * max(1.0, grand**2):
        return Estimate(math.nan)
    tail = (1 + level) / 2
    if kind == "consistency":
        value = (rows - error) / (rows + (k - 1) * error)
        if error == 0:
            return Estimate(value, 1.0, 1.0)
        f = rows / error
        low = f / stats.f.ppf(tail, n - 1, (n - 1) * (k - 1))
        high = f * stats.f.ppf(tail, (n - 1) * (k - 1), n - 1)
        return Estimate(value, float((low - 1) / (low + k - 1)), float((high - 1) / (high + k - 1)))
    value = (rows - error) / (rows + (k - 1) * error + k * (columns - error) / n)
    if value >= 1 - 1e-12:
        return Estimate(value, 1.0, 1.0)
    # McGraw and Wong 1996, Table 7: degrees of freedom by Satterthwaite
    a, b = k * value / (n * (1 - value)), 1 + k * value * (n - 1) / (n * (1 - value))
    if columns == 0 and error == 0:
        return Estimate(value)
    v = (a * columns + b * error) ** 2 / ((a * columns) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1)))
    spread = k * columns + (k * n - k - n) * error
    low, high = stats.f.ppf(tail, n - 1, v), stats.f.ppf(tail, v, n - 1)
    return Estimate(
        float(value),
        float(n * (rows - low * error) / (low * spread + n * rows)),
        float(n * (high * rows - error) / (spread + n * high * rows)),
    )


def concordance(first: Iterable[float], second: Iterable[float], level: float = 0.95) -> Estimate:
    """Lin's concordance correlation, interval by its z transformation (Lin 1989; variance corrected in Lin 2000).

    Variances are divided by n, as Lin has them. NaN for fewer than three pairs or where neither side varies.
    """
    x, y = _pairs(first, second)
    n = len(x)
    sx, sy = x.var(), y.var()
    shift = float(x.mean() - y.mean())
    below = sx + sy + shift**2
    if n < FEWEST or below <= 1e-24:
        return Estimate(math.nan)
    covariance = float(np.mean((x - x.mean()) * (y - y.mean())))
    c = float(2 * covariance / below)
    if sx * sy == 0 or n < FEWEST + 1 or abs(c) < 1e-12 or abs(c) >= 1 - 1e-12:
        return Estimate(c)
    r, u2 = covariance / math.sqrt(sx * sy), shift**2 / math.sqrt(sx * sy)
    if abs(r) >= 1 - 1e-12:
        return Estimate(c)
    variance = (
        (1 - r**2) * c**2 / ((1 - c**2) * r**2)
        + 2 * c**3 * (1 - c) * u2 / (r * (1 - c**2) ** 2)
        - c**4 * u2**2 / (2 * r**2 * (1 - c**2) ** 2)
    ) / (n - 2)
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt(max(variance, 0.0))
    return Estimate(c, math.tanh(math.atanh(c) - half), math.tanh(math.atanh(c) + half))


def pearson(first: Iterable[float], second: Iterable[float], level: float = 0.95) -> Estimate:
    """Pearson's r, interval by Fisher's z; NaN where one side does not vary or there are fewer than three pairs."""
    x, y = _pairs(first, second)
    if len(x) < FEWEST or np.ptp(x) < 1e-9 or np.ptp(y) < 1e-9:
        return Estimate(math.nan)
    r = float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))
    if len(x) < FEWEST + 1 or abs(r) >= 1 - 1e-12:
        return Estimate(r)
    half = float(stats.norm.ppf((1 + level) / 2)) / math.sqrt(len(x) - 3)
    return Estimate(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))


def slope(first: Iterable[float], second: Iterable[float], level: float = 0.95) -> Estimate:
    """Least-squares slope of second on first with its t interval: below 1 the second draws people together."""
    x, y = _pairs(first, second)
    n = len(x)
    if n < FEWEST or np.ptp(x) < 1e-9:
        return Estimate(math.nan)
    fit = stats.linregress(x, y)
    half = float(stats.t.ppf((1 + level) / 2, n - 2)) * float(fit.stderr)
    return Estimate(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half)


def agreement_row(first: Iterable[float], second: Iterable[float], level: float = 0.95) -> dict[str, float]:
    """All of the above as one flat row: n, sd, and ``<name>``, ``<name>_low``, ``<name>_high`` of each estimate.

    Names: ``bias``, ``lower``, ``upper`` (limits of agreement), ``icc_agreement``, ``icc_consistency``, ``ccc``, ``r``,
    ``slope``.
    """
    x, y = _pairs(first, second)
    limits, both = bland_altman(x, y, level), np.column_stack([x, y])
    estimates = {
        "bias": limits.bias,
        "lower": limits.lower,
        "upper": limits.upper,
        "icc_agreement": intraclass(both, "agreement", level),
        "icc_consistency": intraclass(both, "consistency", level),
        "ccc": concordance(x, y, level),
        "r": pearson(x, y, level),
        "slope": slope(x, y, level),
    }
    row: dict[str, float] = {"n": limits.n, "sd": limits.sd}
    for name, found in estimates.items():
        row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return row


def agreement_table(values: pd.DataFrame, keys: Iterable[str], level: float = 0.95) -> pd.DataFrame:
    """`agreement_row` of synthetic against real values, by group.

    Parameters
    ----------
    values : DataFrame
        Columns of ``keys``, person, real, synthetic; sessions of a person are averaged first.
    keys : iterable of str
        Columns whose combinations stay apart (method, tracer, region, …), in order of appearance.
    level : float
    """
    keys = list(keys)
    people = values.groupby([*keys, "person"], sort=False)[["real", "synthetic"]].mean().reset_index()
    rows = [
        dict(zip(keys, key, strict=True)) | agreement_row(part["real"], part["synthetic"], level)
        for key, part in people.groupby(keys, sort=False)
    ]
    return pd.DataFrame(rows)


def _pairs(first: Iterable[float], second: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(list(first), dtype=np.float64), np.asarray(list(second), dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError(f"agreement needs two lists of equal length, one value or more; found {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("agreement needs a number for everyone; found NaN or infinite values")
    return x, y
