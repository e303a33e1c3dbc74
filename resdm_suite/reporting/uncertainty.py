"""Calibration, coverage and ranking of the spread over samples, as table, and the data of its figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from resdm.settings import TRACERS
from resdm_suite.evaluation.uncertainty import FOLDS, LEVELS, MAP_FWHM_MM, PREDICTORS, Uncertainty, risk_coverage
from resdm_suite.profiles import MIN_GROUP_SIZE, Config
from resdm_suite.reporting.tables import TRACER_NAMES, Block, Table, number, span, with_interval

TITLES = {"raw": "samples, uncalibrated", "sampling": "samples, scaled", "map": "error map alone", "both": "both"}
"""Predictors as table and figure call them."""

NOMINAL = 0.9
"""The level that a region's row shows."""

_GAINED = {
    1: "they tell more of the error", -1: "they tell less of the error", 0: "nothing measurable of the error",
}  # fmt: skip

HELD = (0.85, 0.95)
"""Coverage that the interval of level `NOMINAL` is held to."""


def uncertainty_table(config: Config, found: Uncertainty) -> Table:
    """What the spread over samples says of the error.

    Parameters
    ----------
    config : Config
    found : Uncertainty
        From `resdm_suite.evaluation.uncertainty.evaluate_samples`.

    Returns
    -------
    Table
        Frame: tracer, unit (``voxel``, ``regions``, a region, ``person``), predictor, measure, value, low, high (95 %),
        n (people).
    """
    frame = _tidy(found)
    tracers = [tracer for tracer in TRACERS if (frame["tracer"] == tracer).any()]
    rank = found.ranking
    return Table(
        name="uncertainty",
        title="How far the spread over samples can be trusted",
        notice=config.notice,
        frame=frame,
        blocks=(
            _coverage_block(found, tracers, "voxel", "Coverage of nominal intervals, voxels of the brain (%)"),
            _coverage_block(found, tracers, "regions", "Coverage of nominal intervals, regional SUVR (%)"),
            _likelihood_block(found, tracers),
            _ranking_block(found, tracers),
            _region_block(found, tracers),
        ),
        notes=(
            verdict(found),
            *findings(found),
            f"{config.uncertainty.samples} samples of {config.uncertainty.method} a session; mean m, standard "
            "deviation s. Test people, people as unit, brackets: 95 % bootstrap over people; "
            f"n = {span(rank['n'])}. SUVR, inside the brain.",
            "Calibrated on validation people alone: σ² = a s² + b e², a, b ≥ 0 by least squares on squared errors, e "
            "the root mean square error of validation people at the voxel (smoothed by "
            f"{MAP_FWHM_MM:g} mm FWHM) or region. The interval of level p is m ± q(p) σ, q(p) the empirical "
            "p-quantile of |real − m| / σ over validation voxels or regions, error maps made without the person's fold "
            f"of {FOLDS}. Nothing guarantees the level; the coverage of test people is what is measured.",
            *(f"{TITLES[name]}: {text}." for name, text in PREDICTORS.items()),
            "Likelihood: mean Gaussian negative log-likelihood a voxel or region, lower is better; gain: that of the "
            "error map alone minus this one, above zero where it says more of the error than a map that knows nothing "
            "of the person.",
            "Ranking: Spearman's ρ of the person's score (root mean square σ) with their mean absolute error. Area "
            "under the risk–coverage curve (AURC): mean error of the people kept, averaged over how many are kept; "
            "random is a score that knows nothing, oracle the error itself; gain: the share of the way between them.",
        ),
    )


# ── what the numbers say ──────────────────────────────────────────────────────────────────────────


def verdict(found: Uncertainty) -> str:
    """Whether the spread over samples adds to the error map in likelihood, voxel by voxel, for any tracer: a sentence.

    It does for a tracer if the interval over people of the gain (predictor ``both`` over ``map``) lies above zero.
    """
    gains = found.likelihood.query("unit == 'voxel' and predictor == 'both'").to_dict("records")
    by_sign = {True: [], False: []}
    for row in gains:
        gain = with_interval(row["gain"], row["gain_low"], row["gain_high"], 3)
        by_sign[_sign(row) > 0].append(f"{TRACER_NAMES[row['tracer']]} (gain {gain} per voxel)")
    yes, no = (" and ".join(by_sign[added]) for added in (True, False))
    if not yes:
        return f"Verdict: the spread over samples adds nothing to the error map, for {no}: it is no error bar."
    return f"Verdict: the spread over samples adds to the error map for {yes}{f', not for {no}' if no else ''}."


def _sign(row: Mapping[str, Any]) -> int:
    """1 where samples tell more of the error than the map alone, −1 where less, 0 where the interval holds zero."""
    return int(row["gain_low"] > 0) - int(row["gain_high"] < 0)


