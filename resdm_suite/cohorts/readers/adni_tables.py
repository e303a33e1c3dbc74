"""ADNI's study tables, old and new: PET measurements, and age, sex, diagnosis and MMSE on a given day.

The reader uses UC Berkeley's PET tables (6 mm, or the older ones of one tracer each) and either ADNIMERGE or PTDEMOG,
DXSUM and MMSE, as downloaded from LONI. The date in a file's name is free; of several files of one table the newest is
read. A person is the RID as a whole number. Of several columns of one thing (``DIAGNOSIS``, ``DXCHANGE``, ``DXCURREN``:
each is filled in its phase of the study) a row gives the first that is filled.

Missing are empty cells, NA, and the study's codes -1 and -4 in columns without negative values; a Centiloid or a QC
flag of -1 is a value. Dates are YYYY-MM-DD or MM/DD/YYYY.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from resdm.settings import AGE_RANGE
from resdm_suite.cohorts.manifest import ManifestError
from resdm_suite.cohorts.tables import DIAGNOSIS_WORDS, SEX_WORDS, read_table, to_date, to_number
from resdm_suite.paths import visible

AMYLOID_LABELS = {"FBP": "18FAV45", "AV45": "18FAV45", "FBB": "18FFBB", "NAV": "18FNAV4694", "NAV4694": "18FNAV4694"}
TAU_LABELS = {"FTP": "18FAV1451", "AV1451": "18FAV1451", "MK6240": "18FMK6240", "PI2620": "18FPI2620"}
"""Names of tracers in the tables → BIDS label. The tau tracers have different scales and are never pooled."""

PASSED = 1
"""Least ``qc_flag`` of a row that is used: 2 is a pass, 1 a partial one, 0 a fail; below, nothing was assessed."""

ROW_DAYS = 90
"""A row of a PET table belongs to a scan at most this many days away; a person's scans lie a year or more apart."""

VISIT_DAYS = 365
"""A diagnosis or a score is taken from at most this many days away."""

_AMYLOID = {"UCBERKELEY_AMY_6MM": None, "UCBERKELEYAV45": "18FAV45", "UCBERKELEYFBB": "18FFBB"}
_TAU = {"UCBERKELEY_TAU_6MM": None, "UCBERKELEYAV1451": "18FAV1451"}  # new before old: its rows win
_SEX = SEX_WORDS | {"1": "M", "2": "F"}
_DIAGNOSIS = DIAGNOSIS_WORDS | {"1": "CN", "2": "MCI", "3": "AD"}
_CHANGE = dict(zip("123456789", ("CN", "MCI", "AD", "MCI", "AD", "AD", "CN", "MCI", "CN"), strict=True))  # DXCHANGE
_QC = {"pass": "2", "partial": "1", "fail": "0"}
_CODES = {"-4", "-1", "-4.0", "-1.0"}  # missing
_OF_PEOPLE = ("PTDEMOG", "DXSUM", "MMSE")  # ADNIMERGE holds what these do


