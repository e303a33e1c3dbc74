"""Phantom cohort: a seeded generator of a BIDS dataset with T1, amyloid and tau PET of people who never lived.

Every person starts from nilearn's MNI152 tissue maps: head size and shape (affine), a smooth random deformation,
ventricles and cortical thickness by age and disease. The T1 is a mix of the tissues; each PET is a regional
uptake times grey matter, plus white matter, at the resolution of a scanner. Then each scan gets a pose, a voxel
grid, noise and a scale of its own, so what lies on disk looks like what a centre sends.

Spaces, all in mm, RAS+: *world* is a scan's own (its NIfTI affine leads there), *person* is the person's head with
the origin in its centre, *MNI* is the template's. One scan: ``person = world_to_person @ world``; one person:
``mni = person_to_mni @ person``; one session: a point at ``mni`` holds the anatomy that the template has at
``mni + displacement(deformation, mni)``. The displacement has no affine part over the brain (least squares), so
``person_to_mni @ world_to_person`` is the best affine there is, the one that registration should find.

The truth lies in ``work/<profile>/truth/``, outside the dataset:

``truth.json``
    Settings, and the planted effects by tracer and region, as SUVR at scanner resolution: ``sex`` (F minus M),
    ``age`` (per decade), ``status`` (positive minus negative people of this cohort); ``stage_cut``, see below.
``people.csv``
    One row a session: demography, the latent causes, cortical summaries without noise, planted status. Status is
    disease alone: ``amyloid_positive`` is the latent cause itself, ``tau_positive`` a latent tau stage above
    ``stage_cut``, at which the meta-temporal SUVR of a person of average anatomy, without effects of age and sex,
    passes ``cohort.tau_cutoff``.
``regional.csv``
    One row a session, tracer and region: SUVR at scanner resolution, without noise, over the region as the
    deformation takes it into the person (a label of `resdm_suite.anatomy.regions` on the anatomy grid).
``sub-*.json``
    One file a person: transforms, deformation, latent causes, files. Also the mark that this person is complete.

Sizes of the effects are large on purpose (see `PhantomConfig`): small ones cannot be learned in minutes.

How far atrophy foretells pathology is ``coupling``. With that probability a person's neurodegeneration follows from the
person's own disease, otherwise from that of another, independent person of the population. So its distribution is the
same at any coupling, and its covariance with load, stage and status is proportional to the coupling.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import re
import shutil
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from nibabel.orientations import axcodes2ornt
from scipy import ndimage
from scipy.optimize import brentq
from scipy.spatial.transform import Rotation
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from resdm.io import atomic, write_csv, write_json, write_text
from resdm.settings import TRACERS, ConfigError
from resdm_suite.anatomy import CENTRE_MM, REFERENCE, SUMMARY, Grid, mni_map, regions
from resdm_suite.paths import sidecar_path
from resdm_suite.profiles import Config, PhantomConfig

GENERATOR = "resdm phantom"
"""Name in ``dataset_description.json`` by which a dataset is known as this generator's own."""

REVISION = 2
"""Raised whenever the same settings and seed would give other files, so that old ones are made anew."""

AGE_CENTRE = 72.0
"""Age (years) at which the planted age effect is zero."""

# ── who they are ──────────────────────────────────────────────────────────────────────────────────
# Paper, Table 1: people, age mean and SD, women, education mean and SD, MMSE mean and SD.
_DIAGNOSES: dict[str, dict[str, Any]] = {
    "CN": {"n": 608, "age": (71.37, 6.63), "women": 357 / 608, "education": (16.68, 2.37), "mmse": (29.09, 1.13)},
    "MCI": {"n": 656, "age": (71.66, 7.48), "women": 297 / 656, "education": (16.19, 2.55), "mmse": (27.96, 1.81)},
    "AD": {"n": 210, "age": (74.58, 8.09), "women": 85 / 210, "education": (15.66, 2.61), "mmse": (23.01, 2.35)},
}
# Latent causes by diagnosis: chance of amyloid, mean load of the positive (1 is about +0.45 SUVR), mean tau stage of
# the amyloid-negative, mean neurodegeneration. Neither age nor sex enters: what they do to uptake is planted apart.
_LATENT: dict[str, dict[str, float]] = {
    "CN": {"positive": 0.28, "load": 0.98, "stage": 0.40, "severity": 0.10},
    "MCI": {"positive": 0.52, "load": 1.07, "stage": 0.75, "severity": 0.45},
    "AD": {"positive": 0.86, "load": 1.25, "stage": 1.45, "severity": 1.00},
}

_SEVERITY_SD = 0.16  # of neurodegeneration at a given diagnosis and stage

# ── what is planted where ─────────────────────────────────────────────────────────────────────────
_CORTEX = dict.fromkeys(
    ("precuneus", "posterior_cingulate", "anterior_cingulate", "frontal", "lateral_temporal", "inferior_temporal",
     "medial_temporal", "parietal", "sensorimotor", "occipital"), 1.0,
)  # fmt: skip
_FIELDS: dict[str, dict[str, float]] = {
    # amyloid: uptake of a load of 1 in pure grey matter
    "amyloid": {
        "precuneus": 0.92, "posterior_cingulate": 0.88, "anterior_cingulate": 0.86, "frontal": 0.78,
        "lateral_temporal": 0.66, "parietal": 0.66, "inferior_temporal": 0.45, "striatum": 0.60, "occipital": 0.28,
        "medial_temporal": 0.14, "sensorimotor": 0.14, "thalamus": 0.14,
    },
    # tau: the stage at which a region begins to fill, and what it holds when full
    "tau_onset": {
        "medial_temporal": 0.9, "inferior_temporal": 1.5, "lateral_temporal": 1.9, "posterior_cingulate": 2.2,
        "parietal": 2.3, "precuneus": 2.4, "frontal": 2.8, "occipital": 2.9, "anterior_cingulate": 3.0,
        "sensorimotor": 3.6, "striatum": 4.5, "thalamus": 4.5, "cerebellum": 6.0, "pons": 6.0,
    },
    "tau_full": {
        "medial_temporal": 0.95, "inferior_temporal": 1.95, "lateral_temporal": 1.80, "posterior_cingulate": 1.30,
        "parietal": 1.40, "precuneus": 1.35, "frontal": 1.10, "occipital": 1.05, "anterior_cingulate": 0.70,
        "sensorimotor": 0.60,
    },
    # uptake of pure grey matter with neither pathology nor effects, relative to a cerebellum near 1
    "amyloid_base": dict.fromkeys(_CORTEX, 0.89)
    | {"thalamus": 1.30, "striatum": 1.02, "cerebellum": 0.92, "pons": 1.50},
    "tau_base": dict.fromkeys(_CORTEX, 1.07)
    | {"thalamus": 1.18, "striatum": 1.34, "medial_temporal": 1.15, "cerebellum": 0.98, "pons": 1.05},
    # sex (women +, men −) and age (a decade): SUVR in pure grey matter
    "amyloid_sex": dict.fromkeys((*_CORTEX, "striatum", "thalamus"), 0.16),
    "tau_sex": dict.fromkeys((*_CORTEX, "striatum", "thalamus"), 0.115),
    "amyloid_age": dict.fromkeys(_CORTEX, 0.07)
    | {"frontal": 0.18, "anterior_cingulate": 0.18, "striatum": 0.20, "thalamus": 0.18},
    "tau_age": dict.fromkeys(_CORTEX, 0.065)
    | {"striatum": 0.26, "thalamus": 0.22, "medial_temporal": 0.12, "occipital": 0.14, "parietal": 0.11},
    # white matter above the tentorium: where the age effect reaches it, and where the amyloid tracers are high
    "white": dict.fromkeys((*_CORTEX, "striatum", "thalamus"), 1.0),
    # cortical thinning: fraction of grey matter lost by a decade of age, and by a neurodegeneration of 1
    "thin_age": dict.fromkeys(_CORTEX, 0.05) | {"medial_temporal": 0.07, "frontal": 0.08, "sensorimotor": 0.06},
    "thin_disease": dict.fromkeys(_CORTEX, 0.12)
    | {"medial_temporal": 0.44, "inferior_temporal": 0.28, "lateral_temporal": 0.26, "precuneus": 0.20,
       "posterior_cingulate": 0.20, "parietal": 0.22, "sensorimotor": 0.05, "occipital": 0.07},
}  # fmt: skip
_LEFT = {"amyloid": 0.06, "tau": 0.10}  # the left hemisphere's grey matter holds this much more than the right's
_WHITE = {"18FAV45": 1.55, "18FFBB": 1.42, "18FAV1451": 1.02}  # uptake of white matter
_WHITE_AGE = {"amyloid": 0.14, "tau": 0.09}  # SUVR a decade, above the tentorium
_FLUID = {"amyloid": 0.45, "tau": 0.40}
_CONTRAST = {"18FAV45": 1.0, "18FFBB": 1.12, "18FAV1451": 1.0}  # of the pathology
_FBB_SHARE = 0.25  # people whose amyloid tracer is florbetaben
_CHOROID = ((24.0, -40.0, 10.0), 7.0, 0.9)  # off-target tau: centre (both sides), SD in mm, uptake in fluid

