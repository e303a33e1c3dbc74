"""The folders that the released code reads → the manifest.

What that code (GitHub ``Ouzaixin/ResDM``, commit f5b35d8) says of its data, and all of it: ``data/whole_MRI``,
``whole_Abeta`` and ``whole_Tau`` hold ``<ID>.nii`` under one name a person, such as a participant's number without its
underscores; a PET may be absent. ``data_info/train.txt``, ``validation.txt`` and ``test.txt`` hold IDs between blanks.
``data_info/data_info.csv`` (``info.csv`` in its code) is Latin-1 with columns ``ID``, ``Age``, ``Sex``, and a label
whose name is not told. Volumes are read as stored: 128³ voxels, taken to lie in [0, 1]; neither space nor scaling is
told.

So two things are looked at rather than believed. **Space**: where the headers of a session's scans say MNI152 (code 4),
they are resampled, else registered like native scans. **Intensity**: SUVR is measured again in the reference region,
which undoes a factor, but no offset: after per-volume min–max scaling with a minimum above 0 it is not the true SUVR.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from resdm.settings import TRACERS
from resdm_suite.cohorts.manifest import (
    COLUMNS,
    EMPTY,
    PATHS,
    SPACE,
    SPLITS,
    LeakageError,
    ManifestError,
    check_leakage,
)
from resdm_suite.cohorts.matching import Found, close_manifest
from resdm_suite.cohorts.readers.bids import DIAGNOSIS_WORDS, SEX_WORDS, to_number
from resdm_suite.profiles import Config

_FOLDERS = {"t1w": "whole_MRI", "amyloid": "whole_Abeta", "tau": "whole_Tau"}
_TABLES = ("data_info.csv", "info.csv")  # of its README, and of its code
_LABELS = ("label", "dx", "diagnosis", "group")
_PARTICIPANT = re.compile(r"(\d{3})_?S_?(\d{4})(.*)")
_MNI_CODE = 4


def build_manifest(root: str | Path, config: Config, *, draw: bool = False) -> Found:
    """Read the released code's folders, and its split.

    IDs of one participant (the same number, whatever follows it) are sessions of one person. The layout does not tell
    tracers: the first of each target in ``cohort.tracers`` is written down.

    Parameters
    ----------
    root : path
        Holds ``data`` and ``data_info``.
    config : Config
    draw : bool
        Do not read the lists: everybody with an MRI is taken, and the split is left empty.

    Returns
    -------
    Found
        With ``split`` as the lists have it.

    Raises
    ------
    ManifestError
        A folder, a table, a list or a value that is not as expected.
    LeakageError
        A person in two lists.
    """
    root = Path(root).absolute()
    for folder in ("data/whole_MRI", "data_info"):
        if not (root / folder).is_dir():
            raise ManifestError(
                f"{root}: no folder {folder}; expected the released layout: data/whole_{{MRI,Abeta,Tau}} and data_info"
            )
    notes: list[str] = []
    table, told = _table(root)
    volumes = {what: _volumes(root / "data" / folder) for what, folder in _FOLDERS.items()}
    splits = {} if draw else _lists(root)
    spare = sorted(set(volumes["t1w"]) - set(splits)) if splits else []
    if spare:
        notes.append(f"{len(spare)} volumes of data/whole_MRI are in no list ({spare[0]} …); not used")
    rows = [
        _row(name, splits.get(name, ""), volumes, told, table, config, notes)
        for name in sorted(splits or volumes["t1w"])
    ]
    if not rows:
        raise ManifestError(f"{root}: no <ID>.nii in data/whole_MRI, or no ID in the lists of data_info")
    frame = pd.DataFrame(rows)[list(COLUMNS)]
    if not draw:
        try:
            check_leakage(frame, str(root / "data_info"))
        except LeakageError as error:
            raise LeakageError(f"{error}: `resdm manifest released --draw-split`") from None
    said = Counter(frame["space"])
    notes.append(
        f"headers say {SPACE} for {said[SPACE]} sessions, which are resampled; the other {said['']} are registered"
    )
    return close_manifest(frame, config, root, notes)


def _person(name: str) -> tuple[str, str]:
    """Person and session of an ID; what follows a participant's number tells the session."""
    match = _PARTICIPANT.fullmatch(name)
    number, rest = (f"{match[1]}S{match[2]}", match[3]) if match else (name, "")
    return f"sub-{_label(number)}", f"ses-{_label(rest) or '1'}"


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", text)


