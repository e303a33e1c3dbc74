"""What the evaluators' readings say: status (Table 4), and what the prompt's sex and age change (Figures 4 and 5).

Input are the stored readings ``work/<profile>/evaluation/{status,sex,age}.csv`` and image scores, never a model. What
a prompt does is always a difference between two conditions on the same people, with its interval over those people:
an evaluator that was fitted on real PET reads synthetic PET with a shift of its own, which such a difference cancels.

Intervals of Table 4 are over people and the trainings of a method. Those of Figures 4 and 5 hold for one trained model:
other prompts are synthesised by one training. None tells how the evaluators would come out of another training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resdm.settings import TRACERS, derive_seed
from resdm_suite.evaluation.image_quality import check_people, read_scores
from resdm_suite.evaluation.resampling import (
    accuracy,
    adjusted_auc,
    auc,
    brier,
    f1,
    interval,
    pearson,
    person_weights,
    reliability,
    resamples,
    slope,
    training_shares,
)
from resdm_suite.evaluation.statistics import bootstrap_mean, compare, holm
from resdm_suite.profiles import Config

COLUMNS = {
    "status": (
        "fold", "target", "source", "person", "session", "age", "sex", "tracer", "label", "score", "threshold",
    ),
    "status_folds": (
        "fold", "target", "source", "tracer", "n_train", "n_held_out", "held_out_auc", "held_out_p", "threshold",
    ),
    "sex": ("source", "condition", "person", "session", "tracer", "label", "score", "threshold", "prompt"),
    "sex_folds": ("tracer", "n_train", "n_held_out", "held_out_auc", "held_out_p", "threshold"),
    "age": ("source", "condition", "person", "session", "tracer", "age", "prompt_age", "predicted"),
    "age_folds": ("tracer", "n_train", "n_held_out", "held_out_r", "held_out_p", "bias"),
}  # fmt: skip
"""Columns of the stored readings, by file; ``…_folds`` tell how the evaluators did on held-out training people."""

SEX_PROMPTS = {"right": "factual", "none": "no_sex", "wrong": "wrong_sex"}
"""What Figure 4's prompts say about sex → the condition's name."""

AGE_PROMPTS = ("factual", "no_age", "shuffled_age")
"""Conditions of Figure 5, beside ``real`` and ``age_<years>``."""

CLASSIFICATION = ("auc", "acc", "f1")

_SESSION = ["person", "session"]


def readings_path(config: Config, name: str) -> Path:
    """Where the readings of `COLUMNS` are stored."""
    return config.evaluation_folder / f"{name}.csv"


def read_readings(config: Config, name: str) -> pd.DataFrame:
    """The stored readings of one evaluator, identifiers as text.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        Columns missing, or no row.
    LeakageError
        Readings of people whom ``index.csv``, where it is there, does not test.
    """
    path = readings_path(config, name)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no stored readings; run the evaluators first")
    frame = pd.read_csv(path, dtype={"person": str, "session": str, "source": str, "condition": str})
    missing = [column for column in COLUMNS[name] if column not in frame]
    if missing or frame.empty:
        found = f"columns missing: {', '.join(missing)}" if missing else "no row"
        raise ValueError(f"{path}: {found}; run the evaluators again")
    if "person" in frame:
        check_people(frame, config, path)
    return frame


def _sessions(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """One row a session, sorted, or an error."""
    frame = frame.sort_values(_SESSION, kind="stable").reset_index(drop=True)
    if frame.empty or frame.duplicated(_SESSION).any():
        twice = frame.loc[frame.duplicated(_SESSION), _SESSION]
        found = "no row" if frame.empty else f"{' '.join(twice.iloc[0])} twice"
        raise ValueError(f"readings of {where}: {found}; expected one row a session: run the evaluators again")
    return frame


def _same_sessions(parts: Mapping[str, pd.DataFrame], where: str) -> None:
    (first, reference), *others = parts.items()
    for name, part in others:
        apart = set(map(tuple, reference[_SESSION].to_numpy())) ^ set(map(tuple, part[_SESSION].to_numpy()))
        if apart:
            raise ValueError(
                f"readings of {where}: {first!r} and {name!r} are not of the same sessions (only one has "
                f"{' '.join(min(apart))}; {len(apart)} in all); run the evaluators again"
            )


def present_tracers(frame: pd.DataFrame) -> list[str]:
    """Tracers that a frame has rows of, in the usual order."""
    return [tracer for tracer in TRACERS if (frame["tracer"] == tracer).any()]


# ── status: table 4 ───────────────────────────────────────────────────────────────────────────────

TARGETS = ("planted", "label")
"""What a status may be: planted in phantoms, or the label that a cut-off on the measured SUVR gives."""

MEAN_SCORE = ("auc_mean_score", "auc_adjusted", "brier")
"""Metrics of the score averaged over the folds; those of `CLASSIFICATION` are of each fold."""


def trainings(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by row of a table: ``X`` and its repetitions under other seeds, ``X@seed1``, …, are one row ``X``."""
    rows: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        rows.setdefault(name.partition("@")[0], []).append(name)
    return rows