# ── anatomy ───────────────────────────────────────────────────────────────────────────────────────
_BUMPS = 48  # Gaussians of the random deformation
_RMS_MM = 3.2  # root mean square length of the random deformation in the brain
_VENTRICLES = (  # right side: centre, SD, weight of the stretch along x, y, z
    ((11.0, 18.0, 10.0), (8.0, 13.0, 10.0), (1.0, 0.5, 0.8)),
    ((14.0, -10.0, 21.0), (8.0, 15.0, 9.0), (1.0, 0.4, 0.8)),
    ((24.0, -42.0, 10.0), (9.0, 12.0, 11.0), (1.0, 0.6, 1.0)),
)
_TORQUE = (  # Yakovlevian torque, in everyone: the right frontal and the left occipital pole protrude
    ((28.0, 56.0, 0.0), 20.0, -3.5), ((-28.0, 56.0, 0.0), 20.0, 1.5),
    ((-24.0, -92.0, 4.0), 20.0, 4.0), ((24.0, -92.0, 4.0), 20.0, -1.5),
)  # fmt: skip
_T1 = {"csf": 0.17, "gm": 0.58, "wm": 0.92}
_SCALP_MM = (2.0, 8.0, 14.0)  # from the brain to the inside of the skull, its outside, the skin
_T1_NOISE = 0.022  # of the white-matter signal
_PET_NOISE = 0.05  # SUVR where the SUVR is 1; grows with the square root, as counts do
_FOV_MM = (192.0, 236.0, 204.0)  # right–left, front–back, up–down
_T1_AXES = ("RAS", "LPS", "PSR")  # how a scanner stores its axes; PSR: sagittal slices
_PET_AXES = ("RAS", "LAS", "LPS")

_TRACER_SIDECAR: dict[str, dict[str, Any]] = {
    "18FAV45": {"TracerName": "18F-AV-45 (florbetapir)", "InjectedRadioactivity": 370.0, "start": -3000, "frame": 1200},
    "18FFBB": {"TracerName": "18F-florbetaben", "InjectedRadioactivity": 300.0, "start": -5400, "frame": 1200},
    "18FAV1451": {"TracerName": "18F-AV-1451 (flortaucipir)", "InjectedRadioactivity": 370.0, "start": -4800,
                  "frame": 1800},
}  # fmt: skip


class PhantomError(RuntimeError):
    """A place that the generator must not write to: names the folder, what was found and the remedy."""


# ── the dataset ───────────────────────────────────────────────────────────────────────────────────


def write_phantoms(config: Config, *, jobs: int = 1, progress: bool = True) -> Path:
    """Write the phantom cohort of a profile as a BIDS dataset, and its truth beside it.

    A person's bytes follow from the seed, the person's number and the settings alone, neither from ``jobs`` nor
    from how many people there are. Complete people are left as they are: a second call writes nothing, a killed
    call goes on, a larger cohort adds people, a smaller one removes them. Under other settings, seed or revision
    this generator's own files are removed and made anew, with a warning; a folder that holds anything else is
    refused.

    Parameters
    ----------
    config : Config
        Needs ``cohort.phantom``; its ``bids`` is where the dataset goes, ``work/truth`` where the truth goes.
    jobs : int
        Processes, one thread each.
    progress : bool
        Show a bar.

    Returns
    -------
    Path
        The BIDS root.

    Raises
    ------
    ConfigError
        Where the profile has no ``cohort.phantom``, or no tau stage passes ``cohort.tau_cutoff``.
    PhantomError
        Where the folder is not empty and not this generator's.
    """
    settings = config.cohort.phantom
    if settings is None:
        raise ConfigError(f"profile {config.profile!r}: cohort.phantom is missing; phantoms need its settings")
    root, truth, digest = config.source_root, config.work / "truth", _digest(config)
    names = [_name(index) for index in range(settings.people)]
    _claim(root, truth, digest, keep=set(names))

    todo = [index for index, name in enumerate(names) if not _complete(truth / f"{name}.json", root, digest)]
    stamp = truth / "stamp.json"
    mark = {"digest": digest, "people": settings.people, "tau_cutoff": config.cohort.tau_cutoff}
    tables = [root / name for name in ("README", "participants.tsv", "participants.json")]
    tables += [truth / name for name in ("truth.json", "people.csv", "regional.csv")]
    if not todo and all(path.is_file() for path in tables) and _read(stamp) == mark:
        return root
    stamp.unlink(missing_ok=True)
    work = Parallel(n_jobs=min(jobs, max(len(todo), 1)), return_as="generator_unordered")(
        delayed(_write_person)(config, index, digest) for index in todo
    )
    for _ in tqdm(work, total=len(todo), desc="phantoms", unit="person", disable=not progress or not todo):
        pass
    _write_cohort(config, digest, [_read(truth / f"{name}.json") for name in names])
    write_json(stamp, mark)
    return root


def _name(index: int) -> str:
    return f"sub-{index + 1:04d}"


