"""Text tables of any source: cells as text by line, and the meaning of words, numbers and dates."""

import codecs
import csv
import io
import re
from collections.abc import Sequence
from datetime import date, time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resdm.io import stored_json
from resdm_suite.paths import DESCRIPTION, stem, visible

MISSING = {"", "n/a", "na", "nan", "none", "null"}
"""Cells without a value, in lower case."""

SEX_WORDS = {"f": "F", "female": "F", "m": "M", "male": "M"}
DIAGNOSIS_WORDS = {
    **dict.fromkeys(("cn", "nc", "nl", "hc", "control", "smc"), "CN"),
    **dict.fromkeys(("mci", "emci", "lmci"), "MCI"),
    **dict.fromkeys(("ad", "dementia", "dem"), "AD"),
}


NIFTI = (".nii", ".nii.gz")


class ManifestError(ValueError):
    """A table or data set that cannot be used; the message names file, row, column, value and remedy."""


def images(root: Path, *patterns: str) -> list[Path]:
    """Sorted NIfTI files below a folder."""
    return sorted(path for pattern in patterns for path in visible(root, pattern) if path.name.lower().endswith(NIFTI))


def read_table(
    path: Path, separator: str = ",", *, notes: list[str] | None = None, any_encoding: bool = False
) -> pd.DataFrame:
    """Read a CSV or TSV as text: stripped cells, ``""`` where missing; the index is the line on which a row ends.

    Rows that do not fit the header, and columns that differ from one before by capitals at most, are ignored, with a
    note in ``notes``; without it such rows raise `ManifestError`, as does what is no table or not UTF-8. With
    ``any_encoding``, UTF-16 is read, and Latin-1 where the file is not UTF-8.
    """
    kind = "CSV" if separator == "," else "TSV"
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not any_encoding:
            line, byte = raw[: error.start].count(b"\n") + 1, error.object[error.start]
            raise ManifestError(f"{path}: row {line}: not UTF-8 (byte 0x{byte:02x}); save it as {kind} UTF-8") from None
        utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-16" if utf16 else "latin-1", "replace")
    if "\0" in text and notes is None:
        line = text.partition("\0")[0].count("\n") + 1
        raise ManifestError(f"{path}: row {line}: not {kind}: it holds a zero byte")
    text = text.replace("\0", "")
    # BIDS defines no quoting in TSV: a single quote character must not join rows
    quoting = csv.QUOTE_NONE if separator == "\t" and text.count('"') % 2 else csv.QUOTE_MINIMAL
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(lines, delimiter=separator, strict=notes is None, quoting=quoting)
    rows: dict[int, list[str]] = {}
    end = 0
    try:
        for row in reader:
            begin, end = end, reader.line_num
            alone = list(csv.reader(lines[begin:end], delimiter=separator, quoting=csv.QUOTE_NONE))
            # a cell may span lines, but lines that are rows by themselves were joined by lone quotes
            joined = bool(rows) and any(len(cells) == len(next(iter(rows.values()))) for cells in alone[1:])
            if joined and notes is not None:
                notes.append(f"{path}: rows {begin + 1} to {end}: quotes join them; each line is read as a row")
            for line, cells in enumerate(alone, begin + 1) if joined else [(end, row)]:
                if any(cells := [cell.strip() for cell in cells]):
                    rows[line] = ["" if cell.lower() in MISSING else cell for cell in cells]
    except csv.Error as error:
        raise ManifestError(f"{path}: row {reader.line_num}: not {kind}: {error}; save it as {kind} UTF-8") from None
    if not rows:
        raise ManifestError(f"{path}: empty; expected a header and one row for each session")
    header = rows.pop(next(iter(rows)))
    if separator == "," and len(header) == 1 and re.search("[;\t]", header[0]):
        raise ManifestError(f"{path}: columns are separated by semicolons or tabs; save the table with commas")
    for line, cells in list(rows.items()):
        if len(cells) != len(header) and (notes is None or any(cells[len(header) :])):
            fault = f"{path}: row {line}: found {len(cells)} cells, expected {len(header)} as in the header; "
            if notes is None:
                raise ManifestError(fault + "write decimals with a point, and quote cells that hold a comma")
            notes.append(fault + "the row is not used")
            del rows[line]
        else:
            rows[line] = (cells + [""] * len(header))[: len(header)]
    frame = pd.DataFrame(list(rows.values()), columns=header, index=list(rows), dtype=str)
    if notes is None:
        return frame
    twice = frame.columns.str.lower().duplicated()
    notes += [f"{path}: column {name} stands twice; the first is used" for name in frame.columns[twice]]
    return frame.loc[:, ~twice]