def status_parts(status: pd.DataFrame, sources: Iterable[str]) -> dict[str, list[pd.DataFrame]]:
    """The readings of one target and tracer by source, one frame a training and one row a session.

    Parameters
    ----------
    status : DataFrame
        Rows of ``status.csv``, of one target and one tracer.
    sources : iterable of str
        Rows of the table, see `trainings`.

    Returns
    -------
    dict of source to list of DataFrame
        person, session, age, sex, label, ``score_<fold>`` and ``call_<fold>`` (score ≥ the fold's threshold), score
        (mean of the folds). Sources without a reading are left out; all frames have the same sessions.

    Raises
    ------
    ValueError
        A session that one fold, training or source has and another has not, or twice: names it.
    """
    repeats, parts = trainings(status["source"]), {}
    tracer = "/".join(status["tracer"].unique())
    for name in (name for source in sources for name in repeats.get(source, ())):
        rows = status[status["source"] == name]
        folds = {str(fold): _sessions(part, f"{name!r}, {tracer}, fold {fold}") for fold, part in rows.groupby("fold")}
        _same_sessions({f"fold {fold}": part for fold, part in folds.items()}, f"{name!r}, {tracer}")
        part = next(iter(folds.values()))[[*_SESSION, "age", "sex", "label"]].copy()
        for fold, values in folds.items():
            part[f"score_{fold}"] = values["score"]
            part[f"call_{fold}"] = (values["score"] >= values["threshold"]).astype(int)
        part["score"] = part[[f"score_{fold}" for fold in folds]].mean(axis=1)
        parts[name] = part
    if parts:
        _same_sessions(parts, tracer)
    return {source: [parts[name] for name in repeats[source]] for source in sources if source in repeats}


def status_blocks(
    status: pd.DataFrame, sources: Iterable[str]
) -> Iterator[tuple[str, str, dict[str, list[pd.DataFrame]]]]:
    """Target, tracer and `status_parts` of each of the two that has readings."""
    sources = list(sources)
    for target in TARGETS:
        for tracer in TRACERS:
            rows = status[(status["target"] == target) & (status["tracer"] == tracer)]
            if parts := status_parts(rows, sources):
                yield target, tracer, parts


