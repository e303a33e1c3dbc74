"""SUVR fidelity: how regional SUVR and Centiloid of synthetic PET agree with those of real PET."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from resdm.settings import TRACERS
from resdm_suite.evaluation.agreement import agreement_table
from resdm_suite.evaluation.fidelity import BUILT_IN, CALIBRATED, UNCALIBRATED
from resdm_suite.profiles import FEWEST, Config
from resdm_suite.reporting.style import GREY, TRACER_TITLES, WIDTH, Page, method_styles, styled
from resdm_suite.reporting.tables import REFERENCE_METHOD, TRACER_NAMES, Block, Table, number, span

KEYS = ("method", "tracer", "regions", "region", "unit")


def shown_quantities(values: pd.DataFrame) -> list[tuple[str, str, str]]:
    """What the figure and the printed table show: (tracer, region, unit); the CSV has every region.

    The cortical summary of each tracer, then Centiloid where the profile has a calibration, else the uncalibrated
    estimate.
    """
    there = {tuple(row) for row in values[["tracer", "region", "unit"]].drop_duplicates().to_numpy()}
    scale = CALIBRATED if ("amyloid", CALIBRATED, "CL") in there else UNCALIBRATED
    wanted = [(tracer, "summary", "SUVR") for tracer in TRACERS] + [("amyloid", scale, "CL")]
    return [one for one in wanted if one in there]


def quantity_title(tracer: str, region: str) -> str:
    """``Aβ-PET, cortical summary``."""
    name = "cortical summary" if region == "summary" else region.replace("_", " ")
    return f"{TRACER_TITLES[tracer]}, {name}"


def fidelity_table(values: pd.DataFrame, config: Config) -> Table:
    """Agreement of synthetic with real quantities, by method.

    Parameters
    ----------
    values : DataFrame
        From `resdm_suite.evaluation.fidelity.quantities`.
    config : Config

    Returns
    -------
    Table
        Frame: one row a method, tracer, set of regions, region and unit with all of
        `resdm_suite.evaluation.agreement.agreement_table`. Printed: the quantities of `shown_quantities`.
    """
    frame = agreement_table(values, KEYS)
    blocks = []
    for tracer, region, unit in shown_quantities(values):
        rows = frame[(frame["tracer"] == tracer) & (frame["region"] == region) & (frame["unit"] == unit)]
        digits = 1 if unit == "CL" else 3
        columns = (
            ("", "Method"), ("", "n"), ("", f"bias ({unit})"), ("", f"limits of agreement ({unit})"), ("", "ICC(2,1)"),
            ("", "ICC(3,1)"), ("", "CCC"), ("", "r"), ("", "slope"),
        )  # fmt: skip
        body = tuple(
            (
                row["method"], f"{row['n']:.0f}", _cell(row, "bias", digits),
                f"{number(row['lower'], digits)} to {number(row['upper'], digits)}",
                *(_cell(row, name, 2) for name in ("icc_agreement", "icc_consistency", "ccc", "r", "slope")),
            )
            for row in rows.to_dict("records")
        )  # fmt: skip
        agreed = rows["icc_agreement"].where(rows["method"] != "ceiling")  # it is no method
        best = {(int(np.nanargmax(agreed)), 4)} if agreed.notna().any() else set()
        name = f"{TRACER_NAMES[tracer]}, {quantity_title(tracer, region).split(', ', 1)[1]}"
        blocks.append(Block(name, columns, body, frozenset(best)))
    return Table(
        "suvr_fidelity", "SUVR fidelity of the synthetic PET", config.notice, frame, tuple(blocks),
        (*_notes(frame), *(["Of rows with several trainings, the first."] if "@" in "".join(config.methods) else [])),
    )  # fmt: skip


def _cell(row: dict, name: str, digits: int) -> str:
    value, low, high = (number(_zero(row[key], digits), digits) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value} [{low}, {high}]" if low != "–" else value


def _zero(value: float, digits: int) -> float:
    """Without the sign of a zero that rounding makes."""
    return round(value, digits) + 0.0


def _notes(frame: pd.DataFrame) -> tuple[str, ...]:
    notes = [
        f"Synthetic − real over test people (n = {span(frame['n'])}; sessions of one person averaged first), 95 % "
        "intervals in brackets. Limits of agreement: bias ± 1.96 SD of the differences (Bland and Altman). ICC(2,1): "
        "absolute agreement; ICC(3,1): consistency, which a bias does not lower (Shrout and Fleiss; intervals by "
        "McGraw and Wong). CCC: Lin's concordance. Slope: of synthetic on real; below 1 people are drawn together. "
        "Bold: best ICC(2,1). – cannot be estimated: the template is the same for everyone.",
        "Built-in regions: ellipsoids in MNI mm cut with grey matter, no substitute for an atlas (resdm/anatomy.py). "
        "Summary of Aβ: frontal, cingulate, precuneus, parietal and lateral temporal over whole cerebellum; of tau: "
        "medial, inferior and lateral temporal over inferior cerebellar grey.",
    ]
    regions = set(frame["region"])
    if UNCALIBRATED in regions:
        notes.append(
            "Uncalibrated Centiloid estimate: Aβ SUVR put through the tracer's published equation for the standard "
            "volumes. The equation holds for the standard pipeline, with its non-linear registration; registration "
            "here is affine and was not calibrated, so these numbers are no Centiloids. Amyloid tracers are pooled, "
            "each by its own equation."
        )
    if CALIBRATED in regions:
        notes.append(
            "Centiloid: cortex over whole cerebellum by the profile's own calibration of this pipeline "
            "(fidelity.centiloid.equations), whose registration is affine."
        )
    others = [name for name in dict.fromkeys(frame["regions"]) if name not in (BUILT_IN, "Centiloid VOIs")]
    if others:
        notes.append(f"Atlas {', '.join(others)}: every region is in the CSV; SUVR keep the built-in reference region.")
    return tuple(notes)


@styled
def fidelity_figure(
    values: pd.DataFrame, table: pd.DataFrame, *, method: str = REFERENCE_METHOD, people: bool = True, notice: str = ""
) -> Figure:
    """Scatter and Bland–Altman of one method; ICC and limits of agreement of all; a row a quantity.

    Parameters
    ----------
    values : DataFrame
        From `resdm_suite.evaluation.fidelity.quantities`.
    table : DataFrame
        The frame of `fidelity_table`.
    method : str
        Whose people are drawn.
    people : bool
        One point a person. Else, for cohorts whose single people may not be shown, hexagons that hold at least
        `resdm_suite.profiles.FEWEST` people.
    notice : str
    """
    quantities, methods = shown_quantities(values), list(dict.fromkeys(values["method"]))
    if method not in methods:
        raise ValueError(f"SUVR fidelity: no values of method {method!r}; there are: {', '.join(methods)}")
    head, height, pitch, left = 0.92, 1.30, 1.98, 0.46
    page = Page.of(WIDTH, head + len(quantities) * pitch - 0.14)
    page.title(
        "SUVR fidelity: synthetic against real PET", notice,
        f"Left: test people, {method}; dashes are identity, and bias with limits of agreement (bands: 95\u00a0% "
        "intervals). Right: every method, 95\u00a0% intervals; bars are limits of agreement.",
    )  # fmt: skip
    for i, (tracer, region, unit) in enumerate(quantities):
        top = head + i * pitch
        chosen = (values["tracer"] == tracer) & (values["region"] == region) & (values["unit"] == unit)
        pairs = values[chosen & (values["method"] == method)].groupby("person")[["real", "synthetic"]].mean()
        rows = table[(table["tracer"] == tracer) & (table["region"] == region) & (table["unit"] == unit)]
        rows = rows.set_index("method").reindex(methods)
        page.text(0.08, top - 0.26, f"{quantity_title(tracer, region)} (n = {span(rows['n'])})", fontsize=7.5,
                  fontweight="bold")  # fmt: skip
        colour = method_styles(methods)[method][0]
        _scatter(page.axes(left, top, height, height), pairs, colour, unit, people)
        _bland_altman(page.axes(left + 1.86, top, height + 0.1, height), pairs, rows.loc[method], colour, unit, people)
        _dots(page.axes(left + 3.98, top, 1.10, height), rows, methods, unit, "icc")
        _dots(page.axes(left + 5.30, top, 1.30, height), rows, methods, unit, "bias")
    return page.figure


def _cloud(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, people: bool, box: tuple[float, ...]) -> None:
    if people:
        axes.plot(x, y, "o", color=colour, markersize=2.6, alpha=0.7, markeredgewidth=0)
    else:
        shades = LinearSegmentedColormap.from_list("people", ["#FFFFFF", colour])
        cells = int(np.clip(np.sqrt(len(x)) / 1.5, 3, 12))  # few people: large cells, else none would be drawn
        axes.hexbin(x, y, gridsize=cells, mincnt=FEWEST, extent=box, cmap=shades, vmin=0, linewidths=0.2)


def _reach(values: np.ndarray, people: bool) -> tuple[float, float]:
    """Ends of an axis; where single people may not be shown, no single person's value."""
    if people:
        return float(values.min()), float(values.max())
    return float(values.mean() - 2.5 * values.std()), float(values.mean() + 2.5 * values.std())


