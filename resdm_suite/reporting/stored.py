"""Our stored tables as the claims ledger reads them: estimates, paired differences and comparisons."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from resdm_suite.evaluation.image_quality import METRICS, read_scores
from resdm_suite.evaluation.readings import read_readings
from resdm_suite.evaluation.statistics import by_person, ends_of
from resdm_suite.profiles import Config
from resdm_suite.records import RecordError, checked
from resdm_suite.reporting import tables
from resdm_suite.reporting.printed import NAMES, OUTPUTS, Pair, pairs, printed_values, read_claims, sign
from resdm_suite.reporting.provenance import altered
from resdm_suite.reporting.tables import REFERENCE_METHOD, number

Row = dict[str, str]
"""A claim, see `resdm_suite.reporting.printed.printed_claims`."""

ALPHA = 0.05
"""Level of the tests; intervals are 95 %."""


class Stored(NamedTuple):
    """A stored table: its notebook, key columns (the subject first) and number columns."""

    notebook: str
    keys: str
    numbers: str = "mean std n ci_low ci_high"


STORED = {
    "table1": Stored("00_cohort", "characteristic diagnosis statistic", "value n"),
    "table2": Stored("04_table2_comparison", "method tracer region metric"),
    "table3": Stored("05_table3_ablation", "method tracer region metric"),
    "table4": Stored("06_table4_diagnosis", "source target tracer metric"),
    "figure4": Stored("07_figure4_gender", "prompt source tracer metric", "value low high n"),
    "figure5": Stored("08_figure5_age", "condition source tracer", "r low high n"),
    "atn": Stored("19_atn", "source target markers metric"),
    "figure4_effects": Stored("07_figure4_gender", "name tracer", "estimate low high n"),
    "figure5_effects": Stored("08_figure5_age", "name tracer", "estimate low high n"),
    "status_folds": Stored("06_table4_diagnosis", "target source tracer fold", ""),
}
"""File stem → required columns. The ``_effects`` files have the paired differences of the figures."""

REFERENCES = {"table2": {"": REFERENCE_METHOD}, "table3": {"base_": "Base", "full_": REFERENCE_METHOD}}
"""By table: prefix of the columns ``_PAIRED`` → the method that is subtracted in them."""

BASES = {"table4": (REFERENCE_METHOD,), "atn": ("majority", "age_sex")}
"""By table: the sources whose paired difference to each row is in the columns ``over_<base>…``."""

_PAIRED = ("difference", "difference_low", "difference_high", "p")
_COLUMNS = {"ci_low": "low", "ci_high": "high", "mean": "value", "r": "value", "estimate": "value"}
_COLUMNS |= {"markers": "tracer"}
_PROMPTS = {"right": "factual", "none": "no_sex", "wrong": "wrong_sex"}  # Figure 4 by the sex in the prompt
_SUBJECTS = {"factual": "own prompt", "no_sex": "no sex", "wrong_sex": "wrong sex", "no_age": "no age"}
_STEPS = {"right_none": ("factual", "no_sex"), "none_wrong": ("no_sex", "wrong_sex")}
_STEPS |= {"with_without": ("factual", "no_age")}  # name of an effect, after its metric → prompts compared


def place(config: Config, name: str) -> tuple[str, str]:
    """A file with results, from the root, and its notebook (empty for the profile itself)."""
    if name == "index":
        return f"work/{config.profile}/volumes/index.csv", "notebooks/01_preprocess.ipynb"
    if name not in STORED:
        return f"configs/{config.profile}.yaml", ""
    folder = f"work/{config.profile}/evaluation" if name == "status_folds" else f"figures/{config.profile}"
    return f"{folder}/{name}.csv", f"notebooks/{STORED[name].notebook}.ipynb"


def read_output(config: Config, name: str) -> pd.DataFrame | None:
    """Read a table of `STORED`; ``None`` if the file does not exist.

    Columns are renamed: the subject to ``subject``, the value to ``value``, the ends of its interval to ``low`` and
    ``high``. Figures have the paper's prompts only.

    Raises
    ------
    ValueError
        An invalid file; names the file, the fault and the notebook to run.
    """
    shown, notebook = place(config, name)
    path, remedy = config.root / shown, f"run {notebook} again"
    if not path.is_file():
        return None
    if checked(path).name in altered(path.parent, path.stem):
        raise RecordError(f"{path}: changed since {notebook} wrote it; {remedy}")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise ValueError(f"{path}: no CSV table ({error}); {remedy}") from error
    keys, numbers = STORED[name].keys.split(), STORED[name].numbers.split()
    numbers += [prefix + column for prefix in REFERENCES.get(name, ()) for column in _PAIRED]
    numbers += [column for base in BASES.get(name, ()) for column in ends_of(f"over_{base}")]
    if missing := [column for column in (*keys, *numbers) if column not in frame]:
        raise ValueError(f"{path}: columns missing: {', '.join(missing)}; {remedy}")
    if name in ("figure4", "figure5"):
        frame[keys[0]] = frame[keys[0]].replace(_PROMPTS)
        frame = frame[frame[keys[0]].isin([*_SUBJECTS, "real"]) & frame["source"].isin([REFERENCE_METHOD, "real"])]
    if (twice := frame.duplicated(keys)).any():
        raise ValueError(f"{path}: {'/'.join(frame.loc[twice, keys].iloc[0])} stands twice; {remedy}")
    values = frame[numbers].replace("", "nan").apply(pd.to_numeric, errors="coerce")
    for column in numbers:
        invalid = frame[column][values[column].isna() & ~frame[column].str.lower().isin(["", "nan"])]
        if len(invalid):
            line = f"{path}, line {invalid.index[0] + 2}"
            raise ValueError(f"{line}: {column} {invalid.iloc[0]!r} is no number; {remedy}")
    return frame.assign(**values).rename(columns=_COLUMNS | {keys[0]: "subject"})


class Estimate(NamedTuple):
    """Our value with its 95 % interval."""

    value: float
    low: float
    high: float
    n: float
    std: float = math.nan


Estimates = dict[tuple[str, str, str], Estimate]
"""Subject, tracer, metric → estimate."""

Differences = dict[Pair, tuple[float, float, float, float]]
"""Pair → stored paired difference of the first and the second, its 95 % interval and p (NaN where there is none)."""


def stored_values(
    name: str, frame: pd.DataFrame | None, effects: pd.DataFrame | None, view: str
) -> tuple[Estimates, Differences]:
    """The estimates and paired differences of a stored table; rows without a value are left out.

    Parameters
    ----------
    name : str
        ``table2`` … ``table4``, ``figure4``, ``figure5`` or ``atn``.
    frame, effects : DataFrame, optional
        From `read_output`; the effects of a figure.
    view : {"whole", "brain", "planted"}
        Region of image quality. Status is the planted one for ``planted``, else the label.
    """
    if frame is None:
        return {}, {}
    views = frame.get("region", frame.get("target", pd.Series("label", frame.index)))
    chosen = frame["value"].notna() & views.isin(["planted"] if view == "planted" else [view, "status", "label"])
    values, differences = {}, {}
    for row in frame[chosen].to_dict("records"):
        cell = row["tracer"], row.get("metric", "r")
        values[row["subject"], *cell] = Estimate(*(row.get(field, math.nan) for field in Estimate._fields))
        for prefix, reference in REFERENCES.get(name, {}).items():
            difference, low, high, p = (row[prefix + column] for column in _PAIRED)
            if not math.isnan(difference):
                differences[reference, row["subject"], *cell] = -difference, -high, -low, p
                differences.setdefault((row["subject"], reference, *cell), (difference, low, high, p))
        for base in BASES.get(name, ()):
            difference, low, high = (row[column] for column in ends_of(f"over_{base}"))
            if not math.isnan(difference):
                differences[row["subject"], base, *cell] = difference, low, high, math.nan
                differences[base, row["subject"], *cell] = -difference, -high, -low, math.nan
    for row in [] if effects is None else effects.fillna({"low": -math.inf, "high": math.inf}).to_dict("records"):
        metric, _, step = row["subject"].partition("_")
        if step in _STEPS:
            differences[*_STEPS[step], row["tracer"], metric] = (row["value"], row["low"], row["high"], math.nan)
    return values, differences


@dataclass(frozen=True)
class Comparison:
    """One comparison of ours: gain (positive is better), 95 % interval, and p of a paired test if stored."""

    pair: Pair
    gain: float
    low: float
    high: float
    p: float
    n: float
    unit: str = ""

    @property
    def tested(self) -> bool:
        """Whether there is a test or an interval."""
        return not math.isnan(self.low if math.isnan(self.p) else self.p)

    @property
    def held(self) -> bool:
        """Whether the direction is right, and the interval and the test (where there is one) support it."""
        return self.tested and self.gain > 0 and not (self.low <= 0 or self.p >= ALPHA)

    @property
    def direction(self) -> str:
        """Direction of a comparison that did not hold."""
        if self.gain == 0:
            return "equal"
        return "direction holds, not supported" if self.gain > 0 else "the other way round"

    @property
    def text(self) -> str:
        """The gain with its sign and unit."""
        return f"{'+' if self.gain > 0 else ''}{number(self.gain, 2)}{self.unit}"

    def __str__(self) -> str:
        better, worse, tracer, metric = self.pair
        sources = tables.PROFILE_SOURCE_NAMES if tracer in ("AT", "ATN") else tables.SOURCE_NAMES
        names = tables.TITLES | sources | _SUBJECTS
        against = f"{names.get(better, better)} against {names.get(worse, worse)}"
        test = f", {p}" if (p := tables.p_value(self.p)) else ""
        return f"{NAMES[tracer]} {NAMES[metric]}, {against}: {self.text} {ends(self.low, self.high)}{test}"


def ends(low: float, high: float) -> str:
    """``[0.60, 1.00]``."""
    return f"[{number(low, 2)}, {number(high, 2)}]"


def mover(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, float, float]:
    """Difference a − b of two estimates (value, low, high) with its interval, as if they were independent.

    Zou 2007 (Psychological Methods 12:399). The intervals may be asymmetric, as for correlations and proportions.
    """
    (x, x_low, x_high), (y, y_low, y_high) = a[:3], b[:3]
    return x - y, x - y - math.hypot(x - x_low, y_high - y), x - y + math.hypot(x_high - x, y - y_low)


def compare_estimates(values: Estimates, differences: Differences, pair: Pair, unit: str = "") -> Comparison | None:
    """One comparison from stored numbers (see `stored_values`); ``None`` if one side is not stored.

    By the stored paired difference, else by the values of both sides. ``unit`` is printed after the gain.
    """
    better, worse, *cell = pair
    a, b = (values.get((subject, *cell)) for subject in (better, worse))
    if a is None or b is None:
        return None
    difference, low, high, p = differences.get(pair) or (*mover(a, b), math.nan)
    if sign(pair[3]) < 0:
        difference, low, high = -difference, -high, -low
    return Comparison(pair, difference, low, high, p, min(a.n, b.n), unit)


class Results:
    """Stored results of a profile that the ledger reads.

    Parameters
    ----------
    config : Config
        Its files are read once, here. An invalid file raises `ValueError`.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.frames = {name: read_output(config, name) for name in STORED}
        self.stored = {}
        for name, view in product(OUTPUTS[1:], ("whole", "brain", "planted")):
            effects = self.frames.get(f"{name}_effects")
            self.stored[name, view] = stored_values(name, self.frames[name], effects, view)
        self.printed = printed_values(config.root)
        text = read_claims(config.root).set_index("quantities")["printed"]
        sets = tables.read_paper(1, config.root).query("characteristic == 'sets'").set_index("diagnosis")["value"]
        self.sizes = {"test": int(text["test_sets"]), "folds": int(text["folds"]), **sets}
        self.trainings = {m: tables.seeds_of(config, m) for m in {*tables.PAPER_METHODS, *tables.VARIANTS}}
        self.repeated = [name for names in self.trainings.values() for name in names if len(names) > 1]

    def inputs(self) -> list[Path]:
        """Files that were read or counted, for the provenance."""
        paths = [self.config.root / place(self.config, name)[0] for name in (*STORED, "index")]
        if self.repeated:
            paths += [self.config.predictions(name) / "scores.csv" for name in self.repeated]
            paths += [self.config.evaluation_folder / "status.csv"]
        return [path for path in paths if path.is_file()]

    def file(self, row: Row) -> str:
        """The file with our value of a claim."""
        return place(self.config, row["output"])[0]

    def values(self, row: Row, view: str = "brain") -> Estimates:
        """Our estimates in the file of a claim; ``view``: see `stored_values`."""
        return self.stored[row["output"], view][0]

    def compare(self, row: Row, pair: Pair, view: str = "brain") -> Comparison | None:
        """One comparison of ours; ``None`` if one side is not stored."""
        unit = "" if row["output"].startswith("figure") else f" {tables.METRIC_UNITS.get(pair[3], '%')}"
        return compare_estimates(*self.stored[row["output"], view], pair, unit)

    def compare_all(self, row: Row, view: str = "brain") -> list[Comparison]:
        """The stored comparisons of a claim."""
        return [result for pair in pairs(row) if (result := self.compare(row, pair, view)) is not None]

    @cached_property
    def means(self) -> dict[tuple[str, str, str], float]:
        """Training, tracer and metric → mean over people; image quality inside the brain."""
        names = dict.fromkeys(name for names in self.trainings.values() for name in names)
        scores = read_scores(self.config, names)
        people = by_person(scores[scores["region"] == "brain"]).melt(["method", "tracer"], METRICS, "metric")
        means = people.groupby(["method", "tracer", "metric"])["value"].mean().to_dict()
        if self.config.evaluation_folder / "status.csv" in self.inputs():
            calls = read_readings(self.config, "status").query("target == 'label'")
            calls["right"] = (calls["score"] >= calls["threshold"]) == (calls["label"] == 1)
            people = calls.groupby(["source", "tracer", "fold", "person"])["right"].mean()
            for (source, tracer), share in people.groupby(["source", "tracer"]).mean().items():
                means[source, tracer, "acc"] = 100 * share
        return means

    def error(self, output: str, subject: str, tracer: str, metric: str) -> float:
        """Standard error of a printed mean, over test sets for image quality and folds for status."""
        size = self.sizes["test" if metric in METRICS else "folds"]
        return self.printed[output, subject, tracer, metric][1] / math.sqrt(size)
