"""From a table of scans and a table of people to the manifest, with the reason for every session left out.

Every reader (`cohorts.readers`) ends with `assemble_manifest`, so that windows, tie rules and counts are the same for
all sources.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from resdm.settings import TRACERS
from resdm_suite.cohorts.manifest import COLUMNS, EMPTY, PATHS, SCHEMA, TRANSFORMS, ManifestError, check_manifest
from resdm_suite.cohorts.tables import to_age, to_diagnosis, to_number, to_sex
from resdm_suite.profiles import Config, MatchConfig

log = logging.getLogger(__name__)

Pairing = Literal["session", "session, then day", "day"]
Row = dict[str, Any]

_LOGGED = 5  # notes that are logged one by one
_SCAN = {"person": "", "session": "", "target": "", "tracer": "", "path": "", "space": "", "transform": "",
         "onto": "", "day": np.nan, "visit_day": np.nan, "by_age": False, "suvr": np.nan, "status": np.nan,
         "centiloid": np.nan}  # fmt: skip
_OF_PET = ("", "_tracer", "_days", "_transform")
_KEY = ["person", "session"]
_NEEDED = (*_KEY, "age", "sex")
_MEANINGS = {"age": to_age, "sex": to_sex, "diagnosis": to_diagnosis}


class Cohort(NamedTuple):
    """The usable part of a source.

    ``manifest``: checked, by person and session; ``split`` is empty unless the source comes with one. ``flow``: step,
    people, sessions that pass it. ``left_out``: person, session, reason (the first step not passed). ``notes``: choices
    made and faults met.
    """

    manifest: pd.DataFrame
    flow: pd.DataFrame
    left_out: pd.DataFrame
    notes: list[str]


def assemble_manifest(
    scans: pd.DataFrame | Sequence[Row],
    people: pd.DataFrame | Sequence[Row],
    config: Config,
    where: str | Path,
    notes: Sequence[str] = (),
    pairing: Pairing = "session",
) -> Cohort:
    """Combine scans into sessions, add data of people, and select sessions.

    Parameters
    ----------
    scans : DataFrame or list of dict
        One row per scan, of several alike the preferred first: person, session, target (``t1w``, ``amyloid`` or
        ``tau``), path; for PET also tracer (BIDS label). Optional: space (of MNI152, or ``""``); transform (of a T1w
        to MNI152, of a PET to the T1w whose path is ``onto``); day (number of the day on a calendar of the person);
        visit_day (day of the visit, used where ``day`` is NaN and sessions are paired), by_age (``visit_day`` comes
        from ages); suvr, status, centiloid (measured by the study).
    people : DataFrame or list of dict
        One row per session: person, session and any of age (years), sex, diagnosis, education, mmse, split and
        `Config.attributes`; as values, or as the source's text.
    config : Config
        Its ``cohort.match`` and ``cohort.tracers`` (labels, the preferred first).
    where : str or path
        The source; starts the messages.
    notes : sequence of str
        Notes of the reader.
    pairing : {"session", "session, then day", "day"}
        ``session``: scans of one session belong together. ``session, then day``: unless ``cohort.match.same_visit``,
        a PET whose session has no T1w, or one beyond the window, is then paired by day with a T1w that lacks one.
        ``day``: all by day (`match_scans`).

    Raises
    ------
    ManifestError
        No usable session.
    """
    match, labels, notes = config.cohort.match, list(config.cohort.tracers), list(notes)
    scans = _scan_table(scans)
    stated, inside = os.path.abspath(where), os.path.realpath(where)
    linked = [path for path in scans["path"] if Path(os.path.abspath(path)).is_relative_to(stated)]
    outside = [path for path in linked if not Path(path).resolve().is_relative_to(inside)]
    if outside:
        notes.append(f"{len(outside)} scans are links to files outside {where} ({outside[0]} …)")
    if pairing == "day":
        rows = match_scans(scans, match, labels).to_dict("records")
    else:
        scans = _choose_scans(scans, labels, notes)
        rows = _session_rows(scans, pd.DataFrame(people))
        if pairing == "session, then day" and not match.same_visit:
            rows = _pair_across_sessions(rows, scans, match, labels, notes)
    measured = scans.drop_duplicates("path").set_index("path")[["suvr", "status", "centiloid"]].to_dict("index")
    known = {(row["person"], row["session"]): row for row in pd.DataFrame(people).to_dict("records")}
    for row in rows:
        for target in (target for target in TRACERS if row[target]):
            row |= {f"{target}_{name}": value for name, value in measured[row[target]].items()}
    further = [name for name in config.attributes if name not in COLUMNS]
    empty = EMPTY | dict.fromkeys(further, "")
    candidates = [empty | known.get((row["person"], row["session"]), {}) | row for row in rows]
    candidates = pd.DataFrame(candidates, columns=[*COLUMNS, *further, "reason"])
    return select_sessions(candidates, config, where, notes)


def select_sessions(candidates: pd.DataFrame, config: Config, where: str | Path, notes: Sequence[str] = ()) -> Cohort:
    """Apply the window, the required tracers and the choice of visits; count, check, and give reasons.

    ``candidates`` has the manifest's columns, one row per visit, absolute paths, empty cells where unknown. Days are
    NaN where both scans belong to one visit without dates. An optional column ``reason`` states why a visit has no PET.
    A session with an impossible age, sex or label is left out; other impossible cells are emptied, with a note.
    For the other arguments and errors see `assemble_manifest`.
    """
    match, notes = config.cohort.match, list(notes)
    candidates = candidates.reset_index(drop=True)
    frame, faults = _read_cells(candidates[list(COLUMNS)], notes)
    further = [name for name in config.attributes if name not in COLUMNS and name in candidates]
    for name in further:
        frame[name] = candidates[name].astype(object).where(candidates[name].notna(), "").map(str).str.strip()
    sexes = frame["sex"].mask(frame["sex"] == "").groupby(frame["person"]).transform("nunique")
    faults[(sexes > 1) & (faults == "")] = "sex: differs between the sessions of the person"
    has_t1 = frame["t1w"] != ""
    has = {tracer: has_t1 & (frame[tracer] != "") for tracer in TRACERS}
    for tracer in TRACERS:
        far = has[tracer] & (frame[f"{tracer}_days"].abs() > match.window_days)
        for name in (column for column in COLUMNS if column.startswith(tracer)):
            frame.loc[far, name] = EMPTY[name]
    near = {tracer: has_t1 & (frame[tracer] != "") for tracer in TRACERS}
    has_both, near_both = (present["amyloid"] & present["tau"] for present in (has, near))
    both = match.require == "both"
    enough, in_window = (has_both, near_both) if both else (p["amyloid"] | p["tau"] for p in (has, near))
    known = in_window & frame["age"].notna() & (frame["sex"] != "") & (faults == "")
    selected = known & frame.index.isin(_select_visits(frame[known], match.per_person))
    scans = "amyloid and tau" if both else "amyloid or tau"
    steps = {
        "found": (pd.Series(True, index=frame.index), ""),
        "has T1": (has_t1, "no T1"),
        "has amyloid": (has["amyloid"], ""),  # without a reason: counted, no condition
        "has tau": (has["tau"], ""),
        "has amyloid and tau": (has_both, ""),  # replaced by the next step where both are required
        f"has {scans}": (enough, f"no {scans} PET"),
        "in window": (in_window, f"PET more than {match.window_days:g} days from the T1"),
        "amyloid and tau in window": (near_both, ""),
        "has age and sex": (known, "no age, or no sex"),
        "kept": (selected, f"another session of the person was chosen ({match.per_person})"),
    }
    counts = [(step, frame.loc[mask, "person"].nunique(), int(mask.sum())) for step, (mask, _) in steps.items()]
    flow = pd.DataFrame(counts, columns=["step", "people", "sessions"])
    reason = pd.Series("", index=frame.index)
    for mask, text in steps.values():
        reason[(reason == "") & ~mask & (text != "")] = text
    reason = faults.where((faults != "") & in_window, reason)
    if "reason" in candidates:
        given = candidates["reason"]
        reason = given.where((given != "") & has_t1 & ~in_window, reason)
    left_out = frame.loc[~selected, _KEY].assign(reason=reason[~selected]).reset_index(drop=True)

    for note in notes[:_LOGGED]:
        log.warning("%s", note)
    if len(notes) > _LOGGED:
        log.warning("… and %d more notes on %s", len(notes) - _LOGGED, where)
    if not selected.any():
        first = f"; the first is {' '.join(frame.loc[0, _KEY])}: {reason[0]}" if len(frame) else ""
        raise ManifestError(
            f"{where}: no session can be used: of {len(frame)} found, {int(has_t1.sum())} have a T1w, "
            f"{int(enough.sum())} {scans} PET too (trc- {', '.join(config.cohort.tracers)}), {int(in_window.sum())} in "
            f"the window of {match.window_days:g} days, {int(known.sum())} also age and sex; look at cohort.tracers, "
            f"cohort.match and the tables of the source{first}"
        )
    frame = frame[selected].sort_values(_KEY)
    return Cohort(check_manifest(frame, where), flow, left_out, notes)


def _read_cells(frame: pd.DataFrame, notes: list[str]) -> tuple[pd.DataFrame, pd.Series]:
    """Give cells their meaning by the schema: the table, and the fault of each row that cannot be used."""
    faults, columns, who = pd.Series("", index=frame.index), {}, frame["person"] + " " + frame["session"]
    for name, column in SCHEMA.columns.items():
        if name in (*PATHS, *TRANSFORMS, "split"):
            columns[name] = frame[name]
            continue
        meaning, check = _MEANINGS.get(name, to_number if column.coerce else str), column.checks[0]
        cells = frame[name].astype(object).where(frame[name].notna(), EMPTY[name])
        values = {row: meaning(cell) if isinstance(cell, str) else cell for row, cell in cells.items()}
        absent = [EMPTY[name] if value is None else value for value in values.values()]
        columns[name] = pd.Series(absent, index=frame.index, dtype=float if column.coerce else str)
        refused = {row for row, value in values.items() if value is None}
        cases = check(columns[name]).failure_cases
        refused |= set() if cases is None else set(cases.index) - set(cells.index[cells == ""])
        if str(column.dtype) == "Int64":
            refused |= set(cells.index[columns[name] % 1 > 0])
        for row in sorted(refused):
            cell = cells[row]
            found = repr(cell) if isinstance(cell, str) else f"{cell:g}"
            fault = f"{name}: found {found}, expected {check.error}"
            if name in _NEEDED:
                faults[row] = faults[row] or fault
            else:
                columns[name][row] = EMPTY[name]
                notes += [f"{who[row]}: {fault}; left empty"] if frame["t1w"][row] else []
        if name == "age":
            for row, text in frame["age"].items():
                if isinstance(text, str) and columns["age"][row] > 0 and to_number(text) is None:
                    notes.append(f"{who[row]}: age {text!r} is read as {columns['age'][row]:g}")
    return pd.DataFrame(columns), faults


def _select_visits(frame: pd.DataFrame, rule: str) -> pd.Index:
    """Apply ``cohort.match.per_person``: rows of the sessions that stay."""
    if rule == "all":
        return frame.index
    gaps = frame[[f"{tracer}_days" for tracer in TRACERS]].abs().fillna(0)
    missing = (frame[list(TRACERS)] == "").sum(axis=1)
    order = frame.assign(missing=missing, largest=gaps.max(axis=1), total=gaps.sum(axis=1))
    by = ["age", "session"] if rule == "first" else ["missing", "largest", "total", "age", "session"]
    return order.sort_values(by, kind="stable").groupby("person").head(1).index


# ── scans of one session ──────────────────────────────────────────────────────────────────────────


def _scan_table(scans: pd.DataFrame | Iterable[Row]) -> pd.DataFrame:
    frame = pd.DataFrame(scans).reset_index(drop=True)
    for name, default in _SCAN.items():
        frame[name] = frame[name].where(frame[name].notna(), default) if name in frame else default
    return frame


def _choose_scans(scans: pd.DataFrame, labels: Sequence[str], notes: list[str]) -> pd.DataFrame:
    """Keep one scan per session, target and space; native T1w first, and PET only in the space of its T1w."""
    rank = scans["tracer"].map({label: number for number, label in enumerate(labels)}).fillna(-1)
    order = scans.assign(rank=rank).sort_values([*_KEY, "rank"], kind="stable")
    chosen = []
    for (person, session), group in order.groupby(_KEY, sort=False):
        where = f"{person} {session}"
        t1w, pets = group[group["target"] == "t1w"], group[group["target"] != "t1w"]
        if len(t1w):
            # native ("") first, unless a tool wrote PETs in MNI152 space alone
            held = {space: pets.loc[pets["space"] == space, "tracer"].nunique() for space in t1w["space"]}
            space = min(held, key=lambda space: (-held[space], space))
            for label in pets["tracer"].unique():
                if not (pets.loc[pets["tracer"] == label, "space"] == space).any():
                    notes.append(f"{where}: {label} PET and T1w lie in different spaces (MNI152, native); not paired")
            group = group[group["space"] == space]
        for (what, label, _), scan in group.groupby(["target", "tracer", "space"], sort=False):
            if len(scan) > 1:
                name = "T1w" if what == "t1w" else f"{label} PET"
                notes.append(f"{where}: {len(scan)} {name}; {Path(scan['path'].iloc[0]).name} is used")
        for (what, _), scan in group.groupby(["target", "space"], sort=False):
            used, *others = scan["tracer"].unique()
            notes += [f"{where}: {used} and {other}; {used} is used" for other in others if what != "t1w"]
            chosen.append(scan.iloc[[0]])
    return pd.concat(chosen, ignore_index=True) if chosen else scans


def _session_rows(scans: pd.DataFrame, people: pd.DataFrame) -> list[Row]:
    """Join the scans of each session; sessions without a scan are rows too."""
    by_session = {key: group.to_dict("records") for key, group in scans.groupby(_KEY)}
    rows = []
    for person, session in sorted(by_session.keys() | set(people[_KEY].itertuples(index=False, name=None))):
        group = sorted(by_session.get((person, session), []), key=lambda scan: scan["space"])
        first = {scan["target"]: scan for scan in reversed(group)}
        head = first.get("t1w") or _SCAN | {"person": person, "session": session}
        rows.append(_row(head, first))
    return rows


def _pair_across_sessions(
    rows: list[Row], scans: pd.DataFrame, match: MatchConfig, labels: Sequence[str], notes: list[str]
) -> list[Row]:
    """Give PETs without a T1w in their session, or with one beyond the window, to T1w of other sessions without one.

    Sessions whose PETs all went to T1w of other sessions are dropped.
    """

    def lacks(row: Row, tracer: str) -> bool:
        return not (row["t1w"] and row[tracer]) or abs(row[f"{tracer}_days"]) > match.window_days

    missing = {(row["person"], row["session"]): tuple(t for t in TRACERS if lacks(row, t)) for row in rows}
    records = scans.to_dict("records")
    for scan in records:
        scan["missing"] = missing[scan["person"], scan["session"]]
        scan["day"] = scan["visit_day"] if np.isnan(scan["day"]) else scan["day"]
    origin = {scan["path"]: scan for scan in records}
    by_t1w = {row["t1w"]: row for row in rows if row["t1w"]}
    given: set[str] = set()
    for tracers in (("amyloid",), ("tau",), TRACERS):  # a T1w that lacks one tracer only comes first
        heads = [scan for scan in records if scan["target"] == "t1w" and scan["missing"] == tracers]
        pets = [scan for scan in records if scan["target"] in tracers and scan["target"] in scan["missing"]]
        matched = match_scans([*heads, *(pet for pet in pets if pet["path"] not in given)], match, labels)
        for pair in matched[matched["t1w"] != ""].to_dict("records"):
            row = by_t1w[pair["t1w"]]
            row["reason"] = pair["reason"]
            for tracer in (tracer for tracer in tracers if pair[tracer]):
                near = abs(pair[f"{tracer}_days"]) <= match.window_days
                if near or not row[tracer]:  # the nearest beyond the window is counted
                    row |= {f"{tracer}{part}": pair[f"{tracer}{part}"] for part in _OF_PET}
                if near:
                    given.add(pair[tracer])
                    pet = origin[pair[tracer]]
                    by = ", by the ages of the sessions" if pet["by_age"] or origin[row["t1w"]]["by_age"] else ""
                    gap = f"{pair[f'{tracer}_days']:+.0f} days from the T1w{by}"
                    notes.append(f"{row['person']} {row['session']}: {pet['tracer']} PET of {pet['session']}, {gap}")
    held = {(scan["person"], scan["session"], scan["target"]) for scan in records if scan["target"] != "t1w"}
    left = held - {(origin[path]["person"], origin[path]["session"], origin[path]["target"]) for path in given}
    emptied = {key[:2] for key in held} - {key[:2] for key in left}
    return [row for row in rows if row["t1w"] or (row["person"], row["session"]) not in emptied]


# ── scans of one time ─────────────────────────────────────────────────────────────────────────────


def match_scans(scans: pd.DataFrame | Sequence[Row], match: MatchConfig, labels: Sequence[str] = ()) -> pd.DataFrame:
    """Give every T1 scan the nearest PETs of its person in time; a PET belongs to one T1 only.

    A set is a T1 with an amyloid and a tau PET, or with one of the two, each within ``match.window_days``. The best set
    of a person is taken first and its PETs are used up; then the best of the rest, and so on. Best is: both tracers
    before one; the smallest largest gap; the smallest sum of gaps; the earlier T1; PETs on the side that ``match.tie``
    names. Of two tracers for one target in a T1's window, the one named first in ``labels`` is considered.

    Parameters
    ----------
    scans : DataFrame
        As for `assemble_manifest`. Without both days, a PET and a T1 belong together if they share a session, and
        their gap is NaN. Only scans of one space are paired.
    match : MatchConfig
        ``window_days``, ``same_visit`` and ``tie`` are used here.
    labels : sequence of str
        Tracers, the preferred first.

    Returns
    -------
    DataFrame
        person, session, space, t1w and, for either target, ``<target>`` (path), ``<target>_tracer``,
        ``<target>_days``: one row per T1, by person and day, and one for each person with PETs only. A T1 without a
        PET in the window has the nearest one beyond it, with its days; ``reason`` states if PETs in the window were
        used for another T1, or if days are not known.
    """
    order = {label: number for number, label in enumerate(labels)}
    rows: list[Row] = []
    for _, group in _scan_table(scans).groupby(["person", "space"]):
        records = sorted(group.to_dict("records"), key=lambda scan: (_day(scan), scan["session"], scan["path"]))
        heads = [scan for scan in records if scan["target"] == "t1w"]
        rows += _match_person(heads, [scan for scan in records if scan["target"] != "t1w"], match, order)
    columns = [*_KEY, "space", "t1w", *(f"{target}{part}" for target in TRACERS for part in _OF_PET)]
    return pd.DataFrame(rows, columns=[*columns, "t1w_transform", "reason"])


def _match_person(heads: list[Row], pets: list[Row], match: MatchConfig, order: dict[str, int]) -> list[Row]:
    """Match the scans of one person, sorted by day; see `match_scans`."""
    if not heads:
        return [_row(pets[0] | {"path": ""}, {pet["target"]: pet for pet in reversed(pets)})]
    near = [[_is_near(head, pet, match) for pet in pets] for head in heads]
    free, left, taken = set(range(len(pets))), list(range(len(heads))), {}
    while True:
        sets = [(h, members) for h in left
                for members in _possible_sets([p for p in sorted(free) if near[h][p]], pets, order)]  # fmt: skip
        if not sets:
            break
        best, members = min(sets, key=lambda one: _rank(heads[one[0]], [pets[p] for p in one[1]], match))
        taken[best] = members
        left.remove(best)
        free -= set(members)

    rows = []
    for number, head in enumerate(heads):
        chosen = {pets[p]["target"]: pets[p] for p in taken.get(number, ())}
        reason = ""
        for target in (target for target in TRACERS if target not in chosen):
            those = [p for p, pet in enumerate(pets) if pet["target"] == target]
            beyond = [pets[p] for p in those if not np.isnan(_gap(head, pets[p]))]
            if any(near[number][p] for p in those):
                reason = "its PET goes with a T1 that lies nearer"
            elif beyond and not match.same_visit:
                chosen[target] = min(beyond, key=lambda pet, head=head: abs(_gap(head, pet)))
            elif those and not match.same_visit:
                reason = "its PET is of another session, and one of the two has no date"
        rows.append(_row(head, chosen, reason))
    return rows


def _possible_sets(near: list[int], pets: list[Row], order: dict[str, int]) -> Iterator[tuple[int, ...]]:
    """Every pair of an amyloid and a tau PET, or every PET where there is one target only."""
    by_target = []
    for target in TRACERS:
        those = {p: order.get(pets[p]["tracer"], len(order)) for p in near if pets[p]["target"] == target}
        by_target.append([p for p, rank in those.items() if rank == min(those.values())])
    amyloid, tau = by_target
    yield from product(amyloid, tau) if amyloid and tau else ((p,) for p in amyloid or tau)


def _rank(head: Row, pets: list[Row], match: MatchConfig) -> tuple[Any, ...]:
    """Rank a set; the smallest is the best."""
    days = [np.nan_to_num(_gap(head, pet)) for pet in pets]  # without days, both are of one visit
    gaps, side = [abs(day) for day in days], 1 if match.tie == "earlier" else -1
    return len(TRACERS) - len(pets), max(gaps), sum(gaps), _day(head), *(side * day for day in days)


def _is_near(head: Row, pet: Row, match: MatchConfig) -> bool:
    together, gap = head["session"] == pet["session"], _gap(head, pet)
    if match.same_visit and not together:
        return False
    return together if np.isnan(gap) else abs(gap) <= match.window_days


def _gap(head: Row, pet: Row) -> float:
    """Days from the T1 to the PET; NaN where a day is not known."""
    return pet["day"] - head["day"]


def _day(scan: Row) -> float:
    return np.inf if np.isnan(scan["day"]) else scan["day"]


def _row(head: Row, chosen: dict[str, Row], reason: str = "") -> Row:
    """Join a T1 scan (an empty path where there is none) and its PETs into one row."""
    row = {name: head[name] for name in (*_KEY, "space")} | {"t1w": head["path"], "reason": reason}
    row["t1w_transform"] = head["transform"] if row["t1w"] else ""
    for target in TRACERS:
        pet = chosen.get(target)
        row[f"{target}_transform"] = pet["transform"] if pet and pet["onto"] == head["path"] else ""
        row |= {target: pet["path"] if pet else "", f"{target}_tracer": pet["tracer"] if pet else ""}
        row[f"{target}_days"] = float(_gap(head, pet)) if pet and row["t1w"] else np.nan
    return row
