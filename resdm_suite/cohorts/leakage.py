"""No person in two splits: the error, and the checks that every stage makes when it reads people."""

import gzip
import hashlib
import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sized
from pathlib import Path

import pandas as pd

from resdm.settings import TRACERS

REPEATS = 0.98
"""Correlation with the target's SUVR above which an attribute counts as derived from it."""

MIN_SESSIONS = 20
"""Fewest sessions for this test of an attribute."""

_SHOWN = 5  # people that one error names

Scan = tuple[str, str, str]  # person, session, path


class LeakageError(ValueError):
    """A person in more than one split, or in the wrong one: scores on test people would be invalid."""


def check_leakage(frame: pd.DataFrame, where: str) -> None:
    """Raise `LeakageError` where sessions of one person (``person``, ``split``) lie in different splits.

    Names that differ by capitals only are refused too: they may be one person, and on some disks they are one folder.
    ``where`` names the file and starts the message.
    """
    people = pd.Series(frame["person"].astype(str).unique(), dtype=str)
    twins = people[people.str.lower().duplicated(keep=False)]
    if len(twins):
        raise LeakageError(
            f"{where}: {_count(twins, 'person', 'people')} whose names differ by capitals only: "
            f"{_named(sorted(twins, key=str.lower))}. Give one person one name, and two people two names"
        )
    splits = frame.groupby("person")["split"].unique()
    both = splits[splits.map(len) > 1]
    if len(both):
        raise LeakageError(
            f"{where}: {_count(both, 'person is', 'people are')} in more than one split: "
            f"{_named(f'{person} in ' + ' and '.join(sorted(map(str, names))) for person, names in both.items())}. "
            "All sessions of a person belong in one; draw the split again by person"
        )


def check_shared_scans(frame: pd.DataFrame, where: str, *, contents: bool = False) -> None:
    """Raise `LeakageError` where two people (``person``, ``session``, ``t1w`` and tracers) share a scan.

    They share it by one path, by links to one file or, with ``contents``, by the same bytes, compressed or not. Whole
    files are read only where the size is the same, and gzip files only where the checksum is the same too.
    """
    scans = [(row["person"], row["session"], row[what])
             for row in frame.to_dict("records") for what in ("t1w", *TRACERS) if row[what]]  # fmt: skip
    groups = _grouped(scans, _identity)
    if contents and not groups:
        groups = _grouped([scan for scan in scans if os.path.getsize(scan[2])], _length)
        for key in (_checksum, _digest):
            groups = [shared for group in groups for shared in _grouped(group, key)]
    if groups:
        pairs = [(group[0], next(scan for scan in group if scan[0] != group[0][0])) for group in groups]
        raise LeakageError(
            f"{where}: {_count(pairs, 'scan is', 'scans are')} shared by two people: "
            f"{_named(f'{one[2]} of {one[0]} {one[1]} and {two[2]} of {two[0]} {two[1]}' for one, two in pairs)}. "
            "A scan belongs to one person; correct the path, leave one out, or give both rows one person"
        )


def _grouped(scans: Iterable[Scan], key: Callable[[str], object]) -> list[list[Scan]]:
    """Groups of scans whose files have one key, and which are of two people or more."""
    groups: dict[object, list[Scan]] = defaultdict(list)
    for scan in scans:
        groups[key(scan[2])].append(scan)
    return [group for group in groups.values() if len({person for person, *_ in group}) > 1]


def _identity(path: str) -> object:
    """Identify a file by its place on disk, which links share; one that is absent by its path."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.normpath(path)
    return status.st_dev, status.st_ino


def _length(path: str) -> int:
    """Bytes of an image; of a gzip file by its last four bytes."""
    return _trailer(path)[1] if path.endswith(".gz") else os.path.getsize(path)


def _checksum(path: str) -> int:
    """CRC-32 of an image; of a gzip file as stored there."""
    return _trailer(path)[0] if path.endswith(".gz") else zlib.crc32(Path(path).read_bytes())


def _trailer(path: str) -> tuple[int, int]:
    """The last eight bytes of a gzip file: checksum and length of its content."""
    with open(path, "rb") as file:
        file.seek(max(os.path.getsize(path) - 8, 0))
        return struct.unpack("<II", file.read().rjust(8))


def _digest(path: str) -> object:
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (OSError, EOFError, zlib.error):
        return path  # broken: preprocessing names it


def check_tested(frame: pd.DataFrame, index: pd.DataFrame, where: str) -> None:
    """Raise `LeakageError` where scores (``person``) belong to people whose split in the index is not ``test``."""
    splits = index.loc[index["person"].isin(set(frame["person"])), ["person", "split"]].drop_duplicates()
    others = splits[splits["split"] != "test"]
    if len(others):
        raise LeakageError(
            f"{where}: {_count(others, 'person is', 'people are')} not of the test split of index.csv: "
            f"{_named(f'{person} in {split}' for person, split in others.itertuples(index=False))}. Tables are of test "
            "people; synthesise, score and read the test people again"
        )


def check_attributes(index: pd.DataFrame, names: Iterable[str], where: str) -> None:
    """Raise `LeakageError` for an attribute of a prompt that repeats the target PET's SUVR or status.

    A number is refused where it correlates with a summary SUVR by more than `REPEATS`, two values (numbers or
    categories) where each has one status; both over twenty sessions or more. Names are checked by the profile.
    """
    for name in names:
        for tracer in TRACERS:
            repeated, columns = "", [name, f"{tracer}_suvr", f"{tracer}_status"]
            known = index[index[name].notna() & (index[name].astype(str) != "")].reindex(columns=columns)
            suvr, status = (known.dropna(subset=column) for column in columns[1:])
            if len(suvr) >= MIN_SESSIONS and pd.api.types.is_numeric_dtype(index[name]) and suvr[name].nunique() > 2:
                r = suvr[name].astype(float).corr(suvr[f"{tracer}_suvr"].astype(float))
                repeated = f"correlates with {tracer}_suvr by {r:.3f}" if abs(r) > REPEATS else ""
            if len(status) >= MIN_SESSIONS and status[name].nunique() == 2:
                alike = status.groupby(name)[f"{tracer}_status"].nunique().max() == 1
                both = status[f"{tracer}_status"].nunique() == 2
                repeated = f"equals {tracer}_status" if alike and both else repeated
            if repeated:
                raise LeakageError(
                    f"{where}: column {name!r}, a field of a prompt, {repeated} in {len(known)} sessions: it is "
                    "derived from the PET that the model shall predict; leave it out of prior.fields"
                )


def _count(things: Sized, one: str, many: str) -> str:
    return f"1 {one}" if len(things) == 1 else f"{len(things)} {many}"


def _named(people: Iterable[str]) -> str:
    people = list(people)
    return "; ".join(people[:_SHOWN]) + (f" … and {len(people) - _SHOWN} more" if len(people) > _SHOWN else "")
