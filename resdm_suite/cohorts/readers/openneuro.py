"""The Dallas Lifespan Brain Study, OpenNeuro ds004856 (CC0) → the manifest; and its download.

Two things say which scans there are: the files on disk, and `FILES`, the bucket's listing. So who is in the cohort is
known before any image is downloaded, and only the scans of the manifest are.

**Days are from whole years.** ``participants.tsv`` gives an age at each scan, no date, and ages are whole years. Days
between a T1 and a PET are 365.25 × the difference of two such ages: 0 says less than a year either way, 365.25 more
than nothing and less than two years. A window ``cohort.match.window_days`` of 366 is thus "at most one year by ages".

**Frames are averaged with equal weights**, whatever the sidecars say of durations: they are in milliseconds where BIDS
wants seconds, and of two frames the second may be said to last 0 ms. For equal frames, as florbetapir's two of five
minutes, that is exact; an empty last frame scales the whole volume, and SUVR, a ratio, does not change.

**The tracer is the file name's** ``trc-`` entity: sidecars of tau PET name florbetaben. The notes count such faults.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd

from resdm.io import write_csv
from resdm.settings import TRACERS
from resdm_suite.cohorts.manifest import COLUMNS, EMPTY, PATHS, ManifestError
from resdm_suite.cohorts.matching import Found, close_manifest
from resdm_suite.cohorts.readers.bids import SEX_WORDS, other_tracers, read_tsv, to_number
from resdm_suite.cohorts.readers.download import DownloadError, Remote, address, fetch, list_bucket
from resdm_suite.paths import sidecar_path
from resdm_suite.profiles import Config

DATASET = "ds004856"

BUCKET = "https://s3.amazonaws.com/openneuro.org"
"""OpenNeuro's public bucket; keys start with the data set's name."""

FILES = "t1w_pet_files.tsv"
"""The bucket's listing of T1w and PET, beside ``participants.tsv``: path, bytes."""

DAYS_A_YEAR = 365.25

_SCAN = re.compile(r"(sub-[A-Za-z0-9]+)/(ses-wave(\d+))/(anat|pet)/\1_\2_[\w.-]*?(T1w|pet)\.nii(\.gz)?")
_DOCUMENTS = ("participants.tsv", "participants.json", "dataset_description.json", "README", "CHANGES")
_AGES = {"t1w": "agemri_w", "amyloid": "agepetamy_w", "tau": "agepettau_w"}  # and the wave's number
_INTERVALS = {"mri": "agemri_w", "petamy": "agepetamy_w"}  # MRIW1toW2 and its like: years with two decimals
_NOTHING = "xx"  # said of a person who did not come back, beside n/a


class _Scan(NamedTuple):
    """A file that the listing or the disk knows, path relative to the data set."""

    path: str
    person: str
    session: str
    wave: str
    kind: str
    tracer: str  # label; empty for T1w


def build_manifest(root: str | Path, config: Config) -> Found:
    """Find the waves of DLBS that have a T1w and at least one PET.

    A T1w that was taken a second time, because of motion in the first (the data set's README), is the one used. Age is
    that at the T1w; education is capped by degree; there is no diagnosis. Scans of one wave belong together and no
    others, whatever ``cohort.match.same_visit`` says.

    Parameters
    ----------
    root : path
        Holds ``participants.tsv``, and ``sub-*`` or `FILES` or both.
    config : Config

    Returns
    -------
    Found
        Paths may be of scans that are not downloaded yet: see `not_downloaded`.

    Raises
    ------
    ManifestError
        No data set, nobody in it to use, or a value that cannot be: names file, person and what was found.
    """
    root = Path(root).absolute()
    people = _people(root, config)
    scans = _scans(root)
    if not scans:
        raise ManifestError(f"{root}: no T1w and no PET, on disk or in {FILES}; {remedy(config)}")
    notes: list[str] = []
    waves: dict[tuple[str, str], list[_Scan]] = defaultdict(list)
    for scan in scans:
        waves[scan.person, scan.session].append(scan)
    repeated = []
    rows = [_row(root, people, wave, config, notes, repeated) for _, wave in sorted(waves.items())]
    frame = pd.DataFrame(rows)[list(COLUMNS)]
    told = [_triplets(frame, config)]
    if repeated:
        told.append(f"{len(repeated)} waves have a T1w taken twice ({repeated[0]} …); the last run is used, see README")
    return close_manifest(frame, config, root, [*told, *_table_faults(people), *notes, *_sidecar_faults(root, frame)])


