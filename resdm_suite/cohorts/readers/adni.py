"""An ADNI download: Clinica BIDS, Clinica CAPS or LONI's raw tree, with the study's tables.

The reader uses names of files and folders, the study tables (`cohorts.readers.adni_tables`) and Clinica's tables; it
opens no image. Without study tables, dates, age, diagnosis and MMSE come from Clinica's ``sessions.tsv``, ``scans.tsv``
and ``participants.tsv``, so a BIDS folder alone is enough; the tables add SUVR, status and Centiloid. Clinica's
``a_stat`` and ``tau_stat`` are measured in cerebrospinal fluid and are never read.

Scans of Clinica's CAPS lie in MNI space (column ``space``) and are resampled. Their SUVR is relative to Clinica's
reference (pons, or cerebellum and pons; for tau there is no inferior-cerebellar one). Preprocessing divides every PET
by the mean of the suite's reference region, which undoes this.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from resdm_suite.cohorts.manifest import SPACE, ManifestError, status_by_cutoff
from resdm_suite.cohorts.matching import Cohort, assemble_manifest
from resdm_suite.cohorts.readers.adni_tables import AMYLOID_LABELS, PASSED, TAU_LABELS, StudyTables, read_tables, rid_of
from resdm_suite.cohorts.readers.bids import raw_name, tracer_labels
from resdm_suite.cohorts.tables import day_number, images, read_by_key, to_age, to_date
from resdm_suite.paths import entity, visible
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
_UNUSED = re.compile(  # PET without attenuation correction, CT, maps, masks
    r"nac(?![a-z])|\bno[nt]? ?ac\b|uncorrected|(no[nt]?|without|un) ?attenuation|attenuation(?! ?corr)|transmission"
    r"|\bac ?ct|\bct|\bmr ?ac\b|map\b|mask|segmentation"
)
_MRI = re.compile(  # sequences that are neither T1 nor PET
    r"flair|\bt2|\bpd\b|dti|dwi|diffusion|fmri|bold|\brest|asl\b|perfusion|cbf|locali[sz]er|\bloc\b|scout|survey|plane"
    r"|\bb[01]\b|field|\bgre\b|gradient|swi\b|hippo|calibration|\bepi\b|\btse\b|\bfse\b|haste|adc\b|phantom"
)
_LEVELS = {  # words of a sequence's name → `CohortConfig.pet_level`; else raw
    "co registered dynamic": "dynamic",
    "co registered averaged": "averaged",
    "standardized image and voxel size": "standardized",
    "uniform resolution": "uniform_8mm",
    "uniform 6mm res": "uniform_6mm",
}
_ORDER = ("standardized", "averaged", "dynamic", "raw", "uniform_8mm", "uniform_6mm")  # where the wanted is absent
_PTID = re.compile(r"(\d{3})_S_(\d{4,6})")
_TARGET = dict.fromkeys(AMYLOID_LABELS.values(), "amyloid") | dict.fromkeys(TAU_LABELS.values(), "tau")


class Scan(NamedTuple):
    """A file and the content of its path. ``what``: T1w or a BIDS label; ``exact``: the date is that of the scan."""

    person: str
    session: str
    what: str
    path: Path
    date: pd.Timestamp
    exact: bool
    image: str = ""


def build_manifest(root: str | Path, config: Config) -> Cohort:
    """Find ADNI's T1 and PET scans, pair those of one time, and add the demographics of that time.

    ``root`` holds ``sub-*`` (Clinica BIDS), ``subjects/sub-*`` (Clinica CAPS), or LONI's folders of PTIDs, itself or in
    a folder such as ``ADNI``; ``cohort.tables`` is the folder of the tables (by default ``root``).

    Scans are paired by date (`cohorts.matching.match_scans`). LONI's date is in the folder's name. Clinica's is
    ``acq_time`` of ``scans.tsv``, else for a PET the day of its row in UC Berkeley's table, else the visit's day. Age,
    diagnosis and MMSE are those at the T1 scan; SUVR, status and Centiloid come from the table's row nearest to the
    PET. A row that fails UC Berkeley's QC is not used: its scan stays, and preprocessing measures it. Where a table has
    no status, the cut-offs of ``cohort`` give it. Every choice is noted; faults raise `ManifestError`.
    """
    root, cohort = Path(root).absolute(), config.cohort
    layout, folder = _layout(root)
    given = root if cohort.tables is None else config.work / cohort.tables
    if not given.is_dir():
        raise ManifestError(f"{given}: no such folder of tables; correct cohort.tables")
    tables, notes = read_tables(given), []
    clinica = _read_clinica([folder, given], notes)
    notes = [*tables.notes, *notes]
    if tables.absent:
        notes.append(f"{given}: study tables that were not found: {', '.join(tables.absent)}")
    if layout == "LONI":
        if cohort.match.same_visit:
            raise ManifestError(f"{root}: LONI's tree files scans by day, not by visit; set match.same_visit: false")
        files = _loni_scans(folder, config, tables, notes)
    else:
        files = _clinica_scans(folder, layout, config, tables, clinica, notes)
    files = _one_label_per_person(files, notes)
    if layout == "CAPS":
        notes.append(
            "scans of CAPS are in MNI space already and are resampled; their PETs come divided by Clinica's reference, "
            "and preprocessing divides them by the suite's reference (tau: inferior cerebellum)"
        )
    for label, count in sorted(Counter(s.what for s in files if s.what not in ("T1w", *cohort.tracers)).items()):
        scale = " (another tau scale: never pooled)" if _TARGET.get(label) == "tau" else ""
        notes.append(f"{count} PET of {label}{scale}: not in cohort.tracers, not read")

    scans: list[dict[str, Any]] = []
    people: dict[tuple[str, str], dict[str, Any]] = {}
    space = SPACE if layout == "CAPS" else ""
    for scan in files:
        row = {"person": scan.person, "session": scan.session, "path": str(scan.path), "space": space}
        if scan.what in cohort.tracers:
            date, measured = _measured(scan, tables, config, notes)
            row |= {"target": cohort.tracers[scan.what], "tracer": scan.what, "day": day_number(date)} | measured
            scans.append(row)
        elif scan.what == "T1w" and (scan.person, scan.session) in people:  # PTIDs of one person at two sites
            notes.append(f"{scan.person} {scan.session}: {scan.path.name} is a second T1, not used")
        elif scan.what == "T1w":
            people[scan.person, scan.session] = _person(scan, tables, clinica, config.attributes)
            scans.append(row | {"target": "t1w", "day": day_number(scan.date)})
    pets = [scan for scan in scans if scan["target"] != "t1w"]
    unmeasured = sum("suvr" not in pet for pet in pets)
    if len(tables.pets) and unmeasured:
        notes.append(f"{unmeasured} of {len(pets)} PET have no usable row in UC Berkeley's tables and will be measured")
    return assemble_manifest(scans, list(people.values()), config, root, notes, "day")


# ── layouts ───────────────────────────────────────────────────────────────────────────────────────


def _layout(root: Path) -> tuple[str, Path]:
    """Recognise the layout of a folder, and where it starts."""
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder; expected an ADNI download (cohort.folder, or the given folder)")

    def holds(folder: Path, pattern: str) -> bool:
        return folder.is_dir() and any(p.is_dir() and re.fullmatch(pattern, p.name) for p in folder.iterdir())

    places = [("BIDS", root, "sub-.+"), ("CAPS", root / "subjects", "sub-.+")]
    places += [("LONI", folder, _PTID.pattern) for folder in [root, *visible(root, "*")]]
    layouts = [(name, folder) for name, folder, pattern in places if holds(folder, pattern)]
    if len(layouts) == 1:
        return layouts[0]
    if layouts:
        names = ", ".join(f"{name} in {folder}" for name, folder in layouts)
        raise ManifestError(f"{root}: more than one layout: {names}; name one of these folders as the root")
    raise ManifestError(
        f"{root}: no ADNI download; looked for sub-* (Clinica BIDS), subjects/sub-* (Clinica CAPS) and folders of "
        "PTIDs, here or in a folder such as ADNI (LONI's tree)"
    )


def _one_label_per_person(files: list[Scan], notes: list[str]) -> list[Scan]:
    """Give scans of one RID one label: a person who moved to another site has two PTIDs."""
    labels: dict[int | None, str] = {}
    for scan in files:
        labels.setdefault(rid_of(scan.person), scan.person)
    label_of = {scan.person: labels[rid_of(scan.person)] for scan in files}
    notes += [f"{other}: its RID is that of {label}; both are one person, {label}"
              for other, label in label_of.items() if other != label]  # fmt: skip
    return [scan._replace(person=label_of[scan.person]) for scan in files]


def _clinica_scans(
    folder: Path, layout: str, config: Config, tables: StudyTables, clinica: _Clinica, notes: list[str]
) -> list[Scan]:
    """List the scans of Clinica's BIDS or CAPS."""
    t1, pet = ("anat", "pet") if layout == "BIDS" else ("t1_linear", "pet_linear")
    scans, unknown = [], 0
    for visit in visible(folder, "sub-*/ses-*"):
        person, session = visit.parent.name, visit.name
        rid, month = rid_of(person), _month(session)
        if rid is None:
            notes.append(f"{person}: a name without PTID, expected Clinica's sub-ADNI, site, S and RID; not used")
            continue
        where = f"{person} {session}: examination_date"
        date = _day(clinica.sessions.get((rid, session), {}).get("examination_date", ""), where, notes)
        if pd.isna(date) and month is not None:
            date = tables.visits.get((rid, month), pd.NaT)
            start = tables.people.get(rid, {}).get("baseline", pd.NaT)
            if pd.isna(date) and pd.notna(start):
                date = start + pd.Timedelta(days=round(month * 365.25 / 12))
                notes.append(f"{person} {session}: no day of the visit; {month} months after baseline are taken")
        by_kind: dict[str, list[Path]] = defaultdict(list)
        for path in images(visit, f"{t1}/*_T1w.nii*", f"{pet}/*_pet.nii*"):
            if "_rec-nac" in path.name.lower():
                notes.append(f"{person} {session}: {path.name} has no attenuation correction; not used")
                continue
            kind = "T1w" if path.parent.name == t1 else _clinica_tracer(path.name)
            by_kind[kind].append(path)
        unknown += len(by_kind.pop("", []))
        for what, paths in by_kind.items():
            # the crop cuts at the edge of the head, inside the grid of 192 mm
            whole = [path for path in paths if "_desc-Crop_" not in path.name] or paths
            if len(whole) > 1 and what in ("T1w", *config.cohort.tracers):
                notes.append(f"{person} {session}: {len(whole)} {what}; {whole[0].name} is used")
            acquired = clinica.acquired.get((person, session, raw_name(whole[0].name)))
            scans.append(Scan(person, session, what, whole[0], acquired or date, acquired is not None))
    if layout == "CAPS" and any("_desc-Crop_" in scan.path.name for scan in scans):
        notes.append("cropped scans (desc-Crop) are used where there is no uncropped one")
    if unknown:
        notes.append(f"{unknown} PET without trc- and without a known tracer in acq-; not read")
    return scans


