"""Which T1, amyloid and tau scans of a person belong together, against brute force and by hand."""

from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pandas as pd
import pytest

from resdm_suite.cohorts.manifest import EMPTY, ManifestError
from resdm_suite.cohorts.matching import assemble_manifest, match_scans, select_sessions
from resdm_suite.profiles import CohortConfig, Config, MatchConfig

MATCH = MatchConfig(window_days=180)
AV45, FBB, TAU = ("amyloid", "18FAV45"), ("amyloid", "18FFBB"), ("tau", "18FAV1451")


def heads(*days, person="sub-1", sessions=None) -> list[dict]:
    """T1 scans on numbered days; None: not known."""
    sessions = sessions or [f"ses-{number}" for number in range(len(days))]
    return [
        {"person": person, "session": session, "target": "t1w", "path": f"{person}_{session}_T1", "day": _day(day)}
        for day, session in zip(days, sessions, strict=True)
    ]


def pets(*scans, person="sub-1") -> list[dict]:
    """``((target, tracer), day[, session])`` each; the path holds tracer and day."""
    return [
        {"person": person, "session": session[0] if session else f"ses-day{day}", "target": target, "tracer": tracer,
         "path": f"{tracer}@{day}", "day": _day(day)}
        for (target, tracer), day, *session in scans
    ]  # fmt: skip


def _day(day) -> float:
    return np.nan if day is None else float(day)


def found(frame) -> list[tuple]:
    return [
        (row["session"], row["amyloid"], row["tau"], row["amyloid_days"], row["tau_days"])
        for row in frame.fillna({"amyloid_days": -999, "tau_days": -999}).to_dict("records")
    ]


def test_the_tightest_set_gets_its_pets_before_the_others():
    frame = match_scans(heads(0, 100, 400) + pets((AV45, 90), (TAU, 110), (AV45, 390), (TAU, 500)), MATCH)
    tight, wide = ("18FAV45@90", "18FAV1451@110", -10, 10), ("18FAV45@390", "18FAV1451@500", -10, 100)
    assert found(frame) == [("ses-0", "", "", -999, -999), ("ses-1", *tight), ("ses-2", *wide)]
    assert frame["reason"].tolist() == ["its PET goes with a T1 that lies nearer", "", ""]


def test_ties_by_the_largest_gap_then_the_sum_then_the_earlier():
    frame = match_scans(heads(0, 110) + pets((AV45, 50), (AV45, 110), (TAU, 50)), MATCH)
    assert found(frame)[0][3:] == (50, 50)  # the largest gap: 50 and 50 before 0 and 60, though that sum is smaller
    assert found(frame)[1][1:3] == ("18FAV45@110", "")
    # 40, 30 against 40, 50; 40, 50 against 40, 30; the same: the earlier T1
    for day, taken in ((30, 0), (50, 1), (40, 0)):
        frame = match_scans(heads(0, 80) + pets((AV45, 40), (TAU, day)), MATCH)
        assert found(frame)[taken][1:3] == ("18FAV45@40", f"18FAV1451@{day}")


@pytest.mark.parametrize(("tie", "taken"), [("earlier", -30), ("later", 30)])
def test_an_option_selects_between_two_equally_near_pets(tie, taken):
    match = dataclasses.replace(MATCH, tie=tie)
    (row,) = found(match_scans(heads(0) + pets((AV45, 30), (AV45, -30), (TAU, -30), (TAU, 30)), match))
    assert row[3:] == (taken, taken)


def test_the_window_is_closed_and_scans_beyond_it_are_reported():
    frame = match_scans(heads(0) + pets((AV45, 180), (TAU, -181), (TAU, 300)), MATCH)
    assert found(frame) == [("ses-0", "18FAV45@180", "18FAV1451@-181", 180, -181)]  # counted, then dropped
    assert frame["reason"].tolist() == [""]


def test_the_preferred_tracer_is_used_even_if_farther():
    scans = pets((FBB, 1), (AV45, 100), (TAU, 0))
    assert found(match_scans(heads(0) + scans, MATCH, ["18FAV45", "18FFBB"]))[0][1] == "18FAV45@100"
    assert found(match_scans(heads(0) + scans, MATCH, ["18FFBB", "18FAV45"]))[0][1] == "18FFBB@1"
    frame = match_scans(heads(0, 101) + scans, MATCH, ["18FAV45", "18FFBB"])
    assert [row[1:3] for row in found(frame)] == [("18FAV45@100", "18FAV1451@0"), ("18FFBB@1", "")]  # what is left


def test_same_visit_and_unknown_dates():
    match = dataclasses.replace(MATCH, same_visit=True)
    scans = pets((AV45, 10, "ses-0"), (TAU, 0, "ses-other"))
    assert found(match_scans(heads(0) + scans, match)) == [("ses-0", "18FAV45@10", "", 10, -999)]
    scans = pets((AV45, None, "ses-0"), (TAU, None, "ses-other"))
    assert found(match_scans(heads(None) + scans, MATCH)) == [("ses-0", "18FAV45@None", "", -999, -999)]
    assert found(match_scans(heads(0) + scans, MATCH)) == [("ses-0", "18FAV45@None", "", -999, -999)]


