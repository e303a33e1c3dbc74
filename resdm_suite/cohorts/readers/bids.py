"""A BIDS data set with T1w and PET, or outputs of fMRIPrep and PETPrep.

The reader uses file names, ``participants.tsv``, ``sub-*_sessions.tsv``, ``sub-*_scans.tsv`` and the JSON of each PET,
which may stand in a folder above it (BIDS inheritance). It opens no image.

Outputs of fMRIPrep, sMRIPrep and PETPrep are known by ``GeneratedBy`` of their ``dataset_description.json``. Their
``desc-preproc`` images are used, with the transforms beside them; people, dates and, where there is none, PET come from
the raw data set.
"""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resdm.io import stored_json
from resdm_suite.cohorts.manifest import IDENTITY, SPACE, ManifestError
from resdm_suite.cohorts.matching import Cohort, assemble_manifest
from resdm_suite.cohorts.tables import day_number, images, raw_dataset, read_by_key, read_sidecar, to_age, to_date
from resdm_suite.paths import entity, tools_of, visible
from resdm_suite.profiles import Config

# names of columns, in lower case; the first that exists and is filled is used
_NAMES = {
    "age": ("age", "age_at_scan", "age_bl"),
    "sex": ("sex", "gender"),
    "diagnosis": ("diagnosis", "dx", "diagnosis_sc", "diagnosis_bl", "group"),
    "education": ("education", "education_level", "education_years", "years_education"),
    "mmse": ("mmse", "mmse_bl", "mmse_total"),
}
_BASELINE = {"diagnosis_sc", "diagnosis_bl", "mmse_bl"}  # true of the first session only
_NATIVE = {"T1w", "orig", "individual", "native", "scanner"}  # entities space- of scans as acquired
_TRACER_WORDS = {  # words that belong to one label alone
    "18FAV45": ("florbetapir", "av45", "amyvid", "fbp"),
    "18FFBB": ("florbetaben", "fbb", "neuraceq"),
    "18FFMM": ("flutemetamol", "vizamyl"),
    "18FNAV4694": ("nav4694", "azd4694", "flutafuranol"),
    "11CPIB": ("pib", "pittsburghcompound"),
    "18FAV1451": ("flortaucipir", "av1451", "t807", "tauvid", "ftp"),
    "18FMK6240": ("mk6240", "florquinitau"),
    "18FPI2620": ("pi2620",),
}
_UNITS = {"d": 1 / 365.25, "w": 7 / 365.25, "m": 1 / 12, "y": 1.0}  # in years, by the first letter
_UNIT = "(d|days?|w|weeks?|m|mo|months?|y|yrs?|years?)"
_BASELINE_LABELS = {"bl", "baseline", "sc", "screening"}
_PREPARED = {"fmriprep", "smriprep", "petprep"}  # by ``GeneratedBy``
_POOR = re.compile("_ce-|_acq-early", re.IGNORECASE)  # T1w after contrast agent, PET of the early phase

Row = dict[str, Any]