def _clinica_tracer(name: str) -> str:
    """Label of a PET by ``trc-``, else by ``acq-`` as in older versions; empty where neither names one tracer."""
    labels = tracer_labels(entity(name, "acq"))
    return entity(name, "trc") or (labels[0] if len(labels) == 1 else "")


_Images = dict[tuple[str, pd.Timestamp, str], dict[str, list[tuple[str, Path]]]]  # of a scan, by level


def _loni_images(folder: Path, tables: StudyTables, notes: list[str]) -> tuple[_Images, Counter[str]]:
    """List the images of LONI's tree: PTID, sequence, date and time, image number, files; count those without NIfTI."""
    named: _Images = {}
    by_table: _Images = {}
    unread: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for place in [path for path in visible(folder, "*/*/*/*") if path.is_dir() and _PTID.fullmatch(path.parts[-4])]:
        ptid, sequence, stamp, image = place.parts[-4:]
        words = re.sub(r"[^a-z0-9]+", " ", sequence.lower())
        files = images(place, "*")
        date = to_date(stamp.partition("_")[0])
        if not files:
            endings = {path.suffix.lower() for path in visible(place, "*") if path.is_file()}
            if endings:
                others["DICOM" if endings & {".dcm", ".ima"} else " and ".join(sorted(endings)) or "no ending"] += 1
            continue
        if _UNUSED.search(words):
            unread[f"{sequence}: without attenuation correction, or a CT, map or mask"] += 1
            continue
        if date is None or pd.isna(date):
            notes.append(f"{place}: found {stamp!r} as date and time, expected 2012-05-03_09_12_33.0 or the like; "
                         "not read; restore the folder's name")  # fmt: skip
            continue
        level = next((level for name, level in _LEVELS.items() if name in words), "raw")
        what = next((label for label, pattern in _PET.items() if re.search(pattern, words)), "")
        what, found = what or ("T1w" if _T1.search(words) else ""), named
        if not what and not _MRI.search(words):
            what, found = tables.tracer(rid_of(ptid), date, image.lstrip("IiDd"), words, level == "raw"), by_table
            if what:
                notes.append(f"{ptid} {image}: {sequence} names no tracer; by UC Berkeley's table it is {what}")
            else:
                unread[f"{sequence}: no T1, and no tracer by its name or UC Berkeley's table"] += 1
        if what:
            if len(files) > 1:
                notes.append(f"{ptid} {image}: {len(files)} images; {files[0].name} is used")
            by_level = found.setdefault((ptid, date, what), {})
            by_level.setdefault("T1w" if what == "T1w" else level, []).append((image, files[0]))
    notes += [f"{count} images of {reason}; not read" for reason, count in sorted(unread.items())]
    return by_table | named, others  # a PET without a named tracer beside one with it may be FDG


