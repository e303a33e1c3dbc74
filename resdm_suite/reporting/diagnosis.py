"""The rows of Table 4, their names, and its pages; notebook 06 computes the numbers."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from resdm_suite.evaluation.statistics import ends_of
from resdm_suite.evaluation.status import CLASSIFICATION
from resdm_suite.reporting import tables
from resdm_suite.reporting.style import method_label

NAMES = tables.SOURCE_NAMES | {
    "amyloid": "Aβ status", "tau": "tau status", "auc_mean_score": "AUC (%) ↑",
    "auc_adjusted": "AUC at equal age and sex (%) ↑", "brier": "Brier ↓",
}  # fmt: skip
"""Printed names of sources, tracers and metrics of Table 4."""

JOINT_NAMES = NAMES | tables.PROFILE_SOURCE_NAMES | {
    "acc": "ACC (%) ↑", "balanced": "balanced ACC (%) ↑",
    "kappa": "κ ↑", "A": "A alone", "T": "T alone", "AT": "A/T, four profiles", "ATN": "A/T/N, eight profiles",
}  # fmt: skip
"""Printed names of sources, metrics and sets of markers in the table of joint profiles."""

TARGET_NAMES = {"planted": "Planted status", "label": "Cut-off label"}

_MEAN = ("mean", "ci_low", "ci_high")
_NO_COMPETITORS = ("real", "ceiling", "posterior")  # sources that are never the best


def source_label(source: str) -> str:
    """A source's name as figures print it."""
    return NAMES.get(source, method_label(source))


def status_sources(read: Iterable[str], printed: Iterable[str]) -> list[str]:
    """Rows of Table 4 that were read: the paper's in its order, other methods, then the controls; trainings are one."""
    rows = list(dict.fromkeys(name.partition("@")[0] for name in read))
    controls = [*tables.CONTROLS, "posterior", "mri", "age_sex", "majority"]
    others = [name for name in rows if name not in controls]
    return [name for name in dict.fromkeys([*printed, *others, *controls]) if name in rows]


def status_limits(frame: pd.DataFrame, folds: pd.DataFrame, cohort: str) -> dict[str, Any]:
    """What is not defined, for the notes of Table 4, and whether the status is a mere cut-off of regional uptake."""
    names = folds[folds["held_out_auc"].isna()].replace({"target": TARGET_NAMES, "tracer": NAMES})
    one_class = frame.loc[frame["metric"] == "auc", "mean"].hasnans
    return {"undefined": names[["target", "tracer"]].to_numpy(), "one_class": one_class, "uptake": cohort == "dlbs"}


def status_pages(frame: pd.DataFrame, folds: pd.DataFrame, bases: Sequence[str]) -> list[tables.Block]:
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
    shown = frame.assign(best=tables.is_best(frame, ["target", "tracer", "metric"], "source", _NO_COMPETITORS))
    shown["interval"] = tables.interval_texts(frame, _MEAN, np.where(frame["metric"] == "brier", 3, 1))
    shown["spread"], shown["printed"] = tables.spread_texts(frame), tables.spread_texts(frame, "paper", "paper_std")
    for base in bases:
        texts = tables.interval_texts(frame, ends_of(f"over_{base}"), 1)
        shown[base] = np.where(frame["metric"] == "auc_mean_score", texts, "–")
    cells = {"{}": "interval"} | {f"AUC − {NAMES.get(base, base)}": base for base in bases}
    blocks, head, both = [], {"head": "Source", "names": NAMES}, ["tracer", "metric"]
    for target, part in shown.groupby("target", sort=False):
        by_fold = part[part["metric"].isin(CLASSIFICATION)]
        for tracer, rows in part[~part["metric"].isin(CLASSIFICATION)].groupby("tracer", sort=False):
            title = f"{TARGET_NAMES[target]}: score averaged over the folds, {NAMES[tracer]}"
            blocks.append(tables.pivot(rows, "source", ["metric"], cells, title=title, best="best", **head))
        title = f"{TARGET_NAMES[target]}: mean over the folds"
        blocks.append(tables.pivot(by_fold, "source", both, {"{}": "spread"}, title=title, best="best", **head))
        printed = by_fold[by_fold["paper"].notna()]
        page = tables.pivot(printed, "source", both, {"{}": "printed"}, title="Printed in the paper", **head)
        blocks += [page] * bool(len(printed))
    keys = ["target", "source", "tracer"]
    trained = folds.assign(area=100 * folds["held_out_auc"], unit="").groupby([*keys, "unit"], sort=False)
    counts = {"sessions": ("n_train", tables.span), "held_out": ("n_held_out", tables.span)}
    trained = trained.agg(**counts, mean=("area", "mean"), std=("area", "std")).reset_index()
    trained["text"] = tables.spread_texts(trained)
    trained["row"] = trained["target"].map(TARGET_NAMES) + ": " + trained["source"].replace(NAMES)
    cells = {"sessions": "sessions", "held out": "held_out", "AUC (%) ↑": "text"}
    title = "The classifiers on held-out training people"
    head = {"head": "Trained on", "names": NAMES}
    return [*blocks, tables.pivot(trained, "row", ["tracer", "unit"], cells, title=title, **head)]