class StudyTables(NamedTuple):
    """The study tables.

    ``pets``: one row per PET (rid, tracer, date, suvr, status, centiloid, qc, image: LONI's number, source: file and
    row). ``people``: by RID, any of sex, education, age with baseline (its day), born. ``diagnoses``, ``mmse``: rid,
    date, value, by date. ``visits``: day by RID and month. ``absent``: tables that were not found.
    """

    pets: pd.DataFrame
    people: dict[int, dict[str, Any]]
    diagnoses: pd.DataFrame
    mmse: pd.DataFrame
    visits: dict[tuple[int, int], pd.Timestamp]
    notes: list[str]
    absent: list[str]

    def age(self, rid: int, date: pd.Timestamp) -> float:
        """Age on a day, years: AGE + (date − EXAMDATE_bl)/365.25, or from the date of birth; NaN if not known."""
        person = self.people.get(rid, {})
        for start, years in (("baseline", person.get("age")), ("born", 0.0)):
            if years is not None and pd.notna(person.get(start)) and pd.notna(date):
                return years + (date - person[start]).days / 365.25
        return np.nan

    def diagnosis(self, rid: int, date: pd.Timestamp) -> str:
        """CN, MCI or AD at the visit nearest to a day; empty if there is none within `VISIT_DAYS`."""
        return _value(self.diagnoses, rid, date, "")

    def score(self, rid: int, date: pd.Timestamp) -> float:
        """MMSE at the visit nearest to a day, likewise; NaN if there is none."""
        return _value(self.mmse, rid, date, np.nan)

    def tracer(self, rid: int, date: pd.Timestamp, image: str, words: str, by_date: bool) -> str:
        """Label of a PET by LONI's number of the image, else the one tracer of that person and day; empty if none.

        ``words`` of its sequence may name the target; an FDG has no row. Without ``by_date``, numbers alone count.
        """
        rows = self.pets[(self.pets["rid"] == rid) & ("fdg" not in words)]
        same = rows[(rows["image"] == image) & (image != "")]
        if same.empty and by_date:
            same = rows[rows["date"] == date]
            for word, labels in (("amyloid", AMYLOID_LABELS), ("tau", TAU_LABELS)):
                same = same[same["tracer"].isin(labels.values()) | (word not in words.split())]
        labels = same["tracer"].unique()
        return labels[0] if len(labels) == 1 else ""

    def pet(self, rid: int, tracer: str, date: pd.Timestamp, image: str = "") -> pd.Series | None:
        """The row of a PET: by LONI's number of the image, or the nearest of that tracer within `ROW_DAYS`."""
        rows = self.pets[(self.pets["rid"] == rid) & (self.pets["tracer"] == tracer)]
        same = rows[(rows["image"] == image) & (image != "")]
        return same.iloc[0] if len(same) else _nearest(rows, date, ROW_DAYS)


def rid_of(text: str) -> int | None:
    """The RID in a RID, a PTID or a BIDS name of Clinica's, padded with zeros or not; None if there is none."""
    match = re.fullmatch(r"(?:(?:sub-)?(?:ADNI)?\d{3}_?S_?)?(\d{1,6})(?:\.0+)?", text.strip(), re.IGNORECASE)
    return int(match[1]) if match else None


def diagnosis_of(text: str) -> str | None:
    """CN, MCI or AD; of a change (``MCI to Dementia``) the outcome."""
    return _DIAGNOSIS.get(text.lower().rpartition(" to ")[2])


def _outcome_of(text: str) -> str | None:
    """Likewise of DXCHANGE, whose codes are those of a change."""
    return _CHANGE.get(text) or diagnosis_of(text)


