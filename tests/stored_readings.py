"""Made-up readings of the evaluators and image scores, with an effect of the prompt that is planted or none."""

from __future__ import annotations

import numpy as np
import pandas as pd

from resdm.io import write_csv
from resdm.settings import TRACERS
from resdm_suite.evaluation.readings import COLUMNS
from resdm_suite.profiles import Config

SHIFT = -0.8
"""Shift of every reading of synthetic PET: an evaluator fitted on real PET reads synthetic PET with a bias."""

SWEEP = (60, 70, 80, 90)


def sessions(people: int, seed: int) -> pd.DataFrame:
    """One row per session; every sixth person has a second visit, a year later."""
    rng = np.random.default_rng(seed)
    ages = rng.uniform(58, 90, people).round(1)
    rows = [
        {"person": f"sub-{i:04d}", "session": f"ses-M{12 * k:03d}", "age": ages[i] + k, "male": i % 2}
        for i in range(people)
        for k in range(2 if i % 6 == 0 else 1)
    ]
    return pd.DataFrame(rows)


def _probability(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def make_status(
    sources: dict[str, float], people: int = 40, folds: int = 5, seed: int = 0, target: str = "label"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``status.csv`` and ``status_folds.csv``: ``sources`` maps each to its distance between classes (SD)."""
    rng, who, rows, trained = np.random.default_rng([seed, 1]), sessions(people, seed), [], []  # not those of the ages
    for tracer in TRACERS:
        status = (rng.uniform(size=people) < 0.55).astype(int)[who["person"].str[-4:].astype(int)]
        for source, apart in sources.items():
            shown = rng.normal(size=len(who)) + apart * (status - 0.5)
            for fold in range(folds):
                score = _probability(1.5 * shown + 0.5 * rng.normal(size=len(who))) if apart else np.full(len(who), 0.4)
                part = who[["person", "session", "age"]].assign(fold=fold, source=source, tracer=tracer, label=status)
                part = part.assign(target=target, sex=np.where(who["male"] == 1, "M", "F"))
                rows.append(part.assign(score=score, threshold=0.45 + 0.02 * fold))
                if source in ("real", "mri", "age_sex"):
                    quality = {"fold": fold, "target": target, "source": source, "tracer": tracer}
                    quality |= {"n_train": 120, "n_held_out": 30, "held_out_auc": 0.9 - 0.01 * fold}
                    trained.append(quality | {"held_out_p": 0.001, "threshold": 0.45 + 0.02 * fold})
    return pd.concat(rows, ignore_index=True)[list(COLUMNS["status"])], pd.DataFrame(trained)


def make_sex(effect: float, people: int = 40, method: str = "ResDM", seed: int = 0) -> pd.DataFrame:
    """``sex.csv``; ``effect`` is added to the log odds of the prompt's sex, 0.8 to those of the person's."""
    rng, who, rows = np.random.default_rng(seed), sessions(people, seed), []
    sign = 2 * who["male"].to_numpy() - 1
    for tracer in TRACERS:
        shown = 0.8 * sign + rng.normal(size=len(who))
        for condition, prompt in (("real", None), ("factual", sign), ("no_sex", 0 * sign), ("wrong_sex", -sign)):
            noise = 0.3 * rng.normal(size=len(who))
            logit = shown + noise + (1.5 * sign if prompt is None else SHIFT + effect * prompt)
            stated = [""] * len(who) if prompt is None else [{1: "M", -1: "F", 0: ""}[value] for value in prompt]
            part = who[["person", "session"]].assign(source="real" if prompt is None else method, condition=condition)
            part = part.assign(tracer=tracer, label=who["male"], score=_probability(logit))
            rows.append(part.assign(threshold=0.5, prompt=stated))
    columns = ["source", "condition", "person", "session", "tracer", "label", "score", "threshold", "prompt"]
    return pd.concat(rows, ignore_index=True)[columns]


def make_age(effect: float, people: int = 40, method: str = "ResDM", seed: int = 0, sweep=SWEEP) -> pd.DataFrame:
    """``age.csv``; ``effect`` is years predicted per year prompted, in addition to 0.2 per year of true age."""
    rng, who, rows = np.random.default_rng(seed), sessions(people, seed), []
    ages = who["age"].to_numpy()
    for tracer in TRACERS:
        shown = 74 + 0.2 * (ages - 74) + 3 * rng.normal(size=len(who))
        prompts = {"factual": ages, "no_age": np.full(len(who), np.nan), "shuffled_age": np.roll(ages, 7)}
        prompts |= {f"age_{years}": np.full(len(who), float(years)) for years in sweep}
        for condition, prompt in {"real": np.full(len(who), np.nan), **prompts}.items():
            effects = np.where(np.isnan(prompt), 0.0, effect * (np.nan_to_num(prompt) - 74))
            effects = 0.6 * (ages - 74) if condition == "real" else effects
            predicted = shown + 1.5 * rng.normal(size=len(who)) + effects
            part = who[["person", "session", "age"]].assign(condition=condition, tracer=tracer, prompt_age=prompt)
            rows.append(part.assign(source="real" if condition == "real" else method, predicted=predicted))
    columns = ["source", "condition", "person", "session", "tracer", "age", "prompt_age", "predicted"]
    return pd.concat(rows, ignore_index=True)[columns]


def make_scores(loss: dict[str, float], people: int = 40, seed: int = 0) -> pd.DataFrame:
    """``scores.csv`` of several conditions, region ``brain``: ``loss`` in dB against factual."""
    rng, who, rows = np.random.default_rng(seed), sessions(people, seed), []
    for tracer in TRACERS:
        base = rng.normal(28, 1.5, len(who))
        for condition, lost in {"factual": 0.0, **loss}.items():
            psnr = base - lost + (0.4 * rng.normal(size=len(who)) if condition != "factual" else 0)
            part = who[["person", "session"]].assign(tracer=tracer, region="brain", mae=0.02, psnr=psnr, ssim=0.9)
            rows.append(part.assign(condition=condition))
    return pd.concat(rows, ignore_index=True)


def store_readings(config: Config, **frames: pd.DataFrame) -> None:
    """Write frames as ``work/<profile>/evaluation/<name>.csv``."""
    for name, frame in frames.items():
        write_csv(config.work / "evaluation" / f"{name}.csv", frame)


def store_scores(config: Config, scores: pd.DataFrame, method: str = "ResDM") -> None:
    """Write `make_scores` as ``predictions/<method>/<condition>/scores.csv``."""
    for condition, part in scores.groupby("condition"):
        write_csv(config.predictions(method, condition) / "scores.csv", part.drop(columns="condition"))
