"""Agreement of two measurements of the same people: Bland–Altman, ICC, concordance, slope, each with its interval.

Sources: Bland and Altman 1999 (limits and their intervals); Shrout and Fleiss 1979 and McGraw and Wong 1996 (ICC and
intervals from the F distribution); Lin 1989 and 2000 (concordance). All formulas take their rows for independent, so
sessions of one person are averaged first.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

MIN_PAIRS = 3
"""Below this number of pairs only the bias is estimated."""

_Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval; NaN where it has none."""

    value: float
    low: float = math.nan
    high: float = math.nan


def bland_altman(first: Iterable[float], second: Iterable[float]) -> dict[str, Estimate]:
    """Mean (``bias``), standard deviation (``sd``) and 95 % limits of agreement of ``second − first``, (n,) each.

    Bland and Altman 1999, equations 3.1 and 3.2.
    """
    x, y = _pairs(first, second)
    difference, n = y - x, len(x)
    bias, none = float(difference.mean()), Estimate(math.nan)
    if n < MIN_PAIRS:
        return {"sd": none, "bias": Estimate(bias), "lower": none, "upper": none}
    sd, t = float(difference.std(ddof=1)), float(stats.t.ppf(0.975, n - 1))
    about, half = t * sd / math.sqrt(n), t * sd * math.sqrt(1 / n + _Z**2 / (2 * (n - 1)))
    ends = {name: bias + side * _Z * sd for name, side in (("lower", -1), ("upper", 1))}
    limits = {name: Estimate(limit, limit - half, limit + half) for name, limit in ends.items()}
    return {"sd": Estimate(sd), "bias": Estimate(bias, bias - about, bias + about)} | limits


def intraclass(ratings: np.ndarray, kind: str = "agreement") -> Estimate:
    """Intraclass correlation of single measurements (n, k) of n people, two-way, with the interval from F.

    ``agreement`` is ICC(2,1) of Shrout and Fleiss, ICC(A,1) of McGraw and Wong: a bias or a wrong scale lowers it.
    ``consistency`` is ICC(3,1), ICC(C,1): a bias does not. NaN for fewer than three people, or where nothing varies, of
    ``consistency`` also where only a bias does; no ends where Satterthwaite's degrees of freedom are nearly 0.
    """
    table = np.asarray(ratings, dtype=np.float64)
    if kind not in ("agreement", "consistency"):
        raise ValueError(f"no intraclass correlation {kind!r}; choose agreement or consistency")
    if table.ndim != 2 or table.shape[1] < 2 or not np.isfinite(table).all():
        raise ValueError(f"ratings of shape {table.shape}: expected people × two or more columns, all finite")
    n, k = table.shape
    if n < MIN_PAIRS:
        return Estimate(math.nan)
    grand = table.mean()
    rows = k * float(np.sum((table.mean(axis=1) - grand) ** 2)) / (n - 1)
    columns = n * float(np.sum((table.mean(axis=0) - grand) ** 2)) / (k - 1)
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + grand
    error = float(np.sum(rest**2)) / ((n - 1) * (k - 1))
    varying = rows + error + (columns if kind == "agreement" else 0.0)
    if varying <= 1e-24 * max(1.0, grand**2):
        return Estimate(math.nan)
    freedom = (n - 1) * (k - 1)
    if kind == "consistency":
        value = (rows - error) / (rows + (k - 1) * error)
        if error == 0:
            return Estimate(value, 1.0, 1.0)
        f = rows / error
        ends = f / stats.f.ppf(0.975, n - 1, freedom), f * stats.f.ppf(0.975, freedom, n - 1)
        return Estimate(value, *(float((end - 1) / (end + k - 1)) for end in ends))
    value = (rows - error) / (rows + (k - 1) * error + k * (columns - error) / n)
    if value >= 1 - 1e-12:
        return Estimate(value, 1.0, 1.0)
    # McGraw and Wong 1996, Table 7: degrees of freedom by Satterthwaite
    a, b = k * value / (n * (1 - value)), 1 + k * value * (n - 1) / (n * (1 - value))
    below = (a * columns) ** 2 / (k - 1) + (b * error) ** 2 / freedom
    if below == 0:
        return Estimate(value)
    v = (a * columns + b * error) ** 2 / below
    spread = k * columns + (k * n - k - n) * error
    low, high = stats.f.ppf(0.975, n - 1, v), stats.f.ppf(0.975, v, n - 1)
    if not math.isfinite(low):  # hardly a degree of freedom is left: no interval
        return Estimate(float(value))
    return Estimate(
        float(value),
        float(n * (rows - low * error) / (low * spread + n * rows)),
        float(n * (high * rows - error) / (spread + n * high * rows)),
    )


