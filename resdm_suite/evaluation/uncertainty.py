"""What the standard deviation over samples is worth: calibration, coverage, and ranking people by their error.

A few samples of a person have a mean m and a standard deviation s, voxel by voxel. Few sampling steps of a network that
was trained to predict the mean give samples far too alike, so s understates the error |real − m|. It is calibrated on
validation people alone, by tracer:

1. *Error map* e: at every voxel (region) the root mean square of real − m over validation people, smoothed over
   `MAP_FWHM_MM` (voxels only). It knows where errors are large, and nothing of the person.
2. *Combination*: σ² = a s² + b e² with a, b ≥ 0, the least squares fit (non-negative) of squared errors, each voxel
   weighted by 1/e⁴, since the variance of a squared Gaussian error grows with its fourth power. s alone (b = 0) and e
   alone (a = 0), fitted likewise, stand beside it, so that it shows whether sampling adds anything to a map.
3. *Quantiles*: the interval of nominal level p is m ± q(p) σ, with q(p) the empirical p-quantile of |real − m| / σ
   over validation voxels, no Gaussian's.

In 2 and 3 the error map of a validation person is made without that person's fold (`FOLDS` folds), as it is for a test
person. Nothing guarantees the level: a, b and q come from the same few dozen people, and voxels of a person are not
independent. Whether it holds is measured on test people, with intervals over people.

Everything is in SUVR, inside the brain. The person is the unit: sessions of one person are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, stats
from scipy.ndimage import gaussian_filter

from resdm.settings import TRACERS
from resdm_suite.anatomy import REFERENCE, Grid, mni_map
from resdm_suite.evaluation.image_quality import read_index, read_volume
from resdm_suite.evaluation.statistics import REPEATS, interval
from resdm_suite.evaluation.suvr import sidecar_range, to_suvr
from resdm_suite.paths import std_path, synthetic_path
from resdm_suite.profiles import Config

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Nominal coverage of the intervals."""

PREDICTORS = {
    "raw": "standard deviation over samples, as it is, Gaussian interval",
    "sampling": "standard deviation over samples, scaled",
    "map": "error map of validation people",
    "both": "standard deviation over samples and error map",
}
"""Ways to say how large the error is."""

MAP_FWHM_MM = 10.0
"""Smoothing of the error map: a few dozen people tell a voxel's error to 13 % only."""

FOLDS = 5
"""Folds of the validation people, for error maps that have not seen the person."""

BINS = 10
"""Bins of equally many voxels, for error against predicted deviation."""

_FLOOR = 1e-3  # SUVR: no error is predicted smaller; samples that are all clipped to 0 have no spread at all


class UncertaintyError(ValueError):
    """Samples that cannot be judged: what is missing, and the remedy."""


# ── calibration: arrays in, numbers out ───────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Calibration:
    """How standard deviation and error map become intervals.

    Parameters
    ----------
    a, b : float
        Of σ² = a s² + b e².
    quantiles : mapping of float to float
        Level → how many σ its interval reaches to either side.
    """

    a: float
    b: float
    quantiles: Mapping[float, float]

    def sigma(self, std: np.ndarray, error_map: np.ndarray) -> np.ndarray:
        """Predicted standard deviation of the error, the unit of the inputs."""
        return np.sqrt(np.maximum(self.a * std**2 + self.b * error_map**2, _FLOOR**2))


def raw_calibration(levels: Sequence[float] = LEVELS) -> Calibration:
    """No calibration: σ = s, Gaussian quantiles."""
    return Calibration(1.0, 0.0, {level: float(stats.norm.ppf((1 + level) / 2)) for level in levels})


