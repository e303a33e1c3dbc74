"""Tables 1 and 2: a tidy frame each, and the same as Markdown and LaTeX beside the paper's printed values.

A `Table` holds its numbers once, as a tidy frame (the ``.csv``), and its page layout as blocks of text cells that
Markdown and LaTeX both come from. Formats are fixed, so the same scores give the same bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resdm.io import write_csv, write_json, write_text
from resdm.settings import TRACERS
from resdm_suite.cohorts.leakage import check_leakage
from resdm_suite.cohorts.manifest import read_manifest
from resdm_suite.evaluation.image_quality import HIGHER_IS_BETTER, METRICS, REGIONS, read_index, read_scores
from resdm_suite.evaluation.statistics import by_person, holm, paired, paired_test, trained
from resdm_suite.evaluation.statistics import interval as bootstrap_interval
from resdm_suite.profiles import FEWEST, Config

PAPER_METHODS = ("Pix2Pix", "SC-GAN", "DDPM", "TransUNet", "ResViT", "ResDM")
"""Methods of the paper's Table 2, in its order."""

CONTROLS = ("regression", "linear", "demographics", "template", "ceiling")
"""Rows that the paper does not show, in this order; `_CONTROL_NOTES` says what each is."""

REFERENCE_METHOD = "ResDM"
"""The method that all others are tested against."""

VARIANTS = {"Base": "base", "+L_high": "intra_domain_loss", "+prior": "prior", REFERENCE_METHOD: "ResDM"}
VARIANTS |= {"as_published": ""}
"""Rows of Table 3: a method of the profile → ``variant`` of the paper's printed table; "" where it has none."""

ROW_NAMES = {"as_published": "as published (no global, no linear path)"}
"""How a row is printed, where not by its method's name."""

TRACER_NAMES = {"amyloid": "Aβ-PET", "tau": "tau-PET"}
REGION_TITLES = {"whole": "Whole grid (0 outside the brain)", "brain": "Inside the brain"}
METRIC_NAMES = {"mae": "MAE", "psnr": "PSNR", "ssim": "SSIM"}
METRIC_UNITS = {"mae": "%", "psnr": "dB", "ssim": "%"}
METRIC_SCALES = {"mae": 100.0, "psnr": 1.0, "ssim": 100.0}  # scores.csv → tables

COSTS = {
    "parameters": ("model", "parameters", 1.0, "parameters (M)", 1e-6, 2),
    "gflop_per_volume": ("predictions", "gflop_per_volume", 1.0, "GFLOP a volume", 1.0, 1),
    "seconds_per_volume": ("predictions", "seconds_per_session", 1 / len(TRACERS), "s a volume", 1.0, 2),
    "training_seconds": ("model", "seconds", 1.0, "training (s)", 1.0, 0),
    "peak_memory_gib": ("model", "peak_memory_bytes", 2.0**-30, "peak memory (GiB)", 1.0, 2),
    "sampling_steps": ("predictions", "steps", 1.0, "sampling steps", 1.0, 0),
}
"""Column of the frame → where it is measured, key and scale; title, scale and decimals in print.

``model`` is ``models/<method>/timing.json`` of the training, ``predictions`` is
``predictions/<method>/<condition>/timing.json`` of the synthesis. What nobody measured stays empty.
"""

DIAGNOSES = ("AD", "MCI", "CN")


