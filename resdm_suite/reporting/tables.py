"""What all tables share: stored scores, the paper's printed values, text of a cell, pivot, and the writer.

A `Table` holds its numbers once, as a tidy frame (the ``.csv``), and pages of text cells for Markdown and LaTeX.
Every cell is one line. Formats are fixed, so the same scores give the same bytes.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import ArrayLike

from resdm.io import write_csv, write_text
from resdm.settings import TRACERS
from resdm_suite.cohorts.manifest import read_manifest
from resdm_suite.evaluation.image_quality import LOWER_IS_BETTER, METRICS, read_index, read_scores
from resdm_suite.evaluation.statistics import Comparison, by_person
from resdm_suite.profiles import Config
from resdm_suite.records import read_json
from resdm_suite.reporting.provenance import write_sidecar

PAPER_METHODS = ("Pix2Pix", "SC-GAN", "DDPM", "TransUNet", "ResViT", "ResDM")
"""Methods of the paper's Table 2, in its order."""

CONTROLS = ("regression", "linear_path", "linear", "demographics", "template", "ceiling")
"""Rows that the paper does not show, in this order; notebook 04 describes them."""

REFERENCE_METHOD = "ResDM"
"""The method that all others are compared with."""

VARIANTS = {"Base": "base", "+L_high": "intra_domain_loss", "+prior": "prior", REFERENCE_METHOD: "ResDM"}
VARIANTS |= {"as_published": "", "per_tracer": ""}
"""Rows of Table 3: method of the profile → ``variant`` of the printed table; "" where the paper has none."""

DIAGNOSES = ("AD", "MCI", "CN")
TRACER_NAMES = {"amyloid": "Aβ-PET", "tau": "tau-PET"}
METRIC_UNITS = {"mae": "%", "psnr": "dB", "ssim": "%"}
METRIC_SCALES = {"mae": 100.0, "psnr": 1.0, "ssim": 100.0}
"""From the fractions and dB of ``scores.csv`` to the units of the tables."""

TITLES = {
    **TRACER_NAMES, "mae": "MAE (%) ↓", "psnr": "PSNR (dB) ↑", "ssim": "SSIM (%) ↑", "auc": "AUC (%) ↑",
    "acc": "ACC (%) ↑", "f1": "F1 (%) ↑", "brain": "Inside the brain", "whole": "Whole grid (0 outside the brain)",
    "as_published": "as published (no global, no linear path)", "per_tracer": "one model per tracer",
    "linear_path": "linear path",
}  # fmt: skip
"""Printed names of tracers, metrics, regions and methods."""

SOURCE_NAMES = {
    "real": "real PET", "posterior": "ceiling's posterior", "mri": "MRI alone", "age_sex": "age and sex alone",
    "majority": "always the more frequent class", "all": "everyone positive",
}  # fmt: skip
PROFILE_SOURCE_NAMES = SOURCE_NAMES | {"majority": "always the most frequent profile"}
"""Printed names of the other sources of a status, and of an A/T/(N) profile."""

QUALITY_COLUMNS = [
    "method", "tracer", "region", "metric", "unit", "mean", "std", "n", "sessions", "trainings", "seed_std", "paper",
    "paper_std", "ci_low", "ci_high",
]  # fmt: skip
"""First columns of Tables 2 and 3."""

COMPARISON = ["difference", "difference_low", "difference_high", "rank_biserial", "p"]
"""Columns of a paired comparison: mean difference, its 95 % interval, rank-biserial correlation, p (Holm)."""


def comparison(test: Comparison, prefix: str = "") -> dict[str, float]:
    """The values of a paired test under the names of `COMPARISON`."""
    values = (test.difference, test.low, test.high, test.rank_biserial, test.p)
    return {f"{prefix}{name}": value for name, value in zip(COMPARISON, values, strict=True)}


# ── stored scores ─────────────────────────────────────────────────────────────────────────────────


def seeds_of(config: Config, method: str) -> list[str]:
    """The trainings of a method that have stored scores: ``X``, ``X@seed1`` and so on."""
    names = [name for name in config.methods if name.partition("@")[0] == method]
    return [name for name in names if (config.predictions(name) / "scores.csv").is_file()]


