"""Table, findings and figure data of the uncertainty analysis: calibration, coverage and ranking."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from resdm.settings import to_dict
from resdm_suite.evaluation.intervals import PREDICTORS as INTERVAL_PREDICTORS
from resdm_suite.evaluation.readings import present_tracers
from resdm_suite.evaluation.statistics import ends_of
from resdm_suite.evaluation.uncertainty import FOLDS, LEVELS, MAP_FWHM_MM, PREDICTORS, Uncertainty, risk_coverage
from resdm_suite.profiles import MIN_GROUP_SIZE, Config
from resdm_suite.reporting import tables

TITLES = {"raw": "samples, uncalibrated", "sampling": "samples, scaled", "map": "error map alone", "both": "both"}
"""Names of the predictors in table and figure."""

INTERVAL_TITLES = {
    "map": "map", "person_shift": "centre by person", "person_scale": "width by person", "ensemble": "trainings",
}  # fmt: skip
"""Names of the predictors of one person's interval."""

NOMINAL = 0.9
"""Level of the intervals by region."""

_GAINED = {1: "better prediction", -1: "worse prediction", 0: "no measurable difference in the prediction"}

ACCEPTED = (0.85, 0.95)
"""Accepted coverage of the interval of level `NOMINAL`."""


def uncertainty_table(config: Config, result: Uncertainty) -> tables.Table:
    """How well the spread over samples predicts the error.

    Parameters
    ----------
    config : Config
    result : Uncertainty
        From `resdm_suite.evaluation.uncertainty.evaluate_samples`.

    Returns
    -------
    Table
        Frame: tracer, unit (``voxel``, ``regions``, a region, ``person``), predictor, measure, value, low, high (95 %),
        n (people).
    """
    found = {"verdict": verdict(result), "findings": findings(result), "n": tables.span(result.ranking["n"])}
    constants = {"fwhm_mm": MAP_FWHM_MM, "folds": FOLDS, "titles": TITLES, "predictors": PREDICTORS}
    lines = tables.notes("uncertainty", **found, **constants, **to_dict(config.uncertainty))
    title = "How far the spread over samples can be trusted"
    return tables.Table("uncertainty", title, config.notice, _tidy(result), _blocks(result), lines)


def with_intervals(table: tables.Table, intervals: pd.DataFrame) -> tables.Table:
    """The table with a block on intervals of one person's regional SUVR, from `compare_intervals`, and its finding."""
    if intervals.empty:
        return table
    rows = intervals.assign(place=intervals["tracer"].map(tables.TRACER_NAMES) + ", " + intervals["unit"], one="")
    rows["coverage (%)"] = tables.interval_texts(rows, ends_of("coverage"), 0, 100)
    rows["width"] = [tables.number(value, 3) for value in rows["width"]]
    rows["gain"] = np.where(rows["predictor"] == "map", "–", tables.interval_texts(rows, ends_of("gain"), 3))
    cells = {"coverage (%)": "coverage (%)", "width": "width", "gain on validation": "gain"}
    title = f"{100 * NOMINAL:g} % intervals of one person's regional SUVR: does the person narrow them?"
    block = tables.pivot(
        rows, "predictor", ["place", "one"], cells, title=title, head="Predictor", names=INTERVAL_TITLES
    )
    values = [
        {"tracer": row["tracer"], "unit": f"person, {row['unit']}", "predictor": row["predictor"], "measure": measure,
         "value": row[name], "low": row.get(f"{name}_low"), "high": row.get(f"{name}_high"), "n": row["n"]}
        for row in intervals.to_dict("records")
        for measure, name in (("coverage_90", "coverage"), ("width_90", "width"), ("score_gain", "gain"))
    ]  # fmt: skip
    frame = pd.concat([table.frame, pd.DataFrame(values).astype({"n": "Int64"})], ignore_index=True)
    text = "; ".join(f"{INTERVAL_TITLES[name]}: {text}" for name, text in INTERVAL_PREDICTORS.items())
    lines = (interval_finding(intervals), f"Intervals of one person. {text[:1].upper()}{text[1:]}.")
    return replace(table, frame=frame, blocks=(*table.blocks, block), notes=(*table.notes, *lines))