def _digest(config: Config) -> str:
    """What a person's bytes follow from, beside the person's number: settings, seed and revision."""
    settings = dataclasses.asdict(config.cohort.phantom) | {"seed": config.seed, "revision": REVISION}
    del settings["people"]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _claim(root: Path, truth: Path, digest: str, keep: set[str]) -> None:
    """Make sure that ``root`` is ours, for these settings, without strangers and what a killed call left half done."""
    description = root / "dataset_description.json"
    if root.exists() and any(root.iterdir()):
        made_by = _read(description).get("GeneratedBy") or [{}]
        if made_by[0].get("Name") != GENERATOR:
            raise PhantomError(
                f"{root}: holds files that the phantom generator did not write (no {description.name} with "
                f"GeneratedBy {GENERATOR!r}); give cohort.folder an empty folder, or move these files away"
            )
        if made_by[0].get("Digest") != digest:
            warnings.warn(
                f"{root}: phantoms of other settings or of another revision; they are removed and made anew",
                stacklevel=3,
            )
            keep = set()
    for folder, pattern in ((root, r"sub-\d{4,}|\.\d+\..+"), (truth, r"sub-\d{4,}\.json|\.\d+\..+")):
        for path in list(folder.iterdir()) if folder.is_dir() else ():
            if re.fullmatch(pattern, path.name) and path.name.removesuffix(".json") not in keep:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not description.is_file() or digest not in description.read_text(encoding="utf-8"):
        write_json(description, {
            "Name": "Phantom cohort of resdm (synthetic: no person was scanned)",
            "BIDSVersion": "1.9.0",
            "DatasetType": "raw",
                "Authors": ["resdm"],
            "License": "CC0",
            "GeneratedBy": [{"Name": GENERATOR, "Description": "simulated T1, amyloid and tau PET", "Digest": digest}],
        })  # fmt: skip


def _complete(record: Path, root: Path, digest: str) -> bool:
    person = _read(record)
    return person.get("digest") == digest and all((root / file).is_file() for file in person["files"])


def _read(path: Path) -> dict[str, Any]:
    """A JSON file, or nothing where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _write_cohort(config: Config, digest: str, people: list[dict[str, Any]]) -> None:
    """The tables of the dataset and of the truth, once every person is there."""
    root, truth = config.source_root, config.work / "truth"
    write_text(root / "README", _README)
    columns = {"age": "age_bl", "diagnosis": "diagnosis_sc", "mmse": "mmse_bl"}
    baseline = [
        {"participant_id": person["person"], "sex": person["sex"], "education_level": person["education"]}
        | {column: person["sessions"][0][key] for key, column in columns.items()}
        for person in people
    ]
    _write_tsv(root / "participants.tsv", pd.DataFrame(baseline))
    write_json(root / "participants.json", _COLUMNS)

    causes, stage_cut = ("load", "stage", "severity", "ventricles"), _stage_cut(config)
    rows, regional = [], []
    for person in people:
        for visit in person["sessions"]:
            row = {"person": person["person"], "session": visit["session"], "sex": person["sex"]}
            row |= {key: visit[key] for key in ("age", "diagnosis")}
            row |= {"education": person["education"], "mmse": visit["mmse"]}
            row |= {"amyloid_tracer": person["amyloid_tracer"]} | {key: visit[key] for key in causes}
            row |= {"amyloid_positive": int(person["positive"]), "tau_positive": int(visit["stage"] > stage_cut)}
            for tracer in TRACERS:
                suvr = visit["suvr"].get(tracer)
                row[f"{tracer}_suvr"] = None if suvr is None else visit["summary"][tracer]
                regional += [
                    {
                        "person": row["person"],
                        "session": row["session"],
                        "tracer": tracer,
                        "region": name,
                        "suvr": value,
                    }
                    for name, value in (suvr or {}).items()
                ]
            rows.append(row)
    sessions, table = pd.DataFrame(rows), pd.DataFrame(regional)
    write_csv(truth / "people.csv", sessions, "%.6g")
    write_csv(truth / "regional.csv", table, "%.6g")

    planted = _planted(config)
    labelled = table.merge(sessions, on=["person", "session"])
    for tracer in TRACERS:
        part = labelled[labelled.tracer == tracer]
        means = part.pivot_table(index="region", columns=f"{tracer}_positive", values="suvr")
        for region, effects in planted[tracer].items():
            both = region in means.index and {0, 1} <= set(means.columns)
            effects["status"] = float(means.loc[region, 1] - means.loc[region, 0]) if both else None
    write_json(truth / "truth.json", {
        "digest": digest, "seed": config.seed, "settings": dataclasses.asdict(config.cohort.phantom),
        "age_centre": AGE_CENTRE, "left_share": _LEFT, "torque": _TORQUE, "stage_cut": stage_cut, "planted": planted,
    })  # fmt: skip


# ── one person ────────────────────────────────────────────────────────────────────────────────────


def _rng(seed: int, *key: int) -> np.random.Generator:
    """A stream of its own for each person and purpose, so that one more draw here shifts nothing elsewhere."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


_PERSON, _DEFORMATION, _FIELD, _VISIT, _SCAN, _DONOR = range(6)  # purposes


def _write_person(config: Config, index: int, digest: str) -> None:
    with threadpool_limits(limits=1):  # BLAS sums in another order with more threads: other bytes
        root, name, person = config.source_root, _name(index), _person(config, index)
        shutil.rmtree(root / name, ignore_errors=True)  # what a killed call left of this person
        visits = person.pop("visits")
        files = [file for n, visit in enumerate(visits) for file in _write_session(config, index, n, person, visit)]
        path = root / name / f"{name}_sessions.tsv"
        rows = [(v["session"], v["date"], f"{v['age']:.1f}", v["diagnosis"], v["mmse"]) for v in visits]
        _write_tsv(path, pd.DataFrame(rows, columns=["session_id", "examination_date", "age", "diagnosis", "MMSE"]))
        write_json(path.with_suffix(".json"), _SESSION_COLUMNS)
        files += [path.relative_to(root).as_posix(), path.with_suffix(".json").relative_to(root).as_posix()]
        record = {"person": name, "digest": digest, **person, "sessions": visits, "files": files}
        write_json(config.work / "truth" / f"{name}.json", record)  # last: the mark that this person is complete


def _quasi(seed: int, index: int, dimensions: int = 6) -> np.ndarray:
    """Point ``index`` of a Kronecker sequence: every small cohort has nearly the intended proportions."""
    root = 2.0
    for _ in range(60):  # of x^(d+1) = x + 1
        root = (1 + root) ** (1 / (dimensions + 1))
    return (_rng(seed).random(dimensions) + (index + 1) / root ** np.arange(1, dimensions + 1)) % 1.0


def _disease(by_diagnosis: float | np.ndarray, by_status: float | np.ndarray) -> dict[str, Any]:
    """Diagnosis (position in `_DIAGNOSES`), status and what the diagnosis sets, of two numbers in [0, 1) a person."""
    shares = np.cumsum([group["n"] for group in _DIAGNOSES.values()])
    diagnosis = np.searchsorted(shares / shares[-1], by_diagnosis, side="right")
    mean = {key: np.array([latent[key] for latent in _LATENT.values()])[diagnosis] for key in _LATENT["CN"]}
    return {"diagnosis": diagnosis, "positive": by_status < mean["positive"], "mean": mean}


def _causes(rng: np.random.Generator, disease: dict[str, Any]) -> dict[str, Any]:
    """Latent causes at the first visit, of one `_disease` or many; ``foretold``: severity as load and stage have it."""
    positive, mean = disease["positive"], disease["mean"]
    load = rng.normal(np.where(positive, mean["load"], 0.0), np.where(positive, 0.26, 0.09))
    load = np.where(positive, np.maximum(load, 0.45), np.abs(load))
    stage = mean["stage"] + np.where(positive, 0.80 * load + 0.30, 0.0) + rng.normal(0, 0.62, np.shape(load))
    foretold = mean["severity"] + 0.22 * (stage - 1.0)  # atrophy foretells tau, in part
    severity = foretold + rng.normal(0, _SEVERITY_SD, np.shape(load))
    causes = {"load": load, "stage": stage, "foretold": foretold, "severity": severity}
    return causes | {"positive": positive, "progression": mean["severity"]}