def read_trainings(config: Config, methods: Iterable[str]) -> pd.DataFrame:
    """The stored scores of every training of some methods, one row per session, tracer and region.

    Raises
    ------
    ValueError
        Methods that were not scored on the same people: names the methods and the people.
    """
    methods = list(methods)
    if not methods:
        raise ValueError(f"{config.work / 'predictions'}: no method has scores.csv; synthesise and score one first")
    scores = read_scores(config, [t for m in methods for t in seeds_of(config, m) or [m]])
    for tracer, part in scores.groupby("tracer"):
        people = {name: set(rows["person"]) for name, rows in part.groupby("method", sort=False)}
        reference = REFERENCE_METHOD if REFERENCE_METHOD in people else next(iter(people))
        for name, who in people.items():
            if apart := sorted(who ^ people[reference]):
                raise ValueError(
                    f"{name!r} and {reference!r} were not scored on the same people ({tracer}: {len(who)} and "
                    f"{len(people[reference])}; only one has {', '.join(apart[:5])}); synthesise and score both again"
                )
    return scores


def person_values(scores: pd.DataFrame) -> pd.DataFrame:
    """Stored scores by person (sessions averaged) in the units of the tables.

    Columns: method (a training), row (its method), tracer, region, person, metric and value.
    """
    people = by_person(scores).melt(["method", "tracer", "region", "person"], METRICS, "metric")
    people["value"] *= people["metric"].map(METRIC_SCALES)
    return people.assign(row=people["method"].str.partition("@")[0])


def present_methods(config: Config) -> list[str]:
    """Rows of Table 2 that have stored scores: the paper's methods in its order, the profile's others, the controls."""
    others = [m for m in config.methods if "@" not in m and m not in {*PAPER_METHODS, *CONTROLS, *VARIANTS}]
    known = {*config.methods, "template", "ceiling"}  # predictions of a method that was removed stay on disk
    names = [m for m in (*PAPER_METHODS, *others, *CONTROLS) if m in known]
    return [m for m in names if (config.predictions(m) / "scores.csv").is_file()]


def known_inputs(config: Config, method: str) -> str:
    """The person's data that a method uses besides the MRI, by its settings: ``age, sex``, or – for none."""
    settings = config.methods.get(method)
    known = getattr(settings, "labels", getattr(getattr(settings, "prior", None) or settings, "fields", ()))
    return ", ".join({"ceiling": ("causes", "age", "sex")}.get(method, sorted(known))) or "–"


COSTS = {
    "parameters": ("model", "parameters", 1.0, "parameters (M)", 1e-6, 2),
    "gflop_per_volume": ("predictions", "gflop_per_volume", 1.0, "GFLOP per volume", 1.0, 1),
    "seconds_per_volume": ("predictions", "seconds_per_session", 1 / len(TRACERS), "s per volume", 1.0, 2),
    "training_seconds": ("model", "seconds", 1.0, "training (s)", 1.0, 0),
    "peak_memory_gib": ("model", "peak_memory_bytes", 2.0**-30, "peak memory (GiB)", 1.0, 2),
    "sampling_steps": ("predictions", "steps", 1.0, "sampling steps", 1.0, 0),
}
"""Column → ``timing.json`` of the training (model) or of the synthesis (predictions), its key and the scale; title,
scale and decimals in print."""


def costs(config: Config, methods: Iterable[str]) -> pd.DataFrame:
    """Measured costs of each method's first training: column ``method``, then those of `COSTS`; NaN if not measured."""
    rows = []
    for method in methods:
        row: dict[str, Any] = {"method": method}
        folders = {"model": config.model(method), "predictions": config.predictions(method)}
        for name, (place, key, scale, *_) in COSTS.items():
            path = folders[place] / "timing.json"
            measured = read_json(path) if path.is_file() else {}
            row[name] = math.nan if measured.get(key) is None else float(measured[key]) * scale
        rows.append(row)
    return pd.DataFrame(rows, columns=["method", *COSTS])


def cohort_sessions(config: Config) -> pd.DataFrame:
    """The sessions of ``volumes/index.csv``, with days between scans and Centiloid from the manifest."""
    keys, columns = ["person", "session"], [*(f"{tracer}_days" for tracer in TRACERS), "amyloid_centiloid"]
    manifest = read_manifest(config.manifest, files=False, attributes=config.attributes)[[*keys, *columns]]
    index = read_index(config, split=None)
    index = index[[name for name in index if name not in columns]]
    return index.merge(manifest, on=keys, how="left", validate="one_to_one")