def read_by_key(
    path: Path,
    key: str,
    prefix: str = "",
    separator: str = "\t",
    *,
    notes: list[str],
    needed: Sequence[str] = (),
    any_encoding: bool = False,
) -> dict[str, dict[str, str]]:
    """Read a table by its key column, whose cells get a prefix: key → cells by lower-case column.

    Empty without a file; a link to none (of git-annex) is an error. Keys whose file name begins with a dot are ignored.
    A key of several different rows is not used; every fault of a row is noted.
    """
    if path.is_symlink() and not path.exists():
        raise ManifestError(
            f"{path}: a link to a file that is not here; get it, `datalad get {path.name}` in its folder"
        )
    if not path.is_file():
        return {}
    table = read_table(path, separator, notes=notes, any_encoding=any_encoding)
    table.columns = table.columns.str.lower()
    absent = [name for name in (key, *needed) if name not in table]
    if absent:
        raise ManifestError(f"{path}: no column {', '.join(absent)}; found {', '.join(table.columns)}")
    rows: dict[str, dict[str, str]] = {}
    repeated = set()
    for line, row in table.to_dict("index").items():
        name = row.pop(key)
        if not name:
            notes.append(f"{path}: row {line}: {key} is empty; the row is not used")
        elif not Path(name).name.startswith("."):
            name = name if name.startswith(prefix) else prefix + name
            if rows.setdefault(name, row) != row:
                repeated.add(name)
    for name in sorted(repeated):
        notes.append(f"{path}: {name} has more than one row, and they differ; none is used; keep one")
        del rows[name]
    return rows


def read_sidecar(scan: str | Path) -> dict[str, Any] | None:
    """Read the JSON of a scan, with the entries that folders above it up to the data set's state (BIDS inheritance).

    Of a derivative, what its JSON does not state is taken from the raw image of its ``Sources`` that has its suffix.
    Empty where there is none, None where one cannot be read.
    """
    content = _inherited(scan)
    root = next((folder for folder in Path(scan).parents if (folder / DESCRIPTION).is_file()), None)
    sources = (content or {}).get("Sources")
    for uri in sources if root and isinstance(sources, list) else ():
        image = re.fullmatch(rf"bids:raw:(.+_{stem(Path(scan).name).rpartition('_')[2]}\.nii(?:\.gz)?)", str(uri))
        if image and (raw := raw_dataset(root)):
            return (_inherited(raw / image[1]) or {}) | content
    return content


def raw_dataset(root: Path) -> Path | None:
    """The data set of which one in ``root`` holds derivatives: its link ``raw``, else the one around it.

    Links may be places in the container in which a tool ran; around it is ``<raw>/derivatives/<name>``.
    """
    link = ((stored_json(root / DESCRIPTION) or {}).get("DatasetLinks") or {}).get("raw", "")
    places = [root / str(link).removeprefix("file://")] if link else []
    places += [root.absolute().parents[1]] if root.absolute().parent.name == "derivatives" else []
    return next((place for place in places if (place / DESCRIPTION).is_file()), None)


def _inherited(scan: str | Path) -> dict[str, Any] | None:
    entities, parents = stem(Path(scan).name).split("_"), list(Path(scan).parents)
    subject = next((n for n, folder in enumerate(parents) if folder.name.startswith("sub-")), -1)
    content: dict[str, Any] = {}
    for folder in reversed(parents[: subject + 2]):
        for path in sorted(visible(folder, f"*{entities[-1]}.json"), key=lambda path: path.name.count("_")):
            another = path.stem != "_".join(entities) and any(path.with_suffix(end).exists() for end in NIFTI)
            if set(path.stem.split("_")) <= set(entities) and not another:
                stated = stored_json(path)
                if stated is None:
                    return None
                content |= stated
    return content


def to_number(text: str) -> float | None:
    """Read a number: NaN for an empty cell, None for other text."""
    if not text:
        return np.nan
    return float(text) if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text) else None


def to_age(text: str) -> float | None:
    """Read an age in years as `to_number` does; ``89+`` and ``>89`` (above a limit) are 89, ``072Y`` is 72."""
    match = re.fullmatch(r"[>≥]?=? ?([0-9.]+) ?(\+|y|yrs?|years?)?", text, re.IGNORECASE)
    return to_number(match[1] if match else text)


def to_sex(text: str) -> str | None:
    """Read F or M: empty for an empty cell, None for other words."""
    return SEX_WORDS.get(text.lower()) if text else ""


def to_diagnosis(text: str) -> str | None:
    """Read CN, MCI or AD as `to_sex` does; of a change (``MCI to Dementia``) the outcome."""
    return DIAGNOSIS_WORDS.get(text.lower().rpartition(" to ")[2]) if text else ""


def to_date(text: str) -> pd.Timestamp | None:
    """Read an ISO 8601 date, without its time of day: NaT for an empty cell, None for other text."""
    if text.lower() in MISSING:
        return pd.NaT
    day, *times = re.split("[T ]", text, maxsplit=1)
    try:
        for part in times:
            time.fromisoformat(part)
        return pd.Timestamp(date.fromisoformat(day)).as_unit("s")
    except ValueError:
        return None


def day_number(date: pd.Timestamp | None) -> float:
    """Days since the calendar began, NaN without a date."""
    return np.nan if date is None or pd.isna(date) else float(date.toordinal())