def read_tables(folder: Path) -> StudyTables:
    """Read the study tables in a folder, or in a folder of it; impossible cells are taken as missing, with a note.

    A table without a needed column, or a file that is no table, raises `ManifestError`.
    """
    notes: list[str] = []
    files = [path for path in [*visible(folder, "*"), *visible(folder, "*/*")] if path.suffix.lower() == ".csv"]
    found: dict[str, list[Path]] = {}

    def read(*stems: str) -> Table | None:
        if dated := _dated(files, stems, notes):
            found[stems[-1]] = dated
        return Table.read(dated[-1], notes) if dated else None

    pets = [_amyloid_rows(table, label) for stem, label in _AMYLOID.items() if (table := read(stem))]
    pets += [_tau_rows(table, label) for stem, label in _TAU.items() if (table := read(stem))]
    people: dict[int, dict[str, Any]] = {}
    visits = []
    if merged := read("ADNIMERGE"):
        age, baseline = merged.numbers("AGE", limits=AGE_RANGE), merged.dates("EXAMDATE_BL")
        both = age.notna() & baseline.notna()
        merged.add_people(people, age=age[both], baseline=baseline[both])
        words, score = merged.words(DX=diagnosis_of, DXCHANGE=diagnosis_of), merged.numbers("MMSE", limits=(0, 30))
        visits.append(merged.visits(["EXAMDATE"], ["VISCODE"], diagnosis=words, mmse=score))
    if table := read("PTDEMOG"):
        table.add_people(people, born=_born(table))
    if table := read("DXSUM_PDXCONV_ADNIALL", "DXSUM_PDXCONV", "DXSUM"):
        words = table.words(DIAGNOSIS=diagnosis_of, DXCHANGE=_outcome_of, DXCURREN=diagnosis_of)
        visits.append(table.visits(["EXAMDATE", "VISDATE"], ["VISCODE2", "VISCODE"], diagnosis=words))
    if table := read("MMSE"):
        score = table.numbers("MMSCORE", "MMSE", limits=(0, 30))
        visits.append(table.visits(["VISDATE", "EXAMDATE"], ["VISCODE2", "VISCODE"], mmse=score))
    rows, days = _dated_visits(visits, notes)
    stems = "|".join([*_AMYLOID, *_TAU, *_OF_PEOPLE, "ADNIMERGE"])
    unread = {*files}.difference(*found.values())
    notes += [f"{path}: not read, for its name is not that of a download or another such table is read" for path in
              sorted(unread) if re.match(f"(All_Subjects_)?({stems})", path.name, re.IGNORECASE)]  # fmt: skip
    absent = [stem for stem in _OF_PEOPLE if not found.keys() & {stem, "ADNIMERGE"}]
    absent += [next(iter(group)) for group in (_AMYLOID, _TAU) if not found.keys() & {*group}]
    diagnoses, mmse = (rows.dropna(subset=name).rename(columns={name: "value"}) for name in ("diagnosis", "mmse"))
    return StudyTables(_one_per_scan(pets), people, diagnoses, mmse, days, notes, absent)


