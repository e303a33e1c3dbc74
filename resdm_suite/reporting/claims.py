"""The claims ledger: each number and comparison printed in the paper, our value, and a verdict.

Our values come from the stored tables of a profile, without volumes or models. `RULES` defines the verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import pandas as pd

from resdm.residual_diffusion import ResidualDiffusionConfig
from resdm.settings import TRACERS
from resdm_suite.evaluation.image_quality import METRICS, read_index, read_scores
from resdm_suite.evaluation.readings import read_readings
from resdm_suite.evaluation.statistics import by_person
from resdm_suite.profiles import Config
from resdm_suite.reporting.printed import (
    GAIN_TOLERANCE,
    NAMES,
    OUTPUTS,
    SECTIONS,
    Pair,
    Printed,
    contradictions,
    pairs,
    printed_claims,
    printed_gain,
    printed_values,
    read_claims,
    sign,
)
from resdm_suite.reporting.tables import (
    CONTROLS,
    METRIC_UNITS,
    PAPER_METHODS,
    REFERENCE_METHOD,
    VARIANTS,
    Block,
    Table,
    demographic,
    number,
    p_value,
    read_paper,
    seeds_of,
    with_spread,
)

HELD, FAILED, UNTESTABLE = "held", "did not hold", "not testable on this cohort"
CONTRADICTED, MISSING = "contradicts itself", "not computed"
STATUSES = (HELD, FAILED, UNTESTABLE, CONTRADICTED, MISSING)
"""Statuses of results."""

SAME, OTHER = "as the paper", "not as the paper"
"""Statuses of settings, beside `MISSING`. Settings are not results and are counted apart."""

BESIDE = "Beside the paper's claims"
"""Section of the comparisons with our own controls. They are not claims of the paper and are not counted."""

CONTROL_QUANTITIES = {"table2": "mae psnr ssim", "table4": "auc"}
"""Metrics of the comparisons with controls, by table."""

RULES = (
    f"A setting is {SAME} or {OTHER}. Settings are not results and are counted apart.",
    f"{CONTRADICTED}: the paper prints two values of one quantity, or a sentence that its own table contradicts. This "
    "is computed from the printed numbers, on any cohort, and decides before all other rules. Our value is still "
    f"shown. A gain within {GAIN_TOLERANCE} of the difference in its table agrees with it after rounding.",
    f"An absolute number is {UNTESTABLE} unless the cohort is ADNI. MAE, PSNR and SSIM also need the paper's intensity "
    "unit (preprocess.intensity: minmax, each volume scaled by its own range). A number held if the 95 % interval of "
    "ours − printed contains 0, both treated as independent samples (Zou 2007, Psychological Methods 12:399). The "
    "sampling error of a printed value is its std over the square root of n. n counts test sets for image quality, "
    "folds for status, and the sets of a diagnosis in Table 1. Counts must be equal.",
    "A comparison is tested on any cohort. Image quality is compared inside the brain. Predictions are 0 outside it, "
    "so MAE over the whole grid differs by a constant factor and PSNR by a constant number of dB. A comparison held if "
    "every part has the right direction and its test supports it. The test is the stored paired test (p < 0.05, "
    "Holm-corrected as in its table), else the stored 95 % interval of the paired difference, else an interval "
    "combined from the two sides as if they were independent (Zou 2007). This last interval is too wide for correlated "
    f"scores of the same people, so it errs towards '{FAILED}'. One failing part is enough to fail.",
    "In k of n trainings: k of n repeated trainings (methods X, X@seed1, …) have every mean difference in the right "
    "direction, without a test. A method with one training is used in each of them.",
    "Status is the label, as in the paper. On phantoms the same comparison by planted status is shown beside it.",
    f"A comparison with a method that this profile does not run is {UNTESTABLE}, unless another part fails.",
    "'Close' has no margin in the paper. It held if the upper end of our gap does not exceed the printed gap.",
    f"{MISSING}: the file with our value, or with its test, does not exist.",
)
"""How a status is decided; printed below the table."""

ALPHA = 0.05
"""Level of the tests; intervals are 95 %."""

CODE = {
    "tokens": (77, "resdm/layers/clip.py", ()),
    "text_layers": (1, "resdm/prior.py", ()),
    "models_per_pair": (2, "resdm/method.py, PerTracer", ("Pix2Pix", "SC-GAN", "TransUNet")),
    "unified_models": (1, "resdm/baselines/ddpm.py, resvit.py", ("ResViT", "DDPM")),
}
"""Settings fixed in the code: value, file, and the methods concerned (none: the text encoder of ResDM). Tests compare
them with the code."""


# ── our tables ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Stored:
    """A table below ``figures/<profile>/``: its notebook, key columns and number columns."""

    notebook: str
    keys: tuple[str, ...]
    numbers: tuple[str, ...]


_MEAN = ("mean", "std", "n", "low", "high")
_DIFFERENCE = ("difference", "difference_low", "difference_high", "p")
_EFFECTS = ("estimate", "low", "high", "n")

REFERENCES = {
    "table2": {REFERENCE_METHOD: ""},
    "table3": {"Base": "base_", REFERENCE_METHOD: "full_"},
    "table4": {REFERENCE_METHOD: ""},
}
"""By table: reference of its paired comparisons (row − reference) → prefix of their columns difference, difference_low,
difference_high and p. They are optional in Table 4."""


def _compared(name: str) -> tuple[str, ...]:
    return tuple(f"{prefix}{column}" for prefix in REFERENCES[name].values() for column in _DIFFERENCE)


STORED = {
    "table1": Stored("00_cohort", ("characteristic", "diagnosis", "statistic"), ("value", "n")),
    "table2": Stored("04_table2_comparison", ("method", "tracer", "region", "metric"), (*_MEAN, *_compared("table2"))),
    "table3": Stored("05_table3_ablation", ("method", "tracer", "region", "metric"), (*_MEAN, *_compared("table3"))),
    "table4": Stored("06_table4_diagnosis", ("source", "tracer", "metric"), _MEAN),
    "figure4": Stored("07_figure4_gender", ("source", "condition", "tracer", "metric"), ("value", "low", "high", "n")),
    "figure5": Stored("08_figure5_age", ("source", "condition", "tracer"), ("r", "low", "high", "n")),
    "figure4_effects": Stored("07_figure4_gender", ("name", "tracer"), _EFFECTS),
    "figure5_effects": Stored("08_figure5_age", ("name", "tracer"), _EFFECTS),
}
"""File stem → required columns. ``ci_low`` and ``ci_high`` are read as ``low`` and ``high``. Paired differences of the
figures are in the ``_effects`` files."""

_STEPS = {
    ("factual", "no_sex"): "right_none",
    ("no_sex", "wrong_sex"): "none_wrong",
    ("factual", "no_age"): "with_without",
}
"""Prompts compared → name of the effect, after its metric."""

_PROMPTS = {"right": "factual", "none": "no_sex", "wrong": "wrong_sex"}  # Figure 4 by what a prompt says of sex
_SUBJECTS = {"factual": "own prompt", "no_sex": "no sex", "wrong_sex": "wrong sex", "no_age": "no age"}


def read_output(config: Config, name: str) -> pd.DataFrame | None:
    """Read a table of `STORED`; ``None`` if the file does not exist.

    Raises
    ------
    ValueError
        An invalid file; names the file, the fault and the notebook to run.
    """
    path, stored = config.figures / f"{name}.csv", STORED[name]
    if not path.is_file():
        return None
    remedy = f"run notebooks/{stored.notebook}.ipynb again"
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no CSV table ({error}); {remedy}") from error
    frame = frame.rename(columns={f"ci_{end}": end for end in ("low", "high") if end not in frame})
    if name == "figure4" and "condition" not in frame and "prompt" in frame:
        frame = frame.assign(condition=frame["prompt"].replace(_PROMPTS))
    if name in ("figure4", "figure5") and "condition" in frame:  # the paper's prompts; others have rows of their own
        frame = frame[frame["condition"].isin([*_SUBJECTS, "real"])]
    missing = [column for column in (*stored.keys, *stored.numbers) if column not in frame]
    if missing:
        raise ValueError(f"{path}: columns missing: {', '.join(missing)}; {remedy}")
    keys = [*stored.keys, *(["target"] if "target" in frame else [])]
    twice = frame.duplicated(keys)
    if twice.any():
        raise ValueError(f"{path}: {'/'.join(frame.loc[twice, keys].iloc[0])} stands twice; {remedy}")
    optional = [column for column in _DIFFERENCE if column in frame]
    for column in dict.fromkeys([*stored.numbers, *optional]):
        values = pd.to_numeric(frame[column].replace("", "nan"), errors="coerce")
        invalid = frame[column][values.isna() & ~frame[column].str.lower().isin(["", "nan"])]
        if len(invalid):
            raise ValueError(
                f"{path}, line {invalid.index[0] + 2}: {column} {invalid.iloc[0]!r} is no number; {remedy}"
            )
        frame[column] = values
    return frame


@dataclass(frozen=True)
class Estimate:
    """Our value with its 95 % interval.

    ``against`` maps a reference to the paired difference (this − reference), its interval and p, NaN if not stored.
    """

    value: float
    low: float
    high: float
    n: float
    std: float = math.nan
    against: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)


Estimates = dict[tuple[str, str, str], Estimate]
"""Subject, tracer, metric → estimate."""


def estimates(name: str, frame: pd.DataFrame, view: str = "whole") -> Estimates:
    """The rows of a stored table as estimates; rows without a value are left out.

    Parameters
    ----------
    name : str
        ``table2`` … ``table4``, ``figure4`` or ``figure5``. Figures give the prompts of ResDM and the real PET.
    frame : DataFrame
        From `read_output`.
    view : {"whole", "brain", "planted"}
        Region of image quality. Status is the planted one for ``planted``, else the label. A table without the column
        ``target`` has the label only.
    """
    target, region = ("planted", "brain") if view == "planted" else ("label", view)
    subject = {"table4": "source", "figure4": "condition", "figure5": "condition"}.get(name, "method")
    value = {"figure4": "value", "figure5": "r"}.get(name, "mean")
    result = {}
    for row in frame.to_dict("records"):
        if row.get("region", region) not in (region, "status") or row.get("target", "label") != target:
            continue
        if math.isnan(row[value]):
            continue
        if subject == "condition" and row["source"] not in (REFERENCE_METHOD, "real"):
            continue
        against = {
            reference: stored
            for reference, prefix in REFERENCES.get(name, {}).items()
            if not math.isnan((stored := tuple(row.get(f"{prefix}{key}", math.nan) for key in _DIFFERENCE))[0])
        }
        numbers = (row[key] for key in (value, "low", "high", "n"))
        result[row[subject], row["tracer"], row.get("metric", "r")] = Estimate(
            *numbers, row.get("std", math.nan), against
        )
    return result


def effects(frame: pd.DataFrame | None) -> dict[tuple[str, str], tuple[float, float, float]]:
    """The paired differences of a figure: name and tracer → estimate, low, high; empty without a file.

    An effect without an interval gets an infinite one.
    """
    rows = [] if frame is None else frame.fillna({"low": -math.inf, "high": math.inf}).to_dict("records")
    return {(row["name"], row["tracer"]): (row["estimate"], row["low"], row["high"]) for row in rows}


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
        """Whether the direction is right and the test, or else the interval, supports it."""
        return self.gain > 0 and (self.low > 0 if math.isnan(self.p) else self.p < ALPHA)

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
        against = f"{_SUBJECTS.get(better, better)} against {_SUBJECTS.get(worse, worse)}"
        test = f", {p_value(self.p)}" if p_value(self.p) else ""
        interval = f"[{number(self.low, 2)}, {number(self.high, 2)}]"
        return f"{NAMES[tracer]} {NAMES[metric]}, {against}: {self.text} {interval}{test}"


def mover(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float, float]:
    """Difference a − b of two estimates (value, low, high) with its interval, as if they were independent.

    Zou 2007 (Psychological Methods 12:399). The intervals may be asymmetric, as for correlations and proportions.
    """
    (x, x_low, x_high), (y, y_low, y_high) = a, b
    return x - y, x - y - math.hypot(x - x_low, y_high - y), x - y + math.hypot(x_high - x, y - y_low)


def compare_estimates(ours: Estimates, pair: Pair, paired: dict | None = None, unit: str = "") -> Comparison | None:
    """One comparison from stored numbers; ``None`` if one side is not stored.

    The first available source is used: the paired effect of this pair; the stored comparison of the two sides; their
    paired differences from a third, which share its noise; their values.

    Parameters
    ----------
    ours : dict
        See `estimates`.
    pair : tuple of str
        Better, worse, tracer, metric.
    paired : dict, optional
        See `effects`.
    unit : str
        Printed after the gain.
    """
    better, worse, tracer, metric = pair
    a, b = (ours.get((subject, tracer, metric)) for subject in (better, worse))
    if a is None or b is None:
        return None
    effect = (paired or {}).get((f"{metric}_{_STEPS.get((better, worse))}", tracer))
    third = next((reference for reference in a.against if reference in b.against), None)
    p = math.nan
    if effect is not None:
        difference, low, high = effect
    elif better in b.against:
        minus, minus_low, minus_high, p = b.against[better]
        difference, low, high = -minus, -minus_high, -minus_low
    elif worse in a.against:
        difference, low, high, p = a.against[worse]
    elif third is not None:
        difference, low, high = mover(a.against[third][:3], b.against[third][:3])
    else:
        difference, low, high = mover((a.value, a.low, a.high), (b.value, b.low, b.high))
    if sign(metric) < 0:
        difference, low, high = -difference, -high, -low
    return Comparison(pair, difference, low, high, p, min(a.n, b.n), unit)


# ── verdicts ─────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Finding:
    """Our value and the verdict on one claim."""

    status: str
    reason: str
    ours: str = "–"
    value: float = math.nan
    n: float = math.nan
    trainings: str = ""


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
        self.paired = {name: effects(self.frames.get(f"{name}_effects")) for name in OUTPUTS}
        self.printed = printed_values(config.root)
        self.estimates = {
            (name, view): estimates(name, self.frames[name], view)
            for name in OUTPUTS[1:]
            for view in ("whole", "brain", "planted")
            if self.frames[name] is not None
        }
        self.index = config.volumes / "index.csv"
        self.folds = config.evaluation_folder / "status_folds.csv"
        self.trainings = {subject: seeds_of(config, subject) for subject in {*PAPER_METHODS, *VARIANTS}}
        self.repeated = [name for names in self.trainings.values() for name in names if len(names) > 1]
        text = read_claims(config.root).set_index("quantities")["printed"]
        sets = read_paper(1, config.root).query("characteristic == 'sets'").set_index("diagnosis")["value"]
        self.sizes = {"test": int(text["test_sets"]), "folds": int(text["folds"]), **sets}

    def inputs(self) -> list[Path]:
        """Files that were read or counted, for the provenance."""
        paths = [self.config.figures / f"{name}.csv" for name in STORED]
        paths += [self.config.predictions(name) / "scores.csv" for name in self.repeated]
        return [path for path in (*paths, self.index, self.folds, self.status) if path.is_file()]

    @property
    def status(self) -> Path:
        """Status readings by training; an empty path without repeated trainings."""
        return self.config.evaluation_folder / "status.csv" if self.repeated else Path()

    def absent(self, path: Path, notebook: str) -> Finding:
        """The verdict if a file does not exist yet."""
        shown = path.relative_to(self.config.root).as_posix()
        return Finding(MISSING, f"{shown} is not there; notebooks/{notebook}.ipynb makes it")

    def compare(self, row: dict[str, str], pair: Pair, view: str = "brain") -> Comparison | None:
        """One comparison of ours; ``None`` if one side is not stored. ``view``: see `estimates`."""
        unit = "" if row["output"].startswith("figure") else f" {METRIC_UNITS.get(pair[3], '%')}"
        return compare_estimates(self.estimates[row["output"], view], pair, self.paired[row["output"]], unit)

    @cached_property
    def means(self) -> dict[tuple[str, str, str], float]:
        """Training, tracer and metric → mean over people; image quality inside the brain."""
        names = dict.fromkeys(name for names in self.trainings.values() for name in names)
        scores = read_scores(self.config, names)
        people = by_person(scores[scores["region"] == "brain"]).melt(["method", "tracer"], METRICS, "metric")
        means = people.groupby(["method", "tracer", "metric"])["value"].mean().to_dict()
        if self.status.is_file():
            calls = read_readings(self.config, "status").query("target == 'label'")
            calls["right"] = (calls["score"] >= calls["threshold"]) == (calls["label"] == 1)
            people = calls.groupby(["source", "tracer", "fold", "person"])["right"].mean()
            for (source, tracer), share in people.groupby(["source", "tracer"]).mean().items():
                means[source, tracer, "acc"] = 100 * share
        return means

    def _error(self, cell: tuple[str, str, str, str]) -> float:
        """Standard error of a printed mean, over test sets for image quality and folds for status."""
        return self.printed[cell][1] / math.sqrt(self.sizes["test" if cell[3] in METRICS else "folds"])


def resolve_setting(results: Results, row: dict[str, str]) -> Finding:
    """Compare a setting of the paper with that of the profile."""
    config = results.config
    quantity, tolerance, text, note = row["quantities"], 0.0, "", ""
    method = config.methods.get(REFERENCE_METHOD)
    if quantity in CODE and CODE[quantity][2]:
        value, _, methods = CODE[quantity]
        present_methods = [name for name in methods if name in config.methods]
        if not present_methods:
            return Finding(OTHER, f"configs/{config.profile}.yaml has none of {', '.join(methods)}")
        note = f": {', '.join(present_methods)}"
    elif quantity in ("grid", "voxel"):
        grid = config.preprocess.grid
        sides = set(grid.shape)
        value = grid.voxel_mm if quantity == "voxel" else sides.pop() if len(sides) == 1 else math.nan
        text = " × ".join(map(str, grid.shape)) if quantity == "grid" else ""
    elif quantity in ("competitors", "models"):
        if results.frames["table2"] is None:
            return results.absent(config.figures / "table2.csv", STORED["table2"].notebook)
        present = set(results.frames["table2"]["method"]) & set(PAPER_METHODS)
        value = len(present - {REFERENCE_METHOD} if quantity == "competitors" else present)
    elif quantity == "folds":
        if not results.folds.is_file():
            return results.absent(results.folds, STORED["table4"].notebook)
        folds = pd.read_csv(results.folds)
        if "fold" not in folds:
            raise ValueError(f"{results.folds}: columns missing: fold; run notebooks/06_table4_diagnosis.ipynb again")
        value = folds["fold"].nunique()
    elif not isinstance(method, ResidualDiffusionConfig):
        return Finding(OTHER, f"configs/{config.profile}.yaml has no residual diffusion {REFERENCE_METHOD}")
    elif quantity in ("text_encoder", "text_layers"):
        clip = method.prior.weights != "none" and method.prior.tower is None
        value, text = (float(row["printed"]), "") if clip else (math.nan, "a small tower of its own, no CLIP")
        if quantity == "text_encoder":
            text = text or "ViT-B/32"
        else:
            note = "; the norm and the projection after it are trained too, which is the released code's" * clip
    elif quantity in ("eta_first", "eta_last"):  # limits in the paper: η_1 → 0, η_T → 1
        value, tolerance = method.eta_range[quantity == "eta_last"], 0.05
    elif quantity in CODE:
        value = CODE[quantity][0]
    else:
        raise ValueError(f"data_manifests/paper/claims.csv, {row['id']}: no setting {quantity!r} is known")
    text = text or f"{value:g}"
    if abs(value - float(row["printed"])) <= tolerance:
        return Finding(SAME, "taken by this profile" + note, text, value)
    return Finding(OTHER, f"this profile has {text}", text, value)


class Resolver(Results):
    """Finds the verdict on each claim."""

    def resolve(self, row: dict[str, str]) -> Finding:
        """The verdict on one row of `printed_claims`, apart from contradictions within the paper."""
        name, kind = row["output"], row["kind"]
        if kind == "words":
            return Finding(UNTESTABLE, row["note"])
        if kind == "setting":
            return resolve_setting(self, row)
        if kind == "count":
            return self._count(row)
        if self.frames[name] is None:
            return self.absent(self.config.figures / f"{name}.csv", STORED[name].notebook)
        find = {"characteristic": self._demographic, "close": self._close, "gain": self._gain, "value": self._value}
        return find.get(kind, self._comparisons)(row)

    def _not_in(self, row: dict[str, str], *subjects: str) -> Finding:
        verb = "is" if len(subjects) == 1 else "are"
        return Finding(UNTESTABLE, f"{', '.join(subjects)} {verb} not in {self._file(row)}")

    def _file(self, row: dict[str, str]) -> str:
        return f"figures/{self.config.profile}/{row['output']}.csv"

    def _value(self, row: dict[str, str]) -> Finding:
        key = row["subjects"], row["tracers"], row["quantities"]
        estimate = self.estimates[row["output"], "whole"].get(key)
        if estimate is None:
            there = any(subject == key[0] for subject, _, _ in self.estimates[row["output"], "whole"])
            cell = f"{key[0]}, {NAMES[key[1]]} {NAMES[key[2]]}" if there else key[0]
            return self._not_in(row, cell)
        text, error = with_spread(estimate.value, estimate.std), self._error((row["output"], *key))
        return self._absolute(row, text, estimate.value, (estimate.low, estimate.high), estimate.n, error)

    def _gain(self, row: dict[str, str]) -> Finding:
        (pair,) = pairs(row)
        result = self.compare(row, pair, "whole")
        if result is None:
            return self._not_in(row, pair[1])
        error = math.hypot(*(self._error((row["output"], subject, *pair[2:])) for subject in pair[:2]))
        return self._absolute(row, result.text, result.gain, (result.low, result.high), result.n, error)

    def _demographic(self, row: dict[str, str]) -> Finding:
        frame = self.frames["table1"]
        part = frame[(frame["characteristic"] == row["quantities"]) & (frame["diagnosis"] == row["subjects"])]
        values = part.set_index("statistic")["value"]
        if values.isna().all():
            return self._not_in(row, f"{row['quantities']} of {row['subjects']}")
        text, n = demographic(values), float(part["n"].iloc[0])
        if "mean" not in values:
            return self._exact(row, text, float(values.iloc[0]) if len(values) == 1 else math.nan, n)
        reach = 1.96 * values["std"] / math.sqrt(n)
        ends, printed_std = (values["mean"] - reach, values["mean"] + reach), float(row["printed"].split(" ± ")[1])
        return self._absolute(row, text, values["mean"], ends, n, printed_std / math.sqrt(self.sizes[row["subjects"]]))

    def _absolute(
        self, row: dict[str, str], text: str, value: float, ends: tuple[float, float], n: float, error: float
    ) -> Finding:
        """Compare our number with the printed one, which has a standard error too."""
        if self.config.cohort.kind != "adni":
            return Finding(UNTESTABLE, "absolute number of another cohort", text, value, n)
        if row["quantities"] in METRICS and self.config.preprocess.intensity != "minmax":
            reason = "another intensity unit: a fixed range of SUVR here, not each volume's own (preprocess.intensity)"
            return Finding(UNTESTABLE, reason, text, value, n)
        if any(map(math.isnan, ends)):
            return Finding(MISSING, f"{self._file(row)} has no interval of ours", text, value, n)
        printed = float(row["printed"].split()[0])
        apart, low, high = mover((value, *ends), (printed, printed - 1.96 * error, printed + 1.96 * error))
        reason = f"ours − printed: {number(apart, 2)} [{number(low, 2)}, {number(high, 2)}]"
        return Finding(HELD if low <= 0 <= high else FAILED, reason, text, value, n)

    def _count(self, row: dict[str, str]) -> Finding:
        if not self.index.is_file():
            return self.absent(self.index, "01_preprocess")
        index = read_index(self.config, split=None)
        sets = index.loc[index[[f"present_{tracer}" for tracer in TRACERS]].astype(bool).all(axis=1), "split"]
        splits = {"training_sets": ["train", "validation"], "test_sets": ["test"]}  # the paper has no validation set
        value = int(sets.isin(splits.get(row["quantities"], sets)).sum())
        return self._exact(row, str(value), value, len(index))

    def _exact(self, row: dict[str, str], text: str, value: float, n: float) -> Finding:
        if self.config.cohort.kind != "adni":
            return Finding(UNTESTABLE, "count of another cohort", text, value, n)
        same = text == row["printed"]
        return Finding(HELD if same else FAILED, "the same count" if same else "another count", text, value, n)

    def _comparisons(self, row: dict[str, str]) -> Finding:
        """A sentence with comparisons; it held if each of them held."""
        expected = {pair: self.compare(row, pair) for pair in pairs(row)}
        results = [result for result in expected.values() if result is not None]
        tested = [result for result in results if result.tested]
        ours = self.estimates[row["output"], "brain"]
        subjects = {subject for subject, _, _ in ours}
        missing = dict.fromkeys(
            f"{NAMES[metric]} of {subject}" if subject in subjects else subject
            for better, worse, tracer, metric in expected
            for subject in (better, worse)
            if (subject, tracer, metric) not in ours
        )
        if not results:
            return self._not_in(row, *missing)
        text = self._text(row, results)
        if not tested:
            return Finding(MISSING, f"{self._file(row)} holds no test and no interval for it", text)
        value = results[0].gain if len(expected) == 1 else math.nan
        trainings = self._trainings(row)
        ending = self._beside(row) + (f". In {trainings} trainings" if trainings else "")
        values = text, value, min(result.n for result in tested), trainings
        failed = sorted((result for result in tested if not result.held), key=lambda result: result.gain > 0)
        if failed:
            reasons = "; ".join(f"{result.direction}: {result}" for result in failed[:3])
            more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
            return Finding(FAILED, reasons + more + ending, *values)
        if len(tested) < len(expected):
            absent = f"{', '.join(missing) or 'some tests'} not in {self._file(row)}"
            return Finding(UNTESTABLE, f"{len(tested)} of {len(expected)} held; {absent}{ending}", *values)
        weakest = max(tested, key=lambda result: (0.0 if math.isnan(result.p) else result.p, -result.low))
        return Finding(HELD, f"{'' if len(tested) == 1 else 'the weakest: '}{weakest}{ending}", *values)

    def _beside(self, row: dict[str, str]) -> str:
        """For orientation: how many parts of the comparison held in another view."""
        view, title, metrics = {
            "table2": ("whole", "SSIM over the whole grid", ("ssim",)),
            "table3": ("whole", "SSIM over the whole grid", ("ssim",)),
            "table4": ("planted", "By the planted status", ("auc", "acc", "f1")),
        }.get(row["output"], ("", "", ()))
        results = [self.compare(row, pair, view) for pair in pairs(row) if pair[3] in metrics]
        tested = [result for result in results if result is not None and result.tested]
        return f". {title}: {sum(result.held for result in tested)} of {len(tested)} held" if tested else ""

    def _trainings(self, row: dict[str, str]) -> str:
        """``k of n`` trainings with every mean difference in the right direction; empty without repeats."""
        subjects = row["subjects"].split()
        repeats = {subject: self.trainings.get(subject) or [subject] for subject in subjects}
        seeds = dict.fromkeys(name.partition("@")[2] for names in repeats.values() for name in names)
        if len(seeds) < 2 or row["output"] not in ("table2", "table3"):
            return ""
        right, counted = 0, 0
        for seed in seeds:
            chosen = {s: f"{s}@{seed}" if f"{s}@{seed}" in names else s for s, names in repeats.items()}
            keys = [[(chosen[subject], *pair[2:]) for subject in pair[:2]] for pair in pairs(row)]
            gains = [sign(a[2]) * (self.means[a] - self.means[b]) for a, b in keys if {a, b} <= set(self.means)]
            right, counted = right + (bool(gains) and min(gains) > 0), counted + bool(gains)
        return f"{right} of {counted}" if counted else ""

    def _text(self, row: dict[str, str], results: list[Comparison]) -> str:
        """The values of a chain, the gain of a single comparison, or how many held."""
        expected, ours = pairs(row), self.estimates[row["output"], "brain"]
        if row["kind"] == "chain" and len(results) == len(expected):
            values = [ours[subject, *expected[0][2:]].value for subject in row["subjects"].split()]
            signs = [">" if a > b else "<" if a < b else "=" for a, b in pairwise(values)]
            return " ".join(
                [number(values[0], 2), *(f"{s} {number(v, 2)}" for s, v in zip(signs, values[1:], strict=True))]
            )
        return results[0].text if len(expected) == 1 else f"{sum(one.held for one in results)} of {len(expected)}"

    def _close(self, row: dict[str, str]) -> Finding:
        ((first, other, tracer, metric),) = pairs(row)
        result = self.compare(row, (other, first, tracer, metric))
        if result is None:
            return self._not_in(row, f"{first} or {other}")
        margin = printed_gain(self.printed, row["output"], (other, first, tracer, metric))
        values = f"gap {number(result.gain, 2)}", result.gain, result.n
        if not result.tested:
            return Finding(MISSING, f"{self._file(row)} has no interval of ours", *values)
        reason = f"our gap [{number(result.low, 2)}, {number(result.high, 2)}], printed {number(margin, 2)}"
        planted = self.compare(row, (other, first, tracer, metric), "planted")
        if planted is not None and planted.tested:
            reason += f"; by the planted status [{number(planted.low, 2)}, {number(planted.high, 2)}]"
        if result.high <= margin:
            return Finding(HELD, reason, *values)
        direction = "no wider, but not supported" if result.gain <= margin else "wider"
        return Finding(FAILED, f"{direction}: {reason}", *values)


# ── the ledger ────────────────────────────────────────────────────────────────────────────────────


WIDTHS = {"Claim": 0.29, "Printed": 0.12, "Ours": 0.12, "n": 0.04, "Status": 0.11, "Why": 0.24}
"""Column widths in LaTeX, as shares of the line."""


def having(table: Table, *statuses: str) -> Table:
    """The paper's claims with any of these statuses, in one list."""
    part = table.frame[table.frame["status"].isin(statuses) & (table.frame["kind"] != "control")]
    notes = () if len(part) else ("none",)
    block = _list("", part, sections=True)
    return Table(table.name, ", ".join(statuses), table.notice, part, (block,), notes, WIDTHS)


