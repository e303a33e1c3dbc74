"""A stored cohort of a few people on a 16³ grid: volumes, sidecars, template, predictions, as the stages write them.

And sessions of a manifest, without any file behind.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from resdm.io import write_csv, write_json
from resdm_suite.anatomy import SUMMARY, Grid, mni_map, regions
from resdm_suite.cohorts.manifest import EMPTY
from resdm_suite.paths import image_path, sidecar_path, synthetic_path
from resdm_suite.profiles import CohortConfig, Config, GridConfig, PhantomConfig, PreprocessConfig

LABELS = {"amyloid": "18FAV45", "tau": "18FAV1451"}
RANGES = {"amyloid": (0.0, 2.5), "tau": (0.2, 3.2)}
GRID = Grid((16, 16, 16), 12.0)


def make_config(root: Path, **changes) -> Config:
    """A profile on `GRID`."""
    cohort = CohortConfig(kind="phantom", phantom=PhantomConfig())
    settings = PreprocessConfig(grid=GridConfig(GRID.shape, GRID.voxel_mm), suvr_range=RANGES)
    return Config(**{"profile": "tiny", "cohort": cohort, "preprocess": settings, "root": root} | changes)


def save(path: Path, array: np.ndarray, affine: np.ndarray = GRID.affine, suvr_range=None) -> Path:
    """A NIfTI with its sidecar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(np.float32), affine), path)
    if suvr_range is not None:
        sidecar = sidecar_path(path)
        write_json(sidecar, {"intensity": {"kind": "fixed", "suvr_range": list(suvr_range)}})
    return path


def person(seed: int) -> dict[str, np.ndarray]:
    """T1 and both PETs of one made-up person, intensities in [0, 1]."""
    rng = np.random.default_rng(seed)
    brain, gm, wm, t1 = (mni_map(name, GRID) for name in ("brain", "gm", "wm", "t1"))
    masks = regions(GRID)
    volumes = {"mri": np.clip(t1 + 0.03 * rng.normal(size=GRID.shape), 0, 1) * brain}
    for tracer in LABELS:
        load = rng.uniform(0, 1)
        suvr = 0.9 * gm + 1.1 * wm + 0.1 * brain
        for region in SUMMARY[tracer]:
            suvr = suvr + load * masks[region]
        suvr = gaussian_filter(suvr, 0.4) + 0.05 * rng.normal(size=GRID.shape)
        low, high = RANGES[tracer]
        volumes[tracer] = np.clip((suvr - low) / (high - low), 0, 1) * brain
    return volumes


def make_cohort(root: Path, methods: dict[str, float], people: int = 6) -> tuple[Config, pd.DataFrame]:
    """Write a cohort and the predictions of methods that blur (σ in voxels) and add noise.

    Person 0 has two sessions, person 1 no tau PET; two more people are in the training split.
    """
    config = make_config(root)
    sessions = [(f"sub-{i:04d}", f"ses-M{12 * k:03d}") for i in range(people + 2) for k in range(2 if i == 0 else 1)]
    rows, trained = [], []
    for number, (who, session) in enumerate(sessions):
        volumes = person(number)
        split = "train" if int(who[-4:]) >= people else "test"
        row = {"person": who, "session": session, "split": split}
        row |= {"age": 60.0 + number, "sex": "FM"[number % 2], "diagnosis": ("CN", "MCI", "AD")[number % 3]}
        row |= {"education": 12 + number % 5, "mmse": 30 - number}
        row["t1w"] = f"{who}/{session}/anat/{who}_{session}_T1w.nii.gz"
        save(config.volumes / row["t1w"], volumes["mri"])
        for tracer, label in LABELS.items():
            present = not (tracer == "tau" and who == "sub-0001")
            path = image_path("", f"{who}_{session}", "preproc", label).as_posix()
            row |= {f"present_{tracer}": int(present), f"{tracer}_tracer": label if present else ""}
            row |= {tracer: path if present else "", f"{tracer}_suvr": 1.2, f"{tracer}_status": number % 2}
            if present:
                save(config.volumes / path, volumes[tracer], suvr_range=RANGES[tracer])
            if split == "test":
                for method, blur in methods.items():
                    noise = 0.01 * np.random.default_rng([number, len(method)]).normal(size=GRID.shape)
                    made = np.clip(gaussian_filter(volumes[tracer], blur) + noise, 0, 1) * mni_map("brain", GRID)
                    save(synthetic_path(config.predictions(method), who, session, label), made)
        if split == "train":
            trained.append(volumes)
        rows.append(row)
    for tracer in LABELS:
        save(config.volumes / f"template_{tracer}.nii.gz", np.mean([v[tracer] for v in trained], axis=0))
    write_csv(config.volumes / "index.csv", pd.DataFrame(rows))
    return config, pd.DataFrame(rows)


def sessions(people=60, seed=0):
    """Sessions of made-up people: three diagnoses, some with one PET, some with two visits, no file behind."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(people):
        sex, diagnosis = rng.choice(["F", "M"]), rng.choice(["CN", "MCI", "AD"], p=[0.4, 0.4, 0.2])
        tracers = rng.choice(["both", "amyloid", "tau"], p=[0.9, 0.06, 0.04])
        for visit in range(1 + (rng.random() < 0.2)):
            row = EMPTY | {"person": f"sub-{number:04d}", "session": f"ses-M{12 * visit:03d}"}
            row |= {"age": round(rng.uniform(60, 85), 1) + visit, "sex": sex, "diagnosis": diagnosis}
            row |= {"t1w": f"/scans/{number}_{visit}_T1w.nii.gz", "education": 16.0, "mmse": 28.0}
            for tracer, label in (("amyloid", "18FAV45"), ("tau", "18FAV1451")):
                if tracers in ("both", tracer):
                    row |= {tracer: f"/scans/{number}_{visit}_{label}.nii.gz", f"{tracer}_tracer": label}
            rows.append(row)
    return pd.DataFrame(rows)


def write_volumes(config: Config, splits: Sequence[str], without_tau: Collection[int] = ()) -> None:
    """One session a person, by split, on disk as preprocessing leaves it; some people have no tau PET."""
    rows, array = [], np.zeros((len(splits), 3, *GRID.shape), np.float16)
    for i, split in enumerate(splits):
        who, volumes = f"sub-{i:04d}", person(i)
        array[i] = [volumes["mri"], volumes["amyloid"], volumes["tau"]]
        row = {"person": who, "session": "ses-M000", "split": split, "age": 60.0 + i, "sex": "FM"[i % 2]}
        for tracer, label in LABELS.items():
            present = not (tracer == "tau" and i in without_tau)
            path = f"{who}/{tracer}.nii.gz"
            save(config.volumes / path, volumes[tracer], suvr_range=RANGES[tracer])
            row |= {f"present_{tracer}": int(present), f"{tracer}_tracer": label if present else "", tracer: path}
        rows.append(row)
    write_csv(config.volumes / "index.csv", pd.DataFrame(rows))
    write_json(config.volumes / "cohort.json", {
        "grid": {"shape": list(GRID.shape), "voxel_mm": GRID.voxel_mm}, "settings": config.digest("preprocess"),
        "sessions": len(rows), "digest": "abc",
    })  # fmt: skip
    np.save(config.volumes / "cohort.npy", array)
