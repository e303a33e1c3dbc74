"""What the paper prints, as claims: the cells of its tables, the numbers and comparisons of its text.

Both come from ``data_manifests/paper/``. What the paper contradicts itself in is computed here, from these numbers.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pandas as pd

from resdm_suite.evaluation.image_quality import HIGHER_IS_BETTER
from resdm_suite.reporting.tables import VARIANTS, demographic, paper_file, read_paper, with_spread

KINDS = ("value", "characteristic", "gain", "count", "setting", "best", "chain", "close", "words")
"""``best``: the first subject beats each of the others; ``chain``: each beats the next; ``words``: nothing measured."""

SECTIONS = (
    "Abstract", "1", "3.1", "3.2", "4.1", "Table 1", "4.2", "Table 2", "4.3", "Table 3", "5.1", "5.2", "Table 4", "6",
)  # fmt: skip
"""In the paper's order. A claim that is made more than once stands where it is made first."""

_OURS = {printed: name for name, printed in VARIANTS.items()}  # rows of the printed Table 3 → rows of ours

OUTPUTS = ("table1", "table2", "table3", "table4", "figure4", "figure5")
"""What a claim's ``output`` may be, where ours is in a file of ``figures/<profile>/``."""

Pair = tuple[str, str, str, str]
"""Better, worse, tracer and metric of a comparison."""

Printed = dict[tuple[str, str, str, str], tuple[float, float]]
"""Output, subject, tracer and metric → printed mean and standard deviation."""

GAIN_TOLERANCE = 0.015
"""A difference of two means printed with two decimals is known to ± 0.01, and is itself rounded by up to 0.005."""

NAMES = {"amyloid": "Aβ", "tau": "tau", "mae": "MAE", "psnr": "PSNR", "ssim": "SSIM", "acc": "ACC", "auc": "AUC"}
NAMES |= {"f1": "F1", "r": "r"}
"""How tracers and metrics are printed."""


def read_claims(root: str | Path | None = None) -> pd.DataFrame:
    """The rows of ``data_manifests/paper/claims.csv``, all text.

    Parameters
    ----------
    root : path, optional
        Folder that holds ``data_manifests/`` (`Config.root`); without it, or where it has none, this checkout's.

    Raises
    ------
    ValueError
        Columns, kinds, sections or ids that are none: names the file and the row.
    """
    path = paper_file("claims.csv", root)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    expected = ["id", "section", "kind", "output", "subjects", "tracers", "quantities", "printed", "unit"]
    expected += ["statement", "note"]
    if list(frame) != expected:
        raise ValueError(f"{path}: columns {', '.join(frame)}; expected {', '.join(expected)}")
    for line, row in enumerate(frame.to_dict("records"), start=2):
        for column, allowed in (("kind", KINDS), ("section", SECTIONS)):
            if row[column] not in allowed:
                raise ValueError(f"{path}, line {line}: {column} {row[column]!r}; expected {', '.join(allowed)}")
        if row["kind"] in ("value", "gain", "count", "setting"):
            try:
                float(row["printed"])
            except ValueError:
                raise ValueError(f"{path}, line {line}: printed {row['printed']!r} is no number") from None
        if row["kind"] in ("value", "gain", "best", "chain", "close") and row["output"] not in OUTPUTS:
            raise ValueError(f"{path}, line {line}: output {row['output']!r}; expected {', '.join(OUTPUTS)}")
    if frame["id"].duplicated().any():
        raise ValueError(f"{path}: id {frame.loc[frame['id'].duplicated(), 'id'].iloc[0]!r} stands twice")
    return frame


def printed_claims(root: str | Path | None = None) -> pd.DataFrame:
    """Every claim: the cells of Tables 1–4, a row each, and `read_claims`, in the order of `SECTIONS`.

    Columns as in ``claims.csv``. A cell of Tables 2–4 is ``mean ± std``; one of Table 1 as printed.
    """
    rows = [row for number in (1, 2, 3, 4) for row in _cells(number, read_paper(number, root))]
    frame = pd.concat([pd.DataFrame(rows), read_claims(root)], ignore_index=True).fillna("")
    order = frame["section"].map(SECTIONS.index)
    return frame.loc[order.sort_values(kind="stable").index].reset_index(drop=True)


def _cells(table: int, frame: pd.DataFrame) -> list[dict[str, str]]:
    at = {"section": f"Table {table}", "output": f"table{table}"}
    if table == 1:
        rows = []
        for (characteristic, diagnosis), part in frame.groupby(["characteristic", "diagnosis"], sort=False):
            values = part.set_index("statistic")["value"]
            name = "Sets (N)" if characteristic == "sets" else part["printed_as"].iloc[0]
            rows.append(
                {"id": f"table1/{characteristic}/{diagnosis}", "kind": "characteristic", "subjects": diagnosis}
                | {"quantities": characteristic, "printed": demographic(values), "unit": part["unit"].iloc[0]}
                | {"statement": f"{name}, {diagnosis}"} | at
            )  # fmt: skip
        return rows
    subject, tracer = {2: ("method", "tracer"), 3: ("variant", "tracer"), 4: ("method", "status")}[table]
    return [
        {"id": f"table{table}/{row[subject]}/{row[tracer]}/{row['metric']}", "kind": "value"}
        | {"subjects": _OURS[row[subject]] if table == 3 else row[subject], "tracers": row[tracer]}
        | {"quantities": row["metric"], "printed": with_spread(row["mean"], row["std"]), "unit": row["unit"]}
        | {"statement": f"{row['printed_as']}, {NAMES[row[tracer]]} {NAMES[row['metric']]}"} | at
        for row in frame.to_dict("records")
    ]  # fmt: skip


