"""The simulated people: demography, latent causes of disease, and their change with time."""

import datetime
from typing import Any

import numpy as np

from resdm.settings import TRACERS
from resdm_suite.anatomy import CENTRE_MM
from resdm_suite.profiles import Config, PlantedAttributes

AGE_CENTRE = 72.0
"""Age (years) at which the planted age effect is zero."""

PERSON, DEFORMATION, FIELD, VISIT, SCAN, DONOR, ATTRIBUTES = range(7)
"""Purposes of random streams, see `random_stream`."""

# Paper, Table 1: people, age mean and SD, women, education mean and SD, MMSE mean and SD.
DIAGNOSES: dict[str, dict[str, Any]] = {
    "CN": {"n": 608, "age": (71.37, 6.63), "women": 357 / 608, "education": (16.68, 2.37), "mmse": (29.09, 1.13)},
    "MCI": {"n": 656, "age": (71.66, 7.48), "women": 297 / 656, "education": (16.19, 2.55), "mmse": (27.96, 1.81)},
    "AD": {"n": 210, "age": (74.58, 8.09), "women": 85 / 210, "education": (15.66, 2.61), "mmse": (23.01, 2.35)},
}
# Latent causes by diagnosis: probability of amyloid, mean load of the positive (1 is about +0.45 SUVR), mean tau stage
# of the amyloid-negative, mean neurodegeneration. Age and sex do not enter: their effects on uptake are planted apart.
LATENT: dict[str, dict[str, float]] = {
    "CN": {"positive": 0.28, "load": 0.98, "stage": 0.40, "severity": 0.10},
    "MCI": {"positive": 0.52, "load": 1.07, "stage": 0.75, "severity": 0.45},
    "AD": {"positive": 0.86, "load": 1.25, "stage": 1.45, "severity": 1.00},
}

EDUCATION, MMSE = (8, 20), (8, 30)
"""Lowest and highest years of education and MMSE score."""

SEVERITY_SD = 0.16
"""SD of neurodegeneration at a given diagnosis and tau stage."""

FLORBETABEN_SHARE = 0.25
"""Share of people whose amyloid tracer is florbetaben; the others have florbetapir."""


PLASMA = {"load": (0.55, 0.55), "stage": (1.26, 1.03)}
"""Mean and SD over the population of the causes whose standardised sum, the pathology, plasma shows."""

PATHOLOGY_SD = 1.86
"""SD of that sum over the population: load and stage are correlated."""

CARRIERS = {True: 0.6, False: 0.22}
"""Share of carriers of APOE ε4 among the amyloid-positive and the others."""


