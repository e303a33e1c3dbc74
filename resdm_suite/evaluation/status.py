"""Table 4: how well status is classified from real and synthetic PET, from the stored readings ``status.csv``.

Intervals are over people and the trainings of a method; the evaluators are fixed.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from resdm.settings import TRACERS, derive_seed
from resdm_suite.evaluation import classification
from resdm_suite.evaluation.readings import SESSION, TARGETS, check_same_sessions, one_per_session
from resdm_suite.evaluation.statistics import (
    ends_of,
    percentile_interval,
    person_draws,
    person_weights,
    training_resamples,
    with_ends,
)

CLASSIFICATION = ("auc", "acc", "f1")
"""Metrics of each fold."""

MEAN_SCORE = ("auc_mean_score", "auc_adjusted", "brier")
"""Metrics of the score averaged over the folds."""


def trainings(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by table row: ``X`` and its repetitions under other seeds, ``X@seed1``, …, are one row ``X``."""
    rows: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        rows.setdefault(name.partition("@")[0], []).append(name)
    return rows


def status_parts(status: pd.DataFrame, sources: Iterable[str]) -> dict[str, list[pd.DataFrame]]:
    """The readings of one target and tracer by source: one frame per training, one row per session.

    Columns are person, session, age, sex, label, ``score_<fold>``, ``call_<fold>`` (score ≥ the fold's threshold) and
    score (mean of the folds). Sources without readings are left out; all frames have the same sessions. Raises
    `ValueError` naming a session that occurs twice, or is missing from one fold, training or source.
    """
    repeats, parts = trainings(status["source"]), {}
    tracer = "/".join(status["tracer"].unique())
    for name in (name for source in sources for name in repeats.get(source, ())):
        rows = status[status["source"] == name]
        where, by_fold = f"{name!r}, {tracer}", rows.groupby("fold")
        folds = {str(fold): one_per_session(part, f"{where}, fold {fold}") for fold, part in by_fold}
        check_same_sessions({f"fold {fold}": part for fold, part in folds.items()}, where)
        part = next(iter(folds.values()))[[*SESSION, "age", "sex", "label"]].copy()
        for fold, values in folds.items():
            part[f"score_{fold}"] = values["score"]
            part[f"call_{fold}"] = (values["score"] >= values["threshold"]).astype(int)
        part["score"] = part[[f"score_{fold}" for fold in folds]].mean(axis=1)
        parts[name] = part
    if parts:
        check_same_sessions(parts, tracer)
    return {source: [parts[name] for name in repeats[source]] for source in sources if source in repeats}


def status_blocks(
    status: pd.DataFrame, sources: Iterable[str]
) -> Iterator[tuple[str, str, dict[str, list[pd.DataFrame]]]]:
    """Target, tracer and `status_parts`, for each target and tracer with readings."""
    sources = list(sources)
    for target in TARGETS:
        for tracer in TRACERS:
            rows = status[(status["target"] == target) & (status["tracer"] == tracer)]
            if parts := status_parts(rows, sources):
                yield target, tracer, parts


def status_summary(
    status: pd.DataFrame, sources: Iterable[str], bases: Sequence[str] = (), *, seed: int
) -> pd.DataFrame:
    """How well status is classified from each source, over test people.

    Parameters
    ----------
    status : DataFrame
        Rows of ``status.csv``.
    sources : iterable of str
        In row order; the trainings of a method are one row.
    bases : sequence of str
        Sources that each one is compared with on the same people.
    seed : int
        Of the bootstrap over people and trainings.

    Returns
    -------
    DataFrame
        One row per source, target, tracer and metric: trainings, n (people), positive (people with a positive session),
        sessions, folds, mean (over folds and trainings), std (over the folds, trainings averaged), ci_low and ci_high
        (of that mean: people and trainings are resampled, folds are not), and for each base ``over_<base>`` (source −
        base) with ``…_low`` and ``…_high``, empty where the base was not read. Fractions. Metrics are those of
        `CLASSIFICATION` and `MEAN_SCORE` (std empty), computed for each training and then averaged: the AUC of scores
        averaged over trainings would be that of an ensemble.
    """
    sources, rows = list(sources), []
    for target, tracer, parts in status_blocks(status, dict.fromkeys([*sources, *bases])):
        first = next(iter(parts.values()))[0]  # all sources have the same sessions
        head = {"target": target, "tracer": tracer, "n": first["person"].nunique()}
        head |= {"positive": first.loc[first["label"] == 1, "person"].nunique(), "sessions": len(first)}
        rows += [
            head | row for row in compare_sources(parts, (*CLASSIFICATION, *MEAN_SCORE), sources, bases, seed=seed)
        ]
    columns = ["source", "target", "tracer", "metric", "trainings", "n", "positive", "sessions", "folds"]
    columns += ["mean", "std", "ci_low", "ci_high", *(name for base in bases for name in ends_of(f"over_{base}"))]
    order = {"source": sources, "target": TARGETS, "tracer": TRACERS}
    return pd.DataFrame(rows, columns=columns).sort_values(
        ["target", "tracer", "source"], key=lambda c: c.map([*order[c.name]].index), kind="stable", ignore_index=True
    )


