"""Table 4: amyloid and tau status from every source, its ROC curves and calibration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resdm.config import Config
from resdm.evaluation.effects import (
    CLASSIFICATION,
    present_tracers,
    read_readings,
    status_gains,
    status_parts,
    status_reliability,
    status_summary,
)
from resdm.evaluation.resampling import person_weights, roc
from resdm.report.figures import GREY, WIDTH, Page, looks, styled
from resdm.report.tables import CONTROLS, REFERENCE_METHOD, Block, Table, number, read_paper, span

SOURCE_NAMES = {"real": "Real PET", "template": "Mean template", "mri": "MRI alone", "age_sex": "Age and sex alone"}
"""How sources are printed; a method has its own name."""

STATUS_NAMES = {"amyloid": "Aβ status", "tau": "tau status"}
METRIC_NAMES = {"auc": "AUC", "acc": "ACC", "f1": "F1"}

WITHOUT_SYNTHESIS = ("mri", "age_sex")
"""Controls that need no synthetic PET; the first is what the others' gain is measured against."""

_LINES = {"real": ("#000000", "-"), "mri": ("#8C564B", (0, (4, 1.5))), "age_sex": ("#8C564B", (0, (1, 1.2)))}


def table4_sources(status: pd.DataFrame, paper: pd.DataFrame) -> list[str]:
    """Rows of Table 4 that were read: the paper's in its order, then the controls."""
    rows = dict.fromkeys([*paper["method"], *CONTROLS, *WITHOUT_SYNTHESIS])
    return [source for source in rows if (status["source"] == source).any()]


def table4(config: Config, sources: Iterable[str] | None = None) -> Table:
    """Amyloid and tau status from each source over the test people, beside the paper's printed values.

    Parameters
    ----------
    config : Config
    sources : iterable of str, optional
        In row order; by default those of `table4_sources`.

    Returns
    -------
    Table
        Frame: one row a source, tracer and metric, as `resdm.evaluation.effects.status_summary`, in % (``brier`` as it
        is); with unit, paper, paper_std, and for ``auc_mean_score`` the difference to MRI alone and to ResDM with its
        interval (over_mri, over_mri_low, over_mri_high; over_resdm, …), in percentage points.

    Raises
    ------
    FileNotFoundError, ValueError
        No readings, or sources that were not read on the same sessions.
    """
    status, folds = read_readings(config, "status"), read_readings(config, "status_folds")
    paper = read_paper(4, config.root)
    sources = table4_sources(status, paper) if sources is None else list(sources)
    frame = status_summary(status, sources, seed=config.seed)
    printed = paper.rename(columns={"method": "source", "status": "tracer", "mean": "paper", "std": "paper_std"})
    keys = ["source", "tracer", "metric"]
    frame = frame.merge(printed[[*keys, "paper", "paper_std"]], on=keys, how="left", validate="one_to_one")
    for name, base in (("over_mri", "mri"), ("over_resdm", REFERENCE_METHOD)):
        gains = status_gains(status, sources, base, seed=config.seed).assign(metric="auc_mean_score")
        gains = gains.rename(columns={"gain": name, "low": f"{name}_low", "high": f"{name}_high"})
        frame = frame.merge(gains, on=keys, how="left", validate="one_to_one")
    percent = frame["metric"] != "brier"
    scaled = ["mean", "std", "ci_low", "ci_high", *(c for c in frame if c.startswith("over_"))]
    frame.loc[percent, scaled] *= 100
    frame.insert(3, "unit", np.where(percent, "%", ""))
    tracers = present_tracers(frame)
    return Table(
        name="table4",
        title="Table 4: Amyloid and tau status from real and synthetic PET",
        notice=config.notice,
        frame=frame,
        blocks=(
            _fold_block(frame, sources, tracers),
            _people_block(frame, sources, tracers),
            _held_out_block(folds, tracers),
        ),
        notes=(
            "One classifier a fold, trained on real PET of training people; its threshold comes from real PET of the "
            "held-out fold. All folds are scored on the same test people.",
            "First block: mean ± standard deviation over the folds; below it the 95 % bootstrap interval of that mean "
            "over test people. The deviation tells what another training would change, the interval what other people "
            "would. A session weighs one over its person's sessions. Bold: best mean of all rows but real PET.",
            "Second block: AUC and Brier score of the score averaged over the folds, with their intervals over people; "
            "differences are in percentage points of AUC, on the same people. An interval that covers zero is no "
            "difference.",
            "Controls that the paper does not show: MRI alone is the same network on the T1, age and sex alone a "
            "logistic regression, mean template the training people's mean PET, the same for everyone. regression is "
            "the network of ResDM in one pass of plain L2.",
            "Third block: training sessions that a fold's classifier is fitted on, and those held out, "
            "which set its threshold.",
            "Paper: printed values, on another cohort; what its folds are is not stated there.",
        ),
    )


