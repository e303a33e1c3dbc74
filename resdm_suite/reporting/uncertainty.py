"""Table, findings and figure data of the uncertainty analysis: calibration, coverage and ranking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from resdm.settings import TRACERS
from resdm_suite.evaluation.uncertainty import FOLDS, LEVELS, MAP_FWHM_MM, PREDICTORS, Uncertainty, risk_coverage
from resdm_suite.profiles import MIN_GROUP_SIZE, Config
from resdm_suite.reporting.tables import TRACER_NAMES, Block, Table, notes, number, span, with_interval

TITLES = {"raw": "samples, uncalibrated", "sampling": "samples, scaled", "map": "error map alone", "both": "both"}
"""Names of the predictors in table and figure."""

NOMINAL = 0.9
"""Level of the intervals by region."""

_GAINED = {1: "they tell more of the error", -1: "they tell less of the error", 0: "nothing measurable of the error"}

ACCEPTED = (0.85, 0.95)
"""Accepted coverage of the interval of level `NOMINAL`."""


def uncertainty_table(config: Config, result: Uncertainty) -> Table:
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
    frame = _tidy(result)
    tracers = [tracer for tracer in TRACERS if (frame["tracer"] == tracer).any()]
    return Table(
        name="uncertainty",
        title="How far the spread over samples can be trusted",
        notice=config.notice,
        frame=frame,
        blocks=(
            _coverage_block(result, tracers, "voxel", "Coverage of nominal intervals, voxels of the brain (%)"),
            _coverage_block(result, tracers, "regions", "Coverage of nominal intervals, regional SUVR (%)"),
            _likelihood_block(result, tracers),
            _ranking_block(result, tracers),
            _region_block(result, tracers),
        ),
        notes=notes(
            "uncertainty",
            verdict=verdict(result),
            findings=findings(result),
            samples=config.uncertainty.samples,
            method=config.uncertainty.method,
            n=span(result.ranking["n"]),
            fwhm_mm=MAP_FWHM_MM,
            folds=FOLDS,
            titles=TITLES,
            predictors=PREDICTORS,
        ),
    )


# ── findings ──────────────────────────────────────────────────────────────────────────────────────


def verdict(result: Uncertainty) -> str:
    """One sentence: whether the spread over samples adds to the error map, in likelihood per voxel, for any tracer.

    It does if the interval over people of the gain (predictor ``both`` over ``map``) lies above zero.
    """
    gains = result.likelihood.query("unit == 'voxel' and predictor == 'both'").to_dict("records")
    by_sign = {True: [], False: []}
    for row in gains:
        gain = with_interval(row["gain"], row["gain_low"], row["gain_high"], 3)
        by_sign[_sign(row) > 0].append(f"{TRACER_NAMES[row['tracer']]} (gain {gain} per voxel)")
    yes, no = (" and ".join(by_sign[added]) for added in (True, False))
    if not yes:
        return f"Verdict: the spread over samples adds nothing to the error map, for {no}: it is no error bar."
    return f"Verdict: the spread over samples adds to the error map for {yes}{f', not for {no}' if no else ''}."


def _sign(row: Mapping[str, Any]) -> int:
    """1 if the interval of the gain lies above zero, −1 if below, else 0."""
    return int(row["gain_low"] > 0) - int(row["gain_high"] < 0)


def findings(result: Uncertainty) -> tuple[str, ...]:
    """Three sentences per tracer: on coverage, on the gain by samples, and on ranking.

    An interval over people that contains zero gives no finding.
    """
    lines = []
    for tracer in [tracer for tracer in TRACERS if (result.ranking["tracer"] == tracer).any()]:
        name, (low, high) = TRACER_NAMES[tracer], (f"{100 * end:g}" for end in ACCEPTED)
        covered = _covered(result, tracer)
        regions = covered.drop(["voxel", "regions"], level="unit").xs("both", level="predictor")
        left = regions[(regions["coverage"] < ACCEPTED[0]) | (regions["coverage"] > ACCEPTED[1])]
        outside = ", ".join(f"{region.replace('_', ' ')} {_percent(row)}" for region, row in left.iterrows())
        pooled = [covered.loc[(unit, "both")] for unit in ("voxel", "regions")]
        inside = (
            "both inside" if all(ACCEPTED[0] <= row["coverage"] <= ACCEPTED[1] for row in pooled) else "not both inside"
        )
        lines.append(
            f"{name}, coverage: the calibrated {100 * NOMINAL:g} % interval (both) holds {_percent(pooled[0])} % of "
            f"voxels and {_percent(pooled[1])} % of regional SUVRs, {inside} {low} to {high} %; uncalibrated it holds "
            f"{_percent(covered.loc[('voxel', 'raw')])} % of voxels. Of {len(regions)} regions "
            + (f"{len(left)} leave {low} to {high} %: {outside}." if len(left) else f"none leaves {low} to {high} %.")
        )
        gains = result.likelihood[(result.likelihood["tracer"] == tracer) & (result.likelihood["predictor"] == "both")]
        texts = "; ".join(
            f"{_GAINED[_sign(row)]} of a {'voxel' if row['unit'] == 'voxel' else 'region'} "
            f"({with_interval(row['gain'], row['gain_low'], row['gain_high'], 3)})"
            for row in gains.to_dict("records")
        )
        lines.append(f"{name}, what samples add to the error map, in log-likelihood: {texts}.")
        ranking = result.ranking[result.ranking["tracer"] == tracer].set_index("predictor")
        rhos = "; ".join(f"{TITLES[score]} {_rho(ranking.loc[score])}" for score in ("raw", "both"))
        lines.append(f"{name}, ranking: {_ranked(ranking)} (ρ: {rhos}).")
    return tuple(lines)


def _covered(result: Uncertainty, tracer: str) -> pd.DataFrame:
    chosen = (result.coverage["tracer"] == tracer) & (result.coverage["nominal"] == NOMINAL)
    return result.coverage[chosen].set_index(["unit", "predictor"])


def _percent(row: pd.Series) -> str:
    return with_interval(100 * row["coverage"], 100 * row["low"], 100 * row["high"], 0)


def _ranked(ranking: pd.DataFrame) -> str:
    """Names the scores that rank people by error."""
    good = [TITLES[name] for name in ("raw", "both") if ranking.loc[name, "rho_low"] > 0]
    return (
        f"{' and '.join(good)} rank{'s' * (len(good) == 1)} people by error"
        if good
        else "no score ranks people by error"
    )


def _rho(row: pd.Series) -> str:
    if np.isnan(row["rho"]):
        return "the same for all"
    return with_interval(row["rho"], row["rho_low"], row["rho_high"])


def short_findings(result: Uncertainty, tracer: str) -> str:
    """`findings` of one tracer in one line."""
    covered = _covered(result, tracer)
    gains = result.likelihood[(result.likelihood["tracer"] == tracer) & (result.likelihood["unit"] == "voxel")]
    gain = gains.set_index("predictor").loc["both"]
    added = {1: "add to", -1: "take from", 0: "add nothing to"}[_sign(gain)]
    ranking = result.ranking[result.ranking["tracer"] == tracer].set_index("predictor")
    return (
        f"{100 * NOMINAL:g} % interval: {_percent(covered.loc[('voxel', 'both')])} % of voxels, uncalibrated "
        f"{number(100 * covered.loc[('voxel', 'raw'), 'coverage'], 0)} %; samples {added} the map; {_ranked(ranking)}."
    )


def _tidy(result: Uncertainty) -> pd.DataFrame:
    """All results in long form, one row per value."""
    rows = []
    for row in result.calibration.to_dict("records"):
        keys = {key: row[key] for key in ("tracer", "unit", "predictor")}
        rows += [keys | {"measure": key, "value": row[key]} for key in row if key not in keys]
    for row in result.coverage.to_dict("records"):
        keys = {key: row[key] for key in ("tracer", "unit", "predictor", "n")}
        level = f"{100 * row['nominal']:g}"
        rows.append(keys | {"measure": f"coverage_{level}", "value": row["coverage"]} | _ends(row))
        rows.append(keys | {"measure": f"width_{level}", "value": row["width"]})
    for row in result.likelihood.to_dict("records"):
        keys = {key: row[key] for key in ("tracer", "unit", "predictor")}
        rows.append(keys | {"measure": "nll", "value": row["nll"]})
        rows.append(keys | {"measure": "nll_gain", "value": row["gain"]} | _ends(row, "gain_"))
    for row in result.ranking.to_dict("records"):
        keys = {"tracer": row["tracer"], "unit": "person", "predictor": row["predictor"], "n": row["n"]}
        rows.append(keys | {"measure": "rho", "value": row["rho"]} | _ends(row, "rho_"))
        measures = ("aurc", "aurc_random", "aurc_oracle", "gain")
        rows += [keys | {"measure": key, "value": row[key]} for key in measures]
    columns = ["tracer", "unit", "predictor", "measure", "value", "low", "high", "n"]
    return pd.DataFrame(rows)[columns].astype({"n": "Int64"})


def _ends(row: dict, prefix: str = "") -> dict[str, float]:
    return {"low": row[f"{prefix}low"], "high": row[f"{prefix}high"]}


def _coverage_block(result: Uncertainty, tracers: list[str], unit: str, title: str) -> Block:
    part = result.coverage[result.coverage["unit"] == unit].set_index(["tracer", "predictor", "nominal"])
    columns = [("", "Predictor"), *((TRACER_NAMES[t], f"{100 * p:g} %") for t in tracers for p in LEVELS)]
    rows = []
    for predictor, name in TITLES.items():
        row: list = [name]
        for tracer in tracers:
            for level in LEVELS:
                one = part.loc[(tracer, predictor, level)]
                row.append(with_interval(100 * one["coverage"], 100 * one["low"], 100 * one["high"], 1))
        rows.append(tuple(row))
    return Block(title, tuple(columns), tuple(rows))


def _likelihood_block(result: Uncertainty, tracers: list[str]) -> Block:
    part = result.likelihood.set_index(["tracer", "unit", "predictor"])
    columns = [("", "Predictor")]
    columns += [(f"{TRACER_NAMES[t]}, {u}", head) for t in tracers for u in ("voxel", "regions") for head in _HEADS]
    rows = []
    for predictor, name in TITLES.items():
        row: list = [name]
        for tracer in tracers:
            for unit in ("voxel", "regions"):
                one = part.loc[(tracer, unit, predictor)]
                row.append(number(one["nll"], 2))
                gain = with_interval(one["gain"], one["gain_low"], one["gain_high"])
                row.append(gain if predictor != "map" else "–")
        rows.append(tuple(row))
    return Block("Likelihood", tuple(columns), tuple(rows))


_HEADS = ("NLL", "gain over map")


def _ranking_block(result: Uncertainty, tracers: list[str]) -> Block:
    part = result.ranking.set_index(["tracer", "predictor"])
    heads = ("ρ", "AURC", "random", "oracle", "gain")
    columns = [("", "Score"), *((TRACER_NAMES[t], head) for t in tracers for head in heads)]
    rows = []
    for predictor, name in TITLES.items():
        row: list = [name]
        for tracer in tracers:
            one = part.loc[(tracer, predictor)]
            row.append(with_interval(one["rho"], one["rho_low"], one["rho_high"]))
            row += [number(one[key], 4) for key in ("aurc", "aurc_random", "aurc_oracle")]
            row.append(number(one["gain"], 2))
        rows.append(tuple(row))
    return Block("Ranking people by their error", tuple(columns), tuple(rows))


def _region_block(result: Uncertainty, tracers: list[str]) -> Block:
    part = result.coverage[(result.coverage["predictor"] == "both") & (result.coverage["nominal"] == NOMINAL)]
    values = part.set_index(["tracer", "unit"])
    names = [unit for unit in dict.fromkeys(part["unit"]) if unit not in ("voxel", "regions")]
    columns = [("", "Region"), *((TRACER_NAMES[t], head) for t in tracers for head in ("coverage (%)", "width"))]
    rows = []
    for name in names:
        row: list = [name.replace("_", " ")]
        for tracer in tracers:
            if (tracer, name) not in values.index:  # the tracer's reference region
                row += ["–", "–"]
                continue
            one = values.loc[(tracer, name)]
            row.append(with_interval(100 * one["coverage"], 100 * one["low"], 100 * one["high"], 0))
            row.append(number(one["width"], 3))
        rows.append(tuple(row))
    return Block(f"Nominal {100 * NOMINAL:g} % interval by region, both (width in SUVR)", tuple(columns), tuple(rows))


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
            # two means that differ by one person reveal that person
            steps = np.append(
                steps[MIN_GROUP_SIZE - 1 : len(people) - MIN_GROUP_SIZE : MIN_GROUP_SIZE],
                steps[MIN_GROUP_SIZE - 1 :][-1:],
            )
        points.append(ranked.rename(columns={"both": "score"}).assign(tracer=tracer))
        scores = {"oracle": error} | {name: people[name].to_numpy() for name in ("raw", "both")}
        for name, score in scores.items():
            if name == "oracle" or np.ptp(score) > 1e-9 * score.max():
                curve = {"kept": 100 * (steps + 1) / len(people), "error": risk_coverage(score, error)[steps]}
                curves.append(pd.DataFrame(curve).assign(tracer=tracer, curve=name))
    return pd.concat(points, ignore_index=True), pd.concat(curves, ignore_index=True)
