"""Planted effects recovered: whether the machinery can measure at all what the paper claims.

The phantom's truth says what status, sex and age do to regional SUVR. The same is estimated over test people from their
true regional SUVR, from their real PET and from synthetic PET, by one linear model a region and effect:

``status``
    SUVR ~ positive. The truth's status contrast is a plain difference of means, so nothing is adjusted for.
``sex``, ``age``
    SUVR ~ woman + decades + causes. The truth's effects are those at fixed disease. Planted status cannot stand for the
    disease: it is a cut through it, and how far from the cut people are goes with their diagnosis, as sex and age do,
    so a part of the disease would be taken for an effect of sex. The latent causes can: amyloid load and tracer, or tau
    stage (cubic: uptake is sigmoid in it), and neurodegeneration.

Intervals are those of a jackknife that leaves out one person with all sessions: visits are not independent.

The truth is for tests and for the reader's trust. Nothing is trained, chosen or tuned by it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy import stats

from resdm.anatomy import REFERENCE
from resdm.config import TRACERS, Config
from resdm.evaluation.image_quality import read_index
from resdm.evaluation.suvr import regional_suvr

EFFECTS = {"status": "SUVR", "sex": "SUVR", "age": "SUVR per decade"}
"""Effect → unit: positive − negative, women − men, and a decade of age."""

LEAST_RATIO = 0.03
"""SUVR: no ratio to an effect below this, which is the pons' or the cerebellum's: noise over nearly nothing."""

_KEYS = ["tracer", "region", "effect"]


def read_planted(config: Config) -> pd.DataFrame:
    """The planted effects of a phantom cohort: tracer, region, effect, planted (SUVR; age: per decade).

    Raises
    ------
    ValueError
        A cohort of real people: nobody knows their truth.
    FileNotFoundError
        Phantoms without their truth.
    """
    planted = _read_truth(config)["planted"]
    rows = [
        {"tracer": tracer, "region": region, "effect": effect, "planted": values[effect]}
        for tracer in TRACERS
        for region, values in planted[tracer].items()
        for effect in EFFECTS
    ]
    return pd.DataFrame(rows).astype({"planted": float})


def read_causes(config: Config) -> pd.DataFrame:
    """What stands behind each phantom's uptake, one row a session.

    Returns
    -------
    DataFrame
        person, session, woman (0/1), decades (of age, from the truth's centre), florbetaben (0/1), load, stage,
        severity, amyloid_positive, tau_positive (0/1: disease alone, free of what age and sex add to uptake).
    """
    centre = _read_truth(config)["age_centre"]
    people = pd.read_csv(config.work / "truth" / "people.csv", dtype={"person": str, "session": str})
    people = people.assign(
        woman=(people["sex"] == "F").astype(float),
        decades=(people["age"] - centre) / 10,
        florbetaben=(people["amyloid_tracer"] == "18FFBB").astype(float),
    )
    causes = ["woman", "decades", "florbetaben", "load", "stage", "severity"]
    return people[["person", "session", *causes, "amyloid_positive", "tau_positive"]]


def _read_truth(config: Config) -> dict:
    if config.cohort.kind != "phantom":
        raise ValueError(
            f"profile {config.profile!r} has a cohort of kind {config.cohort.kind}: no truth is planted in real "
            "people; planted effects are known of phantoms alone"
        )
    folder = config.work / "truth"
    for name in ("truth.json", "people.csv", "regional.csv"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no truth of these phantoms; run `resdm phantom` first")
    return json.loads((folder / "truth.json").read_text(encoding="utf-8"))


# ── estimates ─────────────────────────────────────────────────────────────────────────────────────


def regional_sources(config: Config, methods: Iterable[str] = ()) -> pd.DataFrame:
    """Regional SUVR of the test people's PET: true, real, and of methods with stored predictions.

    Returns
    -------
    DataFrame
        source (``truth``, ``real``, a method's name), person, session, tracer, region, suvr. ``truth`` is without
        noise, at scanner resolution, over the person's own regions; the others are over the regions in MNI space.
    """
    _read_truth(config)
    index = read_index(config)
    truth = pd.read_csv(config.work / "truth" / "regional.csv", dtype={"person": str, "session": str})
    truth = truth.merge(index[["person", "session"]])
    strangers = sorted(set(index["person"]) - set(truth["person"]))
    if strangers:
        raise ValueError(
            f"{config.volumes / 'index.csv'}: test people without truth ({', '.join(strangers[:5])}): these volumes "
            "are not of these phantoms; preprocess them again"
        )
    names = list(methods)
    parts = [truth.assign(source="truth")]
    for number, method in enumerate(names or ["template"]):
        regional = regional_suvr(config, method, index)[0]
        if number == 0:
            parts.append(regional.assign(source="real", suvr=regional["real"]))
        if names:
            parts.append(regional.assign(source=method, suvr=regional["synthetic"]))
    columns = ["source", "person", "session", "tracer", "region", "suvr"]
    return pd.concat([part[columns] for part in parts], ignore_index=True)


def estimate_effects(regional: pd.DataFrame, causes: pd.DataFrame) -> pd.DataFrame:
    """The three effects by source, tracer and region, see the head of this module.

    Parameters
    ----------
    regional : DataFrame
        source, person, session, tracer, region, suvr; each source over the same sessions.
    causes : DataFrame
        From `read_causes`.

    Returns
    -------
    DataFrame
        source, tracer, region, effect, unit, estimate, low, high (95 %), n (people), sessions. NaN where there are
        too few people for the model, or none with one of the two statuses or sexes.
    """
    known = causes.set_index(["person", "session"])
    rows = []
    for (source, tracer), part in regional.groupby(["source", "tracer"], sort=False):
        values = part.pivot_table("suvr", ["person", "session"], "region", sort=False)
        about = known.loc[values.index]
        person = values.index.get_level_values("person").to_numpy()
        for effect, unit in EFFECTS.items():
            x = _design(about, tracer, effect)
            row = {"source": source, "tracer": tracer, "effect": effect, "unit": unit}
            row |= {"n": len(set(person)), "sessions": len(values)}
            for region, found in zip(values, jackknife(x, values.to_numpy(), person).T, strict=True):
                estimate, low, high = map(float, found)
                rows.append(row | {"region": region, "estimate": estimate, "low": low, "high": high})
    columns = ["source", *_KEYS, "unit", "estimate", "low", "high", "n", "sessions"]
    return pd.DataFrame(rows, columns=columns)


def _design(about: pd.DataFrame, tracer: str, effect: str) -> np.ndarray:
    """Design matrix of one model, the effect's own column first."""
    one = np.ones(len(about))
    if effect == "status":
        return np.column_stack([about[f"{tracer}_positive"].astype(float), one])
    own, other = ("woman", "decades") if effect == "sex" else ("decades", "woman")
    if tracer == "amyloid":
        causes = [about["load"], about["florbetaben"], about["load"] * about["florbetaben"]]
    else:
        stage = about["stage"] - about["stage"].mean()
        causes = [stage, stage**2, stage**3]
    return np.column_stack([about[own], about[other], one, *causes, about["severity"]])


def jackknife(x: np.ndarray, y: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Least squares with an interval that takes people, not sessions, for independent.

    Parameters
    ----------
    x : ndarray (n, p)
        Design matrix.
    y : ndarray (n, m)
        Responses.
    person : ndarray (n,)
        Whose row it is.

    Returns
    -------
    ndarray (3, m)
        The first coefficient and the ends of its 95 % interval: delete-one-person jackknife, t with people − 1 degrees
        of freedom (CV3 of MacKinnon, Nielsen and Webb 2023). All NaN where there are not more people than columns, or
        where the other columns, without one of the people, leave nothing of the first. That others repeat each other
        (nobody had the second amyloid tracer) does no harm.
    """
    names = np.unique(person)
    keeps = [np.ones(len(person), bool), *(person != name for name in names)]
    rank = np.linalg.matrix_rank
    if len(names) <= x.shape[1] or any(rank(x[keep]) == rank(x[keep, 1:]) for keep in keeps):
        return np.full((3, y.shape[1]), np.nan)
    whole, *without = (np.linalg.lstsq(x[keep], y[keep])[0][0] for keep in keeps)
    g = len(names)
    spread = np.sqrt((g - 1) / g * np.sum((np.array(without) - whole) ** 2, axis=0))
    half = stats.t.ppf(0.975, g - 1) * spread
    return np.stack([whole, whole - half, whole + half])


# ── beside the truth ──────────────────────────────────────────────────────────────────────────────


def recovered_effects(
    config: Config, methods: Iterable[str] = (), thinning: Mapping[str, Mapping[str, float]] | None = None
) -> pd.DataFrame:
    """Planted effects beside those found in the true, the real and the synthetic regional SUVR of the test people.

    Parameters
    ----------
    config : Config
        A phantom profile.
    methods : iterable of str
        With stored predictions.
    thinning : mapping of tracer to mapping of region to float, optional
        SUVR per decade that comes with age but not by uptake; see `resdm.cohort.planted`. Zero by default.

    Returns
    -------
    DataFrame
        One row a source, tracer, region and effect, without the tracer's reference region, which is 1 by construction:
        source, tracer, region, effect, unit, estimate, low, high, n, sessions, planted, expected (planted; for age with
        thinning), covered (whether the interval holds ``expected``), recovery (estimate ÷ expected) and of_truth
        (estimate ÷ that from the true SUVR of the same people), both NaN for effects below `LEAST_RATIO`.
    """
    planted = read_planted(config)
    frame = estimate_effects(regional_sources(config, methods), read_causes(config))
    frame = frame[frame["region"] != frame["tracer"].map(REFERENCE)].merge(planted, on=_KEYS, how="inner")
    thin = [
        thinning[tracer][region] if thinning is not None and effect == "age" else 0.0
        for tracer, region, effect in frame[_KEYS].itertuples(index=False)
    ]
    frame["expected"] = frame["planted"] + thin
    inside = (frame["low"] <= frame["expected"]) & (frame["expected"] <= frame["high"])
    known = frame["low"].notna() & frame["expected"].notna()
    frame["covered"] = inside.astype("boolean").mask(~known)
    frame["recovery"] = _ratio(frame["estimate"], frame["expected"])
    truth = frame[frame["source"] == "truth"].set_index(_KEYS)["estimate"]
    own = truth.loc[list(frame[_KEYS].itertuples(index=False, name=None))].to_numpy()
    frame["of_truth"] = _ratio(frame["estimate"], pd.Series(own, frame.index))
    return frame.reset_index(drop=True)


def _ratio(value: pd.Series, base: pd.Series) -> pd.Series:
    return value / base.where(base.abs() >= LEAST_RATIO)


def recovery(frame: pd.DataFrame) -> pd.DataFrame:
    """All regions in one number: the slope through the origin of estimated on expected effects.

    Parameters
    ----------
    frame : DataFrame
        From `recovered_effects`.

    Returns
    -------
    DataFrame
        One row a source, tracer and effect: regions, slope (1: the whole effect is found; NaN where no expected effect
        reaches `LEAST_RATIO`), of_truth (the same against the estimates from the true SUVR of the same people), covered
        (regions whose interval holds the expected effect), largest (absolute estimate, SUVR).
    """
    rows = []
    for (source, tracer, effect), part in frame.groupby(["source", "tracer", "effect"], sort=False):
        truth = frame[(frame["source"] == "truth") & (frame["tracer"] == tracer) & (frame["effect"] == effect)]
        truth = truth.set_index("region")["estimate"].reindex(part["region"]).to_numpy()
        estimate = part["estimate"].to_numpy()
        rows.append(
            {"source": source, "tracer": tracer, "effect": effect, "regions": len(part)}
            | {"slope": _slope(estimate, part["expected"].to_numpy()), "of_truth": _slope(estimate, truth)}
            | {"covered": int(part["covered"].fillna(False).sum()), "largest": float(np.abs(estimate).max())}
        )
    return pd.DataFrame(rows)


def _slope(y: np.ndarray, x: np.ndarray) -> float:
    return float(x @ y / (x @ x)) if np.abs(x).max() >= LEAST_RATIO else float("nan")  # NaN stays NaN