def interval_finding(intervals: pd.DataFrame) -> str:
    """Which predictors beat the map over regions, on validation people, and what their width is on test people."""
    regions = intervals[intervals["unit"] == "regions"]
    parts = []
    for tracer, part in regions.groupby("tracer", sort=False):
        width = part.set_index("predictor")["width"]
        better = part[part["gain_low"] > 0]
        names = " and ".join(
            f"{INTERVAL_TITLES[name]} ({_wider(width[name] / width['map'])} on test people)"
            for name in better["predictor"]
        )
        parts.append(f"{tables.TRACER_NAMES[tracer]}: {names or 'none'}")
    return (
        f"Predictors whose interval has a better score than the map, on validation people (95 % interval above zero): "
        f"{'; '.join(parts)}. `resdm synthesise` states the map."
    )


def _wider(ratio: float) -> str:
    """A ratio of widths in words, such as "4 % narrower"."""
    return f"{abs(100 * (ratio - 1)):.0f} % {'wider' if ratio > 1 else 'narrower'}"


# ── findings ──────────────────────────────────────────────────────────────────────────────────────


def verdict(result: Uncertainty) -> str:
    """One sentence: whether the spread over samples adds to the error map, in likelihood per voxel, for any tracer.

    It does if the interval over people of the gain (predictor ``both`` over ``map``) lies above zero.
    """
    by_sign = {True: [], False: []}
    for row in result.likelihood.query("unit == 'voxel' and predictor == 'both'").to_dict("records"):
        by_sign[_sign(row) > 0].append(f"{tables.TRACER_NAMES[row['tracer']]} (gain {_gain(row)} per voxel)")
    yes, no = (" and ".join(by_sign[added]) for added in (True, False))
    if not yes:
        return f"Verdict: the spread over samples adds nothing to the error map, for {no}: it is no error bar."
    return f"Verdict: the spread over samples adds to the error map for {yes}{f', not for {no}' if no else ''}."


def _gain(row: Mapping[str, Any]) -> str:
    return tables.with_interval(row["gain"], row["gain_low"], row["gain_high"], 3)


def _sign(row: Mapping[str, Any]) -> int:
    """1 if the interval of the gain lies above zero, −1 if below, else 0."""
    return int(row["gain_low"] > 0) - int(row["gain_high"] < 0)


def findings(result: Uncertainty) -> tuple[str, ...]:
    """Three sentences per tracer: on coverage, on the gain by samples, and on ranking.

    An interval over people that contains zero gives no finding.
    """
    lines = []
    for tracer in present_tracers(result.ranking):
        name, accepted = tables.TRACER_NAMES[tracer], "{:g} to {:g} %".format(*(100 * end for end in ACCEPTED))
        covered, gains, ranking = _of_tracer(result, tracer)
        regions = covered.drop(["voxel", "regions"], level="unit").xs("both", level="predictor")
        left = regions[~regions["coverage"].between(*ACCEPTED)]
        outside = ", ".join(f"{region.replace('_', ' ')} {_percent(row)}" for region, row in left.iterrows())
        voxel, pooled = (covered.loc[(unit, "both")] for unit in ("voxel", "regions"))
        inside = pd.Series([voxel["coverage"], pooled["coverage"]]).between(*ACCEPTED).all()
        lines.append(
            f"{name}, coverage: the calibrated {100 * NOMINAL:g} % interval (both) holds {_percent(voxel)} % of "
            f"voxels and {_percent(pooled)} % of regional SUVRs, {'' if inside else 'not '}both inside {accepted}; "
            f"uncalibrated it holds {_percent(covered.loc[('voxel', 'raw')])} % of voxels. Of {len(regions)} regions "
            + (f"{len(left)} leave {accepted}: {outside}." if len(left) else f"none leaves {accepted}.")
        )
        texts = [
            f"{_GAINED[_sign(row)]} of the error of a {unit.removesuffix('s')} ({_gain(row)})"
            for unit, row in gains.iterrows()
        ]
        lines.append(f"{name}, gain of the samples over the error map alone, in log-likelihood: {'; '.join(texts)}.")
        rhos = "; ".join(f"{TITLES[score]} {_rho(ranking.loc[score])}" for score in ("raw", "both"))
        lines.append(f"{name}, ranking: {_ranked(ranking)} (ρ: {rhos}).")
    return tuple(lines)


