"""The rows of Table 4, their names, and its pages; notebook 06 computes the numbers."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from resdm_suite.evaluation.status import CLASSIFICATION
from resdm_suite.reporting.tables import CONTROLS, Block, is_best, pivot, span, with_interval, with_spread

NAMES = {
    "amyloid": "Aβ status", "tau": "tau status", "auc_mean_score": "AUC (%) ↑",
    "auc_adjusted": "AUC at equal age and sex (%) ↑", "brier": "Brier ↓",
    "real": "Real PET", "template": "Mean template", "ceiling": "Ceiling", "posterior": "Ceiling's posterior",
    "mri": "MRI alone", "age_sex": "Age and sex alone", "majority": "Always the more frequent class",
}  # fmt: skip
"""Printed names of sources, tracers and metrics of Table 4."""

TARGET_NAMES = {"planted": "Planted status", "label": "Cut-off label"}


def status_sources(read: Iterable[str], printed: Iterable[str]) -> list[str]:
    """Rows of Table 4 that were read: the paper's in its order, other methods, then the controls; trainings are one."""
    rows = list(dict.fromkeys(name.partition("@")[0] for name in read))
    controls = [*CONTROLS, "posterior", "mri", "age_sex", "majority"]
    others = [name for name in rows if name not in controls]
    return [name for name in dict.fromkeys([*printed, *others, *controls]) if name in rows]


def status_limits(frame: pd.DataFrame, folds: pd.DataFrame, cohort: str) -> dict[str, Any]:
    """What the notes of Table 4 say is not defined, and whether the status is a mere cut-off of regional uptake."""
    names = folds[folds["held_out_auc"].isna()].replace({"target": TARGET_NAMES, "tracer": NAMES})
    one_class = frame.loc[frame["metric"] == "auc", "mean"].hasnans
    return {"undefined": names[["target", "tracer"]].to_numpy(), "one_class": one_class, "uptake": cohort == "dlbs"}


def status_pages(frame: pd.DataFrame, folds: pd.DataFrame, bases: Sequence[str]) -> list[Block]:
    """The blocks of Table 4, by target: averaged score, folds, printed values; then the classifiers.

    Parameters
    ----------
    frame : DataFrame
        `evaluation.status.status_summary` in %, with paper and paper_std.
    folds : DataFrame
        Rows of ``status_folds.csv``.
    bases : sequence of str
        Sources whose AUC is subtracted.
    """
    no_competitors = ["real", "ceiling", "posterior"]
    shown = frame.assign(best=is_best(frame, ["target", "tracer", "metric"], "source", no_competitors))
    digits = np.where(frame["metric"] == "brier", 3, 1)
    ends = frame[["mean", "ci_low", "ci_high"]].to_numpy()
    shown["interval"] = [with_interval(*values, places) for values, places in zip(ends, digits, strict=True)]
    shown["spread"] = [with_spread(*values) for values in frame[["mean", "std"]].to_numpy()]
    shown["printed"] = [with_spread(*values) for values in frame[["paper", "paper_std"]].to_numpy()]
    for base in bases:
        values = frame[[f"over_{base}{end}" for end in ("", "_low", "_high")]].to_numpy()
        texts = pd.Series([with_interval(*one, 1) for one in values], frame.index)
        shown[base] = texts.where(frame["metric"] == "auc_mean_score", "–")
    cells = {"{}": "interval"} | {f"AUC − {NAMES.get(base, base)}": base for base in bases}
    blocks, head, both = [], {"head": "Source", "names": NAMES}, ["tracer", "metric"]
    for target, part in shown.groupby("target", sort=False):
        by_fold = part[part["metric"].isin(CLASSIFICATION)]
        for tracer, rows in part[~part["metric"].isin(CLASSIFICATION)].groupby("tracer", sort=False):
            title = f"{TARGET_NAMES[target]}: score averaged over the folds, {NAMES[tracer]}"
            blocks.append(pivot(rows, "source", ["metric"], cells, title=title, best="best", **head))
        title = f"{TARGET_NAMES[target]}: mean over the folds"
        blocks.append(pivot(by_fold, "source", both, {"{}": "spread"}, title=title, best="best", **head))
        printed = by_fold[by_fold["paper"].notna()]
        page = pivot(printed, "source", both, {"{}": "printed"}, title="Printed in the paper", **head)
        blocks += [page] * bool(len(printed))
    keys = ["target", "source", "tracer"]
    trained = folds.assign(area=100 * folds["held_out_auc"], unit="").groupby([*keys, "unit"], sort=False)
    trained = trained.agg(sessions=("n_train", span), held_out=("n_held_out", span), mean=("area", "mean"),
                          std=("area", "std")).reset_index()  # fmt: skip
    trained["text"] = [with_spread(*values) for values in trained[["mean", "std"]].to_numpy()]
    trained["row"] = trained["target"].map(TARGET_NAMES) + ": " + trained["source"].replace(NAMES)
    cells = {"sessions": "sessions", "held out": "held_out", "AUC (%) ↑": "text"}
    title = "The classifiers on held-out training people"
    head = {"head": "Trained on", "names": NAMES}
    return [*blocks, pivot(trained, "row", ["tracer", "unit"], cells, title=title, **head)]
