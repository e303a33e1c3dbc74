"""ADNI's study tables, old and new: what PET measured, and who people were on a given day.

Read are UC Berkeley's PET tables (6 mm, or the older ones of one tracer each) and either ADNIMERGE or PTDEMOG, DXSUM
and MMSE, as downloaded from LONI: the date in a file's name does not matter, and of several files of one table the
newest is read. A person is the RID as a whole number, whatever form a table gives it in.

Missing are empty cells, NA, and -1 and -4, the study's codes, in columns that have no negative values; a Centiloid or a
QC flag of -1 is what it says. Dates are YYYY-MM-DD or MM/DD/YYYY.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from resdm.settings import AGE_RANGE
from resdm_suite.cohorts.manifest import ManifestError

AMYLOID_LABELS = {"FBP": "18FAV45", "AV45": "18FAV45", "FBB": "18FFBB", "NAV": "18FNAV4694", "NAV4694": "18FNAV4694"}
TAU_LABELS = {"FTP": "18FAV1451", "AV1451": "18FAV1451", "MK6240": "18FMK6240", "PI2620": "18FPI2620"}
"""What the tables call a tracer → its BIDS label. The tau tracers have scales of their own and are never pooled."""

PASSED = 1
"""Least ``qc_flag`` of a row that is used: 2 is a pass, 1 a partial one, 0 a fail; below, nothing was assessed."""

ROW_DAYS = 90
"""A row of a PET table belongs to a scan at most so many days away; a person's scans lie a year or more apart."""

VISIT_DAYS = 365
"""A diagnosis or a score is taken from at most so many days away."""

_AMYLOID = {"UCBERKELEY_AMY_6MM": None, "UCBERKELEYAV45": "18FAV45", "UCBERKELEYFBB": "18FFBB"}
_TAU = {"UCBERKELEY_TAU_6MM": None, "UCBERKELEYAV1451": "18FAV1451"}  # new before old: its rows win
_SEX = {"male": "M", "m": "M", "1": "M", "female": "F", "f": "F", "2": "F"}
_DIAGNOSIS = {
    **dict.fromkeys(("cn", "nl", "smc", "1"), "CN"),
    **dict.fromkeys(("mci", "emci", "lmci", "2"), "MCI"),
    **dict.fromkeys(("dementia", "dem", "ad", "3"), "AD"),
}
_CHANGE = dict(zip("123456789", ("CN", "MCI", "AD", "MCI", "AD", "AD", "CN", "MCI", "CN"), strict=True))  # DXCHANGE
_MISSING = {"", "na", "n/a", "nan", "null", "none", "."}
_CODES = {"-4", "-1", "-4.0", "-1.0"}


class StudyTables(NamedTuple):
    """What the tables hold, by RID.

    Parameters
    ----------
    pets : dict of int to DataFrame
        tracer (BIDS label), date, suvr, status (NaN where the table has none), centiloid, qc, image (LONI's number of
        the image), source (file and row): one row a PET.
    people : dict of int to dict
        sex, education, and age with baseline (its day), or born: what the tables hold of these.
    diagnoses, mmse : dict of int to DataFrame
        date, value.
    visits : dict of int to dict of int to Timestamp
        Day of a visit by its month.
    notes : list of str
    """

    pets: dict[int, pd.DataFrame]
    people: dict[int, dict[str, Any]]
    diagnoses: dict[int, pd.DataFrame]
    mmse: dict[int, pd.DataFrame]
    visits: dict[int, dict[int, pd.Timestamp]]
    notes: list[str]

    def age(self, rid: int, date: pd.Timestamp) -> float:
        """Age on a day, years: AGE + (date − EXAMDATE_bl)/365.25, or from the date of birth; NaN if not known."""
        person = self.people.get(rid, {})
        for start, years in (("baseline", person.get("age")), ("born", 0.0)):
            if years is not None and pd.notna(person.get(start)) and pd.notna(date):
                return years + (date - person[start]).days / 365.25
        return np.nan

    def diagnosis(self, rid: int, date: pd.Timestamp) -> str:
        """CN, MCI or AD at the visit nearest to a day; nothing if there is none within `VISIT_DAYS`."""
        row = _nearest(self.diagnoses.get(rid), date, VISIT_DAYS)
        return "" if row is None else row["value"]

    def score(self, rid: int, date: pd.Timestamp) -> float:
        """MMSE at the visit nearest to a day, likewise; NaN if there is none."""
        row = _nearest(self.mmse.get(rid), date, VISIT_DAYS)
        return np.nan if row is None else row["value"]

    def pet(self, rid: int, tracer: str, date: pd.Timestamp, image: str = "") -> pd.Series | None:
        """The row of a PET: by LONI's number of the image, or the nearest of that tracer within `ROW_DAYS`."""
        rows = self.pets.get(rid)
        if rows is None:
            return None
        rows = rows[rows["tracer"] == tracer]
        same = rows[(rows["image"] == image) & (image != "")]
        return same.iloc[0] if len(same) else _nearest(rows, date, ROW_DAYS)

    def visit(self, rid: int, month: int) -> pd.Timestamp:
        """Day of the visit of a month after baseline; NaT if not known."""
        return self.visits.get(rid, {}).get(month, pd.NaT)


