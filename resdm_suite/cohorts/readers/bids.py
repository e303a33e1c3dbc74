"""A BIDS dataset with T1w and PET → the manifest, and who was left out.

Read are file names, ``participants.tsv``, ``sub-*_sessions.tsv``, ``sub-*_scans.tsv`` and the JSON beside each PET; no
image is opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from resdm.settings import TRACERS
from resdm_suite.cohorts.manifest import COLUMNS, EMPTY, SPACE, ManifestError
from resdm_suite.cohorts.matching import Found, close_manifest, match_scans
from resdm_suite.paths import sidecar_path
from resdm_suite.profiles import Config

# what a table may call a thing, in lower case; the first that is there and filled is taken
_NAMES = {
    "age": ("age", "age_at_scan", "age_bl"),
    "sex": ("sex", "gender"),
    "diagnosis": ("diagnosis", "dx", "diagnosis_sc", "diagnosis_bl", "group"),
    "education": ("education", "education_level", "education_years", "years_education"),
    "mmse": ("mmse", "mmse_bl", "mmse_total"),
}
_BASELINE = {"age_bl", "diagnosis_sc", "diagnosis_bl", "mmse_bl"}  # true of the first session only
SEX_WORDS = {"f": "F", "female": "F", "m": "M", "male": "M"}
DIAGNOSIS_WORDS = {
    **dict.fromkeys(("cn", "nc", "hc", "control", "smc"), "CN"),
    **dict.fromkeys(("mci", "emci", "lmci"), "MCI"),
    **dict.fromkeys(("ad", "dementia"), "AD"),
}
_NATIVE = {"T1w", "orig", "individual", "native", "scanner"}  # entities space- of scans that lie as acquired
_SPOKEN = {  # words of a sidecar that belong to one label alone
    "18FAV45": ("florbetapir", "av45", "amyvid"),
    "18FFBB": ("florbetaben", "fbb", "neuraceq"),
    "18FAV1451": ("flortaucipir", "av1451", "t807", "tauvid"),
}

_SOME_DAY = pd.Timestamp("1900-01-01")  # the first session of those of whom only ages are known


def build_manifest(root: str | Path, config: Config) -> Found:
    """Find the sessions of a BIDS dataset that have a T1w and at least one PET of a known tracer.

    Age, diagnosis and MMSE come from ``sub-*_sessions.tsv``, and where that is silent from ``participants.tsv``; a
    baseline age there (``age_bl``) is carried on by the months in a session's label (``ses-M012``). Where a session
    has several T1w or several PETs of one tracer, the first by name is taken; of two tracers for one target, the one
    that ``cohort.tracers`` names first. The tracer is the file name's ``trc-`` entity, whatever the sidecar says.
    Scans of one session are taken from one space: as they were acquired, else, in a derivative, from ``space-MNI…``;
    what lies in any other space is not used. Each such choice is noted. Days from the T1w to a PET of one session come
    from ``acq_time`` in ``scans.tsv``.

    What is filed under one session stays together. Unless ``cohort.match.same_visit``, a PET whose session has no T1w,
    or has it beyond the window, goes by date with a T1w of its person that lacks one
    (`cohorts.matching.match_scans`): the date is the scan's ``acq_time``, else its session's ``acq_time`` or
    ``examination_date`` in ``sessions.tsv``, else by the session's age. A scan without any of them stays in its
    session. A session whose PETs all went with T1w of other sessions is not counted apart.

    Parameters
    ----------
    root : path
        Holds ``participants.tsv`` and ``sub-*``.
    config : Config
        Its ``cohort.tracers`` are looked for.

    Returns
    -------
    Found

    Raises
    ------
    ManifestError
        No dataset, nobody in it to use, or a value that cannot be: names file, person and what was found.
    """
    root = Path(root).absolute()
    people = _participants(root)
    notes: list[str] = []
    found: list[_Visit] = []
    for subject in sorted(folder for folder in root.glob("sub-*") if folder.is_dir()):
        if people is not None and subject.name not in people.index:
            notes.append(f"{subject.name}: not in participants.tsv")
        told = people.loc[subject.name] if people is not None and subject.name in people.index else pd.Series(dtype=str)
        visits = _sessions(subject)
        folders = sorted(folder for folder in subject.glob("ses-*") if folder.is_dir()) or [subject]
        for number, folder in enumerate(folders):
            session = folder.name if folder != subject else "ses-1"
            visit = visits.loc[session] if visits is not None and session in visits.index else pd.Series(dtype=str)
            found.append(_row(subject.name, session, number == 0, folder, visit, told, config, notes))
    if not found:
        raise ManifestError(f"{root}: no sub-* folder; expected a BIDS dataset (cohort.folder, or the given folder)")
    rows = [visit.row for visit in found] if config.cohort.match.same_visit else _across(found, config, notes)
    return close_manifest(pd.DataFrame(rows, columns=[*COLUMNS, "reason"]), config, root, notes)


class _Visit(NamedTuple):
    """A session as its folder and its tables tell it.

    ``row``: of the manifest; ``pets``: path and label by tracer and space; ``dates``: of the scans by path, where
    ``scans.tsv`` has them; ``day``: of the session, or NaT; ``age``: in years, at this session and no other, or NaN.
    """

    row: dict[str, Any]
    pets: dict[str, dict[str, tuple[str, str]]]
    dates: dict[str, pd.Timestamp]
    day: pd.Timestamp
    age: float


def _row(
    person: str,
    session: str,
    first: bool,
    folder: Path,
    visit: pd.Series,
    told: pd.Series,
    config: Config,
    notes: list[str],
) -> _Visit:
    """One session; what is not known is empty."""
    where = f"{person} {session}"
    row: dict[str, Any] = EMPTY | {"person": person, "session": session, "reason": ""}
    t1ws = _by_space(folder.glob("anat/*_T1w.nii*"), where, notes)
    space = "" if t1ws[""] else SPACE if t1ws[SPACE] else ""
    row["t1w"] = _first(t1ws[space], where, "T1w", notes)
    spare: dict[str, dict[str, tuple[str, str]]] = {tracer: {} for tracer in TRACERS}
    for label, tracer in config.cohort.tracers.items():
        pets = _by_space(folder.glob(f"pet/*_trc-{label}_*pet.nii*"), where, notes)
        if row["t1w"] and not pets[space] and any(pets.values()):
            notes.append(
                f"{where}: {label} PET and T1w lie in different spaces ({SPACE} and native); not used together"
            )
        scan = _first(pets[space], where, f"{label} PET", notes)
        if scan and row[tracer]:
            notes.append(f"{where}: {row[f'{tracer}_tracer']} and {label}; {row[f'{tracer}_tracer']} is used")
        elif scan:
            row |= {tracer: scan, f"{tracer}_tracer": label}
            _listen(Path(scan), label, where, notes)
        for other, paths in pets.items():
            if paths and not (row["t1w"] and other != space):
                spare[tracer].setdefault(other, (str(paths[0]), label))

    row["space"] = space
    dates = _dates(folder, where, notes)
    row |= _days(row, dates)

    values: dict[str, str] = {}
    of_visit = False  # whether the age is that of this session
    for column, names in _NAMES.items():
        for source in (visit, told):
            name = next((n for n in names if source.get(n)), None)
            later = name in _BASELINE and source is told and not first
            if name is None or (later and column != "age"):
                continue
            values[column] = source[name]
            if later:
                months = re.fullmatch(r"ses-M0*(\d+)", session)
                values[column] = str(to_number(where, column, source[name]) + int(months[1]) / 12) if months else ""
            of_visit |= column == "age" and (source is visit or name in _BASELINE)
            break
    sex = values.get("sex", "")
    if sex and sex.lower() not in SEX_WORDS:
        raise ManifestError(f"{where}: unknown sex {sex!r} in participants.tsv; expected {', '.join(SEX_WORDS)} or n/a")
    diagnosis = values.get("diagnosis", "")
    if diagnosis and diagnosis.lower() not in DIAGNOSIS_WORDS:
        notes.append(f"{where}: diagnosis {diagnosis!r} is none of CN, MCI, AD; left empty")
    row |= {"sex": SEX_WORDS.get(sex.lower(), ""), "diagnosis": DIAGNOSIS_WORDS.get(diagnosis.lower(), "")}
    row |= {column: to_number(where, column, values.get(column, "")) for column in ("age", "education", "mmse")}
    said = visit.get("acq_time") or visit.get("examination_date") or ""
    day = _date(said)
    if said and pd.isna(day):
        notes.append(f"{where}: no date in {person}_sessions.tsv: {said!r}")
    day = min(dates.values(), default=pd.NaT) if pd.isna(day) else day
    return _Visit(row, spare, dates, day, row["age"] if of_visit else np.nan)


def _across(visits: list[_Visit], config: Config, notes: list[str]) -> list[dict[str, Any]]:
    """The rows, with PETs that have no T1w in their session given to T1w of other sessions that lack them."""
    match, order = config.cohort.match, list(config.cohort.tracers)
    days = _session_days(visits)
    rows = [dict(visit.row) for visit in visits]

    def own(row: dict[str, Any], tracer: str) -> bool:
        """Whether a session has a T1w and a PET of its own, not beyond the window."""
        return bool(row["t1w"] and row[tracer]) and not abs(row[f"{tracer}_days"]) > match.window_days

    def scan(visit: _Visit, path: str, space: str) -> dict[str, Any]:
        key = visit.row["person"], visit.row["session"]
        return {"person": f"{key[0]} {space}", "session": key[1], "date": visit.dates.get(path, days[key][0])}

    t1s: dict[tuple[str, ...], list[dict[str, Any]]] = {("amyloid",): [], ("tau",): [], TRACERS: []}
    pets = []
    for visit in visits:
        row = visit.row
        lacks = tuple(tracer for tracer in TRACERS if not own(row, tracer))
        if row["t1w"] and lacks:
            t1s[lacks].append(scan(visit, row["t1w"], row["space"]) | {"t1w": row["t1w"]})
        for tracer in lacks:
            for space, (path, label) in visit.pets[tracer].items():
                pets.append(scan(visit, path, space) | {"target": tracer, "tracer": label, "path": path})

    heads = {row["t1w"]: row for row in rows if row["t1w"]}
    home = {pet["path"]: pet["session"] for pet in pets}
    gone = set()
    for lacks, those in t1s.items():  # a T1w that lacks one tracer only comes first: both before one
        free = [pet for pet in pets if pet["target"] in lacks and pet["path"] not in gone]
        matched = match_scans(
            pd.DataFrame(those, columns=["person", "session", "date", "t1w"]),
            pd.DataFrame(free, columns=["person", "session", "date", "target", "tracer", "path"]),
            match,
            order,
        )
        for one in matched[matched["t1w"] != ""].to_dict("records"):
            row = heads[one["t1w"]]
            row["reason"], to = one["reason"], (row["person"], row["session"])
            for tracer in (tracer for tracer in lacks if one[tracer]):
                near = abs(one[f"{tracer}_days"]) <= match.window_days
                if near or not row[tracer]:  # the nearest beyond the window is there to be counted
                    row |= {name: one[name] for name in (tracer, f"{tracer}_tracer", f"{tracer}_days")}
                if near:
                    gone.add(one[tracer])
                    origin = home[one[tracer]]
                    by = "" if days[to][1] and days[to[0], origin][1] else ", by the ages of the sessions"
                    gap = f"{one[f'{tracer}_days']:+.0f} days from the T1w{by}"
                    notes.append(f"{' '.join(to)}: {one[f'{tracer}_tracer']} PET of {origin}, {gap}")
    kept = []
    for visit, row in zip(visits, rows, strict=True):
        used = [any(path in gone for path, _ in spaces.values()) for spaces in visit.pets.values() if spaces]
        if row["t1w"] or not used or not all(used):
            kept.append(row)
    return kept


def _session_days(visits: list[_Visit]) -> dict[tuple[str, str], tuple[pd.Timestamp, bool]]:
    """The day of every session, and whether it is a date: else it comes of the age, 365.25 days a year."""
    dated = {visit.row["person"] for visit in visits if not pd.isna(visit.day)}
    start: dict[str, tuple[pd.Timestamp, float]] = {}  # a day of each person and the age on it
    for visit in visits:
        person = visit.row["person"]
        if not np.isnan(visit.age) and (person not in dated or not pd.isna(visit.day)):
            start.setdefault(person, (visit.day if person in dated else _SOME_DAY, visit.age))
    found = {}
    for visit in visits:
        person, day = visit.row["person"], visit.day
        if pd.isna(day) and not np.isnan(visit.age) and person in start:
            first, age = start[person]
            day = first + pd.Timedelta(days=round(365.25 * (visit.age - age)))
        found[person, visit.row["session"]] = day, not pd.isna(visit.day)
    return found


def to_number(where: str, column: str, text: str) -> float:
    """A cell as a number, NaN where it is empty; `ManifestError` where it is none."""
    try:
        return float(text) if text else np.nan
    except ValueError:
        raise ManifestError(f"{where}: {column} {text!r} is no number; correct the dataset's tables") from None


def _first(paths: Iterable[Path], where: str, what: str, notes: list[str]) -> str:
    """The first NIfTI by name, or nothing."""
    paths = sorted(path for path in paths if path.name.endswith((".nii", ".nii.gz")))
    if len(paths) > 1:
        notes.append(f"{where}: {len(paths)} {what}; {paths[0].name} is used")
    return str(paths[0]) if paths else ""


def _by_space(paths: Iterable[Path], where: str, notes: list[str]) -> dict[str, list[Path]]:
    """Scans as acquired (or in their T1w's space) under "", those in an MNI space under `SPACE`; no others."""
    found: dict[str, list[Path]] = {"": [], SPACE: []}
    for path in sorted(paths):
        entity = re.search(r"_space-([A-Za-z0-9]+)_", path.name)
        if entity is None or entity[1] in _NATIVE:
            found[""].append(path)
        elif entity[1].startswith("MNI"):
            found[SPACE].append(path)
        else:
            notes.append(f"{where}: {path.name} lies in space {entity[1]}; not used")
    return found


def _dates(folder: Path, where: str, notes: list[str]) -> dict[str, pd.Timestamp]:
    """The dates in a session's ``scans.tsv`` by the scan's path, of those that have one."""
    table = next(iter(sorted(folder.glob("*_scans.tsv"))), None)
    scans = read_tsv(table, "filename", "") if table else None
    if scans is None or "acq_time" not in scans:
        return {}
    dates = {}
    for name, said in scans["acq_time"].items():
        date = _date(said)
        if not pd.isna(date):
            dates[str(folder / name)] = date
        elif said:
            notes.append(f"{where}: {table.name} has no date for {name}: {said!r}")
    return dates


def _date(said: str) -> pd.Timestamp:
    """A cell as a point in time, without its zone; NaT where it is empty or no date."""
    date = pd.to_datetime(said or None, errors="coerce")
    return date if pd.isna(date) else date.tz_localize(None)


def _days(row: dict[str, Any], dates: dict[str, pd.Timestamp]) -> dict[str, float]:
    """``<tracer>_days`` of a session whose scans have dates."""
    first = dates.get(row["t1w"])
    then = {tracer: dates.get(row[tracer]) for tracer in TRACERS}
    return {f"{tracer}_days": float((date.normalize() - first.normalize()).days)
            for tracer, date in then.items() if first is not None and date is not None}  # fmt: skip


def _listen(scan: Path, label: str, where: str, notes: list[str]) -> None:
    """Note a sidecar that names another tracer than the file."""
    sidecar = sidecar_path(scan)
    try:
        said = json.loads(sidecar.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        notes.append(f"{where}: {sidecar.name} cannot be read as JSON; the file name's tracer {label} is used")
        return
    for key, value in other_tracers(said, label):
        notes.append(f"{where}: {sidecar.name} says {key} {value!r}; the file name's tracer {label} is used")


def other_tracers(said: object, label: str) -> list[tuple[str, object]]:
    """What a PET's sidecar says of its tracer, key and value, that belongs to another label."""
    found = []
    for key in ("TracerName", "Radiopharmaceutical"):
        text = re.sub(r"[^a-z0-9]", "", str(said.get(key, "") if isinstance(said, dict) else "").lower())
        others = [other for other, words in _SPOKEN.items() if any(word in text for word in words)]
        if others and label not in others:
            found.append((key, said[key]))
    return found


def _participants(root: Path) -> pd.DataFrame | None:
    """``participants.tsv`` by person, or None where there is none."""
    if not root.is_dir():
        raise ManifestError(f"{root}: no such folder; expected a BIDS dataset (cohort.folder, or the given folder)")
    return read_tsv(root / "participants.tsv", "participant_id", "sub-")


def _sessions(subject: Path) -> pd.DataFrame | None:
    return read_tsv(subject / f"{subject.name}_sessions.tsv", "session_id", "ses-")


def read_tsv(path: Path, key: str, prefix: str) -> pd.DataFrame | None:
    """A TSV by its key column: column names in lower case, cells as text, ``n/a`` empty; None without file."""
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ManifestError(f"{path}: not a table of UTF-8 text, separated by tabs: {error}") from None
    table.columns = [column.strip().lower() for column in table.columns]
    if key not in table:
        raise ManifestError(f"{path}: no column {key}; found {', '.join(table.columns)}")
    table = table.apply(lambda column: column.str.strip()).replace(["n/a", "N/A", "NA", "NaN", "nan"], "")
    table[key] = [name if name.startswith(prefix) else prefix + name for name in table[key]]
    twice = table[key][table[key].duplicated()]
    if len(twice):
        raise ManifestError(f"{path}: {twice.iloc[0]} has more than one row; keep one ({len(twice)} such rows)")
    return table.set_index(key)
