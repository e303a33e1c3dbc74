"""Recovery of planted effects: a check that the pipeline can measure the effects that the paper claims.

The phantom's truth states the effects of status, sex and age on regional SUVR. They are estimated over test people from
their true regional SUVR, from their real PET and from synthetic PET, by one linear model per region and effect:

``status``
    SUVR ~ positive. The truth's status contrast is a plain difference of means, so nothing is adjusted for.
``sex``, ``age``
    SUVR ~ woman + decades + causes. The truth's effects are those at fixed disease. Planted status cannot replace the
    disease: it is a cut through it, and the distance from the cut depends on the diagnosis, as sex and age do, so a
    part of the disease would be taken for an effect of sex. The latent causes are adjusted for instead: amyloid load
    and tracer, or tau stage (cubic: uptake is sigmoid in it), and neurodegeneration.

Intervals are those of a jackknife that leaves out one person with all sessions: visits are not independent. SUVR of a
method's trainings are averaged, and the variance between their estimates is added.

The truth is used in tests and shown to readers. No synthesiser is trained, chosen or tuned by it; only the classifiers
of Table 4 are trained on the planted status of training people.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from resdm.settings import SEXES, TRACERS
from resdm_suite.anatomy import REFERENCE
from resdm_suite.evaluation.image_quality import read_index
from resdm_suite.evaluation.stored import SESSION, Numbers, read_table
from resdm_suite.evaluation.suvr import regional_suvr
from resdm_suite.profiles import Config
from resdm_suite.records import read_json

EFFECTS = {"status": "SUVR", "sex": "SUVR", "age": "SUVR per decade"}
"""Effect → unit: positive − negative, women − men, and a decade of age."""

EVERY_REGION = "all"
"""Region name of the slope through the origin, over regions, of the estimates on the expected effects."""

MIN_EFFECT = 0.03
"""SUVR: no ratio is taken to a smaller effect, as in pons or cerebellum: it would be noise over nearly nothing."""

_MAKER = "truth of these phantoms", "`resdm phantom`"

_KEYS = ["tracer", "region", "effect"]


def read_planted(config: Config) -> pd.DataFrame:
    """The planted effects of a phantom cohort: tracer, region, effect, planted (SUVR; age: per decade).

    Raises `ValueError` for a cohort of real people, `FileNotFoundError` for phantoms without their truth.
    """
    planted = _read_truth(config)["planted"]
    rows = [(tracer, region, effect, values[effect]) for tracer in TRACERS
            for region, values in planted[tracer].items() for effect in EFFECTS]  # fmt: skip
    return pd.DataFrame(rows, columns=[*_KEYS, "planted"]).astype({"planted": float})


def read_causes(config: Config) -> pd.DataFrame:
    """The causes of each phantom's uptake, one row per session.

    Columns are person, session, woman (0/1), decades (of age, from the truth's centre), florbetaben (0/1), load, stage,
    severity, amyloid_positive, tau_positive (0/1: disease alone, without the effects of age and sex on uptake).
    """
    centre = _read_truth(config)["age_centre"]
    columns = {"person": str, "session": str, "sex": SEXES, "age": Numbers(0, 130), "amyloid_tracer": str}
    columns |= dict.fromkeys(("load", "stage", "severity"), Numbers()) | {f"{t}_positive": (0, 1) for t in TRACERS}
    people = read_table(config.work / "truth" / "people.csv", columns, SESSION, *_MAKER)
    people["woman"], people["decades"] = (people["sex"] == "F").astype(float), (people["age"] - centre) / 10
    people["florbetaben"] = (people["amyloid_tracer"] == "18FFBB").astype(float)
    causes = ["woman", "decades", "florbetaben", "load", "stage", "severity"]
    return people[["person", "session", *causes, "amyloid_positive", "tau_positive"]]


def _read_truth(config: Config) -> dict:
    if config.cohort.kind != "phantom":
        raise ValueError(
            f"profile {config.profile!r} has a cohort of kind {config.cohort.kind}: no truth is planted in real "
            "people; planted effects are known of phantoms alone"
        )
    path = config.work / "truth" / "truth.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no {_MAKER[0]}; run {_MAKER[1]} first")
    match truth := read_json(path):
        case {"planted": {"amyloid": dict(), "tau": dict()}, "age_centre": int() | float()}:
            return truth
    raise ValueError(f"{path}: no planted effects or age_centre; run {_MAKER[1]} again")


# ── estimates ─────────────────────────────────────────────────────────────────────────────────────


def regional_sources(config: Config, methods: Mapping[str, Sequence[str]] | None = None) -> pd.DataFrame:
    """Regional SUVR of the test people's PET: true, real, and of methods with stored predictions.

    ``methods`` maps a source to its trainings. Columns are source (``truth``, ``real``, a key of ``methods``), training
    (0, 1, …), person, session, tracer, region, suvr. ``truth`` is without noise, at scanner resolution, over the
    person's regions; the others are over the regions in MNI space.
    """
    _read_truth(config)
    index = read_index(config)
    keys = {"person": str, "session": str, "tracer": TRACERS, "region": str}
    truth = read_table(config.work / "truth" / "regional.csv", keys | {"suvr": Numbers(0)}, list(keys), *_MAKER)
    truth = truth.merge(index[["person", "session"]])
    unknown = sorted(set(index["person"]) - set(truth["person"]))
    if unknown:
        fault = f"test people without truth ({', '.join(unknown[:5])}): these volumes are not of these phantoms"
        raise ValueError(f"{config.volumes / 'index.csv'}: {fault}; preprocess them again")
    parts = [truth.assign(source="truth", training=0)]
    for source, trainings in (methods or {"real": ["template"]}).items():
        for number, method in enumerate(trainings):
            regional = regional_suvr(config, method, index)[0].assign(training=number)
            if len(parts) == 1:
                parts.append(regional.assign(source="real", suvr=regional["real"]))
            if methods:
                parts.append(regional.assign(source=source, suvr=regional["synthetic"]))
    columns = ["source", "training", "person", "session", "tracer", "region", "suvr"]
    return pd.concat([part[columns] for part in parts], ignore_index=True)


def estimate_effects(regional: pd.DataFrame, causes: pd.DataFrame, expected: pd.Series | None = None) -> pd.DataFrame:
    """The three effects by source, tracer and region, see the head of this module.

    Parameters
    ----------
    regional : DataFrame
        Columns of `regional_sources`; each source and training over the same sessions.
    causes : DataFrame
        From `read_causes`.
    expected : Series, optional
        Expected effects by tracer, region and effect. Each effect then has a row of the region `EVERY_REGION`: the
        least-squares slope through the origin of the estimates on these. It is linear in the SUVR, so the same
        jackknife gives its interval.

    Returns
    -------
    DataFrame
        source, tracer, region, effect, unit, estimate, low, high (95 %), n (people), sessions, trainings. NaN with too
        few people for the model, or with one status or sex alone; slopes also where no expected effect reaches
        `MIN_EFFECT`.
    """
    causes = causes.set_index(["person", "session"])
    rows = []
    for (source, tracer), part in regional.groupby(["source", "tracer"], sort=False):
        values = part.pivot_table("suvr", ["person", "session"], ["training", "region"], sort=False)
        about, regions = causes.loc[values.index], list(dict.fromkeys(part["region"]))
        person = values.index.get_level_values("person").to_numpy()
        suvr = np.stack([values[k][regions].to_numpy() for k in dict.fromkeys(part["training"])])  # (k, n, regions)
        for effect, unit in EFFECTS.items():
            names, y = regions, suvr
            if expected is not None:
                pattern = np.array([expected.get((tracer, region, effect), 0.0) for region in regions])
                names, y = [*regions, EVERY_REGION], np.concatenate([suvr, (suvr @ _unit(pattern))[..., None]], axis=-1)
            row = {"source": source, "tracer": tracer, "effect": effect, "unit": unit}
            row |= {"n": len(set(person)), "sessions": len(values), "trainings": len(suvr)}
            for region, ends in zip(names, jackknife(_design(about, tracer, effect), y, person).T, strict=True):
                estimate, low, high = map(float, ends)
                rows.append(row | {"region": region, "estimate": estimate, "low": low, "high": high})
    columns = ["source", *_KEYS, "unit", "estimate", "low", "high", "n", "sessions", "trainings"]
    return pd.DataFrame(rows, columns=columns)


def _unit(pattern: np.ndarray) -> np.ndarray:
    """Weights of a slope through the origin on a pattern; NaN where the pattern is below `MIN_EFFECT`."""
    return pattern / (pattern @ pattern) if np.abs(pattern).max() >= MIN_EFFECT else np.full(len(pattern), np.nan)


def _design(about: pd.DataFrame, tracer: str, effect: str) -> np.ndarray:
    """Design matrix of one model, the column of the effect first."""
    one = np.ones(len(about))
    if effect == "status":
        return np.column_stack([about[f"{tracer}_positive"].astype(float), one])
    tested, other = ("woman", "decades") if effect == "sex" else ("decades", "woman")
    if tracer == "amyloid":
        causes = [about["load"], about["florbetaben"], about["load"] * about["florbetaben"]]
    else:
        stage = about["stage"] - about["stage"].mean()
        causes = [stage, stage**2, stage**3]
    return np.column_stack([about[tested], about[other], one, *causes, about["severity"]])


def jackknife(x: np.ndarray, y: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Least squares with an interval over independent people, not sessions: (3, m).

    The first coefficient of the design ``x`` (n, p) on responses ``y``, (n, m) or (k, n, m) of k trainings, and the
    ends of its 95 % interval: delete-one-person jackknife, t with people − 1 degrees of freedom (CV3 of MacKinnon,
    Nielsen and Webb 2023). Trainings are averaged, and the variance of the mean over them is added to that over people.

    All NaN where there are not more people than columns, or where the other columns, without one of the people, explain
    the first. Collinear other columns (nobody had the second amyloid tracer) are allowed.
    """
    names = np.unique(person)
    keeps = [np.ones(len(person), bool), *(person != name for name in names)]
    rank = np.linalg.matrix_rank
    if len(names) <= x.shape[1] or any(rank(x[keep]) == rank(x[keep, 1:]) for keep in keeps):
        return np.full((3, y.shape[-1]), np.nan)
    layers = y[None] if y.ndim == 2 else y
    mean, g, k = layers.mean(0), len(names), len(layers)
    whole, *without = (np.linalg.pinv(x[keep])[0] @ mean[keep] for keep in keeps)
    variance = (g - 1) / g * np.sum((np.array(without) - whole) ** 2, axis=0)
    if k > 1:
        variance += (np.linalg.pinv(x)[0] @ layers).var(axis=0, ddof=1) / k
    half = stats.t.ppf(0.975, g - 1) * np.sqrt(variance)
    return np.stack([whole, whole - half, whole + half])


# ── comparison with the truth ─────────────────────────────────────────────────────────────────────


def recovered_effects(
    config: Config,
    methods: Mapping[str, Sequence[str]] | None = None,
    thinning: Mapping[str, Mapping[str, float]] | None = None,
) -> pd.DataFrame:
    """Planted effects, and those estimated from the true, real and synthetic regional SUVR of the test people.

    ``methods`` is that of `regional_sources`. ``thinning``, by tracer and region, is SUVR per decade by cortical
    thinning instead of uptake, see `resdm_suite.cohorts.phantom.truth`.

    One row per source, tracer, region and effect, without the tracer's reference region, which is 1 by construction:
    the columns of `estimate_effects`, planted, expected (planted; for age with thinning), covered (whether the interval
    holds ``expected``), recovery (estimate ÷ expected) and of_truth (estimate ÷ that from the true SUVR of the same
    people), both NaN for effects below `MIN_EFFECT`. Rows of `EVERY_REGION` hold slopes over regions; their planted and
    expected values are 1.
    """
    planted = read_planted(config)
    planted = planted[planted["region"] != planted["tracer"].map(REFERENCE)].set_index(_KEYS)["planted"]
    thinned = thinning or {}
    thin = [thinned.get(t, {}).get(region, 0.0) if effect == "age" else 0.0 for t, region, effect in planted.index]
    frame = estimate_effects(regional_sources(config, methods), read_causes(config), planted + thin)
    known = pd.MultiIndex.from_frame(frame[_KEYS]).isin(planted.index)
    frame = frame[(frame["region"] == EVERY_REGION) | known].reset_index(drop=True)
    every, places = frame["region"] == EVERY_REGION, pd.MultiIndex.from_frame(frame[_KEYS])
    for name, values in (("planted", planted), ("expected", planted + thin)):
        frame[name] = np.where(every, 1.0, values.reindex(places).to_numpy())
    inside = (frame["low"] <= frame["expected"]) & (frame["expected"] <= frame["high"])
    frame["covered"] = inside.astype("boolean").mask(frame["low"].isna() | frame["expected"].isna())
    truth = frame[frame["source"] == "truth"].set_index(_KEYS)["estimate"].loc[places].to_numpy()
    for name, base in (("recovery", frame["expected"]), ("of_truth", pd.Series(truth, frame.index))):
        frame[name] = frame["estimate"] / base.where(base.abs() >= MIN_EFFECT)
    return frame


def recovery(frame: pd.DataFrame) -> pd.DataFrame:
    """All regions in one number: the slope through the origin of estimated on expected effects.

    From `recovered_effects`, one row per source, tracer and effect: trainings, regions, slope (1: the whole effect; NaN
    where no expected effect reaches `MIN_EFFECT`), low, high, of_truth (slope through the origin on the estimates from
    the true SUVR of the same people), of_ceiling (the slope as a share of the ceiling's; both NaN without them),
    covered (regions whose interval holds the expected effect), largest (absolute estimate, SUVR).
    """
    keys = ["source", "tracer", "effect"]
    slopes = frame[frame["region"] == EVERY_REGION].set_index(keys)
    by_region = frame[frame["region"] != EVERY_REGION]
    truths = by_region[by_region["source"] == "truth"].set_index(_KEYS)["estimate"]
    rows = []
    for (source, tracer, effect), part in by_region.groupby(keys, sort=False):
        truth = truths.reindex(pd.MultiIndex.from_frame(part[_KEYS])).to_numpy()
        estimate, slope = part["estimate"].to_numpy(), slopes.loc[(source, tracer, effect)]
        ceiling = slopes["estimate"].get(("ceiling", tracer, effect), math.nan)
        row = {"source": source, "tracer": tracer, "effect": effect, "trainings": slope["trainings"]}
        row |= {"regions": len(part), "slope": slope["estimate"], "low": slope["low"], "high": slope["high"]}
        row |= {"of_truth": float(_unit(truth) @ estimate), "of_ceiling": slope["estimate"] / ceiling}
        row |= {"covered": int(part["covered"].fillna(False).sum()), "largest": float(np.abs(estimate).max())}
        rows.append(row)
    return pd.DataFrame(rows)