def status_summary(
    status: pd.DataFrame, sources: Iterable[str], bases: Sequence[str] = (), *, seed: int
) -> pd.DataFrame:
    """How well status is told from each source, over test people.

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
        One row a source, target, tracer and metric: trainings, n (people), positive (people with a positive session),
        sessions, folds, mean (over folds and trainings), std (over the folds, trainings averaged), ci_low and ci_high
        (of that mean: folds kept, people and trainings resampled), and for each base ``over_<base>`` (the source − the
        base) with ``…_low`` and ``…_high``, empty where the base was not read. Fractions. Metrics are ``auc``,
        ``acc``, ``f1``, and, of the score averaged over the folds, ``auc_mean_score``, ``auc_adjusted``
        (`resdm_suite.evaluation.resampling.adjusted_auc`) and ``brier`` (std empty).

    Notes
    -----
    A metric is computed for each training and then averaged: it is what one training is expected to reach. The AUC of
    scores averaged over trainings would be that of an ensemble, and no match for a row of one training.
    """
    sources, rows = list(sources), []
    for target, tracer, parts in status_blocks(status, dict.fromkeys([*sources, *bases])):
        first = next(iter(parts.values()))[0]  # the sessions are those of all sources
        one, many = person_weights(first["person"]), resamples(first["person"], seed=seed)
        who = {"target": target, "tracer": tracer, "n": first["person"].nunique()}
        who |= {"positive": first.loc[first["label"] == 1, "person"].nunique(), "sessions": len(first)}
        shares = {name: training_shares(len(p), seed=derive_seed(seed, "trainings", name)) for name, p in parts.items()}
        for metric in (*CLASSIFICATION, *MEAN_SCORE):
            found, drawn = {}, {}
            for source, repeats in parts.items():
                told = [_told(part, metric) for part in repeats]
                found[source] = np.mean([[function(row, one) for row in rows] for function, rows in told], axis=0)
                by_training = np.array([function(rows, many) for function, rows in told])  # (trainings, repeats)
                drawn[source] = np.sum(by_training * shares[source].T, axis=0)
            for source in (source for source in sources if source in parts):
                points = found[source]  # by fold
                spread = float(points.std(ddof=1)) if len(points) > 1 else math.nan
                row = {"source": source, **who, "metric": metric, "trainings": len(parts[source])}
                row |= {"folds": len(_folds(parts[source][0])), "mean": points.mean(), "std": spread}
                row |= dict(zip(("ci_low", "ci_high"), interval(drawn[source]), strict=True))
                for base in (base for base in bases if base in parts and base != source):
                    ends = interval(drawn[source] - drawn[base])
                    gain = points.mean() - found[base].mean()
                    row |= {f"over_{base}": gain, f"over_{base}_low": ends[0], f"over_{base}_high": ends[1]}
                rows.append(row)
    columns = ["source", "target", "tracer", "metric", "trainings", "n", "positive", "sessions", "folds"]
    columns += ["mean", "std", "ci_low", "ci_high"]
    columns += [f"over_{base}{end}" for base in bases for end in ("", "_low", "_high")]
    order = {source: i for i, source in enumerate(sources)}
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values(["target", "tracer", "source"], key=lambda c: c.map(order) if c.name == "source" else
                             c.map([*TARGETS, *TRACERS].index), kind="stable", ignore_index=True)  # fmt: skip


def _folds(part: pd.DataFrame) -> list[str]:
    return [name.removeprefix("score_") for name in part if name.startswith("score_")]


Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Scores or calls, (n,) or (k, n) for the mean of k, and weights (…, n) → (…)."""


def _told(part: pd.DataFrame, metric: str) -> tuple[Metric, np.ndarray]:
    """A metric, and what it is computed of, a row each: every fold's scores or calls, or the averaged score alone."""
    label, age, sex = (part[name].to_numpy() for name in ("label", "age", "sex"))
    function = {"acc": accuracy, "f1": f1, "brier": brier}.get(metric, auc)
    if metric == "auc_adjusted":
        function = partial(adjusted_auc, age=age, sex=sex)
    kind = "score" if metric in ("auc", *MEAN_SCORE) else "call"
    columns = ["score"] if metric in MEAN_SCORE else [f"{kind}_{fold}" for fold in _folds(part)]
    return partial(function, label), part[columns].to_numpy().T


