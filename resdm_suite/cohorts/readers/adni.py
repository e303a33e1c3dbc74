"""An ADNI download → the manifest: Clinica BIDS, Clinica CAPS or LONI's raw tree, with the study's tables.

Read are names of files and folders, the study tables (`cohorts.readers.adni_tables`) and Clinica's own; no image is
opened. Where the study tables are silent or absent, Clinica's ``sessions.tsv``, ``scans.tsv`` and ``participants.tsv``
tell dates, age, diagnosis and MMSE, so that a BIDS folder alone will do; with the tables come SUVR, status and
Centiloid. Clinica's ``a_stat`` and ``tau_stat`` are no labels of PET (they hold CSF) and are never read.

Scans of Clinica's CAPS lie in MNI space: ``space`` says so, and preprocessing resamples them. Their SUVR is that of
Clinica's reference (pons, or cerebellum and pons), and for tau there is no inferior-cerebellar one; preprocessing
divides every PET by the mean of its own reference region, so this is undone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from resdm.settings import AGE_RANGE, TRACERS
from resdm_suite.cohorts.manifest import COLUMNS, EMPTY, SPACE, ManifestError
from resdm_suite.cohorts.matching import Found, close_manifest, match_scans
from resdm_suite.cohorts.readers.adni_tables import (
    AMYLOID_LABELS,
    PASSED,
    TAU_LABELS,
    StudyTables,
    Table,
    day_of,
    diagnosis_of,
    read_tables,
    rid_of,
)
from resdm_suite.profiles import Config

_T1 = re.compile(r"\bmp ?rage|\bmpr\b|spgr|\bmt1\b|\bt1w?\b")
_PET = {
    "18FAV45": r"av ?45|florbetapir",
    "18FFBB": r"\bfbb\b|florbetaben",
    "18FNAV4694": r"nav ?4694",
    "11CPIB": r"\bpib\b",
    "18FAV1451": r"av ?1451|flortaucipir|\bftp\b",
    "18FMK6240": r"mk ?6240",
    "18FPI2620": r"pi ?2620",
}
_LEVELS = {  # words of a sequence's name → `CohortConfig.pet_level`; what is none of these is raw
    "co registered dynamic": "dynamic",
    "co registered averaged": "averaged",
    "standardized image and voxel size": "standardized",
    "uniform resolution": "uniform_8mm",
    "uniform 6mm res": "uniform_6mm",
}
_ORDER = ("standardized", "averaged", "dynamic", "raw", "uniform_8mm", "uniform_6mm")  # where the wanted is not there
_PTID = re.compile(r"(\d{3})_S_(\d{4,6})")
_TARGET = dict.fromkeys(AMYLOID_LABELS.values(), "amyloid") | dict.fromkeys(TAU_LABELS.values(), "tau")


class Scan(NamedTuple):
    """A file and what its place says. ``what`` is T1w or a PET's BIDS label; ``exact``: the date is the scan's own."""

    person: str
    session: str
    what: str
    path: Path
    date: pd.Timestamp
    exact: bool
    image: str = ""


def build_manifest(root: str | Path, config: Config) -> Found:
    """Find ADNI's T1 and PET scans, bring together those of one time, and say who the people were then.

    Scans are matched by date (`resdm_suite.cohorts.matching.match_scans`): LONI's is in the folder's name; Clinica's is
    ``acq_time`` of ``scans.tsv``, else for a PET the day of its row in UC Berkeley's table, else the day of the visit.
    Age, diagnosis and MMSE are those at the T1 scan; SUVR, status and Centiloid those of the table's row nearest to
    the PET. A row that fails UC Berkeley's QC is not used: its scan stays, and is measured by preprocessing. Where a
    table has no status, the cut-offs of ``cohort`` give it. Every choice is noted.

    Parameters
    ----------
    root : path
        Holds ``sub-*`` (Clinica BIDS), ``subjects/sub-*`` (Clinica CAPS), or LONI's folders of PTIDs, itself or in a
        folder such as ``ADNI``.
    config : Config
        Its ``cohort``: ``tables`` (folder of the tables; by default ``root``), ``tracers``, ``pet_level``, ``match``
        and the cut-offs.

    Returns
    -------
    Found

    Raises
    ------
    ManifestError
        No such layout, a table that cannot be read, nobody to use, or a value that cannot be.
    """
    root, cohort = Path(root).absolute(), config.cohort
    tau = [label for label, target in cohort.tracers.items() if target == "tau"]
    if len(tau) > 1:
        raise ManifestError(
            f"cohort.tracers names {len(tau)} tau tracers ({', '.join(tau)}), whose SUVRs are on scales of their own; "
            "keep one of them"
        )
    layout, folder = _layout(root)
    given = root if cohort.tables is None else config.work / cohort.tables
    if not given.is_dir():
        raise ManifestError(f"{given}: no such folder of tables; correct cohort.tables")
    tables, clinica = read_tables(given), _read_clinica([folder, given])
    notes = list(tables.notes)
    if layout == "LONI":
        if cohort.match.same_visit:
            raise ManifestError(f"{root}: LONI's tree files scans by day, not by visit; set match.same_visit: false")
        scans = _loni_scans(folder, config, notes)
    else:
        scans = _clinica_scans(folder, layout, config, tables, clinica, notes)
    if layout == "CAPS":
        notes.append(
            "scans of CAPS are in MNI space already and are resampled; their PETs come divided by Clinica's reference, "
            "and preprocessing divides them by its own (tau: inferior cerebellum)"
        )
    for label, count in sorted(Counter(s.what for s in scans if s.what not in ("T1w", *cohort.tracers)).items()):
        scale = " (another tau scale: never pooled)" if _TARGET.get(label) == "tau" else ""
        notes.append(f"{count} PET of {label}{scale}: not in cohort.tracers, not read")

    t1s = [
        (scan.person, scan.session, scan.date, str(scan.path))
        for scan in _one_a_session([scan for scan in scans if scan.what == "T1w"], notes)
    ]
    pets, measured = [], {}
    for scan in (scan for scan in scans if scan.what in cohort.tracers):
        date, measured[str(scan.path)] = _measured(scan, tables, config, notes)
        pets.append((scan.person, scan.session, date, cohort.tracers[scan.what], scan.what, str(scan.path)))
    bare = sum(not row for row in measured.values())
    if tables.pets and bare:
        notes.append(f"{bare} of {len(measured)} PET have no row in UC Berkeley's tables to use; they will be measured")
    matched = match_scans(
        pd.DataFrame(t1s, columns=["person", "session", "date", "t1w"]),
        pd.DataFrame(pets, columns=["person", "session", "date", "target", "tracer", "path"]),
        cohort.match,
        list(cohort.tracers),
    )
    rows = [
        EMPTY
        | {name: row[name] for name in matched.columns if name != "date"}
        | {"space": SPACE if layout == "CAPS" else ""}
        | {name: value for target in TRACERS for name, value in measured.get(row[target], {}).items()}
        | _told(row["person"], row["session"], row["date"], tables, clinica)
        for row in matched.to_dict("records")
    ]
    return close_manifest(pd.DataFrame(rows, columns=[*COLUMNS, "reason"]), config, root, notes)


# ── layouts ───────────────────────────────────────────────────────────────────────────────────────


def _layout(root: Path) -> tuple[str, Path]:
    """Which layout lies in a folder, and where it starts."""
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder; expected an ADNI download (cohort.folder, or the given folder)")

    def some(folder: Path, pattern: str) -> bool:
        return any(path.is_dir() and re.fullmatch(pattern, path.name) for path in folder.iterdir())

    found = []
    if some(root, "sub-.+"):
        found.append(("BIDS", root))
    if (root / "subjects").is_dir() and some(root / "subjects", "sub-.+"):
        found.append(("CAPS", root / "subjects"))
    found += [
        ("LONI", place)
        for place in [root, *sorted(path for path in root.iterdir() if path.is_dir())]
        if some(place, _PTID.pattern)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        said = ", ".join(f"{name} in {place}" for name, place in found)
        raise ManifestError(f"{root}: more than one layout: {said}; name one of these folders as the root")
    raise ManifestError(
        f"{root}: no ADNI download; looked for sub-* (Clinica BIDS), subjects/sub-* (Clinica CAPS) and folders of "
        "PTIDs, here or in a folder such as ADNI (LONI's tree)"
    )


def _clinica_scans(
    folder: Path, layout: str, config: Config, tables: StudyTables, clinica: _Clinica, notes: list[str]
) -> list[Scan]:
    """Scans of a BIDS dataset of Clinica's, or of its CAPS."""
    t1, pet = ("anat", "pet") if layout == "BIDS" else ("t1_linear", "pet_linear")
    scans = []
    for visit in sorted(path for path in folder.glob("sub-*/ses-*") if path.is_dir()):
        person, session = visit.parent.name, visit.name
        rid = _rid(person)
        day = clinica.sessions.get((rid, session), {}).get("examination_date", "")
        date = _clinica_day(day, f"{person} {session}: examination_date")
        if pd.isna(date):
            month = _month(session)
            date = pd.NaT if month is None else tables.visit(rid, month)
            start = tables.people.get(rid, {}).get("baseline", pd.NaT)
            if pd.isna(date) and month is not None and pd.notna(start):
                date = start + pd.Timedelta(days=round(month * 365.25 / 12))
                notes.append(f"{person} {session}: no day of the visit; {month} months after baseline are taken")
        of_kind: dict[str, list[Path]] = {}
        for path in _images([*visit.glob(f"{t1}/*_T1w.nii*"), *visit.glob(f"{pet}/*_pet.nii*")]):
            label = re.search(r"_trc-([A-Za-z0-9]+)_", path.name)
            if path.name.removesuffix(".gz").endswith("_T1w.nii"):
                of_kind.setdefault("T1w", []).append(path)
            elif label:
                of_kind.setdefault(label[1], []).append(path)
        for what, paths in of_kind.items():
            # the crop cuts at the edge of the head, where the grid of 192 mm still sees
            whole = [path for path in paths if "_desc-Crop_" not in path.name] or paths
            if len(whole) > 1 and what in ("T1w", *config.cohort.tracers):
                notes.append(f"{person} {session}: {len(whole)} {what}; {whole[0].name} is used")
            acquired = clinica.acquired.get((person, session, whole[0].name), pd.NaT)
            exact = pd.notna(acquired)
            scans.append(Scan(person, session, what, whole[0], acquired if exact else date, exact))
    if layout == "CAPS" and any("_desc-Crop_" in scan.path.name for scan in scans):
        notes.append("cropped scans (desc-Crop) are used where the uncropped are not there")
    return scans