def test_people_with_one_kind_only_are_rows_too():
    frame = match_scans(heads(0) + pets((TAU, 5), (AV45, 3), person="sub-2"), MATCH)
    rows = frame[["person", "session", "t1w", "amyloid", "tau"]].to_numpy().tolist()
    assert rows[0] == ["sub-1", "ses-0", "sub-1_ses-0_T1", "", ""]
    assert rows[1] == ["sub-2", "ses-day3", "", "18FAV45@3", "18FAV1451@5"]
    assert frame["amyloid_days"].isna().all()
    assert match_scans(heads() + pets(), MATCH).empty


def brute(t1s, scans, match) -> dict[str, tuple[str, str]]:
    """Every set there is, the best first, and none that shares a scan with one before."""
    by = {target: [None, *(scan for scan in scans if scan["target"] == target)] for target in ("amyloid", "tau")}
    sets = []
    for t1, a, u in product(t1s, by["amyloid"], by["tau"]):
        some = [pet for pet in (a, u) if pet is not None]
        days = [pet["day"] - t1["day"] for pet in some]
        if not some or max(map(abs, days)) > match.window_days:
            continue
        side = days if match.tie == "earlier" else [-d for d in days]
        sets.append(((2 - len(some), max(map(abs, days)), sum(map(abs, days)), t1["day"], *side), t1["session"], a, u))
    used, chosen = set(), {}
    for _, session, a, u in sorted(sets, key=lambda one: one[0]):
        names = {pet["path"] for pet in (a, u) if pet is not None}
        if session not in chosen and not names & used:
            chosen[session] = (a["path"] if a else "", u["path"] if u else "")
            used |= names
    return chosen


@pytest.mark.parametrize("tie", ["earlier", "later"])
def test_against_brute_force(tie):
    rng = np.random.default_rng(0)
    match = MatchConfig(window_days=150, tie=tie)
    several = 0
    for _ in range(200):
        t1s = heads(*(int(d) for d in rng.choice(900, rng.integers(1, 5), replace=False)))
        kinds = [AV45 if flag else TAU for flag in rng.integers(0, 2, rng.integers(1, 7))]
        scans = pets(*((k, int(d)) for k, d in zip(kinds, rng.choice(900, len(kinds), replace=False), strict=True)))
        frame = match_scans(t1s + scans, match)
        near = {t: frame[f"{t}_days"].abs() <= match.window_days for t in ("amyloid", "tau")}
        got = {
            row.session: tuple(getattr(row, t) if near[t][row.Index] else "" for t in ("amyloid", "tau"))
            for row in frame.itertuples()
        }
        expected = brute(t1s, scans, match)
        assert {session: pair for session, pair in got.items() if pair != ("", "")} == expected
        several += len(expected) > 1
    assert several > 50


def test_a_source_without_any_scan_is_refused_by_name():
    with pytest.raises(ManifestError, match=r"^here: no session can be used: of 0 found.* tables of the source$"):
        assemble_manifest([], [], Config(profile="t"), "here", [], "day")


def test_a_pet_of_another_session_without_a_day_is_the_reason():
    frame = match_scans(heads(0) + pets((AV45, None, "ses-later")), MATCH)
    assert frame["reason"].tolist() == ["its PET is of another session, and one of the two has no date"]


def test_a_status_between_0_and_1_is_left_empty():
    row = EMPTY | {"person": "sub-1", "session": "ses-1", "age": 70.0, "sex": "F", "t1w": "/t1.nii.gz"}
    row |= {"amyloid": "/a.nii.gz", "amyloid_tracer": "18FAV45", "amyloid_status": 0.5}
    found = select_sessions(pd.DataFrame([row]), Config(profile="t", cohort=CohortConfig(kind="other")), "here")
    assert found.manifest["amyloid_status"].isna().all()
    assert found.notes == ["sub-1 ses-1: amyloid_status: found 0.5, expected a whole number from 0 to 1; left empty"]


def test_a_reader_may_state_why_a_visit_has_no_pet():
    known = EMPTY | {"session": "ses-1", "age": 70.0, "sex": "F", "t1w": "/t1.nii.gz", "reason": "not given"}
    pet, nearer = {"amyloid": "/a.nii.gz", "amyloid_tracer": "18FAV45"}, "its PET goes with a T1 that lies nearer"
    rows = [known | {"person": f"sub-{number}"} | row
            for number, row in enumerate((pet, {"reason": nearer}, {"reason": ""}, {"t1w": ""}), 1)]  # fmt: skip
    config = Config(profile="t", cohort=CohortConfig(kind="other"))
    left_out = select_sessions(pd.DataFrame(rows), config, "here").left_out.set_index("person")["reason"]
    assert left_out.to_dict() == {"sub-2": nearer, "sub-3": "no amyloid or tau PET", "sub-4": "no T1"}