def _loni_scans(folder: Path, config: Config, tables: StudyTables, notes: list[str]) -> list[Scan]:
    """List the scans of LONI's tree, one of each kind and day, by level and number."""
    images_of, others = _loni_images(folder, tables, notes)
    found = {kind: f"{count} image folders hold {kind} only" for kind, count in sorted(others.items())}
    notes += [f"{text} and are not read; convert them {'with dcm2niix' if kind == 'DICOM' else 'to NIfTI'}"
              for kind, text in found.items()]  # fmt: skip
    if not images_of:
        raise ManifestError(
            f"{folder}: no T1 and no PET as NIfTI in <PTID>/<sequence>/<date_time>/<image>/; "
            f"{', '.join(found.values()) or '0 image folders hold DICOM only'}: convert them in place with dcm2niix"
        )
    scans, levels = [], Counter()
    wanted = config.cohort.pet_level
    order = ["T1w", wanted, *(level for level in _ORDER if level != wanted)]
    for (ptid, date, what), by_level in images_of.items():
        level = min(by_level, key=order.index)
        # repeats and later numbers come second
        ranked = sorted(by_level[level], key=lambda i: ("repeat" in i[1].parts[-4].lower(), len(i[0]), i[0]))
        image, path = ranked[0]
        if len(ranked) > 1:
            notes.append(f"{ptid} {date:%Y-%m-%d}: {len(ranked)} {what}; {image} is used")
        levels[level] += 1
        site, rid = _PTID.fullmatch(ptid).groups()
        person, session = f"sub-ADNI{site}S{rid}", f"ses-{date:%Y%m%d}"
        scans.append(Scan(person, session, what, path, date, True, image.lstrip("IiDd")))
    notes += [f"{count} PET do not exist at level {wanted}; {level} is used (cohort.pet_level)"
              for level, count in sorted(levels.items()) if level not in ("T1w", wanted)]  # fmt: skip
    return scans