def build_manifest(root: str | Path, config: Config) -> Cohort:
    """Find the sessions of a BIDS data set that have a T1w and at least one PET of a known tracer.

    Age, diagnosis and MMSE come from ``sub-*_sessions.tsv``, else from ``participants.tsv``. An age there is that of
    the first session; later ones add the years between, by dates, else by labels (``ses-M012``). Of several T1w or
    several PETs of one tracer in a session, the first by name is used; a T1w after contrast agent (``ce-``) and a PET
    of the early phase (``acq-early``) come last. The tracer is the file name's ``trc-`` entity, even if the sidecar
    differs; without it, the sidecar's ``TracerName``. PETs without attenuation correction (``rec-nac…``) and files
    named for another person or session are not used. Scans of one session come from one space: native, else
    ``space-MNI…``. Each such choice is noted.

    Days between scans come from ``acq_time`` in ``scans.tsv``. Across sessions (`assemble_manifest`), a scan without it
    has the day of its session: ``acq_time`` or ``examination_date`` in ``sessions.tsv``, else by the session's age.

    Columns of both tables that a profile's ``prior.fields`` name (`Config.attributes`) are read by their name.

    ``root`` holds ``participants.tsv`` and ``sub-*``; of outputs of fMRIPrep or PETPrep, ``cohort.tables`` or
    `raw_dataset` has the tables. Faults raise `ManifestError`, which names file, person and value.
    """
    root, notes = Path(root).absolute(), []
    expected = "expected a BIDS dataset (cohort.folder, or the given folder)"
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder; {expected}")
    raw = _raw_of_prepared(root, config, notes)
    tables = raw or root
    table = read_by_key(tables / "participants.tsv", "participant_id", "sub-", notes=notes)
    of_participants = _age_scale([tables / "participants.json"], notes)
    scans: list[Row] = []
    people: list[Row] = []
    for subject in (folder for folder in visible(root, "sub-*") if folder.is_dir()):
        if table and subject.name not in table:
            notes.append(f"{subject.name}: not in participants.tsv")
        visits, listed = _visits(subject, raw and raw / subject.name, config, notes)
        scans += listed
        sidecars = [tables / "sessions.json", tables / subject.name / f"{subject.name}_sessions.json"]
        scales = [_age_scale(sidecars, notes), of_participants]
        with_t1w = {scan["session"] for scan in listed if scan["target"] == "t1w"}  # nothing else is used
        for visit in visits:
            noted = notes if visit["session"] in with_t1w else []
            cells = table.get(subject.name, {})
            further = {name: visit["cells"].get(name) or cells.get(name, "") for name in config.attributes}
            key = {"person": subject.name, "session": visit["session"]}
            people.append(further | key | _person(visit, visits, cells, scales, noted))
        days = _session_days(visits)
        for scan in listed:
            scan["visit_day"], scan["by_age"] = days[scan["session"]]
    if not people:
        raise ManifestError(f"{root}: no sub-* folder; {expected}")
    absent = sorted(table.keys() - {row["person"] for row in people})
    if absent:
        notes.append(f"{len(absent)} people of participants.tsv have no folder ({absent[0]} …)")
    for label, count in sorted(Counter(scan["tracer"] for scan in scans if not scan["target"]).items()):
        notes.append(f"{count} PET of {label or 'no known tracer, by trc- or TracerName'}: not read")
    return assemble_manifest([s for s in scans if s["target"]], people, config, root, notes, "session, then day")


def _raw_of_prepared(root: Path, config: Config, notes: list[str]) -> Path | None:
    """The raw data set of outputs of fMRIPrep or PETPrep, or these themselves without one; None for other data."""
    tool = next((tool["Name"] for tool in tools_of(root) if str(tool.get("Name")).lower() in _PREPARED), "")
    if not tool:
        if config.cohort.tables is not None:
            fault = "its tables are its own participants.tsv and sessions.tsv; leave out cohort.tables and --tables"
            raise ManifestError(f"{root}: no outputs of fMRIPrep or PETPrep: {fault}")
        return None
    tables = config.cohort.tables
    raw = raw_dataset(root) if tables is None else config.work / tables
    if raw is None or not raw.is_dir():
        notes.append(f"{root}: outputs of {tool} without their raw data set, which has ages and sexes; give --tables")
        return root
    return raw