def calibrate(
    residual: np.ndarray,
    std: np.ndarray,
    error_map: np.ndarray,
    predictor: str = "both",
    levels: Sequence[float] = LEVELS,
) -> Calibration:
    """Fit a calibration to validation people.

    Parameters
    ----------
    residual, std : ndarray (N, V)
        Real − mean, and standard deviation over samples, of N people at V voxels or regions.
    error_map : ndarray (N, V)
        Of each person, made without them.
    predictor : {"raw", "sampling", "map", "both"}
    levels : sequence of float

    Raises
    ------
    UncertaintyError
        Nobody, or values that are not finite.
    """
    if predictor == "raw":
        return raw_calibration(levels)
    if len(residual) == 0 or not all(np.isfinite(array).all() for array in (residual, std, error_map)):
        raise UncertaintyError("calibration: nobody to calibrate on, or values that are not finite")
    a, b = _weights(residual, std, error_map, predictor)
    sigma = Calibration(a, b, {}).sigma(std, error_map)
    ratio = np.abs(residual) / sigma
    return Calibration(a, b, dict(zip(levels, map(float, np.quantile(ratio, levels)), strict=True)))


def _weights(residual: np.ndarray, std: np.ndarray, error_map: np.ndarray, predictor: str) -> tuple[float, float]:
    """a, b ≥ 0 of σ² = a s² + b e², weighted least squares; only the one that the predictor has."""
    weight = 1 / np.maximum(error_map, _FLOOR) ** 2
    kept = {"sampling": [0], "map": [1]}.get(predictor, [0, 1])
    columns = np.stack([(weight * std**2).ravel(), (weight * error_map**2).ravel()], axis=1)[:, kept]
    found, _ = optimize.nnls(columns.T @ columns, columns.T @ (weight * residual**2).ravel())  # normal equations
    weights = np.zeros(2)
    weights[kept] = found if found.any() else 1.0
    return float(weights[0]), float(weights[1])