def _loni_scans(folder: Path, config: Config, notes: list[str]) -> list[Scan]:
    """Scans of LONI's tree: PTID, sequence, date and time, image number, files."""
    found: dict[tuple[str, pd.Timestamp, str], dict[str, list[tuple[str, Path]]]] = {}
    dicom = 0
    for place in sorted(path for path in folder.glob("*/*/*/*") if path.is_dir() and _PTID.fullmatch(path.parts[-4])):
        ptid, sequence, stamp, image = place.parts[-4:]
        words = re.sub(r"[^a-z0-9]+", " ", sequence.lower())
        labels = [label for label, pattern in _PET.items() if re.search(pattern, words)]
        what = labels[0] if labels else "T1w" if _T1.search(words) else None
        if what is None:
            continue
        date = day_of(stamp[:10])
        if date is None or pd.isna(date):
            raise ManifestError(
                f"{place}: found {stamp!r} as date and time, expected 2012-05-03_09_12_33.0 or the like; "
                "restore the folder's name"
            )
        files = _images(place.iterdir())
        if not files:
            dicom += any(path.suffix.lower() in (".dcm", ".ima") for path in place.iterdir())
            continue
        if len(files) > 1:
            notes.append(f"{ptid} {image}: {len(files)} images; {files[0].name} is used")
        level = next((level for said, level in _LEVELS.items() if said in words), "raw")
        level = "T1w" if what == "T1w" else level
        found.setdefault((ptid, date, what), {}).setdefault(level, []).append((image, files[0]))
    if dicom:
        notes.append(f"{dicom} image folders hold DICOM only and are not read; convert them with dcm2niix")
    if not found:
        raise ManifestError(
            f"{folder}: no T1 and no PET as NIfTI in <PTID>/<sequence>/<date_time>/<image>/; {dicom} image folders "
            "hold DICOM only: convert them in place with dcm2niix"
        )
    scans, levels = [], Counter()
    wanted = config.cohort.pet_level
    order = [wanted, *(level for level in _ORDER if level != wanted)]
    for (ptid, date, what), by_level in found.items():
        level = "T1w" if what == "T1w" else min(by_level, key=order.index)
        # "Repeat" and later numbers come second
        images = sorted(by_level[level], key=lambda one: ("repeat" in one[1].parts[-4].lower(), len(one[0]), one[0]))
        if len(images) > 1:
            notes.append(f"{ptid} {date:%Y-%m-%d}: {len(images)} {what}; {images[0][0]} is used")
        if level not in ("T1w", wanted):
            levels[level] += 1
        site, rid = _PTID.fullmatch(ptid).groups()
        person, session = f"sub-ADNI{site}S{rid}", f"ses-{date:%Y%m%d}"
        image, path = images[0]
        scans.append(Scan(person, session, what, path, date, True, image.lstrip("IiDd")))
    for level, count in sorted(levels.items()):
        notes.append(f"{count} PET are not there at level {wanted}; {level} is used (cohort.pet_level)")
    return scans