def status_reliability(status: pd.DataFrame, sources: Iterable[str], bins: int = 5) -> pd.DataFrame:
    """Calibration of each source: source, target, tracer and the columns of `evaluation.resampling.reliability`.

    The score is averaged over the folds; the trainings of a method share the weight of each session.
    """
    tables = []
    for target, tracer, parts in status_blocks(status, sources):
        for source, repeats in parts.items():
            part = pd.concat(repeats, ignore_index=True)
            weights = np.tile(person_weights(repeats[0]["person"]), len(repeats)) / len(repeats)
            table = reliability(part["label"].to_numpy(), part["score"].to_numpy(), weights, bins)
            tables.append(pd.DataFrame({"source": source, "target": target, "tracer": tracer}, table.index).join(table))
    columns = ["source", "target", "tracer", "score", "observed", "low", "high", "n"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


# ── what a prompt changes ─────────────────────────────────────────────────────────────────────────


def _effect(name: str, tracer: str, unit: str, estimate: float, ends: tuple[float, float], n: int) -> dict[str, Any]:
    low, high = ends
    covers = pd.NA if math.isnan(low) else bool(low <= 0 <= high)
    who = {"name": name, "tracer": tracer, "unit": unit, "estimate": float(estimate)}
    return who | {"low": low, "high": high, "n": n, "covers_zero": covers}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    columns = ["name", "tracer", "unit", "estimate", "low", "high", "n", "covers_zero"]
    return pd.DataFrame(rows, columns=columns).astype({"covers_zero": "boolean"})


def without_chance(effects: pd.DataFrame, folds: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Effects without the intervals that rest on an evaluator at chance.

    An evaluator that is no better than chance on held-out real PET (``held_out_p``, over people, of at least ``alpha``)
    cannot show what a prompt changes: it and the synthesiser are trained on the same people, and what is chance in
    those moves both alike. Its rows keep the estimate and lose the interval; rows in dB need no evaluator.

    Parameters
    ----------
    effects : DataFrame
        From `sex_effects` or `age_effects`.
    folds : DataFrame
        ``sex_folds.csv`` or ``age_folds.csv``.
    alpha : float
    """
    told = folds.loc[folds["held_out_p"] < alpha, "tracer"]
    chance = ~effects["tracer"].isin(told) & (effects["unit"] != "dB")
    left = effects.copy()
    left.loc[chance, ["low", "high"]] = math.nan
    left.loc[chance, "covers_zero"] = pd.NA
    return left


def _mean_effect(name: str, tracer: str, unit: str, values: pd.Series, seed: int, level: float) -> dict[str, Any]:
    """Of one value a person."""
    ends = bootstrap_mean(values.to_numpy(), seed=seed, level=level)
    return _effect(name, tracer, unit, values.mean(), ends, len(values))


def prompt_scores(config: Config, method: str, conditions: Iterable[str]) -> pd.DataFrame:
    """In-brain image scores of one method under several prompts.

    Returns
    -------
    DataFrame
        Rows of ``scores.csv``, region ``brain``, with ``condition``.

    Raises
    ------
    FileNotFoundError
        A condition that was not synthesised: names its ``scores.csv``.
    """
    parts = [read_scores(config, [method], name).assign(condition=name) for name in conditions]
    frame = pd.concat(parts, ignore_index=True)
    return frame[frame["region"] == "brain"].reset_index(drop=True)


def _psnr(scores: pd.DataFrame, tracer: str) -> pd.DataFrame:
    """Person × condition, dB."""
    part = scores[scores["tracer"] == tracer]
    table = part.pivot_table(index="person", columns="condition", values="psnr")
    if table.isna().to_numpy().any():
        person = table.index[table.isna().any(axis=1)][0]
        raise ValueError(f"scores of {tracer}: {person} is not scored under every prompt; synthesise and score again")
    return table


def _change(table: pd.DataFrame, a: str, b: str) -> pd.Series:
    """A − b by person; of two infinite values there is no difference."""
    x, y = table[a].to_numpy(), table[b].to_numpy()
    return pd.Series(np.subtract(x, y, out=np.zeros(len(x)), where=x != y), index=table.index)


# ── sex: figure 4 ─────────────────────────────────────────────────────────────────────────────────

_STEPS = (("right", "none"), ("none", "wrong"), ("right", "wrong"))


def own_sex_logit(label: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Log odds that a reading gives to the person's own sex: above 0 it leans to it, below to the other.

    Parameters
    ----------
    label : ndarray
        1 for M, 0 for F.
    score : ndarray
        Probability of M; taken as within 10⁻⁶ of 0 and 1, so that no reading is infinite.
    """
    score = np.clip(np.asarray(score, dtype=np.float64), 1e-6, 1 - 1e-6)
    return (2 * np.asarray(label) - 1) * np.log(score / (1 - score))


def sex_parts(sex: pd.DataFrame, method: str, tracer: str) -> dict[str, pd.DataFrame]:
    """The readings of one tracer: real PET, then the syntheses under each prompt of `SEX_PROMPTS`.

    Returns
    -------
    dict of ``real``, ``right``, ``none``, ``wrong`` to DataFrame
        With call (score ≥ threshold) and logit (`own_sex_logit`). The last three have the same sessions.

    Raises
    ------
    ValueError
        A prompt that was not read, or sessions that differ.
    """
    rows = sex[sex["tracer"] == tracer]
    chosen = {"real": (rows["source"] == "real")} | {
        prompt: (rows["source"] == method) & (rows["condition"] == condition)
        for prompt, condition in SEX_PROMPTS.items()
    }
    parts = {}
    for name, kept in chosen.items():
        condition = SEX_PROMPTS.get(name, "real")
        part = _sessions(rows[kept], f"sex from {'real PET' if name == 'real' else method}, {condition!r}, {tracer}")
        parts[name] = part.assign(
            call=(part["score"] >= part["threshold"]).astype(int), logit=own_sex_logit(part["label"], part["score"])
        )
    _same_sessions({name: parts[name] for name in SEX_PROMPTS}, f"sex from {method}, {tracer}")
    return parts


def sex_summary(sex: pd.DataFrame, method: str, *, seed: int) -> pd.DataFrame:
    """Figure 4's numbers: sex told from real PET and from syntheses under each prompt.

    Parameters
    ----------
    sex : DataFrame
        Rows of ``sex.csv``.
    method : str
        Whose syntheses.
    seed : int
        Of the bootstrap over people.

    Returns
    -------
    DataFrame
        One row a tracer, prompt (``real``, ``right``, ``none``, ``wrong``) and metric: ``auc``, ``acc``, ``f1``
        (fractions; the label is always the person's own sex, male positive) and ``logit`` (see `own_sex_logit`); value,
        low, high, n (people).
    """
    rows = []
    for tracer in present_tracers(sex):
        for prompt, part in sex_parts(sex, method, tracer).items():
            weights = [person_weights(part["person"]), resamples(part["person"], seed=seed)]
            for metric in (*CLASSIFICATION, "logit"):
                value, drawn = (_classified(part, metric, w) for w in weights)
                low, high = interval(drawn)
                who = {"tracer": tracer, "source": "real" if prompt == "real" else method, "prompt": prompt}
                who |= {"metric": metric, "value": float(value), "low": low, "high": high}
                rows.append(who | {"n": part["person"].nunique()})
    return pd.DataFrame(rows)


def _classified(part: pd.DataFrame, metric: str, weights: np.ndarray) -> np.ndarray:
    label = part["label"].to_numpy()
    match metric:
        case "auc":
            return auc(label, part["score"].to_numpy(), weights)
        case "logit":
            return weights @ part["logit"].to_numpy() / weights.sum(axis=-1)
    return {"acc": accuracy, "f1": f1}[metric](label, part["call"].to_numpy(), weights)


def sex_effects(
    sex: pd.DataFrame, scores: pd.DataFrame, method: str, *, seed: int, level: float = 0.95
) -> pd.DataFrame:
    """What the sex in the prompt changes, step by step: right − none, none − wrong, right − wrong.

    Parameters
    ----------
    sex : DataFrame
        Rows of ``sex.csv``.
    scores : DataFrame
        From `prompt_scores`, of the conditions of `SEX_PROMPTS`.
    method : str
    seed : int
    level : float
        Of the intervals.

    Returns
    -------
    DataFrame
        name, tracer, unit, estimate, low, high, n (people), covers_zero. Names are ``<measure>_<a>_<b>`` of a − b:
        ``auc``, ``acc``, ``f1``, ``logit`` (`own_sex_logit`), ``psnr`` (in the brain, against the person's real PET).
        Positive is what a model that follows the prompt's sex gives.
    """
    rows = []
    for tracer in present_tracers(sex):
        parts = sex_parts(sex, method, tracer)
        people = parts["right"]["person"]
        weights = [person_weights(people), resamples(people, seed=seed)]
        for metric in (*CLASSIFICATION, "logit"):
            for a, b in _STEPS:
                value, drawn = (_classified(parts[a], metric, w) - _classified(parts[b], metric, w) for w in weights)
                unit = "logit" if metric == "logit" else "fraction"
                name = f"{metric}_{a}_{b}"
                rows.append(_effect(name, tracer, unit, value, interval(drawn, level), people.nunique()))
        psnr = _psnr(scores, tracer)
        for a, b in _STEPS:
            change = _change(psnr, SEX_PROMPTS[a], SEX_PROMPTS[b])
            rows.append(_mean_effect(f"psnr_{a}_{b}", tracer, "dB", change, seed, level))
    return _frame(rows)


def sex_order(sex: pd.DataFrame, method: str, *, seed: int) -> pd.DataFrame:
    """The paper's order, right > none > wrong, tested on people.

    One-sided Wilcoxon signed-rank tests of `own_sex_logit` (sessions of a person averaged first), Holm over all rows.
    The order as a whole needs both of its steps.

    Returns
    -------
    DataFrame
        tracer, claim, n, difference (logit), low, high, rank_biserial, p, p_holm.
    """
    rows = []
    for tracer in present_tracers(sex):
        parts = sex_parts(sex, method, tracer)
        logits = {name: parts[name].groupby("person")["logit"].mean().to_numpy() for name in SEX_PROMPTS}
        for a, b in _STEPS:
            found = compare(logits[a], logits[b], seed=seed, alternative="greater")
            rows.append(
                {"tracer": tracer, "claim": f"{a} > {b}", "n": found.n, "difference": found.difference}
                | {"low": found.low, "high": found.high, "rank_biserial": found.rank_biserial, "p": found.p}
            )
    frame = pd.DataFrame(rows)
    return frame.assign(p_holm=holm(frame["p"]))


# ── age: figure 5 ─────────────────────────────────────────────────────────────────────────────────


def age_part(age: pd.DataFrame, method: str, condition: str, tracer: str) -> pd.DataFrame:
    """The readings of one tracer under one condition, ``real`` for real PET; one row a session."""
    source = "real" if condition == "real" else method
    kept = (age["source"] == source) & (age["condition"] == condition) & (age["tracer"] == tracer)
    return _sessions(age[kept], f"age from {source}, {condition!r}, {tracer}")


def age_sweep(age: pd.DataFrame, method: str, tracer: str) -> pd.DataFrame:
    """Predicted age by person and by the one age that everyone's prompt says (conditions ``age_<years>``).

    Returns
    -------
    DataFrame (people × prompt ages), years
        Sessions of a person averaged. Without columns where no such condition was read.

    Raises
    ------
    ValueError
        Somebody without a reading at one of the ages.
    """
    swept = (age["source"] == method) & (age["tracer"] == tracer) & age["condition"].str.fullmatch(r"age_\d+(\.\d+)?")
    rows = age[swept]
    table = rows.assign(years=rows["condition"].str.removeprefix("age_").astype(float))
    table = table.pivot_table(index="person", columns="years", values="predicted")
    if table.isna().to_numpy().any():
        person = table.index[table.isna().any(axis=1)][0]
        raise ValueError(f"age from {method}, {tracer}: {person} is not read at every age of the sweep; run it again")
    return table


def sweep_slopes(table: pd.DataFrame) -> pd.Series:
    """Least-squares slope of predicted on prompt age by person: 1 follows the prompt, 0 ignores it."""
    years = table.columns.to_numpy(dtype=float)
    years = years - years.mean()
    return pd.Series(table.to_numpy() @ years / (years @ years), index=table.index)


def age_summary(age: pd.DataFrame, method: str, *, seed: int) -> pd.DataFrame:
    """Figure 5's numbers: how predicted age follows an age, over people.

    Parameters
    ----------
    age : DataFrame
        Rows of ``age.csv``.
    method : str
        Whose syntheses.
    seed : int
        Of the bootstrap over people.

    Returns
    -------
    DataFrame
        One row a tracer, condition and age compared with: tracer, source, condition, against (``own`` or ``prompt``),
        r, low, high, error (mean absolute, years), n (people), sessions. Under ``factual`` both ages are the same;
        ``shuffled_age`` has a row for each.
    """
    rows = []
    for tracer in present_tracers(age):
        for condition in ("real", *AGE_PROMPTS):
            part = age_part(age, method, condition, tracer)
            one, many = person_weights(part["person"]), resamples(part["person"], seed=seed)
            predicted = part["predicted"].to_numpy()
            for against in {"factual": ("prompt",), "shuffled_age": ("prompt", "own")}.get(condition, ("own",)):
                years = _years(part, against)
                low, high = interval(pearson(years, predicted, many))
                who = {"tracer": tracer, "source": "real" if condition == "real" else method, "condition": condition}
                who |= {"against": against, "r": float(pearson(years, predicted, one)), "low": low, "high": high}
                who |= {"error": float(one @ np.abs(predicted - years) / one.sum())}
                rows.append(who | {"n": part["person"].nunique(), "sessions": len(part)})
    return pd.DataFrame(rows)


def _years(part: pd.DataFrame, against: str) -> np.ndarray:
    column = "age" if against == "own" else "prompt_age"
    if part[column].isna().any():
        who = " ".join(part.loc[part[column].isna(), _SESSION].iloc[0])
        raise ValueError(f"age readings: {who} has no {column} under {part['condition'].iloc[0]!r}")
    return part[column].to_numpy(dtype=float)


def age_effects(
    age: pd.DataFrame, scores: pd.DataFrame, method: str, *, seed: int, level: float = 0.95
) -> pd.DataFrame:
    """What the age in the prompt changes.

    Parameters
    ----------
    age : DataFrame
        Rows of ``age.csv``.
    scores : DataFrame
        From `prompt_scores`, of the conditions of `AGE_PROMPTS`.
    method : str
    seed : int
    level : float
        Of the intervals.

    Returns
    -------
    DataFrame
        As `sex_effects`: ``r_with_without`` (r of predicted with own age, prompted with it − without it),
        ``slope_shuffled`` (years predicted a year prompted, from own to somebody else's age), ``slope_sweep`` (the same
        over the ages of the sweep; left out where no ``age_<years>`` was read), ``psnr_with_without`` and
        ``psnr_own_shuffled`` (in the brain). Positive is what a model that follows the prompt's age gives.

    Notes
    -----
    Both slopes are of changes at the same MRI. The r of predicted with shuffled ages, which `age_summary` gives, is
    none: where the MRI shows age, it is moved by the chance correlation of the shuffled with the own ages.
    """
    rows = []
    for tracer in present_tracers(age):
        parts = {name: age_part(age, method, name, tracer) for name in AGE_PROMPTS}
        _same_sessions(parts, f"age from {method}, {tracer}")
        people = parts["factual"]["person"]
        weights = [person_weights(people), resamples(people, seed=seed)]
        own, n = _years(parts["factual"], "own"), people.nunique()
        with_age, without, shuffled = (parts[name]["predicted"].to_numpy() for name in AGE_PROMPTS)
        value, drawn = (pearson(own, with_age, w) - pearson(own, without, w) for w in weights)
        rows.append(_effect("r_with_without", tracer, "r", value, interval(drawn, level), n))
        moved = _years(parts["shuffled_age"], "prompt") - _years(parts["factual"], "prompt")
        value, drawn = (slope(moved, shuffled - with_age, w) for w in weights)
        rows.append(_effect("slope_shuffled", tracer, "years/year", value, interval(drawn, level), n))
        sweep = age_sweep(age, method, tracer)
        if sweep.shape[1] > 1:
            rows.append(_mean_effect("slope_sweep", tracer, "years/year", sweep_slopes(sweep), seed, level))
        psnr = _psnr(scores, tracer)
        for name, other in (("psnr_with_without", "no_age"), ("psnr_own_shuffled", "shuffled_age")):
            rows.append(_mean_effect(name, tracer, "dB", _change(psnr, "factual", other), seed, level))
    return _frame(rows)
