"""From scans that a source holds to the manifest: which belong together, who is kept, who was left out and why.

Every reader of a source (`resdm.cohort.bids` and its siblings) lists candidates, one row a T1 scan with the PETs that
go with it, and ends with `close_manifest`, so that all of them count alike.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from resdm.cohort.manifest import COLUMNS, ManifestError, check_manifest
from resdm.config import TRACERS, Config

log = logging.getLogger(__name__)

_LOGGED = 5  # notes that are logged one by one


class Found(NamedTuple):
    """What a source holds.

    Parameters
    ----------
    manifest : DataFrame
        Checked, one row a session, by person and session; ``split`` is empty.
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
        visit and says no more.
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
    both = match.require == "both"
    enough, in_window = ((p["amyloid"] & p["tau"]) if both else (p["amyloid"] | p["tau"]) for p in (has, near))
    known = in_window & frame["age"].notna() & (frame["sex"] != "")
    kept = known & _chosen(frame[known], match.per_person).reindex(frame.index, fill_value=False)
    scans = "amyloid and tau" if both else "amyloid or tau"
    steps = {
        "found": (pd.Series(True, index=frame.index), ""),
        "has T1": (has_t1, "no T1"),
        "has amyloid": (has["amyloid"], ""),  # a branch, not a step
        "has tau": (has["tau"], ""),
        f"has {scans}": (enough, f"no {scans} PET"),
        "in window": (in_window, f"PET more than {match.window_days:g} days from the T1"),
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