def error_maps(
    residual: np.ndarray, folds: int = FOLDS, person: Sequence[str] | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square error at every voxel: of everybody, and for each person without their fold.

    Parameters
    ----------
    residual : ndarray (N, V)
    folds : int
        Person i is in fold i mod ``folds``.
    person : sequence (N,), optional
        Whose row it is, so that all sessions of a person are in one fold; by default each row is a person.

    Returns
    -------
    whole : ndarray (V,)
    without : ndarray (N, V)
    """
    who = pd.factorize(np.arange(len(residual)) if person is None else np.asarray(person))[0]
    n = len(np.unique(who))
    folds = min(folds, n)
    if folds < 2:
        raise UncertaintyError(f"error map: {n} validation people; 2 are the least")
    squares = residual.astype(np.float64) ** 2
    fold = who % folds
    without = np.stack([np.sqrt(squares[fold != f].mean(axis=0)) for f in range(folds)])[fold]
    return np.sqrt(squares.mean(axis=0)), without


def coverage(residual: np.ndarray, sigma: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Share of real values inside their interval, by person and level: (N, L)."""
    ratio = np.abs(residual) / sigma
    return np.stack([(ratio <= q).mean(axis=1) for q in calibration.quantiles.values()], axis=1)


def likelihood(residual: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Mean negative log-likelihood of a Gaussian by person (N,); lower is better, and only a right σ is lowest."""
    return np.mean(np.log(sigma) + residual**2 / (2 * sigma**2), axis=1) + 0.5 * np.log(2 * np.pi)


def reliability(residual: np.ndarray, sigma: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """Error against predicted deviation, in bins of equally many voxels.

    Returns
    -------
    DataFrame
        bin, predicted (root mean square of σ), error (root mean square of the residual), n (voxels).
    """
    order = np.argsort(sigma, axis=None, kind="stable")
    s, r = sigma.ravel()[order], residual.ravel()[order]
    rows = [
        {"bin": i, "predicted": _rms(one), "error": _rms(other), "n": len(one)}
        for i, (one, other) in enumerate(zip(np.array_split(s, bins), np.array_split(r, bins), strict=True))
        if len(one)
    ]
    return pd.DataFrame(rows)


def _rms(values: np.ndarray, axis: int | None = None) -> np.ndarray | float:
    return np.sqrt(np.mean(np.square(values, dtype=np.float64), axis=axis))


# ── ranking people ────────────────────────────────────────────────────────────────────────────────


def risk_coverage(score: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Mean error of the k people with the lowest score, k = 1 … N (El-Yaniv and Wiener 2010); ties in given order."""
    order = np.argsort(score, kind="stable")
    return np.cumsum(error[order]) / np.arange(1, len(error) + 1)


def rank_summary(score: np.ndarray, error: np.ndarray, *, seed: int, repeats: int = REPEATS) -> dict[str, float]:
    """How well a score ranks people by their error.

    Parameters
    ----------
    score, error : ndarray (N,)
    seed : int
        Of the bootstrap over people.
    repeats : int

    Returns
    -------
    dict
        n, rho (Spearman), rho_low, rho_high (percentile bootstrap, 95 %), aurc (area under the risk–coverage curve),
        aurc_random (its expectation for a score that knows nothing: the mean error), aurc_oracle (for the error
        itself), gain (how much of the way from random to oracle it goes: 1 all of it, 0 none). NaN for fewer than three
        people or a score that does not vary.
    """
    n = len(score)
    if n and np.ptp(score) <= 1e-9 * np.abs(score).max():  # says the same of everybody: as good as chance
        score = np.zeros(n)
    found = {"n": n, "aurc": float(risk_coverage(score, error).mean()) if n else np.nan}
    found |= {"aurc_random": float(error.mean()) if n else np.nan}
    if not np.any(score):
        found["aurc"] = found["aurc_random"]
    found |= {"aurc_oracle": float(risk_coverage(error, error).mean()) if n else np.nan}
    span = found["aurc_random"] - found["aurc_oracle"]
    found["gain"] = (found["aurc_random"] - found["aurc"]) / span if span > 0 else np.nan
    found |= {"rho": np.nan, "rho_low": np.nan, "rho_high": np.nan}
    if n >= 3 and np.ptp(score) > 0 and np.ptp(error) > 0:
        rows = np.random.default_rng(seed).integers(0, n, (repeats, n))
        found["rho"] = float(_spearman(score[None], error[None])[0])
        found["rho_low"], found["rho_high"] = map(
            float, np.nanquantile(_spearman(score[rows], error[rows]), [0.025, 0.975])
        )
    order = ("n", "rho", "rho_low", "rho_high", "aurc", "aurc_random", "aurc_oracle", "gain")
    return {key: found[key] for key in order}


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of every row, (R, N) → (R,); NaN where one side does not vary."""
    x, y = (stats.rankdata(values, axis=1) - (x.shape[1] + 1) / 2 for values in (x, y))
    below = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.where(below > 0, (x * y).sum(axis=1) / np.where(below > 0, below, 1), np.nan)


# ── stored samples ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Samples:
    """Samples of one tracer beside the real PET, of sessions of one split, in SUVR.

    Parameters
    ----------
    who : DataFrame
        person, session; a row a session.
    residual, mean, std : ndarray (N, V)
        Real − mean, mean, standard deviation; V voxels of the brain, or regions.
    names : tuple of str
        Of the regions; empty for voxels.
    """

    who: pd.DataFrame
    residual: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    names: tuple[str, ...] = ()


def read_samples(config: Config, method: str, tracer: str, split: str) -> Samples:
    """Voxels of the brain, of every session of a split that has the tracer's real PET.

    Raises
    ------
    UncertaintyError
        No such samples: run the stage that makes them.
    """
    grid = Grid.of(config.preprocess.grid)
    brain = mni_map("brain", grid)
    who, real, mean, std = [], [], [], []
    for row in read_index(config, split).to_dict("records"):
        if not int(row[f"present_{tracer}"]):
            continue
        path = synthetic_path(
            config.predictions(method, "samples"), row["person"], row["session"], row[f"{tracer}_tracer"]
        )
        beside = std_path(path)
        if not (path.is_file() and beside.is_file()):
            raise UncertaintyError(f"{path}: no samples of {method!r} there; make them first: resdm sample")
        source = config.volumes / row[tracer]
        low, high = sidecar_range(source)
        real.append(to_suvr(read_volume(source, grid)[brain], (low, high)))
        mean.append(to_suvr(read_volume(path, grid)[brain], (low, high)))
        std.append((high - low) * read_volume(beside, grid)[brain])
        who.append({"person": row["person"], "session": row["session"]})
    if not who:
        raise UncertaintyError(f"{config.work}: nobody of split {split!r} has {tracer} PET")
    real, mean, std = (np.stack(rows).astype(np.float64) for rows in (real, mean, std))
    return Samples(pd.DataFrame(who), real - mean, mean, std)


def read_regional(config: Config, method: str, tracer: str, split: str) -> Samples:
    """Regions instead of voxels: mean and standard deviation of the regional SUVR over samples.

    The tracer's reference region is left out: it is 1 in every real PET.
    """
    path = config.predictions(method, "samples") / "regional.csv"
    if not path.is_file():
        raise UncertaintyError(f"{path}: no samples of {method!r} there; make them first: resdm sample")
    frame = pd.read_csv(path, dtype={"person": str, "session": str})
    frame = frame[(frame["tracer"] == tracer) & (frame["split"] == split) & (frame["region"] != REFERENCE[tracer])]
    tables = {
        column: frame.pivot_table(column, ["person", "session"], "region", sort=False)
        for column in ("real", "mean", "std")
    }
    who = tables["real"].index.to_frame(index=False)
    real, mean, std = (tables[column].to_numpy(np.float64) for column in ("real", "mean", "std"))
    return Samples(who, real - mean, mean, std, tuple(tables["real"].columns))


def smooth_map(error: np.ndarray, grid: Grid, fwhm_mm: float = MAP_FWHM_MM) -> np.ndarray:
    """An error map over the brain's voxels (…, V), averaged in squares with its neighbours inside the brain."""
    brain = mni_map("brain", grid)
    sigma = fwhm_mm / np.sqrt(8 * np.log(2)) / grid.voxel_mm
    weight = gaussian_filter(brain.astype(np.float64), sigma)
    out = np.empty_like(error, dtype=np.float64)
    for index in np.ndindex(error.shape[:-1]):
        volume = np.zeros(grid.shape)
        volume[brain] = error[index] ** 2
        out[index] = np.sqrt(gaussian_filter(volume, sigma)[brain] / weight[brain])
    return out


# ── the judgement ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Uncertainty:
    """All that the table and the figure show.

    Parameters
    ----------
    calibration : DataFrame
        tracer, level of detail (``voxel``, ``region``), predictor, a, b, q50 …: the fit.
    coverage : DataFrame
        unit (``voxel`` or a region's name; ``regions``: all of them), tracer, predictor, nominal, coverage, low, high
        (95 %, over people), width (mean of the whole interval, SUVR), n (people).
    likelihood : DataFrame
        unit (``voxel``, ``regions``), tracer, predictor, nll (mean over people), gain over ``map`` (difference of
        nll, positive: better than the map alone), gain_low, gain_high (95 % bootstrap over people).
    reliability : DataFrame
        tracer, predictor, and the columns of `reliability`.
    people : DataFrame
        person, tracer, error (mean absolute, brain, SUVR), and the score of each predictor (root mean square σ).
    ranking : DataFrame
        tracer, predictor, and the columns of `rank_summary`.
    """

    calibration: pd.DataFrame
    coverage: pd.DataFrame
    likelihood: pd.DataFrame
    reliability: pd.DataFrame
    people: pd.DataFrame
    ranking: pd.DataFrame


def judge(config: Config, method: str) -> Uncertainty:
    """Calibrate the stored samples of a method on validation people and judge them on test people.

    Parameters
    ----------
    config : Config
    method : str
        With samples of both splits, see `resdm_suite.apps.synthesis.sample_method`.
    """
    grid = Grid.of(config.preprocess.grid)
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in Uncertainty.__dataclass_fields__}
    for tracer in TRACERS:
        for unit, read in (("voxel", read_samples), ("regions", read_regional)):
            one, other = read(config, method, tracer, "validation"), read(config, method, tracer, "test")
            found = judge_samples(one, other, seed=config.seed, grid=grid if unit == "voxel" else None)
            for name, frame in found.items():
                if name in ("calibration", "likelihood", "coverage"):
                    frame = frame.assign(unit=frame.get("unit", unit))
                elif unit == "regions":  # bins and ranks are of voxels
                    continue
                frame.insert(0, "tracer", tracer)
                frames[name].append(frame)
    return Uncertainty(**{name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()})


def judge_samples(
    validation: Samples, test: Samples, *, seed: int = 0, grid: Grid | None = None
) -> dict[str, pd.DataFrame]:
    """`judge` for one tracer and one level of detail; with ``grid`` the error map is smoothed on it."""
    whole, without = error_maps(validation.residual, person=validation.who["person"].to_numpy())
    if grid is not None:
        whole, without = smooth_map(whole, grid), smooth_map(without, grid)
    rows: dict[str, list[pd.DataFrame]] = {name: [] for name in Uncertainty.__dataclass_fields__}
    unit = "regions" if test.names else "voxel"
    person = test.who["person"].to_numpy()
    error = _over_people(np.abs(test.residual).mean(axis=1), person)
    people, likelihoods = pd.DataFrame({"person": error.index, "error": error.to_numpy()}), {}
    for predictor in PREDICTORS:
        fit = calibrate(validation.residual, validation.std, without, predictor)
        sigma = fit.sigma(test.std, np.broadcast_to(whole, test.std.shape))
        q = {f"q{100 * level:g}": value for level, value in fit.quantiles.items()}
        rows["calibration"].append(pd.DataFrame([{"predictor": predictor, "a": fit.a, "b": fit.b, **q}]))
        rows["coverage"].append(_coverage_rows(test, sigma, fit, person, unit, seed).assign(predictor=predictor))
        likelihoods[predictor] = _over_people(likelihood(test.residual, sigma), person).to_numpy()
        rows["reliability"].append(reliability(test.residual, sigma).assign(predictor=predictor))
        score = _over_people(_rms(sigma, axis=1), person).to_numpy()
        people[predictor] = score
        ranks = rank_summary(score, people["error"].to_numpy(), seed=seed)
        rows["ranking"].append(pd.DataFrame([{"predictor": predictor} | ranks]))
    for predictor, values in likelihoods.items():
        gain = likelihoods["map"] - values
        low, high = interval(gain, seed=seed)
        row = {"predictor": predictor, "nll": values.mean(), "gain": gain.mean(), "gain_low": low, "gain_high": high}
        rows["likelihood"].append(pd.DataFrame([row]))
    rows["people"].append(people)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in rows.items()}


def _coverage_rows(
    test: Samples, sigma: np.ndarray, fit: Calibration, person: np.ndarray, unit: str, seed: int
) -> pd.DataFrame:
    parts = [(unit, slice(None))] + [(name, [i]) for i, name in enumerate(test.names)]
    rows = []
    for name, which in parts:
        inside = coverage(test.residual[:, which], sigma[:, which], fit)
        for (level, q), column in zip(fit.quantiles.items(), inside.T, strict=True):
            share = _over_people(column, person).to_numpy()
            low, high = interval(share, seed=seed)
            rows.append(
                {"unit": name, "nominal": level, "coverage": share.mean(), "low": low, "high": high}
                | {"width": float(2 * q * sigma[:, which].mean()), "n": len(share)}
            )
    return pd.DataFrame(rows)


def _over_people(values: np.ndarray, person: np.ndarray) -> pd.Series:
    return pd.Series(values).groupby(person, sort=False).mean()