def _images(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.name.endswith((".nii", ".nii.gz")))


def _one_a_session(scans: list[Scan], notes: list[str]) -> list[Scan]:
    """The first T1 of a session; layouts see to it already but for PTIDs of one person at two sites."""
    kept: dict[tuple[str, str], Scan] = {}
    for scan in scans:
        if kept.setdefault((scan.person, scan.session), scan) is not scan:
            notes.append(f"{scan.person} {scan.session}: {scan.path.name} is a second T1, not used")
    return list(kept.values())


# ── what Clinica's own tables say ─────────────────────────────────────────────────────────────────


class _Clinica(NamedTuple):
    """Rows of ``participants.tsv`` by RID, of ``sessions.tsv`` by RID and session, ``acq_time`` by file."""

    people: dict[int, dict[str, str]]
    sessions: dict[tuple[int, str], dict[str, str]]
    acquired: dict[tuple[str, str, str], pd.Timestamp]


def _read_clinica(folders: list[Path]) -> _Clinica:
    people: dict[int, dict[str, str]] = {}
    sessions: dict[tuple[int, str], dict[str, str]] = {}
    acquired: dict[tuple[str, str, str], pd.Timestamp] = {}
    for folder in dict.fromkeys(folders):
        if (folder / "participants.tsv").is_file():
            for rid, row in _rows(Table.read(folder / "participants.tsv", "\t", ("PARTICIPANT_ID",))):
                people.setdefault(rid, row)
        for path in sorted(folder.glob("sub-*/*_sessions.tsv")):
            for _, row in _rows(Table.read(path, "\t", ("SESSION_ID",), whole=False)):
                session = row["session_id"] if row["session_id"].startswith("ses-") else f"ses-{row['session_id']}"
                sessions.setdefault((_rid(path.parent.name), session), row)
        for path in sorted(folder.glob("sub-*/ses-*/*_scans.tsv")):
            for _, row in _rows(Table.read(path, "\t", ("FILENAME",), whole=False)):
                date = _clinica_day(row.get("acq_time", ""), f"{path}: acq_time of {row['filename']}")
                if pd.notna(date):
                    acquired[path.parent.parent.name, path.parent.name, Path(row["filename"]).name] = date
    return _Clinica(people, sessions, acquired)


