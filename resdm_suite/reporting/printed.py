"""Claims printed in the paper: the cells of its tables, the numbers and comparisons of its text.

Both are stored in ``data_manifests/paper/``. Contradictions within the paper are computed from these numbers.
"""

from itertools import pairwise
from pathlib import Path

import pandas as pd

from resdm_suite.evaluation.image_quality import LOWER_IS_BETTER
from resdm_suite.reporting.tables import VARIANTS, demographic, paper_file, printed_means, read_paper, with_spread

NUMBERS = ("value", "gain", "count", "setting")
"""Kinds of `read_claims` that print one number."""

SECTIONS = (
    "Abstract", "1", "3.1", "3.2", "4.1", "Table 1", "4.2", "Table 2", "4.3", "Table 3", "5.1", "5.2", "Table 4", "6",
)  # fmt: skip
"""In the paper's order. A repeated claim is listed where it first appears."""

_OURS = {printed: name for name, printed in VARIANTS.items()}  # rows of the printed Table 3 → rows of ours

OUTPUTS = ("table1", "table2", "table3", "table4", "figure4", "figure5", "atn")
"""Values of a claim's ``output`` that are files of ``figures/<profile>/``. Of ``atn`` the paper prints no result, and
the sets of markers stand in the place of tracers."""

Pair = tuple[str, str, str, str]
"""Better, worse, tracer and metric of a comparison."""

Printed = dict[tuple[str, str, str, str], tuple[float, float]]
"""Output, subject, tracer and metric → printed mean and standard deviation."""

GAIN_TOLERANCE = 0.015
"""A difference of two means printed with two decimals is known to ± 0.01, and is itself rounded by up to 0.005."""

NAMES = {"amyloid": "Aβ", "tau": "tau", "mae": "MAE", "psnr": "PSNR", "ssim": "SSIM", "acc": "ACC", "auc": "AUC"}
NAMES |= {"f1": "F1", "r": "r", "balanced": "balanced ACC", "AT": "A/T", "ATN": "A/T/N"}
"""How tracers, sets of markers and metrics are printed."""


def read_claims(root: str | Path | None = None) -> pd.DataFrame:
    """The rows of ``data_manifests/paper/claims.csv``, all text; ``root``: see `tables.paper_file`."""
    return pd.read_csv(paper_file("claims.csv", root), dtype=str, keep_default_na=False)


def printed_claims(root: str | Path | None = None) -> pd.DataFrame:
    """Every claim: one row per cell of Tables 1–4, and `read_claims`, in the order of `SECTIONS`."""
    rows = [row for number in (1, 2, 3, 4) for row in _cells(number, read_paper(number, root))]
    frame = pd.concat([pd.DataFrame(rows), read_claims(root)], ignore_index=True).fillna("")
    order = frame["section"].map(SECTIONS.index)
    return frame.loc[order.sort_values(kind="stable").index].reset_index(drop=True)


def _cells(table: int, frame: pd.DataFrame) -> list[dict[str, str]]:
    place = {"section": f"Table {table}", "output": f"table{table}"}
    if table == 1:
        rows = []
        for (characteristic, diagnosis), part in frame.groupby(["characteristic", "diagnosis"], sort=False):
            values = part.set_index("statistic")["value"]
            name = "Sets (N)" if characteristic == "sets" else part["printed_as"].iloc[0]
            row = {"id": f"table1/{characteristic}/{diagnosis}", "kind": "characteristic", "subjects": diagnosis}
            row |= {"quantities": characteristic, "printed": demographic(values), "unit": part["unit"].iloc[0]}
            rows.append(row | {"statement": f"{name}, {diagnosis}"} | place)
        return rows
    subject, tracer = {2: ("method", "tracer"), 3: ("variant", "tracer"), 4: ("method", "status")}[table]
    return [
        {"id": f"table{table}/{row[subject]}/{row[tracer]}/{row['metric']}", "kind": "value"}
        | {"subjects": _OURS[row[subject]] if table == 3 else row[subject], "tracers": row[tracer]}
        | {"quantities": row["metric"], "printed": with_spread(row["mean"], row["std"]), "unit": row["unit"]}
        | {"statement": f"{row['printed_as']}, {NAMES[row[tracer]]} {NAMES[row['metric']]}"} | place
        for row in frame.to_dict("records")
    ]  # fmt: skip


def printed_values(root: str | Path | None = None) -> Printed:
    """Means and standard deviations of the printed Tables 2–4; subjects are named as in our files."""
    return {
        (f"table{table}", subject, tracer, metric): (mean, std)
        for table in (2, 3, 4)
        for subject, _, tracer, metric, mean, std in printed_means(table, root).itertuples(index=False)
    }