def _volumes(folder: Path) -> dict[str, Path]:
    """ID → file."""
    files = sorted(path for path in folder.glob("*") if path.name.endswith((".nii", ".nii.gz")))
    return {path.name.removesuffix(".gz").removesuffix(".nii"): path for path in files}


def _lists(root: Path) -> dict[str, str]:
    """ID → split."""
    splits: dict[str, str] = {}
    for split in SPLITS:
        path = root / "data_info" / f"{split}.txt"
        if not path.is_file():
            raise ManifestError(f"{path}: no such list; write one, or draw the split: --draw-split")
        for name in path.read_text(encoding="utf-8-sig").split():
            name = name.removesuffix(".gz").removesuffix(".nii")
            if splits.setdefault(name, split) != split:
                raise LeakageError(
                    f"{path}: {name} is in {splits[name]}.txt too. All sessions of a person belong in one list; take "
                    "it out of one, or draw the split by person: `resdm manifest released --draw-split`"
                )
    return splits


def _table(root: Path) -> tuple[Path, pd.DataFrame]:
    """``data_info.csv`` by ID: column names in lower case, cells as text."""
    path = next((root / "data_info" / name for name in _TABLES if (root / "data_info" / name).is_file()), None)
    if path is None:
        raise ManifestError(f"{root / 'data_info'}: no {_TABLES[0]}; expected a table with columns ID, Age, Sex")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # as the released code reads it
    try:
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ManifestError(f"{path}: not a table of values separated by commas: {error}") from None
    table.columns = [column.strip().lower() for column in table.columns]
    absent = [column for column in ("id", "age", "sex") if column not in table]
    if absent:
        raise ManifestError(
            f"{path}: no column {', '.join(absent)}; found {', '.join(table.columns)}, expected ID, Age, Sex"
        )
    table = table.apply(lambda column: column.str.strip()).replace(["n/a", "N/A", "NA", "NaN", "nan"], "")
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise ManifestError(f"{path}: {twice.iloc[0]} has more than one row; keep one ({len(twice)} such rows)")
    return path, table.set_index("id")


def _row(
    name: str,
    split: str,
    volumes: dict[str, dict[str, Path]],
    told: pd.DataFrame,
    table: Path,
    config: Config,
    notes: list[str],
) -> dict[str, object]:
    person, session = _person(name)
    row: dict[str, object] = EMPTY | {"person": person, "session": session, "split": split}
    row |= {what: str(volumes[what].get(name, "")) for what in PATHS}
    for tracer in TRACERS:
        if row[tracer]:
            label = next((label for label, target in config.cohort.tracers.items() if target == tracer), None)
            if label is None:
                raise ManifestError(f"cohort.tracers names no {tracer} tracer; the released layout holds {tracer} PET")
            row[f"{tracer}_tracer"] = label
    spaces = [_space(Path(str(row[what]))) for what in PATHS if row[what]]
    row["space"] = SPACE if spaces and all(space == SPACE for space in spaces) else ""
    if name not in told.index:
        notes.append(f"{name}: not in {table.name}")
        return row
    person_told = told.loc[name]
    sex = person_told["sex"].lower()
    if sex and sex not in SEX_WORDS:
        raise ManifestError(f"{table}: {name}: unknown sex {person_told['sex']!r}; expected {', '.join(SEX_WORDS)}")
    label = next((person_told[column] for column in _LABELS if person_told.get(column)), "")
    if label and label.lower() not in DIAGNOSIS_WORDS:
        notes.append(f"{name}: label {label!r} is none of CN, MCI, AD; left empty")
    return row | {
        "age": to_number(f"{table}: {name}", "Age", person_told["age"]),
        "sex": SEX_WORDS.get(sex, ""),
        "diagnosis": DIAGNOSIS_WORDS.get(label.lower(), ""),
    }


def _space(path: Path) -> str:
    """MNI152 where the header says so of the affine it gives; "" for anything else, a broken file included."""
    try:
        image = nib.load(path)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError):
        return ""  # preprocessing says what is wrong with it
    header = image.header
    code = int(header["sform_code"]) or int(header["qform_code"])
    return SPACE if code == _MNI_CODE and np.isfinite(image.affine).all() else ""