def _later(causes: dict[str, Any], years: float) -> dict[str, Any]:
    """Load, stage and severity some years after the first visit."""
    positive = causes["positive"]
    return {
        "load": causes["load"] + 0.03 * years * positive,
        "stage": causes["stage"] + 0.08 * years * (positive + 0.2),
        "severity": causes["severity"] + 0.05 * years * causes["progression"],
    }


def _person(config: Config, index: int) -> dict[str, Any]:
    """Demography, latent causes and anatomy of one person, JSON-ready; ``visits`` holds what changes with time."""
    settings = config.cohort.phantom
    by_diagnosis, by_sex, by_status, by_tracer, by_single, by_repeat = _quasi(config.seed, index)
    disease = _disease(by_diagnosis, by_status)
    diagnosis = list(_DIAGNOSES)[disease["diagnosis"]]
    group = _DIAGNOSES[diagnosis]
    rng = _rng(config.seed, index, _PERSON)
    sex = "F" if by_sex < group["women"] else "M"
    age = float(np.clip(rng.normal(*group["age"]), 55, 95))
    education = round(float(np.clip(rng.normal(*group["education"]), 8, 20)))
    mean, sd = 30 - group["mmse"][0], group["mmse"][1]
    lost = rng.gamma(mean**2 / sd**2, sd**2 / mean)  # points below 30: skewed, as MMSE is
    own = _causes(rng, disease)
    donor = _rng(config.seed, index, _DONOR)
    shown = own if donor.random() < settings.coupling else _causes(donor, _disease(*donor.random(2)))
    own |= {key: shown[key] for key in ("severity", "progression")}
    wide = rng.normal(0, 0.07)  # ventricles beyond age and disease
    scale = (1.0 if sex == "F" else 1.03) * (1 + rng.normal(0, 0.035, 3) + rng.normal(0, 0.02))
    shear = np.triu(rng.normal(0, 0.02, (3, 3)), 1)
    linear = np.linalg.inv(np.diag(scale) @ (np.eye(3) + shear))
    person_to_mni = np.eye(4)
    person_to_mni[:3, :3], person_to_mni[:3, 3] = linear, CENTRE_MM
    white = {tracer: float(rng.normal(0, 0.07)) for tracer in TRACERS}
    only = ("amyloid", "tau")[int(2 * by_single / settings.single_pet)] if by_single < settings.single_pet else None
    start = datetime.date(1920, 1, 1) + datetime.timedelta(days=int(rng.integers(1500)))
    months = [0]
    if by_repeat < settings.repeat_visits:
        months.append(12 if by_repeat < settings.repeat_visits / 2 else 24)

    visits = []
    for number, month in enumerate(months):
        visit = _rng(config.seed, index, _VISIT, number)
        days = round(month * 30.44) + (int(visit.integers(-30, 31)) if month else 0)
        years = days / 365.25
        now = round(age + years, 1)
        aged = settings.age_atrophy * (now - AGE_CENTRE) / 10  # decades
        causes = {key: float(value) for key, value in _later(own, years).items()}
        lost_since = years * disease["mean"]["severity"] * abs(visit.normal(0, 1))
        visits.append({
            "session": f"ses-M{month:03d}",
            "date": (start + datetime.timedelta(days=days)).isoformat(),
            "age": now,
            "diagnosis": diagnosis,
            "mmse": int(np.clip(round(30 - lost - lost_since), 8, 30)),
            **causes,
            "ventricles": float(np.clip(0.32 + 0.17 * aged + 0.13 * causes["severity"] + wide, -0.1, 0.75)),
        })  # fmt: skip
    return {
        "sex": sex,
        "education": education,
        "amyloid_tracer": "18FFBB" if by_tracer < _FBB_SHARE else "18FAV45",
        "tracers": [tracer for tracer in TRACERS if only in (None, tracer)],
        "positive": bool(disease["positive"]),
        "white": white,
        "person_to_mni": person_to_mni.tolist(),
        "visits": visits,
    }


# ── anatomy ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Template:
    """What all people share, on the anatomy grid (MNI space)."""

    grid: Grid
    gm: np.ndarray
    wm: np.ndarray
    csf: np.ndarray
    brain: np.ndarray
    edge: np.ndarray  # 0 deep in the ribbon … 1 beside fluid
    labels: np.ndarray  # 0: none; position in `names` + 1
    names: tuple[str, ...]
    fields: dict[str, np.ndarray]  # of _FIELDS
    left: np.ndarray  # 1 in the left hemisphere, 0 in the right, smooth between
    choroid: np.ndarray
    shell: np.ndarray  # mm outside the brain, for the scalp

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """MNI mm along x, y and z."""
        affine = self.grid.affine
        return tuple(affine[i, 3] + affine[i, i] * np.arange(n) for i, n in enumerate(self.grid.shape))


