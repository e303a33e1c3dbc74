"""Results at a glance: the few answers at the head of the report, from the stored tables of this run.

A table that is missing, damaged or not of this run gives no answer.
"""

import contextlib
import math
from typing import Any, NamedTuple

import pandas as pd

from resdm.settings import TRACERS
from resdm_suite.evaluation.statistics import ends_of
from resdm_suite.profiles import Config
from resdm_suite.reporting.claims import CONTRADICTED, FAILED, HELD
from resdm_suite.reporting.provenance import read_result
from resdm_suite.reporting.tables import PAPER_METHODS, REFERENCE_METHOD, TRACER_NAMES, p_value, with_interval

BEST = "the best other published method"
COMPARED = {
    "the linear model of MRI, age and sex": "linear",
    "the mean PET of the training people": "template",
    BEST: "",
    "the MRI itself, without any PET": "mri",
}
"""Name → method, or the source of Table 4."""

UNUSABLE = (LookupError, ValueError, TypeError)
"""Errors of a table that is missing, damaged or not of this run."""

NOTE = (
    "ResDM minus the other over test people, with the 95 % interval; n = {n}. Image quality: PSNR inside the brain; "
    "1 dB more is a fifth less squared error. Status{target}: AUC, the chance that a positive person scores higher "
    "than a negative one; 50 % is guessing. p: two-sided Wilcoxon signed-rank test over people, Holm-corrected. No "
    "difference is shown where the interval covers zero or p ≥ 0.05."
)


class Cell(NamedTuple):
    """A verdict (``better``, ``worse``, ``no difference shown`` or empty) and its numbers."""

    verdict: str
    text: str


class Answer(NamedTuple):
    """A question, its answer, and the part of the report to read on in."""

    question: str
    text: str
    anchor: str = ""
    link: str = ""


def comparisons(config: Config) -> dict[str, Any]:
    """ResDM against linear model, template, best rival and MRI: ``columns``, ``rows`` (name, cells) and ``note``.

    ``rows`` is empty where neither Table 2 nor Table 4 is of this run.
    """
    of_quality, of_status = ("difference", "dB", "dB"), (f"over_{REFERENCE_METHOD}", "%", "points")
    quality, status, planted = {}, {}, False
    with contextlib.suppress(*UNUSABLE):
        frame = read_result(config, "table2")
        frame = frame[(frame["region"] == "brain") & (frame["metric"] == "psnr")]
        quality = _by_tracer(frame, "method", of_quality[0])
    with contextlib.suppress(*UNUSABLE):
        frame = read_result(config, "table4")
        frame = frame[frame["metric"] == "auc_mean_score"]
        planted = "planted" in set(frame["target"])
        status = _by_tracer(frame[frame["target"] == ("planted" if planted else "label")], "source", of_status[0])
    columns = {f"image quality, {TRACER_NAMES[t]}": (quality[t], *of_quality) for t in TRACERS if t in quality}
    columns |= {f"status, {TRACER_NAMES[t]}": (status[t], *of_status) for t in TRACERS if t in status}
    rows = [("ResDM itself", [_own(part, unit) for part, _, unit, _ in columns.values()])] if columns else []
    for name, method in COMPARED.items():
        cells = [_cell(part, name_of, unit, method) for part, name_of, _, unit in columns.values()]
        rows += [(name, cells)] * any(cell.text for cell in cells)
    counts = sorted({int(part["n"].max()) for part in (*quality.values(), *status.values())})
    note = NOTE.format(n="–".join(map(str, dict.fromkeys(counts[:1] + counts[-1:]))), target=" (planted)" * planted)
    return {"columns": list(columns), "rows": rows, "note": note}


def _by_tracer(frame: pd.DataFrame, subject: str, name_of: str) -> dict[str, pd.DataFrame]:
    """Rows of each tracer by subject; an error of `UNUSABLE` for a row that occurs twice, or what is no number."""
    numbers = ("mean", "ci_low", "ci_high", *ends_of(name_of))
    frame = frame.astype(dict.fromkeys(numbers, float) | {"n": int}).set_index(["tracer", subject])
    if not frame.index.is_unique:
        raise LookupError("a row occurs twice")
    return {tracer: part.droplevel("tracer") for tracer, part in frame.groupby("tracer")}


def _own(part: pd.DataFrame, unit: str) -> Cell:
    if REFERENCE_METHOD not in part.index:
        return Cell("", "")
    row = part.loc[REFERENCE_METHOD]
    return Cell("", f"{with_interval(row['mean'], row['ci_low'], row['ci_high'], 1)} {unit}")


