"""What can be measured of every preprocessed session, so that a person knows where to look.

Of left and right a T1 alone tells little: the MNI152 maps that nilearn packages are their own mirror images, so a head
that was flipped fits them exactly as well, and a single brain's torque (a right frontal and a left occipital pole that
protrude) is a tendency of the species, not a rule: it is measured and raises no flag. A PET against the T1 of the same
head tells much: both show the same asymmetric anatomy, and a PET that shares more with the T1 as its mirror image was
flipped on its way, or the T1 was.

Phantoms come with the transforms that made them, and so with the true error of each registration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from resdm.settings import TRACERS
from resdm_suite.anatomy import REFERENCE, Grid, mni_map, regions
from resdm_suite.cohorts.manifest import read_manifest
from resdm_suite.paths import sidecar_path
from resdm_suite.preprocessing import volumes
from resdm_suite.preprocessing.registration import displacement
from resdm_suite.profiles import Config

LIMITS = {
    "t1w_error_mm": (-np.inf, 3.0),
    "pet_error_mm": (-np.inf, 2.0),
    "reference_suvr": (0.98, 1.02),
    "mirror": (0.0, np.inf),
    "form_mm": (-np.inf, 20.0),
}
"""Measures of `session_quality` and the range beyond which they say so, beside `preprocessing.volumes.FLAGS`."""


def sessions(config: Config) -> list[dict[str, Any]]:
    """Every session of the manifest that is preprocessed, also one that ``cohort.exclude_flagged`` leaves out.

    Returns
    -------
    list of dict
        ``row`` of the manifest, ``record`` of preprocessing, ``digest`` of all that `session_quality` reads.

    Raises
    ------
    FileNotFoundError
        Where the cohort is not preprocessed.
    """
    index = config.volumes / "index.csv"
    if not index.is_file():
        raise FileNotFoundError(f"{index}: no preprocessed cohort; run `resdm preprocess` first")
    found = []
    code = b"".join(Path(file).read_bytes() for file in (__file__, volumes.__file__))
    for row in read_manifest(config.manifest, files=False).to_dict("records"):
        path, truth = volumes._record_path(config, row), config.work / "truth" / f"{row['person']}.json"
        if path.is_file():
            parts = [code, path.read_bytes(), truth.read_bytes() if truth.is_file() else b""]
            digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]
            found.append({"row": row, "record": json.loads(parts[1]), "digest": digest})
    return found


def session_quality(
    config: Config, row: dict[str, Any], record: dict[str, Any], stored: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Measures of one session.

    Parameters
    ----------
    config : Config
    row, record : dict
        Of the manifest, and of preprocessing, as `sessions` gives them.
    stored : mapping of str to ndarray (X, Y, Z), optional
        Its volumes, see `stored_volumes`; read where left out.

    Returns
    -------
    dict
        person, session, split; ``t1_correlation`` with the MNI152 T1; ``t1_torque``: (right − left frontal pole) +
        (left − right occipital pole), as shares of their tissue; ``axes`` in which the scans were stored and
        ``form_mm``, how far their sform and qform are apart at most. For each tracer: ``similarity`` with the T1 (NMI),
        ``mirror``: that minus the same of the mirrored PET; ``reference_mean`` in the scan's unit, ``reference_cov``,
        ``reference_suvr`` in the stored volume; ``suvr_low``, ``suvr_high``: 1st and 99th percentile in the brain,
        ``suvr_max`` and ``clipped_percent`` of brain voxels, before clipping. Where the truth is known
        `registration_error`. ``flags``: what to look at, in words.
    """
    grid, measured = Grid.of(config.preprocess.grid), record["measured"]
    brain, masks = mni_map("brain", grid), regions(grid)
    stored = stored_volumes(config, record) if stored is None else stored
    t1 = stored["t1w"]
    line: dict[str, Any] = {name: row[name] for name in ("person", "session", "split")}
    line |= {"t1_correlation": measured["t1_correlation"], "t1_torque": _torque(t1, grid)}
    line |= _headers(row)
    smooth_t1 = volumes._blur(t1, grid)[brain]
    for tracer in TRACERS:
        known = tracer in record["outputs"]
        found: dict[str, float] = dict.fromkeys(
            ("similarity", "mirror", "reference_mean", "reference_cov", "reference_suvr", "suvr_low", "suvr_high",
             "suvr_max", "clipped_percent"), np.nan
        )  # fmt: skip
        if known:
            pet = stored[tracer]
            low, high = suvr_range(config, record, tracer)
            suvr = low + (high - low) * pet
            pets = (volumes._blur(volume, grid)[brain] for volume in (pet, np.ascontiguousarray(pet[::-1])))
            straight, mirrored = (volumes._information(smooth_t1, volume) for volume in pets)
            found |= {name: measured[f"{tracer}_{name}"] for name in
                      ("similarity", "reference_mean", "reference_cov", "suvr_max", "clipped_percent")}  # fmt: skip
            found["mirror"] = straight - mirrored
            found["reference_suvr"] = float(suvr[masks[REFERENCE[tracer]]].mean())
            found["suvr_low"], found["suvr_high"] = np.percentile(suvr[brain], (1, 99)).tolist()
        line |= {f"{tracer}_{name}": value for name, value in found.items()}
    line |= registration_error(config, row, record)
    line["flags"] = "; ".join([*volumes._flags(measured), *_said(line)])
    return line