@cache
def _template(voxel_mm: float) -> _Template:
    grid = _head(voxel_mm)
    gm, wm, brain = (mni_map(name, grid).astype(np.float32) for name in ("gm", "wm", "brain"))
    total = np.maximum(gm + wm, 1)
    gm, wm = gm / total * brain, wm / total * brain
    csf = brain - gm - wm
    edge = ndimage.gaussian_filter(csf + 1 - brain, 2.5 / voxel_mm)
    masks = regions(grid)
    names = tuple(masks)
    labels = np.zeros(grid.shape, np.uint8)
    for number, mask in enumerate(masks.values(), 1):  # the inferior cerebellum comes after the cerebellum it is in
        labels[mask] = number
    x, y, z = grid.mm().astype(np.float32)
    (cx, cy, cz), width, _ = _CHOROID
    near = np.exp(-((np.abs(x) - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * width**2))
    return _Template(
        grid=grid, gm=gm, wm=wm, csf=csf, brain=brain, edge=np.clip(1.6 * edge, 0, 1), labels=labels, names=names,
        fields=_fields(grid), left=1 / (1 + np.exp(x / 4)), choroid=near * csf,
        shell=ndimage.distance_transform_edt(brain < 0.5, voxel_mm).astype(np.float32),
    )  # fmt: skip


def _head(voxel_mm: float) -> Grid:
    """A grid that holds the MNI head with some air around."""
    return Grid(tuple(int(np.ceil(mm / voxel_mm)) for mm in (200, 232, 208)), voxel_mm)


def _fields(grid: Grid) -> dict[str, np.ndarray]:
    """Smooth maps that take the values of `_FIELDS` in the regions and blend between them."""
    coarse = _head(4.0)
    masks = regions(coarse)
    masks = {name: mask for name, mask in masks.items() if name != "inferior_cerebellum"}
    soft = {name: ndimage.gaussian_filter(mask.astype(np.float32), 9 / 4) + 1e-9 for name, mask in masks.items()}
    total = sum(soft.values())
    to_coarse = np.linalg.inv(coarse.affine) @ grid.affine
    return {
        field: ndimage.affine_transform(
            sum(soft[name] * np.float32(value) for name, value in values.items()) / total,
            to_coarse[:3, :3], to_coarse[:3, 3], output_shape=grid.shape, order=1, mode="nearest",
        )
        for field, values in _FIELDS.items()
    }  # fmt: skip


def displacement(deformation: dict[str, Any], points: np.ndarray) -> np.ndarray:
    """Where in the template the anatomy at a point of the affinely aligned person comes from, as an offset.

    Parameters
    ----------
    deformation : dict
        ``sessions[i]["deformation"]`` of a person's truth: Gaussians (``centre`` (K, 3), ``sd`` (K, 3), ``shift``
        (K, 3) mm, ``stretch`` (K, 3) without unit) and ``affine`` (3, 4), the part taken out.
    points : ndarray (N, 3)
        MNI mm.

    Returns
    -------
    ndarray (N, 3)
        mm; the template's anatomy at ``points + offset`` lies at ``points``.
    """
    centre, sd, shift, stretch, affine = (np.asarray(deformation[key]) for key in _DEFORMATION_KEYS)
    sharp = 1 / sd**2  # Σ ((p − c) / sd)² by its three terms, as matrix products
    weight = np.exp(points @ (centre * sharp).T - 0.5 * (points**2 @ sharp.T + (centre**2 * sharp).sum(1)))  # (N, K)
    moved = weight @ (shift - centre * stretch) + points * (weight @ stretch)
    return moved - points @ affine[:, :3].T - affine[:, 3]


_DEFORMATION_KEYS = ("centre", "sd", "shift", "stretch", "affine")


def _displacement_on_axes(deformation: dict[str, Any], axes: tuple[np.ndarray, ...]) -> np.ndarray:
    """`displacement` on a grid, (3, X, Y, Z): Gaussians are products of three 1-D ones, so this is a matrix product."""
    centre, sd, shift, stretch, affine = (np.asarray(deformation[key]) for key in _DEFORMATION_KEYS)
    away = [axis - centre[:, i, None] for i, axis in enumerate(axes)]  # 3 × (K, n)
    gauss = [np.exp(-0.5 * (a / sd[:, i, None]) ** 2) for i, a in enumerate(away)]
    shape = tuple(len(axis) for axis in axes)
    open_axes = np.ix_(*axes)
    field = np.empty((3, *shape), np.float32)
    for c in range(3):
        # shift_c · gx gy gz + stretch_c · (p_c − centre_c) gx gy gz: both factors of axis c in one
        factors = [g.astype(np.float32) for g in gauss]
        factors[c] = (gauss[c] * (shift[:, c, None] + stretch[:, c, None] * away[c])).astype(np.float32)
        plane = (factors[0][:, :, None] * factors[1][:, None, :]).reshape(len(centre), -1)  # (K, X·Y)
        field[c] = (plane.T @ factors[2]).reshape(shape)
        field[c] -= sum(affine[c, i] * open_axes[i] for i in range(3)) + affine[c, 3]
    return field


@cache
def _brain_points() -> np.ndarray:
    """MNI mm of the brain's voxels on a 10 mm grid, (N, 3)."""
    grid = _head(10.0)
    return grid.mm()[:, mni_map("brain", grid)].T


def _deformation(seed: int, index: int, ventricles: float) -> dict[str, Any]:
    """The person's smooth deformation with this session's ventricles, free of an affine part over the brain."""
    rng = _rng(seed, index, _DEFORMATION)
    points = _brain_points()
    zero = np.zeros((1, 3))
    centre = points[rng.integers(len(points), size=_BUMPS)] + rng.uniform(-4, 4, (_BUMPS, 3))
    sd = np.repeat(rng.uniform(15, 32, (_BUMPS, 1)), 3, axis=1)
    shift = rng.normal(0, 1, (_BUMPS, 3))
    target = _RMS_MM * rng.uniform(0.8, 1.2)
    smooth = {"centre": centre, "sd": sd, "shift": shift, "stretch": np.zeros_like(shift), "affine": np.zeros((3, 4))}
    smooth["affine"] = _affine_part(smooth, points)
    shift = shift * target / np.sqrt((displacement(smooth, points) ** 2).sum(1).mean())

    sides = [(np.array([side, 1, 1]) * c, s, w) for c, s, w in _VENTRICLES for side in (-1, 1)]
    parts = {
        "centre": [centre, [t[0] for t in _TORQUE], [c for c, _, _ in sides]],
        "sd": [sd, [[t[1]] * 3 for t in _TORQUE], [s for _, s, _ in sides]],
        "shift": [shift, [[0, t[2], 0] for t in _TORQUE], np.repeat(zero, len(sides), 0)],
        # looking nearer to the ventricle's centre than one stands makes the ventricle wider
        "stretch": [np.zeros_like(shift), np.repeat(zero, len(_TORQUE), 0),
                    [-ventricles * np.array(w) for _, _, w in sides]],
    }  # fmt: skip
    whole = {key: np.round(np.concatenate(value), 4) for key, value in parts.items()} | {"affine": np.zeros((3, 4))}
    whole["affine"] = _affine_part(whole, points)
    return {key: np.asarray(value).tolist() for key, value in whole.items()}


def _affine_part(deformation: dict[str, Any], points: np.ndarray) -> np.ndarray:
    homogeneous = np.column_stack([points, np.ones(len(points))])
    return np.linalg.lstsq(homogeneous, displacement(deformation, points), rcond=None)[0].T


def _tissues(
    template: _Template, decades: float, severity: float, ribbon: np.ndarray | float
) -> tuple[np.ndarray, ...]:
    """Grey matter, white matter, fluid: the cortex thins from outside, and fluid takes the place."""
    loss = template.fields["thin_age"] * (1 + decades) + template.fields["thin_disease"] * severity + ribbon
    gm = template.gm * np.clip(1 - loss * (0.5 + 1.1 * template.edge), 0.15, 1.0)
    return gm, template.wm, template.csf + template.gm - gm


def _smooth_field(rng: np.random.Generator, template: _Template, count: int, sd: tuple[float, float]) -> np.ndarray:
    """A random field on the anatomy grid, of about unit variance in the brain."""
    points = _brain_points()
    centre = points[rng.integers(len(points), size=count)]
    width, weight = rng.uniform(*sd, count), rng.normal(0, 1, count)
    gauss = [
        np.exp(-0.5 * ((axis - centre[:, i, None]) / width[:, None]) ** 2).astype(np.float32)
        for i, axis in enumerate(template.axes)
    ]
    volume = len(points) * 10.0**3
    norm = np.sqrt((weight**2 * width**3 * np.pi**1.5).sum() / volume)
    plane = gauss[0][:, :, None] * gauss[1][:, None, :] * (weight / norm)[:, None, None].astype(np.float32)
    return (plane.reshape(count, -1).T @ gauss[2]).reshape(template.grid.shape)


# ── uptake ────────────────────────────────────────────────────────────────────────────────────────


def _uptake(
    template: _Template,
    tissues: tuple[np.ndarray, ...],
    tracer: str,
    name: str,
    *,
    load: float,
    stage: float | np.ndarray,
    white: float,
    own: np.ndarray | float,
    decades: float,
    sex: float,
) -> np.ndarray:
    """Tracer in the tissue before the scanner, on the anatomy grid; unit: about SUVR.

    ``decades`` and ``sex`` are the planted effects' regressors, already multiplied by the configured strength. Of
    several values of ``stage``, equally likely, it is the mean uptake.
    """
    gm, wm, csf = tissues
    field = template.fields
    if tracer == "amyloid":
        pathology = load * field["amyloid"]
    else:
        rise = [1 / (1 + np.exp((field["tau_onset"] - s) / 0.3)) for s in (0.2, *np.atleast_1d(stage).tolist())]
        pathology = field["tau_full"] * (np.mean(rise[1:], axis=0) - rise[0])
    effects = decades * field[f"{tracer}_age"] + sex * field[f"{tracer}_sex"]
    lateral = 1 + _LEFT[tracer] * (template.left - 0.5) * field["white"]
    grey = (field[f"{tracer}_base"] + _CONTRAST[name] * pathology + own * field["white"]) * lateral + effects
    fluid = _FLUID[tracer] + (0 if tracer == "amyloid" else _CHOROID[2] * template.choroid)
    # the white term of age leaves out the cerebellum and pons, or the reference region would take it away again
    return gm * grey + wm * (_WHITE[name] * (1 + white) + decades * _WHITE_AGE[tracer] * field["white"]) + csf * fluid


def _average(
    config: Config, tracer: str, *, thinned: float = 0.0, decades: float = 0.0, sex: float = 0.0, stage: float = 1.0
) -> tuple[float, dict[str, float], float]:
    """Regions (see `_regional`) of a person of average anatomy, ``thinned`` decades older in it, without noise."""
    settings = config.cohort.phantom
    if settings is None:
        raise ConfigError(f"profile {config.profile!r}: cohort.phantom is missing; only phantoms have planted effects")
    template = _template(settings.anatomy_mm)
    tissues = _tissues(template, settings.age_atrophy * thinned, 0.4, 0.0)
    name = "18FAV45" if tracer == "amyloid" else "18FAV1451"
    uptake = _uptake(template, tissues, tracer, name, load=0.45, stage=stage, white=0.0, own=0.0, decades=decades,
                     sex=sex)  # fmt: skip
    sigma = np.mean(settings.pet_fwhm_mm) / 2.3548 / settings.anatomy_mm
    return _regional(ndimage.gaussian_filter(uptake, sigma), template.labels, template.names, tracer)


def _planted(config: Config) -> dict[str, dict[str, dict[str, Any]]]:
    """Planted effects in SUVR at scanner resolution, by tracer and region, in a person of average anatomy."""
    settings, planted = config.cohort.phantom, {}
    for tracer in TRACERS:
        changes = {}, {"decades": settings.age_effect}, {"sex": settings.sex_effect}
        none, age, sex = (_average(config, tracer, **change)[1] for change in changes)
        planted[tracer] = {
            region: {"sex": 2 * (sex[region] - none[region]), "age": age[region] - none[region]} for region in none
        }
    return planted


def _stage_cut(config: Config) -> float:
    """Tau stage at which the meta-temporal SUVR of a person of average anatomy passes ``cohort.tau_cutoff``."""
    cutoff, ends = config.cohort.tau_cutoff, (-2.0, 7.0)
    low, high = (_average(config, "tau", stage=stage)[2] for stage in ends)
    if not low < cutoff < high:
        raise ConfigError(
            f"profile {config.profile!r}: cohort.tau_cutoff is {cutoff}; the phantoms' meta-temporal SUVR runs from "
            f"{low:.2f} to {high:.2f}, so everyone would have one status; choose a value between"
        )
    return float(brentq(lambda stage: _average(config, "tau", stage=stage)[2] - cutoff, *ends, xtol=1e-4))


def _regional(
    uptake: np.ndarray, labels: np.ndarray, names: tuple[str, ...], tracer: str
) -> tuple[float, dict[str, float], float]:
    """Reference mean, SUVR by region, and cortical summary of an image."""
    count = np.bincount(labels.ravel(), minlength=len(names) + 1)[1:]
    total = np.bincount(labels.ravel(), uptake.ravel(), minlength=len(names) + 1)[1:]
    outer, inner = names.index("cerebellum"), names.index("inferior_cerebellum")
    count[outer] += count[inner]
    total[outer] += total[inner]
    mean = dict(zip(names, total / np.maximum(count, 1), strict=True))
    size = dict(zip(names, count, strict=True))
    reference = mean[REFERENCE[tracer]]
    summary = sum(mean[r] * size[r] for r in SUMMARY[tracer]) / sum(size[r] for r in SUMMARY[tracer])
    return (
        float(reference),
        {name: float(value / reference) for name, value in mean.items()},
        float(summary / reference),
    )


# ── scanning ──────────────────────────────────────────────────────────────────────────────────────


def _tilt(rng: np.random.Generator, degrees: tuple[float, float]) -> np.ndarray:
    """A rotation (3, 3) about a random axis by a random angle."""
    axis = rng.normal(size=3)
    return Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.deg2rad(rng.uniform(*degrees))).as_matrix()


