"""The manifest: one table of sessions, checked cell by cell, and its split by person.

``manifest.csv`` is what every source of data is turned into and what every later stage starts from. Missing values are
empty cells; in memory they are ``""`` in columns of text and NaN (``<NA>`` in columns of whole numbers) elsewhere.
Paths are absolute in memory; in the file those below the manifest's folder are relative to it.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa

from resdm.io import write_csv
from resdm.settings import AGE_RANGE, SEXES, TRACERS, derive_seed
from resdm_suite.cohorts.leakage import LeakageError, check_leakage  # noqa: F401 - readers of manifests look for both here
from resdm_suite.profiles import SplitConfig

SPLITS = ("train", "validation", "test")
"""In the order in which tables print them."""

DIAGNOSES = ("CN", "MCI", "AD")
"""Codes of the ``diagnosis`` column: cognitively normal, mild cognitive impairment, Alzheimer's dementia."""

SPACE = "MNI152"
"""The space that preprocessing brings every scan to: that of nilearn's packaged MNI152 maps."""

PATHS = ("t1w", *TRACERS)
"""Columns that name a file."""

_SHOWN = 5  # problems that one error spells out; it counts the rest


class ManifestError(ValueError):
    """A table of people that cannot be used: names file, row, column, what was found and expected, and the remedy."""


# ── the columns ───────────────────────────────────────────────────────────────────────────────────


def _text(description: str, *checks: pa.Check, required: bool = False, remedy: str = "") -> pa.Column:
    return pa.Column(str, list(checks), description=description, required=required, metadata={"remedy": remedy})


def _number(
    description: str, low: float, high: float, unit: str, *, required: bool = False, whole: bool = False
) -> pa.Column:
    check = pa.Check.in_range(low, high, error=f"{'a whole number' if whole else 'a number'} from {low:g} to {high:g}")
    remedy = f"give {unit}, with a decimal point" if unit else ""
    metadata = {"remedy": remedy, "unit": unit}
    dtype = "Int64" if whole else float
    return pa.Column(
        dtype, check, nullable=not required, coerce=True, required=required, description=description, metadata=metadata
    )


def _label(prefix: str) -> pa.Check:
    return pa.Check.str_matches(rf"^{prefix}-[A-Za-z0-9]+$", error=f"{prefix}- and then letters and digits, as in BIDS")


def _one_of(*codes: str, empty: bool = False) -> pa.Check:
    return pa.Check.isin([*codes, ""] if empty else codes, error=", ".join(codes) + (" or nothing" if empty else ""))


_TRACER_LABEL = pa.Check.str_matches(r"^[A-Za-z0-9]*$", error="a label of letters and digits, as 18FAV45")
_NEEDED = pa.Check.str_length(min_value=1, error="a path")

STATUS_NOTES = {
    "dlbs": "Status of DLBS: the SUVR of the built-in regions (ellipsoids in MNI mm, after an affine registration) at "
    "or above UC Berkeley's cut-offs, which hold for FreeSurfer regions in the pipeline that they were derived with. "
    "They were not calibrated on these regions: a label says high or low uptake, no amyloid or tau positivity.",
}
"""``cohort.kind`` → what a table of status must say where labels are made by a cut-off of another pipeline."""