# ── a table and its writers ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Block:
    """One grid of text cells.

    Parameters
    ----------
    title : str
        Empty for a table of one block.
    columns : tuple of (str, str)
        Group and label of each column; columns next to each other with one group share a heading.
    rows : tuple of tuple of (str or tuple of str)
        A cell is its lines; the first column names the row.
    best : frozenset of (int, int)
        Row and column of cells whose first line is printed bold.
    """

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Any, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Table:
    """A table: tidy numbers and page layout.

    Parameters
    ----------
    name : str
        File stem and LaTeX label, ``table2``.
    title : str
    notice : str
        `Config.notice`; put into the title of Markdown and the caption of LaTeX. Empty where there is nothing to say.
    frame : DataFrame
        Tidy numbers, as written to CSV.
    blocks : tuple of Block
    notes : tuple of str
    """

    name: str
    title: str
    notice: str
    frame: pd.DataFrame
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """Title with the notice."""
        return f"{self.title} ({self.notice})" if self.notice else self.title

    def markdown(self) -> str:
        """GitHub-flavoured Markdown."""
        lines = [f"## {self.heading}", ""]
        for block in self.blocks:
            if block.title:
                lines += [f"### {block.title}", ""]
            lines.append("| " + " | ".join(f"{group} {label}".strip() for group, label in block.columns) + " |")
            lines.append("|" + "|".join(["---"] + ["--:"] * (len(block.columns) - 1)) + "|")
            for i, row in enumerate(block.rows):
                cells = []
                for j, cell in enumerate(row):
                    first, *rest = _lines(cell)
                    first = f"**{first}**" if (i, j) in block.best else first
                    cells.append("<br>".join([first, *rest]).replace("|", "\\|"))
                lines.append("| " + " | ".join(cells) + " |")
            lines.append("")
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"

    def latex(self) -> str:
        """A ``table*`` environment; needs ``booktabs``, plain ASCII, compiles with any engine."""
        out = [
            "% needs \\usepackage{booktabs}",
            "\\begin{table*}[t]",
            "\\centering",
            "\\small",
            f"\\caption{{{_tex(re.sub(r'^Table [0-9]+: ', '', self.heading))}.}}",  # LaTeX numbers it
            f"\\label{{tab:{self.name}}}",
        ]
        for number, block in enumerate(self.blocks):
            if number:
                out.append("\\par\\medskip")
            if block.title:
                out.append(f"\\textbf{{{_tex(block.title)}}}\\par\\smallskip")
            out += [f"\\begin{{tabular}}{{l{'r' * (len(block.columns) - 1)}}}", "\\toprule"]
            groups = _groups(block.columns)
            if any(name for name, _, _ in groups):
                out.append(" & ".join(_multicolumn(name, first, last) for name, first, last in groups) + " \\\\")
                out.append(" ".join(f"\\cmidrule(lr){{{a + 1}-{b + 1}}}" for name, a, b in groups if name))
            out.append(" & ".join(_tex(label) for _, label in block.columns) + " \\\\")
            out.append("\\midrule")
            for i, row in enumerate(block.rows):
                cells = [_lines(cell) for cell in row]
                for k in range(max(map(len, cells))):
                    texts = [_tex(lines[k]) if k < len(lines) else "" for lines in cells]
                    if k:
                        texts = [f"{{\\scriptsize {text}}}" if text else "" for text in texts]
                    else:
                        texts = [f"\\textbf{{{t}}}" if (i, j) in block.best else t for j, t in enumerate(texts)]
                    out.append(" & ".join(texts) + " \\\\")
            out += ["\\bottomrule", "\\end{tabular}"]
        if self.notes:
            out.append("\\par\\smallskip\\begin{minipage}{\\linewidth}\\footnotesize")
            out += [f"{_tex(note)}\\par" for note in self.notes]
            out.append("\\end{minipage}")
        out.append("\\end{table*}")
        return "\n".join(out) + "\n"

    def _repr_markdown_(self) -> str:
        return self.markdown()


def save_table(table: Table, folder: str | Path, provenance: Mapping[str, Any]) -> list[Path]:
    """Write ``<name>.csv``, ``.md``, ``.tex`` and the ``.json`` sidecar into a folder, each atomically.

    Parameters
    ----------
    table : Table
    folder : path
        `Config.figures`.
    provenance : mapping
        See `resdm_suite.reporting.provenance.provenance`.
    """
    stem = Path(folder) / table.name
    return [
        write_csv(stem.with_suffix(".csv"), table.frame, "%.6g"),
        write_text(stem.with_suffix(".md"), table.markdown()),
        write_text(stem.with_suffix(".tex"), table.latex()),
        write_json(stem.with_suffix(".json"), dict(provenance)),
    ]


def read_paper(number: int, root: str | Path | None = None) -> pd.DataFrame:
    """The paper's printed Table 1–4, tidy, from ``data_manifests/paper/``.

    Parameters
    ----------
    number : int
    root : path, optional
        Folder that holds ``data_manifests/`` (`Config.root`); without it, or where it has none, this checkout's.
    """
    places = [Path(root)] if root is not None else []
    places.append(Path(__file__).resolve().parents[2])
    for place in places:
        path = place / "data_manifests" / "paper" / f"table{number}.csv"
        if path.is_file():
            return pd.read_csv(path, keep_default_na=False, na_values={"value": [""], "mean": [""], "std": [""]})
    raise FileNotFoundError(f"{path}: the paper's printed table {number} is not there; run from a full checkout")


def _lines(cell: Any) -> tuple[str, ...]:
    return (cell,) if isinstance(cell, str) else tuple(cell) or ("",)


_TEX = {
    "\\": "\\textbackslash{}", "%": "\\%", "&": "\\&", "_": "\\_", "#": "\\#", "$": "\\$", "{": "\\{", "}": "\\}",
    "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$",
    "±": "$\\pm$", "−": "$-$", "β": "$\\beta$", "↑": "$\\uparrow$", "↓": "$\\downarrow$", "×": "$\\times$",
    "–": "--", "—": "---", "…": "\\dots{}", "’": "'", "≥": "$\\geq$", "≤": "$\\leq$", "∞": "$\\infty$",
    "³": "$^3$", "²": "$^2$", "λ": "$\\lambda$", "ρ": "$\\rho$", "σ": "$\\sigma$",
}  # fmt: skip


