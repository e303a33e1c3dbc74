"""The claims ledger: every number and every comparison that the paper prints, beside ours, with what became of it.

What is printed comes from ``data_manifests/paper/``: the cells of Tables 1–4, and ``claims.csv`` for the text and the
orderings of Figures 4 and 5. What is ours comes from the stored tables of a profile; nothing is computed again from
volumes or models. `RULES` says how a status is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from resdm.config import TRACERS, Config, MethodConfig
from resdm.evaluation.image_quality import HIGHER_IS_BETTER, read_index
from resdm.report.tables import PAPER_METHODS, REFERENCE_METHOD, Block, Table, _tex, number, p_value, read_paper

HELD, FAILED, UNTESTABLE = "held", "did not hold", "not testable on this cohort"
CONTRADICTED, MISSING = "contradicts itself", "not computed"
STATUSES = (HELD, FAILED, UNTESTABLE, CONTRADICTED, MISSING)

RULES = (
    f"{CONTRADICTED}: the paper prints two different values of one quantity, or a sentence that its own table does not "
    "bear out; computed from the printed numbers, on any cohort, before anything else. Ours still stands beside it.",
    f"An absolute number is {UNTESTABLE} unless the cohort is ADNI. There it held where the printed value lies in the "
    "95 % interval of ours (for a mean of Table 1: mean ± 1.96 std/√n); counts must be equal.",
    f"A comparison is tested on any cohort, over the whole volume as in the paper. It held where every part of it goes "
    "the right way and its test says so: the stored paired test where there is one (p < 0.05, Holm-corrected as in its "
    "table), else the 95 % interval of the difference. That interval is put together from those of its two parts as "
    "if these were independent (Zou's MOVER, Psychological Methods 12:399, 2007), which is too wide for scores of the "
    "same people that rise and fall together: it errs towards 'did not hold'. One failing part is enough to fail.",
    f"A comparison with a method that this profile does not run is {UNTESTABLE}, unless it fails already.",
    "'Close' has no margin in the paper. It held where the upper end of our gap is no wider than the printed gap.",
    f"A setting held where this profile takes the paper's; else it is {UNTESTABLE}.",
    f"{MISSING}: the file that would hold ours is not there yet.",
)
"""How a status is given; printed below the table."""

ALPHA = 0.05
"""Level of the tests; intervals are 95 %."""

KINDS = ("value", "characteristic", "gain", "count", "setting", "best", "chain", "close", "words")
"""``best``: the first subject beats each of the others; ``chain``: each beats the next; ``words``: nothing measured."""

SECTIONS = (
    "Abstract", "1", "3.1", "3.2", "4.1", "Table 1", "4.2", "Table 2", "4.3", "Table 3", "5.1", "5.2", "Table 4", "6",
)  # fmt: skip
"""In the paper's order. A claim that is made more than once stands where it is made first."""

VARIANTS = {"base": "Base", "intra_domain_loss": "+L_high", "prior": "+prior", REFERENCE_METHOD: REFERENCE_METHOD}
"""Rows of the printed Table 3 → rows of ours."""


@dataclass(frozen=True)
class Output:
    """A stored frame below ``figures/<profile>/``: who makes it, what names a row, what is a number."""

    notebook: str
    keys: tuple[str, ...]
    numbers: tuple[str, ...]


_QUALITY = ("mean", "std", "n", "ci_low", "ci_high", "difference", "difference_low", "difference_high", "p")
OUTPUTS = {
    "table1": Output("00_cohort", ("characteristic", "diagnosis", "statistic"), ("value", "n")),
    "table2": Output("04_table2_comparison", ("method", "tracer", "region", "metric"), _QUALITY),
    "table3": Output("05_table3_ablation", ("method", "tracer", "region", "metric"), _QUALITY),
    "table4": Output("06_table4_diagnosis", ("source", "tracer", "metric"), ("mean", "std", "n", "low", "high")),
    "figure4": Output("07_figure4_gender", ("source", "condition", "tracer", "metric"), ("value", "low", "high", "n")),
    "figure5": Output("08_figure5_age", ("source", "condition", "tracer"), ("r", "low", "high", "n")),
}
"""File stem → what must be in it. Columns beyond these are left alone."""

CODE = {
    "tokens": (77, "resdm/clip.py"),
    "text_layers": (1, "resdm/prior.py"),
    "models_per_pair": (2, "resdm/methods/base.py, PerTracer"),
    "unified_models": (1, "resdm/methods/ddpm.py, resvit.py"),
}
"""Settings that are the code's own and no option, and where: the report stands apart from the methods, so they are
said again here and compared with the code in the tests."""

