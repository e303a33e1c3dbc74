"""The manifest: one table of sessions, checked cell by cell.

Every source becomes ``manifest.csv``, and every later stage starts from it. Missing values are empty cells; in memory
they are ``""`` in text columns, NaN in numbers and ``<NA>`` in whole numbers. Paths are absolute in memory; in the
file, paths below the manifest's folder are relative to it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa

from resdm.io import write_csv
from resdm.settings import AGE_RANGE, SEXES, TRACERS, suggest
from resdm_suite.cohorts.leakage import LeakageError, check_leakage, check_shared_scans  # noqa: F401 - for other modules
from resdm_suite.cohorts.tables import ManifestError, read_table, to_number
from resdm_suite.profiles import CohortConfig

SPLITS = ("train", "validation", "test")
"""In the order of the tables."""

DIAGNOSES = ("CN", "MCI", "AD")
"""Cognitively normal, mild cognitive impairment, Alzheimer's dementia."""

SPACE = "MNI152"
"""Column ``space`` of sessions whose scans lie in a space of MNI152 already; a name of BIDS for it begins with this."""

PATHS = ("t1w", *TRACERS)
"""Columns that name a scan."""

TRANSFORMS = tuple(f"{what}_transform" for what in PATHS)
"""Columns that name the transform of a scan that another tool registered; written where one is filled."""

IDENTITY = "identity"
"""Transform of a PET that lies on the T1 already."""

_SHOWN = 5  # problems that one error spells out; it counts the rest


# ── the columns ───────────────────────────────────────────────────────────────────────────────────


def _text(description: str, *checks: pa.Check, required: bool = False, remedy: str = "") -> pa.Column:
    return pa.Column(str, list(checks), description=description, required=required, metadata={"remedy": remedy})


def _number(
    description: str, low: float, high: float, unit: str, *, required: bool = False, whole: bool = False
) -> pa.Column:
    check = pa.Check.in_range(low, high, error=f"{'a whole number' if whole else 'a number'} from {low:g} to {high:g}")
    metadata = {"remedy": f"give {unit}, with a decimal point" if unit else "", "unit": unit}
    options = {"nullable": not required, "required": required, "description": description, "metadata": metadata}
    return pa.Column("Int64" if whole else float, check, coerce=True, **options)


def _label(prefix: str) -> pa.Check:
    return pa.Check.str_matches(rf"^{prefix}-[A-Za-z0-9]+$", error=f"{prefix}- and then letters and digits, as in BIDS")


def _one_of(*codes: str, empty: bool = False) -> pa.Check:
    return pa.Check.isin([*codes, ""] if empty else codes, error=", ".join(codes) + (" or nothing" if empty else ""))


_TRACER_LABEL = pa.Check.str_matches(r"^[A-Za-z0-9]*$", error="a label of letters and digits, as 18FAV45")
_SPACE_NAME = pa.Check.str_matches(rf"^({SPACE}[A-Za-z0-9]*)?$", error=f"{SPACE}, a name that begins so, or nothing")
_NEEDED = pa.Check.str_length(min_value=1, error="a path")


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
        "space": _text("MNI152, or its name in BIDS (MNI152NLin2009cAsym), where the session's scans lie in such a "
                       "space already: resampled, not registered.", _SPACE_NAME,
                       remedy=f"write {SPACE}, or nothing for scans in their native space"),
        "t1w_transform": _text("ITK transform from the T1 to MNI152, as fMRIPrep writes it; the T1 is not registered."),
        "amyloid_transform": _text("ITK transform from the amyloid PET to the T1; identity where it lies on the T1."),
        "tau_transform": _text("Likewise for the tau PET."),
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
"""One row per session. The order of columns is the file's."""

COLUMNS = tuple(SCHEMA.columns)
EMPTY = {name: np.nan if column.coerce else "" for name, column in SCHEMA.columns.items()}
"""The values of a session without any known value."""

_REQUIRED = ("person", "session", "age", "sex", "t1w")


