"""Figures 4 and 5: effects of the sex and the age in a prompt, from the stored readings and image scores.

The effect of a prompt is a difference between two conditions on the same people, with its interval over those people.
An evaluator fitted on real PET reads synthetic PET with a systematic shift; such a difference cancels it.

Intervals hold for one trained model, since other prompts are synthesised by one training, and for these evaluators.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from resdm_suite.evaluation.classification import accuracy, auc, f1, weighted_pearson, weighted_slope
from resdm_suite.evaluation.image_quality import read_scores
from resdm_suite.evaluation.readings import SESSION, check_same_sessions, one_per_session, present_tracers
from resdm_suite.evaluation.statistics import holm, interval, paired_test, percentile_interval, person_draws
from resdm_suite.evaluation.status import CLASSIFICATION
from resdm_suite.profiles import Config

SEX_PROMPTS = {"right": "factual", "none": "no_sex", "wrong": "wrong_sex"}
"""Sex in Figure 4's prompts → name of the condition."""

AGE_PROMPTS = ("factual", "no_age", "shuffled_age")
"""Conditions of Figure 5, in addition to ``real`` and ``age_<years>``."""


# ── effects of a prompt ───────────────────────────────────────────────────────────────────────────


def _effect(name: str, tracer: str, unit: str, estimate: float, ends: tuple[float, float], n: int) -> dict[str, Any]:
    low, high = ends
    covers = pd.NA if math.isnan(low) else bool(low <= 0 <= high)
    row = {"name": name, "tracer": tracer, "unit": unit, "estimate": float(estimate)}
    return row | {"low": low, "high": high, "n": n, "covers_zero": covers}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    columns = ["name", "tracer", "unit", "estimate", "low", "high", "n", "covers_zero"]
    return pd.DataFrame(rows, columns=columns).astype({"covers_zero": "boolean"})