_NAMES = {"amyloid": "Aβ", "tau": "tau", "mae": "MAE", "psnr": "PSNR", "ssim": "SSIM", "acc": "ACC", "auc": "AUC"}
_NAMES |= {"f1": "F1", "r": "r", "factual": "own prompt", "no_sex": "no sex", "wrong_sex": "wrong sex"}
_NAMES |= {"no_age": "no age", "real": "real PET"}
_UNITS = {"psnr": " dB", "r": ""}  # % else


# ── what the paper prints ─────────────────────────────────────────────────────────────────────────


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
    places = [Path(root)] if root is not None else []
    places.append(Path(__file__).resolve().parents[2])
    paths = [place / "data_manifests" / "paper" / "claims.csv" for place in places]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{paths[-1]}: the paper's printed claims are not there; run from a full checkout")
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
                | {"quantities": characteristic, "printed": _characteristic(values), "unit": part["unit"].iloc[0]}
                | {"statement": f"{name}, {diagnosis}"} | at
            )  # fmt: skip
        return rows
    subject, tracer = {2: ("method", "tracer"), 3: ("variant", "tracer"), 4: ("method", "status")}[table]
    return [
        {"id": f"table{table}/{row[subject]}/{row[tracer]}/{row['metric']}", "kind": "value"}
        | {"subjects": VARIANTS[row[subject]] if table == 3 else row[subject], "tracers": row[tracer]}
        | {"quantities": row["metric"], "printed": _spread(row["mean"], row["std"]), "unit": row["unit"]}
        | {"statement": f"{row['printed_as']}, {_NAMES[row[tracer]]} {_NAMES[row['metric']]}"} | at
        for row in frame.to_dict("records")
    ]  # fmt: skip


def _spread(mean: float, std: float) -> str:
    return f"{number(mean, 2)} ± {number(std, 2)}"


def _characteristic(values: pd.Series) -> str:
    """A cell of Table 1 from its statistics: a count, female/male, or mean ± std; – where nothing is known."""
    if values.isna().all():
        return "–"
    if "mean" in values:
        return _spread(values["mean"], values["std"])
    return "/".join(number(value, 0) for value in values)


def _printed_values(root: Path | None) -> pd.DataFrame:
    """Means of the printed Tables 2–4: output, subject, tracer, metric, value."""
    frames = []
    for table, columns in ((2, {}), (3, {"variant": "method"}), (4, {"status": "tracer"})):
        frame = read_paper(table, root).rename(columns=columns).assign(output=f"table{table}")
        frame["subject"] = frame["method"].replace(VARIANTS) if table == 3 else frame["method"]
        frames.append(frame[["output", "subject", "tracer", "metric", "mean"]].rename(columns={"mean": "value"}))
    return pd.concat(frames, ignore_index=True)


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
    values = _printed_values(root)
    means = values.set_index(["output", "subject", "tracer", "metric"])["value"]
    found: dict[str, str] = {}
    for row in printed[printed["kind"] == "gain"].to_dict("records"):
        first, other = row["subjects"].split()
        gains = {
            method: round(abs(means[row["output"], first, row["tracers"], row["quantities"]] - value), 2)
            for (output, method, tracer, metric), value in means.items()
            if (output, tracer, metric) == (row["output"], row["tracers"], row["quantities"]) and method != first
        }
        if gains[other] != round(float(row["printed"]), 2):
            matching = [method for method, gain in gains.items() if gain == round(float(row["printed"]), 2)]
            rest = "" if matching else ", ".join(f"{gain:.2f} over {m}" for m, gain in gains.items() if m != other)
            found[row["id"]] = (
                f"{row['printed']} is printed as the gain over {other}, where Table 2 has {gains[other]:.2f}; "
                + (f"{row['printed']} is the gain over {' and '.join(matching)}" if matching else f"nor is it {rest}")
            )
    for row in printed[printed["kind"].isin(["best", "chain"])].to_dict("records"):
        wrong = [pair for pair in _pairs(row) if not _printed_holds(means, row["output"], *pair)]
        if row["output"].startswith("table") and wrong:
            first, other, tracer, metric = wrong[0]
            found[row["id"]] = (
                f"the printed {_NAMES[tracer]} {_NAMES[metric]} of {first} is not better than that of {other}"
            )
    own = printed[printed["kind"] == "value"]
    for _, part in own.groupby(["subjects", "tracers", "quantities"], sort=False):
        numbers = part["printed"].str.split(" ± ").str[0]
        if numbers.astype(float).nunique() > 1:
            text = ", ".join(f"{value} in {_place(s)}" for s, value in zip(part["section"], numbers, strict=True))
            found |= dict.fromkeys(part["id"], f"one quantity, printed as {text}")
    return found | _set_counts(printed, read_paper(1, root))


