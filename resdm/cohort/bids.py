"""A BIDS dataset with T1w and PET → the manifest, and who was left out.

Read are file names, ``participants.tsv``, ``sub-*_sessions.tsv``, ``sub-*_scans.tsv`` and the JSON beside each PET; no
image is opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from resdm.cohort.manifest import COLUMNS, EMPTY, SPACE, ManifestError
from resdm.cohort.matching import Found, close_manifest
from resdm.config import TRACERS, Config

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


def build_manifest(root: str | Path, config: Config) -> Found:
    """Find the sessions of a BIDS dataset that have a T1w and at least one PET of a known tracer.

    Age, diagnosis and MMSE come from ``sub-*_sessions.tsv``, and where that is silent from ``participants.tsv``; a
    baseline age there (``age_bl``) is carried on by the months in a session's label (``ses-M012``). Where a session
    has several T1w or several PETs of one tracer, the first by name is taken; of two tracers for one target, the one
    that ``cohort.tracers`` names first. The tracer is the file name's ``trc-`` entity, whatever the sidecar says.
    Scans of one session are taken from one space: as they were acquired, else, in a derivative, from ``space-MNI…``;
    what lies in any other space is not used. Each such choice is noted. Days from the T1w to a PET come from
    ``acq_time`` in ``scans.tsv``.

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
    found = []
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
    frame = pd.DataFrame(found)[list(COLUMNS)]

    return close_manifest(frame, config, root, notes)


def _row(
    person: str,
    session: str,
    first: bool,
    folder: Path,
    visit: pd.Series,
    told: pd.Series,
    config: Config,
    notes: list[str],
) -> dict[str, object]:
    """One session; what is not known is empty."""
    where = f"{person} {session}"
    row: dict[str, object] = EMPTY | {"person": person, "session": session}
    t1ws = _by_space(folder.glob("anat/*_T1w.nii*"), where, notes)
    space = "" if t1ws[""] else SPACE if t1ws[SPACE] else ""
    row["t1w"] = _first(t1ws[space], where, "T1w", notes)
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

    row["space"] = space
    row |= _days(folder, row, where, notes)

    values: dict[str, str] = {}
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
            break
    sex = values.get("sex", "")
    if sex and sex.lower() not in SEX_WORDS:
        raise ManifestError(f"{where}: unknown sex {sex!r} in participants.tsv; expected {', '.join(SEX_WORDS)} or n/a")
    diagnosis = values.get("diagnosis", "")
    if diagnosis and diagnosis.lower() not in DIAGNOSIS_WORDS:
        notes.append(f"{where}: diagnosis {diagnosis!r} is none of CN, MCI, AD; left empty")
    row |= {"sex": SEX_WORDS.get(sex.lower(), ""), "diagnosis": DIAGNOSIS_WORDS.get(diagnosis.lower(), "")}
    row |= {column: to_number(where, column, values.get(column, "")) for column in ("age", "education", "mmse")}
    return row


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


def _days(folder: Path, row: dict[str, object], where: str, notes: list[str]) -> dict[str, float]:
    """``<tracer>_days`` of a session by the dates in its ``scans.tsv``, where there are any."""
    table = next(iter(sorted(folder.glob("*_scans.tsv"))), None)
    scans = read_tsv(table, "filename", "") if table and row["t1w"] else None
    if scans is None or "acq_time" not in scans:
        return {}

    def date(path: str) -> pd.Timestamp:
        name = Path(path).relative_to(folder).as_posix()
        said = scans["acq_time"].get(name, "")
        parsed = pd.to_datetime(said or None, errors="coerce")
        if said and pd.isna(parsed):
            notes.append(f"{where}: {table.name} has no date for {name}: {said!r}")
        return parsed

    first = date(str(row["t1w"]))
    dates = {tracer: date(str(row[tracer])) for tracer in TRACERS if row[tracer]}
    return {f"{tracer}_days": float((then.normalize() - first.normalize()).days)
            for tracer, then in dates.items() if not (pd.isna(then) or pd.isna(first))}  # fmt: skip


def _listen(scan: Path, label: str, where: str, notes: list[str]) -> None:
    """Note a sidecar that names another tracer than the file."""
    sidecar = scan.with_name(scan.name.removesuffix(".gz").removesuffix(".nii") + ".json")
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
