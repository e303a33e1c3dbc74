"""What is planted in the phantoms, and how much of it regional SUVR can show.

The planted effects of ``truth.json`` are those of the uptake, at one anatomy and at the scanner's resolution. Measured
slopes differ for two reasons that follow from the generator. The cortex thins with age, so a slope over people of
different ages holds uptake and anatomy (`thinning_slope`). A region also holds white matter and fluid, and the scanner
blurs tissues into each other, so its SUVR shows a part of an effect in grey matter (`grey_share`).
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.optimize import brentq

from resdm.io import write_csv, write_json
from resdm.settings import TRACERS, ConfigError, to_dict
from resdm_suite.cohorts.phantom.anatomy import TORQUE, make_template, thin_cortex
from resdm_suite.cohorts.phantom.people import AGE_CENTRE
from resdm_suite.cohorts.phantom.uptake import LEFT_SHARE, REGIONAL, regional_suvr, tissue_uptake
from resdm_suite.profiles import Config


def average_regions(
    config: Config, tracer: str, *, thinned: float = 0.0, decades: float = 0.0, sex: float = 0.0, stage: float = 1.0
) -> tuple[float, dict[str, float], float]:
    """Regions (see `uptake.regional_suvr`) of average anatomy, no noise; ``thinned``: decades of cortical thinning."""
    settings = config.cohort.phantom
    if settings is None:
        raise ConfigError(f"profile {config.profile!r}: cohort.phantom is missing; only phantoms have planted effects")
    template = make_template(settings.anatomy_mm)
    tissues = thin_cortex(template, settings.age_atrophy * thinned, 0.4, 0.0)
    label = "18FAV45" if tracer == "amyloid" else "18FAV1451"
    uptake = tissue_uptake(template, tissues, tracer, label, load=0.45, stage=stage, decades=decades, sex=sex)
    sigma = np.mean(settings.pet_fwhm_mm) / 2.3548 / settings.anatomy_mm
    return regional_suvr(ndimage.gaussian_filter(uptake, sigma), template.labels, template.names, tracer)


def planted_effects(config: Config) -> dict[str, dict[str, dict[str, Any]]]:
    """Planted effects of sex and age in SUVR at scanner resolution, by tracer and region, at average anatomy."""
    settings, planted = config.cohort.phantom, {}
    for tracer in TRACERS:
        changes = {}, {"decades": settings.age_effect}, {"sex": settings.sex_effect}
        none, age, sex = (average_regions(config, tracer, **change)[1] for change in changes)
        planted[tracer] = {
            region: {"sex": 2 * (sex[region] - none[region]), "age": age[region] - none[region]} for region in none
        }
    return planted


def thinning_slope(config: Config) -> dict[str, dict[str, float]]:
    """SUVR per decade that cortical thinning alone costs, by tracer and region, at average anatomy.

    The difference between half a decade after and before `AGE_CENTRE`, with the uptake of that age and the pathology
    of the planted effects. Wider ventricles are not included.
    """
    slopes = {}
    for tracer in TRACERS:
        older, younger = (average_regions(config, tracer, thinned=decades)[1] for decades in (0.5, -0.5))
        slopes[tracer] = {region: older[region] - younger[region] for region in older}
    return slopes


def grey_share(config: Config) -> dict[str, dict[str, float]]:
    """Share of an effect in a region's grey matter that its SUVR shows at the scanner's resolution.

    Measured on the sex effect, which is in grey matter alone, at unit strength; NaN for regions without it.
    """
    shares = {}
    for tracer in TRACERS:
        (reference, none, _), (_, one, _) = (average_regions(config, tracer, sex=sex) for sex in (0.0, 1.0))
        tissue = {region: value / reference for region, value in REGIONAL[f"{tracer}_sex"].items()}
        shares[tracer] = {
            region: (one[region] - none[region]) / tissue[region] if region in tissue else math.nan for region in none
        }
    return shares


def stage_cut(config: Config) -> float:
    """Tau stage at which the meta-temporal SUVR of average anatomy passes ``cohort.tau_cutoff``."""
    cutoff, ends = config.cohort.tau_cutoff, (-2.0, 7.0)
    low, high = (average_regions(config, "tau", stage=stage)[2] for stage in ends)
    if not low < cutoff < high:
        raise ConfigError(
            f"profile {config.profile!r}: cohort.tau_cutoff is {cutoff}; the phantoms' meta-temporal SUVR runs from "
            f"{low:.2f} to {high:.2f}, so everyone would have one status; choose a value between"
        )
    return float(brentq(lambda stage: average_regions(config, "tau", stage=stage)[2] - cutoff, *ends, xtol=1e-4))


def write_truth(config: Config, digest: str, people: list[dict[str, Any]]) -> None:
    """``people.csv``, ``regional.csv`` and ``truth.json`` of complete people."""
    folder, cut, planted = config.work / "truth", stage_cut(config), planted_effects(config)
    sessions = pd.DataFrame([
        {"person": person["person"], "session": visit["session"], "sex": person["sex"], "age": visit["age"],
         "diagnosis": visit["diagnosis"], "education": person["education"], "mmse": visit["mmse"],
         "amyloid_tracer": person["amyloid_tracer"]}
        | {cause: visit[cause] for cause in ("load", "stage", "severity", "ventricles")}
        | {"amyloid_positive": int(person["positive"]), "tau_positive": int(visit["stage"] > cut)}
        | {f"{tracer}_suvr": visit["summary"].get(tracer) for tracer in TRACERS}
        for person in people for visit in person["sessions"]
    ])  # fmt: skip
    regional = pd.DataFrame([
        {"person": person["person"], "session": visit["session"], "tracer": tracer, "region": region, "suvr": value}
        for person in people for visit in person["sessions"]
        for tracer, suvr in visit["suvr"].items() for region, value in suvr.items()
    ])  # fmt: skip
    write_csv(folder / "people.csv", sessions, "%.6g")
    write_csv(folder / "regional.csv", regional, "%.6g")

    labelled = regional.merge(sessions, on=["person", "session"])
    for tracer in TRACERS:
        part = labelled[labelled.tracer == tracer]
        means = part.pivot_table(index="region", columns=f"{tracer}_positive", values="suvr")
        for region, effects in planted[tracer].items():
            both = region in means.index and {0, 1} <= set(means.columns)
            effects["status"] = float(means.loc[region, 1] - means.loc[region, 0]) if both else None
    write_json(folder / "truth.json", {
        "digest": digest, "seed": config.seed, "settings": to_dict(config.cohort.phantom),
        "age_centre": AGE_CENTRE, "left_share": LEFT_SHARE, "torque": TORQUE, "stage_cut": cut, "planted": planted,
    })  # fmt: skip