def _tex(text: str) -> str:
    out = "".join(_TEX.get(character, character) for character in text)
    if not out.isascii():
        strange = sorted({character for character in out if not character.isascii()})
        raise ValueError(f"no LaTeX for {strange} in {text!r}; add it to the map of characters")
    return f"{{}}{out}" if out.startswith("[") else out  # else \\ before it takes it for its argument


def _groups(columns: Sequence[tuple[str, str]]) -> list[tuple[str, int, int]]:
    groups: list[tuple[str, int, int]] = []
    for i, (group, _) in enumerate(columns):
        if groups and group and groups[-1][0] == group:
            groups[-1] = (group, groups[-1][1], i)
        else:
            groups.append((group, i, i))
    return groups


def _multicolumn(name: str, first: int, last: int) -> str:
    return f"\\multicolumn{{{last - first + 1}}}{{c}}{{{_tex(name)}}}" if name else ""


def number(value: float, decimals: int) -> str:
    """A number as the tables print it: proper minus, ∞, and – for what is not known."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{decimals}f}".replace("-", "−")


def span(counts: pd.Series) -> str:
    """``58``, ``57–58`` where counts differ, – where there is none."""
    if counts.empty:
        return "–"
    return "–".join(f"{count:.0f}" for count in sorted({counts.min(), counts.max()}))


def p_value(value: float) -> str:
    """``p < 0.001``, ``p = 0.012``, or empty where there is none."""
    if value is None or math.isnan(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


# ── table 1 ───────────────────────────────────────────────────────────────────────────────────────

_CHARACTERISTICS = {
    "age": ("Age", "years", 2),
    "education": ("Years of education", "years", 2),
    "mmse": ("MMSE", "points", 2),
    "amyloid_suvr": ("Aβ SUVR", "SUVR", 2),
    "tau_suvr": ("Tau SUVR", "SUVR", 2),
    "amyloid_centiloid": ("Centiloid", "Centiloid", 1),
}
_DAYS = {f"{tracer}_days": f"Days T1 to {name}, median (max)" for tracer, name in TRACER_NAMES.items()}
_OPTIONAL = ("amyloid_centiloid", *_DAYS)  # rows that are left out where the whole cohort has nothing


def cohort_sessions(config: Config) -> pd.DataFrame:
    """The sessions of ``volumes/index.csv`` with what the manifest alone knows: days between scans, Centiloid."""
    keys, columns = ["person", "session"], [*_DAYS, "amyloid_centiloid"]
    manifest = read_manifest(config.manifest, files=False)[[*keys, *columns]]
    index = read_index(config, split=None)
    index = index[[name for name in index if name not in columns]]
    return index.merge(manifest, on=keys, how="left", validate="one_to_one")


def table1(sessions: pd.DataFrame, config: Config) -> Table:
    """Demographics by diagnosis, beside the paper's printed values.

    Parameters
    ----------
    sessions : DataFrame
        Rows of ``volumes/index.csv`` or of ``manifest.csv``, or of both, see `cohort_sessions`. Characteristics that
        are missing or empty print ``–``; Centiloid and days without any value are left out.
    config : Config

    Returns
    -------
    Table
        Frame: characteristic, diagnosis, statistic, unit, value, n (sessions with that characteristic known), paper.
        Days are absolute. A cohort without diagnoses has ``all`` only, and the paper's columns beside it.

    Raises
    ------
    LeakageError
        A person in more than one split.
    """
    paper = read_paper(1, config.root).set_index(["characteristic", "diagnosis", "statistic"])["value"]
    if "split" in sessions:
        check_leakage(sessions, "Table 1")
    sessions = sessions.reset_index(drop=True)
    diagnosis = sessions["diagnosis"].astype(object).fillna("").replace("", "unlabelled")
    others = sorted(set(diagnosis) - {*DIAGNOSES, "unlabelled"})
    groups = [d for d in (*DIAGNOSES, *others, "unlabelled") if (diagnosis == d).any()]
    if groups == ["unlabelled"]:
        groups = []
    parts = {name: sessions[diagnosis == name] for name in groups} | {"all": sessions}
    rows: list[dict[str, Any]] = []
    fewest = 1 if config.individual else FEWEST

    def add(characteristic: str, group: str, statistic: str, unit: str, value: float, n: int) -> None:
        printed = paper.get((characteristic, group, statistic), math.nan)
        rows.append(
            {"characteristic": characteristic, "diagnosis": group, "statistic": statistic, "unit": unit}
            | {"value": value, "n": n, "paper": printed}
        )

    for name, part in parts.items():
        has = {tracer: _has(part, tracer) for tracer in TRACERS}
        add("people", name, "count", "", part["person"].nunique(), len(part))
        add("sessions", name, "count", "", len(part), len(part))
        add("sets", name, "count", "", int((has["amyloid"] & has["tau"]).sum()), len(part))
        sex = part["sex"].fillna("")
        known = int(sex.isin(["F", "M"]).sum())
        for code, word in (("F", "female"), ("M", "male")):
            add("sex", name, word, "", int((sex == code).sum()), known)
        for column, (_, unit, _) in _CHARACTERISTICS.items():
            empty = pd.Series(np.nan, index=part.index)
            values = pd.to_numeric(part.get(column, empty), errors="coerce").dropna()
            if part.loc[values.index, "person"].nunique() < fewest:
                values = values[:0]
            add(column, name, "mean", unit, values.mean(), len(values))
            add(column, name, "std", unit, values.std(ddof=1), len(values))
        for column in _DAYS:
            days = pd.to_numeric(part.get(column, pd.Series(dtype=float)), errors="coerce").abs().dropna()
            days = days if part.loc[days.index, "person"].nunique() >= fewest else days[:0]
            add(column, name, "median", "days", days.median(), len(days))
            add(column, name, "max", "days", days.max() if config.individual else math.nan, len(days))
        for tracer in TRACERS:
            labels = _labels(part, tracer)
            for label in sorted(set(_labels(sessions, tracer))):
                add(f"{tracer}_tracer", name, label, "", int((labels == label).sum()), len(labels))
            status = pd.to_numeric(part.get(f"{tracer}_status", pd.Series(np.nan, index=part.index)), errors="coerce")
            n = int(status.notna().sum())
            add(f"{tracer}_status", name, "positive", "", float((status == 1).sum()) if n else math.nan, n)
    frame = pd.DataFrame(rows)
    frame["characteristic"] = frame["characteristic"].astype(str)
    of_days = frame["characteristic"].isin(_DAYS)
    return Table(
        name="table1",
        title="Table 1: Demographics of the cohort",
        notice=config.notice,
        frame=frame,
        blocks=(_block1(frame, list(parts), paper),),
        notes=(
            "Mean ± standard deviation over sessions; sessions are counted as the paper counts its sets. "
            "A set is a session with T1, Aβ-PET and tau-PET.",
            "Paper: printed values of its Table 1. Its columns sum to 1474 sets (210 + 656 + 608) where its text says "
            "1274; status counts and totals are not printed there.",
            *([] if config.individual else [f"Means are of {FEWEST} people or more, and no extremes are shown."]),
            *(["Days are absolute, from the T1 scan to the PET."] if frame.loc[of_days, "n"].any() else []),
            *([] if groups else ["Nobody here has a diagnosis; the paper's groups stand beside all sessions."]),
        ),
    )


def _labels(part: pd.DataFrame, tracer: str) -> pd.Series:
    """BIDS labels of a tracer's PETs."""
    labels = part.get(f"{tracer}_tracer", pd.Series("", index=part.index))[_has(part, tracer)].fillna("")
    return labels[labels != ""]