def compare_sources(
    parts: dict[str, list[pd.DataFrame]], metrics: Iterable[str], sources: Iterable[str], bases: Sequence[str], *,
    seed: int,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Every metric of every source of ``parts`` (see `status_parts`), as rows of `status_summary`."""
    first = next(iter(parts.values()))[0]  # all sources have the same sessions
    draws_of_people = person_draws(first["person"], seed=seed)
    seeds = {name: derive_seed(seed, "trainings", name) for name in parts}
    shares = {name: training_resamples(len(part), seed=seeds[name]) for name, part in parts.items()}
    for metric in metrics:
        values = {name: _resampled(part, metric, *draws_of_people, shares[name]) for name, part in parts.items()}
        for source in (source for source in sources if source in parts):
            by_fold, draws = values[source]
            row = {"source": source, "metric": metric, "trainings": len(parts[source])}
            row |= {"folds": len(_folds(parts[source][0])), "mean": by_fold.mean()}
            row |= {"std": float(by_fold.std(ddof=1)) if len(by_fold) > 1 else math.nan}
            row |= dict(zip(("ci_low", "ci_high"), percentile_interval(draws), strict=True))
            for base in (base for base in bases if base in parts and base != source):
                gain = by_fold.mean() - values[base][0].mean()
                row |= with_ends(f"over_{base}", gain, percentile_interval(draws - values[base][1]))
            yield row


def _resampled(
    repeats: list[pd.DataFrame], metric: str, weights: np.ndarray, resamples: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A metric by fold, trainings averaged; its mean over folds in every resample of people and trainings."""
    functions = [_metric(part, metric) for part in repeats]
    by_fold = np.mean([[function(row, weights) for row in rows] for function, rows in functions], axis=0)
    by_training = np.array([function(rows, resamples) for function, rows in functions])  # (trainings, repeats)
    return by_fold, np.sum(by_training * shares.T, axis=0)


def _folds(part: pd.DataFrame) -> list[str]:
    return [name.removeprefix("score_") for name in part if name.startswith("score_")]


def _metric(part: pd.DataFrame, metric: str) -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], np.ndarray]:
    """A metric as a function of scores and weights, and its scores: one row per fold, or the averaged score alone."""
    label, age, sex = (part[name].to_numpy() for name in ("label", "age", "sex"))
    functions = {"acc": classification.accuracy, "f1": classification.f1, "kappa": classification.kappa}
    functions |= {"balanced": classification.balanced_accuracy, "brier": classification.brier}
    function = functions.get(metric, classification.auc)
    if metric == "auc_adjusted":
        function = partial(classification.adjusted_auc, age=age, sex=sex)
    kind = "score" if metric == "auc" else "call"
    columns = ["score"] if metric in MEAN_SCORE else [f"{kind}_{fold}" for fold in _folds(part)]
    return partial(function, label), part[columns].to_numpy().T


def status_reliability(status: pd.DataFrame, sources: Iterable[str]) -> pd.DataFrame:
    """Calibration of each source: source, target, tracer, score, observed, low, high (Wilson, 95 %), n (people).

    The score is averaged over the folds; the trainings of a method share the weight of each session.
    """
    tables = []
    for target, tracer, parts in status_blocks(status, sources):
        for source, repeats in parts.items():
            part = pd.concat(repeats, ignore_index=True)
            weights = np.tile(person_weights(repeats[0]["person"]), len(repeats)) / len(repeats)
            table = classification.reliability(part["score"].to_numpy(), part["label"].to_numpy(), weights, 5)
            low, high = classification.wilson(table["observed"], table["n"])
            head = {"source": source, "target": target, "tracer": tracer}
            tables.append(table.rename(columns={"predicted": "score"}).assign(**head, low=low, high=high))
    columns = ["source", "target", "tracer", "score", "observed", "low", "high", "n"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