def registration_error(config: Config, row: dict[str, Any], record: dict[str, Any]) -> dict[str, float]:
    """Error of the stored transforms against those that made a phantom; nothing where no truth is known.

    Returns
    -------
    dict
        ``t1w_error_mm``: T1 → MNI, ``<tracer>_error_mm``: PET → T1; the mean distance over the MNI brain between where
        the stored and the true transform put a point. ``<tracer>_scale``: the reference mean over the scan's own
        planted scale (Bq/mL where the SUVR is 1, over the region as the deformation takes it into the person).
    """
    path = config.work / "truth" / f"{row['person']}.json"
    if not path.is_file():
        return {}
    visits = {visit["session"]: visit for visit in json.loads(path.read_text(encoding="utf-8"))["sessions"]}
    if row["session"] not in visits:
        return {}
    scans, points = visits[row["session"]]["scans"], brain_points()
    true = np.linalg.inv(scans["t1w"]["world_to_mni"])  # MNI → T1
    found = {
        "t1w_error_mm": displacement(_sidecar(config, record, "t1w")["transform"], true, points).mean(),
        **dict.fromkeys([f"{tracer}_{name}" for tracer in TRACERS for name in ("error_mm", "scale")], np.nan),
    }
    in_t1 = apply_affine(true, points)
    for tracer in TRACERS:
        if tracer in record["outputs"]:
            expected = np.linalg.inv(scans[tracer]["pet_to_t1"])
            apart = displacement(_sidecar(config, record, tracer)["t1_to_pet"], expected, in_t1)
            found[f"{tracer}_error_mm"] = apart.mean()
            found[f"{tracer}_scale"] = record["measured"][f"{tracer}_reference_mean"] / scans[tracer]["gain"]
    return {name: float(value) for name, value in found.items()}


@cache
def brain_points(voxel_mm: float = 8.0) -> np.ndarray:
    """MNI mm of the brain's voxels, (N, 3)."""
    grid = Grid((28, 28, 28), voxel_mm)
    return grid.mm()[:, mni_map("brain", grid)].T


def suvr_range(config: Config, record: dict[str, Any], tracer: str) -> tuple[float, float]:
    """What intensities 0 and 1 of a stored PET stand for, also where they are its own minimum and maximum."""
    low, high = _sidecar(config, record, tracer)["intensity"]["suvr_range"]
    return low, high


def stored_volumes(config: Config, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """The preprocessed volumes of a session, ``t1w`` and tracers → (X, Y, Z), intensities in [0, 1]."""
    grid = Grid.of(config.preprocess.grid)
    return {what: volumes._volume(config.volumes / path, grid) for what, path in record["outputs"].items()}


def _sidecar(config: Config, record: dict[str, Any], what: str) -> dict[str, Any]:
    path = sidecar_path(config.volumes / record["outputs"][what])
    return json.loads(path.read_text(encoding="utf-8"))


def _torque(t1: np.ndarray, grid: Grid) -> float:
    x, y, z = grid.mm()
    beside = (np.abs(x) > 6) & (np.abs(x) < 45) & (z < 25)
    frontal, occipital = beside & (y > 48) & (z > -15), beside & (y < -84) & (z > -20)

    def excess(pole: np.ndarray, side: np.ndarray) -> float:
        return float((t1[pole & side].sum() - t1[pole & ~side].sum()) / max(t1[pole].sum(), 1e-6))

    return excess(frontal, x > 0) + excess(occipital, x < 0)


def _headers(row: dict[str, Any]) -> dict[str, Any]:
    """How the scans were stored, from their headers; nothing of scans that were moved away since."""
    axes, apart = [], []
    for path in volumes._scans(row).values():
        if not Path(path).is_file():
            continue
        image = nib.load(path)
        axes.append("".join(nib.aff2axcodes(image.affine)))
        if isinstance(image, nib.Nifti1Pair):
            apart.append(volumes.form_difference(image))
    known = [mm for mm in apart if np.isfinite(mm)]
    return {"axes": " ".join(axes), "form_mm": max(known) if known else np.nan}


def _said(line: dict[str, Any]) -> list[str]:
    """Measures beyond `LIMITS`, in words."""
    said = []
    for name, value in line.items():
        scan, _, measure = name.partition("_")
        key = name if name in LIMITS else "pet_error_mm" if measure == "error_mm" else measure
        low, high = LIMITS.get(key, (-np.inf, np.inf))
        if isinstance(value, str) or np.isnan(value) or low <= value <= high:
            continue
        said.append({
            "mirror": f"{scan} fits the T1 better mirrored ({value:+.3f}): left and right may be exchanged",
            "reference_suvr": f"{scan} reference region at SUVR {value:.3f}, not 1",
            "form_mm": f"sform and qform {value:.0f} mm apart",
        }.get(key, f"{scan} registration {value:.1f} mm off the truth"))  # fmt: skip
    return said