def _rows(table: Table) -> list[tuple[int, dict[str, str]]]:
    """RID and cells of each row; names in small letters, what is missing left out."""
    columns = {name.lower(): table.column(name) for name in table.cells}
    return [
        (int(rid), {n: c[line] for n, c in columns.items() if c[line].lower() not in ("", "n/a", "nan", "na")})
        for line, rid in table.rids.items()
    ]


def _clinica_day(text: str, where: str) -> pd.Timestamp:
    date = day_of(text)
    if date is None:
        raise ManifestError(f"{where}: found {text!r}, expected a date, YYYY-MM-DD; correct the cell")
    return date


def _clinica_number(text: str, low: float, high: float, where: str) -> float:
    try:
        value = float(text) if text else np.nan
    except ValueError:
        value = np.inf
    if value < low or value > high:
        raise ManifestError(f"{where}: found {text!r}, expected a number from {low:g} to {high:g}; correct the cell")
    return value


def _rid(person: str) -> int:
    rid = rid_of(person)
    if rid is None:
        raise ManifestError(f"{person}: found a name without PTID, expected Clinica's sub-ADNI, site, S and RID")
    return rid


def _month(session: str) -> int | None:
    found = re.fullmatch(r"ses-M0*(\d+)", session)
    return int(found[1]) if found else None


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────


