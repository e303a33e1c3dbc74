"""Effects of a prompt by region: synthetic SUVR under another prompt minus that under the factual prompt.

Each change is of one MRI and one noise, so only the prompt differs. Intervals are over people.
"""

from collections.abc import Iterable

import pandas as pd

from resdm_suite.anatomy import REFERENCE, Grid
from resdm_suite.evaluation.image_quality import read_index, volume_pairs
from resdm_suite.evaluation.statistics import interval
from resdm_suite.evaluation.stored import read_volume
from resdm_suite.evaluation.suvr import regional_means, sidecar_range, to_suvr
from resdm_suite.profiles import Config

PAIRED = ("wrong_sex", "tracer_only", "shuffled")
"""Conditions in addition to the sweep ``age_<years>``, in the order of the figure's panels."""


def present_conditions(config: Config, method: str) -> list[str]:
    """Conditions of `PAIRED` and of the age sweep that are synthesised, in order."""
    ages = sorted((name for name in config.conditions if name.startswith("age_")), key=lambda name: float(name[4:]))
    return [name for name in [*PAIRED, *ages] if (config.predictions(method, name) / "scores.csv").is_file()]


def prompted_suvr(config: Config, method: str, conditions: Iterable[str]) -> pd.DataFrame:
    """Regional SUVR of every synthetic PET under ``factual`` and other prompts, where there is a real PET too.

    Columns are condition, person, session, tracer, sex (the person's), region, suvr; without the tracer's
    reference region, which is 1 by construction in real PET.
    """
    grid, index = Grid.of(config.preprocess.grid), read_index(config)
    sex = index.set_index(["person", "session"])["sex"]
    rows = []
    for condition in dict.fromkeys(["factual", *conditions]):
        for person, session, tracer, real, synthetic in volume_pairs(config, method, index, condition):
            means = regional_means(to_suvr(read_volume(synthetic, grid), sidecar_range(real)), grid, tracer)
            head = {"condition": condition, "person": person, "session": session, "tracer": tracer}
            head |= {"sex": sex[person, session]}
            rows += [head | {"region": r, "suvr": mean} for r, mean in means.items() if r != REFERENCE[tracer]]
    return pd.DataFrame(rows)


def prompt_changes(suvr: pd.DataFrame) -> pd.DataFrame:
    """Change against the factual prompt: condition, tracer, region, person, change (SUVR, sessions averaged).

    ``wrong_sex`` is split by the sex that the prompt states: ``sex_M`` for women, ``sex_F`` for men. Opposite changes
    are expected of the two, and their common mean would hide them. Raises `ValueError` for conditions of different
    sessions, or none except ``factual``.
    """
    keys = ["person", "session", "tracer", "region"]
    factual = suvr[suvr["condition"] == "factual"].set_index(keys)["suvr"]
    parts = []
    for condition, part in suvr[suvr["condition"] != "factual"].groupby("condition", sort=False):
        part = part.set_index(keys)
        if set(part.index) != set(factual.index):
            raise ValueError(f"{condition!r} and 'factual' are not of the same sessions; synthesise both again")
        part = part.assign(change=part["suvr"] - factual.reindex(part.index)).reset_index()
        if condition == "wrong_sex":
            part = part.assign(condition="sex_" + part["sex"].map({"F": "M", "M": "F"}))
        parts.append(part)
    if not parts:
        raise ValueError("counterfactuals: no condition except 'factual'; synthesise some (see config.conditions)")
    columns = ["condition", "tracer", "region", "person"]
    return pd.concat(parts).groupby(columns, sort=False)["change"].mean().reset_index()


def change_summary(changes: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """Mean change over people, from `prompt_changes`, with bootstrap intervals.

    Columns are condition, tracer, region, n (people), mean, low, high (95 %, each row alone), strict_low, strict_high
    (Bonferroni: 95 % for all rows of the condition and tracer together), size (mean absolute change). SUVR.
    """
    rows = []
    regions = changes.groupby(["condition", "tracer"], sort=False)["region"].nunique()
    for (condition, tracer, region), part in changes.groupby(["condition", "tracer", "region"], sort=False):
        values = part["change"].to_numpy()
        row = {"condition": condition, "tracer": tracer, "region": region, "n": len(values), "mean": values.mean()}
        for prefix, level in (("", 0.95), ("strict_", 1 - 0.05 / regions[condition, tracer])):
            row[f"{prefix}low"], row[f"{prefix}high"] = interval(values, seed=seed, level=level)
        rows.append(row | {"size": abs(values).mean()})
    return pd.DataFrame(rows)
