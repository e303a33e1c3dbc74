"""Intervals of one person's regional SUVR, calibrated on validation people, and whether the person narrows them.

An interval is m + c ± q e: m is the regional SUVR of the synthetic PET; c and e, in SUVR, are fitted to validation
people; q is the `LEVEL` quantile of ``|real − m − c| / e``. Errors of a fold of people enter q with c and e of the
other folds, so q is not too small. `PREDICTORS` differ in what c and e depend on.

The predictors are compared by the interval score (Gneiting and Raftery 2007: width, plus 20 times what an error exceeds
it by at 90 %) in an outer cross-validation over validation people. Test people only show coverage and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from skimage.measure import block_reduce
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from resdm.io import write_json
from resdm.settings import TRACERS
from resdm_suite.evaluation.image_quality import read_index
from resdm_suite.evaluation.statistics import interval, with_ends
from resdm_suite.evaluation.uncertainty import FOLDS, Samples, calibrate, over_people, read_regional
from resdm_suite.paths import CALIBRATION
from resdm_suite.preprocessing.dataset import CohortDataset
from resdm_suite.profiles import Config
from resdm_suite.records import read_of_model

PREDICTORS = {
    "map": "root mean square error of each region over validation people; the same for everyone",
    "person_shift": "the map, about a centre moved by ridge regression of the errors on the person",
    "person_scale": "the map, scaled for the person by ridge regression of the logarithm of the errors' size",
    "ensemble": "the map and the spread over trainings with other seeds",
}
"""What centre and width depend on. The person: age, sex, mean SUVR, 8 principal components of the coarse T1."""

LEVEL = 0.9
"""Nominal coverage."""

MIN_PEOPLE = 10
"""Fewest validation people to calibrate on: of fewer, the largest error lies below the level."""

_COMPONENTS, _BLOCK_MM = 8, 24.0
_PENALTIES = np.logspace(-1, 4, 11)

Estimate = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Features (N, F) and spread (N, R) of people → c and e (N, R)."""


def fit(predictor: str, residual: np.ndarray, features: np.ndarray, spread: np.ndarray) -> Estimate:
    """C and e of a predictor, from errors (N, R), features (N, F) and spread over trainings (N, R) of people."""
    error = np.sqrt(np.mean(residual**2, axis=0))
    ridge = make_pipeline(StandardScaler(), RidgeCV(_PENALTIES))
    match predictor:
        case "person_shift":
            ridge.fit(features, residual)
            return lambda features, spread: (ridge.predict(features), np.broadcast_to(error, spread.shape))
        case "person_scale":
            size = np.log(np.maximum(np.abs(residual) / error, 0.01)).mean(axis=1)
            ridge.fit(features, size - size.mean())
            return lambda features, spread: (np.zeros_like(spread), np.exp(ridge.predict(features))[:, None] * error)
        case "ensemble":
            both = calibrate(residual, spread, np.broadcast_to(error, spread.shape))
            return lambda features, spread: (
                np.zeros_like(spread), both.sigma(spread, np.broadcast_to(error, spread.shape)),
            )  # fmt: skip
    return lambda features, spread: (np.zeros_like(spread), np.broadcast_to(error, spread.shape))


