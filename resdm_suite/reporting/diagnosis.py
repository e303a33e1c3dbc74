"""Table 4: amyloid and tau status from every source, its ROC curves and calibration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from resdm_suite.evaluation.classification import CALIPER
from resdm_suite.evaluation.readings import present_tracers, read_readings
from resdm_suite.evaluation.statistics import person_weights
from resdm_suite.evaluation.status import (
    CLASSIFICATION,
    MEAN_SCORE,
    status_blocks,
    status_reliability,
    status_summary,
    trainings,
)
from resdm_suite.profiles import Config
from resdm_suite.reporting.style import GREY, WIDTH, Page, method_styles, styled
from resdm_suite.reporting.tables import CONTROLS, REFERENCE_METHOD, Block, Table, number, read_paper, span

SOURCE_NAMES = {
    "real": "Real PET",
    "template": "Mean template",
    "ceiling": "Ceiling",
    "posterior": "Ceiling's posterior",
    "mri": "MRI alone",
    "age_sex": "Age and sex alone",
    "majority": "Always the more frequent class",
}
"""How sources are printed; a method has its own name."""

STATUS_NAMES = {"amyloid": "Aβ status", "tau": "tau status"}
TARGET_NAMES = {"planted": "Planted status", "label": "Cut-off label"}
METRIC_NAMES = {"auc": "AUC", "acc": "ACC", "f1": "F1"}

WITHOUT_SYNTHESIS = ("posterior", "mri", "age_sex", "majority")
"""Rows that need no synthetic PET."""

BASES = {"mri": "MRI alone", "linear": "linear", REFERENCE_METHOD: REFERENCE_METHOD}
"""Sources that the AUC of each row is compared with."""

_LINES = {"real": ("#000000", "-"), "mri": ("#8C564B", (0, (4, 1.5))), "age_sex": ("#8C564B", (0, (1, 1.2)))}


def table4_sources(status: pd.DataFrame, paper: pd.DataFrame) -> list[str]:
    """Rows of Table 4 that were read: the paper's in its order, other methods, then the controls."""
    read = trainings(status["source"])
    controls = (*CONTROLS, *WITHOUT_SYNTHESIS)
    others = [source for source in read if source not in controls]
    return [source for source in dict.fromkeys([*paper["method"], *others, *controls]) if source in read]


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
        Frame: `evaluation.status.status_summary` with `BASES`, in % and percentage points (``brier`` as it is),
        with unit, paper and paper_std (target ``label``).

    Raises
    ------
    FileNotFoundError, ValueError
        No readings, or sources that were not read on the same sessions.
    """
    status, folds = read_readings(config, "status"), read_readings(config, "status_folds")
    paper = read_paper(4, config.root)
    sources = table4_sources(status, paper) if sources is None else list(sources)
    frame = status_summary(status, sources, list(BASES), seed=config.seed)
    printed = paper.rename(columns={"method": "source", "status": "tracer", "mean": "paper", "std": "paper_std"})
    printed = printed.assign(target="label")
    keys = ["source", "target", "tracer", "metric"]
    frame = frame.merge(printed[[*keys, "paper", "paper_std"]], on=keys, how="left", validate="one_to_one")
    percent = frame["metric"] != "brier"
    scaled = ["mean", "std", "ci_low", "ci_high", *(c for c in frame if c.startswith("over_"))]
    frame.loc[percent, scaled] *= 100
    frame.insert(4, "unit", np.where(percent, "%", ""))
    blocks = [
        block(part, [source for source in sources if (part["source"] == source).any()], TARGET_NAMES[target])
        for target, part in frame.groupby("target", sort=False)
        for block in (_fold_block, _people_block)
    ]
    blocks += [_held_out_block(folds[folds["target"] == t], TARGET_NAMES[t]) for t in dict.fromkeys(frame["target"])]
    repeated = frame.loc[frame["trainings"] > 1, ["source", "trainings"]].drop_duplicates().itertuples(index=False)
    said = ", ".join(f"{source} {count}" for source, count in repeated)
    return Table(
        name="table4",
        title="Table 4: Amyloid and tau status from real and synthetic PET",
        notice=config.notice,
        frame=frame,
        blocks=tuple(blocks),
        notes=(
            "One classifier a fold, trained on real PET of training people; its threshold comes from real PET of the "
            "held-out fold. All folds are scored on the same test people.",
            "Cut-off label: measured SUVR above the tracer's cut-off. Planted status: what the phantom was given; "
            "classifiers and thresholds of its own. The label depends on age and sex too, as far as they change SUVR."
            if "planted" in set(frame["target"])
            else "Status is the label of the manifest: measured SUVR above the tracer's cut-off.",
            "Mean over the folds: ± standard deviation over the folds, [95 % bootstrap interval of the mean over test "
            "people and trainings]. The deviation is that between classifiers, the interval that between people and "
            "trainings. A session weighs one over its person's sessions. Bold: best mean of all rows but real PET and "
            "the ceiling.",
            "Score averaged over the folds: AUC and Brier score with their intervals; differences are in percentage "
            "points of AUC, on the same people. An interval that covers zero shows no difference. AUC at equal age and "
            f"sex: positives against negatives of the same sex and within {CALIPER:.0f} years (Janes and Pepe 2009); "
            "50 % is what age and sex alone give.",
            f"Trainings averaged: {said}; each metric is computed for a training, then averaged. Other rows: one."
            if said
            else "One training a row: the intervals do not hold what another training would change.",
            "Controls that the paper does not show: MRI alone is the same network on the T1, age and sex alone a "
            "logistic regression, mean template the training people's mean PET, the same for everyone. regression is "
            "the network of ResDM in one pass of plain L2, linear a linear model of MRI, age and sex, demographics one "
            "of age and sex alone. Always the more frequent class: of the training people; its score is their share "
            "of positives."
            + (
                " Ceiling: the best estimate from what MRI and prompt can show, and its own probability of status."
                if "ceiling" in sources
                else ""
            ),
            "The classifiers on held-out training people: sessions that a fold's classifier is fitted on, and those "
            "held out, which set its threshold.",
            "Paper: printed values, on another cohort; what its folds are is not stated there.",
        ),
    )


def _values(frame: pd.DataFrame, sources: Sequence[str], tracer: str, metric: str) -> pd.DataFrame:
    """One row a source, in their order."""
    return frame[(frame["tracer"] == tracer) & (frame["metric"] == metric)].set_index("source").reindex(sources)


def _with_interval(values: pd.DataFrame, decimals: int, columns: Sequence[str] = ("mean", "ci_low", "ci_high")) -> list:
    return [
        "–" if math.isnan(value) else f"{number(value, decimals)} [{number(low, decimals)}, {number(high, decimals)}]"
        for value, low, high in values[list(columns)].itertuples(index=False)
    ]


def _with_spread(values: pd.DataFrame, mean: str = "mean", std: str = "std") -> list[str]:
    return [
        "–" if math.isnan(value) else f"{number(value, 2)} ± {number(spread, 2)}"
        for value, spread in values[[mean, std]].itertuples(index=False)
    ]


def _fold_block(frame: pd.DataFrame, sources: Sequence[str], title: str) -> Block:
    columns, cells = [("", "Source")], [[SOURCE_NAMES.get(source, source) for source in sources]]
    best = set()
    for tracer, metric in product(present_tracers(frame), CLASSIFICATION):
        values = _values(frame, sources, tracer, metric)
        rivals = values["mean"].drop(["real", "ceiling", "posterior"], errors="ignore")
        best |= {(sources.index(s), len(columns)) for s in rivals.index[rivals > rivals.max() - 1e-9]}
        columns.append((STATUS_NAMES[tracer], f"{METRIC_NAMES[metric]} (%) ↑"))
        intervals = (f"[{number(v.ci_low, 1)}, {number(v.ci_high, 1)}]" for v in values.itertuples())
        cells.append([" ".join(pair) for pair in zip(_with_spread(values), intervals, strict=True)])
        if values["paper"].notna().any():
            columns.append((STATUS_NAMES[tracer], f"paper {METRIC_NAMES[metric]}"))
            cells.append(_with_spread(values, "paper", "paper_std"))
    return Block(f"{title}: mean over the folds", tuple(columns), tuple(zip(*cells, strict=True)), frozenset(best))


def _people_block(frame: pd.DataFrame, sources: Sequence[str], title: str) -> Block:
    columns, cells = [("", "Source")], [[SOURCE_NAMES.get(source, source) for source in sources]]
    for tracer in present_tracers(frame):
        area, adjusted, error = (_values(frame, sources, tracer, metric) for metric in MEAN_SCORE)
        people = ["–" if math.isnan(v.n) else f"{v.n:.0f} ({v.positive:.0f})" for v in area.itertuples()]
        group = {"people (positive)": people, "AUC (%) ↑": _with_interval(area, 1)}
        group["AUC at equal age and sex (%) ↑"] = _with_interval(adjusted, 1)
        for base, name in BASES.items():
            if base in sources:
                ends = [f"over_{base}{end}" for end in ("", "_low", "_high")]
                group[f"AUC minus {name}"] = _with_interval(area, 1, ends)
        group["Brier ↓"] = _with_interval(error, 3)
        columns += [(STATUS_NAMES[tracer], head) for head in group]
        cells += group.values()
    return Block(f"{title}: score averaged over the folds", tuple(columns), tuple(zip(*cells, strict=True)))


def _held_out_block(folds: pd.DataFrame, title: str) -> Block:
    sources = list(dict.fromkeys(folds["source"]))
    columns = [("", "Trained on")]
    rows: list[list[Any]] = [[SOURCE_NAMES.get(source, source)] for source in sources]
    for tracer in present_tracers(folds):
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
    return Block(f"{title}: the classifiers on held-out training people", tuple(columns), tuple(map(tuple, rows)))


# ── ROC and calibration ───────────────────────────────────────────────────────────────────────────


@styled
def table4_roc(
    status: pd.DataFrame,
    frame: pd.DataFrame,
    *,
    calibrated: Sequence[str] = ("real", REFERENCE_METHOD, "mri"),
    notice: str = "",
) -> Figure:
    """ROC curves of all sources and the calibration of a few, by tracer; in phantoms of the planted status.

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
    Of the score averaged over the folds. Several trainings: the mean of their true positive rates at each false
    positive rate. Calibration: about equal numbers of people a bin, Wilson intervals.
    """
    target = frame["target"].iloc[0]
    status, frame = status[status["target"] == target], frame[frame["target"] == target]
    sources = [source for source in dict.fromkeys(frame["source"]) if source != "majority"]
    blocks = list(status_blocks(status, sources))
    bins = status_reliability(status, [source for source in calibrated if source in sources])
    look = _sources_look(sources)
    head, side = 0.72, 1.95
    pitch = max(2.62, (len(sources) + 3) * _LEGEND_STEP)
    page = Page.of(WIDTH, head + len(blocks) * pitch - 0.26)
    page.title(
        f"{TARGET_NAMES[target]} from PET: ROC curves and calibration", notice,
        "Classifiers trained on real PET; the score is averaged over the folds. Test people; intervals are 95 %.",
    )  # fmt: skip
    for i, (_, tracer, parts) in enumerate(blocks):
        top = head + i * pitch
        left = page.axes(0.50, top, side, side)
        left.plot([0, 1], [0, 1], color=GREY, linewidth=0.6, dashes=(3, 2))
        for source, repeats in reversed(parts.items()):  # the first row of the table on top
            colour, line, width = look[source]
            curves = [
                roc_curve(p["label"], p["score"], sample_weight=person_weights(p["person"]), drop_intermediate=False)[
                    :2
                ]
                for p in repeats
            ]
            false = curves[0][0] if len(curves) == 1 else np.linspace(0, 1, 201)
            true = curves[0][1] if len(curves) == 1 else np.mean([np.interp(false, *curve) for curve in curves], axis=0)
            left.plot(false, true, color=colour, linestyle=line, linewidth=width)
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
    known = method_styles([source for source in sources if source not in _LINES])
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


_LEGEND_STEP = 0.145  # inches


def _legend(page: Page, left: float, top: float, sources: Sequence[str], rows: pd.DataFrame, look: dict) -> None:
    small, step = {"fontsize": 6}, _LEGEND_STEP
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