def _measured(scan: Scan, tables: StudyTables, config: Config, notes: list[str]) -> tuple[pd.Timestamp, dict[str, Any]]:
    """The day of a PET, and what UC Berkeley's row of it says."""
    target = config.cohort.tracers[scan.what]
    row = tables.pet(_rid(scan.person), scan.what, scan.date, scan.image)
    if row is None:
        return scan.date, {}
    date = scan.date if scan.exact else row["date"]
    if row["qc"] < PASSED:
        notes.append(
            f"{scan.person} {scan.session}: {row['source']} has qc_flag {row['qc']:g}, not used; the SUVR of the "
            f"{target} PET will be measured"
        )
        return date, {}
    cutoff = config.cohort.tau_cutoff if target == "tau" else config.cohort.amyloid_cutoff.get(scan.what, np.nan)
    status = row["status"]
    if pd.isna(status) and np.isfinite(row["suvr"]) and np.isfinite(cutoff):
        status = float(row["suvr"] >= cutoff)
    said = {f"{target}_suvr": row["suvr"], f"{target}_status": status}
    return date, said | ({"amyloid_centiloid": row["centiloid"]} if target == "amyloid" else {})


def _told(
    person: str, session: str, date: pd.Timestamp, tables: StudyTables, clinica: _Clinica
) -> dict[str, str | float]:
    """Age, sex, diagnosis, education and MMSE at a visit: the study's tables, else Clinica's."""
    rid, where = _rid(person), f"{person} {session}"
    known, told = tables.people.get(rid, {}), clinica.people.get(rid, {})
    visit, month = clinica.sessions.get((rid, session), {}), _month(session)

    def number(row: dict[str, str], name: str, low: float, high: float) -> float:
        return _clinica_number(row.get(name, ""), low, high, f"{where}: {name}")

    age = tables.age(rid, date)
    if np.isnan(age):
        age = number(visit, "age", *AGE_RANGE)
    if np.isnan(age) and month is not None:
        age = number(told, "age_bl", *AGE_RANGE) + month / 12
    sex = known.get("sex") or {"m": "M", "male": "M", "f": "F", "female": "F", "": ""}.get(told.get("sex", "").lower())
    if sex is None:
        raise ManifestError(f"{where}: found sex {told['sex']!r} in participants.tsv, expected M or F")
    first = told if month == 0 else {}  # what was true at baseline
    diagnosis = visit.get("diagnosis") or first.get("diagnosis_sc", "")
    mmse = tables.score(rid, date)
    if np.isnan(mmse):
        mmse = number(visit, "mmse", 0, 30)
    if np.isnan(mmse):
        mmse = number(first, "mmse_bl", 0, 30)
    return {
        "age": age,
        "sex": sex,
        "diagnosis": tables.diagnosis(rid, date) or diagnosis_of(diagnosis) or "",
        "education": known.get("education", number(told, "education_level", 0, 40)),
        "mmse": mmse,
    }