def _scan_grid(
    rng: np.random.Generator, voxel_mm: tuple[float, ...], fov_mm: np.ndarray, axes: tuple[str, ...], centre: np.ndarray
) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and oblique affine of a scan: stored axes in the order of a code, tilted, anisotropic, round ``centre``."""
    code = axes[rng.integers(len(axes))]
    direction = np.zeros((3, 3))
    for stored, (axis, sign) in enumerate(axcodes2ornt(code)):
        direction[int(axis), stored] = sign
    shape = tuple(int(np.ceil(mm / v)) for mm, v in zip(np.abs(direction.T) @ fov_mm, voxel_mm, strict=True))
    affine = np.eye(4)
    affine[:3, :3] = _tilt(rng, (3, 9)) @ direction * np.array(voxel_mm)
    affine[:3, 3] = centre + rng.uniform(-4, 4, 3) - affine[:3, :3] @ (np.array(shape) - 1) / 2
    header = nib.Nifti1Header()
    header.set_qform(affine, code=1)
    return shape, header.get_qform()  # what a float32 quaternion can hold, so that qform and sform agree


def _sample(
    template: _Template,
    maps: list[tuple[np.ndarray, int]],
    field: np.ndarray,
    world_to_mni: np.ndarray,
    shape: tuple[int, ...],
    affine: np.ndarray,
    reach_mm: float,
) -> list[np.ndarray]:
    """Maps of the anatomy grid as they lie in a scan's voxels: one interpolation through affine and deformation.

    ``maps`` holds pairs of a map and its spline order; farther than ``reach_mm`` from the brain all is 0.
    """
    spacing = template.grid.voxel_mm
    step = float(np.mean(np.linalg.norm(affine[:3, :3], axis=0)))
    matrix = np.linalg.inv(template.grid.affine) @ world_to_mni @ affine  # scan voxel → anatomy voxel, affine part
    index = np.ix_(*(np.arange(n) for n in shape))
    linear = [sum(matrix[c, i] * index[i] for i in range(3)) + matrix[c, 3] for c in range(3)]  # 3 × (X, Y, Z)
    limits = np.array(template.grid.shape) - 1
    nearest = [np.clip(np.rint(axis), 0, limit).astype(np.intp) for axis, limit in zip(linear, limits, strict=True)]
    head = template.shell[tuple(nearest)] <= reach_mm  # most of a scan is air: leave it out
    points = np.stack([axis[head] for axis in linear])  # (3, N)
    points += np.stack([ndimage.map_coordinates(f, points, order=1, mode="nearest") for f in field]) / spacing
    sampled = []
    for source, order in maps:
        if order and step > 1.2 * spacing:  # a voxel averages over its size
            source = ndimage.gaussian_filter(source, 0.35 * np.sqrt(step**2 - spacing**2) / spacing)
        whole = np.zeros(shape, source.dtype)
        whole[head] = ndimage.map_coordinates(source, points, order=order, mode="constant")
        sampled.append(whole)
    return sampled


@dataclass(frozen=True)
class _Visit:
    """One person at one time: what both scanners look at."""

    settings: PhantomConfig
    template: _Template
    tissues: tuple[np.ndarray, ...]
    own: dict[str, np.ndarray]  # by tracer: uptake of one's own, which nothing foretells
    field: np.ndarray  # displacement on the anatomy grid
    person_to_mni: np.ndarray
    decades: float  # of age, from AGE_CENTRE
    sex: float  # women 1, men −1

    @property
    def margin(self) -> float:
        """How far the scalp reaches from the brain, in mm."""
        return _SCALP_MM[-1] if self.settings.scalp else 0.0

    def uptake(
        self, tracer: str, name: str, *, load: float, stage: float | np.ndarray, white: float = 0.0,
        own: np.ndarray | float = 0.0,
    ) -> np.ndarray:  # fmt: skip
        """`_uptake` of this person, with the scalp where there is one."""
        decades, sex = self.settings.age_effect * self.decades, self.settings.sex_effect * self.sex
        uptake = _uptake(self.template, self.tissues, tracer, name, load=load, stage=stage, white=white, own=own,
                         decades=decades, sex=sex)  # fmt: skip
        return uptake + 0.35 * (_scalp(self.template) > 0.3) if self.settings.scalp else uptake

    def scan(
        self, rng: np.random.Generator, voxel_mm: tuple[float, ...], fov_mm: float, axes: tuple[str, ...],
        centre: np.ndarray, world_to_person: np.ndarray, *maps: tuple[np.ndarray, int],
    ) -> tuple[np.ndarray, list[np.ndarray]]:  # fmt: skip
        """A scan's affine, and maps as they lie in its voxels; ``fov_mm`` more than the usual field of view."""
        shape, affine = _scan_grid(rng, voxel_mm, np.array(_FOV_MM) + fov_mm + 1.8 * self.margin, axes, centre)
        to_mni, reach = self.person_to_mni @ world_to_person, 16 + self.margin
        return affine, _sample(self.template, list(maps), self.field, to_mni, shape, affine, reach)