def concordance(first: Iterable[float], second: Iterable[float]) -> Estimate:
    """Lin's concordance correlation, interval by its z transformation (Lin 1989; variance corrected in Lin 2000).

    Variances are divided by n, as in Lin. NaN for fewer than three pairs or where neither side varies.
    """
    x, y = _pairs(first, second)
    n = len(x)
    sx, sy = x.var(), y.var()
    shift = float(x.mean() - y.mean())
    below = sx + sy + shift**2
    if n < MIN_PAIRS or below <= 1e-24:
        return Estimate(math.nan)
    covariance = float(np.mean((x - x.mean()) * (y - y.mean())))
    c = float(2 * covariance / below)
    if sx * sy == 0 or n < MIN_PAIRS + 1 or abs(c) < 1e-12 or abs(c) >= 1 - 1e-12:
        return Estimate(c)
    r, u2 = covariance / math.sqrt(sx * sy), shift**2 / math.sqrt(sx * sy)
    if abs(r) >= 1 - 1e-12:
        return Estimate(c)
    variance = (
        (1 - r**2) * c**2 / ((1 - c**2) * r**2)
        + 2 * c**3 * (1 - c) * u2 / (r * (1 - c**2) ** 2)
        - c**4 * u2**2 / (2 * r**2 * (1 - c**2) ** 2)
    ) / (n - 2)
    half = _Z * math.sqrt(max(variance, 0.0))
    return Estimate(c, math.tanh(math.atanh(c) - half), math.tanh(math.atanh(c) + half))


def pearson(first: Iterable[float], second: Iterable[float]) -> Estimate:
    """Pearson's r, interval by Fisher's z; NaN where one side does not vary or there are fewer than three pairs."""
    x, y = _pairs(first, second)
    if len(x) < MIN_PAIRS or np.ptp(x) < 1e-9 or np.ptp(y) < 1e-9:
        return Estimate(math.nan)
    result = stats.pearsonr(x, y)
    r = float(result.statistic)
    if len(x) < MIN_PAIRS + 1 or abs(r) >= 1 - 1e-12:
        return Estimate(r)
    return Estimate(r, *map(float, result.confidence_interval()))


def slope(first: Iterable[float], second: Iterable[float]) -> Estimate:
    """Least-squares slope of second on first with its t interval: below 1 the second varies less than the first."""
    x, y = _pairs(first, second)
    if len(x) < MIN_PAIRS or np.ptp(x) < 1e-9:
        return Estimate(math.nan)
    fit = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(x) - 2)) * float(fit.stderr)
    return Estimate(float(fit.slope), float(fit.slope) - half, float(fit.slope) + half)


def agreement_table(values: pd.DataFrame, keys: Iterable[str]) -> pd.DataFrame:
    """Agreement of synthetic with real values, over people (sessions averaged), by combinations of ``keys``.

    ``values`` has the columns ``keys``, person, real, synthetic. The result has ``keys`` in order of appearance, n, sd,
    and ``<name>``, ``<name>_low``, ``<name>_high`` of ``bias``, ``lower`` and ``upper`` (limits of agreement),
    ``icc_agreement``, ``icc_consistency``, ``ccc``, ``r`` and ``slope``.
    """
    keys, rows = list(keys), []
    people = values.groupby([*keys, "person"], sort=False)[["real", "synthetic"]].mean().reset_index()
    for key, part in people.groupby(keys, sort=False):
        x, y = part["real"].to_numpy(), part["synthetic"].to_numpy()
        estimates, both = bland_altman(x, y), np.column_stack([x, y])
        row = dict(zip(keys, key, strict=True)) | {"n": len(x), "sd": estimates.pop("sd").value}
        estimates |= {f"icc_{kind}": intraclass(both, kind) for kind in ("agreement", "consistency")}
        estimates |= {"ccc": concordance(x, y), "r": pearson(x, y), "slope": slope(x, y)}
        for name, estimate in estimates.items():
            row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _pairs(first: Iterable[float], second: Iterable[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(list(first), dtype=np.float64), np.asarray(list(second), dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError(f"agreement needs two lists of equal length, one value or more; found {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("agreement needs a number for everyone; found NaN or infinite values")
    return x, y