def claims(config: Config) -> Table:
    """Every claim of the paper with our value and a verdict.

    Parameters
    ----------
    config : Config
        Values are read from ``figures/<profile>/``, counts from ``work/<profile>/``. A missing file gives
        ``not computed`` and the notebook to run.

    Returns
    -------
    Table
        Frame: id, section, kind, statement, printed, ours, n, unit, where, status, reason, trainings (``k of n``, empty
        without repeats), printed_value and ours_value (empty unless a claim is a single number). ``n`` counts people
        for image quality, else the units of the row's file. Rows of kind ``control`` are not claims of the paper.

    Raises
    ------
    ValueError
        An invalid file.
    """
    printed, resolver = printed_claims(config.root), Resolver(config)
    against = contradictions(printed, config.root)
    rows = []
    for row in [*printed.to_dict("records"), *_controls(resolver)]:
        finding = resolver.resolve(row)
        values = row["kind"] in ("value", "gain", "count", "setting")
        rows.append(
            {key: row[key] for key in ("id", "section", "kind", "statement")}
            | {"printed": _printed_text(row, resolver.printed), "ours": finding.ours, "n": finding.n}
            | {"unit": row["unit"]}
            | {"where": _where(row, config), "status": CONTRADICTED if row["id"] in against else finding.status}
            | {"reason": against.get(row["id"], finding.reason), "trainings": finding.trainings}
            | {"printed_value": float(row["printed"].split()[0]) if values else math.nan, "ours_value": finding.value}
        )
    frame = pd.DataFrame(rows).astype({"n": "Int64"})
    ours = frame["section"] == BESIDE
    return Table(
        widths=WIDTHS,
        name="claims",
        title="Claims of the paper, and what became of them",
        notice=config.notice,
        frame=frame,
        blocks=(
            _summary(frame),
            _distinct(resolver, printed),
            *(_list(_title(section), frame[frame["section"] == section]) for section in SECTIONS),
            *([_list(f"{BESIDE}: ResDM against our controls", frame[ours])] if ours.any() else []),
        ),
        notes=(
            *RULES,
            "Left out: numbers that are not results (years of citations, equation and grant numbers, addresses, "
            "indices), and statements about other work.",
        ),
    )