def _cell(part: pd.DataFrame, name_of: str, unit: str, method: str) -> Cell:
    """ResDM minus a method, from its columns ``name_of``; minus the paper's best other one if ``method`` is empty."""
    rivals = part.loc[part.index.intersection([name for name in PAPER_METHODS if name != REFERENCE_METHOD]), "mean"]
    rivals = rivals.dropna()  # an AUC is not defined where all test people have one status
    name = method or (rivals.idxmax() if len(rivals) else "")
    if name not in part.index or REFERENCE_METHOD not in part.index:
        return Cell("", "")
    names = (*ends_of(name_of), "p")  # of status there is no p
    difference, low, high, p = (part.loc[name].get(column, math.nan) for column in names)
    if math.isnan(difference):
        return Cell("", "")
    verdict = "better" if high < 0 else "worse" if low > 0 else ""
    verdict = verdict if verdict and not p >= 0.05 else "no difference shown"
    text = ", ".join(filter(None, [f"{with_interval(-difference, -high, -low, 1)} {unit}", p_value(p)]))
    return Cell(verdict, text if method else f"{text} ({name})")


def answers(config: Config) -> list[Answer]:
    """Answers from figures 4 and 5, the ledger of claims and notebook 21; without a table of this run, none."""
    found = []
    for make in (_sex, _age, _claims, _refusals, _statuses, _membership):
        with contextlib.suppress(*UNUSABLE):
            found.append(make(config))
    return found


def _effect(frame: pd.DataFrame, name: str, unit: str, decimals: int) -> tuple[dict[str, bool], str]:
    """Whether an effect's interval lies above zero, by tracer, and the effects as text."""
    rows = frame[frame["name"] == name].set_index("tracer")
    texts = [f"{with_interval(*row[['estimate', 'low', 'high']], decimals)} {unit} ({TRACER_NAMES[tracer]})"
             for tracer, row in rows.iterrows()]  # fmt: skip
    return (rows["low"] > 0).to_dict(), " and ".join(texts)


def _yes(above: dict[str, bool]) -> str:
    names = [TRACER_NAMES[tracer] for tracer, shown in above.items() if shown]
    return "No effect shown." if not names else "Yes." if len(names) == len(above) else f"In {names[0]} only."


def _sex(config: Config) -> Answer:
    above, costs = _effect(read_result(config, "figure4_effects"), "psnr_right_wrong", "dB", 1)
    text = f"{_yes(above)} With the wrong sex the image fits the person's own real PET worse, by {costs}."
    return Answer("Does the sex in the prompt change the image as it should?", text, "07_figure4_gender", "Figure 4")


def _age(config: Config) -> Answer:
    frame = read_result(config, "figure5_effects")
    above, costs = _effect(frame, "psnr_own_shuffled", "dB", 1)
    _, slopes = _effect(frame, "slope_sweep", "years", 2)
    text = f"{_yes(above)} Another person's age costs {costs} of fit to the own real PET. "
    text += f"For each year in the prompt the image looks older by {slopes}." * bool(slopes)
    return Answer("Does the age in the prompt change the image as it should?", text, "08_figure5_age", "Figure 5")


def _claims(config: Config) -> Answer:
    frame = read_result(config, "claims")
    counts = frame.loc[~frame["kind"].isin(["setting", "control"]), "status"].value_counts()
    tested = [f"{counts.get(status, 0)} {status}" for status in (HELD, FAILED)]
    names = {CONTRADICTED: "in which the paper contradicts itself"}
    rest = [f"{n} {names.get(status, status)}" for status, n in counts.items() if status not in (HELD, FAILED)]
    text = f"Of those that this cohort can test, {' and '.join(tested)}. The others: {', '.join(rest) or 'none'}."
    return Answer("Which claims of the paper hold here?", text, "10_claims", "Every claim")


def _refusals(config: Config) -> Answer:
    frame = read_result(config, "input_check").set_index("fault")
    faulty = frame.drop("none")
    missed = ", ".join(faulty.index[faulty["share"] < 0.5]) or "none"
    ends = 100 * frame.loc["none", ["share", "low", "high"]].astype(float)
    text = (
        f"{len(faulty)} gross faults were planted. Mostly missed: {missed}. False alarms: {with_interval(*ends, 0)} %."
    )
    return Answer("Are unsuitable scans refused?", text, "21_trust", "Trust")


def _statuses(config: Config) -> Answer:
    frame = read_result(config, "intervals")
    shares = [
        f"{with_interval(*(100 * row[['share', 'low', 'high']].astype(float)), 0)} % ({TRACER_NAMES[row['tracer']]})"
        for _, row in frame[frame["measure"] == "undetermined"].iterrows()
    ]
    if not shares:
        raise LookupError("nobody has an interval")
    text = f"The interval leaves the status undetermined for {' and '.join(shares)} of test people."
    return Answer("Is one person's number enough for a status?", text, "21_trust", "Trust")


def _membership(config: Config) -> Answer:
    found = read_result(config, "memorisation").iloc[0]
    area = with_interval(found["auc"], found["auc_low"], found["auc_high"])
    text = f"Training people can be distinguished from others with an AUC of {area}; 0.5 is chance."
    return Answer("Does the model reveal its training people?", text, "21_trust", "Trust")