def rid_of(text: str) -> int | None:
    """The RID in a RID, a PTID or a BIDS name of Clinica's, padded with zeros or not; None if there is none."""
    found = re.fullmatch(r"(?:(?:sub-)?(?:ADNI)?\d{3}_?S_?)?(\d{1,6})(?:\.0+)?", text.strip(), re.IGNORECASE)
    return int(found[1]) if found else None


def day_of(text: str) -> pd.Timestamp | None:
    """A date without its time of day, NaT where it is missing; None if it is none that the study writes."""
    text = text.strip()
    if text.lower() in _MISSING | _CODES:
        return pd.NaT
    for form, length in (("%Y-%m-%d", 10), ("%m/%d/%Y", None)):
        try:
            return pd.Timestamp(datetime.strptime(re.split("[ T]", text)[0][:length], form))
        except ValueError:
            continue
    return None


def read_tables(folder: Path) -> StudyTables:
    """Read the study tables that lie in a folder, or in a folder of it.

    Raises
    ------
    ManifestError
        A table without a column that it must have, or a cell that cannot be: names file, row, column and remedy.
    """
    notes: list[str] = []
    files = [*folder.glob("*.csv"), *folder.glob("*/*.csv")]

    def table(stem: str) -> Table | None:
        path = _newest(files, stem, notes)
        return None if path is None else Table.read(path)

    pets = [_amyloid_rows(found, label) for stem, label in _AMYLOID.items() if (found := table(stem))]
    pets += [_tau_rows(found, label) for stem, label in _TAU.items() if (found := table(stem))]
    people: dict[int, dict[str, Any]] = {}
    diagnoses, mmse, visits = [], [], []
    if merged := table("ADNIMERGE"):
        _merge_people(merged, people)
        dates = merged.dates("EXAMDATE")
        diagnoses.append(merged.by_date(dates, merged.words(diagnosis_of, "DX", "DXCHANGE")))
        mmse.append(merged.by_date(dates, merged.numbers("MMSE", low=0, high=30)))
        visits.append(merged.by_date(dates, merged.months("VISCODE")))
    if found := table("PTDEMOG"):
        _demog_people(found, people)
    if (found := table("DXSUM_PDXCONV_ADNIALL") or table("DXSUM_PDXCONV") or table("DXSUM")) is not None:
        dates = found.dates("EXAMDATE", "VISDATE")
        change = "DIAGNOSIS" not in found.cells and "DXCHANGE" in found.cells
        said = found.words(_CHANGE.get if change else diagnosis_of, "DIAGNOSIS", "DXCHANGE", "DXCURREN")
        diagnoses.append(found.by_date(dates, said))
        visits.append(found.by_date(dates, found.months("VISCODE2", "VISCODE")))
    if found := table("MMSE"):
        dates = found.dates("VISDATE", "EXAMDATE")
        mmse.append(found.by_date(dates, found.numbers("MMSCORE", "MMSE", low=0, high=30)))
        visits.append(found.by_date(dates, found.months("VISCODE2", "VISCODE")))
    days: dict[int, dict[int, pd.Timestamp]] = {}
    for frame in visits:
        for rid, date, month in frame[["rid", "date", "value"]].itertuples(index=False):
            days.setdefault(rid, {}).setdefault(int(month), date)
    return StudyTables(_one_a_scan(pets), people, _by_rid(diagnoses), _by_rid(mmse), days, notes)


