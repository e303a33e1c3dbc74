"""Quality measures of every preprocessed session, for a person to look at.

A T1 alone shows little about left and right: nilearn's MNI152 maps are symmetric, so a flipped head fits
them equally well. A brain's torque (right frontal and left occipital poles that protrude) is a tendency of the
species; it is measured and raises no flag. A PET and the T1 of the same head show the same asymmetric anatomy, so a
PET that shares more information with the T1 as its mirror image was flipped, or the T1 was.

Phantoms come with the transforms that made them, and so with the true error of each registration.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from resdm.settings import TRACERS
from resdm_suite.anatomy import REFERENCE, Grid, brain_points, mni_map, regions
from resdm_suite.cohorts.manifest import read_manifest
from resdm_suite.paths import sidecar_path
from resdm_suite.preprocessing.measures import blur, limits, measure_flags, shared_information
from resdm_suite.preprocessing.resampling import displacement
from resdm_suite.preprocessing.scans import VolumeError, form_difference, open_image
from resdm_suite.preprocessing.volumes import record_path, require_index, session_scans
from resdm_suite.profiles import MEASURED, Config
from resdm_suite.records import checked, parsing, read_json

REVISION = 1
"""Raise it whenever the same volumes give other measures or montages, so that old ones are made again."""

_MEASURES = ("similarity", "mirror", "reference_mean", "reference_cov", "reference_suvr", "suvr_low", "suvr_high",
             "suvr_max", "clipped_percent")  # fmt: skip


@dataclass(frozen=True)
class PreprocessedSession:
    """A session as it is stored.

    Parameters
    ----------
    config : Config
    row, record : dict
        Of the manifest, and of preprocessing.
    true_scans : dict
        Transforms and scales that made a phantom's scans; empty if unknown.
    digest : str
        Of all that `session_quality` reads.
    """

    config: Config
    row: dict[str, Any]
    record: dict[str, Any]
    true_scans: dict[str, Any]
    digest: str

    @property
    def name(self) -> str:
        """``sub-1_ses-2``."""
        return f"{self.row['person']}_{self.row['session']}"

    def path(self, what: str) -> Path:
        """The volume of ``t1w`` or a tracer."""
        return self.config.volumes / self.record["outputs"][what]

    def sidecar(self, what: str) -> dict[str, Any]:
        """The sidecar of a volume."""
        return read_json(sidecar_path(self.path(what)))

    def volume(self, what: str) -> np.ndarray:
        """A stored volume (X, Y, Z), intensities in [0, 1]."""
        return Grid.of(self.config.preprocess.grid).read(checked(self.path(what)))

    def suvr(self, tracer: str, intensity: np.ndarray) -> np.ndarray:
        """A stored PET's intensities in SUVR."""
        low, high = self.sidecar(tracer)["intensity"]["suvr_range"]
        return low + (high - low) * intensity

    def shown_volumes(self) -> dict[str, np.ndarray]:
        """T1 in [0, 1] and PETs in SUVR, as montages show them."""
        volumes = {what: self.volume(what) for what in self.record["outputs"]}
        return {what: volume if what == "t1w" else self.suvr(what, volume) for what, volume in volumes.items()}


def sessions(config: Config) -> list[PreprocessedSession]:
    """Every preprocessed session of the manifest, those that ``cohort.exclude_flagged`` leaves out included.

    Raises
    ------
    FileNotFoundError
        The cohort is not preprocessed.
    """
    require_index(config)
    preprocessed = []
    for row in read_manifest(config.manifest, files=False, attributes=config.attributes).to_dict("records"):
        path, truth_path = record_path(config, row), config.work / "truth" / f"{row['person']}.json"
        if path.is_file():
            record = checked(path).read_bytes()
            truth = checked(truth_path).read_bytes() if truth_path.is_file() else b"{}"
            digest = hashlib.sha256(b"%d" % REVISION + hashlib.sha256(record).digest() + truth).hexdigest()[:16]
            with parsing(truth_path if truth_path.is_file() else path):
                visits = {visit["session"]: visit["scans"] for visit in json.loads(truth).get("sessions", [])}
            with parsing(path):
                stored = json.loads(record)
                _ = stored["outputs"], stored["measured"]
            preprocessed.append(PreprocessedSession(config, row, stored, visits.get(row["session"], {}), digest))
    return preprocessed