def intervals(
    predictor: str, residual: np.ndarray, features: np.ndarray, spread: np.ndarray, person: Sequence[str]
) -> Estimate:
    """`fit` with e multiplied by q: centre and half-width of the interval of level `LEVEL`."""
    ratio = np.empty_like(residual)
    for fitted, left_out in GroupKFold(min(FOLDS, len(set(person)))).split(residual, groups=person):
        centre, size = fit(predictor, residual[fitted], features[fitted], spread[fitted])(
            features[left_out], spread[left_out]
        )
        ratio[left_out] = np.abs(residual[left_out] - centre) / size
    q, whole = float(np.quantile(ratio, LEVEL)), fit(predictor, residual, features, spread)

    def estimate(features: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centre, size = whole(features, spread)
        return centre, q * size

    return estimate


def interval_score(residual: np.ndarray, centre: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Width, plus 2 / (1 − level) times the distance by which the error lies outside; lower is better."""
    return 2 * half + 2 / (1 - LEVEL) * np.maximum(np.abs(residual - centre) - half, 0)


# ── comparison ────────────────────────────────────────────────────────────────────────────────────


def compare_intervals(config: Config, method: str) -> pd.DataFrame:
    """Every predictor, by tracer, over regions and for the ``summary`` alone.

    Returns
    -------
    DataFrame
        tracer, unit (``regions``, ``summary``), predictor; gain with ``_low`` and ``_high``: score of ``map`` minus
        that of the predictor over validation people, each scored by a fit to others (above zero: better); of test
        people coverage with ``_low`` and ``_high``, width (mean of the whole interval, SUVR) and n. Intervals are 95 %
        bootstraps over people. ``ensemble`` is left out where the method has one training, a tracer with fewer than
        `MIN_PEOPLE` validation people or no test person.
    """
    parts = [pd.DataFrame(columns=["tracer", "unit", "predictor", "gain", "coverage", "width", "n"])]
    with threadpool_limits(1):
        for tracer in TRACERS:
            validation, test = (read_regional(config, method, tracer, split) for split in ("validation", "test"))
            if validation.who["person"].nunique() >= MIN_PEOPLE and len(test.who):
                parts.append(_compare_tracer(config, method, tracer, validation, test))
    return pd.concat(parts[1:] or parts, ignore_index=True)


def _compare_tracer(config: Config, method: str, tracer: str, validation: Samples, test: Samples) -> pd.DataFrame:
    components = _components(config)
    splits = ("validation", validation), ("test", test)
    known, known_test = (_features(config, *split, components) for split in splits)
    spread, spread_test = (_spread(config, method, tracer, *split) for split in splits)
    names = [name for name in PREDICTORS if name != "ensemble" or spread.any() or spread_test.any()]
    who, rows, scores = validation.who["person"].to_numpy(), [], {}
    for name in names:
        score = np.empty_like(validation.residual)
        for fitted, left_out in GroupKFold(min(FOLDS, len(set(who)))).split(score, groups=who):
            parts = validation.residual[fitted], known[fitted], spread[fitted], who[fitted]
            ends = intervals(name, *parts)(known[left_out], spread[left_out])
            score[left_out] = interval_score(validation.residual[left_out], *ends)
        scores[name] = score
        centre, half = intervals(name, validation.residual, known, spread, who)(known_test, spread_test)
        inside = np.abs(test.residual - centre) <= half
        for unit, which in (("regions", slice(None)), ("summary", [test.names.index("summary")])):
            gain = over_people((scores["map"] - score)[:, which].mean(axis=1), who)
            share = over_people(inside[:, which].mean(axis=1), test.who["person"].to_numpy())
            row = {"tracer": tracer, "unit": unit, "predictor": name}
            for measure, values in (("gain", gain), ("coverage", share)):
                row |= with_ends(measure, values.mean(), interval(values, seed=config.seed))
            rows.append(row | {"width": float(2 * half[:, which].mean()), "n": len(share)})
    return pd.DataFrame(rows)


def _coarse(mri: np.ndarray, config: Config) -> np.ndarray:
    return block_reduce(mri, max(1, round(_BLOCK_MM / config.preprocess.grid.voxel_mm)), np.mean).ravel()


def _components(config: Config) -> PCA:
    train = CohortDataset(config, "train")
    coarse = np.stack([_coarse(train.mri(i), config) for i in range(len(train))])
    return PCA(min(_COMPONENTS, len(train) - 1), svd_solver="full").fit(coarse)


def _features(config: Config, split: str, samples: Samples, components: PCA) -> np.ndarray:
    """Principal components, age, sex and mean SUVR of the sessions of ``samples`` (N, F)."""
    data = CohortDataset(config, split)
    places = {key: i for i, key in enumerate(data.index[["person", "session"]].itertuples(index=False, name=None))}
    chosen = [places[key] for key in samples.who.itertuples(index=False, name=None)]
    scores = components.transform(np.stack([_coarse(data.mri(i), config) for i in chosen]))
    rows = data.index.iloc[chosen]
    age = rows["age"].fillna(rows["age"].mean()).fillna(0)
    return np.column_stack([scores, age, rows["sex"] == "F", samples.mean.mean(axis=1)])


def _spread(config: Config, method: str, tracer: str, split: str, samples: Samples) -> np.ndarray:
    """Standard deviation of the regional SUVR over the trainings of a method (N, R); 0 for one training."""
    means = [samples.mean]
    for name in config.methods:
        if name != method and name.partition("@")[0] == method:
            means.append(read_regional(config, name, tracer, split).mean)
    return np.std(means, axis=0, ddof=1) if len(means) > 1 else np.zeros_like(samples.mean)


# ── one person ────────────────────────────────────────────────────────────────────────────────────


def write_calibration(config: Config, method: str, model: str, folder: Path) -> Path:
    """Write half-widths of the ``map`` into a model folder; ``model`` is the digest of its weights.

    A tracer with fewer than `MIN_PEOPLE` validation people gets none.
    """
    tracers = {}
    for tracer in TRACERS:
        samples = read_regional(config, method, tracer, "validation")
        people = samples.who["person"]
        if people.nunique() >= MIN_PEOPLE:
            nothing = np.zeros_like(samples.std)
            _, half = intervals("map", samples.residual, nothing, nothing, people)(nothing[:1], nothing[:1])
            widths = dict(zip(samples.names, map(float, half[0].round(6)), strict=True))
            tracers[tracer] = {"people": int(people.nunique()), "half_width": widths}
    calibration = {"model": model, "level": LEVEL, "predictor": PREDICTORS["map"], "tracers": tracers}
    return write_json(folder / CALIBRATION, calibration | {"stage": f"resdm sample {config.profile}"})


def read_calibration(folder: Path, model: str) -> dict[str, Any]:
    """What `write_calibration` wrote, by tracer; empty where there is none, or one of other weights."""
    return read_of_model(folder / CALIBRATION, model).get("tracers", {})


def status(low: float, high: float, cutoff: float) -> str:
    """``positive`` or ``negative`` where the whole interval lies on one side of the cut-off, else ``undetermined``."""
    return "positive" if low >= cutoff else "negative" if high < cutoff else "undetermined"


def stated_status(config: Config, method: str, calibration: dict[str, Any]) -> pd.DataFrame:
    """What the intervals of a `read_calibration` state of the summary SUVR of test people, first session of each.

    Columns are tracer, person, mean (of the synthetic PET), real, low, high, cutoff (all SUVR), stated (see `status`),
    right (the real SUVR lies on the stated side of the cut-off) and inside (of the interval).
    """
    columns = ["tracer", "person", "mean", "real", "low", "high", "cutoff", "stated", "right", "inside"]
    index, parts = read_index(config), [pd.DataFrame(columns=columns)]
    for tracer, known in calibration.items():
        samples, half = read_regional(config, method, tracer, "test"), known["half_width"]["summary"]
        if samples.who.empty:
            continue
        mean, residual = (values[:, samples.names.index("summary")] for values in (samples.mean, samples.residual))
        part = samples.who.assign(tracer=tracer, mean=mean, real=mean + residual, low=mean - half, high=mean + half)
        part = part.merge(index, on=["person", "session"], how="left", suffixes=("", "_"))
        part["cutoff"] = [config.cohort.cutoff(tracer, label) for label in part[f"{tracer}_tracer"]]
        part = part.drop_duplicates("person").dropna(subset="cutoff")
        part["stated"] = [status(*ends) for ends in part[["low", "high", "cutoff"]].to_numpy()]
        part["right"] = (part["real"] >= part["cutoff"]) == (part["stated"] == "positive")
        part["inside"] = part["real"].between(part["low"], part["high"])
        parts.append(part[columns])
    return pd.concat(parts[1:] or parts, ignore_index=True)