def paper_file(name: str, root: str | Path | None = None) -> Path:
    """A file of ``data_manifests/paper/`` below a root (`Config.root`), or of this checkout where the root has none."""
    roots = [*([] if root is None else [Path(root)]), Path(__file__).resolve().parents[2]]
    paths = [place / "data_manifests" / "paper" / name for place in roots]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"{paths[-1]}: the paper's printed values are missing; run from a full checkout")


def read_paper(number: int, root: str | Path | None = None) -> pd.DataFrame:
    """The paper's printed Table 1–4, tidy."""
    path = paper_file(f"table{number}.csv", root)
    return pd.read_csv(path, keep_default_na=False, na_values={"value": [""], "mean": [""], "std": [""]})


def printed_means(number: int, root: str | Path | None = None) -> pd.DataFrame:
    """The printed Table 2–4 under our names: keys of the stored table, ``paper`` and ``paper_std``."""
    frame = read_paper(number, root).rename(columns={"mean": "paper", "std": "paper_std", "status": "tracer"})
    if number == 4:
        keys, frame = ["source", "target"], frame.rename(columns={"method": "source"}).assign(target="label")
    else:
        keys, names = ["method", "region"], {printed: name for name, printed in VARIANTS.items()}
        frame["method"] = frame["variant"].map(names) if number == 3 else frame["method"]
        frame["region"] = frame["metric"].map({"acc": "status"}).fillna("whole")
    return frame[[*keys, "tracer", "metric", "paper", "paper_std"]]


# ── text of a cell ────────────────────────────────────────────────────────────────────────────────