def session_quality(session: PreprocessedSession) -> dict[str, Any]:
    """Measures of one session.

    Returns
    -------
    dict
        person, session, split; ``t1_correlation`` with the MNI152 T1; ``t1_torque``: (right − left frontal pole) +
        (left − right occipital pole), as shares of their tissue; ``axes`` in which the scans are stored and
        ``form_mm``, the largest distance between their sform and qform. For each tracer: ``similarity`` with the T1
        (NMI), ``mirror``: that minus the same of the mirrored PET; ``reference_mean`` in the scan's unit,
        ``reference_cov``, ``reference_suvr`` in the stored volume; ``suvr_low``, ``suvr_high``: 1st and 99th percentile
        in the brain, ``suvr_max`` and ``clipped_percent`` of brain voxels, before clipping. For phantoms
        `registration_error`. ``registration``: in words, of scans that were placed without one. ``flags``: suspected
        faults, in words.
    """
    grid, measured = Grid.of(session.config.preprocess.grid), session.record["measured"]
    brain, masks = mni_map("brain", grid), regions(grid)
    t1 = session.volume("t1w")
    line: dict[str, Any] = {name: session.row[name] for name in ("person", "session", "split")}
    line |= {"t1_correlation": measured["t1_correlation"], "t1_torque": _torque(t1, grid)}
    line |= _stored_orientation(session.row)
    blurred_t1 = blur(t1, grid)[brain]
    for tracer in TRACERS:
        values: dict[str, float] = dict.fromkeys(_MEASURES, np.nan)
        if tracer in session.record["outputs"]:
            pet = session.volume(tracer)
            suvr = session.suvr(tracer, pet)
            both = pet, np.ascontiguousarray(pet[::-1])
            straight, mirrored = (shared_information(blurred_t1, blur(volume, grid)[brain]) for volume in both)
            values |= {name: measured[f"{tracer}_{name}"] for name in MEASURED}
            values["mirror"] = straight - mirrored
            values["reference_suvr"] = float(suvr[masks[REFERENCE[tracer]]].mean())
            values["suvr_low"], values["suvr_high"] = np.percentile(suvr[brain], (1, 99)).tolist()
        line |= {f"{tracer}_{name}": value for name, value in values.items()}
    line |= registration_error(session)
    stated = {what: session.sidecar(what).get("registration", "") for what in session.record["outputs"]}
    if any(stated.values()):
        line["registration"] = "; ".join(f"{what}: {text}" for what, text in stated.items() if text)
    line["flags"] = "; ".join([*measure_flags(measured), *_quality_flags(line)])
    return line


def registration_error(session: PreprocessedSession) -> dict[str, float]:
    """Error of the stored transforms against those that made a phantom; empty if they are unknown.

    Returns
    -------
    dict
        ``t1w_error_mm``: T1 → MNI, ``<tracer>_error_mm``: PET → T1; the mean distance over the MNI brain between a
        point's positions by the stored and by the true transform. ``<tracer>_scale``: the reference mean divided by
        the scan's planted scale (Bq/mL at SUVR 1, over the region as the deformation moves it into the person).
    """
    scans, points = session.true_scans, brain_points()
    if not scans:
        return {}
    mni_to_t1 = np.linalg.inv(scans["t1w"]["world_to_mni"])
    errors = {"t1w_error_mm": displacement(session.sidecar("t1w")["transform"], mni_to_t1, points).mean()}
    errors |= dict.fromkeys([f"{tracer}_{name}" for tracer in TRACERS for name in ("error_mm", "scale")], np.nan)
    in_t1 = apply_affine(mni_to_t1, points)
    for tracer in TRACERS:
        if tracer in session.record["outputs"]:
            t1_to_pet = np.linalg.inv(scans[tracer]["pet_to_t1"])
            errors[f"{tracer}_error_mm"] = displacement(session.sidecar(tracer)["t1_to_pet"], t1_to_pet, in_t1).mean()
            errors[f"{tracer}_scale"] = session.record["measured"][f"{tracer}_reference_mean"] / scans[tracer]["gain"]
    return {name: float(value) for name, value in errors.items()}


def _torque(t1: np.ndarray, grid: Grid) -> float:
    x, y, z = grid.mm()
    lateral = (np.abs(x) > 6) & (np.abs(x) < 45) & (z < 25)
    frontal, occipital = lateral & (y > 48) & (z > -15), lateral & (y < -84) & (z > -20)

    def excess(pole: np.ndarray, side: np.ndarray) -> float:
        return float((t1[pole & side].sum() - t1[pole & ~side].sum()) / max(t1[pole].sum(), 1e-6))

    return excess(frontal, x > 0) + excess(occipital, x < 0)


def _stored_orientation(row: dict[str, Any]) -> dict[str, Any]:
    """Axes and sform against qform of the scans, from their headers; scans that cannot be read now are skipped."""
    images = []
    for path in session_scans(row).values():
        with suppress(VolumeError):
            images.append(open_image(Path(path), header_only=True))
    apart = [form_difference(image) for image in images if isinstance(image, nib.Nifti1Pair)]
    axes = " ".join("".join(nib.aff2axcodes(image.affine)) for image in images)
    return {"axes": axes, "form_mm": max((mm for mm in apart if np.isfinite(mm)), default=np.nan)}


def _quality_flags(line: dict[str, Any]) -> list[str]:
    """Measures of quality control beyond `LIMITS`, in words."""
    flags = []
    for name, value in line.items():
        scan, _, measure = name.partition("_")
        low, high = limits(name)
        text = {
            "mirror": f"{scan} fits the T1 better mirrored ({value:+.3f}): left and right may be exchanged",
            "reference_suvr": f"{scan} reference region at SUVR {value:.3f}, not 1",
            "mm": f"sform and qform {value:.0f} mm apart",
            "error_mm": f"{scan} registration {value:.1f} mm off the truth",
        }.get(measure) if isinstance(value, float) else None  # fmt: skip
        if text and (value < low or value > high):
            flags.append(text)
    return flags