def _visit(config: Config, index: int, person: dict[str, Any], record: dict[str, Any]) -> _Visit:
    """Of a person's and a session's truth, with its deformation."""
    settings = config.cohort.phantom
    template, decades = _template(settings.anatomy_mm), (record["age"] - AGE_CENTRE) / 10
    rng = _rng(config.seed, index, _FIELD)
    ribbon = 0.04 * _smooth_field(rng, template, 60, (10, 22))  # thickness of one's own: the MRI shows it
    shared = _smooth_field(rng, template, 40, (14, 28))
    return _Visit(
        settings=settings,
        template=template,
        tissues=_tissues(template, settings.age_atrophy * decades, record["severity"], ribbon),
        own={tracer: 0.06 * (0.6 * shared + 0.8 * _smooth_field(rng, template, 40, (14, 28))) for tracer in TRACERS},
        field=_displacement_on_axes(record["deformation"], template.axes),
        person_to_mni=np.array(person["person_to_mni"]),
        decades=decades,
        sex={"F": 1.0, "M": -1.0}[person["sex"]],
    )


def _scan_t1(rng: np.random.Generator, visit: _Visit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1-weighted image in scanner units, its affine, and the pose of the head (person → world)."""
    settings, template = visit.settings, visit.template
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = _tilt(rng, (1, 8)), rng.uniform(-15, 15, 3)
    contrast = [_T1[tissue] * rng.normal(1, 0.03) for tissue in ("gm", "wm", "csf")]
    signal = sum(level * tissue for level, tissue in zip(contrast, visit.tissues, strict=True))
    if settings.scalp:
        signal = signal + _scalp(template)
    affine, (signal, brain) = visit.scan(
        rng, settings.t1_voxel_mm, 0, _T1_AXES, pose[:3, 3], np.linalg.inv(pose), (signal, 1), (template.brain, 1)
    )
    for axis, n in enumerate(signal.shape):  # bias field: the exponential of a quadratic
        u = np.linspace(-1, 1, n)
        bias = np.exp(rng.normal(0, 0.06) * u + rng.normal(0, 0.07) * u**2)
        signal *= bias.reshape([-1 if i == axis else 1 for i in range(3)]).astype(np.float32)
    noise = settings.noise * _T1_NOISE * rng.uniform(0.7, 1.4)
    real, imaginary = (noise * rng.standard_normal(signal.shape, np.float32) for _ in range(2))
    signal = np.hypot(signal + real, imaginary)  # Rician
    if not settings.scalp:
        signal[brain < 0.5] = 0
    return np.rint(signal * rng.uniform(600, 1100)), affine, pose


def _scan_pet(
    rng: np.random.Generator, visit: _Visit, uptake: np.ndarray, tracer: str, pose: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, Any], tuple[float, dict[str, float], float]]:
    """PET in Bq/mL, its affine, what the scanner did, and the regions without noise (see `_regional`).

    ``pose`` is the T1's; the head moved in between, and the scale is the scan's own.
    """
    settings, template = visit.settings, visit.template
    middle, away = pose[:3, 3], rng.normal(size=3)
    away *= rng.uniform(2, 10) / np.linalg.norm(away)
    pet_to_t1 = np.eye(4)  # PET world → T1 world, turning about the middle of the head
    pet_to_t1[:3, :3] = _tilt(rng, (2, 8))
    pet_to_t1[:3, 3] = middle - pet_to_t1[:3, :3] @ (middle + away)
    to_person = np.linalg.inv(pose) @ pet_to_t1
    affine, (uptake, labels) = visit.scan(
        rng, settings.pet_voxel_mm, 12, _PET_AXES, middle + away, to_person, (uptake, 1), (template.labels, 0)
    )
    fwhm = float(rng.uniform(*settings.pet_fwhm_mm))
    image = ndimage.gaussian_filter(uptake, [fwhm / 2.3548 / v for v in settings.pet_voxel_mm])
    measured = _regional(image, labels, template.names, tracer)
    image /= np.float32(measured[0])  # the reference region, at this resolution, has SUVR 1
    frames = settings.pet_frames
    amount = settings.noise * _PET_NOISE * rng.uniform(0.8, 1.3) * np.sqrt(frames)
    spread = np.float32(amount) * np.sqrt(np.maximum(image, 0.01))
    series = [image + spread * _grain(rng, image.shape, settings.pet_voxel_mm) for _ in range(frames)]
    series = np.maximum(series[0] if frames == 1 else np.stack(series, axis=-1), 0)
    gain = float(np.exp(rng.normal(np.log(6000), 0.25)))  # Bq/mL where the SUVR is 1
    how = {"world_to_person": to_person, "pet_to_t1": pet_to_t1.tolist(), "fwhm_mm": fwhm, "gain": gain}
    return series * np.float32(gain), affine, how, measured


def _write_session(
    config: Config, index: int, number: int, person: dict[str, Any], record: dict[str, Any]
) -> list[str]:
    """Write the scans of one session, add transforms and regional SUVR to its ``record``; the files written."""
    settings, seed, root, name = config.cohort.phantom, config.seed, config.source_root, _name(index)
    stem, folder = f"{name}_{record['session']}", root / name / record["session"]
    record["deformation"] = _deformation(seed, index, record["ventricles"])
    visit = _visit(config, index, person, record)
    record |= {"scans": {}, "suvr": {}, "summary": {}}
    files, dates = [], []

    def keep(what: str, file: str, data: np.ndarray, affine: np.ndarray, sidecar: dict, how: dict, days: int) -> None:
        path = folder / file
        _save(path, data, affine)
        write_json(sidecar_path(path), sidecar)
        date = datetime.date.fromisoformat(record["date"]) + datetime.timedelta(days=days)
        dates.append((file, f"{date}T10:00:00"))
        relative = path.relative_to(root).as_posix()
        files.extend([relative, str(sidecar_path(relative))])
        to_mni = (visit.person_to_mni @ how["world_to_person"]).tolist()
        record["scans"][what] = {
            "path": relative,
            **how,
            "world_to_person": how["world_to_person"].tolist(),
            "world_to_mni": to_mni,
        }

    data, affine, pose = _scan_t1(_rng(seed, index, _SCAN, number, 0), visit)
    sidecar = _T1_SIDECAR | {"SkullStripped": not settings.scalp}
    keep("t1w", f"anat/{stem}_T1w.nii.gz", data, affine, sidecar, {"world_to_person": np.linalg.inv(pose)}, 0)
    for order, tracer in enumerate(TRACERS, 1):
        if tracer not in person["tracers"]:
            continue
        label = person["amyloid_tracer"] if tracer == "amyloid" else "18FAV1451"
        causes = {"load": record["load"], "stage": record["stage"], "white": person["white"][tracer]}
        uptake = visit.uptake(tracer, label, **causes, own=visit.own[tracer])
        rng = _rng(seed, index, _SCAN, number, order)
        data, affine, how, (_, regional, summary) = _scan_pet(rng, visit, uptake, tracer, pose)
        record["suvr"][tracer], record["summary"][tracer] = regional, summary
        sidecar = _pet_sidecar(label, settings.pet_frames, how["fwhm_mm"])
        keep(tracer, f"pet/{stem}_trc-{label}_pet.nii.gz", data, affine, sidecar, how, int(rng.integers(45)))

    path = folder / f"{stem}_scans.tsv"
    _write_tsv(path, pd.DataFrame(dates, columns=["filename", "acq_time"]))
    return [*files, path.relative_to(root).as_posix()]


def _scalp(template: _Template) -> np.ndarray:
    """Skull (dark) and scalp (bright) around the brain, as a T1 shows them; a simple shell."""
    shell = template.shell
    inner, skull, skin = _SCALP_MM
    return np.select([shell <= inner, shell <= skull, shell <= skin], [0.0, 0.12, 0.75], 0.0).astype(np.float32)


def _grain(rng: np.random.Generator, shape: tuple[int, ...], voxel_mm: tuple[float, ...]) -> np.ndarray:
    """Noise of unit variance with the grain of a reconstruction filter (4.5 mm FWHM)."""
    noise = rng.standard_normal(shape, np.float32)
    for axis, voxel in enumerate(voxel_mm):
        sigma = 4.5 / 2.3548 / voxel
        impulse = np.zeros(2 * int(4 * sigma + 1) + 1)
        impulse[len(impulse) // 2] = 1
        noise = ndimage.gaussian_filter1d(noise, sigma, axis=axis, mode="wrap")
        noise /= np.float32(np.linalg.norm(ndimage.gaussian_filter1d(impulse, sigma, mode="constant")))
    return noise


def _save(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Write int16, with a slope where the values are no whole numbers; both orientation codes 1 (scanner)."""
    whole = data.max() <= 32767 and bool((data == np.rint(data)).all())
    slope = 1.0 if whole else float(np.float32(data.max() / 32767))
    image = nib.Nifti1Image(np.rint(data / np.float32(slope)).astype(np.int16), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(slope, 0)  # no intercept: air stays exactly 0
    with atomic(path) as temporary:
        nib.save(image, temporary)


def _write_tsv(path: Path, frame: pd.DataFrame) -> None:
    write_text(path, frame.to_csv(sep="\t", index=False, lineterminator="\n", na_rep="n/a"))


# ── sidecars and texts ────────────────────────────────────────────────────────────────────────────

_T1_SIDECAR = {
    "Modality": "MR",
    "Manufacturer": "n/a (simulated)",
    "MagneticFieldStrength": 3,
    "RepetitionTime": 2.3,
    "EchoTime": 0.00298,
    "InversionTime": 0.9,
    "FlipAngle": 9,
}


def _pet_sidecar(name: str, frames: int, fwhm: float) -> dict[str, Any]:
    tracer = _TRACER_SIDECAR[name]
    length = tracer["frame"] / frames
    return {
        "Modality": "PT",
        "Manufacturer": "n/a (simulated)",
        "ManufacturersModelName": f"simulated, {fwhm:.1f} mm FWHM",
        "Units": "Bq/mL",
        "BodyPart": "brain",
        "TracerName": tracer["TracerName"],
        "TracerRadionuclide": "F18",
        "InjectedRadioactivity": tracer["InjectedRadioactivity"],
        "InjectedRadioactivityUnits": "MBq",
        "InjectedMass": "n/a",
        "InjectedMassUnits": "n/a",
        "SpecificRadioactivity": "n/a",
        "SpecificRadioactivityUnits": "n/a",
        "ModeOfAdministration": "bolus",
        "TimeZero": "10:00:00",
        "ScanStart": 0,
        "InjectionStart": tracer["start"],
        "FrameTimesStart": [round(length * i, 3) for i in range(frames)],
        "FrameDuration": [round(length, 3)] * frames,
        "AcquisitionMode": "list mode",
        "ImageDecayCorrected": True,
        "ImageDecayCorrectionTime": 0,
        "ReconMethodName": "simulated",
        "ReconMethodParameterLabels": ["none"],
        "ReconMethodParameterUnits": ["none"],
        "ReconMethodParameterValues": [0],
        "ReconFilterType": "Gaussian",
        "ReconFilterSize": 4.5,
        "AttenuationCorrection": "simulated",
    }


_COLUMNS = {
    "participant_id": {"Description": "phantom identifier: synthetic, no person stands behind it"},
    "sex": {"Description": "sex", "Levels": {"F": "female", "M": "male"}},
    "education_level": {"Description": "education", "Units": "years"},
    "age_bl": {"Description": "age at the first session", "Units": "years"},
    "diagnosis_sc": {
        "Description": "diagnosis at the first session",
        "Levels": {"CN": "cognitively normal", "MCI": "mild cognitive impairment", "AD": "dementia due to Alzheimer"},
    },
    "mmse_bl": {"Description": "Mini-Mental State Examination at the first session, 0 to 30"},
}

_SESSION_COLUMNS = {
    "examination_date": {"Description": "date of the MRI, made up"},
    "age": {"Description": "age at the MRI", "Units": "years"},
    "diagnosis": _COLUMNS["diagnosis_sc"] | {"Description": "diagnosis at this session"},
    "MMSE": {"Description": "Mini-Mental State Examination at this session, 0 to 30"},
}

_README = """Phantom cohort

These images are synthetic. No person was scanned; every name, date and score is made up (dates lie in the 1920s).
Anatomy starts from the MNI152 maps that nilearn packages and is deformed, aged and scanned by a seeded simulation.

Effects are large on purpose. Age and sex change the uptake of both tracers in ways that the MRI does not show, far
more than they do in people, so that a model trained for minutes can learn them. Diagnosis, age, sex, education and
MMSE follow the proportions of the paper's Table 1. Nothing measured here is a finding about people.

Layout as in BIDS: one T1w a session, amyloid PET (trc-18FAV45 or trc-18FFBB) and tau PET (trc-18FAV1451); some people
have one PET only, some a second session. Units of PET are Bq/mL with a scale that differs from scan to scan.
"""
