"""The rows of Table 4, their names, and its pages; notebook 06 computes the numbers."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from resdm_suite.evaluation.status import CLASSIFICATION
from resdm_suite.reporting.style import method_label
from resdm_suite.reporting.tables import (
    CONTROLS,
    TITLES,
    TRACER_NAMES,
    Block,
    is_best,
    number,
    p_value,
    pivot,
    span,
    text_block,
    with_interval,
    with_spread,
)

NAMES = {
    "amyloid": "Aβ status", "tau": "tau status", "auc_mean_score": "AUC (%) ↑",
    "auc_adjusted": "AUC at equal age and sex (%) ↑", "brier": "Brier ↓",
    "real": "Real PET", "template": "Mean template", "ceiling": "Ceiling", "posterior": "Ceiling's posterior",
    "mri": "MRI alone", "age_sex": "Age and sex alone", "majority": "Always the more frequent class",
    "all": "Everyone positive", "psnr": "PSNR, brain", "error": "summary error", "auc": "AUC of status",
}  # fmt: skip
"""Printed names of sources, tracers and metrics of Table 4."""

JOINT_NAMES = NAMES | {
    "majority": "Always the most frequent profile", "acc": "ACC (%) ↑", "balanced": "balanced ACC (%) ↑",
    "kappa": "κ ↑", "A": "A alone", "T": "T alone", "AT": "A/T, four profiles", "ATN": "A/T/N, eight profiles",
}  # fmt: skip
"""Printed names of sources, metrics and sets of markers in the table of joint profiles."""


TARGET_NAMES = {"planted": "Planted status", "label": "Cut-off label"}


def source_label(source: str) -> str:
    """A source's name as figures print it."""
    return NAMES.get(source, method_label(source))


def status_sources(read: Iterable[str], printed: Iterable[str]) -> list[str]:
    """Rows of Table 4 that were read: the paper's in its order, other methods, then the controls; trainings are one."""
    rows = list(dict.fromkeys(name.partition("@")[0] for name in read))
    controls = [*CONTROLS, "posterior", "mri", "age_sex", "majority"]
    others = [name for name in rows if name not in controls]
    return [name for name in dict.fromkeys([*printed, *others, *controls]) if name in rows]


def status_limits(frame: pd.DataFrame, folds: pd.DataFrame, cohort: str) -> dict[str, Any]:
    """What is not defined, for the notes of Table 4, and whether the status is a mere cut-off of regional uptake."""
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


STEPS = (("+L_high", "Base"), ("ResDM", "+prior"), ("+prior", "Base"), ("ResDM", "Base"),
         ("ResDM", "per_tracer"), ("+prior", "per_tracer"))  # fmt: skip
"""Variants of ResDM compared in the table of joint profiles: with and without the loss, the prior, the other tracer."""


def joint_pages(frame: pd.DataFrame) -> list[Block]:
    """The blocks of the table of A/T/(N) profiles, by target: jointly, each marker alone, variants.

    Parameters
    ----------
    frame : DataFrame
        `evaluation.atn.joint_summary`, accuracies in %, with the bases ``majority``, ``age_sex`` and those of `STEPS`.
    """
    digits = np.where(frame["metric"] == "kappa", 2, 1)
    shown = frame.assign(
        best=is_best(frame, ["target", "markers", "metric"], "source", ["real", "ceiling", "posterior"])
    )
    shown["interval"] = [
        with_interval(*values, places)
        for values, places in zip(frame[["mean", "ci_low", "ci_high"]].to_numpy(), digits, strict=True)
    ]
    for base, metric, factor in (("majority", "acc", 1), ("age_sex", "acc", 1), ("nri", "balanced", 0.02)):
        column = "over_age_sex" if base == "nri" else f"over_{base}"
        values = factor * frame[[column, f"{column}_low", f"{column}_high"]].to_numpy(float)
        texts = pd.Series([with_interval(*one, 2 if base == "nri" else 1) for one in values], frame.index)
        shown[base] = texts.where(frame["metric"] == metric, "–")
    blocks, head = [], {"head": "Source", "names": JOINT_NAMES, "best": "best"}
    for target, part in shown.groupby("target", sort=False):
        cells = {
            "{}": "interval",
            "ACC − most frequent": "majority",
            "net reclassified against age and sex (%)": "age_sex",
        }
        for markers in ("AT", "ATN"):
            title = f"{TARGET_NAMES[target]}: {JOINT_NAMES[markers]}"
            blocks.append(pivot(part[part["markers"] == markers], "source", ["metric"], cells, title=title, **head))
        alone = part[part["markers"].isin(["A", "T"])]
        cells = {"{}": "interval", "NRI over age and sex": "nri"}
        title = f"{TARGET_NAMES[target]}: each marker alone, on the same people"
        blocks.append(pivot(alone, "source", ["markers", "metric"], cells, title=title, **head))
        by_step = []
        for better, base in STEPS:
            rows = part[(part["source"] == better) & (part["metric"] == "kappa") & part[f"over_{base}"].notna()]
            ends = rows[[f"over_{base}{end}" for end in ("", "_low", "_high")]].to_numpy(float)
            step = f"{better} − {TITLES.get(base, base)}"
            by_step.append(rows.assign(step=step, text=[with_interval(*one) for one in ends]))
        title = f"{TARGET_NAMES[target]}: what the parts of the method change in κ"
        steps = pd.concat(by_step)
        page = pivot(steps, "step", ["markers"], {"{}": "text"}, title=title, head="Variants", names=JOINT_NAMES)
        blocks += [page] * bool(len(steps))
    return blocks


SUBGROUP_UNITS = {"psnr": "dB", "error": "SUVR", "auc": "%"}
"""Quantities that are compared between subgroups, and their units."""


def subgroup_pages(frame: pd.DataFrame) -> list[Block]:
    """The blocks of ``subgroups.csv``, by quantity: the groups with their number of people, then the differences."""
    if frame.empty:
        return [text_block({"Group": ["no two groups with enough people"]})]
    blocks, head = [], {"names": TRACER_NAMES | {"mri": NAMES["mri"]}}
    for quantity, part in frame.groupby("quantity", sort=False):
        digits, title = (3 if quantity == "error" else 1), f"{NAMES[quantity]} ({SUBGROUP_UNITS[quantity]})"
        texts = [with_interval(*values, digits) for values in part[["value", "low", "high"]].to_numpy()]
        part = part.assign(row=part["axis"] + ": " + part["group"], text=texts)
        part["text"] += " (" + part["n"].astype(str) + ")"
        part["test"] = [
            f"{number(spread, digits)}, {p_value(p)}" for spread, p in part[["spread", "p_holm"]].to_numpy()
        ]
        blocks.append(pivot(part, "row", ["tracer", "source"], {"{}": "text"}, title=title, head="Group", **head))
        once = part.drop_duplicates(["axis", "tracer", "source"])
        title += ": largest difference between groups"
        blocks.append(pivot(once, "axis", ["tracer", "source"], {"{}": "test"}, title=title, head="Axis", **head))
    return blocks