def _has(part: pd.DataFrame, tracer: str) -> pd.Series:
    if f"present_{tracer}" in part:
        return part[f"present_{tracer}"].astype(bool)
    return part[tracer].fillna("").astype(str).ne("")


def _block1(frame: pd.DataFrame, groups: list[str], paper: pd.Series) -> Block:
    values = frame.set_index(["characteristic", "diagnosis", "statistic"])["value"]

    def cell(source: pd.Series, group: str, characteristic: str, decimals: int) -> str:
        words = _statistics(characteristic)
        found = [source.get((characteristic, group, word), math.nan) for word in words]
        if all(math.isnan(value) for value in found):
            return "–"
        said = [number(value, decimals) for value in found]
        if characteristic in _DAYS:
            return f"{said[0]} ({said[1]})"
        return ("/" if characteristic == "sex" else " ± ").join(said)

    def tracers(source: pd.Series, group: str, characteristic: str, _: int) -> Any:
        counts = [
            f"{label} {number(n, 0)}" for (name, g, label), n in source.items() if (name, g) == (characteristic, group)
        ]
        return tuple(counts) or "–"

    known = {name for name in _OPTIONAL if (frame.loc[frame["characteristic"] == name, "n"] > 0).any()}
    labels = (
        [("people", "People", 0), ("sessions", "Sessions", 0), ("sets", "Sets (T1, Aβ, tau)", 0)]
        + [("sex", "Sex (female/male)", 0)]
        + [(key, label, decimals) for key, (label, _, decimals) in _CHARACTERISTICS.items()]
        + [("amyloid_status", "Aβ positive", 0), ("tau_status", "Tau positive", 0)]
        + [("amyloid_tracer", "Aβ tracers", 0), ("tau_tracer", "Tau tracers", 0)]
        + [(key, label, 0) for key, label in _DAYS.items()]
    )
    labels = [label for label in labels if label[0] in known or label[0] not in _OPTIONAL]
    shown = [(name, source) for name in groups for source in ("here", "paper") if source == "here" or name in DIAGNOSES]
    shown += [(name, "paper") for name in DIAGNOSES if name not in groups]
    columns, rows = [("", "")], [[label] for _, label, _ in labels]
    for group, source in shown:
        columns.append((group, source))
        for row, (key, _, decimals) in zip(rows, labels, strict=True):
            make = tracers if key.endswith("_tracer") else cell
            row.append(make(values if source == "here" else paper, group, key, decimals))
    return Block("", tuple(columns), tuple(map(tuple, rows)))


