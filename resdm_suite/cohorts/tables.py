"""Text tables of any source: cells as text by line, and the meaning of words, numbers and dates."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

MISSING = {"", "n/a", "na", "nan", "none", "null"}
"""Cells without a value, in lower case."""

SEX_WORDS = {"f": "F", "female": "F", "m": "M", "male": "M"}
DIAGNOSIS_WORDS = {
    **dict.fromkeys(("cn", "nc", "nl", "hc", "control", "smc"), "CN"),
    **dict.fromkeys(("mci", "emci", "lmci"), "MCI"),
    **dict.fromkeys(("ad", "dementia", "dem"), "AD"),
}


class ManifestError(ValueError):
    """A table or data set that cannot be used; the message names file, row, column, value and remedy."""


def visible(paths: Iterable[Path]) -> list[Path]:
    """Sorted paths without the ``._`` twins (AppleDouble) that a Mac writes on foreign disks."""
    return sorted(path for path in paths if not path.name.startswith("._"))


def images(paths: Iterable[Path]) -> list[Path]:
    """Sorted NIfTI files."""
    return [path for path in visible(paths) if path.name.endswith((".nii", ".nii.gz"))]


def read_table(path: Path, separator: str = ",", *, strict: bool = False, any_encoding: bool = False) -> pd.DataFrame:
    """Read a CSV or TSV as text.

    Parameters
    ----------
    path : Path
    separator : str
    strict : bool
        Refuse rows shorter than the header, loose quotes and repeated columns.
    any_encoding : bool
        Read UTF-16, and Latin-1 where the file is not UTF-8.

    Returns
    -------
    DataFrame
        Stripped cells, ``""`` where missing; the index is the line on which a row ends.

    Raises
    ------
    ManifestError
        Not UTF-8, not a table, or a row that does not fit the header.
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
        text = raw.removeprefix(codecs.BOM_UTF8).decode("utf-16" if utf16 else "latin-1")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=strict)
    rows, lines = [], []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append(cells)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ManifestError(f"{path}: row {reader.line_num}: not {kind}: {error}; save it as {kind} UTF-8") from None
    if not rows:
        raise ManifestError(f"{path}: empty; expected a header and one row for each session")
    header, *rows = rows
    if separator == "," and len(header) == 1 and re.search("[;\t]", header[0]):
        raise ManifestError(f"{path}: columns are separated by semicolons or tabs; save the table with commas")
    for number, (cells, line) in enumerate(zip(rows, lines[1:], strict=True)):
        if len(cells) != len(header) and (strict or any(cells[len(header) :])):
            raise ManifestError(
                f"{path}: row {line}: found {len(cells)} cells, expected {len(header)} as in the header; "
                "write decimals with a point, and quote cells that hold a comma"
            )
        cells = (cells + [""] * len(header))[: len(header)]
        rows[number] = ["" if cell.lower() in MISSING else cell for cell in cells]
    frame = pd.DataFrame(rows, columns=header, index=lines[1:], dtype=str)
    return frame if strict else frame.loc[:, ~frame.columns.duplicated()]


def read_by_key(
    path: Path, key: str, prefix: str = "", separator: str = "\t", *, any_encoding: bool = False
) -> pd.DataFrame | None:
    """Read a table by its key column, whose cells get a prefix; column names in lower case. None without a file."""
    if not path.is_file():
        return None
    table = read_table(path, separator, any_encoding=any_encoding)
    table.columns = table.columns.str.lower()
    if key not in table:
        raise ManifestError(f"{path}: no column {key}; found {', '.join(table.columns)}")
    table[key] = [name if name.startswith(prefix) else prefix + name for name in table[key]]
    repeated = table[key][table[key].duplicated()]
    if len(repeated):
        raise ManifestError(f"{path}: {repeated.iloc[0]} has more than one row; keep one ({len(repeated)} such rows)")
    return table.set_index(key)


def to_number(text: str, where: str, column: str, low: float = -np.inf, high: float = np.inf) -> float:
    """Read a cell as a number, NaN where it is empty; `ManifestError` where it is none or out of range."""
    try:
        value = float(text) if text else np.nan
    except ValueError:
        value = None
    if value is None or value < low or value > high:
        limits = f" from {low:g} to {high:g}" if np.isfinite(low) else ""
        raise ManifestError(f"{where}: {column}: found {text!r}, expected a number{limits}; correct the cell")
    return value


def to_age(text: str, where: str, notes: list[str]) -> float:
    """Read an age in years; ``89+``, as BIDS writes ages above 89, is read as 89 and noted."""
    if re.fullmatch(r"\d+\+", text):
        notes.append(f"{where}: age {text!r} is read as {text[:-1]}")
    return to_number(text.removesuffix("+"), where, "age")


def to_sex(text: str, where: str) -> str:
    """Read F or M, empty where the cell is; `ManifestError` for other words."""
    if text and text.lower() not in SEX_WORDS:
        raise ManifestError(f"{where}: unknown sex {text!r}; expected {', '.join(SEX_WORDS)} or n/a")
    return SEX_WORDS.get(text.lower(), "")


def to_diagnosis(text: str, where: str, notes: list[str]) -> str:
    """Read CN, MCI or AD; other words are noted and left empty."""
    if text and text.lower() not in DIAGNOSIS_WORDS:
        notes.append(f"{where}: diagnosis {text!r} is none of CN, MCI, AD; left empty")
    return DIAGNOSIS_WORDS.get(text.lower(), "")


def to_date(text: str) -> pd.Timestamp | None:
    """Read a date without its time of day: NaT where it is missing, None where the cell holds no date."""
    if text.lower() in MISSING:
        return pd.NaT
    for form, length in (("%Y-%m-%d", 10), ("%m/%d/%Y", None), ("%Y%m%d", 8)):
        try:
            return pd.Timestamp(datetime.strptime(re.split("[ T]", text)[0][:length], form))
        except ValueError:
            continue
    return None


def day_number(date: pd.Timestamp | None) -> float:
    """Days since the calendar began, NaN without a date."""
    return np.nan if date is None or pd.isna(date) else float(date.toordinal())
