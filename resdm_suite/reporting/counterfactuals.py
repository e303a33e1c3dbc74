"""The counterfactual figure: change of regional SUVR under other prompts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from resdm_suite.evaluation.readings import present_tracers
from resdm_suite.reporting.style import ERROR_MAP, TRACER_TITLES, WIDTH, Page, region_rows, round_up, styled
from resdm_suite.reporting.tables import span

PANELS = {
    "sex": ("sex swapped", {"sex_M": ("#0072B2", "women told M"), "sex_F": ("#D55E00", "men told F")}),
    "tracer_only": ("no text but the tracer", {"tracer_only": ("#555555", "")}),
    "shuffled": ("another’s age and sex", {"shuffled": ("#009E73", "")}),
}
"""Panels beside the age sweep: title; conditions with colour and name."""


@styled
def counterfactual_figure(summary: pd.DataFrame, *, method: str = "ResDM", notice: str = "") -> Figure:
    """Regional change of synthetic SUVR against the factual prompt: the age sweep as a map, the others as intervals.

    Parameters
    ----------
    summary : DataFrame
        From `resdm_suite.evaluation.counterfactuals.change_summary`.
    method : str
    notice : str

    Notes
    -----
    Only means over people are drawn, so the figure may be shown of any cohort.
    """
    tracers = present_tracers(summary)
    ages = sorted({c for c in summary["condition"] if c.startswith("age_")}, key=lambda name: float(name[4:]))
    panels = [name for name, (_, shown) in PANELS.items() if summary["condition"].isin(shown).any()]
    regions = {t: list(dict.fromkeys(summary.loc[summary["tracer"] == t, "region"])) for t in tracers}
    head, row, left, foot = 0.86, 0.155, 1.14, 0.72
    page = Page.of(WIDTH, head + sum(len(r) * row + foot for r in regions.values()) + 0.06)
    page.title(
        "Counterfactuals: what the prompt changes, by region", notice,
        f"{method}: mean SUVR under the prompt − under the person’s own, the same MRI and noise; n = "
        f"{span(summary['n'])} test people. Intervals are 95\u00a0%; dots are filled where the interval for all "
        "regions of the panel together misses zero.",
    )  # fmt: skip
    width_map = 1.42 if ages else 0.0
    room = WIDTH - left - width_map - (0.52 if ages else 0) - 0.10
    width = room / max(1, len(panels)) - 0.10
    top = head
    for tracer in tracers:
        rows = summary[summary["tracer"] == tracer]
        names, height = regions[tracer], len(regions[tracer]) * row
        page.text(0.08, top - 0.23, TRACER_TITLES[tracer], fontsize=8, fontweight="bold")
        start, first = left, True
        drawn = rows[~rows["condition"].isin(ages)]
        ends = (1.05 * min(0.0, drawn["low"].min()), 1.05 * max(0.0, drawn["high"].max()))  # one scale for all panels
        if ages:
            _sweep(page, start, top, width_map, height, rows, ages, names)
            start, first = start + width_map + 0.52, False
        for name in panels:
            title, shown = PANELS[name]
            axes = page.axes(start, top, width, height)
            _changes(axes, rows, names, shown, first)
            axes.set_xlim(*ends)
            axes.set_title(title, pad=4, loc="left")
            axes.set_xlabel("change (SUVR)", labelpad=1)
            if name == "sex":
                axes.legend(loc="upper left", bbox_to_anchor=(-0.04, -0.30 / height), ncols=2, handletextpad=0.1,
                            columnspacing=0.7, borderpad=0)  # fmt: skip
            start, first = start + width + 0.10, False
        top += height + foot
    return page.figure


def _sweep(
    page: Page,
    left: float,
    top: float,
    width: float,
    height: float,
    rows: pd.DataFrame,
    ages: list[str],
    names: list[str],
) -> None:
    axes = page.axes(left, top, width, height)
    table = rows[rows["condition"].isin(ages)].set_index(["region", "condition"])["mean"]
    table = pd.DataFrame({age: [table[name, age] for name in names] for age in ages}, index=names)
    most = round_up([float(np.nanmax(np.abs(table.to_numpy())))], 0.05)
    norm = Normalize(-most, most)
    axes.imshow(table.to_numpy(), cmap=ERROR_MAP, norm=norm, aspect="auto", interpolation="nearest")
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        dark = abs(value) > 0.65 * most
        axes.text(j, i, f"{round(value, 2) + 0.0:+.2f}".replace("-", "−"), ha="center", va="center", fontsize=5,
                  color="white" if dark else "#333333")  # fmt: skip
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_xticks(range(len(ages)), [name[4:] for name in ages])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title("one age for everyone", pad=4, loc="left")
    axes.set_xlabel("age in the prompt (years)", labelpad=1)
    page.bar(left + width + 0.06, top, height, norm, ERROR_MAP, "")


def _changes(
    axes: Axes, rows: pd.DataFrame, names: list[str], shown: dict[str, tuple[str, str]], labelled: bool
) -> None:
    places = region_rows(axes, names, names=labelled, rim=0.0)
    present = [name for name in shown if (rows["condition"] == name).any()]
    for k, condition in enumerate(present):
        colour, label = shown[condition]
        part = rows[rows["condition"] == condition].set_index("region").reindex(names)
        y = places + (0.5 - (k + 0.5) / len(present)) * 0.6
        sure = ((part["strict_low"] > 0) | (part["strict_high"] < 0)).to_numpy()
        axes.hlines(y, part["low"], part["high"], color=colour, linewidth=0.9)
        axes.plot(part["mean"], y, "o", color=colour, markersize=3, markerfacecolor="white", markeredgewidth=0.7,
                  label=label or None)  # fmt: skip
        axes.plot(part["mean"][sure], y[sure], "o", color=colour, markersize=3, markeredgewidth=0.7)
    axes.locator_params(axis="x", nbins=4)