# ── Clinica's tables ──────────────────────────────────────────────────────────────────────────────


class _Clinica(NamedTuple):
    """Rows of ``participants.tsv`` by RID, of ``sessions.tsv`` by RID and session, ``acq_time`` by file."""

    people: dict[int, dict[str, str]]
    sessions: dict[tuple[int, str], dict[str, str]]
    acquired: dict[tuple[str, str, str], pd.Timestamp]


def _read_clinica(folders: list[Path], notes: list[str]) -> _Clinica:
    clinica, absent = _Clinica({}, {}, {}), []
    for folder in dict.fromkeys(folders):
        for person, row in read_by_key(folder / "participants.tsv", "participant_id", "sub-", notes=notes).items():
            clinica.people.setdefault(rid_of(person), row)
        for path in visible(folder, "sub-*/*_sessions.tsv"):
            for session, row in read_by_key(path, "session_id", "ses-", notes=notes).items():
                clinica.sessions.setdefault((rid_of(path.parent.name), session), row)
                absent += [] if (path.parent / session).is_dir() else [f"{path.parent.name} {session}"]
        for path in visible(folder, "sub-*/ses-*/*_scans.tsv"):
            for name, row in read_by_key(path, "filename", notes=notes).items():
                date = _day(row.get("acq_time", ""), f"{path}: acq_time of {name}", notes)
                if pd.notna(date):
                    clinica.acquired[path.parent.parent.name, path.parent.name, Path(name).name] = date
    if absent:
        notes.append(f"{len(absent)} rows of sessions.tsv have no folder: {', '.join(absent)}")
    return clinica