def printed_values(root: str | Path | None = None) -> Printed:
    """Means and standard deviations of the printed Tables 2–4; subjects are named as in our files."""
    values = {}
    for table, subject, tracer in ((2, "method", "tracer"), (3, "variant", "tracer"), (4, "method", "status")):
        for row in read_paper(table, root).to_dict("records"):
            name = _OURS[row[subject]] if table == 3 else row[subject]
            values[f"table{table}", name, row[tracer], row["metric"]] = row["mean"], row["std"]
    return values


def pairs(row: dict[str, str]) -> list[Pair]:
    """Every comparison that a claim makes."""
    subjects = row["subjects"].split()
    steps = pairwise(subjects) if row["kind"] == "chain" else [(subjects[0], other) for other in subjects[1:]]
    steps = list(steps)
    return [(*step, t, m) for t in row["tracers"].split() for m in row["quantities"].split() for step in steps]


def sign(metric: str) -> int:
    """1 where more is better, −1 where less is."""
    return 1 if HIGHER_IS_BETTER.get(metric, True) else -1


def printed_gain(values: Printed, output: str, pair: Pair) -> float:
    """How much better the first of a pair is than the second, in the printed table."""
    first, second = (values[output, subject, *pair[2:]][0] for subject in pair[:2])
    return round(sign(pair[3]) * (first - second), 2)


# ── what the paper contradicts itself in ──────────────────────────────────────────────────────────


def contradictions(printed: pd.DataFrame, root: str | Path | None = None) -> dict[str, str]:
    """Claims that the paper's own printed numbers speak against, each with the numbers that do.

    Parameters
    ----------
    printed : DataFrame
        See `printed_claims`.
    root : path, optional

    Returns
    -------
    dict of str
        id → why. Nothing is known beforehand: each sum and each difference is taken from the printed numbers.
    """
    values = printed_values(root)
    found = {}
    for row in printed.to_dict("records"):
        if row["kind"] == "gain":
            found[row["id"]] = _other_gain(row, values)
        elif row["kind"] in ("best", "chain") and row["output"].startswith("table"):
            found[row["id"]] = _not_borne_out(row, values)
    found |= _printed_twice(printed) | _sets(printed, read_paper(1, root))
    return {name: why for name, why in found.items() if why}


def _other_gain(row: dict[str, str], values: Printed) -> str:
    """A gain in the text against the differences of its table, over the named method and over all others.

    Within `GAIN_TOLERANCE` the two are one number, rounded twice.
    """
    first, named = row["subjects"].split()
    tracer, metric, said = row["tracers"], row["quantities"], round(float(row["printed"]), 2)
    others = [m for (output, m, t, k) in values if (output, t, k) == (row["output"], tracer, metric) and m != first]
    gains = {other: printed_gain(values, row["output"], (first, other, tracer, metric)) for other in others}
    if abs(gains[named] - said) <= GAIN_TOLERANCE:
        return ""
    matching = " and ".join(other for other, gain in gains.items() if gain == said)
    rest = ", ".join(f"{gain:.2f} over {other}" for other, gain in gains.items() if other != named)
    return (
        f"{said:.2f} is printed as the gain over {named}, where Table 2 has {gains[named]:.2f}; "
        + (f"{said:.2f} is the gain over {matching}" if matching else f"nor is it {rest}")
    )  # fmt: skip


def _not_borne_out(row: dict[str, str], values: Printed) -> str:
    for pair in pairs(row):
        if printed_gain(values, row["output"], pair) <= 0:
            better, worse, tracer, metric = pair
            return f"the printed {NAMES[tracer]} {NAMES[metric]} of {better} is not better than that of {worse}"
    return ""


def _printed_twice(printed: pd.DataFrame) -> dict[str, str]:
    """One quantity of one subject with several values, wherever it is printed."""
    found = {}
    cells = printed[printed["kind"] == "value"]
    for _, part in cells.groupby(["subjects", "tracers", "quantities"], sort=False):
        numbers = part["printed"].str.split(" ± ").str[0]
        if len(set(numbers.astype(float))) > 1:
            places = [section if section.startswith("Table") else f"section {section}" for section in part["section"]]
            text = ", ".join(f"{value} in {place}" for value, place in zip(numbers, places, strict=True))
            found |= dict.fromkeys(part["id"], f"one quantity, printed as {text}")
    return found


def _sets(printed: pd.DataFrame, table: pd.DataFrame) -> dict[str, str]:
    """The number of sets: said, as training + test, and as the sums of Table 1's columns and of its sex rows."""
    said = printed[printed["kind"] == "count"].set_index("quantities")
    total, training, test = said.loc[["sets", "training_sets", "test_sets"], "printed"].astype(int)
    columns = table.loc[table["characteristic"] == "sets", "value"].astype(int).tolist()
    people = int(table.loc[table["characteristic"] == "sex", "value"].sum())
    if {training + test, sum(columns), people} == {total}:
        return {}
    return {
        said.loc["sets", "id"]: f"the text has {total} sets, {training} + {test} = {training + test}; Table 1's "
        f"columns sum to {' + '.join(map(str, columns))} = {sum(columns)}, its sex rows to {people}"
    }