def _visits(subject: Path, raw: Path | None, config: Config, notes: list[str]) -> tuple[list[Row], list[Row]]:
    """List a person's sessions, with their times and their row of ``sessions.tsv``, and the scans.

    ``raw`` is the person's folder in the raw data set, where ``subject`` holds outputs of fMRIPrep or PETPrep.
    """
    person, source = subject.name, raw or subject
    table = read_by_key(source / f"{person}_sessions.tsv", "session_id", "ses-", notes=notes)
    visits: list[Row] = []
    scans: list[Row] = []
    names = sorted({visit.name for place in {subject, source} for visit in visible(place, "ses-*") if visit.is_dir()})
    prepared = _prepared_t1w(subject, source, names, notes) if raw else {}
    for name in names or [""]:
        folder, session = source / name, name or "ses-1"
        where, cells = f"{person} {session}", table.pop(session, {})
        days = _scan_days(folder, where, notes)
        text = cells.get("acq_time") or cells.get("examination_date") or ""
        day = to_date(text)
        if day is None:
            notes.append(f"{where}: no date in {person}_sessions.tsv: {text!r}")
        visit_day = day_number(day)
        if np.isnan(visit_day):
            by_label = day_number(to_date(session.removeprefix("ses-")))  # as ses-20120503
            visit_day = min(days.values(), default=by_label)
        key = {"person": person, "session": session}
        visits.append(key | {"cells": cells, "visit_day": visit_day, "years": _years_of(session)})
        if raw:
            files = prepared.get(name, [])
            files = files + (images(subject / name, "pet/*_desc-preproc_pet.nii*") or images(folder, "pet/*pet.nii*"))
        else:
            files = images(folder, "anat/*_T1w.nii*", "pet/*pet.nii*")
        listed = _scans(files, folder, key, days, config, notes)
        scans += [scan | _given_transform(scan, subject, prepared, name) for scan in listed] if raw else listed
    notes += [f"{person}: {session} of {person}_sessions.tsv has no folder" for session in table]
    if any(a["visit_day"] == b["visit_day"] and abs(a["years"] - b["years"]) > 0 for a, b in combinations(visits, 2)):
        notes.append(f"{person}: sessions of different times have one date; the dates are not used")
        for row in visits + scans:
            row |= {name: np.nan for name in ("visit_day", "day") if name in row}
    return visits, scans


def _years_of(session: str) -> float:
    """Years after baseline by a session's label (``ses-M012``, ``ses-2yr``, ``ses-bl``); NaN for other labels."""
    label = session.removeprefix("ses-").lower()
    match = re.fullmatch(rf"{_UNIT}(\d+)|(\d+){_UNIT}", label)
    if match:
        return int(match[2] or match[3]) * _UNITS[(match[1] or match[4])[0]]
    return 0.0 if label in _BASELINE_LABELS else np.nan


def _prepared_t1w(subject: Path, raw: Path, names: list[str], notes: list[str]) -> dict[str, list[Path]]:
    """Prepared T1w by session; one of all sessions belongs to the first that has a raw T1w, else to the first."""
    found = {name: images(subject / name, "anat/*_desc-preproc_T1w.nii*") for name in names or [""]}
    if names and (whole := images(subject, "anat/*_desc-preproc_T1w.nii*")):
        home = [name for name in names if images(raw / name, "anat/*_T1w.nii*")] or names
        if len(home) > 1:
            notes.append(f"{subject.name}: one T1w of all sessions; it is taken for that of {home[0]}")
        found[home[0]] = found[home[0]] or whole
    return found


def _given_transform(scan: Row, subject: Path, prepared: dict[str, list[Path]], name: str) -> Row:
    """The transform beside a prepared scan, and the T1w to which that of a PET leads; empty in MNI152 space."""
    path = Path(scan["path"])
    if scan["space"] or not path.is_relative_to(subject):
        return {}
    start, kind = path.name.partition("_desc-")[0], "T1w_to-MNI152" if scan["target"] == "t1w" else "petref_to-"
    files = [file for file in visible(path.parent, f"{start}_from-{kind}*_xfm.*") if file.suffix in (".h5", ".txt")]
    if scan["target"] == "t1w":  # the templates of 2009 are nearest to the suite's
        return {"transform": str(min(files, key=lambda file: "MNI152NLin2009" not in file.name, default=""))}
    t1w = [native for session in ([name] if prepared.get(name) else prepared) for native in prepared[session]
           if "_space-" not in native.name]  # fmt: skip
    leading_to_it = (str(file) for file in files if entity(file.name, "to") in ("T1w", "anat"))
    given = IDENTITY if entity(path.name, "space") == "T1w" else next(leading_to_it, "")
    return {"transform": given, "onto": str(t1w[0])} if len(t1w) == 1 else {}


