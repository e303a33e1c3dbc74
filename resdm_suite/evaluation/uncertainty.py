"""Is the standard deviation over samples informative? Calibration, coverage, and ranking of people by their error.

A few samples of a person have a mean m and a standard deviation s at every voxel. Few sampling steps of a network that
was trained to predict the mean give samples that are too alike, so s understates the error ``|real − m|``. It is
calibrated on validation people alone, by tracer:

1. *Error map* e: at every voxel (region) the root mean square of real − m over validation people, smoothed over
   `MAP_FWHM_MM` (voxels only). It shows where errors are large, and is the same for everyone.
2. *Combination*: σ² = a s² + b e² with a, b ≥ 0, the non-negative least-squares fit of squared errors, each voxel
   weighted by 1/e⁴, since the variance of a squared Gaussian error grows with its fourth power. Fits of s alone (b = 0)
   and e alone (a = 0) show whether sampling adds anything to a map.
3. *Quantiles*: the interval of nominal level p is m ± q(p) σ, with q(p) the empirical p-quantile of ``|real − m| / σ``
   over validation voxels.

In 2 and 3 the error map of a validation person is made without that person's fold (`FOLDS` folds), as it is for a test
person. The level is not guaranteed: a, b and q come from the same few dozen people, and voxels of a person are
dependent. Coverage is therefore measured on test people, with intervals over people.

All values are in SUVR, inside the brain. The person is the unit: sessions of one person are averaged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, stats
from scipy.ndimage import gaussian_filter

from resdm.settings import TRACERS
from resdm_suite.anatomy import REFERENCE, Grid, mni_map
from resdm_suite.evaluation.classification import reliability
from resdm_suite.evaluation.image_quality import read_index, volume_pairs
from resdm_suite.evaluation.statistics import REPEATS, interval, over_people, percentile_interval, with_ends
from resdm_suite.evaluation.stored import SESSION, Numbers, read_table, read_volume
from resdm_suite.evaluation.suvr import sidecar_range, to_suvr
from resdm_suite.paths import std_path
from resdm_suite.profiles import Config

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Nominal coverage of the intervals."""

PREDICTORS = {
    "raw": "standard deviation over samples, as it is, Gaussian interval",
    "sampling": "standard deviation over samples, scaled",
    "map": "error map of validation people",
    "both": "standard deviation over samples and error map",
}
"""Predictors of the error's size."""

MAP_FWHM_MM = 10.0
"""Smoothing of the error map: a few dozen people give a voxel's error to 13 % only."""

FOLDS = 5
"""Folds of the validation people, for error maps without the person."""

BINS = 10
"""Bins of equally many voxels, for error against predicted deviation."""

MIN_SIGMA = 1e-3
"""SUVR: the smallest predicted error; samples that are all clipped to 0 have no spread."""


class UncertaintyError(ValueError):
    """Samples that cannot be evaluated: names the missing part and the remedy."""


# ── calibration: arrays in, numbers out ───────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Calibration:
    """Coefficients of σ² = a s² + b e², and level → number of σ that its interval extends to either side."""

    a: float
    b: float
    quantiles: Mapping[float, float]

    def sigma(self, std: np.ndarray, error_map: np.ndarray) -> np.ndarray:
        """Predicted standard deviation of the error, in the unit of the inputs."""
        return np.sqrt(np.maximum(self.a * std**2 + self.b * error_map**2, MIN_SIGMA**2))


def calibrate(residual: np.ndarray, std: np.ndarray, error_map: np.ndarray, predictor: str = "both") -> Calibration:
    """Fit a calibration to validation people; ``raw`` is not fitted: σ = s, Gaussian quantiles.

    ``residual`` (real − mean) and ``std`` (over samples) are (N, V) of N people at V voxels or regions; ``error_map``
    (N, V) is made without each person. Raises `UncertaintyError` for nobody, or values that are not finite.
    """
    if predictor == "raw":
        return Calibration(1.0, 0.0, {level: float(stats.norm.ppf((1 + level) / 2)) for level in LEVELS})
    if len(residual) == 0 or not all(np.isfinite(array).all() for array in (residual, std, error_map)):
        raise UncertaintyError("calibration: nobody to calibrate on, or values that are not finite")
    a, b = _weights(residual, std, error_map, predictor)
    ratio = np.abs(residual) / Calibration(a, b, {}).sigma(std, error_map)
    return Calibration(a, b, dict(zip(LEVELS, map(float, np.quantile(ratio, LEVELS)), strict=True)))