def _statistics(characteristic: str) -> tuple[str, ...]:
    if characteristic == "sex":
        return ("female", "male")
    if characteristic in _CHARACTERISTICS:
        return ("mean", "std")
    if characteristic in _DAYS:
        return ("median", "max")
    return ("positive",) if characteristic.endswith("_status") else ("count",)


# ── table 2 ───────────────────────────────────────────────────────────────────────────────────────


_CONTROL_NOTES = {
    "regression": "the network of ResDM in one pass, trained by plain L2",
    "linear": "ridge regression of the PET on MRI, age and sex in closed form, chosen on validation people",
    "demographics": "least squares of every voxel on age and sex, no MRI",
    "template": "mean PET of the training people, the same for everyone",
    "ceiling": "the best estimate possible from what MRI, age and sex show of a phantom's causes; no model sees it",
}


def seeds_of(config: Config, method: str, condition: str = "factual") -> list[str]:
    """A method and its repetitions under other seeds, ``X``, ``X@seed1``, …, that have stored scores."""
    names = [name for name in config.methods if name.partition("@")[0] == method]
    return [name for name in names if (config.predictions(name, condition) / "scores.csv").is_file()]


def read_trainings(config: Config, methods: Iterable[str], condition: str = "factual") -> pd.DataFrame:
    """The stored scores of every training of some rows, see `resdm_suite.evaluation.image_quality.read_scores`."""
    return read_scores(config, [t for m in methods for t in seeds_of(config, m, condition) or [m]], condition)


def present_methods(config: Config, condition: str = "factual") -> list[str]:
    """Rows of Table 2 that have stored scores: the paper's methods in its order, the profile's others, the controls."""
    others = [m for m in config.methods if "@" not in m and m not in {*PAPER_METHODS, *CONTROLS, *VARIANTS}]
    names = (*PAPER_METHODS, *others, *CONTROLS)
    return [m for m in names if (config.predictions(m, condition) / "scores.csv").is_file()]


def told(config: Config, method: str) -> str:
    """What a row knows of a person beside the MRI, by its settings: ``age, sex``, or – for nothing."""
    settings = config.methods.get(method)
    prior = getattr(settings, "prior", None)
    known = getattr(settings, "labels", getattr(settings if prior is None else prior, "fields", ()))
    known = {"ceiling": ("causes", "age", "sex")}.get(method, sorted(known))
    return ", ".join(known) or "–"


def table2(config: Config, methods: Iterable[str] | None = None) -> Table:
    """Image quality of every method, beside the paper's printed values.

    Parameters
    ----------
    config : Config
    methods : iterable of str, optional
        Rows with stored scores, in their order; by default `present_methods`. A person's scores are averaged over the
        trainings of a row (`seeds_of`).

    Returns
    -------
    Table
        Frame: one row a method, tracer, region and metric; columns method, tracer, region, metric, unit, mean, std, n
        (people), sessions, trainings, seed_std (standard deviation of the mean between trainings), paper, paper_std
        (region ``whole`` only), ci_low, ci_high, difference (method − ResDM), difference_low, difference_high,
        rank_biserial, p (Holm), share (of the way from template to ceiling, where both are there), told, then the costs
        of the method's first training (`COSTS`).

    Raises
    ------
    ValueError
        No scores at all, or methods or trainings that were not scored on the same people.
    """
    names = present_methods(config) if methods is None else list(methods)
    if not names:
        raise ValueError(f"{config.work / 'predictions'}: no method has scores.csv; synthesise and score one first")
    scores = read_trainings(config, names)
    frame = quality(scores, seed=config.seed, paper=read_paper(2, config.root))
    frame["share"] = _share(frame)
    frame["told"] = frame["method"].map({name: told(config, name) for name in names})
    cost = costs(config, names)
    frame = frame.merge(cost, on="method", how="left", validate="many_to_one")
    compared = REFERENCE_METHOD in names and len(names) > 1
    known = {"told": [told(config, name) for name in names]}
    blocks = [
        metric_block(frame, "whole", names, spread, extra=known, best=True),
        *paper_block(frame, names),
        metric_block(frame, "brain", names, spread, extra=known, best=True),
        metric_block(frame, "brain", names, interval, title="Inside the brain: 95 % interval of the mean"),
    ]
    if compared:
        title = f"Inside the brain: difference to {REFERENCE_METHOD} [95 % interval], p"
        others = [name for name in names if name != REFERENCE_METHOD]
        blocks.append(metric_block(frame, "brain", others, change, title=title))
    if frame["share"].notna().any():
        title = "Inside the brain: share of the way from template to ceiling"
        blocks.append(metric_block(frame, "brain", names, lambda row: percent(row["share"]), title=title))
    blocks += trainings_block(frame, names)
    return Table(
        name="table2",
        title="Table 2: Quantitative evaluation of the synthetic PET",
        notice=config.notice,
        frame=frame,
        blocks=(*blocks, _cost_block(cost)),
        notes=(
            f"Mean ± standard deviation over test people (n = {span(frame['n'])}; sessions of "
            "one person averaged first). Bold: best mean of the column. Intervals of the whole grid are in the CSV.",
            *trainings_note(frame),
            *([_WHOLE] if config.preprocess.mask else []),
            "told: what a method knows of a person beside the MRI.",
            "Intensities in [0, 1], data range 1; SSIM 3D with a uniform window of 7 × 7 × 7 voxels.",
            f"p: two-sided Wilcoxon signed-rank test against {REFERENCE_METHOD} over people, Holm-corrected over the "
            "rows of the column."
            if compared
            else f"No test: it needs {REFERENCE_METHOD} and one more method.",
            *_against_linear(scores, config.seed),
            "Paper: printed values, on another cohort and, as far as is known, over the whole volume; its data range "
            "and SSIM window are not stated.",
            "Not in the paper: " + "; ".join(f"{c}: {_CONTROL_NOTES[c]}" for c in CONTROLS if c in names) + "."
            if set(CONTROLS) & set(names)
            else "Every row is a method of the profile.",
            *_below_template(frame, names),
            *(f"{name} predicts x_0, not the noise: {_NOT_NOISE}." for name in names if _predicts_sample(config, name)),
            "Cost, of a row's first training: seconds and GFLOP are of one synthetic volume, one tracer. Peak memory "
            "is that of the device in training, or of the process where that is a CPU. – is not measured.",
        ),
    )