def read_manifest(
    path: str | Path, *, files: bool = True, split: bool = True, tracers: Mapping[str, str] | None = None,
    attributes: Iterable[str] = (),
) -> pd.DataFrame:  # fmt: skip
    """Read and check a manifest, CSV in UTF-8: one row per session, absolute paths.

    The table has all `COLUMNS` and those of ``attributes`` (`Config.attributes`, read as text) that are there; any
    other column is an error. ``files``: every scan must exist. Without ``split``, that column is left empty. With
    ``tracers`` (BIDS label → target), a label that is absent there, or of the other target, is an error.

    Raises
    ------
    ManifestError
        A table, column or cell that does not fit; the first few problems are spelled out and the rest counted.
    LeakageError
        A person in two splits, or a scan of two people.
    """
    path = Path(path)
    if path.is_dir():
        raise ManifestError(f"{path}: a folder; expected a table, CSV UTF-8; move the folder away")
    if path.is_symlink() and not path.is_file():
        raise ManifestError(f"{path}: a link that leads nowhere or in a circle; link to the table, or put it here")
    if not path.is_file():
        raise ManifestError(f"{path}: no such manifest; make one with `resdm manifest`")
    frame = read_table(path)
    lines = frame.index
    more = [name for name in attributes if name in frame and name not in COLUMNS]
    _check_columns(path, list(frame.columns), more)
    frame = frame.reset_index(drop=True)
    problems = []
    for name, column in SCHEMA.columns.items():
        if name not in frame or (name == "split" and not split):
            frame[name] = ""
        if column.coerce:
            cells, whole = frame[name], str(column.dtype) == "Int64"
            values = [_number_of(cell, whole) for cell in cells]
            for row in (row for row, value in enumerate(values) if value is None):
                remedy = "; write decimals with a point" if "," in cells[row] else ""
                problems.append((row, name, cells[row], column.checks[0].error + remedy))
            frame[name] = pd.Series(values, dtype=float).astype("Int64" if whole else float)
    _raise(path, problems, frame, lines)
    for column in (*PATHS, *TRANSFORMS):
        whole = [cell if cell in ("", IDENTITY) else str(path.parent.absolute() / cell) for cell in frame[column]]
        frame[column] = whole
    frame = check_manifest(frame[[*COLUMNS, *more]], path, lines)
    if tracers is not None:
        _check_tracers(frame, tracers, path, lines)
    if files:
        cells = [(row, column, frame[column][row]) for row in frame.index for column in (*PATHS, *TRANSFORMS)]
        absent = [cell for cell in cells if cell[2] not in ("", IDENTITY) and not Path(cell[2]).is_file()]
        _raise(path, [(*cell, "a file; correct the path or leave the session out") for cell in absent], frame, lines)
    return frame


def check_manifest(frame: pd.DataFrame, where: str | Path, lines: Sequence[int] | None = None) -> pd.DataFrame:
    """Check every cell of a manifest in memory, its splits and shared scans; return it with the schema's types.

    ``where`` starts the messages. ``lines`` are the rows' lines in their file, by default as `write_manifest` writes.
    """
    lines = range(2, len(frame) + 2) if lines is None else lines
    frame = frame.reset_index(drop=True)
    if frame.empty:
        raise ManifestError(f"{where}: no session; expected one row for each visit of a person")
    problems: list[tuple[int, str, object, str]] = []
    further = frame[attribute_columns(frame)]
    try:
        frame = pd.concat([SCHEMA.validate(frame.drop(columns=further.columns), lazy=True), further], axis=1)
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
            expected = "; ".join(filter(None, [column.checks[0].error, column.metadata["remedy"]]))
            problems.append((row, name, "" if pd.isna(found) else found, expected))
    for tracer in TRACERS:
        for row in np.flatnonzero((frame[tracer] != "") & (frame[f"{tracer}_tracer"] == "")):
            problems.append((row, f"{tracer}_tracer", "", f"the tracer of {Path(frame[tracer][row]).name}"))
    for row in np.flatnonzero(frame["t1w_transform"] == IDENTITY):
        problems.append((row, "t1w_transform", IDENTITY, f"a file; for a T1 in MNI152 space write space {SPACE}"))
    for row in np.flatnonzero((frame["amyloid"] == "") & (frame["tau"] == "")):
        problems.append((row, "amyloid, tau", "", "at least one PET; leave the session out"))
    for row in np.flatnonzero(frame.groupby("person")["sex"].transform("nunique") > 1):
        problems.append((row, "sex", frame["sex"][row], "one sex in all sessions of a person; correct or leave out"))
    _raise(where, problems, frame, lines)
    check_leakage(frame, str(where))
    check_shared_scans(frame, str(where))
    return frame