def pairs(row: dict[str, str]) -> list[Pair]:
    """All comparisons of a claim."""
    subjects = row["subjects"].split()
    steps = pairwise(subjects) if row["kind"] == "chain" else [(subjects[0], other) for other in subjects[1:]]
    steps = list(steps)
    return [(*step, t, m) for t in row["tracers"].split() for m in row["quantities"].split() for step in steps]


def sign(metric: str) -> int:
    """1 if higher is better, else −1."""
    return -1 if metric in LOWER_IS_BETTER else 1


def printed_gain(values: Printed, output: str, pair: Pair) -> float:
    """Gain of the first of a pair over the second in the printed table; positive is better."""
    first, second = (values[output, subject, *pair[2:]][0] for subject in pair[:2])
    return round(sign(pair[3]) * (first - second), 2)


# ── contradictions within the paper ──────────────────────────────────────────────────────────────


def contradictions(printed: pd.DataFrame, root: str | Path | None = None) -> dict[str, str]:
    """Claims (id → reason) that the paper's own numbers contradict; ``printed``: see `printed_claims`."""
    values = printed_values(root)
    reasons = {}
    for row in printed.to_dict("records"):
        if row["kind"] == "gain":
            reasons[row["id"]] = _other_gain(row, values)
        elif row["kind"] in ("best", "chain") and row["output"].startswith("table"):
            reasons[row["id"]] = _not_borne_out(row, values)
    reasons |= _printed_twice(printed) | _sets(printed, read_paper(1, root))
    return {name: why for name, why in reasons.items() if why}


def _other_gain(row: dict[str, str], values: Printed) -> str:
    """A gain in the text that differs from its table by more than `GAIN_TOLERANCE`."""
    first, named = row["subjects"].split()
    tracer, metric, printed = row["tracers"], row["quantities"], round(float(row["printed"]), 2)
    others = [m for (output, m, t, k) in values if (output, t, k) == (row["output"], tracer, metric) and m != first]
    gains = {other: printed_gain(values, row["output"], (first, other, tracer, metric)) for other in others}
    if abs(gains[named] - printed) <= GAIN_TOLERANCE:
        return ""
    matching = " and ".join(other for other, gain in gains.items() if gain == printed)
    rest = ", ".join(f"{gain:.2f} over {other}" for other, gain in gains.items() if other != named)
    reason = f"{printed:.2f} is the gain over {matching}" if matching else f"nor is it {rest}"
    return f"{printed:.2f} is printed as the gain over {named}, where Table 2 has {gains[named]:.2f}; {reason}"


def _not_borne_out(row: dict[str, str], values: Printed) -> str:
    for pair in pairs(row):
        if printed_gain(values, row["output"], pair) <= 0:
            better, worse, tracer, metric = pair
            return f"the printed {NAMES[tracer]} {NAMES[metric]} of {better} is not better than that of {worse}"
    return ""


def _printed_twice(printed: pd.DataFrame) -> dict[str, str]:
    """One quantity of one subject printed with several values."""
    reasons = {}
    cells = printed[printed["kind"] == "value"]
    for _, part in cells.groupby(["subjects", "tracers", "quantities"], sort=False):
        numbers = part["printed"].str.split(" ± ").str[0]
        if len(set(numbers.astype(float))) > 1:
            places = [section if section.startswith("Table") else f"section {section}" for section in part["section"]]
            text = ", ".join(f"{value} in {place}" for value, place in zip(numbers, places, strict=True))
            reasons |= dict.fromkeys(part["id"], f"one quantity, printed as {text}")
    return reasons


def _sets(printed: pd.DataFrame, table: pd.DataFrame) -> dict[str, str]:
    """The number of sets in the text against training + test, and the sums of Table 1's columns and sex rows."""
    counts = printed[printed["kind"] == "count"].set_index("quantities")
    total, training, test = counts.loc[["sets", "training_sets", "test_sets"], "printed"].astype(int)
    columns = table.loc[table["characteristic"] == "sets", "value"].astype(int).tolist()
    people = int(table.loc[table["characteristic"] == "sex", "value"].sum())
    if {training + test, sum(columns), people} == {total}:
        return {}
    reason = f"the text has {total} sets, {training} + {test} = {training + test}; Table 1's columns sum to "
    reason += f"{' + '.join(map(str, columns))} = {sum(columns)}, its sex rows to {people}"
    return {counts.loc["sets", "id"]: reason}