def _weights(residual: np.ndarray, std: np.ndarray, error_map: np.ndarray, predictor: str) -> tuple[float, float]:
    """a, b ≥ 0 of σ² = a s² + b e² by weighted least squares; 0 for the term that the predictor lacks."""
    weight = 1 / np.maximum(error_map, MIN_SIGMA) ** 2
    terms = {"sampling": [0], "map": [1]}.get(predictor, [0, 1])
    columns = np.stack([(weight * std**2).ravel(), (weight * error_map**2).ravel()], axis=1)[:, terms]
    fit, _ = optimize.nnls(columns.T @ columns, columns.T @ (weight * residual**2).ravel())  # normal equations
    weights = np.zeros(2)
    weights[terms] = fit if fit.any() else 1.0
    return float(weights[0]), float(weights[1])


def error_maps(residual: np.ndarray, person: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root mean square error at every voxel, of all people (V,) and for each session without its person's fold (N, V).

    ``residual`` is (N, V), ``person`` (N,); the i-th person is in fold i mod `FOLDS` with all sessions.
    """
    who, names = pd.factorize(np.asarray(person))
    folds = min(FOLDS, len(names))
    if folds < 2:
        raise UncertaintyError(f"error map: {len(names)} validation people; at least 2 are needed")
    squares = residual.astype(np.float64) ** 2
    fold = who % folds
    without = np.stack([np.sqrt(squares[fold != f].mean(axis=0)) for f in range(folds)])[fold]
    return np.sqrt(squares.mean(axis=0)), without


def coverage(residual: np.ndarray, sigma: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Share of real values inside their interval, by person and level: (N, L)."""
    ratio = np.abs(residual) / sigma
    return np.stack([(ratio <= q).mean(axis=1) for q in calibration.quantiles.values()], axis=1)


def likelihood(residual: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Mean negative log-likelihood of a Gaussian by person (N,), lowest for the right σ."""
    return np.mean(np.log(sigma) + residual**2 / (2 * sigma**2), axis=1) + 0.5 * np.log(2 * np.pi)


def deviation_bins(residual: np.ndarray, sigma: np.ndarray) -> pd.DataFrame:
    """Reliability of σ: bin, predicted (root mean square of σ), error (of the residual), n (voxels)."""
    curve = reliability(sigma.ravel() ** 2, residual.ravel().astype(np.float64) ** 2, np.ones(sigma.size), BINS)
    roots = np.sqrt(curve[["predicted", "observed"]]).rename(columns={"observed": "error"})
    return roots.assign(n=curve["n"].astype(int)).rename_axis("bin").reset_index()


# ── ranking people ────────────────────────────────────────────────────────────────────────────────


def risk_coverage(score: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Mean error of the k people with the lowest score, k = 1 … N (El-Yaniv and Wiener 2010); ties in given order."""
    order = np.argsort(score, kind="stable")
    return np.cumsum(error[order]) / np.arange(1, len(error) + 1)


def rank_summary(score: np.ndarray, error: np.ndarray, *, seed: int) -> dict[str, float]:
    """How well a score (N,) ranks people by their error (N,).

    Keys are n, rho (Spearman), rho_low, rho_high (percentile bootstrap over people, 95 %), aurc (area under the
    risk–coverage curve), aurc_random (expected for an uninformative score: the mean error), aurc_oracle (for the error
    itself), gain (share of the way from random to oracle). NaN for fewer than three people or a constant score.
    """
    n, nan = len(score), float("nan")
    constant = np.ptp(score) <= 1e-9 * np.abs(score).max()  # as good as chance
    random, oracle = float(error.mean()), float(risk_coverage(error, error).mean())
    aurc = random if constant else float(risk_coverage(score, error).mean())
    rho, ends = nan, (nan, nan)
    if n >= 3 and not constant and np.ptp(error) > 0:
        rows = np.random.default_rng(seed).integers(0, n, (REPEATS, n))
        rho = float(_spearman(score[None], error[None])[0])
        ends = percentile_interval(_spearman(score[rows], error[rows]))
    gain = (random - aurc) / (random - oracle) if random > oracle else nan
    area = {"aurc": aurc, "aurc_random": random, "aurc_oracle": oracle, "gain": gain}
    return {"n": n} | with_ends("rho", rho, ends) | area


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of every row, (R, N) → (R,); NaN where one side does not vary."""
    x, y = (stats.rankdata(values, axis=1) - (x.shape[1] + 1) / 2 for values in (x, y))
    below = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.where(below > 0, (x * y).sum(axis=1) / np.where(below > 0, below, 1), np.nan)


# ── stored samples ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Samples:
    """Samples of one tracer with the real PET, of sessions of one split, in SUVR.

    ``who`` has person and session; ``residual`` (real − mean), ``mean`` and ``std`` are (N, V) of V voxels of the
    brain, or of the regions in ``names``.
    """

    who: pd.DataFrame
    residual: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    names: tuple[str, ...] = ()


def read_samples(config: Config, method: str, tracer: str, split: str) -> Samples:
    """Voxels of the brain, of every session of a split that has the tracer's real PET.

    Raises `UncertaintyError` where samples are missing.
    """
    grid = Grid.of(config.preprocess.grid)
    brain = mni_map("brain", grid)
    pairs = [pair for pair in volume_pairs(config, method, read_index(config, split), "samples") if pair[2] == tracer]
    if not pairs:
        raise UncertaintyError(f"{config.work}: nobody of split {split!r} has {tracer} PET")
    arrays = {"real": [], "mean": [], "std": []}
    for *_, source, path in pairs:
        if not (path.is_file() and std_path(path).is_file()):
            raise UncertaintyError(f"{path}: no samples of {method!r} there; make them first: resdm sample")
        low, high = sidecar_range(source)
        arrays["real"].append(to_suvr(read_volume(source, grid)[brain], (low, high)))
        arrays["mean"].append(to_suvr(read_volume(path, grid)[brain], (low, high)))
        arrays["std"].append((high - low) * read_volume(std_path(path), grid)[brain])
    real, mean, std = (np.stack(rows).astype(np.float64) for rows in arrays.values())
    who = pd.DataFrame([pair[:2] for pair in pairs], columns=SESSION)
    return Samples(who, real - mean, mean, std)


def read_regional(config: Config, method: str, tracer: str, split: str) -> Samples:
    """Regions instead of voxels: mean and standard deviation of the regional SUVR over samples.

    The tracer's reference region is left out: it is 1 in every real PET.
    """
    path = config.predictions(method, "samples") / "regional.csv"
    keys = {"person": str, "session": str, "split": str, "tracer": TRACERS, "region": str}
    columns = keys | {"mean": Numbers(), "std": Numbers(0), "real": Numbers()}
    frame = read_table(path, columns, list(keys), f"samples of {method!r}", "`resdm sample`")
    frame = frame[(frame["tracer"] == tracer) & (frame["split"] == split) & (frame["region"] != REFERENCE[tracer])]
    columns = ["real", "mean", "std"]
    tables = [frame.pivot_table(column, ["person", "session"], "region", sort=False) for column in columns]
    real, mean, std = (table.to_numpy(np.float64) for table in tables)
    return Samples(tables[0].index.to_frame(index=False), real - mean, mean, std, tuple(tables[0].columns))


def smooth_map(error: np.ndarray, grid: Grid) -> np.ndarray:
    """Error maps over the brain's voxels (…, V), their squares averaged with neighbours inside the brain."""
    brain = mni_map("brain", grid)
    sigma = MAP_FWHM_MM / np.sqrt(8 * np.log(2)) / grid.voxel_mm
    weight = gaussian_filter(brain.astype(np.float64), sigma)
    out = np.empty_like(error, dtype=np.float64)
    for index in np.ndindex(error.shape[:-1]):
        volume = np.zeros(grid.shape)
        volume[brain] = error[index] ** 2
        out[index] = np.sqrt(gaussian_filter(volume, sigma)[brain] / weight[brain])
    return out


# ── the evaluation ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Uncertainty:
    """All that the table and the figure show.

    Parameters
    ----------
    calibration : DataFrame
        tracer, unit (``voxel``, ``regions``), predictor, a, b, q50 …: the fit.
    coverage : DataFrame
        unit (``voxel`` or a region's name; ``regions``: all of them), tracer, predictor, nominal, coverage, low, high
        (95 %, over people), width (mean of the whole interval, SUVR), n (people).
    likelihood : DataFrame
        unit (``voxel``, ``regions``), tracer, predictor, nll (mean over people), gain over ``map`` (difference of
        nll, positive: better than the map alone), gain_low, gain_high (95 % bootstrap over people).
    reliability : DataFrame
        tracer, predictor, and the columns of `deviation_bins`.
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


def evaluate_samples(config: Config, method: str) -> Uncertainty:
    """Calibrate the stored samples of a method on validation people and evaluate them on test people."""
    grid = Grid.of(config.preprocess.grid)
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in Uncertainty.__dataclass_fields__}
    index = read_index(config, None)
    people = {t: index[index[f"present_{t}"] == 1].groupby("split")["person"].nunique() for t in TRACERS}
    known = [t for t, n in people.items() if n.get("validation", 0) >= 2 and n.get("test", 0)]
    if not known:
        raise UncertaintyError(
            f"{config.profile}: two validation people and a test person with one kind of PET are needed"
        )
    for tracer in known:
        for unit, read in (("voxel", read_samples), ("regions", read_regional)):
            splits = (read(config, method, tracer, split) for split in ("validation", "test"))
            results = compare_predictors(*splits, seed=config.seed, grid=grid if unit == "voxel" else None)
            for name, frame in results.items():
                if name in ("calibration", "likelihood", "coverage"):
                    frame = frame.assign(unit=frame.get("unit", unit))
                elif unit == "regions":  # bins and ranks are of voxels
                    continue
                frame.insert(0, "tracer", tracer)
                frames[name].append(frame)
    return Uncertainty(**{name: pd.concat(parts, ignore_index=True) for name, parts in frames.items()})


def compare_predictors(
    validation: Samples, test: Samples, *, seed: int, grid: Grid | None = None
) -> dict[str, pd.DataFrame]:
    """The tables of `Uncertainty` for one tracer, voxels or regions; with ``grid`` the error map is smoothed on it."""
    whole, without = error_maps(validation.residual, validation.who["person"])
    if grid is not None:
        whole, without = smooth_map(whole, grid), smooth_map(without, grid)
    rows: dict[str, list[pd.DataFrame]] = {name: [] for name in Uncertainty.__dataclass_fields__}
    person = test.who["person"].to_numpy()
    error = over_people(np.abs(test.residual).mean(axis=1), person)
    people, likelihoods = pd.DataFrame({"person": error.index, "error": error.to_numpy()}), {}
    for predictor in PREDICTORS:
        fit = calibrate(validation.residual, validation.std, without, predictor)
        sigma = fit.sigma(test.std, np.broadcast_to(whole, test.std.shape))
        people[predictor] = over_people(np.sqrt(np.mean(sigma**2, axis=1)), person).to_numpy()
        likelihoods[predictor] = over_people(likelihood(test.residual, sigma), person)
        ranks = rank_summary(people[predictor].to_numpy(), people["error"].to_numpy(), seed=seed)
        quantiles = {f"q{100 * level:g}": value for level, value in fit.quantiles.items()}
        rows["calibration"].append(pd.DataFrame([{"predictor": predictor, "a": fit.a, "b": fit.b, **quantiles}]))
        rows["coverage"].append(_coverage_rows(test, sigma, fit, person, seed).assign(predictor=predictor))
        rows["reliability"].append(deviation_bins(test.residual, sigma).assign(predictor=predictor))
        rows["ranking"].append(pd.DataFrame([{"predictor": predictor} | ranks]))
    for predictor, values in likelihoods.items():
        gain = likelihoods["map"] - values
        row = {"predictor": predictor, "nll": values.mean()}
        row |= with_ends("gain", gain.mean(), interval(gain, seed=seed))
        rows["likelihood"].append(pd.DataFrame([row]))
    rows["people"].append(people)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in rows.items()}


def _coverage_rows(test: Samples, sigma: np.ndarray, fit: Calibration, person: np.ndarray, seed: int) -> pd.DataFrame:
    parts = {"regions" if test.names else "voxel": slice(None)} | {name: [i] for i, name in enumerate(test.names)}
    rows = []
    for name, which in parts.items():
        inside = coverage(test.residual[:, which], sigma[:, which], fit)
        for (level, q), column in zip(fit.quantiles.items(), inside.T, strict=True):
            share = over_people(column, person)
            low, high = interval(share, seed=seed)
            row = {"unit": name, "nominal": level, "coverage": share.mean(), "low": low, "high": high}
            rows.append(row | {"width": float(2 * q * sigma[:, which].mean()), "n": len(share)})
    return pd.DataFrame(rows)