def _day(text: str, where: str, notes: list[str]) -> pd.Timestamp:
    """Read a date; other text is noted, and gives NaT."""
    date = to_date(text)
    if date is None:
        notes.append(f"{where}: found {text!r}, expected a date, YYYY-MM-DD; taken as missing")
    return pd.NaT if date is None else date


def _month(session: str) -> int | None:
    match = re.fullmatch(r"ses-M0*(\d+)", session)
    return int(match[1]) if match else None


# ── rows ──────────────────────────────────────────────────────────────────────────────────────────


def _measured(scan: Scan, tables: StudyTables, config: Config, notes: list[str]) -> tuple[pd.Timestamp, dict[str, Any]]:
    """The day of a PET, and the measurements in its row of UC Berkeley's table."""
    row = tables.pet(rid_of(scan.person), scan.what, scan.date, scan.image)
    if row is None:
        return scan.date, {}
    target = config.cohort.tracers[scan.what]
    date = scan.date if scan.exact else row["date"]
    if row["qc"] < PASSED:
        fault = f"{row['source']} has qc_flag {row['qc']:g}, not used"
        notes.append(f"{scan.person} {scan.session}: {fault}; the SUVR of the {target} PET will be measured")
        return date, {}
    status = row["status"]
    if pd.isna(status):
        status = status_by_cutoff(row["suvr"], target, scan.what, config.cohort)
    return date, {"suvr": row["suvr"], "status": status, "centiloid": row["centiloid"]}


def _person(scan: Scan, tables: StudyTables, clinica: _Clinica, further: Iterable[str]) -> dict[str, Any]:
    """Age, sex, diagnosis, education and MMSE at a T1 scan, from the study's tables, else from Clinica's.

    ``further`` columns are Clinica's, by their name.
    """
    rid = rid_of(scan.person)
    study, participant = tables.people.get(rid, {}), clinica.people.get(rid, {})
    visit, month = clinica.sessions.get((rid, scan.session), {}), _month(scan.session)
    baseline = participant if month == 0 else {}

    def first(*values: float | str) -> float | str:
        return next((value for value in values if not pd.isna(value) and value != ""), np.nan)

    later = to_age(participant.get("age_bl", "")) if month else None
    at_baseline = participant.get("age_bl", "") if month is not None else ""
    by_label = at_baseline if later is None else later + month / 12
    diagnosis = visit.get("diagnosis") or baseline.get("diagnosis_sc", "")
    return {name: visit.get(name) or participant.get(name, "") for name in further} | {
        "person": scan.person,
        "session": scan.session,
        "age": first(tables.age(rid, scan.date), visit.get("age", ""), by_label),
        "sex": first(study.get("sex", ""), participant.get("sex", "")),
        "diagnosis": first(tables.diagnosis(rid, scan.date), diagnosis),
        "education": study.get("education", participant.get("education_level", "")),
        "mmse": first(tables.score(rid, scan.date), visit.get("mmse", ""), baseline.get("mmse_bl", "")),
    }