def remedy(config: Config) -> str:
    """How to get the data."""
    return (
        f"`resdm manifest openneuro {config.profile} --download` fetches what the manifest needs from OpenNeuro; data "
        "that lie elsewhere are named by --root or cohort.folder"
    )


def not_downloaded(frame: pd.DataFrame, root: str | Path) -> tuple[list[str], int]:
    """Scans of a manifest that are not on disk, or not of the size that is listed; and their bytes, if listed."""
    root = Path(root).absolute()
    listed = _listed(root)
    absent = []
    for cell in sorted(cell for column in PATHS for cell in frame[column] if cell):
        path, size = Path(cell), listed.get(Path(cell).relative_to(root).as_posix())
        if not path.is_file() or size not in (None, path.stat().st_size):
            absent.append(cell)
    return absent, sum(listed.get(Path(cell).relative_to(root).as_posix()) or 0 for cell in absent)


def download(config: Config, root: str | Path, *, url: str = BUCKET, jobs: int = 4, progress: bool = True) -> int:
    """Bring what the manifest needs: tables first, then T1w, PET and sidecars of the people in it, and nothing else.

    Parameters
    ----------
    config : Config
        Its ``cohort.match`` decides who is in the manifest.
    root : path
        Where the data set is to lie.
    url : str
        Of the bucket, or of a mirror of it.
    jobs : int
        Connections at a time.

    Returns
    -------
    int
        Files that were brought; 0 where all were there.

    Raises
    ------
    DownloadError, ManifestError
    """
    root = Path(root).absolute()
    url = url.rstrip("/")
    keys = list_bucket(url, f"{DATASET}/", progress=progress)
    sizes = {key.removeprefix(f"{DATASET}/"): size for key, size in keys.items()}
    if "participants.tsv" not in sizes:
        raise DownloadError(f"{url}: lists no {DATASET}/participants.tsv among {len(sizes)} files; is it the address?")

    def bring(paths: list[str]) -> int:
        files = [Remote(address(url, f"{DATASET}/{path}"), root / path, sizes[path]) for path in paths]
        return fetch(files, jobs=jobs, progress=progress)

    brought = bring([path for path in _DOCUMENTS if path in sizes])
    scans = sorted(path for path in sizes if _SCAN.fullmatch(path))
    table = pd.DataFrame({"path": scans, "bytes": [sizes[path] for path in scans]})
    write_csv(root / FILES, table, separator="\t")
    frame = build_manifest(root, config).manifest
    wanted = [Path(cell).relative_to(root).as_posix() for column in PATHS for cell in frame[column] if cell]
    sidecars = [str(sidecar_path(path)) for path in wanted]
    return brought + bring(sorted(path for path in {*wanted, *sidecars} if path in sizes))


# ── tables and files ──────────────────────────────────────────────────────────────────────────────


def _people(root: Path, config: Config) -> pd.DataFrame:
    table = read_tsv(root / "participants.tsv", "participant_id", "sub-")
    if table is None:
        raise ManifestError(f"{root}: no participants.tsv; {remedy(config)}")
    needed = ["sex", *(f"{age}{wave}" for age in ("agemri_w", "agepetamy_w") for wave in "123")]
    absent = [column for column in needed if column not in table]
    if absent:
        raise ManifestError(
            f"{root / 'participants.tsv'}: no column {', '.join(absent)}; expected that of {DATASET}. For another data "
            "set use `resdm manifest bids`"
        )
    return table.replace(_NOTHING, "")


def _listed(root: Path) -> dict[str, int | None]:
    """`FILES`: path → bytes; nothing where it is not there."""
    table = read_tsv(root / FILES, "path", "")
    if table is None:
        return {}
    if "bytes" not in table:
        raise ManifestError(f"{root / FILES}: no column bytes; found {', '.join(table.columns)}")
    return {
        path: int(to_number(f"{root / FILES}: {path}", "bytes", size)) if size else None
        for path, size in table["bytes"].items()
    }


