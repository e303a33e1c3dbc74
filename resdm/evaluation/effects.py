"""What the evaluators' readings say: status (Table 4), and what the prompt's sex and age change (Figures 4 and 5).

Input are the stored readings ``work/<profile>/evaluation/{status,sex,age}.csv`` and image scores, never a model. What
a prompt does is always a difference between two conditions on the same people, with its interval over those people:
an evaluator that was fitted on real PET reads synthetic PET with a shift of its own, which such a difference cancels.

The intervals hold for these trained models and evaluators; they do not tell how either would come out of another
training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resdm.config import TRACERS, Config
from resdm.evaluation.image_quality import check_people, read_scores
from resdm.evaluation.resampling import (
    accuracy,
    auc,
    brier,
    f1,
    interval,
    pearson,
    person_weights,
    reliability,
    resamples,
    slope,
)
from resdm.evaluation.statistics import bootstrap_mean, compare, holm

COLUMNS = {
    "status": ("fold", "source", "person", "session", "tracer", "label", "score", "threshold"),
    "status_folds": ("fold", "source", "tracer", "n_train", "n_held_out", "held_out_auc", "held_out_p", "threshold"),
    "sex": ("source", "condition", "person", "session", "tracer", "label", "score", "threshold", "prompt"),
    "sex_folds": ("tracer", "n_train", "n_held_out", "held_out_auc", "held_out_p", "threshold"),
    "age": ("source", "condition", "person", "session", "tracer", "age", "prompt_age", "predicted"),
    "age_folds": ("tracer", "n_train", "n_held_out", "held_out_r", "held_out_p", "bias"),
}
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


def status_parts(status: pd.DataFrame, tracer: str, sources: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The readings of one tracer's status by source, one row a session, folds side by side.

    Returns
    -------
    dict of source to DataFrame
        person, session, label, ``score_<fold>`` and ``call_<fold>`` (score ≥ the fold's threshold), score (mean of the
        folds). Sources without a reading of this tracer are left out; the others have the same sessions.

    Raises
    ------
    ValueError
        A session that one fold or one source has and another has not, or twice: names it.
    """
    parts = {}
    for source in sources:
        rows = status[(status["tracer"] == tracer) & (status["source"] == source)]
        folds = {
            str(fold): _sessions(part, f"{source!r}, {tracer}, fold {fold}") for fold, part in rows.groupby("fold")
        }
        if not folds:
            continue
        _same_sessions({f"fold {fold}": part for fold, part in folds.items()}, f"{source!r}, {tracer}")
        part = next(iter(folds.values()))[[*_SESSION, "label"]].copy()
        for fold, values in folds.items():
            part[f"score_{fold}"] = values["score"]
            part[f"call_{fold}"] = (values["score"] >= values["threshold"]).astype(int)
        part["score"] = part[[f"score_{fold}" for fold in folds]].mean(axis=1)
        parts[source] = part
    if parts:
        _same_sessions(parts, tracer)
    return parts


def status_summary(status: pd.DataFrame, sources: Iterable[str], *, seed: int) -> pd.DataFrame:
    """How well status is told from each source, over test people.

    Parameters
    ----------
    status : DataFrame
        Rows of ``status.csv``.
    sources : iterable of str
        In row order.
    seed : int
        Of the bootstrap over people.

    Returns
    -------
    DataFrame
        One row a source, tracer and metric: n (people), positive (people with a positive session), sessions, folds,
        mean and std over the folds, ci_low and ci_high (of that mean, folds kept, people resampled). Fractions.
        Metrics are ``auc``, ``acc``, ``f1``, and, of the score averaged over the folds, ``auc_mean_score`` and
        ``brier`` (std empty).
    """
    sources, rows = list(sources), []
    for tracer in present_tracers(status):
        parts = status_parts(status, tracer, sources)
        people = next(iter(parts.values()))["person"] if parts else []  # of all sources
        one, many = person_weights(people), resamples(people, seed=seed)
        for source, part in parts.items():
            label = part["label"].to_numpy()
            folds = [name.removeprefix("score_") for name in part if name.startswith("score_")]
            positive = part.loc[part["label"] == 1, "person"].nunique()
            who = {"source": source, "tracer": tracer, "n": people.nunique(), "positive": positive}
            who |= {"sessions": len(part), "folds": len(folds)}
            for metric in CLASSIFICATION:
                function = {"auc": auc, "acc": accuracy, "f1": f1}[metric]
                column = "score" if metric == "auc" else "call"
                values = [part[f"{column}_{fold}"].to_numpy() for fold in folds]
                points = np.array([float(function(label, value, one)) for value in values])
                drawn = np.mean([function(label, value, many) for value in values], axis=0)
                spread = float(points.std(ddof=1)) if len(points) > 1 else math.nan
                rows.append(who | {"metric": metric, "mean": points.mean(), "std": spread} | _ends(drawn))
            for metric, function in (("auc_mean_score", auc), ("brier", brier)):
                value = part["score"].to_numpy()
                point = {"metric": metric, "mean": float(function(label, value, one)), "std": math.nan}
                rows.append(who | point | _ends(function(label, value, many)))
    columns = ["source", "tracer", "metric", "n", "positive", "sessions", "folds", "mean", "std", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns)