def _fold_block(frame: pd.DataFrame, sources: Sequence[str], tracers: Sequence[str]) -> Block:
    columns, best = [("", "Source")], set()
    rows: list[list[Any]] = [[SOURCE_NAMES.get(source, source)] for source in sources]
    for tracer in tracers:
        for metric in CLASSIFICATION:
            part = frame[(frame["tracer"] == tracer) & (frame["metric"] == metric)].set_index("source").reindex(sources)
            rivals = part["mean"].drop("real", errors="ignore")
            best |= {
                (i, len(columns)) for i, s in enumerate(sources) if s != "real" and part["mean"][s] == rivals.max()
            }
            columns.append((STATUS_NAMES[tracer], f"{METRIC_NAMES[metric]} (%) ↑"))
            for row, values in zip(rows, part.to_dict("records"), strict=True):
                lines = [
                    f"{number(values['mean'], 2)} ± {number(values['std'], 2)}",
                    f"[{number(values['ci_low'], 2)}, {number(values['ci_high'], 2)}]",
                ]
                if not math.isnan(values["paper"]):
                    lines.append(f"paper {number(values['paper'], 2)} ± {number(values['paper_std'], 2)}")
                row.append(tuple(lines))
    return Block("Mean over the folds", tuple(columns), tuple(map(tuple, rows)), frozenset(best))


def _people_block(frame: pd.DataFrame, sources: Sequence[str], tracers: Sequence[str]) -> Block:
    columns = [("", "Source")]
    rows: list[list[Any]] = [[SOURCE_NAMES.get(source, source)] for source in sources]
    for tracer in tracers:
        heads = ("people (positive)", "AUC (%) ↑", "minus MRI alone", f"minus {REFERENCE_METHOD}", "Brier ↓")
        columns += [(STATUS_NAMES[tracer], head) for head in heads]
        of_tracer = frame[frame["tracer"] == tracer]
        areas, briers = (
            of_tracer[of_tracer["metric"] == metric].set_index("source").reindex(sources)
            for metric in ("auc_mean_score", "brier")
        )
        for row, area, brier in zip(rows, areas.to_dict("records"), briers.to_dict("records"), strict=True):
            row.append("–" if math.isnan(area["n"]) else f"{area['n']:.0f} ({area['positive']:.0f})")
            for name, low, high in (("mean", "ci_low", "ci_high"), *((n, f"{n}_low", f"{n}_high") for n in _GAINS)):
                row.append(_with_interval(area[name], area[low], area[high], 1))
            row.append(_with_interval(brier["mean"], brier["ci_low"], brier["ci_high"], 3))
    return Block("Score averaged over the folds", tuple(columns), tuple(map(tuple, rows)))


_GAINS = ("over_mri", "over_resdm")


def _with_interval(value: float, low: float, high: float, decimals: int) -> tuple[str, ...]:
    if math.isnan(value):
        return ("–",)
    return number(value, decimals), f"[{number(low, decimals)}, {number(high, decimals)}]"


def _held_out_block(folds: pd.DataFrame, tracers: Sequence[str]) -> Block:
    sources = list(dict.fromkeys(folds["source"]))
    columns = [("", "Trained on")]
    rows: list[list[Any]] = [[SOURCE_NAMES.get(source, source)] for source in sources]
    for tracer in tracers:
        columns += [(STATUS_NAMES[tracer], head) for head in ("sessions", "held out", "AUC (%) ↑", "threshold")]
        for row, source in zip(rows, sources, strict=True):
            part = folds[(folds["tracer"] == tracer) & (folds["source"] == source)]
            area, threshold = part["held_out_auc"] * 100, part["threshold"]
            row += [
                span(part["n_train"]),
                span(part["n_held_out"]),
                f"{number(area.mean(), 2)} ± {number(area.std(ddof=1), 2)}",
                f"{number(threshold.mean(), 3)} ± {number(threshold.std(ddof=1), 3)}",
            ]
    return Block("The classifiers on held-out training people", tuple(columns), tuple(map(tuple, rows)))


# ── ROC and calibration ───────────────────────────────────────────────────────────────────────────