# ── one file ──────────────────────────────────────────────────────────────────────────────────────


class Table(NamedTuple):
    """A CSV or TSV as text: column names in capitals, the index is the row's line in the file.

    ``rids`` is the person of each row.
    """

    path: Path
    cells: pd.DataFrame
    rids: pd.Series

    @classmethod
    def read(
        cls, path: Path, separator: str = ",", keys: tuple[str, ...] = ("RID", "PTID"), whole: bool = True
    ) -> Table:
        """Read a table and who each row is of; rows without a key are passed over. ``whole``: of many people."""
        try:
            cells = pd.read_csv(
                path, sep=separator, dtype=str, keep_default_na=False, skip_blank_lines=False, index_col=False,
                encoding="utf-8-sig", encoding_errors="replace",  # free text may be in another; nothing of it is read
            )  # fmt: skip
        except (pd.errors.ParserError, pd.errors.EmptyDataError, OSError) as error:
            raise ManifestError(f"{path}: cannot be read as a table ({error}); download it again") from None
        cells.columns = [column.strip().upper() for column in cells.columns]
        cells.index = range(2, len(cells) + 2)
        known = [key for key in keys if key in cells]
        if not known:
            raise ManifestError(
                f"{path}: no column {' or '.join(keys)}; found {', '.join(cells.columns[:8])}; expected the table as "
                f"downloaded, separated by {'tabs' if separator == chr(9) else 'commas'}"
            )
        cells = cells[(cells[known].fillna("") != "").any(axis=1)]
        table = cls(path, cells, pd.Series(dtype=int))
        rids = pd.Series(-1, index=cells.index)
        for key in known if whole else ():
            for line, text in table.column(key).items():
                rid = rid_of(text)
                if text and rid is None:
                    raise table.error(line, key, text, "a RID such as 74 or 0074, or a PTID")
                if rid is not None and rids[line] not in (-1, rid):
                    raise table.error(line, key, text, f"the person of RID {rids[line]}")
                rids[line] = rids[line] if rid is None else rid
        return table._replace(rids=rids)

    def error(self, line: int, column: str, found: str, expected: str) -> ManifestError:
        """What is wrong with a cell."""
        return ManifestError(
            f"{self.path}: row {line}, {column}: found {found!r}, expected {expected}; correct the cell, or download "
            "the table again and do not save it from a spreadsheet"
        )

    def name(self, *names: str) -> str | None:
        """The first of several column names that there is."""
        return next((name for name in names if name in self.cells), None)

    def column(self, *names: str, needed: bool = False) -> pd.Series:
        """Stripped text of the first column that there is; empty where there is none."""
        name = self.name(*names)
        if name is None and needed:
            raise ManifestError(f"{self.path}: no column {' or '.join(names)}; download the table again, whole")
        if name is None:
            return pd.Series("", index=self.cells.index)
        return self.cells[name].fillna("").str.strip()

    def numbers(
        self, *names: str, low: float = -np.inf, high: float = np.inf, codes: bool = True, needed: bool = False
    ) -> pd.Series:
        """A column of numbers, NaN where missing; ``codes``: -1 and -4 mean missing."""
        name, missing = self.name(*names) or names[0], _MISSING | (_CODES if codes else set())

        def number(line: int, text: str) -> float:
            if text.lower() in missing:
                return np.nan
            try:
                value = float(text)
            except ValueError:
                raise self.error(line, name, text, "a number with a decimal point") from None
            if not low <= value <= high:
                raise self.error(line, name, text, f"a number from {low:g} to {high:g}")
            return value

        column = self.column(*names, needed=needed)
        return pd.Series([number(line, text) for line, text in column.items()], index=column.index, dtype=float)

    def dates(self, *names: str, needed: bool = True) -> pd.Series:
        """A column of dates, NaT where missing."""
        column = self.column(*names, needed=needed)
        days = {}
        for line, text in column.items():
            days[line] = day_of(text)
            if days[line] is None:
                raise self.error(line, self.name(*names) or "", text, "a date, YYYY-MM-DD or MM/DD/YYYY")
        return pd.Series(days, index=column.index, dtype="datetime64[ns]")

    def words(self, meaning: Callable[[str], str | None], *names: str) -> pd.Series:
        """A column of codes by what they mean; NaN where they mean nothing."""
        column = self.column(*names).str.removesuffix(".0")
        return column.map(lambda text: (meaning(text) if text.lower() not in _MISSING | _CODES else None) or np.nan)

    def months(self, *names: str) -> pd.Series:
        """Visit codes as months after baseline (bl and sc: 0; m12: 12); NaN for others."""
        column = self.column(*names).str.lower()
        months = column.str.extract(r"^m0*(\d+)$")[0].astype(float)
        return months.mask(column.isin(["bl", "sc", "scmri"]), 0.0)

    def by_date(self, dates: pd.Series, values: pd.Series) -> pd.DataFrame:
        """rid, date and value of the rows that have both."""
        frame = pd.DataFrame({"rid": self.rids, "date": dates, "value": values})
        return frame.dropna(subset=["date", "value"])