def status_gains(status: pd.DataFrame, sources: Iterable[str], base: str, *, seed: int) -> pd.DataFrame:
    """How much better each source tells status than a base does: difference in AUC of the fold-averaged score.

    Returns
    -------
    DataFrame
        One row a source and tracer: source, tracer, gain, low, high (people resampled, the same for both). Empty where
        the base was not read.
    """
    rows = []
    for tracer in present_tracers(status):
        parts = status_parts(status, tracer, dict.fromkeys([base, *sources]))
        if base not in parts:
            continue
        people, label = parts[base]["person"], parts[base]["label"].to_numpy()
        one, many = person_weights(people), resamples(people, seed=seed)
        ours, drawn = (auc(label, parts[base]["score"].to_numpy(), w) for w in (one, many))
        for source, part in parts.items():
            if source != base:
                gain = float(auc(label, part["score"].to_numpy(), one) - ours)
                low, high = interval(auc(label, part["score"].to_numpy(), many) - drawn)
                rows.append({"source": source, "tracer": tracer, "gain": gain, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["source", "tracer", "gain", "low", "high"])


def status_reliability(status: pd.DataFrame, sources: Iterable[str], bins: int = 5) -> pd.DataFrame:
    """Calibration of each source: source, tracer and the columns of `resdm.evaluation.resampling.reliability`.

    The score is averaged over the folds.
    """
    sources, parts = list(sources), []
    for tracer in present_tracers(status):
        for source, part in status_parts(status, tracer, sources).items():
            values = part["label"].to_numpy(), part["score"].to_numpy(), person_weights(part["person"])
            table = reliability(*values, bins)
            table.insert(0, "tracer", tracer)
            table.insert(0, "source", source)
            parts.append(table)
    columns = ["source", "tracer", "score", "observed", "low", "high", "n"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _ends(drawn: np.ndarray) -> dict[str, float]:
    return dict(zip(("ci_low", "ci_high"), interval(drawn), strict=True))


# ── what a prompt changes ─────────────────────────────────────────────────────────────────────────


def _effect(name: str, tracer: str, unit: str, estimate: float, ends: tuple[float, float], n: int) -> dict[str, Any]:
    low, high = ends
    covers = pd.NA if math.isnan(low) else bool(low <= 0 <= high)
    who = {"name": name, "tracer": tracer, "unit": unit, "estimate": float(estimate)}
    return who | {"low": low, "high": high, "n": n, "covers_zero": covers}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    columns = ["name", "tracer", "unit", "estimate", "low", "high", "n", "covers_zero"]
    return pd.DataFrame(rows, columns=columns).astype({"covers_zero": "boolean"})


def witnessed(effects: pd.DataFrame, folds: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """Effects without the intervals that rest on an evaluator which knows nothing.

    An evaluator that is no better than chance on held-out real PET (``held_out_p`` of at least ``alpha``) is no
    witness of what a prompt draws: it and the synthesiser learn from the same people, and what is chance in those moves
    both alike, however little. Its rows keep the estimate and lose the interval; rows in dB need no evaluator.

    Parameters
    ----------
    effects : DataFrame
        From `sex_effects` or `age_effects`.
    folds : DataFrame
        ``sex_folds.csv`` or ``age_folds.csv``.
    alpha : float
    """
    told = folds.loc[folds["held_out_p"] < alpha, "tracer"]
    unvouched = ~effects["tracer"].isin(told) & (effects["unit"] != "dB")
    left = effects.copy()
    left.loc[unvouched, ["low", "high"]] = math.nan
    left.loc[unvouched, "covers_zero"] = pd.NA
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
        Positive is what a model that heeds the prompt's sex gives.
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
    """Least-squares slope of predicted on prompt age by person: 1 follows the prompt, 0 does not hear it."""
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
        ``psnr_own_shuffled`` (in the brain). Positive is what a model that heeds the prompt's age gives.

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