def _scans(
    files: list[Path], folder: Path, key: dict[str, str], days: dict[str, float], config: Config, notes: list[str]
) -> list[Row]:
    """List the T1w and the PETs of one session, by name; an unread PET has no target."""
    where = " ".join(key.values())
    scans = []
    for path in sorted(files, key=lambda path: bool(_POOR.search(path.name))):
        name, is_pet = path.name, path.parent.name == "pet"
        space = "" if entity(name, "space") in _NATIVE else entity(name, "space")
        owner = re.match(r"sub-[^_]+(_ses-[^_]+)?_", name)
        labels = "_".join([key["person"], *([folder.name] if folder.name == key["session"] else [])]) + "_"
        if owner and not (labels.startswith(owner[0]) or owner[0].startswith(labels)):
            notes.append(f"{where}: {name} is named for {owner[0][:-1]}; not used")
        elif re.search("_rec-nac", name, re.IGNORECASE):
            notes.append(f"{where}: {name} has no attenuation correction; not used")
        elif "_pvc-" in name:
            notes.append(f"{where}: {name} is corrected for partial volume, unlike other PETs; not used")
        elif space and not space.startswith(SPACE):
            notes.append(f"{where}: {name} is in space {space}; not used")
        else:
            label = _tracer(path, where, config, notes) if is_pet else ""
            target = config.cohort.tracers.get(label, "") if is_pet else "t1w"
            scan = {"target": target, "tracer": label, "path": str(path)}
            scan["day"] = days.get(name, days.get(raw_name(name), np.nan))
            scans.append(key | scan | {"space": space})
    first = {(scan["target"], scan["tracer"]): Path(scan["path"]).name for scan in reversed(scans) if scan["target"]}
    notes += [f"{where}: {name} is the only {label or 'T1w'}, though it is after contrast agent or of the early phase"
              for (_, label), name in first.items() if _POOR.search(name)]  # fmt: skip
    return scans


def raw_name(name: str) -> str:
    """Name of the raw image of which one with this name is derived, as a table of scans lists it."""
    return re.sub("_(space|res|desc|suvr)-[^_]+", "", name)


def _scan_days(folder: Path, where: str, notes: list[str]) -> dict[str, float]:
    """Read the days in a session's ``scans.tsv``, by the scan's file name."""
    days, present = {}, {path.name for path in folder.glob("*/*")}
    for path in visible(folder, "*_scans.tsv")[:1]:
        for scan, cells in read_by_key(path, "filename", notes=notes).items():
            day, name = to_date(cells.get("acq_time", "")), Path(scan).name
            if day is None:
                notes.append(f"{where}: {path.name} has no date for {scan}: {cells['acq_time']!r}")
            elif not pd.isna(day):
                days[name] = day_number(day)
            if re.search(r"_(T1w|pet)\.nii", name) and name not in present:
                notes.append(f"{where}: {scan} of {path.name} is not there")
    return days


def _age_scale(paths: list[Path], notes: list[str]) -> float:
    """Years in one unit of a table's ages, by the ``Units`` of its JSON; of several the last that has the column."""
    entries = {name.lower(): (path, entry) for path in paths for name, entry in (stored_json(path) or {}).items()}
    for path, entry in (entries[name] for name in _NAMES["age"] if name in entries):
        unit = str(entry.get("Units", "")).lower() if isinstance(entry, dict) else ""
        if re.fullmatch(_UNIT, unit) and unit[0] != "y":
            note = f"{path.name}: ages are in {unit}; they are changed to years"
            notes += [note] * (note not in notes)  # one for all people
            return _UNITS[unit[0]]
    return 1.0