class Table(NamedTuple):
    """A study table as text: column names in capitals, the index is the row's line; ``rids``: the person of a row."""

    path: Path
    cells: pd.DataFrame
    rids: pd.Series
    notes: list[str]

    @classmethod
    def read(cls, path: Path, notes: list[str]) -> Table:
        """Read a table and the person of each row; rows without RID and PTID are skipped."""
        cells = read_table(path, notes=notes, any_encoding=True)
        cells.columns = cells.columns.str.upper()
        keys = [key for key in ("RID", "PTID") if key in cells]
        if not keys:
            fault = f"no column RID or PTID; found {', '.join(cells.columns[:8])}"
            raise ManifestError(f"{path}: {fault}; expected the table as downloaded, separated by commas")
        cells = cells[(cells[keys] != "").any(axis=1)]
        if "QC_FLAG" in cells:
            cells = cells.assign(QC_FLAG=[_QC.get(text.lower(), text) for text in cells["QC_FLAG"]])
        rids = {line: {rid_of(text) for text in row if text} for line, *row in cells[keys].itertuples(name=None)}
        for line in (line for line, found in rids.items() if len(found) != 1 or None in found):
            names = " and ".join(f"{key} {cells[key][line]!r}" for key in keys)
            notes.append(f"{path}: row {line}: {names} name no person or two, expected a RID such as 74 or 0074, or a "
                         "PTID; the row is not used")  # fmt: skip
            cells = cells.drop(line)
        return cls(path, cells, pd.Series({line: rids[line].pop() for line in cells.index}, dtype=int), notes)

    def column(self, *names: str, needed: bool = False) -> pd.Series:
        """Text of the first column that is filled in a row, under the names of those that exist; empty without one."""
        found = [name for name in names if name in self.cells]
        if needed and not found:
            raise ManifestError(f"{self.path}: no column {' or '.join(names)}; download the table again, whole")
        cells = self.cells[found[0]] if found else pd.Series("", index=self.cells.index)
        for name in found[1:]:
            cells = cells.mask(cells.isin({"", ".", *_CODES}), self.cells[name])
        return cells.rename(" or ".join(found) or names[0])

    def convert(self, cells: pd.Series, meaning: Callable[[str], Any], expected: str, dtype: Any = object) -> pd.Series:
        """Convert cells; those that mean None are taken as missing, with one note."""
        values = pd.Series([meaning(text) for text in cells], index=cells.index, dtype=object)
        refused = [line for line, value in values.items() if value is None]
        if refused:
            self.notes.append(
                f"{self.path}: row {refused[0]}, {cells.name}: found {cells[refused[0]]!r}, expected {expected}; "
                f"{len(refused)} such cells are taken as missing"
            )
        return values.where(values.notna(), np.nan).astype(dtype)

    def numbers(
        self, *names: str, limits: tuple[float, float] = (-np.inf, np.inf), codes: bool = True, needed: bool = False
    ) -> pd.Series:
        """A column of numbers, NaN where missing; ``codes``: -1 and -4 mean missing."""
        low, high = limits

        def number(text: str) -> float | None:
            if text == "." or (codes and text in _CODES):
                return np.nan
            value = to_number(text)
            return None if value is None or value < low or value > high else value

        expected = f"a number{f' from {low:g} to {high:g}' if np.isfinite(low) else ''}, with a decimal point"
        return self.convert(self.column(*names, needed=needed), number, expected, float)

    def dates(self, *names: str) -> pd.Series:
        """A column of dates, NaT where missing."""
        return self.days(self.column(*names, needed=True), "a date, YYYY-MM-DD or MM/DD/YYYY")

    def days(self, cells: pd.Series, expected: str) -> pd.Series:
        """Cells as dates; one that can only be DD/MM/YYYY is an error, since the others would be read as American."""
        if (day_first := cells.str.fullmatch(r"(1[3-9]|2\d|3[01])/(0?[1-9]|1[0-2])/\d{4}( [\d:.]+)?")).any():
            line = day_first.idxmax()
            raise ManifestError(
                f"{self.path}: row {line}, {cells.name}: found {cells[line]!r}, a date with the day first, as a "
                "spreadsheet may save it; download the table again and do not save it with another program"
            )
        return self.convert(cells, _date, expected, "datetime64[s]")

    def words(self, **meanings: Callable[[str], str | None]) -> pd.Series:
        """Diagnoses of the first column that states one in a row, each with the meaning of its words; NaN without."""
        values = pd.Series(np.nan, index=self.cells.index, dtype=object)
        for name, meaning in meanings.items():
            cells = self.column(name).str.removesuffix(".0").replace(dict.fromkeys({*_CODES, "."}, ""))
            known = {text: meaning(text) for text in cells.unique()} | {"": np.nan}
            values = values.where(values.notna(), self.convert(cells, known.get, "CN, MCI, AD or a code of them"))
        return values

    def months(self, *names: str) -> pd.Series:
        """Visit codes as months after baseline (bl and sc: 0; m12: 12); NaN for others."""
        column = self.column(*names).str.lower()
        months = column.str.extract(r"^m0*(\d+)$")[0].astype(float)
        return months.mask(column.isin(["bl", "sc", "scmri"]), 0.0)

    def visits(self, dates: Sequence[str], codes: Sequence[str], **values: pd.Series) -> pd.DataFrame:
        """rid, date, month and values of the rows; ``dates`` and ``codes`` name the columns of day and visit code."""
        columns = {"rid": self.rids, "date": self.dates(*dates), "month": self.months(*codes)}
        return pd.DataFrame(columns | values).assign(path=str(self.path))

    def add_people(self, people: dict[int, dict[str, Any]], **columns: pd.Series) -> None:
        """Add sex, education and the given columns, unless missing or known from a table before."""
        cells = self.column("PTGENDER").str.removesuffix(".0").str.lower().replace(dict.fromkeys(_CODES, ""))
        sex = self.convert(cells, (_SEX | {"": np.nan}).get, "Male, Female, 1 or 2")
        columns = {"sex": sex, "education": self.numbers("PTEDUCAT", limits=(0, 40))} | columns
        for name, column in columns.items():
            for line, value in column.dropna().items():
                people.setdefault(int(self.rids[line]), {}).setdefault(name, value)