def _scans(root: Path) -> list[_Scan]:
    on_disk = (path.relative_to(root).as_posix() for path in root.glob("sub-*/ses-wave*/*/*.nii*"))
    found = []
    for path in sorted({*_listed(root), *on_disk}):
        if match := _SCAN.fullmatch(path):
            person, session, wave, _, kind, _ = match.groups()
            tracer = re.search(r"_trc-([A-Za-z0-9]+)_", path)
            found.append(_Scan(path, person, session, wave, kind, tracer[1] if tracer and kind == "pet" else ""))
    return found


def _row(
    root: Path, people: pd.DataFrame, wave: list[_Scan], config: Config, notes: list[str], repeated: list[str]
) -> dict[str, object]:
    """One wave of a person; what is not known is empty."""
    person, session, number = wave[0].person, wave[0].session, wave[0].wave
    where = f"{person} {session}"
    row: dict[str, object] = EMPTY | {"person": person, "session": session}
    t1ws = [scan.path for scan in wave if scan.kind == "T1w"]
    if t1ws:
        row["t1w"] = str(root / t1ws[-1])  # by name, so by run
    if len(t1ws) > 1:
        repeated.append(where)
    labels = config.cohort.tracers
    for scan in sorted((s for s in wave if s.kind == "pet"), key=lambda s: [*labels, s.tracer].index(s.tracer)):
        tracer = labels.get(scan.tracer)
        if tracer is None:
            notes.append(f"{where}: {scan.path} is of no tracer in cohort.tracers ({', '.join(labels)}); not used")
        elif row[tracer]:
            notes.append(f"{where}: {Path(scan.path).name} beside {Path(str(row[tracer])).name}, which is used")
        else:
            row |= {tracer: str(root / scan.path), f"{tracer}_tracer": scan.tracer}
    if person not in people.index:
        notes.append(f"{where}: not in participants.tsv")
        return row
    told = people.loc[person]
    table = f"{root / 'participants.tsv'}: {where}"
    sex = told["sex"].lower()
    if sex and sex not in SEX_WORDS:
        raise ManifestError(f"{table}: unknown sex {told['sex']!r}; expected {', '.join(SEX_WORDS)} or n/a")
    ages = {what: to_number(table, f"{column}{number}", told.get(f"{column}{number}", ""))
            for what, column in _AGES.items()}  # fmt: skip
    row |= {
        "sex": SEX_WORDS.get(sex, ""),
        "age": ages["t1w"],
        "education": to_number(table, "EduYrsEstCap", told.get("eduyrsestcap", "")),
        "mmse": to_number(table, f"MMSE_W{number}", told.get(f"mmse_w{number}", "")),
    }
    for tracer in TRACERS:
        if row[tracer] and row["t1w"]:
            row[f"{tracer}_days"] = DAYS_A_YEAR * (ages[tracer] - ages["t1w"])
            if np.isnan(ages[tracer]):
                notes.append(f"{where}: no age at the {tracer} PET; taken to be in the window, as of the same wave")
    return row


# ── what is noted ─────────────────────────────────────────────────────────────────────────────────


def _triplets(frame: pd.DataFrame, config: Config) -> str:
    """The sentence on waves with all three scans."""
    window = config.cohort.match.window_days
    all_three = frame[(frame[list(PATHS)] != "").all(axis=1)]
    near = all_three[(all_three[[f"{tracer}_days" for tracer in TRACERS]].abs() <= window).all(axis=1)]
    return (
        f"{len(all_three)} waves of {all_three['person'].nunique()} people have T1w, amyloid and tau PET; in "
        f"{len(near)} of them ({near['person'].nunique()} people) both PETs lie within {window:g} days of the T1w, by "
        "ages in whole years"
    )


def _table_faults(people: pd.DataFrame) -> Iterator[str]:
    """Intervals between waves that the ages contradict: two decimals against whole years, so a year is too much."""
    for name, age in _INTERVALS.items():
        for one, other in (("1", "2"), ("2", "3"), ("1", "3")):
            column = f"{name}w{one}tow{other}"
            if column not in people:
                continue
            years = pd.to_numeric(people[column], errors="coerce")
            ages = [pd.to_numeric(people[f"{age}{wave}"], errors="coerce") for wave in (one, other)]
            for person in years.index[(years - (ages[1] - ages[0])).abs() >= 1]:
                yield (
                    f"{person}: participants.tsv says {years[person]:g} years from wave {one} to {other} ({column}), "
                    f"but ages of {ages[0][person]:g} and {ages[1][person]:g}; the ages are used"
                )
            for person in years.index[years.notna() & (ages[0].isna() | ages[1].isna())]:
                yield f"{person}: participants.tsv has {column} {years[person]:g}, but no age at one of the two waves"


