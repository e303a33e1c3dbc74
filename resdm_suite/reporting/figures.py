"""Figure 1, training curves and the regional panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from resdm.settings import TRACERS
from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.profiles import MIN_GROUP_SIZE
from resdm_suite.reporting.slices import draw_outline, show_slice, slice_aspect, slice_name
from resdm_suite.reporting.style import (
    ATTENTION_MAP,
    COLOURS,
    ERROR_MAP,
    GREY,
    PET_MAP,
    T1_MAP,
    TRACER_TITLES,
    WIDTH,
    Page,
    method_styles,
    region_rows,
    round_up,
    styled,
)

# ── figure 1 ──────────────────────────────────────────────────────────────────────────────────────


@styled
def figure1(
    tensors: Mapping[str, Any], grid: Grid, *, notice: str = "", cut: tuple[str, float] = ("z", 14.0)
) -> Figure:
    """The method, from tensors of a real run: the forward process, the reverse path, and where the text attends.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        As of ``numpy.load`` of an ``.npz``; intensities in [0, 1]; tracers in the order amyloid, tau:

        ``mri`` (X, Y, Z)
            y_0.
        ``pet`` (2, X, Y, Z)
            x_0.
        ``forward`` (2, K, X, Y, Z), ``forward_t`` (K,)
            Noisy x_t of Eq. 1 at a few t, increasing.
        ``reverse`` (2, M, X, Y, Z), ``reverse_t`` (M,)
            States of sampling from x_T down; the last, t = 0, is the synthetic PET x̂_0.
        ``eta`` (T,)
            The shifting sequence η_1 … η_T.
        ``attention`` (2, G, X', Y', Z'), ``attention_names`` (G,)
            Share of the cross-attention that a group of prompt tokens receives at each voxel of the bottleneck, summed
            over the group, averaged over heads; optional.
        ``prompts`` (2,)
            The texts, for the heading of the attention maps; optional.
        ``people`` ()
            Over how many people the tensors are averaged; optional, one person without it.
    grid : Grid
    notice : str
    cut : (axis, mm)
        The slice that is shown.
    """
    mri, pet = np.asarray(tensors["mri"]), np.asarray(tensors["pet"])
    forward, reverse = np.asarray(tensors["forward"]), np.asarray(tensors["reverse"])
    forward_t, reverse_t = (np.asarray(tensors[key]).ravel() for key in ("forward_t", "reverse_t"))
    eta = np.asarray(tensors["eta"]).ravel()
    shares = np.asarray(tensors["attention"]) if "attention" in tensors else None
    columns = max(forward.shape[1] + 2, reverse.shape[1] + 1, 6)
    label, gap, bars = 0.62, 0.03, 0.46
    width = (WIDTH - label - bars - (columns - 1) * gap) / columns
    height = width * slice_aspect(cut)
    strip = 2 * height + gap
    tops = [0.78, 0.78 + strip + 0.52]
    third = tops[1] + strip + 0.52
    fourth = third + strip + 0.56
    page = Page.of(WIDTH, third + strip + 0.20 if shares is None else fourth + strip + 0.12)
    whose = "Tensors of one person and one run."
    if "people" in tensors:
        whose = f"Tensors are means over {int(tensors['people'])} test people, a run each; nobody is shown alone."
    page.title(
        "Figure 1: The residual diffusion model", notice,
        f"{whose} One slice, {slice_name(cut)}; left is left.",
    )  # fmt: skip
    grey = Normalize(0, 1)

    def left_of(column: int) -> float:
        return label + column * (width + gap)

    def picture(column: int, top: float, volume: np.ndarray, norm: Normalize, cmap: str, title: str = "") -> Axes:
        axes = page.axes(left_of(column), top, width, height)
        show_slice(axes, volume, grid, cut, norm, cmap, marks=column == 0)
        if title:
            axes.set_title(title, fontsize=7, pad=2.5)
        return axes

    def heading(letter: str, top: float, text: str) -> None:
        page.text(0.08, top - 0.36, f"{letter}", fontsize=8.5, fontweight="bold")
        page.text(0.26, top - 0.355, text, fontsize=7.5)

    def names(top: float) -> None:
        for row, tracer in enumerate(TRACERS):
            page.text(label - 0.06, top + row * (height + gap) + height / 2, TRACER_TITLES[tracer], rotation=90,
                      ha="right", va="center", fontsize=7)  # fmt: skip

    # a: forward
    heading("a", tops[0], "Forward process (Eq. 1): the PET moves along its residual into a noisy MRI, "
            r"$x_t = x_0 + \eta_t\,(y_0 - x_0) + \kappa\sqrt{\eta_t}\,\varepsilon$")  # fmt: skip
    names(tops[0])
    for row in range(2):
        top = tops[0] + row * (height + gap)
        picture(0, top, pet[row], grey, T1_MAP, "$x_0$" if row == 0 else "")
        for k, t in enumerate(forward_t):
            picture(k + 1, top, forward[row, k], grey, T1_MAP, f"$x_{{{int(t)}}}$" if row == 0 else "")
        picture(forward.shape[1] + 1, top, mri, grey, T1_MAP, "$y_0$ (MRI)" if row == 0 else "")
    # b: reverse
    heading("b", tops[1], r"Reverse path (Eq. 2–3): from the noisy MRI to the synthetic PET $\hat{x}_0$")
    names(tops[1])
    for row in range(2):
        top = tops[1] + row * (height + gap)
        for k, t in enumerate(reverse_t):
            title = r"$\hat{x}_0$" if int(t) == 0 else f"$x_{{{int(t)}}}$"
            picture(k, top, reverse[row, k], grey, T1_MAP, title if row == 0 else "")
        picture(reverse.shape[1], top, pet[row], grey, T1_MAP, "$x_0$ (real)" if row == 0 else "")
    for top, used in zip(tops, (forward.shape[1] + 2, reverse.shape[1] + 1), strict=True):
        page.bar(left_of(used) + 0.01, top, strip, grey, T1_MAP, "intensity")
    # c: differences between and within the domains
    heading("c", third, "Inter-domain difference")
    residual = mri[None] - pet
    synthetic = reverse[:, -1]
    left_out = mri[None] - synthetic
    limit = round_up([np.quantile(np.abs(residual[:, mri > 0]), 0.99) if (mri > 0).any() else 1.0], 0.1)
    signed = Normalize(-limit, limit)
    names(third)
    for row in range(2):
        top = third + row * (height + gap)
        picture(0, top, residual[row], signed, ERROR_MAP, "$e_0 = y_0 - x_0$" if row == 0 else "")
        picture(1, top, left_out[row], signed, ERROR_MAP, r"$y_0 - \hat{x}_0$" if row == 0 else "")
    page.bar(left_of(2) + 0.04, third, strip, signed, ERROR_MAP, "intensity")
    start = 3  # one column for the bar and its label
    page.text(left_of(start), third - 0.355, r"Intra-domain difference (Eq. 6)", fontsize=7.5)
    inside = [np.abs(pet[0] - pet[1]), np.abs(synthetic[0] - synthetic[1])]
    size = Normalize(0, round_up([np.quantile(inside[0][mri > 0], 0.995) if (mri > 0).any() else 1.0], 0.05))
    formulas = (r"real $|x_0^1 - x_0^2|$", r"synthetic $|\hat{x}_0^1 - \hat{x}_0^2|$")
    for row, (volume, name) in enumerate(zip(inside, formulas, strict=True)):
        top = third + row * (height + gap)
        picture(start, top, volume, size, PET_MAP)
        page.text(left_of(start) - 0.05, top + height / 2, name, rotation=90, ha="right", va="center", fontsize=6.5)
    page.bar(left_of(start + 1) + 0.04, third, strip, size, PET_MAP, "intensity")
    plot_left = left_of(start + 2) + 0.36
    axes = page.axes(plot_left, third + 0.02, WIDTH - plot_left - 0.12, strip - 0.30)
    steps = np.arange(1, len(eta) + 1)
    axes.plot(steps, eta, color=COLOURS["DDPM"], marker="o", markersize=2.5)
    shown = [int(t) for t in forward_t if 1 <= int(t) <= len(eta)]
    drawn = eta[np.array(shown, dtype=int) - 1]
    axes.plot(shown, drawn, "o", color=COLOURS["ResDM"], markersize=4.5, label="shown in a")
    axes.set_xlabel("$t$")
    axes.set_ylabel(r"$\eta_t$", labelpad=1)
    axes.set_ylim(0, 1.05)
    axes.set_xlim(0, len(eta) + 0.5)
    axes.legend(loc="lower right", handletextpad=0.1)
    page.text(plot_left, third - 0.355, r"Shifting sequence $\eta_t$", fontsize=7.5)
    # d: attention
    if shares is not None:
        said = f": “{np.asarray(tensors['prompts']).ravel()[0]}” and tau" if "prompts" in tensors else ""
        heading("d", fourth, f"Where the text attends (Eq. 5){said}")
        names(fourth)
        group_names = [str(name) for name in np.asarray(tensors["attention_names"]).ravel()]
        pitch = (WIDTH - 0.08 - label) / len(group_names)
        brain = mni_map("brain", grid)
        for i, name in enumerate(group_names):
            low, high = 100 * float(shares[:, i].min()), 100 * float(shares[:, i].max())
            norm = Normalize(low, max(high, low + 0.1))  # one scale for both prompts
            left = label + i * pitch
            for row in range(2):
                axes = page.axes(left, fourth + row * (height + gap), width, height)
                show_slice(axes, 100 * shares[row, i], grid, cut, norm, ATTENTION_MAP, marks=i == 0)
                draw_outline(axes, brain, grid, cut, "white", 0.6)
                if row == 0:
                    axes.set_title(name, fontsize=7, pad=2.5)
            page.bar(left + width + 0.04, fourth, strip, norm, ATTENTION_MAP, "% of attention")
    return page.figure


@styled
def training_curves(histories: Mapping[str, pd.DataFrame], *, notice: str = "") -> Figure:
    """Losses and validation scores of one or more methods over training.

    Parameters
    ----------
    histories : mapping of method to DataFrame
        ``history.csv``: ``epoch``, one row each; one panel for every other numeric column but ``step``. Empty cells
        (epochs without validation) are passed over. Losses are drawn on a logarithmic scale, validation is not.
    notice : str
    """
    skip = {"epoch", "step"}
    names: list[str] = []
    for frame in histories.values():
        for column in frame.columns:
            numbers = pd.to_numeric(frame[column], errors="coerce")
            if column not in skip and column not in names and numbers.notna().any():
                names.append(column)
    if not names:
        raise ValueError("training curves: no history has a numeric column beside epoch and step")
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    height, left, head, pitch = 1.25, 0.48, 0.62, (WIDTH - 0.1) / columns
    width = min(pitch - left - 0.08, 4.0)
    page = Page.of(WIDTH, head + lines * (height + 0.52) + 0.12)
    page.title("Training", notice)
    look = method_styles(list(histories))
    for i, name in enumerate(names):
        axes = page.axes(left + (i % columns) * pitch, head + (i // columns) * (height + 0.52), width, height)
        for method, frame in histories.items():
            if name in frame:
                y = pd.to_numeric(frame[name], errors="coerce")
                kept = y.notna()
                x = frame["epoch"] if "epoch" in frame else pd.Series(np.arange(1, len(frame) + 1))
                sparse = kept.sum() <= 40
                axes.plot(x[kept], y[kept], color=look[method][0], label=method, marker="o" if sparse else "",
                          markersize=2)  # fmt: skip
        axes.set_title(name.replace("_", " "), pad=3)
        axes.grid(True, color="#E6E6E6", linewidth=0.5)
        axes.set_axisbelow(True)
        if not name.startswith("validation") and all((np.asarray(line.get_ydata()) > 0).all() for line in axes.lines):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if i // columns == lines - 1 or i + columns >= len(names):
            axes.set_xlabel("epoch", labelpad=1)
    if len(histories) > 1:
        handles, labels = page.figure.axes[0].get_legend_handles_labels()
        page.figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.06, 1 - 0.22 / page.height),
                           ncols=len(labels), columnspacing=1.2, handlelength=1.4)  # fmt: skip
    return page.figure


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