def findings(found: Uncertainty) -> tuple[str, ...]:
    """What the numbers say of coverage, of what samples add, and of ranking, in sentences: three a tracer.

    An interval over people that holds zero is no finding, in either direction.
    """
    lines = []
    for tracer in [tracer for tracer in TRACERS if (found.ranking["tracer"] == tracer).any()]:
        name, (low, high) = TRACER_NAMES[tracer], (f"{100 * end:g}" for end in HELD)
        covered = _covered(found, tracer)
        regions = covered.drop(["voxel", "regions"], level="unit").xs("both", level="predictor")
        left = regions[(regions["coverage"] < HELD[0]) | (regions["coverage"] > HELD[1])]
        told = ", ".join(f"{region.replace('_', ' ')} {_percent(row)}" for region, row in left.iterrows())
        pooled = [covered.loc[(unit, "both")] for unit in ("voxel", "regions")]
        held = "both inside" if all(HELD[0] <= row["coverage"] <= HELD[1] for row in pooled) else "not both inside"
        lines.append(
            f"{name}, coverage: the calibrated {100 * NOMINAL:g} % interval (both) holds {_percent(pooled[0])} % of "
            f"voxels and {_percent(pooled[1])} % of regional SUVRs, {held} {low} to {high} %; uncalibrated it holds "
            f"{_percent(covered.loc[('voxel', 'raw')])} % of voxels. Of {len(regions)} regions "
            + (f"{len(left)} leave {low} to {high} %: {told}." if len(left) else f"none leaves {low} to {high} %.")
        )
        gains = found.likelihood[(found.likelihood["tracer"] == tracer) & (found.likelihood["predictor"] == "both")]
        said = "; ".join(
            f"{_GAINED[_sign(row)]} of a {'voxel' if row['unit'] == 'voxel' else 'region'} "
            f"({with_interval(row['gain'], row['gain_low'], row['gain_high'], 3)})"
            for row in gains.to_dict("records")
        )
        lines.append(f"{name}, what samples add to the error map, in log-likelihood: {said}.")
        ranking = found.ranking[found.ranking["tracer"] == tracer].set_index("predictor")
        rhos = "; ".join(f"{TITLES[score]} {_rho(ranking.loc[score])}" for score in ("raw", "both"))
        lines.append(f"{name}, ranking: {_ranked(ranking)} (ρ: {rhos}).")
    return tuple(lines)


def _covered(found: Uncertainty, tracer: str) -> pd.DataFrame:
    chosen = (found.coverage["tracer"] == tracer) & (found.coverage["nominal"] == NOMINAL)
    return found.coverage[chosen].set_index(["unit", "predictor"])


def _percent(row: pd.Series) -> str:
    return with_interval(100 * row["coverage"], 100 * row["low"], 100 * row["high"], 0)


def _ranked(ranking: pd.DataFrame) -> str:
    """Whether any score puts people in the order of their error."""
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


def short_findings(found: Uncertainty, tracer: str) -> str:
    """`findings` of one tracer in a line."""
    covered = _covered(found, tracer)
    gains = found.likelihood[(found.likelihood["tracer"] == tracer) & (found.likelihood["unit"] == "voxel")]
    gain = gains.set_index("predictor").loc["both"]
    added = {1: "add to", -1: "take from", 0: "add nothing to"}[_sign(gain)]
    ranking = found.ranking[found.ranking["tracer"] == tracer].set_index("predictor")
    return (
        f"{100 * NOMINAL:g} % interval: {_percent(covered.loc[('voxel', 'both')])} % of voxels, uncalibrated "
        f"{number(100 * covered.loc[('voxel', 'raw'), 'coverage'], 0)} %; samples {added} the map; {_ranked(ranking)}."
    )


def _tidy(found: Uncertainty) -> pd.DataFrame:
    rows = []
    for row in found.calibration.to_dict("records"):
        who = {key: row[key] for key in ("tracer", "unit", "predictor")}
        rows += [who | {"measure": key, "value": row[key]} for key in row if key not in who]
    for row in found.coverage.to_dict("records"):
        who = {key: row[key] for key in ("tracer", "unit", "predictor", "n")}
        level = f"{100 * row['nominal']:g}"
        rows.append(who | {"measure": f"coverage_{level}", "value": row["coverage"]} | _ends(row))
        rows.append(who | {"measure": f"width_{level}", "value": row["width"]})
    for row in found.likelihood.to_dict("records"):
        who = {key: row[key] for key in ("tracer", "unit", "predictor")}
        rows.append(who | {"measure": "nll", "value": row["nll"]})
        rows.append(who | {"measure": "nll_gain", "value": row["gain"]} | _ends(row, "gain_"))
    for row in found.ranking.to_dict("records"):
        who = {"tracer": row["tracer"], "unit": "person", "predictor": row["predictor"], "n": row["n"]}
        rows.append(who | {"measure": "rho", "value": row["rho"]} | _ends(row, "rho_"))
        measures = ("aurc", "aurc_random", "aurc_oracle", "gain")
        rows += [who | {"measure": key, "value": row[key]} for key in measures]
    columns = ["tracer", "unit", "predictor", "measure", "value", "low", "high", "n"]
    return pd.DataFrame(rows)[columns].astype({"n": "Int64"})


def _ends(row: dict, prefix: str = "") -> dict[str, float]:
    return {"low": row[f"{prefix}low"], "high": row[f"{prefix}high"]}


def _coverage_block(found: Uncertainty, tracers: list[str], unit: str, title: str) -> Block:
    part = found.coverage[found.coverage["unit"] == unit].set_index(["tracer", "predictor", "nominal"])
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


def _likelihood_block(found: Uncertainty, tracers: list[str]) -> Block:
    part = found.likelihood.set_index(["tracer", "unit", "predictor"])
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


def _ranking_block(found: Uncertainty, tracers: list[str]) -> Block:
    part = found.ranking.set_index(["tracer", "predictor"])
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


def _region_block(found: Uncertainty, tracers: list[str]) -> Block:
    part = found.coverage[(found.coverage["predictor"] == "both") & (found.coverage["nominal"] == NOMINAL)]
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


# ── what the figure may show ──────────────────────────────────────────────────────────────────────


def uncertainty_points(config: Config, result: Uncertainty) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores against errors, and risk–coverage curves, under the privacy rule.

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
