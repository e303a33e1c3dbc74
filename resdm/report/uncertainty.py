"""Calibration, coverage and ranking of the spread over samples, as table and figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from resdm.config import TRACERS, Config
from resdm.evaluation.uncertainty import FOLDS, LEVELS, MAP_FWHM_MM, PREDICTORS, Uncertainty, risk_coverage
from resdm.report.figures import GREY, TRACER_TITLES, WIDTH, Page, styled
from resdm.report.tables import TRACER_NAMES, Block, Table, number, span

TITLES = {"raw": "samples, uncalibrated", "sampling": "samples, scaled", "map": "error map alone", "both": "both"}
"""Predictors as table and figure call them."""

_COLOURS = {"raw": "#999999", "sampling": "#0072B2", "map": "#E69F00", "both": "#D55E00"}

NOMINAL = 0.9
"""The level that a region's row shows."""


def uncertainty_table(config: Config, found: Uncertainty) -> Table:
    """What the spread over samples says of the error.

    Parameters
    ----------
    config : Config
    found : Uncertainty
        From `resdm.evaluation.uncertainty.judge`.

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
            f"{config.uncertainty.samples} samples of {config.uncertainty.method} a session; mean m, standard "
            "deviation s. Test people, people as unit, brackets: 95 % bootstrap over people; "
            f"n = {span(rank['n'])}. SUVR, inside the brain.",
            "Calibrated on validation people alone: σ² = a s² + b e², a, b ≥ 0 by least squares on squared errors, e "
            "the root mean square error of validation people at the voxel (smoothed by "
            f"{MAP_FWHM_MM:g} mm FWHM) or region. The interval of level p is m ± q(p) σ, q(p) the p-quantile of "
            "|real − m| / σ over validation voxels or regions, error maps made without the person's fold of "
            f"{FOLDS} (normalised split-conformal prediction).",
            *(f"{TITLES[name]}: {text}." for name, text in PREDICTORS.items()),
            "Likelihood: mean Gaussian negative log-likelihood a voxel or region, lower is better; gain: that of the "
            "error map alone minus this one, above zero where it says more of the error than a map that knows nothing "
            "of the person.",
            "Ranking: Spearman's ρ of the person's score (root mean square σ) with their mean absolute error. Area "
            "under the risk–coverage curve (AURC): mean error of the people kept, averaged over how many are kept; "
            "random is a score that knows nothing, oracle the error itself; gain: the share of the way between them.",
        ),
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
                row.append((number(100 * one["coverage"], 1), _bracket(100 * one["low"], 100 * one["high"], 1)))
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
                known = predictor != "map"
                ends = _bracket(one["gain_low"], one["gain_high"], 2)
                row.append((number(one["gain"], 2), ends) if known else "–")
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
            row.append((number(one["rho"], 2), _bracket(one["rho_low"], one["rho_high"], 2)))
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
            row.append((number(100 * one["coverage"], 0), _bracket(100 * one["low"], 100 * one["high"], 0)))
            row.append(number(one["width"], 3))
        rows.append(tuple(row))
    return Block(f"Nominal {100 * NOMINAL:g} % interval by region, both (width in SUVR)", tuple(columns), tuple(rows))


def _bracket(low: float, high: float, decimals: int) -> str:
    return f"[{number(low, decimals)}, {number(high, decimals)}]"


# ── the figure ────────────────────────────────────────────────────────────────────────────────────


@styled
def uncertainty_figure(found: Uncertainty, *, people: bool = True, notice: str = "", method: str = "ResDM") -> Figure:
    """Error against predicted deviation, coverage, score against error, and the risk–coverage curve, by tracer.

    Parameters
    ----------
    found : Uncertainty
    people : bool
        Draw single people in (c); where they may not be shown, means of fifths.
    notice, method : str
    """
    left, gap, size, top, pitch = 0.50, 0.46, 1.28, 0.92, 1.92
    tracers = [tracer for tracer in TRACERS if (found.ranking["tracer"] == tracer).any()]
    page = Page.of(WIDTH, top + pitch * (len(tracers) - 1) + size + 0.42)
    page.title(
        f"What the spread over samples of {method} says of its error", notice,
        "Test people, brain, SUVR; calibrated on validation people. (a) bins of equally many voxels; (b) voxels (line) "
        "and regions (dots); (c) a dot a person; (d) people kept, those with the lowest score first.",
    )  # fmt: skip
    for row, tracer in enumerate(tracers):
        panels = [page.axes(left + i * (size + gap), top + row * pitch, size, size) for i in range(4)]
        _reliability_panel(panels[0], found.reliability[found.reliability["tracer"] == tracer])
        _coverage_panel(panels[1], found.coverage[found.coverage["tracer"] == tracer])
        ranking = found.ranking[found.ranking["tracer"] == tracer].set_index("predictor")
        own = found.people[found.people["tracer"] == tracer]
        _ranking_panel(panels[2], own, ranking, people)
        _risk_panel(panels[3], own)
        page.text(0.08, top + row * pitch - 0.30, TRACER_TITLES[tracer], fontsize=8, fontweight="bold")
        for letter, axes in zip("abcd", panels, strict=True):
            axes.set_title(f"({letter})", fontsize=7, loc="left", pad=3)
        if row == 0:
            handles, labels = panels[0].get_legend_handles_labels()
            page.figure.legend(
                handles, labels, ncols=4, loc="upper left", fontsize=6.5, handlelength=1.6,
                bbox_to_anchor=(0.16, 1 - (top - 0.36) / page.height),
            )  # fmt: skip
    return page.figure


def _reliability_panel(axes: Axes, part: pd.DataFrame) -> None:
    for predictor, name in TITLES.items():
        one = part[part["predictor"] == predictor]
        axes.plot(one["predicted"], one["error"], "-o", ms=2.2, lw=0.9, color=_COLOURS[predictor], label=name)
    ends = [min(part["predicted"].min(), part["error"].min()), max(part["predicted"].max(), part["error"].max())]
    axes.plot(ends, ends, ":", color=GREY, lw=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [tick for tick in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if 0.9 * ends[0] <= tick <= 1.1 * ends[1]]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(FixedLocator([]))
    axes.set_xlabel("predicted deviation")
    axes.set_ylabel("error (RMS)", labelpad=1)


def _coverage_panel(axes: Axes, part: pd.DataFrame) -> None:
    axes.plot([0, 100], [0, 100], ":", color=GREY, lw=0.8)
    for predictor in TITLES:
        own = part[part["predictor"] == predictor]
        for unit, style in (("voxel", "-"), ("regions", "o")):
            one = own[own["unit"] == unit]
            axes.plot(100 * one["nominal"], 100 * one["coverage"], style, ms=2.5, lw=0.9, color=_COLOURS[predictor])
    axes.set_xlim(40, 100)
    axes.set_ylim(0, 102)
    axes.set_xlabel("nominal (%)")
    axes.set_ylabel("coverage (%)", labelpad=1)


def _ranking_panel(axes: Axes, own: pd.DataFrame, ranking: pd.DataFrame, people: bool) -> None:
    shown = own.sort_values("both")
    if not people:
        shown = (
            shown.assign(fifth=np.arange(len(own)) * 5 // max(len(own), 1)).groupby("fifth")[["both", "error"]].mean()
        )
    axes.plot(shown["both"], shown["error"], "o", ms=2.2, mew=0, color=_COLOURS["both"], alpha=0.8)
    axes.set_xlabel("score (both)")
    axes.set_ylabel("mean absolute error", labelpad=1)
    axes.margins(0.08)
    rho = number(ranking.loc["both", "rho"], 2)
    rho = "the same score for all" if rho == "–" else f"ρ = {rho}"
    axes.text(0.04, 0.97, rho, transform=axes.transAxes, va="top", fontsize=6.5)


def _risk_panel(axes: Axes, own: pd.DataFrame) -> None:
    error = own["error"].to_numpy()
    kept = 100 * np.arange(1, len(error) + 1) / len(error)
    axes.axhline(error.mean(), ls=":", lw=0.8, color=GREY)
    axes.plot(kept, risk_coverage(error, error), ls="--", lw=0.8, color=GREY)
    for predictor in ("raw", "both"):
        if np.ptp(own[predictor]) <= 1e-9 * own[predictor].max():  # in any order
            continue
        axes.plot(kept, risk_coverage(own[predictor].to_numpy(), error), lw=0.9, color=_COLOURS[predictor])
    axes.text(98, error.mean(), "random", fontsize=5.5, color=GREY, ha="right", va="bottom")
    axes.text(40, np.interp(40, kept, risk_coverage(error, error)), "oracle", fontsize=5.5, color=GREY, va="top")
    axes.set_xlim(0, 100)
    axes.set_xlabel("people kept (%)")
    axes.set_ylabel("mean error of the kept", labelpad=1)
