"""From scans that a source holds to the manifest: which belong together, who is kept, who was left out and why.

Every reader (`cohorts.readers`) lists candidates, one row a T1 scan with the PETs that go with it, and ends with
`close_manifest`, so that all of them count alike.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from resdm.settings import TRACERS
from resdm_suite.cohorts.manifest import COLUMNS, ManifestError, check_manifest
from resdm_suite.profiles import Config, MatchConfig

log = logging.getLogger(__name__)

_LOGGED = 5  # notes that are logged one by one


class Found(NamedTuple):
    """What a source holds.

    Parameters
    ----------
    manifest : DataFrame
        Checked, one row a session, by person and session; ``split`` is empty, but for sources that come with one.
    flow : DataFrame
        step, people, sessions: how many pass each step.
    left_out : DataFrame
        person, session, reason: everybody of the candidates who is not in the manifest, by the first step not passed.
    notes : list of str
        Choices that were made and faults that were met, in plain words.
    """

    manifest: pd.DataFrame
    flow: pd.DataFrame
    left_out: pd.DataFrame
    notes: list[str]


def close_manifest(candidates: pd.DataFrame, config: Config, where: str | Path, notes: Sequence[str] = ()) -> Found:
    """Apply the window, what is required and the choice of visits; count, check, and say who was left out.

    Parameters
    ----------
    candidates : DataFrame
        The manifest's columns, one row a visit, paths absolute. Empty cells are what is not known: no T1, no PET, no
        age. ``amyloid_days`` and ``tau_days`` are days from the T1 scan; where NaN, the source files both under one
        visit and says no more. A column ``reason``, where there is one, says why a visit has no PET.
    config : Config
        Its ``cohort.match``.
    where : str or path
        The source; starts the messages.
    notes : sequence of str
        What the reader has to say already.

    Raises
    ------
    ManifestError
        Nobody is left, or a value that cannot be.
    """
    match, notes = config.cohort.match, list(notes)
    frame = candidates.reset_index(drop=True)[list(COLUMNS)].copy()
    has_t1 = frame["t1w"] != ""
    has = {tracer: has_t1 & (frame[tracer] != "") for tracer in TRACERS}
    for tracer in TRACERS:
        far = has[tracer] & (frame[f"{tracer}_days"].abs() > match.window_days)
        frame.loc[far, [tracer, f"{tracer}_tracer"]] = ""
        frame.loc[
            far, [f"{tracer}_days", f"{tracer}_suvr", *(["amyloid_centiloid"] if tracer == "amyloid" else [])]
        ] = np.nan
        frame.loc[far, f"{tracer}_status"] = pd.NA
    near = {tracer: has_t1 & (frame[tracer] != "") for tracer in TRACERS}
    has_both, near_both = (p["amyloid"] & p["tau"] for p in (has, near))
    both = match.require == "both"
    enough, in_window = (has_both, near_both) if both else (p["amyloid"] | p["tau"] for p in (has, near))
    known = in_window & frame["age"].notna() & (frame["sex"] != "")
    kept = known & _chosen(frame[known], match.per_person).reindex(frame.index, fill_value=False)
    scans = "amyloid and tau" if both else "amyloid or tau"
    steps = {
        "found": (pd.Series(True, index=frame.index), ""),
        "has T1": (has_t1, "no T1"),
        "has amyloid": (has["amyloid"], ""),  # without a reason: a branch, not a step
        "has tau": (has["tau"], ""),
        "has amyloid and tau": (has_both, ""),  # where both are required, the step that follows, and no other
        f"has {scans}": (enough, f"no {scans} PET"),
        "in window": (in_window, f"PET more than {match.window_days:g} days from the T1"),
        "amyloid and tau in window": (near_both, ""),
        "has age and sex": (known, "no age, or no sex"),
        "kept": (kept, f"another session of the person was chosen ({match.per_person})"),
    }
    flow = pd.DataFrame(
        [(step, frame.loc[mask, "person"].nunique(), int(mask.sum())) for step, (mask, _) in steps.items()],
        columns=["step", "people", "sessions"],
    )
    reason = pd.Series("", index=frame.index)
    for mask, said in steps.values():
        reason[(reason == "") & ~mask & (said != "")] = said
    if "reason" in candidates:
        told = candidates["reason"].reset_index(drop=True)
        reason = told.where((told != "") & has_t1 & ~in_window, reason)
    left_out = frame.loc[~kept, ["person", "session"]].assign(reason=reason[~kept]).reset_index(drop=True)

    for note in notes[:_LOGGED]:
        log.warning("%s", note)
    if len(notes) > _LOGGED:
        log.warning("… and %d more notes on %s", len(notes) - _LOGGED, where)
    if not kept.any():
        raise ManifestError(
            f"{where}: no session can be used: of {len(frame)} found, {int(has_t1.sum())} have a T1w, "
            f"{int(enough.sum())} {scans} PET too (trc- {', '.join(config.cohort.tracers)}), {int(in_window.sum())} in "
            f"the window of {match.window_days:g} days, {int(known.sum())} also age and sex; look at cohort.tracers, "
            "cohort.match and the tables of the source"
        )
    frame = frame[kept].sort_values(["person", "session"])
    return Found(check_manifest(frame, where), flow, left_out, notes)


def _chosen(frame: pd.DataFrame, rule: str) -> pd.Series:
    """Which sessions ``cohort.match.per_person`` keeps."""
    if rule == "all":
        return pd.Series(True, index=frame.index)
    gaps = frame[[f"{tracer}_days" for tracer in TRACERS]].abs().fillna(0)
    missing = sum((frame[tracer] == "").astype(int) for tracer in TRACERS)
    order = frame.assign(missing=missing, largest=gaps.max(axis=1), total=gaps.sum(axis=1))
    first = ["age", "session"]  # the earlier visit
    by = first if rule == "first" else ["missing", "largest", "total", *first]
    return pd.Series(
        frame.index.isin(order.sort_values(by, kind="stable").groupby("person").head(1).index), frame.index
    )


# ── which scans of a person belong together ───────────────────────────────────────────────────────


def match_scans(t1s: pd.DataFrame, pets: pd.DataFrame, match: MatchConfig, tracers: Sequence[str] = ()) -> pd.DataFrame:
    """Give every T1 scan the PETs of its person that lie nearest in time; a PET goes with one T1 only.

    A set is a T1 with an amyloid and a tau PET, or with one of the two, each within ``match.window_days``. The best set
    of a person is taken first and its PETs are gone; then the best of what is left, and so on. Best is: both tracers
    before one; the smallest largest gap; the smallest sum of gaps; the earlier T1; the PETs on the side that
    ``match.tie`` says. Of two tracers for one target that lie in a T1's window, the one named first is considered.

    Parameters
    ----------
    t1s : DataFrame
        person, session, date (NaT where not known), t1w: one row a scan.
    pets : DataFrame
        person, session, date, target (of `TRACERS`), tracer, path. Where a date is not known, a PET and a T1 belong
        together if they are of one session, and their gap is NaN.
    match : MatchConfig
        ``window_days``, ``same_visit`` and ``tie`` are used here; the others by `close_manifest`.
    tracers : sequence of str
        Labels, the preferred first.

    Returns
    -------
    DataFrame
        person, session, date, t1w and, for either tracer, ``<target>`` (path), ``<target>_tracer``,
        ``<target>_days``: one row a T1, by person and date, and one for each person who has PETs only. A T1 without
        a PET in the window has the nearest one beyond, with its days, for `close_manifest` to count; ``reason`` says
        where PETs in the window went with another T1.
    """
    order = {label: number for number, label in enumerate(tracers)}
    scans = {person: group.to_dict("records") for person, group in pets.groupby("person")}
    heads = {person: group.to_dict("records") for person, group in t1s.groupby("person")}
    rows: list[dict[str, Any]] = []
    for person in sorted(scans.keys() | heads.keys()):
        rows += _match_person(heads.get(person, []), scans.get(person, []), match, order)
    columns = ["person", "session", "date", "t1w"]
    columns += [f"{target}{part}" for target in TRACERS for part in ("", "_tracer", "_days")]
    return pd.DataFrame(rows, columns=[*columns, "reason"])


def _match_person(
    heads: list[dict[str, Any]], pets: list[dict[str, Any]], match: MatchConfig, order: dict[str, int]
) -> list[dict[str, Any]]:
    """The rows of one person, see `match_scans`."""
    heads = sorted(heads, key=lambda head: (_day(head), head["session"], head["t1w"]))
    pets = sorted(pets, key=lambda pet: (_day(pet), pet["session"], pet["path"]))
    if not heads:
        first = {target: next((pet for pet in pets if pet["target"] == target), None) for target in TRACERS}
        return [_set_row(pets[0] | {"t1w": ""}, first, "")]
    free, left, taken = list(range(len(pets))), list(range(len(heads))), {}
    near = [[_near(head, pet, match) for pet in pets] for head in heads]
    while True:
        sets = [
            (_rank(heads[h], [pets[p] for p in members], match), h, members)
            for h in left
            for members in _sets([p for p in free if near[h][p]], pets, order)
        ]
        if not sets:
            break
        _, best, members = min(sets, key=lambda one: one[0])
        taken[best] = members
        left.remove(best)
        free = [p for p in free if p not in members]

    rows = []
    for number, head in enumerate(heads):
        chosen: dict[str, dict[str, Any] | None] = {pets[p]["target"]: pets[p] for p in taken.get(number, ())}
        reason = ""
        for target in (target for target in TRACERS if target not in chosen):
            those = [p for p, pet in enumerate(pets) if pet["target"] == target]
            beyond = [pets[p] for p in those if _known(head, pets[p])]
            if any(near[number][p] for p in those):
                reason = "its PET goes with a T1 that lies nearer"
            elif beyond and not match.same_visit:
                chosen[target] = min(beyond, key=lambda pet, head=head: abs(_gap(head, pet)))
        rows.append(_set_row(head, chosen, reason))
    return rows


def _sets(near: list[int], pets: list[dict[str, Any]], order: dict[str, int]) -> Iterator[tuple[int, ...]]:
    """Every pair of an amyloid and a tau PET, or every PET where there is one target only."""
    of = []
    for target in TRACERS:
        those = [p for p in near if pets[p]["target"] == target]
        first = min((order.get(pets[p]["tracer"], len(order)) for p in those), default=0)
        of.append([p for p in those if order.get(pets[p]["tracer"], len(order)) == first])
    amyloid, tau = of
    if amyloid and tau:
        yield from ((a, t) for a in amyloid for t in tau)
    else:
        yield from ((p,) for p in amyloid or tau)


def _rank(head: dict[str, Any], pets: list[dict[str, Any]], match: MatchConfig) -> tuple[Any, ...]:
    """The smaller, the better."""
    days = [_gap(head, pet) for pet in pets]
    gaps, side = [abs(day) for day in days], 1 if match.tie == "earlier" else -1
    return len(TRACERS) - len(pets), max(gaps), sum(gaps), _day(head), *(side * day for day in days)


def _near(head: dict[str, Any], pet: dict[str, Any], match: MatchConfig) -> bool:
    together = head["session"] == pet["session"]
    if match.same_visit and not together:
        return False
    return abs(_gap(head, pet)) <= match.window_days if _known(head, pet) else together


def _known(head: dict[str, Any], pet: dict[str, Any]) -> bool:
    return not (pd.isna(head["date"]) or pd.isna(pet["date"]))


def _gap(head: dict[str, Any], pet: dict[str, Any]) -> int:
    """Days from the T1 to the PET; none where a date is not known, as both are of one visit."""
    return (pet["date"].normalize() - head["date"].normalize()).days if _known(head, pet) else 0


def _day(scan: dict[str, Any]) -> float:
    return math.inf if pd.isna(scan["date"]) else scan["date"].toordinal()


def _set_row(head: dict[str, Any], chosen: dict[str, dict[str, Any] | None], reason: str) -> dict[str, Any]:
    row = {name: head[name] for name in ("person", "session", "date", "t1w")} | {"reason": reason}
    for target in TRACERS:
        pet = chosen.get(target)
        row |= {target: pet["path"] if pet else "", f"{target}_tracer": pet["tracer"] if pet else ""}
        known = pet is not None and row["t1w"] and _known(head, pet)
        row[f"{target}_days"] = float(_gap(head, pet)) if known else np.nan
    return row