SCHEMA = pa.DataFrameSchema(
    {
        "person": _text("Identifier of a person; all sessions of one person share a split.", _label("sub"),
                        required=True, remedy="rename the person"),
        "session": _text("Identifier of a visit of that person.", _label("ses"), required=True,
                         remedy="rename the session"),
        "age": _number("Age at the T1 scan.", *AGE_RANGE, "years", required=True),
        "sex": _text("Sex.", _one_of(*SEXES), required=True, remedy="recode the sex, or leave the person out"),
        "diagnosis": _text("Clinical diagnosis at that visit.", _one_of(*DIAGNOSES, empty=True),
                           remedy="recode the diagnosis, or leave the cell empty"),
        "education": _number("Years of education.", 0, 40, "years"),
        "mmse": _number("Mini-Mental State Examination.", 0, 30, "points"),
        "t1w": _text("T1-weighted MRI, NIfTI.", _NEEDED, required=True, remedy="give the path of the scan"),
        "amyloid": _text("Amyloid PET, NIfTI, 3D or frames of 4D; empty where there is none."),
        "tau": _text("Tau PET, likewise. A session needs at least one of the two."),
        "amyloid_tracer": _text("BIDS label of the amyloid tracer; needed where there is a scan.", _TRACER_LABEL,
                                remedy="write the tracer's BIDS label"),
        "tau_tracer": _text("BIDS label of the tau tracer; needed where there is a scan.", _TRACER_LABEL,
                            remedy="write the tracer's BIDS label"),
        "space": _text("MNI152 where the session's scans lie in MNI152 space already: resampled, not registered.",
                       _one_of(SPACE, empty=True), remedy=f"write {SPACE}, or nothing for scans in their native space"),
        "amyloid_days": _number("From the T1 scan to the amyloid PET.", -7305, 7305, "days"),
        "tau_days": _number("From the T1 scan to the tau PET.", -7305, 7305, "days"),
        "amyloid_suvr": _number("Cortical summary of amyloid uptake; measured by preprocessing where empty.",
                                0.2, 10, "SUVR"),
        "tau_suvr": _number("Meta-temporal tau uptake; measured by preprocessing where empty.", 0.2, 10, "SUVR"),
        "amyloid_centiloid": _number("Global amyloid on the Centiloid scale, where the study gives it.",
                                     -150, 400, "Centiloid"),
        "amyloid_status": _number("1: amyloid-positive; by cut-off of the SUVR where empty.", 0, 1, "", whole=True),
        "tau_status": _number("1: tau-positive; by cut-off of the SUVR where empty.", 0, 1, "", whole=True),
        "split": _text("Which people train, select and test; drawn by person where empty.",
                       _one_of(*SPLITS, empty=True), remedy="correct the split, or leave the column out"),
    },
    strict=True,
    unique=["person", "session"],
)  # fmt: skip
"""One row a session. The order of columns is the file's."""

COLUMNS = tuple(SCHEMA.columns)
EMPTY = {name: np.nan if column.coerce else "" for name, column in SCHEMA.columns.items()}
"""A session of which nothing is known, for readers to fill in."""

_REQUIRED = ("person", "session", "age", "sex", "t1w")
_NOTHING = {"", "n/a", "na", "nan", "none", "null"}


# ── reading and writing ───────────────────────────────────────────────────────────────────────────