def _newest(files: Iterable[Path], stem: str, notes: list[str]) -> Path | None:
    """The file of a table: by its stem, whatever date the download has put behind it."""
    day = r"\d{1,2}[A-Za-z]{3}\d{4}"
    name = rf"(?:All_Subjects_)?{stem}(?:_8MM)?(?:_(\d\d_\d\d_\d\d(?:\d\d)?))?(?:_({day}))?(?: ?\(\d+\))?\.csv"
    found = []
    for path in files:
        if match := re.fullmatch(name, path.name, re.IGNORECASE):
            forms = [(match[2], "%d%b%Y"), (match[1], "%m_%d_%y" if len(match[1] or "") == 8 else "%m_%d_%Y")]
            try:
                date = next((datetime.strptime(text, form) for text, form in forms if text), datetime.min)
            except ValueError:
                date = datetime.min
            found.append((date, path.stat().st_mtime_ns, path.name, path))
    if len(found) > 1:
        others = ", ".join(sorted(one[2] for one in found if one is not max(found)))
        notes.append(f"{max(found)[2]} is the newest of {len(found)} files of {stem}; not read: {others}")
    return max(found)[3] if found else None


# ── what the tables say ───────────────────────────────────────────────────────────────────────────


def _pet_rows(table: Table, label: str | None, labels: dict[str, str], **columns: pd.Series) -> pd.DataFrame:
    """One row a PET that has a date; ``label`` where the table is of one tracer."""
    tracer = table.column("TRACER", needed=label is None).str.upper().str.replace(r"[^A-Z0-9]", "", regex=True)
    for line, text in tracer.items():
        if text not in labels and label is None:
            raise table.error(line, "TRACER", text, ", ".join(labels))
    frame = pd.DataFrame(
        {
            "rid": table.rids,
            "tracer": tracer.map(labels).fillna(label) if label else tracer.map(labels),
            "date": table.dates("SCANDATE", "EXAMDATE"),
            "qc": table.numbers("QC_FLAG", codes=False),
            "image": table.column("LONIUID").str.lstrip("IiDd"),
            "source": [f"{table.path.name} row {line}" for line in table.cells.index],
            **columns,
        }
    )
    return frame.dropna(subset=["date"])


def _amyloid_rows(table: Table, label: str | None) -> pd.DataFrame:
    """Rows of an amyloid table; SUVR of the cortical summary by the whole cerebellum, as the table has it."""
    cutoffs = [name for name in table.cells if re.fullmatch(r"SUMMARYSUVR_WHOLECEREBNORM_[\d.]+CUTOFF", name)]
    return _pet_rows(
        table,
        label,
        AMYLOID_LABELS,
        suvr=table.numbers("SUMMARY_SUVR", "SUMMARYSUVR_WHOLECEREBNORM", low=0.2, high=10, needed=True),
        status=table.numbers("AMYLOID_STATUS", *cutoffs, low=0, high=1),
        centiloid=table.numbers("CENTILOIDS", codes=False),
    )