def number(value: float, decimals: int) -> str:
    """A number as the tables print it: proper minus, ∞, and – for unknown."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:z.{decimals}f}".replace("-", "−")  # z: no negative zero


def with_spread(mean: float, std: float, decimals: int = 2) -> str:
    """``26.30 ± 2.31``; – without a mean."""
    return "–" if math.isnan(mean) else f"{number(mean, decimals)} ± {number(std, decimals)}"


def with_interval(value: float, low: float, high: float, decimals: int = 2, p: float = math.nan) -> str:
    """``−1.02 [−1.42, −0.62]``, with * where p < 0.05 and the interval excludes 0; – without a value."""
    ends = [number(round(one, decimals) + 0.0 if math.isfinite(one) else one, decimals) for one in (value, low, high)]
    text = ends[0] if ends[1] == "–" else f"{ends[0]} [{ends[1]}, {ends[2]}]"
    return f"{text} *" if p < 0.05 and not low <= 0 <= high else text


def spread_texts(frame: pd.DataFrame, mean: str = "mean", std: str = "std") -> list[str]:
    """`with_spread` of every row."""
    return [with_spread(*pair) for pair in frame[[mean, std]].to_numpy(float)]


def interval_texts(frame: pd.DataFrame, columns: Sequence[str], decimals: ArrayLike = 2, scale: float = 1) -> list[str]:
    """`with_interval` of every row: value, low and high times a scale; ``decimals``: a number, or one per row."""
    rows = zip(scale * frame[list(columns)].to_numpy(float), np.broadcast_to(decimals, len(frame)), strict=True)
    return [with_interval(*values, places) for values, places in rows]


def demographic(values: pd.Series, decimals: int = 2) -> str:
    """A cell of Table 1 from its values by statistic: counts, mean ± std, or median (max); – where none is known."""
    if values.isna().all():
        return "–"
    if "mean" in values:
        return with_spread(values["mean"], values["std"], decimals)
    texts = [number(value, 0) for value in values]
    if "median" in values:
        return f"{texts[0]} ({texts[1]})"
    if set(values.index) <= {"count", "positive", "female", "male"}:
        return "/".join(texts)
    return ", ".join(f"{label} {text}" for label, text in zip(values.index, texts, strict=True))


def p_value(value: float) -> str:
    """``p < 0.001``, ``p = 0.012``, or empty where there is none."""
    if value is None or math.isnan(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def span(counts: pd.Series) -> str:
    """``58``, ``57–58`` where counts differ, – where there is none."""
    if counts.empty:
        return "–"
    return "–".join(f"{count:.0f}" for count in sorted({counts.min(), counts.max()}))


# ── a table and its writers ───────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Block:
    """One grid of text cells.

    Parameters
    ----------
    title : str
        Empty for a table of one block.
    columns : tuple of (str, str)
        Group and label of each column; adjacent columns with one group share a heading.
    rows : tuple of tuple of str
        The first cell names the row.
    best : frozenset of (int, int)
        Row and column of cells printed bold.
    """

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()

    @property
    def labels(self) -> list[str]:
        """Group and label of each column in one."""
        return [f"{group} {label}".strip() for group, label in self.columns]

    def marked(self, style: str, text: Callable[[str], str]) -> list[list[str]]:
        """Cells as ``text`` gives them, those of ``best`` in a style."""
        return [
            [style.format(text(cell)) if (i, j) in self.best else text(cell) for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]


def pivot(
    frame: pd.DataFrame, row: str, columns: Sequence[str], cells: Mapping[str, str], *, title: str = "",
    head: str = "Method", best: str = "", names: Mapping[str, str] | None = None,
) -> Block:  # fmt: skip
    """A tidy frame as a grid of text.

    Parameters
    ----------
    frame : DataFrame
        At most one line per value of ``row`` and ``columns``.
    row : str
        Column of ``frame`` that names the rows, in order of appearance.
    columns : sequence of str
        One or two columns of ``frame``; the first of two is the shared heading.
    cells : mapping of str to str
        Label of a printed column, ``{}`` for the name of the last of ``columns`` → column of ``frame`` with its text.
        Columns without any text are left out.
    title, head : str
        Of the block, and of its first column.
    best : str
        Column of ``frame`` with booleans: the first of ``cells`` is printed bold.
    names : mapping of str to str, optional
        Printed names beside `TITLES`.
    """
    titles, rows = TITLES | dict(names or {}), list(dict.fromkeys(frame[row]))
    headings, texts, bold = [("", head)], [[titles.get(name, name) for name in rows]], set()
    for key, part in frame.groupby(list(columns), sort=False):
        part = part.set_index(row).reindex(rows)
        group, column = ("", *(titles.get(value, value) for value in key))[-2:]
        for place, (label, source) in enumerate(cells.items()):
            text = part[source].fillna("–").tolist()
            if set(text) <= {"–"}:
                continue
            if best and place == 0:
                bold |= {(i, len(headings)) for i, flag in enumerate(part[best]) if flag is True or flag == 1}
            headings.append((group, label.format(column)))
            texts.append(text)
    return Block(title, tuple(headings), tuple(zip(*texts, strict=True)), frozenset(bold))


def is_best(frame: pd.DataFrame, by: Sequence[str], row: str = "method", without: Sequence[str] = ("ceiling",)):
    """Which rows have the best ``mean`` of their group, apart from some that are no competitors."""
    score = frame["mean"].mask(frame["metric"].isin(LOWER_IS_BETTER), -frame["mean"])
    score = score.mask(frame[row].isin(list(without)))
    return score >= score.groupby([frame[key] for key in by]).transform("max") - 1e-9


def quality_blocks(frame: pd.DataFrame, changes: Mapping[str, str], head: str = "Method") -> list[Block]:
    """The pages of Tables 2 and 3: by tracer inside the brain, the whole grid, the printed values, the trainings.

    The first of ``changes`` stands beside the values, others have blocks of their own.

    Parameters
    ----------
    frame : DataFrame
        `QUALITY_COLUMNS` and the comparisons.
    changes : mapping of str to str
        Label of a column of differences → prefix of its columns of `COMPARISON`.
    head : str
        Of the first column.
    """
    frame = frame.assign(best=is_best(frame, ["tracer", "region", "metric"]))
    texts = {"mean": spread_texts(frame), "printed": spread_texts(frame, "paper", "paper_std")}
    texts["trained"] = [number(value, 2) for value in frame["seed_std"]]
    for label, prefix in changes.items():
        values = frame[[f"{prefix}{column}" for column in COMPARISON]].to_numpy(float)
        texts[label] = [with_interval(*one[:3], p=one[4]) for one in values]
    frame = frame.assign(**texts)
    brain, whole = frame[frame["region"] != "whole"], frame[frame["region"] == "whole"]
    repeated, printed = brain[brain["trainings"] > 1], frame[frame["paper"].notna()]
    (first, *others), both, blocks = changes, ["tracer", "metric"], []
    cells = {"{}": "mean", first: first}
    for tracer, part in brain.groupby("tracer"):
        title = f"Inside the brain: {TRACER_NAMES[tracer]}"
        blocks.append(pivot(part, "method", ["metric"], cells, title=title, head=head, best="best"))
        blocks += [
            pivot(part, "method", ["metric"], {"{}": label}, title=f"{title}, {label}", head=head) for label in others
        ]
    blocks.append(pivot(whole, "method", both, {"{}": "mean"}, title=TITLES["whole"], head=head, best="best"))
    spread = "Inside the brain: standard deviation of the mean between trainings"
    for part, text, title in ((printed, "printed", "Printed in the paper"), (repeated, "trained", spread)):
        if len(part):
            blocks.append(pivot(part, "method", both, {"{}": text}, title=title, head=head))
    return blocks


def text_block(columns: Mapping[str, Sequence[str]], title: str = "", best: Iterable[tuple[int, int]] = ()) -> Block:
    """A block from its columns of text; the first names the rows (see `TITLES`), ``best`` are places of bold cells."""
    names, *texts = columns.values()
    rows = tuple(zip([TITLES.get(name, name) for name in names], *texts, strict=True))
    return Block(title, tuple(("", label) for label in columns), rows, frozenset(best))


def cost_block(costs: pd.DataFrame) -> Block:
    """Inputs besides the MRI (column ``inputs``) and `COSTS`, one row per method."""
    texts = {title: [number(value * scale, decimals) for value in costs[name]]
             for name, (*_, title, scale, decimals) in COSTS.items()}  # fmt: skip
    return text_block({"Method": costs["method"], "input besides the MRI": costs["inputs"]} | texts, "Inputs and cost")


def notes(name: str, **values: Any) -> tuple[str, ...]:
    """The notes below a table: one per line of ``templates/notes_<name>.md``, filled with values."""
    environment = Environment(loader=PackageLoader("resdm_suite.reporting"), undefined=StrictUndefined)
    lines = environment.get_template(f"notes_{name}.md").render(values).splitlines()
    return tuple(line for line in lines if line.strip())


def trainings_note(frame: pd.DataFrame) -> str:
    """What repeated trainings change in the numbers, or that there are none."""
    counts = frame.drop_duplicates("method").set_index("method")["trainings"]
    if counts.max() == 1:
        return "One training per row: a difference between two rows may be one between two trainings."
    listed = ", ".join(f"{TITLES.get(name, name)} {count:.0f}" for name, count in counts.items() if count > 1)
    return (
        f"Trainings under other seeds: {listed}; one for all others. A person's scores are averaged over them. "
        "Intervals resample people and, independently for each row, its trainings."
    )


@dataclass(frozen=True)
class Table:
    """Tidy numbers and their pages.

    Parameters
    ----------
    name : str
        File stem and LaTeX label, ``table2``.
    title : str
    notice : str
        `Config.notice`, printed behind the title; may be empty.
    frame : DataFrame
        Tidy numbers, as written to CSV.
    blocks : tuple of Block
    notes : tuple of str
    widths : mapping of str to float, optional
        Relative widths of columns with wrapped text, by label; of others, the mean. With it the LaTeX is a
        ``longtable`` per block.
    """

    name: str
    title: str
    notice: str
    frame: pd.DataFrame
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    widths: Mapping[str, float] | None = None

    @property
    def heading(self) -> str:
        """Title with the notice."""
        return f"{self.title} ({self.notice})" if self.notice else self.title

    def markdown(self) -> str:
        """GitHub-flavoured Markdown."""
        lines, aligned = [f"## {self.heading}", ""], "--:" if self.widths is None else "---"
        for block in self.blocks:
            if block.title:
                lines += [f"### {block.title}", ""]
            lines.append("| " + " | ".join(block.labels) + " |")
            lines.append("|" + "|".join(["---"] + [aligned] * (len(block.columns) - 1)) + "|")
            cells = block.marked("**{}**", lambda cell: cell.replace("|", "\\|"))
            lines += [*("| " + " | ".join(row) + " |" for row in cells), ""]
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines).rstrip() + "\n"

    def latex(self) -> str:
        """LaTeX in plain ASCII, for any engine: per block a ``table*``, or with ``widths`` a ``longtable``."""
        caption = _tex(re.sub(r"^Table [0-9]+: ", "", self.heading))  # LaTeX numbers it
        return _LATEX.get_template("table.tex.j2").render(table=self, caption=caption)

    def _repr_markdown_(self) -> str:
        return self.markdown()


def save_table(table: Table, folder: str | Path, provenance: Mapping[str, Any]) -> list[Path]:
    """Write ``<name>.csv``, ``.md``, ``.tex`` and the ``.json`` sidecar into `Config.figures`, each atomically."""
    stem = Path(folder) / table.name
    return [
        write_csv(stem.with_suffix(".csv"), table.frame, "%.6g"),
        write_text(stem.with_suffix(".md"), table.markdown()),
        write_text(stem.with_suffix(".tex"), table.latex()),
        write_sidecar(stem, provenance),
    ]


def _group_heading(block: Block) -> list[str]:
    """The line of shared headings and the rules below; empty where no column has a group."""
    if not any(group for group, _ in block.columns):
        return []
    cells, rules, start = [], [], 1
    for group, members in groupby(group for group, _ in block.columns):
        size = len(list(members))
        cells += [f"\\multicolumn{{{size}}}{{c}}{{{_tex(group)}}}"] if group else [""] * size
        rules += [f"\\cmidrule(lr){{{start}-{start + size - 1}}}"] * bool(group)
        start += size
    return [" & ".join(cells) + " \\\\", " ".join(rules)]


_TEX = {
    "\\": "\\textbackslash{}", "%": "\\%", "&": "\\&", "_": "\\_", "#": "\\#", "$": "\\$", "{": "\\{", "}": "\\}",
    "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$",
    "±": "$\\pm$", "−": "$-$", "β": "$\\beta$", "↑": "$\\uparrow$", "↓": "$\\downarrow$", "×": "$\\times$",
    "–": "--", "—": "---", "…": "\\dots{}", "’": "'", "≥": "$\\geq$", "≤": "$\\leq$", "∞": "$\\infty$",
    "³": "$^3$", "²": "$^2$", "λ": "$\\lambda$", "ρ": "$\\rho$", "κ": "$\\kappa$", "σ": "$\\sigma$", "Δ": "$\\Delta$",
    "α": "$\\alpha$", "γ": "$\\gamma$", "ε": "$\\varepsilon$", "η": "$\\eta$", "ß": "\\ss{}", "ø": "\\o{}",
}  # fmt: skip

_ACCENTS = dict(zip("\u0300\u0301\u0302\u0303\u0308\u030a\u030c\u0327", "`'^~\"rvc", strict=True))
"""Combining mark → letter of LaTeX's accent; names of methods and atlases may be in any language."""


