"""What an attribute of a person in the prompt is worth, by method.

A method with the attribute is compared with itself on the same test people: trained without the attribute (*left out*),
given that of another person (*shuffled*), or given a wrong value (*wrong*, see `resdm_suite.profiles.CONDITIONS`).
Differences are positive where the person's own attribute helps.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from resdm.settings import TRACERS, MethodConfig, fields_of, further, to_dict
from resdm_suite.evaluation.classification import auc, weighted_pearson
from resdm_suite.evaluation.downstream import status_of_test_people
from resdm_suite.evaluation.image_quality import read_index, read_scores
from resdm_suite.evaluation.statistics import percentile_interval, person_draws
from resdm_suite.evaluation.stored import SESSION
from resdm_suite.evaluation.suvr import summary_suvr
from resdm_suite.profiles import Config

QUANTITIES = {"psnr": "dB", "r": "", "auc": "%"}
"""In-brain PSNR, correlation of synthetic and real summary SUVR, AUC of status from the synthetic one; their units."""


def attribute_pairs(config: Config) -> list[dict[str, str]]:
    """Every comparison that the profile has: method, attribute, change, and ``other`` with its ``condition``.

    The ceiling that uses an attribute is compared with the ceiling that does not.
    """
    methods = {name: fields_of(method) for name, method in config.methods.items() if "@" not in name}
    settings, rows = {name: _but_fields(config.method(name)) for name in methods}, []
    for name, fields in methods.items():
        head = {"family": config.method(name).kind, "method": name}
        alike = {other for other in methods if settings[other] == settings[name]}
        more = further(fields)
        groups = [(one,) for one in more] + ([more] if len(more) > 1 else [])
        for group in groups:
            wanted = [other for other in alike if {*methods[other]} == {*fields} - {*group}]
            rest = {"attribute": ", ".join(group), "change": "left out", "condition": "factual"}
            rows += [head | rest | {"other": other} for other in sorted(wanted)]
        for condition in config.attribute_conditions(name):
            change, _, one = condition.partition("_")
            rows.append(head | {"attribute": one, "change": change, "condition": condition, "other": name})
    head = {"family": "ceiling", "method": "ceiling", "change": "left out", "condition": "factual", "other": "ceiling"}
    for condition, more in config.ceiling_conditions.items():
        rows.append(head | {"attribute": ", ".join(more), "own": condition})
    return [{"own": "factual"} | row for row in rows]


def _but_fields(method: MethodConfig) -> dict[str, Any]:
    """A method's settings without its prompt (more fields need a longer pretraining) or the fields of its design."""
    return {name: value for name, value in to_dict(method).items() if name not in ("prior", "fields")}


def session_values(config: Config, method: str, condition: str = "factual") -> pd.DataFrame:
    """Test sessions of a method: person, session, tracer, psnr (dB, in the brain), real and synthetic summary SUVR,
    label (the planted status of phantoms, else that of the cohort; NaN where unknown).
    """  # noqa: D205
    keys = [*SESSION, "tracer"]
    scores = read_scores(config, [method], condition).query("region == 'brain'")[[*keys, "psnr"]]
    values = summary_suvr(config, method, read_index(config), condition).drop(columns="method").merge(scores, on=keys)
    return values.merge(status_of_test_people(config), on=keys, how="left").sort_values(keys)


def quantity(part: pd.DataFrame, name: str, weights: np.ndarray) -> np.ndarray:
    """A quantity of `QUANTITIES` over sessions with weights (n,) or (repeats, n); status of known label only."""
    if name == "psnr":
        return weights @ part["psnr"].to_numpy() / weights.sum(axis=-1)
    if name == "r":
        return weighted_pearson(part["real"].to_numpy(), part["synthetic"].to_numpy(), weights)
    known = part["label"].notna().to_numpy()
    return 100 * auc(part["label"].to_numpy()[known], part["synthetic"].to_numpy()[known], weights[..., known])


def compare_sessions(own: pd.DataFrame, other: pd.DataFrame | None, *, seed: int) -> Iterator[dict[str, Any]]:
    """Each quantity of ``own``, less that of ``other`` on the same sessions, by tracer, with an interval over people.

    Yields tracer, quantity, unit, n (people), value, low, high (95 % bootstrap). `ValueError`: not the same sessions.
    """
    for tracer in TRACERS:
        parts = [frame[frame["tracer"] == tracer] for frame in (own, other) if frame is not None]
        if any(part[SESSION].to_numpy().tolist() != parts[0][SESSION].to_numpy().tolist() for part in parts):
            raise ValueError(f"{tracer}: the two were not scored on the same sessions; synthesise and score both again")
        if parts[0].empty:
            continue
        weights, draws = person_draws(parts[0]["person"], seed=seed)
        for name, unit in QUANTITIES.items():
            values, drawn = ([quantity(part, name, one) for part in parts] for one in (weights, draws))
            value, resampled = (pair[0] - pair[1] if len(pair) == 2 else pair[0] for pair in (values, drawn))
            low, high = percentile_interval(resampled)
            row = {"tracer": tracer, "quantity": name, "unit": unit, "n": parts[0]["person"].nunique()}
            yield row | {"value": float(value), "low": low, "high": high}