def _scatter(axes: Axes, pairs: pd.DataFrame, colour: str, unit: str, people: bool) -> None:
    low, high = _reach(pairs.to_numpy(), people)
    rim = 0.06 * max(high - low, 1e-3)
    low, high = low - rim, high + rim
    axes.plot([low, high], [low, high], color=GREY, linewidth=0.7, dashes=(3, 2), zorder=0)
    _cloud(axes, pairs["real"].to_numpy(), pairs["synthetic"].to_numpy(), colour, people, (low, high, low, high))
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.locator_params(nbins=5)
    axes.set_xlabel(f"real ({unit})", labelpad=1)
    axes.set_ylabel(f"synthetic ({unit})", labelpad=1)


def _bland_altman(axes: Axes, pairs: pd.DataFrame, row: pd.Series, colour: str, unit: str, people: bool) -> None:
    mean, difference = pairs.mean(axis=1).to_numpy(), (pairs["synthetic"] - pairs["real"]).to_numpy()
    reach = [*_reach(difference, people), row["lower_low"], row["upper_high"], 0.0]
    low, high = np.nanmin(reach), np.nanmax(reach)
    rim = 0.05 * max(high - low, 1e-3)
    side = 0.06 * max(np.ptp(mean), 1e-3)
    left, right = _reach(mean, people)
    box = (left - side, right + side, low - rim, high + rim)
    for name, style in (("bias", (None, None)), ("lower", (3, 2)), ("upper", (3, 2))):
        if not np.isnan(row[f"{name}_low"]):
            axes.axhspan(row[f"{name}_low"], row[f"{name}_high"], color="#EEEEEE", linewidth=0, zorder=0)
        axes.axhline(row[name], color="#444444", linewidth=0.7, dashes=style, zorder=1)
    axes.axhline(0, color=GREY, linewidth=0.5, dashes=(1, 2), zorder=1)
    _cloud(axes, mean, difference, colour, people, box)
    axes.set_xlim(box[:2])
    axes.set_ylim(box[2:])
    axes.locator_params(nbins=5)
    axes.set_xlabel(f"mean of both ({unit})", labelpad=1)
    axes.set_ylabel(f"synthetic − real ({unit})", labelpad=3)


def _dots(axes: Axes, rows: pd.DataFrame, methods: Sequence[str], unit: str, kind: str) -> None:
    places = np.arange(len(methods))[::-1]
    for place in places[::2]:
        axes.axhspan(place - 0.5, place + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
    look = method_styles(methods)
    name = "icc_agreement" if kind == "icc" else "bias"
    for method, place in zip(methods, places, strict=True):
        row, colour = rows.loc[method], look[method][0]
        if kind == "bias" and not np.isnan(row["lower"]):
            axes.barh(place, row["upper"] - row["lower"], 0.5, row["lower"], color=colour, alpha=0.25, linewidth=0)
        axes.hlines(place, row[f"{name}_low"], row[f"{name}_high"], color=colour, linewidth=1.0)
        axes.plot(row[name], place, "o", color=colour, markersize=3.2, markeredgewidth=0)
    axes.axvline(0, color=GREY, linewidth=0.6, zorder=0.5)
    axes.use_sticky_edges = False
    axes.margins(x=0.04)
    axes.set_ylim(-0.5, len(methods) - 0.5)
    axes.set_yticks(places, methods if kind == "icc" else [""] * len(methods))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("ICC(2,1)" if kind == "icc" else f"bias and limits ({unit})", labelpad=1)