def _set_counts(printed: pd.DataFrame, table: pd.DataFrame) -> dict[str, str]:
    said = printed[printed["kind"] == "count"].set_index("quantities")["printed"].astype(int)
    counts = table[table["characteristic"] == "sets"]["value"].astype(int).tolist()
    people = int(table[table["characteristic"] == "sex"]["value"].sum())
    parts = said["training_sets"] + said["test_sets"]
    if {parts, sum(counts), people} == {said["sets"]}:
        return {}
    (row,) = printed.loc[printed["quantities"].eq("sets") & printed["kind"].eq("count"), "id"]
    return {
        row: f"the text has {said['sets']} sets, {said['training_sets']} + {said['test_sets']} = {parts}; Table 1's "
        f"columns sum to {' + '.join(map(str, counts))} = {sum(counts)}, its sex rows to {people}"
    }


def _pairs(row: dict[str, str]) -> list[tuple[str, str, str, str]]:
    """Better, worse, tracer and metric of every comparison that a sentence makes."""
    subjects = row["subjects"].split()
    below = zip(subjects, subjects[1:], strict=False)
    steps = list(below) if row["kind"] == "chain" else [(subjects[0], other) for other in subjects[1:]]
    return [(*step, t, m) for t in row["tracers"].split() for m in row["quantities"].split() for step in steps]


def _printed_holds(means: pd.Series, output: str, better: str, worse: str, tracer: str, metric: str) -> bool:
    if not output.startswith("table"):
        return True  # figures print no number
    gain = means[output, better, tracer, metric] - means[output, worse, tracer, metric]
    return bool(gain * _sign(metric) > 0)


def _sign(metric: str) -> int:
    return 1 if HIGHER_IS_BETTER.get(metric, True) else -1


def _place(section: str) -> str:
    return section if section in ("Abstract",) or section.startswith("Table") else f"section {section}"


# ── what is ours ──────────────────────────────────────────────────────────────────────────────────


def claim_inputs(config: Config) -> list[Path]:
    """The files of a profile that the ledger reads, those that are there: for the provenance."""
    paths = [config.figures / f"{name}.csv" for name in OUTPUTS]
    return [path for path in (*paths, _index(config), _folds(config)) if path.is_file()]


def _index(config: Config) -> Path:
    return config.volumes / "index.csv"


def _folds(config: Config) -> Path:
    return config.work / "evaluation" / "status_folds.csv"


def read_output(config: Config, name: str) -> pd.DataFrame | None:
    """A stored frame of `OUTPUTS`, or ``None`` where it is not there.

    Raises
    ------
    ValueError
        A file that is there and is not what it should be: names the file, the fault and the notebook that makes it.
    """
    path, output = config.figures / f"{name}.csv", OUTPUTS[name]
    if not path.is_file():
        return None
    remedy = f"run notebooks/{output.notebook}.ipynb again"
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no CSV table ({error}); {remedy}") from error
    missing = [column for column in (*output.keys, *output.numbers) if column not in frame]
    if missing:
        raise ValueError(f"{path}: columns missing: {', '.join(missing)}; {remedy}")
    twice = frame.duplicated(list(output.keys))
    if twice.any():
        raise ValueError(f"{path}: {'/'.join(frame.loc[twice, list(output.keys)].iloc[0])} stands twice; {remedy}")
    for column in output.numbers:
        values = pd.to_numeric(frame[column].replace("", "nan"), errors="coerce")
        wrong = frame[column][values.isna() & ~frame[column].str.lower().isin(["", "nan"])]
        if len(wrong):
            raise ValueError(f"{path}, line {wrong.index[0] + 2}: {column} {wrong.iloc[0]!r} is no number; {remedy}")
        frame[column] = values
    return frame


_ESTIMATES = ["value", "std", "n", "low", "high", "difference", "difference_low", "difference_high", "p"]


def _estimates(name: str, frame: pd.DataFrame, region: str = "whole") -> pd.DataFrame:
    """A stored frame in one form: rows (subject, tracer, metric), columns `_ESTIMATES`, what is not stored NaN."""
    names = {"method": "subject", "mean": "value", "ci_low": "low", "ci_high": "high"}
    if name in ("table2", "table3"):
        frame = frame[frame["region"].isin([region, "status"])].rename(columns=names)
    elif name == "table4":
        frame = frame.rename(columns={"source": "subject", "mean": "value"})
    else:  # the figures: what is compared are prompts of one method
        frame = frame[frame["source"].isin([REFERENCE_METHOD, "real"])]
        frame = frame.rename(columns={"condition": "subject", "r": "value"})
        frame = frame if name == "figure4" else frame.assign(metric="r")
    return frame.set_index(["subject", "tracer", "metric"]).reindex(columns=_ESTIMATES).astype(float)