def _accented(character: str) -> str:
    """LaTeX of a letter with one accent, such as ü; another character as it is."""
    parts = unicodedata.normalize("NFD", character)
    return f"\\{_ACCENTS[parts[1]]}{{{parts[0]}}}" if len(parts) == 2 and parts[1] in _ACCENTS else character


def _tex(text: str) -> str:
    out = "".join(_TEX.get(character) or _accented(character) for character in unicodedata.normalize("NFC", text))
    if not out.isascii():
        unknown = sorted({character for character in out if not character.isascii()})
        raise ValueError(f"no LaTeX for {unknown} in {text!r}; add it to the map of characters")
    return f"{{}}{out}" if out.startswith("[") else out  # after \\ a bracket would be read as its argument


def _shares(block: Block, widths: Mapping[str, float]) -> list[float]:
    """Shares of the line for the columns, rounded down: their sum does not exceed it."""
    relative = [widths.get(label, 1 / len(block.labels)) for label in block.labels]
    return [math.floor(1000 * width / sum(relative)) / 1000 for width in relative]


_LATEX = Environment(  # braces are LaTeX's own
    loader=PackageLoader("resdm_suite.reporting"), undefined=StrictUndefined, trim_blocks=True,
    keep_trailing_newline=True, block_start_string="<%", block_end_string="%>", variable_start_string="<<",
    variable_end_string=">>", comment_start_string="<#", comment_end_string="#>",
)  # fmt: skip
_LATEX.filters |= {"tex": _tex, "groups": _group_heading, "shares": _shares}
_LATEX.filters["cells"] = lambda block: block.marked("\\textbf{{{}}}", _tex)