def _person(visit: Row, visits: list[Row], participant: dict[str, str], scales: list[float], notes: list[str]) -> Row:
    """Read age, sex, diagnosis, education and MMSE; unreadable cells stay text.

    Entry ``age_of_visit`` of the visit is set, to NaN where the age may be that of another session.
    """
    where, row = f"{visit['person']} {visit['session']}", {}
    visit["age_of_visit"] = np.nan
    dated = not any(np.isnan(other["visit_day"]) for other in visits)
    first = min(visits, key=lambda other: np.nan_to_num(other["visit_day"] if dated else other["years"], nan=np.inf))
    for column, names in _NAMES.items():
        for cells, scale in zip((visit["cells"], participant), scales, strict=True):
            name = next((name for name in names if cells.get(name)), None)
            if name is None or (name in _BASELINE and cells is participant and visit is not first):
                continue
            row[column] = cells[name]
            age = to_age(cells[name]) if column == "age" else None
            if age is None:
                break
            years = _years_between(first, visit) if cells is participant else 0.0
            if cells is participant and visit is first and visit["years"] > 0 and name != "age_bl":
                late = f"{visit['years']:.1f} years after baseline by its label"
                notes.append(f"{where}: age of participants.tsv is taken as that of this session, {late}")
            if name == "age_bl" and cells is participant:
                years += np.nan_to_num(first["years"])
            elif np.isnan(years):
                years = 0.0
                notes.append(f"{where}: age of participants.tsv, which may be that of another session")
            if years > 0:
                notes.append(f"{where}: age of participants.tsv plus {years:.1f} years since the first session")
            row["age"] = cells[name] if scale == 1 and years == 0 else age * scale + years
            if cells is not participant or name == "age_bl":
                visit["age_of_visit"] = age * scale + years
            break
    return row


def _years_between(first: Row, visit: Row) -> float:
    """Years from the first session to a later one, by their days, else by their labels; or NaN."""
    if visit is first:
        return 0.0
    by_day = (visit["visit_day"] - first["visit_day"]) / 365.25
    return visit["years"] - np.nan_to_num(first["years"]) if np.isnan(by_day) else by_day


def _session_days(visits: list[Row]) -> dict[str, tuple[float, bool]]:
    """Day of a person's sessions, and whether it comes from ages (365.25 days a year) because there is no date."""
    dated = [visit for visit in visits if not np.isnan(visit["visit_day"])]
    start = next((visit for visit in dated or visits if not np.isnan(visit["age_of_visit"])), None)
    days = {}
    for visit in visits:
        day, by_age = visit["visit_day"], bool(np.isnan(visit["visit_day"]))
        if by_age and start and not np.isnan(visit["age_of_visit"]):
            day = round(365.25 * (visit["age_of_visit"] - start["age_of_visit"]))
            day += start["visit_day"] if dated else 0.0
        days[visit["session"]] = day, by_age
    return days


def _tracer(scan: Path, where: str, config: Config, notes: list[str]) -> str:
    """Label of a PET by its file name, else by ``TracerName`` of its sidecar; empty where neither names one tracer."""
    stated, sidecar, known = entity(scan.name, "trc"), read_sidecar(scan), config.cohort.tracers
    if sidecar is None:
        notes.append(f"{where}: the sidecar of {scan.name} cannot be read as JSON; it is not used")
        sidecar = {}
    if stated not in known:
        labels = tracer_labels(stated or sidecar.get("TracerName", ""), known)
        if len(labels) != 1:
            return stated
        read = f": trc-{stated} is read as" if stated else " has no trc-; its sidecar's TracerName is"
        notes.append(f"{where}: {scan.name}{read} {labels[0]}")
        return labels[0]
    for key, value in conflicting_tracers(sidecar, stated):
        notes.append(f"{where}: sidecar of {scan.name} has {key} {value!r}; the file name's tracer {stated} is used")
    return stated


def conflicting_tracers(sidecar: dict[str, Any], label: str) -> list[tuple[str, object]]:
    """Entries (key, value) of a PET's sidecar that name another tracer than ``label``."""
    entries = [(key, sidecar.get(key, "")) for key in ("TracerName", "Radiopharmaceutical")]
    return [(key, value) for key, value in entries if (labels := tracer_labels(value)) and label not in labels]


def tracer_labels(text: object, known: Iterable[str] = ()) -> list[str]:
    """BIDS labels of the tracers that a text names; of tracers in ``known`` also by the label without its isotope."""
    words = re.sub(r"[^a-z0-9]", "", str(text).lower())
    names = {label: (re.sub(r"^\d+[A-Z]", "", label).lower(),) for label in known} | _TRACER_WORDS
    return [label for label, its in names.items() if any(name in words for name in its)]