def _tau_rows(table: Table, label: str | None) -> pd.DataFrame:
    """Rows of a tau table; SUVR of the meta-temporal region, always divided by that of the inferior cerebellum."""
    uptake = table.numbers("META_TEMPORAL_SUVR", "METATEMPORAL_SUVR", needed=True)
    reference = table.numbers("INFERIORCEREBELLUM_SUVR", "INFERIOR_CEREBELLUM_SUVR", needed=True)
    nan = pd.Series(np.nan, index=uptake.index)
    return _pet_rows(table, label, TAU_LABELS, suvr=uptake / reference.where(reference > 0), status=nan, centiloid=nan)


def _one_a_scan(frames: list[pd.DataFrame]) -> dict[int, pd.DataFrame]:
    """By RID. Of the rows of one tracer and day, the first table's, and of these the one with the better QC."""
    frames = [frame.assign(table=number) for number, frame in enumerate(frames) if len(frame)]
    if not frames:
        return {}
    rows = pd.concat(frames, ignore_index=True).sort_values(
        ["table", "qc"], ascending=[True, False], kind="stable", na_position="last"
    )
    rows = rows.drop_duplicates(["rid", "tracer", "date"]).sort_values(["rid", "date"], kind="stable")
    return {int(rid): group.drop(columns=["rid", "table"]) for rid, group in rows.groupby("rid")}


def _by_rid(frames: list[pd.DataFrame]) -> dict[int, pd.DataFrame]:
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["rid", "date", "value"])
    return {int(rid): group.sort_values("date", kind="stable") for rid, group in rows.groupby("rid")}


def _nearest(rows: pd.DataFrame | None, date: pd.Timestamp, days: int) -> pd.Series | None:
    """The row whose date is nearest to a day and at most ``days`` away; of two, the earlier."""
    if rows is None or rows.empty or pd.isna(date):
        return None
    gaps = (rows["date"] - date).abs()
    return rows.loc[gaps.idxmin()] if gaps.min() <= pd.Timedelta(days=days) else None


def diagnosis_of(text: str) -> str | None:
    """CN, MCI or AD; of a change (``MCI to Dementia``) what it came to."""
    return _DIAGNOSIS.get(text.lower().rpartition(" to ")[2])


def _sexes(table: Table) -> pd.Series:
    said = table.words(lambda text: _SEX.get(text.lower(), "?"), "PTGENDER")
    for line in said.index[said == "?"]:
        raise table.error(line, "PTGENDER", table.cells["PTGENDER"][line], "Male, Female, 1 or 2")
    return said


def _keep(people: dict[int, dict[str, Any]], rids: pd.Series, **columns: pd.Series) -> None:
    """Add what is not missing; what a person has already stays."""
    for name, column in columns.items():
        for line, value in column.dropna().items():
            people.setdefault(int(rids[line]), {}).setdefault(name, value)


def _merge_people(table: Table, people: dict[int, dict[str, Any]]) -> None:
    low, high = AGE_RANGE
    age, baseline = table.numbers("AGE", low=low, high=high), table.dates("EXAMDATE_BL")
    both = age.notna() & baseline.notna()
    education = table.numbers("PTEDUCAT", low=0, high=40)
    _keep(people, table.rids, sex=_sexes(table), education=education, age=age[both], baseline=baseline[both])


def _demog_people(table: Table, people: dict[int, dict[str, Any]]) -> None:
    _keep(people, table.rids, sex=_sexes(table), education=table.numbers("PTEDUCAT", low=0, high=40), born=_born(table))


def _born(table: Table) -> pd.Series:
    """Dates of birth: PTDOB as a date, or month and year (PTDOBMM and PTDOBYY in older tables): then mid-month."""
    if table.name("PTDOB"):
        text = table.column("PTDOB")
    else:
        month, year = (table.column(name).str.removesuffix(".0") for name in ("PTDOBMM", "PTDOBYY"))
        text = (month + "/" + year).where((month != "") & (year != "") & ~year.isin(_CODES), "")
    days = {}
    for line, said in text.items():
        short = re.fullmatch(r"(\d{1,2})/(\d{4})", said)
        days[line] = day_of(f"{short[1]}/15/{short[2]}" if short else said)
        if days[line] is None:
            raise table.error(line, "PTDOB", said, "MM/YYYY, MM/DD/YYYY or YYYY-MM-DD")
    return pd.Series(days, index=text.index, dtype="datetime64[ns]")
