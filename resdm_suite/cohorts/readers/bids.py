"""A BIDS data set with T1w and PET.

The reader uses file names, ``participants.tsv``, ``sub-*_sessions.tsv``, ``sub-*_scans.tsv`` and the JSON beside each
PET; it opens no image.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resdm_suite.cohorts.manifest import SPACE, ManifestError
from resdm_suite.cohorts.matching import Cohort, assemble_manifest
from resdm_suite.cohorts.tables import (
    day_number,
    images,
    read_by_key,
    to_age,
    to_date,
    to_diagnosis,
    to_number,
    to_sex,
    visible,
)
from resdm_suite.paths import sidecar_path
from resdm_suite.profiles import Config

# names of columns, in lower case; the first that exists and is filled is used
_NAMES = {
    "age": ("age", "age_at_scan", "age_bl"),
    "sex": ("sex", "gender"),
    "diagnosis": ("diagnosis", "dx", "diagnosis_sc", "diagnosis_bl", "group"),
    "education": ("education", "education_level", "education_years", "years_education"),
    "mmse": ("mmse", "mmse_bl", "mmse_total"),
}
_BASELINE = {"age_bl", "diagnosis_sc", "diagnosis_bl", "mmse_bl"}  # true of the first session only
_NATIVE = {"T1w", "orig", "individual", "native", "scanner"}  # entities space- of scans as acquired
_TRACER_WORDS = {  # words of a sidecar that belong to one label alone
    "18FAV45": ("florbetapir", "av45", "amyvid"),
    "18FFBB": ("florbetaben", "fbb", "neuraceq"),
    "18FAV1451": ("flortaucipir", "av1451", "t807", "tauvid"),
}


def build_manifest(root: str | Path, config: Config) -> Cohort:
    """Find the sessions of a BIDS data set that have a T1w and at least one PET of a known tracer.

    Age, diagnosis and MMSE come from ``sub-*_sessions.tsv``, else from ``participants.tsv``. An age there is that of
    the first session; later ones add the months in their labels (``ses-M012``), else the days between. Of several T1w
    or several PETs of one tracer in a session, the first by name is used. The tracer is the file name's ``trc-``
    entity, even if the sidecar differs; without it, the sidecar's ``TracerName``. Scans of one session come from one
    space: native, else ``space-MNI…``. Each such choice is noted.

    Days between scans come from ``acq_time`` in ``scans.tsv``. Across sessions (`assemble_manifest`), a scan without it
    has the day of its session: ``acq_time`` or ``examination_date`` in ``sessions.tsv``, else by the session's age.

    ``root`` holds ``participants.tsv`` and ``sub-*``. Faults raise `ManifestError`, which names file, person and value.
    """
    root = Path(root).absolute()
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder; expected a BIDS dataset (cohort.folder, or the given folder)")
    table = read_by_key(root / "participants.tsv", "participant_id", "sub-")
    empty = pd.Series(dtype=str)
    notes: list[str] = []
    scans: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = []
    for subject in visible(folder for folder in root.glob("sub-*") if folder.is_dir()):
        person = subject.name
        if table is not None and person not in table.index:
            notes.append(f"{person}: not in participants.tsv")
        participant = table.loc[person] if table is not None and person in table.index else empty
        sessions = read_by_key(subject / f"{person}_sessions.tsv", "session_id", "ses-")
        first = None
        for folder in visible(folder for folder in subject.glob("ses-*") if folder.is_dir()) or [subject]:
            session = folder.name if folder != subject else "ses-1"
            visit = sessions.loc[session] if sessions is not None and session in sessions.index else empty
            key = {"person": person, "session": session}
            scan_days = _scan_days(folder, f"{person} {session}", notes)
            listed = _scans(folder, key, scan_days, config, notes)
            day = to_date(visit.get("acq_time") or visit.get("examination_date") or "")
            if day is None:
                text = visit.get("acq_time") or visit["examination_date"]
                notes.append(f"{person} {session}: no date in {person}_sessions.tsv: {text!r}")
            visit_day = min(scan_days.values(), default=np.nan) if pd.isna(day) else day_number(day)
            months = re.fullmatch(r"ses-M0*(\d+)", session)
            time = {"visit_day": visit_day, "months": int(months[1]) if months else np.nan}
            years = 0.0 if first is None else _years_between(first, time)
            has_t1w = any(scan["target"] == "t1w" for scan in listed)  # else nothing of the person is used
            row = _person(key, participant, visit, years, first is None, notes if has_t1w else [])
            people.append(key | time | row)
            scans += listed
            first = first or time
    if not people:
        raise ManifestError(f"{root}: no sub-* folder; expected a BIDS dataset (cohort.folder, or the given folder)")
    days = _session_days(people)
    for scan in scans:
        scan["visit_day"], scan["by_age"] = days[scan["person"], scan["session"]]
    return assemble_manifest(scans, people, config, root, notes, "session, then day")


def _scans(
    folder: Path, key: dict[str, str], days: dict[str, float], config: Config, notes: list[str]
) -> list[dict[str, Any]]:
    """List the T1w and the PETs of one session, by name."""
    where = " ".join(key.values())
    scans = []
    for path in images([*folder.glob("anat/*_T1w.nii*"), *folder.glob("pet/*pet.nii*")]):
        space = re.search(r"_space-([A-Za-z0-9]+)_", path.name)
        label = _tracer(path, where, notes) if path.parent.name == "pet" else ""
        target = config.cohort.tracers.get(label) if path.parent.name == "pet" else "t1w"
        if target is None:
            continue
        if space and space[1] not in _NATIVE and not space[1].startswith("MNI"):
            notes.append(f"{where}: {path.name} is in space {space[1]}; not used")
            continue
        scan = {"target": target, "tracer": label, "path": str(path), "day": days.get(str(path), np.nan)}
        scans.append(key | scan | {"space": SPACE if space and space[1] not in _NATIVE else ""})
    return scans


def _scan_days(folder: Path, where: str, notes: list[str]) -> dict[str, float]:
    """Read the days in a session's ``scans.tsv``, by the scan's path."""
    path = next(iter(visible(folder.glob("*_scans.tsv"))), None)
    table = read_by_key(path, "filename") if path else None
    days = {}
    for name, text in () if table is None or "acq_time" not in table else table["acq_time"].items():
        date = to_date(text)
        if date is None:
            notes.append(f"{where}: {path.name} has no date for {name}: {text!r}")
        elif not pd.isna(date):
            days[str(folder / name)] = day_number(date)
    return days


def _years_between(first: dict[str, float], time: dict[str, float]) -> float:
    """Years from the first session to a later one, by the months in their labels, else by their days; or NaN."""
    if not np.isnan(time["months"]):
        return (time["months"] - np.nan_to_num(first["months"])) / 12
    return (time["visit_day"] - first["visit_day"]) / 365.25


def _person(
    key: dict[str, str], participant: pd.Series, visit: pd.Series, years: float, first: bool, notes: list[str]
) -> dict[str, float | str]:
    """Read age, sex, diagnosis, education and MMSE, ``years`` after the first session.

    ``age_of_visit`` is NaN where the age may be that of another session.
    """
    where = " ".join(key.values())
    cells: dict[str, str] = {}
    age, of_visit = np.nan, False
    for column, names in _NAMES.items():
        for source in (visit, participant):
            name = next((name for name in names if source.get(name)), None)
            later = name in _BASELINE and source is participant and not first
            if name is None or (later and column != "age"):
                continue
            cells[column] = source[name]
            if column == "age":
                of_visit = source is visit or name in _BASELINE
                age = to_age(source[name], where, notes)
                if later:
                    age += years
                elif source is participant and years > 0:
                    age += years
                    notes.append(f"{where}: age of participants.tsv plus {years:.1f} years since the first session")
                elif source is participant and np.isnan(years):
                    notes.append(f"{where}: age of participants.tsv, which may be that of another session")
            break
    return {
        "age": age,
        "education": to_number(cells.get("education", ""), where, "education"),
        "mmse": to_number(cells.get("mmse", ""), where, "mmse"),
        "sex": to_sex(cells.get("sex", ""), where),
        "diagnosis": to_diagnosis(cells.get("diagnosis", ""), where, notes),
        "age_of_visit": age if of_visit else np.nan,
    }


def _session_days(people: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, bool]]:
    """Day of every session, and whether it comes from ages (365.25 days a year) because there is no date."""
    days = {}
    for _, visits in pd.DataFrame(people).groupby("person"):
        dated = visits["visit_day"].notna()
        known = visits[visits["age_of_visit"].notna() & (dated | ~dated.any())]
        for visit, by_age in zip(visits.itertuples(), ~dated, strict=True):
            day = visit.visit_day
            if by_age and len(known) and not np.isnan(visit.age_of_visit):
                start = known.iloc[0]
                day = round(365.25 * (visit.age_of_visit - start["age_of_visit"]))
                day += start["visit_day"] if dated.any() else 0.0
            days[visit.person, visit.session] = day, by_age
    return days


def read_sidecar(scan: str | Path) -> dict[str, Any] | None:
    """Read the JSON beside a scan: empty where there is none, None where it cannot be read."""
    path = sidecar_path(scan)
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _tracer(scan: Path, where: str, notes: list[str]) -> str:
    """Label of a PET by its file name, else by ``TracerName`` of its sidecar; empty where neither names one tracer."""
    entity, sidecar = re.search(r"_trc-([A-Za-z0-9]+)_", scan.name), read_sidecar(scan)
    name = sidecar_path(scan).name
    if entity is None:
        labels = tracer_labels((sidecar or {}).get("TracerName", ""))
        if len(labels) != 1:
            return ""
        notes.append(f"{where}: {scan.name} has no trc-; its sidecar's TracerName is {labels[0]}")
        return labels[0]
    used = f"the file name's tracer {entity[1]} is used"
    if sidecar is None:
        notes.append(f"{where}: {name} cannot be read as JSON; {used}")
    for key, value in conflicting_tracers(sidecar or {}, entity[1]):
        notes.append(f"{where}: {name} has {key} {value!r}; {used}")
    return entity[1]


def conflicting_tracers(sidecar: dict[str, Any], label: str) -> list[tuple[str, object]]:
    """Entries (key, value) of a PET's sidecar that name another tracer than ``label``."""
    conflicts = []
    for key in ("TracerName", "Radiopharmaceutical"):
        value = sidecar.get(key, "")
        labels = tracer_labels(value)
        if labels and label not in labels:
            conflicts.append((key, value))
    return conflicts


def tracer_labels(text: object) -> list[str]:
    """BIDS labels of the tracers that a sidecar's text names."""
    words = re.sub(r"[^a-z0-9]", "", str(text).lower())
    return [label for label, names in _TRACER_WORDS.items() if any(name in words for name in names)]