def _of_tracer(result: Uncertainty, tracer: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Coverage at level `NOMINAL` by unit and predictor, gains of ``both`` by unit, and ranking by predictor."""
    coverage, likelihood, ranking = (
        frame[frame["tracer"] == tracer] for frame in (result.coverage, result.likelihood, result.ranking)
    )
    covered = coverage[coverage["nominal"] == NOMINAL].set_index(["unit", "predictor"])
    gains = likelihood[likelihood["predictor"] == "both"].set_index("unit")
    return covered, gains, ranking.set_index("predictor")


def _percent(row: pd.Series) -> str:
    return tables.with_interval(100 * row["coverage"], 100 * row["low"], 100 * row["high"], 0)


def _ranked(ranking: pd.DataFrame) -> str:
    """Names the scores that rank people by error."""
    good = [TITLES[name] for name in ("raw", "both") if ranking.loc[name, "rho_low"] > 0]
    names = " and ".join(good) or "no score"
    return f"{names} rank{'' if len(good) > 1 else 's'} people by error"


def _rho(row: pd.Series) -> str:
    if np.isnan(row["rho"]):
        return "the same for all"
    return tables.with_interval(row["rho"], row["rho_low"], row["rho_high"])


def short_findings(result: Uncertainty, tracer: str) -> str:
    """`findings` of one tracer in two lines."""
    covered, gains, ranking = _of_tracer(result, tracer)
    added = {1: "add to", -1: "take from", 0: "add nothing to"}[_sign(gains.loc["voxel"])]
    return (
        f"{100 * NOMINAL:g} % interval: {_percent(covered.loc[('voxel', 'both')])} % of voxels, uncalibrated "
        f"{tables.number(100 * covered.loc[('voxel', 'raw'), 'coverage'], 0)} %;\n"
        f"samples {added} the map (log-likelihood {_gain(gains.loc['voxel'])} per voxel); {_ranked(ranking)}."
    )


def _tidy(result: Uncertainty) -> pd.DataFrame:
    """All results in long form, one row per value."""
    rows, measures = [], ["a", "b", *(f"q{100 * level:g}" for level in LEVELS)]
    for row in result.calibration.to_dict("records"):
        rows += [_value(row, name, name) for name in measures]
    for row in result.coverage.to_dict("records"):
        level = f"{100 * row['nominal']:g}"
        rows += [_value(row, f"coverage_{level}", "coverage", ""), _value(row, f"width_{level}", "width")]
    for row in result.likelihood.drop(columns="n", errors="ignore").to_dict("records"):
        rows += [_value(row, "nll", "nll"), _value(row, "nll_gain", "gain", "gain_")]
    for row in result.ranking.assign(unit="person").to_dict("records"):
        rows.append(_value(row, "rho", "rho", "rho_"))
        rows += [_value(row, name, name) for name in ("aurc", "aurc_random", "aurc_oracle", "gain")]
    return pd.DataFrame(rows).astype({"n": "Int64"})


def _value(row: Mapping[str, Any], measure: str, name: str, ends: str | None = None) -> dict[str, Any]:
    """One value of a result, with its interval where ``ends`` is the prefix of the columns low and high."""
    low, high = (np.nan if ends is None else row[f"{ends}{end}"] for end in ("low", "high"))
    keys = {key: row[key] for key in ("tracer", "unit", "predictor")}
    return keys | {"measure": measure, "value": row[name], "low": low, "high": high, "n": row.get("n", np.nan)}


def _blocks(result: Uncertainty) -> tuple[tables.Block, ...]:
    """Coverage of voxels and of regions, likelihood, ranking, and the coverage of each region."""
    covered = result.coverage.assign(level=[f"{100 * level:g} %" for level in result.coverage["nominal"]], one="")
    covered["text"] = tables.interval_texts(covered, ["coverage", "low", "high"], 1, 100)
    titles = {"voxel": "voxels of the brain (%)", "regions": "regional SUVR (%)"}
    blocks, head = [], {"head": "Predictor", "names": TITLES}
    for unit, title in titles.items():
        rows, title = covered[covered["unit"] == unit], f"Coverage of nominal intervals, {title}"
        blocks.append(tables.pivot(rows, "predictor", ["tracer", "level"], {"{}": "text"}, title=title, **head))
    shown = result.likelihood.assign(one="", nll=[tables.number(value, 3) for value in result.likelihood["nll"]])
    shown["place"] = shown["tracer"].map(tables.TRACER_NAMES) + ", " + shown["unit"]
    shown["gain"] = np.where(shown["predictor"] == "map", "–", tables.interval_texts(shown, ends_of("gain"), 3))
    cells = {"NLL": "nll", "gain over map": "gain"}
    blocks.append(tables.pivot(shown, "predictor", ["place", "one"], cells, title="Likelihood", **head))
    ranked = result.ranking.assign(one="")
    ranked["ρ"] = tables.interval_texts(ranked, ends_of("rho"))
    cells = {"ρ": "ρ", "AURC": "aurc", "random": "aurc_random", "oracle": "aurc_oracle", "gain": "gain"}
    for name in list(cells)[1:]:
        ranked[cells[name]] = [tables.number(value, 2 if name == "gain" else 4) for value in ranked[cells[name]]]
    title = "Ranking people by their error"
    blocks.append(tables.pivot(ranked, "predictor", ["tracer", "one"], cells, title=title, head="Score", names=TITLES))
    both = covered[(covered["predictor"] == "both") & (covered["nominal"] == NOMINAL)]
    both = both[~both["unit"].isin(titles)].assign(row=both["unit"].str.replace("_", " "))
    both["text"] = tables.interval_texts(both, ["coverage", "low", "high"], 0, 100)
    both["width"] = [tables.number(value, 3) for value in both["width"]]
    title = f"Nominal {100 * NOMINAL:g} % interval by region, both (width in SUVR)"
    cells = {"coverage (%)": "text", "width": "width"}
    return (*blocks, tables.pivot(both, "row", ["tracer", "one"], cells, title=title, head="Region"))


# ── data of the figure ────────────────────────────────────────────────────────────────────────────


def uncertainty_points(config: Config, result: Uncertainty) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores, errors and risk–coverage curves; groups only where single people may not be shown.

    Returns
    -------
    points : DataFrame
        tracer, score (of ``both``), error (mean absolute, SUVR). One row per person; where single people may not be
        shown, one per group of `MIN_GROUP_SIZE` or more people of similar score.
    curves : DataFrame
        tracer, curve (``oracle``, ``raw`` or ``both``), kept (% of people), error (mean of those kept). Where single
        people may not be shown, steps are at least `MIN_GROUP_SIZE` people apart. A score equal for all has no curve.
    """
    points, curves = [], []
    for tracer, people in result.people.groupby("tracer", sort=False):
        ranked, error = people.sort_values("both")[["both", "error"]], people["error"].to_numpy()
        steps = np.arange(len(people))
        if not config.individual:
            groups = min(5, len(people) // MIN_GROUP_SIZE)
            ranked = ranked.groupby(steps * groups // len(people)).mean() if groups else ranked[:0]
            large = steps[MIN_GROUP_SIZE - 1 :]  # two means that differ by one person reveal that person
            steps = np.append(large[:-MIN_GROUP_SIZE:MIN_GROUP_SIZE], large[-1:])
        points.append(ranked.rename(columns={"both": "score"}).assign(tracer=tracer))
        scores = {"oracle": error} | {name: people[name].to_numpy() for name in ("raw", "both")}
        for name, score in scores.items():
            if name == "oracle" or np.ptp(score) > 1e-9 * score.max():
                curve = {"kept": 100 * (steps + 1) / len(people), "error": risk_coverage(score, error)[steps]}
                curves.append(pd.DataFrame(curve).assign(tracer=tracer, curve=name))
    return pd.concat(points, ignore_index=True), pd.concat(curves, ignore_index=True)