_NOT_NOISE = "better after the few steps that this profile has, worse in the original's study of long trainings"
_WHOLE = (
    "Whole grid: outside the brain predictions and preprocessed PET are 0, so MAE is that inside the brain times a "
    "constant, PSNR that inside the brain plus a constant: no second result."
)


def _predicts_sample(config: Config, name: str) -> bool:
    return getattr(config.methods.get(name), "prediction", "epsilon") == "sample"


def _share(frame: pd.DataFrame) -> pd.Series:
    """(mean − template) / (ceiling − template), by tracer, region and metric; NaN where one of them is not there."""
    places = frame.set_index(["tracer", "region", "metric"])
    low, high = (
        places.loc[places["method"] == name, "mean"].reindex(places.index).to_numpy()
        for name in ("template", "ceiling")
    )
    return (frame["mean"] - low) / np.where(high == low, np.nan, high - low).astype(float) + 0.0  # no −0


def _against_linear(scores: pd.DataFrame, seed: int) -> list[str]:
    """ResDM against the linear control: PSNR inside the brain, two-sided, Holm over the tracers."""
    people = by_person(scores[scores["region"] == "brain"])
    if not {REFERENCE_METHOD, "linear"} <= set(people["method"]):
        return []
    tracers = list(dict.fromkeys(people["tracer"]))
    found = [
        paired_test(*paired(people[people["tracer"] == tracer], REFERENCE_METHOD, "linear", "psnr"), seed=seed)
        for tracer in tracers
    ]
    said = [
        f"{TRACER_NAMES[tracer]} {number(one.difference, 2)} dB [{number(one.low, 2)}, {number(one.high, 2)}], "
        f"{p_value(p)}"
        for tracer, one, p in zip(tracers, found, holm(one.p for one in found), strict=True)
    ]
    return [f"{REFERENCE_METHOD} − linear, PSNR inside the brain: {'; '.join(said)} (two-sided, Holm over tracers)."]