def write_manifest(frame: pd.DataFrame, path: str | Path) -> Path:
    """Check a manifest and write it: rows by person and session, paths below its folder relative."""
    path = Path(path)
    frame = check_manifest(frame.sort_values(["person", "session"]), path)
    folder = path.parent.absolute()

    def shorten(cell: str) -> str:
        return Path(cell).relative_to(folder).as_posix() if cell and Path(cell).is_relative_to(folder) else cell

    frame = frame.assign(**{column: frame[column].map(shorten) for column in (*PATHS, *TRANSFORMS)})
    written = [name for name in COLUMNS if name not in TRANSFORMS or (frame[name] != "").any()]
    return write_csv(path, frame[[*written, *attribute_columns(frame)]], "%.10g")


def status_by_cutoff(suvr: float, target: str, label: str, cohort: CohortConfig) -> float:
    """1 or 0 by the cut-off of a target's tracer (its BIDS label); NaN where that or the SUVR is not known."""
    cutoff = cohort.cutoff(target, label)
    return float(suvr >= cutoff) if np.isfinite(suvr) and np.isfinite(cutoff) else np.nan


def attribute_columns(frame: pd.DataFrame) -> list[str]:
    """Columns of a manifest in memory that are not of the schema: attributes for prompts, as text."""
    return [name for name in frame if name not in COLUMNS]


def _number_of(cell: str, whole: bool) -> float | None:
    """Read a number, NaN where the cell is empty; None where it holds no finite (whole) number."""
    value = to_number(cell)
    return None if value is None or np.isinf(value) or (whole and value % 1 > 0) else value


def _check_columns(path: Path, header: list[str], more: Sequence[str]) -> None:
    known = {*COLUMNS, *more}
    faults = [f"unknown column {column!r}{suggest(column, COLUMNS)}" for column in header if column not in known]
    absent = [column for column in _REQUIRED if column not in header]
    faults += [f"missing {', '.join(absent)}"] if absent else []
    faults += [f"column {column!r} twice" for column in sorted({c for c in header if header.count(c) > 1})]
    if faults:
        raise ManifestError(
            f"{path}: {'; '.join(faults)}; rename or remove them, or name an attribute in prior.fields. Columns are: "
            f"{', '.join(COLUMNS)}"
        )


def _check_tracers(frame: pd.DataFrame, tracers: Mapping[str, str], where: Path, lines: Sequence[int]) -> None:
    """Refuse unknown labels: they have no cut-off and may lie on another scale, so they must not be pooled."""
    problems = []
    for target in TRACERS:
        known = [label for label, its in tracers.items() if its == target]
        expected = f"{', '.join(known) or 'none'}; write that label, or name the tracer in cohort.tracers"
        for row in np.flatnonzero((frame[target] != "") & ~frame[f"{target}_tracer"].isin(known)):
            problems.append((row, f"{target}_tracer", frame[f"{target}_tracer"][row], expected))
    _raise(where, sorted(problems, key=lambda problem: problem[0]), frame, lines)


def _raise(
    where: str | Path, problems: Iterable[tuple[int, str, object, str]], frame: pd.DataFrame, lines: Sequence[int]
) -> None:
    """Raise `ManifestError` if there are problems: row, column, value and expected content."""
    messages = []
    for row, column, found, expected in problems:
        place = f"row {lines[row]} ({frame['person'][row]} {frame['session'][row]}), {column}"
        messages.append(f"{where}: {place}: found {repr(found) if found != '' else 'nothing'}, expected {expected}")
    if len(messages) > _SHOWN:
        messages[_SHOWN:] = [f"… and {len(messages) - _SHOWN} more, {len(messages)} in all"]
    if messages:
        raise ManifestError("\n".join(messages))
