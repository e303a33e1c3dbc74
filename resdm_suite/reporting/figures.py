"""Regional SUVR, real against synthetic: scatter, correlation, bias and texture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resdm.settings import TRACERS
from resdm_suite.profiles import MIN_GROUP_SIZE
from resdm_suite.reporting.style import (
    GREY,
    TRACER_TITLES,
    WIDTH,
    Page,
    method_styles,
    region_rows,
    styled,
)


@styled
def regional_panel(
    regional: pd.DataFrame,
    agreement: pd.DataFrame,
    textures: pd.DataFrame | None = None,
    *,
    method: str = "ResDM",
    people: bool = True,
    notice: str = "",
) -> Figure:
    """Regional SUVR, real against synthetic: the scatter of one method; r, bias and texture of all.

    Parameters
    ----------
    regional : DataFrame
        Rows of `resdm_suite.evaluation.suvr.regional_suvr`, one or more methods.
    agreement : DataFrame
        From `resdm_suite.evaluation.suvr.regional_agreement`.
    textures : DataFrame, optional
        From `resdm_suite.evaluation.suvr.texture_summary`.
    method : str
        Whose scatter is drawn (summary region).
    people : bool
        One point a person. Else, for cohorts whose single people may not be shown, up to ten groups of as many people
        of like real SUVR, at least `MIN_GROUP_SIZE` each: mean and standard deviation of both.
    notice : str

    Notes
    -----
    Intervals of the bias (95 %) are drawn for up to four methods; more would hide each other.
    """
    tracers = [tracer for tracer in TRACERS if (agreement["tracer"] == tracer).any()]
    methods = list(dict.fromkeys(agreement["method"]))
    if method not in methods:
        raise ValueError(f"no regional SUVR of {method!r}; there are: {', '.join(methods) or 'none'}")
    look = method_styles(methods)
    more = 0.1 * max(0, len(methods) - 8)  # inches, for the names of the texture's rows
    head, height, side, pitch = 0.82, 3.05 + more, 1.72, 3.68 + more
    page = Page.of(WIDTH, head + len(tracers) * pitch - 0.20)
    page.title("Regional SUVR: real against synthetic PET", notice)
    if not people:
        page.text(
            WIDTH - 0.08,
            0.24,
            "scatter: means and deviations of groups of people",
            fontsize=6.5,
            color=GREY,
            ha="right",
        )
    for i, tracer in enumerate(tracers):
        top = head + i * pitch
        _scatter(page.axes(0.50, top, side, side), regional, agreement, tracer, method, look[method][0], people)
        if textures is not None:
            part = textures[textures["tracer"] == tracer].set_index("method").reindex(methods)
            axes = page.axes(0.88, top + side + 0.62, side + 0.50 - 0.88, height - side - 0.62)
            places = np.arange(len(methods))[::-1]
            axes.axvline(1, color=GREY, linewidth=0.6)
            for place, (name, values) in zip(places, part.iterrows(), strict=True):
                colour, marker = look[name]
                low, high = values["mean"] - values["std"], values["mean"] + values["std"]
                axes.hlines(place, low, high, color=colour, linewidth=0.7)
                axes.plot(values["mean"], place, marker, color=colour, markersize=3, markeredgewidth=0)
            axes.set_xlim(0, max(1.15, float((part["mean"] + part["std"].fillna(0)).max()) * 1.05))
            axes.set_ylim(-0.6, len(methods) - 0.4)
            axes.set_yticks(places, methods)
            axes.tick_params(axis="y", length=0, labelsize=5.5 if more else 6)
            axes.set_title("texture: gradient energy ÷ real", pad=3, loc="right")
        for column, left, width, title in (
            ("r", 3.50, 1.70, "r over people"),
            ("bias", 5.42, 1.66, "bias: synthetic − real (SUVR)"),
        ):
            axes = page.axes(left, top, width, height)
            _by_region(axes, agreement[agreement["tracer"] == tracer], column, methods, look)
            axes.set_title(title, pad=4, loc="left")
        if i == 0:
            handles, labels = axes.get_legend_handles_labels()
            lines = -(-len(labels) // 8)
            page.figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.055, 1 - 0.30 / page.height),
                               ncols=-(-len(labels) // lines), columnspacing=1.2, handletextpad=0.1)  # fmt: skip
    return page.figure


def _scatter(
    axes: Axes, regional: pd.DataFrame, agreement: pd.DataFrame, tracer: str, method: str, colour: str, single: bool
) -> None:
    chosen = (regional["tracer"] == tracer) & (regional["method"] == method) & (regional["region"] == "summary")
    people = regional[chosen].groupby("person")[["real", "synthetic"]].mean()
    groups = people if single else _grouped(people)
    spread = 0 if single else groups[["real_std", "synthetic_std"]].to_numpy()
    values = groups[["real", "synthetic"]].to_numpy()
    low, high = 0.0, 1.0  # of nothing
    if len(values):
        low, high = np.floor((values - spread).min() * 10) / 10, np.ceil((values + spread).max() * 10) / 10
    axes.plot([low, high], [low, high], color=GREY, linewidth=0.7, dashes=(3, 2))
    if single:
        axes.plot(people["real"], people["synthetic"], "o", color=colour, markersize=3, alpha=0.75, markeredgewidth=0)
    else:
        axes.errorbar(
            groups["real"], groups["synthetic"], groups["synthetic_std"], groups["real_std"],
            fmt="o", color=colour, markersize=3, markeredgewidth=0, elinewidth=0.7,
        )  # fmt: skip
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.locator_params(nbins=5)
    axes.set_xlabel("real (SUVR)", labelpad=1)
    axes.set_ylabel("synthetic (SUVR)", labelpad=2)
    rows = agreement[(agreement["tracer"] == tracer) & (agreement["method"] == method)].set_index("region")
    values = rows.loc["summary"]
    text = f"r = {values['r']:.2f}\nICC = {values['icc']:.2f}\nn = {int(values['n'])}".replace("-", "−")
    axes.text(0.04, 0.97, text, transform=axes.transAxes, va="top", fontsize=6.5)
    axes.set_title(f"{TRACER_TITLES[tracer]}, cortical summary, {method}", pad=4, loc="left")


def _grouped(people: pd.DataFrame) -> pd.DataFrame:
    """Means of up to ten groups by real SUVR, at least `MIN_GROUP_SIZE` each, and deviations as ``…_std``."""
    ordered = people.sort_values("real", kind="stable").reset_index(drop=True)
    count = min(10, len(ordered) // MIN_GROUP_SIZE)
    group = np.arange(len(ordered)) * count // max(len(ordered), 1)
    parts = ordered.groupby(group) if count else ordered.iloc[:0].groupby(group[:0])
    return parts.mean().join(parts.std(ddof=1).add_suffix("_std"))


def _by_region(
    axes: Axes, agreement: pd.DataFrame, column: str, methods: Sequence[str], look: Mapping[str, tuple[str, str]]
) -> None:
    names = list(dict.fromkeys(agreement["region"]))
    places = region_rows(axes, names, names=column == "r", rim=0.2)
    for k, name in enumerate(methods):
        rows = agreement[agreement["method"] == name].set_index("region").reindex(names)
        colour, marker = look[name]
        y = places + (0.5 - (k + 0.5) / len(methods)) * 0.75
        if column == "bias" and len(methods) <= 4:
            axes.hlines(y, rows["bias_low"], rows["bias_high"], color=colour, linewidth=0.7)
        axes.plot(rows[column], y, marker, color=colour, markersize=3, markeredgewidth=0, label=name)
    if column == "r":
        lowest = agreement["r"].min()
        axes.set_xlim(min(-0.05, (0.0 if np.isnan(lowest) else lowest) - 0.05), 1.03)