@dataclass(frozen=True)
class Comparison:
    """One comparison of ours; ``gain`` is towards better, with its 95 % interval and the p of a paired test."""

    better: str
    worse: str
    tracer: str
    metric: str
    gain: float
    low: float
    high: float
    p: float
    n: float

    @property
    def tested(self) -> bool:
        """Whether a test or an interval is stored."""
        return not math.isnan(self.low if math.isnan(self.p) else self.p)

    @property
    def held(self) -> bool:
        """Right direction, and the test or else the interval says so."""
        return self.gain > 0 and (self.low > 0 if math.isnan(self.p) else self.p < ALPHA)

    def __str__(self) -> str:
        test = f", {p_value(self.p)}" if p_value(self.p) else ""
        against = f"{_NAMES.get(self.better, self.better)} against {_NAMES.get(self.worse, self.worse)}"
        return (
            f"{_NAMES[self.tracer]} {_NAMES[self.metric]}, {against}: {_signed(self.gain, self.metric)} "
            f"[{number(self.low, 2)}, {number(self.high, 2)}]{test}"
        )


def _signed(gain: float, metric: str) -> str:
    return f"{'+' if gain > 0 else ''}{number(gain, 2)}{_UNITS.get(metric, ' %')}"


def mover(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Difference a − b of two estimates (value, low, high) with its interval, as if they were independent.

    Zou 2007 (Psychological Methods 12:399): the ends come from each estimate's own distance to its ends, so the
    intervals may be lopsided, as those of correlations and proportions are.
    """
    (x, x_low, x_high), (y, y_low, y_high) = a, b
    return x - y, x - y - math.hypot(x - x_low, y_high - y), x - y + math.hypot(x_high - x, y - y_low)


def compare_estimates(ours: pd.DataFrame, better: str, worse: str, tracer: str, metric: str) -> Comparison | None:
    """One comparison from stored estimates, or ``None`` where one side has none.

    The stored paired difference from ResDM is used where one side is ResDM. Between two others, both differences from
    ResDM are: they share its noise, so their own difference is told better than from the two means. What has no
    stored difference is compared by values.

    Parameters
    ----------
    ours : DataFrame
        Indexed by subject, tracer, metric; columns value, low, high, n and, where stored, difference (subject −
        ResDM), difference_low, difference_high, p.
    """
    keys = [(better, tracer, metric), (worse, tracer, metric)]
    if not all(key in ours.index and not math.isnan(ours.loc[key, "value"]) for key in keys):
        return None
    a, b = (ours.loc[key] for key in keys)
    stored = ["difference", "difference_low", "difference_high"]
    plain = [a[["value", "low", "high"]], b[["value", "low", "high"]]]
    sides = [
        (0.0, 0.0, 0.0) if subject == REFERENCE_METHOD else tuple(row[stored])
        for subject, row in ((better, a), (worse, b))
    ]
    paired = not any(math.isnan(value) for side in sides for value in side)
    difference, low, high = mover(*(sides if paired else plain))
    p = (b if better == REFERENCE_METHOD else a)["p"] if REFERENCE_METHOD in (better, worse) else math.nan
    if _sign(metric) < 0:
        difference, low, high = -difference, -high, -low
    return Comparison(better, worse, tracer, metric, difference, low, high, p, min(a["n"], b["n"]))


# ── what became of each claim ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Finding:
    """Ours and the verdict on one claim."""

    status: str
    reason: str
    ours: str = "–"
    value: float = math.nan
    n: float = math.nan


def resolve(row: dict[str, str], config: Config, outputs: dict[str, pd.DataFrame | None]) -> Finding:
    """What became of one claim, the paper's contradictions aside.

    Parameters
    ----------
    row : dict
        Of `printed_claims`.
    config : Config
    outputs : dict
        Every name of `OUTPUTS`, see `read_output`.
    """
    name, kind = row["output"], row["kind"]
    if kind == "words":
        return Finding(UNTESTABLE, row["note"])
    if kind == "setting":
        return _setting(row, config, outputs)
    if kind == "count":
        return _count(row, config)
    if outputs[name] is None:
        return _absent(config.figures / f"{name}.csv", OUTPUTS[name].notebook, config)
    if kind == "characteristic":
        return _demographics(row, config, outputs[name])
    ours = _estimates(name, outputs[name])
    if kind in ("best", "chain"):
        brain = _estimates(name, outputs[name], "brain") if name in ("table2", "table3") else None
        return _comparisons(row, config, ours, brain)
    if kind == "close":
        return _close(row, config, ours)
    if kind == "gain":
        return _gain(row, config, ours)
    key = row["subjects"], row["tracers"], row["quantities"]
    if key not in ours.index:
        return Finding(UNTESTABLE, f"{row['subjects']} is not in {_file(config, name)}")
    cell = ours.loc[key]
    text = number(cell["value"], 2) if math.isnan(cell["std"]) else _spread(cell["value"], cell["std"])
    return _absolute(row, config, text, cell["value"], cell["low"], cell["high"], cell["n"])


def _file(config: Config, name: str) -> str:
    return f"figures/{config.profile}/{name}.csv"


def _absent(path: Path, notebook: str, config: Config) -> Finding:
    shown = path.relative_to(config.root).as_posix()
    return Finding(MISSING, f"{shown} is not there; notebooks/{notebook}.ipynb makes it")


def _absolute(
    row: dict[str, str], config: Config, text: str, value: float, low: float, high: float, n: float
) -> Finding:
    """An absolute number of ours beside the printed one; tested on the paper's cohort only."""
    if config.cohort.kind != "adni":
        return Finding(UNTESTABLE, "absolute number of another cohort", text, value, n)
    if math.isnan(low) or math.isnan(high):
        return Finding(MISSING, "ours has no interval", text, value, n)
    inside = low <= float(row["printed"].split()[0]) <= high
    reason = f"printed value {'in' if inside else 'outside'} our interval [{number(low, 2)}, {number(high, 2)}]"
    return Finding(HELD if inside else FAILED, reason, text, value, n)


def _gain(row: dict[str, str], config: Config, ours: pd.DataFrame) -> Finding:
    (pair,) = _pairs(row)
    found = compare_estimates(ours, *pair)
    if found is None:
        return Finding(UNTESTABLE, f"{pair[1]} is not in {_file(config, row['output'])}")
    text = _signed(found.gain, found.metric)
    return _absolute(row, config, text, found.gain, found.low, found.high, found.n)


def _demographics(row: dict[str, str], config: Config, frame: pd.DataFrame) -> Finding:
    part = frame[(frame["characteristic"] == row["quantities"]) & (frame["diagnosis"] == row["subjects"])]
    values = part.set_index("statistic")["value"]
    if values.isna().all():
        return Finding(UNTESTABLE, f"{row['quantities']} of {row['subjects']} is not in {_file(config, 'table1')}")
    text, n = _characteristic(values), float(part["n"].iloc[0])
    if "mean" in values:
        reach = 1.96 * values["std"] / math.sqrt(n)
        return _absolute(row, config, text, values["mean"], values["mean"] - reach, values["mean"] + reach, n)
    value = float(values.iloc[0]) if len(values) == 1 else math.nan
    return _exact(row, config, text, value, n)


def _exact(row: dict[str, str], config: Config, text: str, value: float, n: float) -> Finding:
    if config.cohort.kind != "adni":
        return Finding(UNTESTABLE, "count of another cohort", text, value, n)
    same = text == row["printed"]
    return Finding(HELD if same else FAILED, "the same count" if same else "another count", text, value, n)


def _count(row: dict[str, str], config: Config) -> Finding:
    if not _index(config).is_file():
        return _absent(_index(config), "01_preprocess", config)
    index = read_index(config, split=None)
    sets = index[index[[f"present_{tracer}" for tracer in TRACERS]].astype(bool).all(axis=1)]
    splits = {"sets": sets["split"].unique(), "training_sets": ["train", "validation"], "test_sets": ["test"]}
    value = int(sets["split"].isin(splits[row["quantities"]]).sum())
    return _exact(row, config, str(value), value, len(index))


def _setting(row: dict[str, str], config: Config, outputs: dict[str, pd.DataFrame | None]) -> Finding:
    quantity, printed = row["quantities"], float(row["printed"])
    value, text, tolerance = math.nan, "", 0.0
    method: MethodConfig | None = config.methods.get(REFERENCE_METHOD)
    if quantity in CODE:
        value = CODE[quantity][0]
    elif quantity in ("grid", "voxel"):
        grid = config.preprocess.grid
        text = " × ".join(map(str, grid.shape)) if quantity == "grid" else ""
        value = float(np.mean(grid.shape)) if quantity == "grid" else grid.voxel_mm
        if quantity == "grid" and len(set(grid.shape)) > 1:
            value = math.nan
    elif quantity in ("competitors", "models"):
        if outputs["table2"] is None:
            return _absent(config.figures / "table2.csv", OUTPUTS["table2"].notebook, config)
        present = set(outputs["table2"]["method"]) & set(PAPER_METHODS)
        value = len(present - {REFERENCE_METHOD} if quantity == "competitors" else present)
    elif quantity == "folds":
        if not _folds(config).is_file():
            return _absent(_folds(config), OUTPUTS["table4"].notebook, config)
        folds = pd.read_csv(_folds(config))
        if "fold" not in folds:
            raise ValueError(f"{_folds(config)}: columns missing: fold; run notebooks/06_table4_diagnosis.ipynb again")
        value = folds["fold"].nunique()
    elif method is None:
        return Finding(UNTESTABLE, f"configs/{config.profile}.yaml has no method {REFERENCE_METHOD}")
    elif quantity == "text_encoder":
        prior = getattr(method, "prior", None)
        real = prior is not None and prior.weights != "none" and prior.tower is None
        value, text = (32.0, "ViT-B/32") if real else (math.nan, "a small tower of its own")
    elif quantity in ("eta_first", "eta_last"):  # limits in the paper: η_1 → 0, η_T → 1
        value, tolerance = getattr(method, "eta_range", (math.nan,) * 2)[quantity == "eta_last"], 0.05
    else:
        raise ValueError(f"data_manifests/paper/claims.csv, {row['id']}: no setting {quantity!r} is known")
    text = text or f"{value:g}"
    if abs(value - printed) <= tolerance:
        return Finding(HELD, "taken by this profile", text, value)
    return Finding(UNTESTABLE, f"a setting of the paper's runs; this profile has {text}", text, value)


def _comparisons(row: dict[str, str], config: Config, ours: pd.DataFrame, brain: pd.DataFrame | None) -> Finding:
    """A sentence that compares: held where each of its comparisons held."""
    pairs = _pairs(row)
    found = [result for pair in pairs if (result := compare_estimates(ours, *pair)) is not None]
    absent = [pair for pair in pairs if compare_estimates(ours, *pair) is None]
    tested, where = [result for result in found if result.tested], _file(config, row["output"])
    lacking = sorted({s for p in absent for s in p[:2] if (s, *p[2:]) not in ours.index}, key=row["subjects"].find)
    if not tested:
        if found:
            return Finding(MISSING, f"{where} holds no test and no interval for it", _ours(row, found, ours))
        return Finding(UNTESTABLE, f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not in {where}")
    failed = [result for result in tested if not result.held]
    open_ = len(pairs) - len(tested)
    n = min(result.n for result in tested)
    single = tested[0].gain if len(pairs) == 1 else math.nan
    ending = _inside_the_brain(pairs, brain, len(tested))
    if failed:
        worst = sorted(failed, key=lambda result: (result.gain > 0, -result.p if result.p == result.p else 0))
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        reason = "; ".join(f"{_direction(result)}: {result}" for result in worst[:3]) + more + ending
        return Finding(FAILED, reason, _ours(row, tested, ours), single, n)
    if open_:
        parts = f"{len(tested)} of {len(pairs)} comparisons held"
        names = ", ".join(lacking) or "some tests"
        return Finding(UNTESTABLE, f"{parts}; {names} not in {where}{ending}", _ours(row, tested, ours), single, n)
    weakest = max(tested, key=lambda result: (result.p if result.p == result.p else 0.0, -result.low))
    reason = str(weakest) if len(tested) == 1 else f"the weakest: {weakest}"
    return Finding(HELD, reason + ending, _ours(row, tested, ours), single, n)


def _direction(result: Comparison) -> str:
    return "direction holds, not supported" if result.gain > 0 else "the other way round" if result.gain < 0 else "equal"


def _inside_the_brain(pairs: list[tuple[str, str, str, str]], brain: pd.DataFrame | None, count: int) -> str:
    """The other convention, for orientation: the verdict is on the whole volume, as in the paper."""
    if brain is None or not brain.index.get_level_values("metric").isin(["mae", "psnr", "ssim"]).any():
        return ""
    found = [result for pair in pairs if (result := compare_estimates(brain, *pair)) is not None and result.tested]
    return f". Inside the brain: {sum(r.held for r in found)} of {len(found)} held" if len(found) == count else ""


def _ours(row: dict[str, str], found: list[Comparison], ours: pd.DataFrame) -> str:
    """What stands in the column: values in a chain, the gain of a single comparison, else how many held."""
    pairs = _pairs(row)
    if row["kind"] == "chain" and len(found) == len(pairs):
        subjects, (tracer, metric) = row["subjects"].split(), pairs[0][2:]
        values = [ours.loc[(subject, tracer, metric), "value"] for subject in subjects]
        text = number(values[0], 2)
        for left, right in zip(values, values[1:], strict=False):
            text += f" {'>' if left > right else '<' if left < right else '='} {number(right, 2)}"
        return text
    if len(pairs) == 1:
        return _signed(found[0].gain, found[0].metric)
    return f"{sum(result.held for result in found)} of {len(pairs)}"


def _close(row: dict[str, str], config: Config, ours: pd.DataFrame) -> Finding:
    first, other = row["subjects"].split()
    found = compare_estimates(ours, other, first, row["tracers"], row["quantities"])
    if found is None:
        return Finding(UNTESTABLE, f"{first} or {other} is not in {_file(config, row['output'])}")
    means = _printed_values(config.root).set_index(["output", "subject", "tracer", "metric"])["value"]
    first_printed, other_printed = (means[row["output"], s, row["tracers"], row["quantities"]] for s in (first, other))
    margin = other_printed - first_printed
    text = f"gap {number(found.gain, 2)}"
    if math.isnan(found.high):
        return Finding(MISSING, "ours has no interval", text, found.gain, found.n)
    interval = f"[{number(found.low, 2)}, {number(found.high, 2)}], printed {number(margin, 2)}"
    if found.high <= margin:
        return Finding(HELD, f"our gap {interval}", text, found.gain, found.n)
    direction = "no wider, but not supported" if found.gain <= margin else "wider"
    return Finding(FAILED, f"{direction}: our gap {interval}", text, found.gain, found.n)


# ── the ledger ────────────────────────────────────────────────────────────────────────────────────


class Ledger(Table):
    """A table over several pages: its LaTeX breaks across them, where `Table` floats."""

    _WIDTHS = {"Claim": 0.30, "Printed": 0.12, "Ours": 0.12, "n": 0.04, "Status": 0.11, "Why": 0.25}

    def latex(self) -> str:
        """A ``longtable`` a section; needs ``booktabs`` and ``longtable``, plain ASCII."""
        out = [f"% needs \\usepackage{{booktabs,longtable}}; label tab:{self.name}", "{\\footnotesize"]
        out.append(f"\\noindent\\textbf{{{_tex(self.heading)}}}\\label{{tab:{self.name}}}\\par")
        for block in self.blocks:
            labels = [label for _, label in block.columns]
            widths = "".join(f"p{{{self._WIDTHS.get(label, 0.11)}\\linewidth}}" for label in labels)
            out += [f"\\begin{{longtable}}{{{widths}}}", f"\\multicolumn{{{len(labels)}}}{{l}}{{{_tex(block.title)}}}"]
            out += ["\\\\", "\\toprule", " & ".join(map(_tex, labels)) + " \\\\", "\\midrule", "\\endhead"]
            out += [" & ".join(_tex(cell) for cell in row) + " \\\\" for row in block.rows]
            out += ["\\bottomrule", "\\end{longtable}"]
        out += [f"\\noindent {_tex(note)}\\par" for note in self.notes]
        return "\n".join([*out, "}"]) + "\n"


def claims(config: Config) -> Ledger:
    """Every claim of the paper beside ours.

    Parameters
    ----------
    config : Config
        Ours come from ``figures/<profile>/``, and counts from ``work/<profile>/``. What is not there yet resolves to
        ``not computed`` with the notebook that would make it.

    Returns
    -------
    Ledger
        Frame: id, section, kind, statement, printed, ours, n, unit, where, status, reason, then the two as numbers,
        printed_value and ours_value, empty where a claim is no single number. ``n`` is people for image quality, else
        what the row's file counts.

    Raises
    ------
    ValueError
        A file that is there and cannot be used.
    """
    printed = printed_claims(config.root)
    outputs = {name: read_output(config, name) for name in OUTPUTS}
    against = contradictions(printed, config.root)
    means = _printed_values(config.root).set_index(["output", "subject", "tracer", "metric"])["value"]
    rows = []
    for row in printed.to_dict("records"):
        found = resolve(row, config, outputs)
        contradicted = row["id"] in against
        values = row["kind"] in ("value", "gain", "count", "setting")
        rows.append(
            {key: row[key] for key in ("id", "section", "kind", "statement")}
            | {"printed": _printed_text(row, means), "ours": found.ours, "n": found.n, "unit": row["unit"]}
            | {"where": _where(row, config), "status": CONTRADICTED if contradicted else found.status}
            | {"reason": against.get(row["id"], found.reason)}
            | {"printed_value": float(row["printed"].split()[0]) if values else math.nan, "ours_value": found.value}
        )
    frame = pd.DataFrame(rows).astype({"n": "Int64"})
    return Ledger(
        name="claims",
        title="Claims of the paper, and what became of them",
        notice=config.notice,
        frame=frame,
        blocks=(_summary(frame), *(_block(frame, section) for section in SECTIONS)),
        notes=(
            *RULES,
            "Left out: numbers that say nothing of a result (years of citations, equation and grant numbers, addresses "
            "and indices), and what the paper says of other people's work.",
        ),
    )


def _printed_text(row: dict[str, str], means: pd.Series) -> str:
    if row["printed"] or row["kind"] == "words":
        return row["printed"] or "–"
    pairs = _pairs(row)
    if row["kind"] == "close":
        ((first, other, tracer, metric),) = pairs
        return f"gap {number(means[row['output'], other, tracer, metric] - means[row['output'], first, tracer, metric], 2)}"
    holds = [_printed_holds(means, row["output"], *pair) for pair in pairs]
    if len(pairs) == 1:
        better, worse, tracer, metric = pairs[0]
        gain = means[row["output"], better, tracer, metric] - means[row["output"], worse, tracer, metric]
        return _signed(gain * _sign(metric), metric)
    return f"{sum(holds)} of {len(holds)}"


def _where(row: dict[str, str], config: Config) -> str:
    """The file that ours is in, and the notebook whose cell computes it."""
    name, quantity = row["output"], row["quantities"]
    if row["kind"] == "words":
        return ""
    if name in OUTPUTS:
        call = f"{name}(profile)" if name.startswith("table") else f"section Figure {name[-1]}"
        return f"{_file(config, name)}: notebooks/{OUTPUTS[name].notebook}.ipynb, {call}"
    if quantity in CODE:
        return CODE[quantity][1]
    if name == "index":
        return f"work/{config.profile}/volumes/index.csv: notebooks/01_preprocess.ipynb"
    if name == "status_folds":
        return f"work/{config.profile}/evaluation/status_folds.csv: notebooks/{OUTPUTS['table4'].notebook}.ipynb"
    return f"configs/{config.profile}.yaml"


def _summary(frame: pd.DataFrame) -> Block:
    counts = pd.crosstab(frame["section"], frame["status"]).reindex(index=SECTIONS, columns=STATUSES, fill_value=0)
    counts.loc["all"] = counts.sum()
    rows = tuple((_title(section), *map(str, values)) for section, values in zip(counts.index, counts.to_numpy(), strict=True))
    return Block("How many", (("", "Where"), *(("", status) for status in STATUSES)), rows)


def _title(section: str) -> str:
    return section if not section[0].isdigit() else f"Section {section}"


def _block(frame: pd.DataFrame, section: str) -> Block:
    part = frame[frame["section"] == section]
    places = list(dict.fromkeys(place for place in part["where"] if place))
    title = f"{_title(section)} ({places[0]})" if len(places) == 1 else _title(section)
    labels = ("Claim", "Printed", "Ours", "n", "Status", "Why")
    rows, marked = [], set()
    for i, row in enumerate(part.to_dict("records")):
        place = f" [{_short(row['where'])}]" if row["where"] and len(places) > 1 else ""
        printed = " ".join(filter(None, [row["printed"], "" if row["printed"] == "–" else row["unit"]]))
        n = "–" if pd.isna(row["n"]) else str(row["n"])
        rows.append((row["statement"] + place, printed, row["ours"], n, row["status"], row["reason"]))
        if row["status"] in (FAILED, CONTRADICTED):
            marked.add((i, labels.index("Status")))
    return Block(title, tuple(("", label) for label in labels), tuple(rows), frozenset(marked))


def _short(where: str) -> str:
    """``table2.csv, 04`` of the whole place, which the CSV has."""
    path, _, notebook = where.partition(": notebooks/")
    return ", ".join(filter(None, [path if not notebook else path.rsplit("/", 1)[-1], notebook[:2]]))


def unresolved(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows without a value of ours and without a reason: there must be none."""
    return frame[(frame["ours"] == "–") & (frame["reason"] == "")]


def by_status(frame: pd.DataFrame, statuses: Iterable[str]) -> pd.DataFrame:
    """The rows of some statuses, as a reader wants them: section, statement, printed, ours, reason."""
    return frame.loc[frame["status"].isin(list(statuses)), ["section", "statement", "printed", "ours", "reason"]]