@styled
def table4_roc(
    status: pd.DataFrame,
    frame: pd.DataFrame,
    *,
    calibrated: Sequence[str] = ("real", REFERENCE_METHOD, "mri"),
    notice: str = "",
) -> Figure:
    """ROC curves of all sources and the calibration of a few, by tracer.

    Parameters
    ----------
    status : DataFrame
        Rows of ``status.csv``.
    frame : DataFrame
        Of `table4`: its sources in their order, and the numbers of the legend.
    calibrated : sequence of str
        Whose calibration is drawn, where read; more would hide each other. The Brier score is given for all.
    notice : str

    Notes
    -----
    Of the score averaged over the folds. Calibration: about equal numbers of people a bin, Wilson intervals.
    """
    tracers, sources = present_tracers(frame), list(dict.fromkeys(frame["source"]))
    bins = status_reliability(status, [source for source in calibrated if source in sources])
    look = _sources_look(sources)
    head, side, pitch = 0.72, 1.95, 2.62
    page = Page.of(WIDTH, head + len(tracers) * pitch - 0.26)
    page.title(
        "Status from PET: ROC curves and calibration", notice,
        "Classifiers trained on real PET; the score is averaged over the folds. Test people; intervals are 95 %.",
    )  # fmt: skip
    for i, tracer in enumerate(tracers):
        top = head + i * pitch
        parts = status_parts(status, tracer, sources)
        left = page.axes(0.50, top, side, side)
        left.plot([0, 1], [0, 1], color=GREY, linewidth=0.6, dashes=(3, 2))
        for source, part in reversed(parts.items()):  # the first row of the table on top
            colour, line, width = look[source]
            curve = roc(part["label"].to_numpy(), part["score"].to_numpy(), person_weights(part["person"]))
            left.plot(*curve, color=colour, linestyle=line, linewidth=width)
        _unit_square(left, "false positive rate", "true positive rate")
        left.set_title(f"{STATUS_NAMES[tracer]}: ROC", pad=4, loc="left")
        right = page.axes(2.93, top, side, side)
        right.plot([0, 1], [0, 1], color=GREY, linewidth=0.6, dashes=(3, 2))
        for source, part in bins[bins["tracer"] == tracer].groupby("source", sort=False):
            colour, line, width = look[source]
            right.plot(part["score"], part["observed"], color=colour, linestyle=line, linewidth=min(width, 1.2),
                       marker="o", markersize=3, markeredgewidth=0)  # fmt: skip
            right.vlines(part["score"], part["low"], part["high"], color=colour, linewidth=0.6)
        _unit_square(right, "probability of positive, as scored", "observed share of positives")
        right.set_title("calibration", pad=4, loc="left")
        rows = frame[frame["tracer"] == tracer].set_index(["source", "metric"])
        _legend(page, 4.92, top, list(parts), rows, look)
    return page.figure


def _sources_look(sources: Sequence[str]) -> dict[str, tuple[str, Any, float]]:
    """Colour, line and width of each source."""
    known = looks([source for source in sources if source not in _LINES])
    return {
        source: (*_LINES[source], 1.4) if source in _LINES
        else (known[source][0], "-", 1.6 if source == REFERENCE_METHOD else 0.9)
        for source in sources
    }  # fmt: skip


def _unit_square(axes: Axes, x: str, y: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_xlabel(x, labelpad=1)
    axes.set_ylabel(y, labelpad=2)


def _legend(page: Page, left: float, top: float, sources: Sequence[str], rows: pd.DataFrame, look: dict) -> None:
    small, step = {"fontsize": 6}, 0.145
    page.text(left + 1.05, top - 0.02, "AUC (%)", color=GREY, **small)
    page.text(WIDTH - 0.06, top - 0.02, "Brier", color=GREY, ha="right", **small)
    n = rows.iloc[0]
    for k, source in enumerate(sources, start=1):
        y = top - 0.02 + k * step
        colour, line, width = look[source]
        sample = page.axes(left, y, 0.2, 0.1)
        sample.plot([0, 1], [0.5, 0.5], color=colour, linestyle=line, linewidth=width)
        sample.set_axis_off()
        page.text(left + 0.26, y, SOURCE_NAMES.get(source, source), **small)
        area, error = rows.loc[(source, "auc_mean_score")], rows.loc[(source, "brier")]
        text = f"{number(area['mean'], 1)} [{number(area['ci_low'], 1)}, {number(area['ci_high'], 1)}]"
        page.text(left + 1.05, y, text, **small)
        page.text(WIDTH - 0.06, y, number(error["mean"], 3), ha="right", **small)
    page.text(left, top + (len(sources) + 1.3) * step, f"n = {n['n']} people, {n['positive']} positive", color=GREY,
              **small)  # fmt: skip
