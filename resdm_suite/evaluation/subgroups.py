"""Whether a method is worse for some groups of the test people than for others.

Groups are by sex, age (thirds of the training people), diagnosis and radiotracer, in phantoms also by the resolution
of the simulated scanner. Groups of fewer than `MIN_GROUP_SIZE` people are left out, for an AUC also those with fewer
positives or negatives. A person belongs to the group of the first session with a PET of the tracer.

Each axis is tested for any difference between its groups: the statistic is the largest minus the smallest value of a
group, its null distribution that of permuted groups. For an AUC people are permuted within their status, so that groups
may differ in prevalence.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from resdm.settings import SEXES, TRACERS
from resdm_suite.evaluation.classification import auc
from resdm_suite.evaluation.image_quality import read_index
from resdm_suite.evaluation.statistics import REPEATS, percentile_interval, person_draws, person_weights
from resdm_suite.profiles import MIN_GROUP_SIZE, Config
from resdm_suite.records import read_json


def groups_of_test_people(config: Config) -> pd.DataFrame:
    """Groups of the test people: person, tracer, axis, group; in the order of the tables.

    Ages are cut at the thirds of the training people, resolutions at the middle of the phantoms' range. An axis that
    a cohort does not state (diagnosis) has no row.
    """
    ages = read_index(config, "train").drop_duplicates("person")["age"]
    low, high = ages.quantile([1 / 3, 2 / 3]).round(1)
    names = [f"below {low:g}", f"{low:g} to {high:g}", f"above {high:g}"]
    bins, sessions, rows = [-np.inf, low, high, np.inf], read_index(config, "test"), []
    for tracer in TRACERS:
        test = sessions[sessions[f"present_{tracer}"] == 1].drop_duplicates("person")
        age = pd.cut(test["age"], bins, labels=names) if low < high else pd.Series(np.nan, test.index)  # a birth cohort
        axes = {"sex": (test["sex"], SEXES), "age": (age, names), "diagnosis": (test["diagnosis"], ("CN", "MCI", "AD"))}
        axes["radiotracer"] = (test[f"{tracer}_tracer"], sorted(test[f"{tracer}_tracer"].unique()))
        if config.cohort.kind == "phantom" and (config.work / "truth").is_dir():
            middle = float(np.mean(config.cohort.phantom.pet_fwhm_mm))
            sharp, blurred = f"below {middle:g} mm", f"above {middle:g} mm"
            widths = [_fwhm(config, *who, tracer) for who in test[["person", "session"]].itertuples(index=False)]
            axes["resolution"] = (pd.Series(np.where(np.array(widths) < middle, sharp, blurred)), (sharp, blurred))
        for axis, (values, order) in axes.items():
            frame = pd.DataFrame({"person": test["person"].to_numpy(), "group": pd.Series(values).to_numpy()})
            rows += [frame[frame["group"] == group].assign(tracer=tracer, axis=axis) for group in order]
    return pd.concat(rows, ignore_index=True)[["person", "tracer", "axis", "group"]].astype({"group": str})


def _fwhm(config: Config, person: str, session: str, tracer: str) -> float:
    """Resolution of the scanner of a phantom's PET in mm."""
    truth = read_json(config.work / "truth" / f"{person}.json")
    (visit,) = [one for one in truth["sessions"] if one["session"] == session]
    return float(visit["scans"][tracer]["fwhm_mm"])


def compare_groups(values: pd.DataFrame, groups: pd.DataFrame, *, seed: int) -> Iterator[dict[str, Any]]:
    """One quantity of one method by group, for every axis.

    Parameters
    ----------
    values : DataFrame
        Column person, and either ``value`` (one row per person), whose mean is taken, or ``label`` and
        ``score…`` (one row per session; several columns are trainings), of which the AUC in % is.
    groups : DataFrame
        Rows of `groups_of_test_people` of one tracer.
    seed : int
        Of the bootstrap and of the permutations.

    Yields
    ------
    dict
        axis, group, n (people), value with low and high (95 %, over people), all (the value over all people), spread
        (largest minus smallest value of the axis) and p. Axes with fewer than two groups are left out.
    """
    everyone = float(_statistic(values, person_weights(values["person"])))
    for axis, members in groups.groupby("axis", sort=False):
        rows = values.merge(members[["person", "group"]], on="person")
        names = [name for name in members["group"].unique() if _large(rows[rows["group"] == name])]
        rows = rows[rows["group"].isin(names)].reset_index(drop=True)
        if len(names) < 2:
            continue
        codes = rows["group"].map(names.index).to_numpy()
        found = _by_group(rows, codes[None], len(names))[:, 0]
        drawn = _by_group(rows, _permuted(rows, codes, seed), len(names))
        spread = float(found.max() - found.min())
        p = (1 + np.sum(np.ptp(drawn, axis=0) >= spread - 1e-9)) / (1 + drawn.shape[1])
        for name, value in zip(names, found, strict=True):
            part = rows[rows["group"] == name]
            low, high = percentile_interval(_statistic(part, person_draws(part["person"], seed=seed)[1]))
            row = {"axis": axis, "group": name, "n": part["person"].nunique(), "value": float(value)}
            yield row | {"low": low, "high": high, "all": everyone, "spread": spread, "p": float(p)}


def _statistic(rows: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    if "label" not in rows:
        return weights @ rows["value"].to_numpy() / weights.sum(axis=-1)
    scores = rows[[name for name in rows if name.startswith("score")]].to_numpy().T
    return 100 * auc(rows["label"].to_numpy(), scores, weights)


def _large(rows: pd.DataFrame) -> bool:
    classes = [rows[rows["label"] == one] for one in (0, 1)] if "label" in rows else [rows]
    return all(part["person"].nunique() >= MIN_GROUP_SIZE for part in classes)


def _by_group(rows: pd.DataFrame, codes: np.ndarray, count: int) -> np.ndarray:
    """Value of every group (groups, repeats) for codes of the rows (repeats, n)."""
    weights = person_weights(rows["person"])
    return np.array([_statistic(rows, (codes == one) * weights) for one in range(count)])


def _permuted(rows: pd.DataFrame, codes: np.ndarray, seed: int) -> np.ndarray:
    """Codes of the rows (repeats, n) with people permuted, of several statuses within each."""
    first = rows.assign(code=codes).drop_duplicates("person").reset_index(drop=True)
    rng, drawn = np.random.default_rng(seed), np.tile(first["code"].to_numpy(), (REPEATS, 1))
    strata = first["label"].to_numpy() if "label" in first else np.zeros(len(first))
    for one in np.unique(strata):
        drawn[:, strata == one] = rng.permuted(drawn[:, strata == one], axis=1)
    return drawn[:, pd.Index(first["person"]).get_indexer(rows["person"])]


def worst_groups(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """The rows of ``subgroups.csv`` with the worst value of a method, by quantity and tracer."""
    rows = frame[frame["source"] == source]
    return pd.DataFrame([
        part.loc[part["value"].idxmax() if quantity == "error" else part["value"].idxmin()]
        for (quantity, _), part in rows.groupby(["quantity", "tracer"], sort=False)
    ])  # fmt: skip