def _below_template(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Methods whose mean PSNR inside the brain is below the template's in every tracer, with the numbers."""
    part = frame[(frame["region"] == "brain") & (frame["metric"] == "psnr")]
    means = part.pivot_table("mean", "method", "tracer", sort=False)
    if "template" not in means.index:
        return []
    below = [name for name in names if name in means.index and (means.loc[name] < means.loc["template"]).all()]

    def said(name: str) -> str:
        return "/".join(number(value, 2) for value in means.loc[name])

    tracers = "/".join(TRACER_NAMES[tracer] for tracer in means)
    listed = ", ".join(f"{name} {said(name)}" for name in below)
    return [f"Below the mean template ({said('template')} dB, PSNR inside the brain, {tracers}): {listed}."] * bool(
        below
    )


def quality(
    scores: pd.DataFrame, *, seed: int, paper: pd.DataFrame | None = None, reference: str = REFERENCE_METHOD
) -> pd.DataFrame:
    """The tidy numbers of Table 2 from stored scores.

    Parameters
    ----------
    scores : DataFrame
        Rows of ``scores.csv`` with ``method``; ``X`` and ``X@…`` are trainings of one row.
    seed : int
        Of the bootstrap.
    paper : DataFrame, optional
        Printed values: method, tracer, metric, mean, std.
    reference : str
        The method that the others are tested against.

    Returns
    -------
    DataFrame
        See `table2`, up to ``p``; MAE and SSIM in %, PSNR in dB.
    """
    printed = {} if paper is None else paper.set_index(["method", "tracer", "metric"])[["mean", "std"]].T.to_dict()
    people = by_person(scores)
    people[list(METRICS)] *= pd.Series(METRIC_SCALES)[list(METRICS)].to_numpy()
    methods = list(dict.fromkeys(scores["method"].str.partition("@")[0]))
    sessions = scores.groupby(["method", "tracer", "region"]).size()
    rows = []
    for tracer in (t for t in TRACERS if (people["tracer"] == t).any()):
        for region in (r for r in REGIONS if (people["region"] == r).any()):
            part = people[(people["tracer"] == tracer) & (people["region"] == region)]
            for metric in METRICS:
                column = []
                for method in methods:
                    values = printed.get((method, tracer, metric), {}) if region == "whole" else {}
                    column.append(
                        {"method": method, "tracer": tracer, "region": region, "metric": metric}
                        | {"unit": METRIC_UNITS[metric]}
                        | _summary(part, method, metric, seed, reference)
                        | {"sessions": int(sessions.get((method, tracer, region), 0))}
                        | {"paper": values.get("mean", math.nan), "paper_std": values.get("std", math.nan)}
                    )
                for row, p in zip(column, holm(row["p"] for row in column), strict=True):
                    row["p"] = p
                rows += column
    return pd.DataFrame(rows)[[*KEYS, "unit", *_VALUES, *COMPARISON]]


KEYS = ("method", "tracer", "region", "metric")
_VALUES = ("mean", "std", "n", "sessions", "trainings", "seed_std", "paper", "paper_std", "ci_low", "ci_high")
COMPARISON = ("difference", "difference_low", "difference_high", "rank_biserial", "p")
"""Columns of a paired comparison: mean difference, ends of its 95 % interval, rank-biserial correlation, p (Holm)."""


def comparison(a: np.ndarray, b: np.ndarray, seed: int) -> dict[str, float]:
    """The columns of `COMPARISON`, p not corrected; see `resdm_suite.evaluation.statistics.paired_test`."""
    found = paired_test(a, b, seed=seed)
    values = (found.difference, found.low, found.high, found.rank_biserial, found.p)
    return dict(zip(COMPARISON, values, strict=True))


def summary(values: np.ndarray, seed: int) -> dict[str, float]:
    """Mean, std (over people), n, interval, trainings and the deviation between them of values (trainings, people)."""
    people, means = values.mean(axis=0), values.mean(axis=1)
    low, high = bootstrap_interval(values, seed=seed)
    with np.errstate(invalid="ignore"):  # the spread of infinite PSNR is NaN
        spreads = [float(np.std(one, ddof=1)) if len(one) > 1 else math.nan for one in (people, means)]
    row = {"mean": float(np.mean(people)), "std": spreads[0], "n": len(people), "ci_low": low, "ci_high": high}
    return row | {"trainings": len(values), "seed_std": spreads[1]}


def _summary(people: pd.DataFrame, method: str, metric: str, seed: int, reference: str) -> dict[str, Any]:
    row = summary(trained(people, method, metric).to_numpy(), seed)
    if method == reference or not (people["method"] == reference).any():
        return row | dict.fromkeys(COMPARISON, math.nan)
    return row | comparison(*paired(people, method, reference, metric), seed)


# ── cells and blocks of image quality ─────────────────────────────────────────────────────────────


def spread(row: Mapping[str, Any]) -> str:
    """``26.30 ± 2.31``."""
    return "–" if math.isnan(row["mean"]) else f"{number(row['mean'], 2)} ± {number(row['std'], 2)}"


def interval(row: Mapping[str, Any]) -> str:
    """``[25.71, 26.89]``."""
    return "–" if math.isnan(row["ci_low"]) else f"[{number(row['ci_low'], 2)}, {number(row['ci_high'], 2)}]"


def change(row: Mapping[str, Any], prefix: str = "") -> str:
    """``−1.02 [−1.42, −0.62], p < 0.001``."""
    difference, low, high, _, p = (row[prefix + key] for key in COMPARISON)
    if math.isnan(difference):
        return "–"
    return f"{number(difference, 2)} [{number(low, 2)}, {number(high, 2)}], {p_value(p)}"


def percent(value: float) -> str:
    """A fraction in %."""
    return "–" if math.isnan(value) else f"{number(100 * value, 0)} %"


def metric_block(
    frame: pd.DataFrame,
    region: str,
    names: Sequence[str],
    cell: Callable[[Mapping[str, Any]], str],
    *,
    title: str | None = None,
    head: str = "Method",
    extra: Mapping[str, Sequence[str]] | None = None,
    best: bool = False,
) -> Block:
    """One line a method, one column a tracer and metric.

    Parameters
    ----------
    frame : DataFrame
        Rows of `quality`.
    region : str
    names : sequence of str
        Methods, in their order.
    cell : callable
        A row of ``frame`` → text of one line.
    title, head : str
        Of the block (by default the region's), and of its first column.
    extra : mapping of str to sequence of str
        Columns after the first.
    best : bool
        Mark the best mean of a column, the ceiling's aside.
    """
    part = frame[frame["region"] == region]
    heads = list(dict.fromkeys(zip(part["tracer"], part["metric"], strict=True)))
    extra = extra or {}
    columns, marked = [("", head), *(("", label) for label in extra)], set()
    rows = [[ROW_NAMES.get(name, name), *(values[i] for values in extra.values())] for i, name in enumerate(names)]
    for j, (tracer, metric) in enumerate(heads, start=len(columns)):
        better = HIGHER_IS_BETTER.get(metric, True)
        label = f"{METRIC_NAMES.get(metric, metric.upper())} ({METRIC_UNITS.get(metric, '%')})"
        columns.append((TRACER_NAMES[tracer], f"{label} {'↑' if better else '↓'}"))
        chosen = part[(part["tracer"] == tracer) & (part["metric"] == metric)].set_index("method").loc[list(names)]
        order = (chosen["mean"] if better else -chosen["mean"]).drop("ceiling", errors="ignore")  # it is no method
        marked |= {(i, j) for i, name in enumerate(names) if best and order.get(name) == order.max()}
        for row, values in zip(rows, chosen.to_dict("records"), strict=True):
            row.append(cell(values))
    return Block(REGION_TITLES[region] if title is None else title, tuple(columns), tuple(map(tuple, rows)),
                 frozenset(marked))  # fmt: skip


def paper_block(frame: pd.DataFrame, names: Sequence[str], head: str = "Method", region: str = "whole") -> list[Block]:
    """The paper's printed values of the rows that it has."""
    printed = set(frame.loc[(frame["region"] == region) & frame["paper"].notna(), "method"])
    rows = [name for name in names if name in printed]

    def cell(row: Mapping[str, Any]) -> str:
        return spread({"mean": row["paper"], "std": row["paper_std"]})

    return [metric_block(frame, region, rows, cell, title=_PAPER_TITLES[region], head=head)] * bool(rows)


_PAPER_TITLES = {"whole": "Printed in the paper", "status": "Printed in the paper: status classification"}


def trainings_block(frame: pd.DataFrame, names: Sequence[str], head: str = "Method") -> list[Block]:
    """The spread between the trainings of a row, where some have several."""
    part = frame[frame["region"] == "brain"].drop_duplicates("method").set_index("method")["trainings"]
    rows = [name for name in names if part[name] > 1]
    counts = {"trainings": [f"{part[name]:.0f}" for name in rows]}
    title = "Inside the brain: standard deviation of the mean between trainings"
    block = metric_block(frame, "brain", rows, lambda row: number(row["seed_std"], 2), title=title, head=head,
                         extra=counts)  # fmt: skip
    return [block] * bool(rows)


def trainings_note(frame: pd.DataFrame) -> list[str]:
    """What repeated trainings do to the numbers, or that there are none."""
    counts = frame.drop_duplicates("method").set_index("method")["trainings"]
    if counts.max() == 1:
        return ["One training a row: a difference between two rows may be one between two trainings."]
    said = ", ".join(f"{ROW_NAMES.get(name, name)} {count:.0f}" for name, count in counts.items() if count > 1)
    return [
        f"Trainings under other seeds: {said}; of the others one. A person's scores are averaged over them; intervals "
        "resample people and, independently for each row, its trainings."
    ]


def costs(config: Config, methods: Iterable[str], condition: str = "factual") -> pd.DataFrame:
    """What each method costs: column ``method``, then those of `COSTS`, NaN where it was not measured."""
    rows = []
    for method in methods:
        places = {"model": config.model(method), "predictions": config.predictions(method, condition)}
        measured = {}
        for place, folder in places.items():
            path = folder / "timing.json"
            measured[place] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        row: dict[str, Any] = {"method": method}
        for name, (place, key, scale, *_) in COSTS.items():
            value = measured[place].get(key)
            row[name] = math.nan if value is None else float(value) * scale
        rows.append(row)
    return pd.DataFrame(rows, columns=["method", *COSTS])


def _cost_block(frame: pd.DataFrame) -> Block:
    columns = (("", "Method"), *(("", title) for *_, title, _, _ in COSTS.values()))
    rows = tuple(
        (row["method"], *(number(row[key] * scale, digits) for key, (*_, scale, digits) in COSTS.items()))
        for row in frame.to_dict("records")
    )
    return Block("Cost", columns, rows)