def person_name(index: int) -> str:
    """BIDS name of person ``index``."""
    return f"sub-{index + 1:04d}"


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """An independent stream for each person and purpose, so that one more draw changes nothing elsewhere."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def draw_disease(by_diagnosis: float | np.ndarray, by_status: float | np.ndarray) -> dict[str, Any]:
    """Diagnosis (position in `DIAGNOSES`), status and latent means, from two uniform numbers per person."""
    shares = np.cumsum([group["n"] for group in DIAGNOSES.values()])
    diagnosis = np.searchsorted(shares / shares[-1], by_diagnosis, side="right")
    mean = {key: np.array([latent[key] for latent in LATENT.values()])[diagnosis] for key in LATENT["CN"]}
    return {"diagnosis": diagnosis, "positive": by_status < mean["positive"], "mean": mean}


def draw_causes(rng: np.random.Generator, disease: dict[str, Any]) -> dict[str, Any]:
    """Latent causes at the first session, of one person or many; ``foretold``: severity without its error."""
    positive, mean = disease["positive"], disease["mean"]
    load = rng.normal(np.where(positive, mean["load"], 0.0), np.where(positive, 0.26, 0.09))
    load = np.where(positive, np.maximum(load, 0.45), np.abs(load))
    stage = mean["stage"] + np.where(positive, 0.80 * load + 0.30, 0.0) + rng.normal(0, 0.62, np.shape(load))
    foretold = mean["severity"] + 0.22 * (stage - 1.0)  # atrophy predicts tau, in part
    severity = foretold + rng.normal(0, SEVERITY_SD, np.shape(load))
    causes = {"load": load, "stage": stage, "foretold": foretold, "severity": severity}
    return causes | {"positive": positive, "progression": mean["severity"]}


def causes_after(causes: dict[str, Any], years: float) -> dict[str, Any]:
    """Load, stage and severity some years after the first session."""
    positive = causes["positive"]
    return {
        "load": causes["load"] + 0.03 * years * positive,
        "stage": causes["stage"] + 0.08 * years * (positive + 0.2),
        "severity": causes["severity"] + 0.05 * years * causes["progression"],
    }


def pathology(causes: dict[str, Any]) -> Any:
    """Amyloid load and tau stage together, standardised over the population."""
    return sum((causes[key] - mean) / sd for key, (mean, sd) in PLASMA.items()) / PATHOLOGY_SD


def draw_attributes(rng: np.random.Generator, causes: dict[str, Any], settings: PlantedAttributes) -> dict[str, Any]:
    """Further attributes of a person at the first visit, None where missing at random; see `PlantedAttributes`."""
    noise, null, by_carrier, *by_missing = *rng.normal(size=2), *rng.random(4)
    r = settings.strength
    shown = r * float(pathology(causes)) + (1 - r**2) ** 0.5 * noise
    carrier = "carrier" if by_carrier < CARRIERS[bool(causes["positive"])] else "noncarrier"
    values = {"plasma": round(plasma_value(shown), 2), "marker": round(plasma_value(null), 2), "apoe4": carrier}
    given = (by >= settings.missing for by in by_missing)
    return {name: value if known else None for (name, value), known in zip(values.items(), given, strict=True)}


def points_lost(group: dict[str, Any]) -> tuple[float, float]:
    """Shape and scale of the gamma distribution of MMSE points below 30 in a diagnosis: skewed, as MMSE is."""
    mean, sd = 30 - group["mmse"][0], group["mmse"][1]
    return mean**2 / sd**2, sd**2 / mean


def plasma_value(standard: float) -> float:
    """The value of plasma and marker in arbitrary units, of one in standard deviations; above 0."""
    return max(2.0 + 0.5 * standard, 0.01)


def _quasi_random(seed: int, index: int) -> np.ndarray:
    """Point ``index`` (6,) of a Kronecker sequence: small cohorts have nearly the intended proportions."""
    root = 2.0
    for _ in range(60):  # of x⁷ = x + 1
        root = (1 + root) ** (1 / 7)
    return (random_stream(seed).random(6) + (index + 1) / root ** np.arange(1, 7)) % 1.0


def _head_shape(rng: np.random.Generator, sex: str) -> list[list[float]]:
    """``person_to_mni``: head size and shear."""
    scale = (1.0 if sex == "F" else 1.03) * (1 + rng.normal(0, 0.035, 3) + rng.normal(0, 0.02))
    shear = np.triu(rng.normal(0, 0.02, (3, 3)), 1)
    person_to_mni = np.eye(4)
    person_to_mni[:3, :3] = np.linalg.inv(np.diag(scale) @ (np.eye(3) + shear))
    person_to_mni[:3, 3] = CENTRE_MM
    return person_to_mni.tolist()


def draw_person(config: Config, index: int) -> dict[str, Any]:
    """Demography, latent causes and head shape of one person, JSON-ready; ``visits`` holds what changes with time."""
    settings = config.cohort.phantom
    by_diagnosis, by_sex, by_status, by_tracer, by_single, by_repeat = _quasi_random(config.seed, index)
    disease = draw_disease(by_diagnosis, by_status)
    diagnosis = list(DIAGNOSES)[disease["diagnosis"]]
    group = DIAGNOSES[diagnosis]
    rng = random_stream(config.seed, index, PERSON)
    sex = "F" if by_sex < group["women"] else "M"
    age = float(np.clip(rng.normal(*group["age"]), 55, 95))
    education = round(float(np.clip(rng.normal(*group["education"]), *EDUCATION)))
    lost = rng.gamma(*points_lost(group))
    causes = draw_causes(rng, disease)
    donor = random_stream(config.seed, index, DONOR)
    shown = causes if donor.random() < settings.coupling else draw_causes(donor, draw_disease(*donor.random(2)))
    causes |= {key: shown[key] for key in ("severity", "progression")}
    wide_ventricles = rng.normal(0, 0.07)  # beyond age and disease
    person_to_mni = _head_shape(rng, sex)
    white = {tracer: float(rng.normal(0, 0.07)) for tracer in TRACERS}
    only = ("amyloid", "tau")[int(2 * by_single / settings.single_pet)] if by_single < settings.single_pet else None
    start = datetime.date(1920, 1, 1) + datetime.timedelta(days=int(rng.integers(1500)))
    months = [0]
    if by_repeat < settings.repeat_visits:
        months.append(12 if by_repeat < settings.repeat_visits / 2 else 24)

    visits = []
    for number, month in enumerate(months):
        rng = random_stream(config.seed, index, VISIT, number)
        days = round(month * 30.44) + (int(rng.integers(-30, 31)) if month else 0)
        years = days / 365.25
        age_now = round(age + years, 1)
        decades = settings.age_atrophy * (age_now - AGE_CENTRE) / 10
        causes_now = {key: float(value) for key, value in causes_after(causes, years).items()}
        lost_since = years * disease["mean"]["severity"] * abs(rng.normal(0, 1))
        ventricles = 0.32 + 0.17 * decades + 0.13 * causes_now["severity"] + wide_ventricles
        visits.append({
            "session": f"ses-M{month:03d}",
            "date": (start + datetime.timedelta(days=days)).isoformat(),
            "age": age_now,
            "diagnosis": diagnosis,
            "mmse": int(np.clip(round(30 - lost - lost_since), *MMSE)),
            **causes_now,
            "ventricles": float(np.clip(ventricles, -0.1, 0.75)),
        })  # fmt: skip
    amyloid_tracer = "18FFBB" if by_tracer < FLORBETABEN_SHARE else "18FAV45"
    tracers = [tracer for tracer in TRACERS if only in (None, tracer)]
    person = {"sex": sex, "education": education, "amyloid_tracer": amyloid_tracer, "tracers": tracers}
    person |= {"positive": bool(disease["positive"]), "white": white, "person_to_mni": person_to_mni}
    if settings.plasma is not None:
        person["attributes"] = draw_attributes(random_stream(config.seed, index, ATTRIBUTES), causes, settings.plasma)
    return person | {"visits": visits}