def _date(text: str) -> pd.Timestamp | None:
    """Read a date of ADNI's tables, which are ISO 8601 or American."""
    american = re.fullmatch(r"(\d{1,2})/(\d{1,2})/(\d{4})( [\d:.]+)?", text)
    if american:
        text = "{2}-{0:>02}-{1:>02}".format(*american.groups())
    return pd.NaT if text in _CODES or text == "." else to_date(text)


def _dated(files: Iterable[Path], stems: Sequence[str], notes: list[str]) -> list[Path]:
    """The files of a table by its stems, whatever date the download has added; the newest is the last."""
    day = r"\d{1,2}[A-Za-z]{3}\d{4}"
    name = rf"(?:{'|'.join(stems)})(?:_8MM)?(?:_(\d\d_\d\d_\d\d(?:\d\d)?))?(?:_({day}))?(?: ?\(\d+\))?\.csv"
    dated = []
    for path in files:
        if match := re.fullmatch(f"(?:All_Subjects_)?{name}", path.name, re.IGNORECASE):
            forms = [(match[2], "%d%b%Y"), (match[1], "%m_%d_%y" if len(match[1] or "") == 8 else "%m_%d_%Y")]
            date = datetime.min
            with suppress(ValueError):
                date = next((datetime.strptime(text, form) for text, form in forms if text), date)
            dated.append((date, path.stat().st_mtime_ns, path.name, path))
    *older, newest = [entry[3] for entry in sorted(dated)] or [None]
    if older:
        others = ", ".join(sorted(path.name for path in older))
        notes.append(f"{newest.name} is the newest of {len(dated)} files of {stems[-1]}; not read: {others}")
    return [*older, newest] if newest else []


# ── PET ───────────────────────────────────────────────────────────────────────────────────────────


def _pet_rows(table: Table, label: str | None, labels: dict[str, str], **columns: Any) -> pd.DataFrame:
    """One row per PET with a date; ``label`` where the table is of one tracer."""
    tracer = table.column("TRACER", needed=label is None).str.upper().str.replace(r"[^A-Z0-9]", "", regex=True)
    frame = pd.DataFrame({
        "rid": table.rids,
        "tracer": table.convert(tracer, lambda text: labels.get(text, label), ", ".join(labels)),
        "date": table.dates("SCANDATE", "EXAMDATE"),
        "qc": table.numbers("QC_FLAG", codes=False),
        "image": table.column("LONIUID").str.lstrip("IiDd"),
        "source": [f"{table.path.name} row {line}" for line in table.cells.index],
    } | columns)  # fmt: skip
    if undated := int(frame["date"].isna().sum()):
        table.notes.append(f"{table.path}: {undated} rows of PET have no date; not used")
    return frame.dropna(subset=["date", "tracer"])


def _amyloid_rows(table: Table, label: str | None) -> pd.DataFrame:
    """Rows of an amyloid table; SUVR of the cortical summary by the whole cerebellum."""
    cutoffs = [name for name in table.cells if re.fullmatch(r"SUMMARYSUVR_WHOLECEREBNORM_[\d.]+CUTOFF", name)]
    suvr = table.numbers("SUMMARY_SUVR", "SUMMARYSUVR_WHOLECEREBNORM", limits=(0.2, 10), needed=True)
    status = table.numbers("AMYLOID_STATUS", *cutoffs, limits=(0, 1))
    centiloid = table.numbers("CENTILOIDS", codes=False)
    return _pet_rows(table, label, AMYLOID_LABELS, suvr=suvr, status=status, centiloid=centiloid)