STEPS = (("+L_high", "Base"), ("ResDM", "+prior"), ("+prior", "Base"), ("ResDM", "Base"),
         ("ResDM", "per_tracer"), ("+prior", "per_tracer"))  # fmt: skip
"""Variants of ResDM compared in the table of joint profiles: with and without the loss, the prior, the other tracer."""


def joint_pages(frame: pd.DataFrame) -> list[tables.Block]:
    """The blocks of the table of A/T/(N) profiles, by target: jointly, each marker alone, variants.

    Parameters
    ----------
    frame : DataFrame
        `evaluation.atn.joint_summary`, accuracies in %, with the bases ``majority``, ``age_sex`` and those of `STEPS`.
    """
    shown = frame.assign(best=tables.is_best(frame, ["target", "markers", "metric"], "source", _NO_COMPETITORS))
    shown["interval"] = tables.interval_texts(frame, _MEAN, np.where(frame["metric"] == "kappa", 2, 1))
    gains = {"majority": ("majority", "acc", 1, 1), "age_sex": ("age_sex", "acc", 1, 1)}
    gains["nri"] = "age_sex", "balanced", 2, 0.02
    for name, (base, metric, decimals, scale) in gains.items():
        texts = tables.interval_texts(frame, ends_of(f"over_{base}"), decimals, scale)
        shown[name] = np.where(frame["metric"] == metric, texts, "–")
    blocks, head = [], {"head": "Source", "names": JOINT_NAMES, "best": "best"}
    for target, part in shown.groupby("target", sort=False):
        cells = {"{}": "interval", "ACC − most frequent": "majority"}
        cells |= {"net reclassified against age and sex (%)": "age_sex"}
        for markers in ("AT", "ATN"):
            rows, title = part[part["markers"] == markers], f"{TARGET_NAMES[target]}: {JOINT_NAMES[markers]}"
            blocks.append(tables.pivot(rows, "source", ["metric"], cells, title=title, **head))
        alone = part[part["markers"].isin(["A", "T"])]
        cells = {"{}": "interval", "NRI over age and sex": "nri"}
        title = f"{TARGET_NAMES[target]}: each marker alone, on the same people"
        blocks.append(tables.pivot(alone, "source", ["markers", "metric"], cells, title=title, **head))
        by_step = []
        for better, base in STEPS:
            rows = part[(part["source"] == better) & (part["metric"] == "kappa") & part[f"over_{base}"].notna()]
            step = f"{better} − {tables.TITLES.get(base, base)}"
            by_step.append(rows.assign(step=step, text=tables.interval_texts(rows, ends_of(f"over_{base}"))))
        title = f"{TARGET_NAMES[target]}: what the parts of the method change in κ"
        steps = pd.concat(by_step)
        page = tables.pivot(steps, "step", ["markers"], {"{}": "text"}, title=title, head="Variants", names=JOINT_NAMES)
        blocks += [page] * bool(len(steps))
    return blocks


SUBGROUP_UNITS = {"psnr": "dB", "error": "SUVR", "auc": "%"}
SUBGROUP_NAMES = {"psnr": "PSNR, brain", "error": "summary error", "auc": "AUC of status"}
"""Quantities that are compared between subgroups: units and printed names."""


def subgroup_pages(frame: pd.DataFrame) -> list[tables.Block]:
    """The blocks of ``subgroups.csv``, by quantity: the groups with their number of people, then the differences."""
    if frame.empty:
        return [tables.text_block({"Group": ["no two groups with enough people"]})]
    blocks, head = [], {"names": tables.TRACER_NAMES | {"mri": NAMES["mri"]}}
    for quantity, part in frame.groupby("quantity", sort=False):
        digits, title = (3 if quantity == "error" else 1), f"{SUBGROUP_NAMES[quantity]} ({SUBGROUP_UNITS[quantity]})"
        texts = tables.interval_texts(part, ["value", "low", "high"], digits)
        part = part.assign(row=part["axis"] + ": " + part["group"], text=texts)
        part["text"] += " (" + part["n"].astype(str) + ")"
        part["test"] = [
            f"{tables.number(spread, digits)}, {tables.p_value(p)}"
            for spread, p in part[["spread", "p_holm"]].to_numpy()
        ]
        blocks.append(
            tables.pivot(part, "row", ["tracer", "source"], {"{}": "text"}, title=title, head="Group", **head)
        )
        once = part.drop_duplicates(["axis", "tracer", "source"])
        title += ": largest difference between groups"
        blocks.append(
            tables.pivot(once, "axis", ["tracer", "source"], {"{}": "test"}, title=title, head="Axis", **head)
        )
    return blocks
