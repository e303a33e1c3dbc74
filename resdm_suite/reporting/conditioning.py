"""Figures 4 and 5: what the sex and the age in the prompt do to the synthetic PET."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resdm_suite.evaluation.conditioning import age_part, age_sweep
from resdm_suite.evaluation.readings import present_tracers
from resdm_suite.evaluation.statistics import person_weights
from resdm_suite.evaluation.status import CLASSIFICATION
from resdm_suite.profiles import FEWEST
from resdm_suite.reporting.style import GREY, TRACER_TITLES, WIDTH, Page, styled
from resdm_suite.reporting.tables import REFERENCE_METHOD, number

PROMPT_COLOURS = {"right": "#D55E00", "none": "#B8B8B8", "wrong": "#0072B2"}
PROMPT_NAMES = {"real": "real PET", "right": "right sex", "none": "no sex", "wrong": "wrong sex"}
_METRICS = {"auc": "AUC", "acc": "ACC", "f1": "F1"}
_DOTS = {"real": "#333333", "factual": "#D55E00", "no_age": "#888888", "shuffled_age": "#0072B2", "sweep": "#009E73"}


def _found(row: pd.Series, decimals: int, columns: Sequence[str] = ("estimate", "low", "high")) -> str:
    """``0.70 [0.52, 0.83]``."""
    value, low, high = (number(row[column], decimals) for column in columns)
    return f"{value} [{low}, {high}]"


# ── figure 4 ──────────────────────────────────────────────────────────────────────────────────────


@styled
def figure4(summary: pd.DataFrame, effects: pd.DataFrame, *, notice: str = "") -> Figure:
    """Sex told from syntheses prompted with the right, no and the wrong sex, and what the prompt changes beside it.

    Parameters
    ----------
    summary : DataFrame
        From `resdm_suite.evaluation.conditioning.sex_summary`.
    effects : DataFrame
        From `resdm_suite.evaluation.conditioning.sex_effects`.
    notice : str

    Notes
    -----
    Bars are the paper's figure. The two panels beside them do not depend on a threshold that was set on real PET: the
    fit to the person's own real PET, and the classifier's log odds of the person's own sex.
    """
    tracers = present_tracers(summary)
    method = next(source for source in summary["source"] if source != "real")
    head, height, pitch = 0.98, 1.55, 2.16
    page = Page.of(WIDTH, head + len(tracers) * pitch - 0.26)
    page.title(
        "Figure 4: Conditioning on sex", notice,
        f"Syntheses of {method}; classifier trained on real PET of training people. Labels are the people's own sex, "
        "whatever the prompt says. Intervals are 95\u00a0%, over test people.",
    )  # fmt: skip
    for i, tracer in enumerate(tracers):
        top = head + i * pitch
        rows = summary[summary["tracer"] == tracer].set_index(["prompt", "metric"])
        changes = effects[effects["tracer"] == tracer].set_index("name")
        bars = page.axes(0.52, top, 2.85, height)
        _bars(bars, rows)
        n = {prompt: int(rows.loc[(prompt, "auc"), "n"]) for prompt in ("real", "right")}
        people = f"n = {n['right']}" if len(set(n.values())) == 1 else f"n = {n['right']}, real PET {n['real']}"
        told = "sex told"
        if pd.isna(changes.loc["logit_right_wrong", "low"]):  # see `resdm_suite.evaluation.conditioning.without_chance`
            told += " by a classifier at chance"
        bars.set_title(f"{TRACER_TITLES[tracer]}: {told} ({people})", pad=4, loc="left")
        if i == 0:
            handles, labels = bars.get_legend_handles_labels()
            page.figure.legend(
                handles, labels, loc="upper left", bbox_to_anchor=(0.055, 1 - 0.50 / page.height), ncols=4,
                columnspacing=1.4, handlelength=1.2, handletextpad=0.5,
            )  # fmt: skip
        psnr = page.axes(4.06, top, 1.10, height)
        for x, prompt in enumerate(("none", "wrong")):
            row = changes.loc[f"psnr_right_{prompt}"]
            _point(psnr, x, -row["estimate"], -row["high"], -row["low"], PROMPT_COLOURS[prompt])
        _categories(psnr, ["no\nsex", "wrong\nsex"], "PSNR − that with right sex (dB)")
        psnr.set_title(f"fit to real PET (n = {int(changes.loc['psnr_right_wrong', 'n'])})", pad=4, loc="left", x=-0.12)
        logit = page.axes(5.86, top, 1.24, height)
        for x, prompt in enumerate(PROMPT_NAMES):
            row = rows.loc[(prompt, "logit")]
            _point(logit, x, row["value"], row["low"], row["high"], PROMPT_COLOURS.get(prompt, "#000000"))
        _categories(logit, ["real\nPET", "right\nsex", "no\nsex", "wrong\nsex"], "log odds of own sex")
        shift = f"right − wrong: {_found(changes.loc['logit_right_wrong'], 2)}"
        logit.set_title(shift, pad=8, loc="right", fontsize=6.5)
    return page.figure


def _bars(axes: Axes, rows: pd.DataFrame) -> None:
    for place, metric in enumerate(CLASSIFICATION):
        real = 100 * rows.loc[("real", metric), ["value", "low", "high"]].astype(float)
        ends = {"xmin": place - 0.42, "xmax": place + 0.42}
        if not np.isnan(real["low"]):
            axes.fill_between([ends["xmin"], ends["xmax"]], real["low"], real["high"], color="#E4E4E4", linewidth=0)
        axes.hlines(real["value"], **ends, color="#000000", linewidth=1.2, zorder=3,
                    label=PROMPT_NAMES["real"] if place == 0 else None)  # fmt: skip
        for k, (prompt, colour) in enumerate(PROMPT_COLOURS.items()):
            row = 100 * rows.loc[(prompt, metric), ["value", "low", "high"]].astype(float)
            x = place + (k - 1) * 0.26
            axes.bar(x, row["value"], 0.24, color=colour, linewidth=0, zorder=2,
                     label=PROMPT_NAMES[prompt] if place == 0 else None)  # fmt: skip
            axes.vlines(x, row["low"], row["high"], color="#222222", linewidth=0.8, zorder=4)
    axes.axhline(50, color=GREY, linewidth=0.6, dashes=(3, 2), zorder=1)
    axes.set_xticks(range(len(CLASSIFICATION)), [_METRICS[metric] for metric in CLASSIFICATION])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.55, len(CLASSIFICATION) - 0.45)
    axes.set_ylim(0, 102)
    axes.set_ylabel("%", labelpad=1)


def _point(axes: Axes, x: float, value: float, low: float, high: float, colour: str) -> None:
    axes.vlines(x, low, high, color=colour, linewidth=1.2)
    axes.plot(x, value, "o", color=colour, markersize=4, markeredgewidth=0)


def _categories(axes: Axes, names: Sequence[str], label: str) -> None:
    axes.axhline(0, color=GREY, linewidth=0.6, dashes=(3, 2), zorder=0)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.locator_params(axis="y", nbins=6)
    axes.margins(y=0.12)
    axes.set_ylabel(label, labelpad=2)


# ── figure 5 ──────────────────────────────────────────────────────────────────────────────────────

_PANELS = {
    "real": ("own", "(a) real PET"),
    "factual": ("prompt", "(b) with age"),
    "no_age": ("own", "(c) without age"),
    "shuffled_age": ("prompt", "(d) another’s age"),
}


@styled
def figure5(
    age: pd.DataFrame,
    summary: pd.DataFrame,
    effects: pd.DataFrame,
    *,
    method: str = REFERENCE_METHOD,
    people: bool = True,
    notice: str = "",
) -> Figure:
    """Age in the prompt against age predicted from the PET, by tracer: real, with, without, shuffled, swept.

    Parameters
    ----------
    age : DataFrame
        Rows of ``age.csv``.
    summary : DataFrame
        From `resdm_suite.evaluation.conditioning.age_summary`.
    effects : DataFrame
        From `resdm_suite.evaluation.conditioning.age_effects`.
    method : str
        Whose syntheses.
    people : bool
        Draw one point a session and one line a person. Else, for cohorts whose single people may not be shown, the mean
        and standard deviation of every five years of age, where at least `FEWEST` people are that old.
    notice : str
    """
    tracers = present_tracers(age)
    sweeps = {tracer: age_sweep(age, method, tracer) for tracer in tracers}
    swept = all(table.shape[1] > 1 for table in sweeps.values())
    columns, left, gap, head = 4 + swept, 0.48, 0.12, 0.94
    side = (WIDTH - left - 0.08 - 4 * gap) / 5
    pitch = side + 1.04
    page = Page.of(WIDTH if swept else WIDTH - side - gap, head + len(tracers) * pitch - 0.22)
    page.title(
        "Figure 5: Conditioning on age", notice,
        f"Syntheses of {method}; age model trained on real PET of training people. Intervals are 95\u00a0%, over test "
        "people; MAE is the mean absolute error against the age of the axis.",
    )  # fmt: skip
    low, high = _limits(age, [*_PANELS] + (["sweep"] if swept else []), method)
    step = 10 * max(1, np.ceil((high - low) / 50))
    ticks = np.arange(step * np.ceil((low + 2) / step), high + 1e-9, step)  # none in the corner, where two would meet
    for i, tracer in enumerate(tracers):
        top = head + i * pitch
        rows = summary[summary["tracer"] == tracer].set_index(["condition", "against"])
        all_axes = [page.axes(left + k * (side + gap), top, side, side) for k in range(columns)]
        for axes in all_axes:
            axes.plot([low, high], [low, high], color=GREY, linewidth=0.6, dashes=(3, 2), zorder=0)
            axes.set_xlim(low, high)
            axes.set_ylim(low, high)
            axes.set_xticks(ticks)
            axes.set_yticks(ticks)
        for axes, (condition, (against, title)) in zip(all_axes, _PANELS.items(), strict=False):
            part = age_part(age, method, condition, tracer)
            x = part["age" if against == "own" else "prompt_age"]
            _ages(axes, x.to_numpy(dtype=float), part["predicted"].to_numpy(), part["person"], _DOTS[condition], people)
            row = rows.loc[(condition, against)]
            lines = [f"r {_found(row, 2, ('r', 'low', 'high'))}", f"MAE {number(row['error'], 1)} years"]
            if condition == "shuffled_age":
                lines[1] = f"r own {_found(rows.loc[(condition, 'own')], 2, ('r', 'low', 'high'))}"
            _below(page, axes, lines, f"n = {row['n']}")
            if i == 0:
                axes.set_title(title, pad=4, loc="left")
            axes.set_xlabel("own age (years)" if against == "own" else "age in the prompt (years)", labelpad=1)
        if swept:
            row = effects[(effects["tracer"] == tracer) & (effects["name"] == "slope_sweep")].iloc[0]
            _lines(all_axes[-1], sweeps[tracer], people)
            _below(page, all_axes[-1], [f"slope {_found(row, 2)}", "years a year"], f"n = {row['n']}")
            all_axes[-1].set_xlabel("age in the prompt (years)", labelpad=1)
            if i == 0:
                all_axes[-1].set_title("(e) same MRI, any age", pad=4, loc="left")
        for axes in all_axes[1:]:
            axes.set_yticklabels([])
        all_axes[0].set_ylabel(f"{TRACER_TITLES[tracer]}: predicted age (years)", labelpad=2)
    return page.figure


def _limits(age: pd.DataFrame, drawn: Sequence[str], method: str) -> tuple[float, float]:
    kept = age["condition"].isin(drawn) | (("sweep" in drawn) & age["condition"].str.startswith("age_"))
    values = age.loc[kept & age["source"].isin(["real", method]), ["age", "prompt_age", "predicted"]].to_numpy(float)
    return 5 * np.floor(np.nanmin(values) / 5 - 0.2), 5 * np.ceil(np.nanmax(values) / 5 + 0.2)


def _ages(axes: Axes, x: np.ndarray, y: np.ndarray, people: pd.Series, colour: str, single: bool) -> None:
    if single:
        axes.plot(x, y, "o", color=colour, markersize=2.6, alpha=0.7, markeredgewidth=0)
        return
    weights = person_weights(people)
    for years in np.unique(5 * np.floor(x / 5)):
        inside = (x >= years) & (x < years + 5)
        if people[inside].nunique() >= FEWEST:
            mean = np.average(y[inside], weights=weights[inside])
            spread = np.sqrt(np.average((y[inside] - mean) ** 2, weights=weights[inside]))
            _point(axes, years + 2.5, mean, mean - spread, mean + spread, colour)


def _lines(axes: Axes, table: pd.DataFrame, single: bool) -> None:
    years, mean = table.columns.to_numpy(dtype=float), table.mean().to_numpy()
    if single:
        axes.plot(years, table.to_numpy().T, color=_DOTS["sweep"], linewidth=0.4, alpha=0.4)
    elif len(table) >= FEWEST:
        spread = table.std(ddof=1).to_numpy()
        axes.fill_between(years, mean - spread, mean + spread, color=_DOTS["sweep"], alpha=0.2, linewidth=0)
    axes.plot(years, mean, color=_DOTS["sweep"], linewidth=1.6, marker="o", markersize=3)


def _below(page: Page, axes: Axes, lines: Sequence[str], last: str) -> None:
    """The numbers of a panel, under its axis, where no point can hide them."""
    box = axes.get_position()
    text = "\n".join([*lines, last])
    page.text(box.x0 * page.width, (1 - box.y0) * page.height + 0.36, text, fontsize=6, linespacing=1.25)
