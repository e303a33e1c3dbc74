"""Tables of notebook 21, in plain words: which scans are refused, what an interval states, what a model reveals."""

from typing import Any

import numpy as np
import pandas as pd

from resdm_suite.evaluation.intervals import LEVEL
from resdm_suite.evaluation.memorisation import LIMIT
from resdm_suite.preprocessing.input_check import FALSE_ALARMS, InputCheck
from resdm_suite.profiles import Config
from resdm_suite.reporting.tables import Table, interval_texts, notes, number, pivot, span, text_block, with_interval


def _percent(frame: pd.DataFrame) -> list[str]:
    return interval_texts(frame, ["share", "low", "high"], 0, 100)


def refusal_table(config: Config, method: str, check: InputCheck | None, refused: pd.DataFrame) -> Table:
    """Share of test people's T1s that the check of a method refuses.

    ``refused``: one row per fault, the first ``none``; share, low, high, n, auroc and worst (measure).
    """
    faulty = refused[refused["fault"] != "none"]
    sound = {"n": 0, "alarms": np.nan} if refused.empty else {"n": refused["n"][0], "alarms": refused["share"][0]}
    missed = faulty.loc[faulty["share"] < 0.5, "fault"].tolist()
    columns = {"Fault of the scan": refused["fault"], "refused (%)": _percent(refused)}
    columns |= {"AUROC": [number(area, 3) for area in refused["auroc"]], "measure that deviates most": refused["worst"]}
    lines = notes("input_check", method=method, check=check, rate=FALSE_ALARMS, missed=missed, **sound)
    return Table("input_check", "Which scans are refused", config.notice, refused, (text_block(columns),), lines)


def interval_table(config: Config, method: str, shares: pd.DataFrame) -> Table:
    """What the intervals of test people state. ``shares``: tracer, measure, share, low, high and n."""
    shown = shares.assign(text=_percent(shares))
    page = text_block({"Tracer": []})
    if len(shares):
        page = pivot(shown, "tracer", ["measure"], {"{} (%)": "text"}, head="Tracer")
    n = span(shares.loc[shares["measure"] == "inside", "n"]) if len(shares) else ""
    stated = "right" in set(shares.get("measure", ()))
    lines = notes("intervals", method=method, level=LEVEL, n=n, stated=stated)
    return Table("intervals", "What the interval of one person states", config.notice, shares, (page,), lines)


def audit_table(config: Config, method: str, found: dict[str, Any]) -> Table:
    """The audit of a method, see `evaluation.memorisation`; ``found`` is empty where there was none."""
    frame = pd.DataFrame([found] if found else []).drop(columns=["model", "profile"], errors="ignore")
    names = {"error": "mean error", "nearest": "distance to the nearest training PET", "own": "nearest: own real PET"}
    columns = {"Measure": [*names.values(), "AUC of membership"]}
    for group in ("training", "other") if found else ():
        columns[f"{group} people"] = [*(number(found[f"{name}_{group}"], 3) for name in names), ""]
    if found:
        columns["training people"][-1] = with_interval(found["auc"], found["auc_low"], found["auc_high"])
    lines = notes("memorisation", method=method, found=found, limit=LIMIT)
    title = "What the model reveals of its training people"
    return Table("memorisation", title, config.notice, frame, (text_block(columns),), lines)
