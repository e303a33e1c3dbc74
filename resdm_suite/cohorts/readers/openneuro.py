"""The Dallas Lifespan Brain Study, OpenNeuro ds004856 (CC0), and its download.

Scans are listed from the files on disk and from `FILES`, the bucket's listing. So the cohort is known before any image
is downloaded, and only scans of the manifest are downloaded.

**Days come from whole years.** ``participants.tsv`` gives an age at each scan in whole years, and no date. Days between
a T1 and a PET are 365.25 × the difference of two such ages: 0 means less than a year apart, 365.25 less than two years.
A window ``cohort.match.window_days`` of 366 is thus "at most one year by ages".

**The tracer is the file name's** ``trc-`` entity: sidecars of tau PET name florbetaben. The notes count such faults.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resdm.io import write_csv
from resdm.settings import TRACERS
from resdm_suite.cohorts.manifest import PATHS, ManifestError
from resdm_suite.cohorts.matching import Cohort, assemble_manifest
from resdm_suite.cohorts.readers.bids import conflicting_tracers
from resdm_suite.cohorts.readers.download import DownloadError, Remote, address, fetch, list_bucket
from resdm_suite.cohorts.tables import images, read_by_key, read_sidecar, to_age
from resdm_suite.paths import entity, sidecar_path
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
_NOT_SEEN = "xx"  # a person who did not return; n/a likewise


def build_manifest(root: str | Path, config: Config) -> Cohort:
    """Find the waves of DLBS that have a T1w and at least one PET.

    A T1w taken again because of motion (the data set's README) replaces the first. Age is that at the T1w; education
    is capped by degree; there is no diagnosis. Only scans of one wave are paired, for any
    ``cohort.match.same_visit``. Paths may name scans that are not downloaded yet: see `not_downloaded`.

    ``root`` holds ``participants.tsv``, and ``sub-*`` or `FILES` or both. Faults raise `ManifestError`, which names
    file, person and value.
    """
    root = Path(root).absolute()
    notes: list[str] = []
    table = _participants(root, config, notes)
    on_disk = (path.relative_to(root).as_posix() for path in images(root, "sub-*/ses-wave*/*/*.nii*"))
    matches = [match for path in sorted({*_listed(root), *on_disk}) if (match := _SCAN.fullmatch(path))]
    if not matches:
        raise ManifestError(f"{root}: no T1w and no PET, on disk or in {FILES}; {remedy(config)}")
    waves: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)  # path, suffix
    for match in matches:
        waves[match.group(1, 2, 3)].append(match.group(0, 5))
    scans: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = []
    repeated = []
    for (person, session, wave), files in sorted(waves.items()):
        key, where = {"person": person, "session": session}, f"{person} {session}"
        if person not in table:
            notes.append(f"{where}: not in participants.tsv")
        cells = table.get(person, {})
        texts = {target: cells.get(f"{column}{wave}", "") for target, column in _AGES.items()}
        ages = {target: np.nan if (age := to_age(text)) is None else age for target, text in texts.items()}
        measures = {"education": cells.get("eduyrsestcap", ""), "mmse": cells.get(f"mmse_w{wave}", "")}
        further = {name: cells.get(f"{name}_w{wave}") or cells.get(name, "") for name in config.attributes}
        people.append(further | key | {"age": texts["t1w"], "sex": cells.get("sex", "")} | measures)
        t1ws = [path for path, suffix in files if suffix == "T1w"]
        repeated += [where] if len(t1ws) > 1 else []
        found = [("t1w", "", path) for path in t1ws[-1:]]  # by name, so by run
        for path in (path for path, suffix in files if suffix == "pet"):
            label = entity(path, "trc")
            target = config.cohort.tracers.get(label)
            if target is None:
                known = ", ".join(config.cohort.tracers)
                notes.append(f"{where}: {path} is of no tracer in cohort.tracers ({known}); not used")
                continue
            found.append((target, label, path))
            if t1ws and cells and np.isnan(ages[target]):
                notes.append(f"{where}: no age at the {target} PET; taken to be in the window, as of the same wave")
        for target, label, path in found:
            scan = {"target": target, "tracer": label, "path": str(root / path), "day": DAYS_A_YEAR * ages[target]}
            scans.append(key | scan)
    frame = pd.DataFrame(scans, columns=["person", "session", "target", "tracer", "path", "day"])
    first = [_triplets(frame, config)]
    if repeated:
        first.append(f"{len(repeated)} waves have a T1w taken twice ({repeated[0]} …); the last run is used (README)")
    notes = [*first, *_table_faults(table), *notes, *_sidecar_faults(frame)]
    return assemble_manifest(scans, people, config, root, notes, "session")


def remedy(config: Config) -> str:
    """How to get the data."""
    return (
        f"`resdm manifest openneuro {config.profile} --download` downloads the scans of the manifest from OpenNeuro; "
        "name data in another place by --root or cohort.folder"
    )


def not_downloaded(frame: pd.DataFrame, root: str | Path) -> tuple[list[str], int]:
    """Scans of a manifest that are not on disk, or not of the listed size; and their bytes, if listed."""
    root = Path(root).absolute()
    listed = _listed(root)
    sizes = {cell: listed.get(Path(cell).relative_to(root).as_posix())
             for column in PATHS for cell in frame[column] if cell}  # fmt: skip
    found = {cell: Path(cell).stat().st_size if Path(cell).is_file() else -1 for cell in sorted(sizes)}
    absent = [cell for cell, size in found.items() if size < 0 or sizes[cell] not in (None, size)]
    return absent, sum(sizes[cell] or 0 for cell in absent)


def download(config: Config, root: str | Path, *, url: str = BUCKET, jobs: int = 4, progress: bool = True) -> int:
    """Download the files of the manifest into ``root``: first the tables, then T1w, PET and sidecars of its sessions.

    ``url`` is the bucket's or a mirror's. Returns the number of files downloaded, 0 where all were present; raises
    `DownloadError` or `ManifestError`.
    """
    root = Path(root).absolute()
    url = url.rstrip("/")
    keys = list_bucket(url, f"{DATASET}/", progress=progress)
    sizes = {key.removeprefix(f"{DATASET}/"): size for key, size in keys.items()}
    if "participants.tsv" not in sizes:
        raise DownloadError(f"{url}: lists no {DATASET}/participants.tsv among {len(sizes)} files; is it the address?")

    def fetch_paths(paths: list[str]) -> int:
        files = [Remote(address(url, f"{DATASET}/{path}"), root / path, sizes[path]) for path in paths]
        return fetch(files, jobs=jobs, progress=progress)

    count = fetch_paths([path for path in _DOCUMENTS if path in sizes])
    scans = sorted(path for path in sizes if _SCAN.fullmatch(path))
    table = pd.DataFrame({"path": scans, "bytes": [sizes[path] for path in scans]})
    write_csv(root / FILES, table, separator="\t")
    frame = build_manifest(root, config).manifest
    wanted = [Path(cell).relative_to(root).as_posix() for column in PATHS for cell in frame[column] if cell]
    sidecars = [sidecar_path(path).as_posix() for path in wanted]
    return count + fetch_paths(sorted(path for path in {*wanted, *sidecars} if path in sizes))


def _participants(root: Path, config: Config, notes: list[str]) -> dict[str, dict[str, str]]:
    if not (root / "participants.tsv").is_file():
        raise ManifestError(f"{root}: no participants.tsv; {remedy(config)}")
    needed = ["sex", *(f"{age}{wave}" for age in ("agemri_w", "agepetamy_w") for wave in "123")]
    try:
        table = read_by_key(root / "participants.tsv", "participant_id", "sub-", notes=notes, needed=needed)
    except ManifestError as error:
        raise ManifestError(f"{error}; for another data set than {DATASET} use `resdm manifest bids`") from None
    return {person: {name: "" if cell == _NOT_SEEN else cell for name, cell in cells.items()}
            for person, cells in table.items()}  # fmt: skip


def _listed(root: Path) -> dict[str, int | None]:
    """Read `FILES`: path → bytes; empty without the file."""
    table = read_by_key(root / FILES, "path", needed=("bytes",), notes=[])
    return {path: int(cells["bytes"]) if cells["bytes"].isdecimal() else None for path, cells in table.items()}


# ── notes ─────────────────────────────────────────────────────────────────────────────────────────


def _triplets(scans: pd.DataFrame, config: Config) -> str:
    """Count the waves with all three scans."""
    window = config.cohort.match.window_days
    days = {key: dict(zip(group["target"], group["day"], strict=True))
            for key, group in scans[::-1].groupby(["person", "session"])}  # fmt: skip
    full = {key: of for key, of in days.items() if set(of) == set(PATHS)}
    near = [key for key, of in full.items() if all(abs(of[tracer] - of["t1w"]) <= window for tracer in TRACERS)]
    people = [len({person for person, _ in keys}) for keys in (full, near)]
    return (
        f"{len(full)} waves of {people[0]} people have T1w, amyloid and tau PET; in {len(near)} of them ({people[1]} "
        f"people) both PETs lie within {window:g} days of the T1w, by ages in whole years"
    )


def _table_faults(table: dict[str, dict[str, str]]) -> Iterator[str]:
    """Find intervals between waves that contradict the ages: with ages in whole years, a year or more."""
    people = pd.DataFrame.from_dict(table, orient="index")
    for name, age in _INTERVALS.items():
        for one, other in (("1", "2"), ("2", "3"), ("1", "3")):
            column = f"{name}w{one}tow{other}"
            if column not in people:
                continue
            years = pd.to_numeric(people[column], errors="coerce")
            ages = [pd.to_numeric(people[f"{age}{wave}"], errors="coerce") for wave in (one, other)]
            for person in years.index[(years - (ages[1] - ages[0])).abs() >= 1]:
                yield (
                    f"{person}: participants.tsv gives {years[person]:g} years from wave {one} to {other} ({column}), "
                    f"but ages of {ages[0][person]:g} and {ages[1][person]:g}; the ages are used"
                )
            for person in years.index[years.notna() & (ages[0].isna() | ages[1].isna())]:
                yield f"{person}: participants.tsv has {column} {years[person]:g}, but no age at one of the two waves"


def _sidecar_faults(scans: pd.DataFrame) -> list[str]:
    """State each fault once, with the number of sidecars and the first of them."""
    faults: dict[str, list[str]] = defaultdict(list)
    pets = scans[scans["target"] != "t1w"]
    for cell, label in pets[["path", "tracer"]].itertuples(index=False):
        sidecar, name = read_sidecar(cell), sidecar_path(cell).name
        if sidecar is None:
            faults["cannot be read as JSON"].append(name)
        for key, value in conflicting_tracers(sidecar or {}, label):
            faults[f"{key} {value!r} is not {label}; the file name's tracer is used"].append(name)
    counted = {fault: f"{len(names)} of {len(pets)} PETs: {fault} (as {min(names)})" for fault, names in faults.items()}
    return [f"sidecars of {counted[fault]}" for fault in sorted(counted)]