def without_chance(effects: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """Effects (`sex_effects`, `age_effects`) without the intervals that rest on an evaluator at chance.

    An evaluator no better than chance on held-out real PET (``held_out_p`` ≥ 0.05 in ``…_folds.csv``) cannot show
    what a prompt changes: it and the synthesiser are trained on the same people, and chance patterns in those shift
    both alike. Its rows keep the estimate and lose the interval. Rows in dB need no evaluator.
    """
    above_chance = folds.loc[folds["held_out_p"] < 0.05, "tracer"]
    chance = ~effects["tracer"].isin(above_chance) & (effects["unit"] != "dB")
    left = effects.copy()
    left.loc[chance, ["low", "high"]] = math.nan
    left.loc[chance, "covers_zero"] = pd.NA
    return left


def prompt_scores(config: Config, method: str, conditions: Iterable[str]) -> pd.DataFrame:
    """In-brain image scores of one method under several prompts: rows of ``scores.csv`` with ``condition``.

    Raises `FileNotFoundError` naming the ``scores.csv`` of a condition that was not synthesised.
    """
    parts = [read_scores(config, [method], name).assign(condition=name) for name in conditions]
    frame = pd.concat(parts, ignore_index=True)
    return frame[frame["region"] == "brain"].reset_index(drop=True)


def condition_part(readings: pd.DataFrame, what: str, method: str, condition: str, tracer: str) -> pd.DataFrame:
    """The readings of one tracer under one condition, ``real`` for real PET; one row per session; ``what`` is read."""
    source = "real" if condition == "real" else method
    chosen = (readings["source"] == source) & (readings["condition"] == condition) & (readings["tracer"] == tracer)
    return one_per_session(readings[chosen], f"{what} from {source}, {condition!r}, {tracer}")


def _mean_effect(name: str, tracer: str, unit: str, values: pd.Series, seed: int, level: float) -> dict[str, Any]:
    """Effect of one value per person."""
    ends = interval(values, seed=seed, level=level)
    return _effect(name, tracer, unit, values.mean(), ends, len(values))


def _psnr_effects(
    scores: pd.DataFrame, tracer: str, pairs: dict[str, tuple[str, str]], seed: int, level: float
) -> list[dict[str, Any]]:
    """Change of PSNR, first condition − second, by name of the effect; two infinite values do not differ."""
    part = scores[scores["tracer"] == tracer]
    table = part.pivot_table(index="person", columns="condition", values="psnr")
    if table.isna().to_numpy().any():
        person = table.index[table.isna().any(axis=1)][0]
        raise ValueError(f"scores of {tracer}: {person} is not scored under every prompt; synthesise and score again")
    rows = []
    for name, (a, b) in pairs.items():
        change = (table[a] - table[b]).where(table[a] != table[b], 0.0)
        rows.append(_mean_effect(name, tracer, "dB", change, seed, level))
    return rows


# ── sex: figure 4 ─────────────────────────────────────────────────────────────────────────────────

_STEPS = (("right", "none"), ("none", "wrong"), ("right", "wrong"))


def own_sex_logit(label: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Log odds of the person's sex: positive where the reading favours it.

    ``label`` is 1 for M and 0 for F. ``score`` is the probability of M, clipped to 10⁻⁶ from 0 and 1 to stay finite.
    """
    score = np.clip(np.asarray(score, dtype=np.float64), 1e-6, 1 - 1e-6)
    return (2 * np.asarray(label) - 1) * np.log(score / (1 - score))


def sex_parts(sex: pd.DataFrame, method: str, tracer: str) -> dict[str, pd.DataFrame]:
    """The readings of one tracer from real PET (``real``) and under each prompt of `SEX_PROMPTS`.

    Columns call (score ≥ threshold) and logit (`own_sex_logit`) are added. Raises `ValueError` for a prompt that was
    not read, or prompts of different sessions.
    """
    parts = {}
    for name, condition in {"real": "real", **SEX_PROMPTS}.items():
        part = condition_part(sex, "sex", method, condition, tracer)
        parts[name] = part.assign(
            call=(part["score"] >= part["threshold"]).astype(int), logit=own_sex_logit(part["label"], part["score"])
        )
    check_same_sessions({name: parts[name] for name in SEX_PROMPTS}, f"sex from {method}, {tracer}")
    return parts


def sex_summary(sex: pd.DataFrame, method: str, *, seed: int) -> pd.DataFrame:
    """Figure 4's numbers: sex classified from real PET and from a method's syntheses under each prompt.

    One row per tracer, source, prompt (``real``, ``right``, ``none``, ``wrong``) and metric: ``auc``, ``acc``, ``f1``
    (fractions; the label is always the person's sex, male positive) and ``logit`` (`own_sex_logit`); value, low,
    high, n (people). ``sex`` holds rows of ``sex.csv``; ``seed`` is that of the bootstrap over people.
    """
    rows = []
    for tracer in present_tracers(sex):
        for prompt, part in sex_parts(sex, method, tracer).items():
            weights = person_draws(part["person"], seed=seed)
            for metric in (*CLASSIFICATION, "logit"):
                value, draws = (_classified(part, metric, w) for w in weights)
                low, high = percentile_interval(draws)
                row = {"tracer": tracer, "source": "real" if prompt == "real" else method, "prompt": prompt}
                row |= {"metric": metric, "value": float(value), "low": low, "high": high}
                rows.append(row | {"n": part["person"].nunique()})
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
    """What the sex in the prompt changes: right − none, none − wrong, right − wrong.

    ``sex`` holds rows of ``sex.csv``, ``scores`` those of `prompt_scores` of the conditions of `SEX_PROMPTS`; ``level``
    is that of the bootstrap intervals over people.

    Columns are name, tracer, unit, estimate, low, high, n (people), covers_zero. Names are ``<measure>_<a>_<b>`` for
    a − b: ``auc``, ``acc``, ``f1``, ``logit`` (`own_sex_logit`), ``psnr`` (in the brain, against the person's real
    PET). Positive values are those of a model that follows the prompt's sex.
    """
    rows = []
    for tracer in present_tracers(sex):
        parts = sex_parts(sex, method, tracer)
        people = parts["right"]["person"]
        weights = person_draws(people, seed=seed)
        for metric in (*CLASSIFICATION, "logit"):
            unit = "logit" if metric == "logit" else "fraction"
            for a, b in _STEPS:
                value, draws = (_classified(parts[a], metric, w) - _classified(parts[b], metric, w) for w in weights)
                ends = percentile_interval(draws, level)
                rows.append(_effect(f"{metric}_{a}_{b}", tracer, unit, value, ends, people.nunique()))
        pairs = {f"psnr_{a}_{b}": (SEX_PROMPTS[a], SEX_PROMPTS[b]) for a, b in _STEPS}
        rows += _psnr_effects(scores, tracer, pairs, seed, level)
    return _frame(rows)


def sex_order(sex: pd.DataFrame, method: str, *, seed: int) -> pd.DataFrame:
    """The paper's order, right > none > wrong, tested on people; it needs both of its steps.

    One-sided Wilcoxon signed-rank tests of `own_sex_logit` (sessions of a person averaged first): tracer, claim, n,
    difference (logit), low, high, rank_biserial, p, p_holm (over all rows).
    """
    rows = []
    for tracer in present_tracers(sex):
        parts = sex_parts(sex, method, tracer)
        logits = {name: parts[name].groupby("person")["logit"].mean() for name in SEX_PROMPTS}
        for a, b in _STEPS:
            test = paired_test(logits[a], logits[b], seed=seed, alternative="greater")
            rows.append({"tracer": tracer, "claim": f"{a} > {b}"} | asdict(test))
    frame = pd.DataFrame(rows)
    return frame.assign(p_holm=holm(frame["p"]))


# ── age: figure 5 ─────────────────────────────────────────────────────────────────────────────────


def age_sweep(age: pd.DataFrame, method: str, tracer: str) -> pd.DataFrame:
    """Predicted age (people × prompt ages, years) where all prompts state the same age (conditions ``age_<years>``).

    Sessions of a person are averaged. Without columns where no such condition was read; `ValueError` for a person
    without a reading at one of the ages.
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

    One row per tracer, source, condition and reference age: against (``own`` or ``prompt``), r, low, high, error (mean
    absolute, years), n (people), sessions. Under ``factual`` both ages are the same; ``shuffled_age`` has a row for
    each. ``age`` holds rows of ``age.csv``; ``seed`` is that of the bootstrap over people.
    """
    rows = []
    for tracer in present_tracers(age):
        for condition in ("real", *AGE_PROMPTS):
            part = condition_part(age, "age", method, condition, tracer)
            weights, resamples = person_draws(part["person"], seed=seed)
            predicted = part["predicted"].to_numpy()
            for against in {"factual": ("prompt",), "shuffled_age": ("prompt", "own")}.get(condition, ("own",)):
                years = _years(part, against)
                low, high = percentile_interval(weighted_pearson(years, predicted, resamples))
                row = {"tracer": tracer, "source": "real" if condition == "real" else method, "condition": condition}
                row |= {"against": against, "r": float(weighted_pearson(years, predicted, weights))}
                row |= {"low": low, "high": high, "error": float(weights @ np.abs(predicted - years) / weights.sum())}
                rows.append(row | {"n": part["person"].nunique(), "sessions": len(part)})
    return pd.DataFrame(rows)


def _years(part: pd.DataFrame, against: str) -> np.ndarray:
    column = "age" if against == "own" else "prompt_age"
    if part[column].isna().any():
        who = " ".join(part.loc[part[column].isna(), SESSION].iloc[0])
        raise ValueError(f"age readings: {who} has no {column} under {part['condition'].iloc[0]!r}")
    return part[column].to_numpy(dtype=float)


def age_effects(
    age: pd.DataFrame, scores: pd.DataFrame, method: str, *, seed: int, level: float = 0.95
) -> pd.DataFrame:
    """What the age in the prompt changes; parameters and columns as `sex_effects`.

    Names are ``r_with_without`` (r of predicted with true age, prompted with it − without it), ``slope_shuffled``
    (years predicted per year prompted, from true to another person's age), ``slope_sweep`` (the same over the ages of
    the sweep; only where ``age_<years>`` was read), ``psnr_with_without`` and ``psnr_own_shuffled`` (in the brain).
    Positive values are those of a model that follows the prompt's age.

    Notes
    -----
    Both slopes are of changes at the same MRI. The r of predicted with shuffled ages, see `age_summary`, is not such
    an effect: where the MRI shows age, it reflects the chance correlation of shuffled and true ages.
    """
    rows = []
    for tracer in present_tracers(age):
        parts = {name: condition_part(age, "age", method, name, tracer) for name in AGE_PROMPTS}
        check_same_sessions(parts, f"age from {method}, {tracer}")
        people = parts["factual"]["person"]
        weights = person_draws(people, seed=seed)
        own, n = _years(parts["factual"], "own"), people.nunique()
        with_age, without, shuffled = (parts[name]["predicted"].to_numpy() for name in AGE_PROMPTS)
        value, draws = (weighted_pearson(own, with_age, w) - weighted_pearson(own, without, w) for w in weights)
        rows.append(_effect("r_with_without", tracer, "r", value, percentile_interval(draws, level), n))
        change = _years(parts["shuffled_age"], "prompt") - _years(parts["factual"], "prompt")
        value, draws = (weighted_slope(change, shuffled - with_age, w) for w in weights)
        rows.append(_effect("slope_shuffled", tracer, "years/year", value, percentile_interval(draws, level), n))
        sweep = age_sweep(age, method, tracer)
        if sweep.shape[1] > 1:
            rows.append(_mean_effect("slope_sweep", tracer, "years/year", sweep_slopes(sweep), seed, level))
        pairs = {"psnr_with_without": ("factual", "no_age"), "psnr_own_shuffled": ("factual", "shuffled_age")}
        rows += _psnr_effects(scores, tracer, pairs, seed, level)
    return _frame(rows)