def read_manifest(
    path: str | Path, *, files: bool = True, split: bool = True, tracers: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Read and check a manifest.

    Parameters
    ----------
    path : path
        CSV, UTF-8.
    files : bool
        Also check that every scan is there.
    split : bool
        Read the column ``split``; else it is left empty.
    tracers : mapping, optional
        BIDS label → target; a label that is not in it, or of the other target, is an error.

    Returns
    -------
    DataFrame
        All `COLUMNS`, one row a session, paths absolute.

    Raises
    ------
    ManifestError
        Anything that does not fit, the first few problems spelt out and the rest counted.
    LeakageError
        A person in two splits.
    """
    path = Path(path)
    header, cells, lines = _read_cells(path)
    frame = pd.DataFrame(cells, columns=header, dtype=str)
    unknown, absent = [c for c in header if c not in COLUMNS], [c for c in _REQUIRED if c not in header]
    if unknown or absent or len(set(header)) < len(header):
        _wrong_columns(path, header, unknown, absent)
    problems = []
    for name, column in SCHEMA.columns.items():
        if name not in frame or (name == "split" and not split):
            frame[name] = ""
        frame[name] = frame[name].str.strip()
        frame.loc[frame[name].str.lower().isin(_NOTHING), name] = ""
        if column.coerce:  # a number
            frame[name], bad = _numbers(frame[name])
            expected = column.checks[0].error
            remedy = "; write decimals with a point" if bad["found"].str.contains(",").any() else ""
            problems += [(row, name, found, expected + remedy) for row, found in bad.itertuples(index=False)]
    _raise(path, problems, frame, lines)
    frame = check_manifest(frame[list(COLUMNS)], path, lines)
    if tracers is not None:
        _check_tracers(frame, tracers, path, lines)
    for column in PATHS:
        frame[column] = [str(path.parent.absolute() / cell) if cell else "" for cell in frame[column]]
    if files:
        check_files(frame, path, lines)
    return frame


def check_manifest(frame: pd.DataFrame, where: str | Path, lines: Sequence[int] | None = None) -> pd.DataFrame:
    """Check every cell of a manifest in memory, and that nobody is in two splits.

    Parameters
    ----------
    frame : DataFrame
        All `COLUMNS`.
    where : str or path
        Starts the messages.
    lines : sequence of int, optional
        Line of each row in its file; by default as `write_manifest` would write them.

    Returns
    -------
    DataFrame
        The same rows with the schema's types.
    """
    lines = range(2, len(frame) + 2) if lines is None else lines
    frame = frame.reset_index(drop=True)
    if frame.empty:
        raise ManifestError(f"{where}: no session; expected one row for each visit of a person")
    problems: list[tuple[int, str, object, str]] = []
    try:
        frame = SCHEMA.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        for case in error.failure_cases.sort_values("index", kind="stable").to_dict("records"):
            name, found, row = case["column"], case["failure_case"], case["index"]
            if pd.isna(row):
                raise ManifestError(f"{where}: {found}: {case['check']}; columns are: {', '.join(COLUMNS)}") from None
            if case["check"] == "multiple_fields_uniqueness":
                if name == "session":
                    problems.append((row, name, found, "once; the person has this session twice; keep one row"))
                continue
            column = SCHEMA.columns[name]
            expected, remedy = column.checks[0].error, column.metadata["remedy"]
            problems.append(
                (row, name, "" if pd.isna(found) else found, f"{expected}{f'; {remedy}' if remedy else ''}")
            )
    for tracer in TRACERS:
        for row in np.flatnonzero((frame[tracer] != "") & (frame[f"{tracer}_tracer"] == "")):
            problems.append((row, f"{tracer}_tracer", "", f"the tracer of {Path(frame[tracer][row]).name}"))
    for row in np.flatnonzero((frame["amyloid"] == "") & (frame["tau"] == "")):
        problems.append((row, "amyloid, tau", "", "at least one PET; leave the session out"))
    _raise(where, problems, frame, lines)
    check_leakage(frame, str(where))
    return frame


def _check_tracers(frame: pd.DataFrame, tracers: Mapping[str, str], where: Path, lines: Sequence[int]) -> None:
    """A label that nobody knows has no cut-off, and may be of another scale: never pooled in silence."""
    problems = []
    for target in TRACERS:
        known = [label for label, its in tracers.items() if its == target]
        expected = f"{', '.join(known) or 'none'}; write that label, or name the tracer in cohort.tracers"
        for row in np.flatnonzero((frame[target] != "") & ~frame[f"{target}_tracer"].isin(known)):
            problems.append((row, f"{target}_tracer", frame[f"{target}_tracer"][row], expected))
    _raise(where, sorted(problems, key=lambda problem: problem[0]), frame, lines)


def check_files(frame: pd.DataFrame, where: str | Path, lines: Sequence[int] | None = None) -> None:
    """Raise `ManifestError` where a scan that the manifest names is not there."""
    lines = range(2, len(frame) + 2) if lines is None else lines
    problems = [
        (row, column, cell, "a file; correct the path or leave the session out")
        for column in PATHS
        for row, cell in enumerate(frame[column])
        if cell and not Path(cell).is_file()
    ]
    _raise(where, sorted(problems, key=lambda problem: problem[0]), frame, lines)


def write_manifest(frame: pd.DataFrame, path: str | Path) -> Path:
    """Check a manifest and write it, rows by person and session, paths below its folder relative."""
    path = Path(path)
    frame = check_manifest(frame.sort_values(["person", "session"]), path)
    folder = path.parent.absolute()

    def shorten(cell: str) -> str:
        if not cell or not Path(cell).is_absolute():
            return cell
        return Path(cell).relative_to(folder).as_posix() if Path(cell).is_relative_to(folder) else cell

    frame = frame.assign(**{column: frame[column].map(shorten) for column in PATHS})
    return write_csv(path, frame[list(COLUMNS)], "%.10g")


def _read_cells(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Header, rows and the line each row ends on."""
    if path.is_dir():
        raise ManifestError(f"{path}: a folder; expected a table, CSV UTF-8; move the folder away")
    if path.is_symlink() and not path.is_file():
        raise ManifestError(f"{path}: a link that leads nowhere or in a circle; link to the table, or put it here")
    if not path.is_file():
        raise ManifestError(f"{path}: no such manifest; make one with `resdm manifest`")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ManifestError(
            f"{path}: row {line}: not UTF-8 (byte 0x{error.object[error.start]:02x}); save the table as CSV UTF-8"
        ) from None
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    rows, lines = [], []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append([cell.strip() for cell in cells] if not rows else cells)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise ManifestError(f"{path}: row {reader.line_num}: not CSV: {error}; save the table as CSV UTF-8") from None
    if not rows:
        raise ManifestError(f"{path}: empty; expected a header and one row for each session")
    header = rows[0]
    if len(header) == 1 and re.search("[;\t]", header[0]):
        raise ManifestError(f"{path}: columns are separated by semicolons or tabs; save the table with commas")
    for cells, line in zip(rows, lines, strict=True):
        if len(cells) != len(header):
            raise ManifestError(
                f"{path}: row {line}: found {len(cells)} cells, expected {len(header)} as in the header; "
                "write decimals with a point, and quote cells that hold a comma"
            )
    return header, rows[1:], lines[1:]


def _numbers(column: pd.Series) -> tuple[pd.Series, pd.DataFrame]:
    """Text → numbers with NaN for empty; and the cells (row, found) that are none."""

    def number(cell: str) -> float:
        try:
            return float(cell) if cell else math.nan
        except ValueError:
            return math.inf

    values = column.map(number).astype(float)
    whole = column.name.endswith("_status")
    bad = np.isinf(values) | (values.notna() & (values % 1 != 0) if whole else False)
    found = pd.DataFrame({"row": np.flatnonzero(bad), "found": column[bad].to_numpy(dtype=object)})
    return values.mask(bad).astype("Int64" if whole else float), found.astype({"found": str})


def _wrong_columns(path: Path, header: list[str], unknown: list[str], absent: list[str]) -> None:
    said = []
    for column in unknown:
        close = difflib.get_close_matches(column, COLUMNS, n=1)
        said.append(f"unknown column {column!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    if absent:
        said.append(f"missing {', '.join(absent)}")
    said += [f"column {column!r} twice" for column in sorted({c for c in header if header.count(c) > 1})]
    raise ManifestError(f"{path}: {'; '.join(said)}; rename or remove them. Columns are: {', '.join(COLUMNS)}")


def _raise(
    where: str | Path, problems: Iterable[tuple[int, str, object, str]], frame: pd.DataFrame, lines: Sequence[int]
) -> None:
    problems = list(problems)
    if not problems:
        return
    said = [
        f"{where}: row {lines[row]} ({frame['person'][row]} {frame['session'][row]}), {column}: "
        f"found {'nothing' if found == '' else repr(found)}, expected {expected}"
        for row, column, found, expected in problems[:_SHOWN]
    ]
    more = [f"… and {len(problems) - _SHOWN} more, {len(problems)} in all"] if len(problems) > _SHOWN else []
    raise ManifestError("\n".join(said + more))


# ── the split ─────────────────────────────────────────────────────────────────────────────────────


def split_people(frame: pd.DataFrame, split: SplitConfig, seed: int) -> pd.DataFrame:
    """Draw the split by person, stratified by diagnosis at the first session, tracers present and sex.

    People are put in order by stratum, and at random (by seed and name) within one; then every n-th is taken. So each
    split holds its share of every stratum to within a person, and strata too rare for that share with their
    neighbours. The order of the rows does not matter. With ``folds``, every n-th from the ``fold``-th on is tested, so
    that over all folds everybody is a test person once; the validation people are drawn from the rest.

    Parameters
    ----------
    frame : DataFrame
        Sessions of a manifest; a split that is there already is replaced.
    split : SplitConfig
    seed : int

    Returns
    -------
    DataFrame
        The same rows with ``split``.

    Raises
    ------
    ManifestError
        Too few people for every split to get one.
    """
    people = {person: (*stratum, derive_seed(seed, "split", person)) for person, stratum in _strata(frame).items()}
    order = sorted(people, key=people.__getitem__)
    turn = derive_seed(seed, "split") % len(order)  # else who comes first in the order could never be a test person
    order = order[turn:] + order[:turn]
    if split.folds is None:
        share, (rest, test) = split.test, _every(order, split.test)
    else:
        share, test = 1 / split.folds, order[split.fold :: split.folds]
        rest = [person for person in order if person not in set(test)]
    train, validation = _every(rest, split.validation / (1 - share))
    drawn = {"train": train, "validation": validation, "test": test}
    for name, members in drawn.items():
        if not members:
            raise ManifestError(f"{len(order)} people are too few: nobody is left for {name}; change cohort.split")
    which = {person: name for name, members in drawn.items() for person in members}
    return frame.assign(split=frame["person"].map(which))


def _strata(frame: pd.DataFrame) -> dict[str, tuple[str, str, str]]:
    """Diagnosis at the first session, tracers present (``++``, ``+-``, ``-+``) and sex of every person."""
    return {
        person: (
            sessions["diagnosis"].iloc[0],
            "".join("+" if (sessions[tracer] != "").any() else "-" for tracer in TRACERS),
            sessions["sex"].iloc[0],
        )
        for person, sessions in frame.sort_values("session").groupby("person")
    }


def split_digest(frame: pd.DataFrame) -> str:
    """SHA-256 (hex) of who is in which split: sorted lines of person, tab, split. Nobody can be told from it."""
    pairs = sorted(set(zip(frame["person"], frame["split"], strict=True)))
    return hashlib.sha256("".join(f"{person}\t{split}\n" for person, split in pairs).encode()).hexdigest()


def split_card(frame: pd.DataFrame, split: SplitConfig | None, seed: int) -> dict[str, Any]:
    """What ``split.json`` says of a split, counts only.

    Parameters
    ----------
    frame : DataFrame
        Sessions of a manifest with their split.
    split : SplitConfig or None
        How it was drawn; None where the source came with it.
    seed : int

    Returns
    -------
    dict
        digest (see `split_digest`), drawn (``seed``, ``folds`` and ``fold`` or ``test``, ``validation``; None where
        ``split`` is), people by split, and people by split of each stratum.
    """
    people = frame.drop_duplicates("person").set_index("person")["split"]
    strata = pd.Series({person: " ".join(part or "–" for part in s) for person, s in _strata(frame).items()})
    counts = pd.crosstab(strata.rename("stratum"), people).reindex(columns=list(SPLITS), fill_value=0)
    drawn = None
    if split is not None:
        parts = {"test": split.test} if split.folds is None else {"folds": split.folds, "fold": split.fold}
        drawn = {"seed": seed, **parts, "validation": split.validation}
    return {
        "digest": split_digest(frame),
        "drawn": drawn,
        "people": {name: int(counts[name].sum()) for name in SPLITS},
        "strata": {stratum: {name: int(row[name]) for name in SPLITS} for stratum, row in counts.iterrows()},
    }


def _every(order: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """Evenly spaced people: (those passed over, those taken); ``fraction`` of them, rounded, are taken."""
    taken = [math.floor((i + 1) * fraction + 0.5) > math.floor(i * fraction + 0.5) for i in range(len(order))]
    return [p for p, t in zip(order, taken, strict=True) if not t], [p for p, t in zip(order, taken, strict=True) if t]