def headline(frame: pd.DataFrame) -> str:
    """``Settings: 9 of 12 as the paper. Results: 13 held, …``, without controls."""
    settings = frame.loc[frame["kind"] == "setting", "status"]
    results = frame.loc[~frame["kind"].isin(["setting", "control"]), "status"].value_counts()
    counts = ", ".join(f"{results[status]} {status}" for status in STATUSES if status in results)
    return f"Settings: {(settings == SAME).sum()} of {len(settings)} {SAME}. Results: {counts}."


def _controls(resolver: Resolver) -> list[dict[str, str]]:
    """Rows that compare ResDM with each control in our tables."""
    return [
        {"id": f"control/{output}/{name}", "section": BESIDE, "kind": "control", "output": output}
        | {"subjects": f"{REFERENCE_METHOD} {name}", "tracers": " ".join(TRACERS), "quantities": quantities}
        | {"printed": "", "unit": "", "note": ""}
        | {"statement": f"{REFERENCE_METHOD} is better than {name}: {_and(NAMES[m] for m in quantities.split())}"}
        for output, quantities in CONTROL_QUANTITIES.items()
        for name in CONTROLS
        if name != "ceiling" and any(s == name for s, *_ in resolver.estimates.get((output, "brain"), ()))
    ]


def _and(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def claim_inputs(config: Config) -> list[Path]:
    """The existing files that the ledger reads, for the provenance."""
    return Resolver(config).inputs()


def _printed_text(row: dict[str, str], values: Printed) -> str:
    """The printed text; for a comparison without a number, the result in the paper's own table."""
    if row["printed"] or row["kind"] in ("words", "control"):
        return row["printed"] or "–"
    gains = [printed_gain(values, row["output"], pair) for pair in pairs(row)]
    if row["kind"] == "close":
        return f"gap {number(-gains[0], 2)}"
    return f"{sum(gain > 0 for gain in gains)} of {len(gains)}"


def _where(row: dict[str, str], config: Config) -> str:
    """File of our value, and the notebook that computes it."""
    name, quantity = row["output"], row["quantities"]
    if row["kind"] == "words":
        return ""
    if name in OUTPUTS:
        return f"figures/{config.profile}/{name}.csv: notebooks/{STORED[name].notebook}.ipynb"
    if quantity in CODE:
        return CODE[quantity][1]
    if name == "index":
        return f"work/{config.profile}/volumes/index.csv: notebooks/01_preprocess.ipynb"
    if name == "status_folds":
        return f"work/{config.profile}/evaluation/status_folds.csv: notebooks/{STORED['table4'].notebook}.ipynb"
    return f"configs/{config.profile}.yaml"


def _summary(frame: pd.DataFrame) -> Block:
    results = frame[~frame["kind"].isin(["setting", "control"])]
    counts = pd.crosstab(results["section"], results["status"]).reindex(columns=STATUSES, fill_value=0)
    counts = counts.loc[[section for section in SECTIONS if section in counts.index]]
    counts.loc["all"] = counts.sum()
    rows = tuple((_title(section), *map(str, values)) for section, *values in counts.itertuples())
    return Block(headline(frame), (("", "Results of"), *(("", status) for status in STATUSES)), rows)


def _distinct(resolver: Resolver, printed: pd.DataFrame) -> Block:
    """Count each distinct comparison of the sentences once."""
    rows = []
    for output, part in printed[printed["kind"].isin(["best", "chain"])].groupby("output"):
        claimed = [(row, pair) for row in part.to_dict("records") for pair in pairs(row)]
        once = {pair: row for row, pair in claimed}
        stored = resolver.frames[output] is not None
        results = [resolver.compare(row, pair) for pair, row in once.items()] if stored else []
        tested = [result for result in results if result is not None and result.tested]
        held = sum(result.held for result in tested)
        right = sum(result.gain > 0 for result in tested) - held
        counts = len(once), held, right, len(tested) - held - right, len(once) - len(tested)
        rows.append((f"{output[:-1].capitalize()} {output[-1]}", *map(str, (len(part), len(claimed), *counts))))
    labels = ("In", "sentences", "comparisons", "distinct", "held", "right way, not supported", "not the right way")
    return Block("Comparisons, each counted once", tuple(("", label) for label in (*labels, "no test")), tuple(rows))


def _title(section: str) -> str:
    return f"Section {section}" if section[0].isdigit() else section


def _list(title: str, part: pd.DataFrame, *, sections: bool = False) -> Block:
    """One row per claim; ``sections`` adds the section of the paper to each."""
    labels = ("Claim", "Printed", "Ours", "n", "Status", "Why")
    rows, highlighted = [], set()
    for i, row in enumerate(part.to_dict("records")):
        place = f" [{_short(row['where'])}]" if row["where"] else ""
        prefix = f"{_title(row['section'])}: " if sections else ""
        printed = f"{row['printed']} {row['unit']}".strip()
        n = "–" if pd.isna(row["n"]) else str(row["n"])
        rows.append((prefix + row["statement"] + place, printed, row["ours"], n, row["status"], row["reason"]))
        if row["status"] in (FAILED, CONTRADICTED):
            highlighted.add((i, labels.index("Status")))
    return Block(title, tuple(("", label) for label in labels), tuple(rows), frozenset(highlighted))


def _short(where: str) -> str:
    """``table2.csv, 04``; the CSV has the full text."""
    path, _, notebook = where.partition(": notebooks/")
    return f"{path.rsplit('/', 1)[-1]}, {notebook[:2]}" if notebook else path