def _sidecar_faults(root: Path, frame: pd.DataFrame) -> list[str]:
    """Each fault once, with how many sidecars have it and the first of them."""
    faults: dict[str, list[str]] = defaultdict(list)
    read = 0
    for tracer in TRACERS:
        for cell, label in zip(frame[tracer], frame[f"{tracer}_tracer"], strict=True):
            path = sidecar_path(cell) if cell else None
            if path is None or not path.is_file():
                continue
            read += 1
            try:
                said = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(said, dict):
                    raise ValueError(said)
            except (OSError, ValueError):
                faults["cannot be read as JSON"].append(path.name)
                continue
            for fault in sidecar_faults(said, label, _frames(Path(cell))):
                faults[fault].append(path.name)
    return [
        f"sidecars of {len(names)} of {read} PETs: {fault} (as {min(names)})" for fault, names in sorted(faults.items())
    ]


def _frames(path: Path) -> int | None:
    """Frames of a PET by its header; None where it is not there or cannot be read (preprocessing will say so)."""
    try:
        shape = nib.load(path).shape
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError):
        return None
    return shape[3] if len(shape) == 4 else 1


def sidecar_faults(said: dict[str, Any], label: str, frames: int | None = None) -> list[str]:
    """What is wrong in the sidecar of a PET, and what is used in its place.

    Parameters
    ----------
    said : dict
        The JSON.
    label : str
        The file name's ``trc-``.
    frames : int, optional
        Volumes of the file, where it is there.
    """
    faults = [
        f"{key} {value!r} is not {label}; the file name's tracer is used" for key, value in other_tracers(said, label)
    ]
    durations, starts = (_numbers(said.get(key)) for key in ("FrameDuration", "FrameTimesStart"))
    if durations and (str(said.get("FrameDurationUnits", "")).lower() == "ms" or max(durations) > 10_000):
        faults.append("FrameDuration, FrameTimesStart and InjectionStart in milliseconds, BIDS wants seconds; not used")
    if any(duration <= 0 for duration in durations):
        faults.append("a frame of no duration; frames are averaged with equal weights")
    if durations and len(starts) != len(durations):
        faults.append("FrameDuration and FrameTimesStart of unequal length; not used")
    elif not np.allclose(starts, np.cumsum([0, *durations])[:-1]):
        faults.append("FrameTimesStart is not the running sum of FrameDuration; not used")
    if durations and frames is not None and len(durations) != frames:
        faults.append(f"FrameDuration tells of {len(durations)} frames, the file holds {frames}; the file is believed")
    if said.get("AcquisitionMode") == "dynamic" and sum(duration > 0 for duration in durations) == 1:
        faults.append("AcquisitionMode dynamic, but one frame; averaging one frame changes nothing")
    for key, right, used in (
        ("InjectedRadioactivityUnits", r"[kMG]?Bq|[mu]?Ci", "an activity"),
        ("InjectedMassUnits", r"[nu]?g|[nu]?mol", "a mass"),
    ):
        unit = str(said.get(key, "n/a"))
        if unit != "n/a" and not re.fullmatch(right, unit):
            faults.append(f"{key} {unit!r} is no unit of {used}; dose is not used, SUVR needs none")
    if "SliceTiming" in said or "MultibandAccelerationFactor" in said:
        faults.append("SliceTiming or MultibandAccelerationFactor, which are MRI's, in a PET; not used")
    iterative = "iterations" in (said.get("ReconMethodParameterLabels") or [])
    if iterative and "back-projection" in str(said.get("ReconMethodName", "")).lower():
        faults.append("ReconMethodName back-projection, with iterations and subsets; not used")
    return faults


def _numbers(value: object) -> list[float]:
    values = value if isinstance(value, list) else []
    return [float(v) for v in values if isinstance(v, int | float)]
