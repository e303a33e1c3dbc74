"""Stored tables, sidecars and volumes, read and checked: an error names the file, the row and the remedy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from resdm_suite.anatomy import Grid
from resdm_suite.paths import sidecar_path
from resdm_suite.records import checked, read_json

SESSION = ["person", "session"]


class Numbers(NamedTuple):
    """Permitted numbers of a column, ends included; ``empty`` permits missing ones."""

    low: float = -1e9
    high: float = 1e9
    empty: bool = False


Rule = Numbers | tuple | type[str] | None
"""Permitted values of a column: numbers, some values, any text (`str`), anything (``None``)."""


def read_table(
    path: Path, columns: Mapping[str, Rule], keys: Sequence[str], what: str, stage: str, also: Mapping[str, Rule] = {},
    *, empty: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """A CSV table with ``columns`` that a stage wrote; columns with a `Numbers` rule are numbers, others as they are.

    ``keys`` identify a row, ``what`` and ``stage`` name the table and the stage to run. Columns of ``also`` may be
    absent; ``empty`` permits a table without rows. Raises `FileNotFoundError`, or `ValueError` for no table, missing
    columns, a value that is not permitted, or a row that occurs twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no {what}; run {stage} first")
    rules = {**columns, **also}
    text = {name: str for name, rule in rules.items() if rule in (None, str) or isinstance(rule[0], str)}
    try:
        frame = pd.read_csv(checked(path), dtype=text)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no CSV table ({str(error).strip()}); run {stage} again") from None
    missing = ", ".join(name for name in columns if name not in frame)
    fault = f"columns missing: {missing}" if missing else "no row" if frame.empty and not empty else ""
    fault = fault or "" if path.read_bytes().endswith(b"\n") else "cut short, the last line has no end"
    if fault or not isinstance(frame.index, pd.RangeIndex):  # pandas takes one cell too many for an index
        raise ValueError(f"{path}: {fault or 'rows are longer than the header'}; run {stage} again")
    for name, rule in rules.items():
        if name not in frame or rule is None:
            continue
        expected, values = "text", frame[name]
        good = values.notna()
        if isinstance(rule, Numbers):
            good = pd.to_numeric(values, errors="coerce").between(*rule[:2]) | (values.isna() & rule.empty)
            expected = f"a number from {rule.low:g} to {rule.high:g}"
        elif rule is not str:
            good, expected = values.isin(rule), " or ".join("nothing" if one != one else str(one) for one in rule)
        if not good.all():
            row = int(np.argmin(good))
            raise ValueError(
                f"{path}, row {row + 2}: {name} is {str(values[row])!r}, expected {expected}; run {stage} again"
            )
    twice = frame.duplicated(list(keys))
    if twice.any():
        row = int(np.argmax(twice))
        raise ValueError(f"{path}, row {row + 2}: {' '.join(map(str, frame.loc[row, keys]))} twice; run {stage} again")
    return frame


def read_sidecar(image: str | Path) -> dict[str, Any]:
    """The JSON beside an image; `FileNotFoundError` or `ValueError` where there is none, or no object in it."""
    path = sidecar_path(image)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no sidecar beside {Path(image).name}; make the image again")
    return read_json(path)


def read_volume(path: str | Path, grid: Grid) -> np.ndarray:
    """A stored volume (X, Y, Z), float32, in [0, 1], on the profile's grid (RAS+, MNI152).

    Raises `FileNotFoundError`, or `ValueError` naming the file for an unreadable one, another grid, voxels that are not
    finite, or intensities outside [0, 1].
    """
    volume = grid.read(checked(path))
    broken = int(np.count_nonzero(~np.isfinite(volume)))
    if broken:
        raise ValueError(f"{path}: {broken} of {volume.size} voxels are not finite (NaN or infinite)")
    low, high = float(volume.min()), float(volume.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"{path}: intensities run from {low:.3f} to {high:.3f}; expected [0, 1] (is this a volume in SUVR?)"
        )
    return volume