def _tau_rows(table: Table, label: str | None) -> pd.DataFrame:
    """Rows of a tau table; SUVR of the meta-temporal region, always divided by that of the inferior cerebellum."""
    uptake = table.numbers("META_TEMPORAL_SUVR", "METATEMPORAL_SUVR", needed=True)
    reference = table.numbers("INFERIORCEREBELLUM_SUVR", "INFERIOR_CEREBELLUM_SUVR", needed=True)
    suvr = uptake / reference.where(reference > 0)
    return _pet_rows(table, label, TAU_LABELS, suvr=suvr, status=np.nan, centiloid=np.nan)


def _one_per_scan(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """All rows by date; of one tracer and day, the first table's row, and of these the one with the better QC."""
    numbered = [frame.assign(table=number) for number, frame in enumerate(frames)]
    rows = _join(numbered, ["rid", "tracer", "image", "date"])
    if rows.empty:
        return rows
    rows = rows.sort_values(["table", "qc"], ascending=[True, False], kind="stable", na_position="last")
    return rows.drop_duplicates(["rid", "tracer", "date"]).sort_values("date", kind="stable")


def _join(frames: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


# ── people ────────────────────────────────────────────────────────────────────────────────────────


def _dated_visits(
    visits: list[pd.DataFrame], notes: list[str]
) -> tuple[pd.DataFrame, dict[tuple[int, int], pd.Timestamp]]:
    """Rows of visits by date, and the day by RID and month; a row without a day has that of its visit in any table."""
    rows = _join(visits, ["rid", "date", "month", "path", "diagnosis", "mmse"])
    rows = rows.reindex(columns=rows.columns.union(["diagnosis", "mmse"], sort=False))
    known = rows.dropna(subset=["date", "month"]).itertuples()
    days = {(row.rid, int(row.month)): row.date for row in reversed([*known])}  # of several, the first table's
    of_visit = [days.get(key, pd.NaT) for key in zip(rows["rid"], rows["month"], strict=True)]
    rows["date"] = rows["date"].fillna(pd.Series(of_visit, index=rows.index, dtype="datetime64[s]"))
    lost = rows[rows["date"].isna() & rows[["diagnosis", "mmse"]].notna().any(axis=1)]
    notes += [f"{path}: {count} rows have neither a date nor a visit code whose date a table states; not used"
              for path, count in lost.groupby("path").size().items()]  # fmt: skip
    return rows.dropna(subset="date").sort_values("date", kind="stable"), days


def _nearest(rows: pd.DataFrame, date: pd.Timestamp, days: int) -> pd.Series | None:
    """The row whose date is nearest to a day and at most ``days`` away; of two, the earlier."""
    if rows.empty or pd.isna(date):
        return None
    gaps = (rows["date"] - date).abs()
    return rows.loc[gaps.idxmin()] if gaps.min() <= pd.Timedelta(days=days) else None


def _value(rows: pd.DataFrame, rid: int, date: pd.Timestamp, default: Any) -> Any:
    row = _nearest(rows[rows["rid"] == rid], date, VISIT_DAYS)
    return default if row is None else row["value"]


def _born(table: Table) -> pd.Series:
    """Dates of birth: PTDOB as a date, or month and year (PTDOBMM and PTDOBYY in older tables): then mid-month."""
    cells = table.column("PTDOB")
    month, year = (table.column(name).str.removesuffix(".0") for name in ("PTDOBMM", "PTDOBYY"))
    by_parts = (month + "/" + year).where((month != "") & (year != "") & ~year.isin(_CODES), "")
    cells = cells.mask(cells.isin({"", ".", *_CODES}), by_parts)
    cells = cells.str.replace(r"^(\d{1,2})/(\d{4})$", r"\1/15/\2", regex=True)
    return table.days(cells, "MM/YYYY, MM/DD/YYYY or YYYY-MM-DD")
