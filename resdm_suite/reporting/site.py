"""The report of a profile: static pages that need no server and no network.

nbconvert turns executed notebooks into pages. An index links them to tables, figures, quality control, timings and the
environment. Missing results are listed, so a failed run has a report too.
"""

import contextlib
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mistune
import nbformat
import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from nbconvert import HTMLExporter

from resdm.io import stored_json, temporary_beside, writing
from resdm_suite.paths import visible
from resdm_suite.profiles import Config
from resdm_suite.records import alone, read_csv
from resdm_suite.reporting.glance import Answer, answers, comparisons
from resdm_suite.reporting.provenance import outdated, provenance


@dataclass(frozen=True)
class Section:
    """Outputs of a notebook, and what a profile needs to have for them."""

    notebook: str
    short: str  # in the navigation
    outputs: tuple[str, ...]  # files below figures/<profile>/, without suffix
    suvr: bool = False  # volumes in SUVR, not each scaled to its own range
    prompts: tuple[str, ...] = ()  # conditions
    given: Callable[[Config], bool] = lambda config: True  # and what else
    purpose: tuple[str, ...] = ("paper",)  # the released code and the attributes have their own notebooks

    def needed(self, config: Config) -> bool:
        """Whether a run of the profile makes the outputs."""
        fits = config.purpose in self.purpose and (config.preprocess.in_suvr or not self.suvr)
        return fits and {*self.prompts} <= {*config.conditions} and self.given(config)


def _has(method: str) -> Callable[[Config], bool]:
    return lambda config: method in config.methods


def _samples(config: Config) -> bool:
    return config.uncertainty.method in config.methods


_ANY = ("paper", "released", "attributes")

SECTIONS = (
    Section("00_cohort", "Table 1", ("table1",), purpose=_ANY),
    Section("04_table2_comparison", "Table 2", ("figure2", "table2", "figure2_regions")),
    Section("05_table3_ablation", "Table 3", ("figure3", "table3"), given=_has("Base")),
    Section("06_table4_diagnosis", "Table 4", ("table4_roc", "table4")),
    Section("19_atn", "A/T/(N)", ("atn",)),
    Section("21_trust", "Trust", ("input_check", "intervals", "memorisation"), suvr=True, given=_samples),
    Section("07_figure4_gender", "Figure 4", ("figure4",), prompts=("no_sex", "wrong_sex")),
    Section("08_figure5_age", "Figure 5", ("figure5",), prompts=("no_age", "shuffled_age")),
    Section("09_figure1_method", "Figure 1", ("figure1",)),
    Section("16_method_walkthrough", "Walk-through", ("walkthrough",), given=_has("ResDM")),
    Section("11_planted_effects", "Planted effects", ("planted",), True, given=lambda c: c.cohort.kind == "phantom"),
    Section("13_suvr_fidelity", "SUVR", ("suvr_fidelity",), suvr=True),
    Section("20_subgroups", "Subgroups", ("subgroups",), suvr=True),
    Section("23_longitudinal", "Longitudinal", ("longitudinal",), suvr=True),
    Section("14_uncertainty", "Uncertainty", ("uncertainty",), suvr=True, given=_samples),
    Section(
        "15_counterfactuals", "Counterfactuals", ("counterfactuals",), True, ("wrong_sex", "tracer_only", "shuffled")
    ),
    Section("17_evaluate", "Evaluation", ("evaluation",), suvr=True, given=_has("ResDM")),
    Section("18_stress", "Stress", ("stress",), purpose=()),  # by `make stress`
    Section("22_attributes", "Attributes", ("attributes",), given=lambda c: bool(c.attributes), purpose=_ANY),
    Section("12_released_code", "Released code", ("released_code",), purpose=("released",)),
    Section("01_preprocess", "Preprocessing", ("qc",)),
    Section("10_claims", "Claims", ("claims",)),
)
"""In the order of the index; other files follow in a section \"More\"."""

CONTENTS = {
    "qc": "Histograms of measures of registration, SUVR and noise over sessions, by tracer, with the limits of flags",
    "figure1": "Brain slices of one case: the PET turns into the noisy MRI, sampling turns it back; residuals, "
    "difference between the tracers, and attention to the words of the prompt",
    "figure2": "Brain slices of the real amyloid and tau PET beside the syntheses of all methods, with error maps",
    "figure2_regions": "Real against synthetic SUVR, texture by method, and correlation and bias of every region",
    "figure3": "Brain slices of the real PET beside the syntheses of the variants of ResDM, with maps of the error",
    "figure4": "Bars and intervals: how well a classifier reads sex from the PET, and how well the PET fits the real "
    "one, with the right, no and the wrong sex in the prompt",
    "figure5": "Scatter plots of predicted age against age, for real PET and for prompts with, without and with "
    "another age, and lines of one MRI under many ages",
    "table4_roc": "ROC curves of amyloid and tau status from real and synthetic PET, by method, and calibration curves",
    "planted": "Planted and recovered effects of status, sex and age on the SUVR of each region, with intervals",
    "suvr_fidelity": "Real against synthetic summary SUVR, Bland-Altman plots, agreement and bias of every method",
    "uncertainty": "Error against predicted deviation, coverage of intervals, error against score of people, and "
    "error of the people kept, by tracer",
    "input_check": "Bars: share of scans that the check of the input refuses, of sound ones and of each gross fault",
    "intervals": "Interval of the summary SUVR of every test person, by the status that it states, with the real SUVR",
    "memorisation": "AUC for distinguishing training people from others, with its interval and the limit of sharing; "
    "how often a synthetic PET is nearest to the person's own real PET",
    "counterfactuals": "Change of regional SUVR when age or sex of the prompt are replaced, by region and tracer",
    "walkthrough": "The shifting sequence, and brain slices of one case in the forward and the reverse process",
    "evaluation": "Gain in PSNR over a model of age and sex, real against synthetic SUVR, and AUC of status, by method",
    "atn": "Cohen's kappa of the joint amyloid, tau and atrophy profile by source, confusions, and decision curves",
    "subgroups": "Image quality, SUVR error and AUC of status by sex, age, diagnosis, tracer and resolution",
    "attributes": "Loss of image quality, SUVR correlation and AUC of status where an attribute of the prompt is left "
    "out, shuffled or wrong, by method, with the ceiling that uses it",
    "longitudinal": "Synthetic against real change of SUVR per year, error and correlation of every method",
    "stress": "Image quality, SUVR error, AUC of status and share of scans refused against the strength of each shift",
}
"""What a figure shows, for readers who do not see it."""

DAMAGED = (ValueError, LookupError, TypeError, AttributeError)
"""Errors of a missing or damaged record of a job, which is then not listed."""

WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Page:
    """An executed notebook."""

    path: Path
    source: str  # the stem of the notebook that was run
    title: str
    status: str  # done, not finished, or the error
    seconds: float | None

    @property
    def href(self) -> str:
        """Link from the index."""
        return quote(f"notebooks/{self.path.stem}.html")


@alone("report")
def write_report(config: Config) -> Path:
    """Write ``work/<profile>/report/`` anew and return its ``index.html``.

    The folder contains copies of all linked files except ``qc/`` beside it.

    Raises
    ------
    FileNotFoundError
        The profile has no results yet.
    """
    if not (visible(config.work, "*") or config.figures.is_dir()):
        raise FileNotFoundError(f"{config.work}: nothing there to report; make reproduce PROFILE={config.profile}")
    pages = [_page(path) for path in visible(config.work / "notebooks", "*.ipynb")]
    with _replaced(config.work / "report") as folder:
        _write_notebooks(pages, folder / "notebooks")
        files = [path for path in visible(config.figures, "*.*") if path.is_file()]
        (folder / "files").mkdir()
        for path in files:
            shutil.copyfile(path, folder / "files" / path.name)
        templates = Environment(loader=PackageLoader("resdm_suite.reporting"), autoescape=True, trim_blocks=True)
        templates.filters["duration"] = _duration
        missing, quality = _missing(config, pages), _quality(config)
        jobs = [*_commands(config), *(page for page in pages if page.seconds is not None)]
        text = templates.get_template("index.html.j2").render(
            config=config,
            facts=_facts(config),
            missing=missing,
            comparison=comparisons(config),
            answers=[*answers(config), *_state(missing, quality, jobs)],
            sections=_sections(config, pages, [path.name for path in files]),
            qc=quality,
            pages=pages,
            jobs=jobs,
            trainings=_trainings(config),
            environment=_environment(config),
        )
        (folder / "index.html").write_text(text, encoding="utf-8", newline="\n")
    return config.work / "report" / "index.html"


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A new folder that replaces ``folder`` when the block ends without an error."""
    new, old = temporary_beside(folder), temporary_beside(folder)
    try:
        with writing(folder, new):
            new.mkdir(parents=True)
            yield new
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


# ── notebooks ─────────────────────────────────────────────────────────────────────────────────────


def _read(path: Path) -> nbformat.NotebookNode:
    """A notebook; a damaged one has no cells."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception:  # of JSON, of its schema, of a folder
        return nbformat.v4.new_notebook()


def _page(path: Path) -> Page:
    notebook = _read(path)
    run = notebook.metadata.get("papermill", {})
    errors = [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    if errors:
        status = f"failed: {errors[0].ename}: {errors[0].evalue}"[:300]
    else:
        status = "done" if run.get("duration") is not None else "not finished"
        status = status if notebook.cells else "cannot be read; run it again"
    parameters = run.get("parameters", {})
    title = [_heading(path), *(str(parameters[name]) for name in parameters if name == "method")]
    title += ["other prompts"] * ("conditions" in parameters)
    return Page(path, Path(run.get("input_path", path)).stem, " · ".join(title), status, run.get("duration"))


def _heading(path: Path) -> str:
    """Title of a notebook: the first line of its first text cell."""
    cells = _read(path).cells
    found = re.match(r"#\s+(.+)", next((cell.source for cell in cells if cell.cell_type == "markdown"), ""))
    return found[1].strip() if found else path.stem


def _write_notebooks(pages: list[Page], folder: Path) -> None:
    folder.mkdir()
    templates = PackageLoader("resdm_suite.reporting")
    exporter = HTMLExporter(extra_loaders=[templates], template_file="notebook.html.j2")
    exporter.log.setLevel("ERROR")  # no warning for each picture without a text
    loader = exporter.environment.loader
    styles = ["lab/static/index.css", "lab/static/theme-light.css", "notebook.css"]
    style = "\n".join(loader.get_source(exporter.environment, name)[0] for name in styles)
    (folder / "notebook.css").write_text(style, encoding="utf-8", newline="\n")
    for i, page in enumerate(pages):
        notebook = _read(page.path)
        notebook.metadata.pop("widgets", None)
        for cell in notebook.cells:
            if "outputs" in cell:  # progress bars need a server
                cell.outputs = [out for out in cell.outputs if WIDGET not in out.get("data", {})]
            for data in (out.get("data", {}) for out in cell.get("outputs", [])):
                if "text/markdown" in data:  # a table may hold text of the data, such as names of regions
                    data["text/markdown"] = data["text/markdown"].replace("<", "&lt;")
        links = [("← All results", "../index.html")]
        for word, other in (("previous", pages[max(i - 1, 0) : i]), ("next", pages[i + 1 : i + 2])):
            links += [(f"{word}: {one.path.stem}", quote(f"{one.path.stem}.html")) for one in other]
        nav = Markup(" ").join(Markup('<a href="{}">{}</a>').format(href, name) for name, href in links)
        resources = {"metadata": {"name": page.title}, "resdm_nav": nav}
        html, _ = exporter.from_notebook_node(notebook, resources)
        html = _unbroken(_without_empty_headings(html))
        html = html.replace("<table", '<table tabindex="0"')  # they scroll where they are wide
        (folder / f"{page.path.stem}.html").write_text(html, encoding="utf-8", newline="\n")


# ── tables and figures ────────────────────────────────────────────────────────────────────────────


def _sections(config: Config, pages: list[Page], files: list[str]) -> list[dict[str, Any]]:
    left = dict.fromkeys(name.partition(".")[0] for name in files)
    sections = []
    for section in SECTIONS:
        stems = [stem for stem in section.outputs if stem in left]
        prefixes = tuple(f"{stem}_" for stem in section.outputs)  # figure4_effects belongs to figure4
        stems += [stem for stem in left if stem not in stems and stem.startswith(prefixes)]
        for stem in stems:
            del left[stem]
        executed = [page for page in pages if page.source == section.notebook]
        if stems or executed:
            source = executed[0].path if executed else config.root / "notebooks" / f"{section.notebook}.ipynb"
            title = re.sub(r"^\d+ · ", "", _heading(source)) if source.is_file() else section.short
            entry = {"id": section.notebook, "short": section.short, "title": title, "pages": executed}
            sections.append(entry | {"items": _items(config, stems, files)})
    if left:
        entry = {"id": "more", "short": "More", "title": "More", "pages": []}
        sections.append(entry | {"items": _items(config, list(left), files)})
    return [
        section | {"wide": len(section["items"]) > 1 or any(item["table"] for item in section["items"])}
        for section in sections
    ]


def _items(config: Config, stems: list[str], files: list[str]) -> list[dict[str, Any]]:
    """Figures first, then tables; what only adds numbers to another result (``figure4_effects``) is folded into it."""
    items = [_item(config, stem, files) for stem in stems]
    kept = [item for item in items if "png" in item["files"] or item["table"]]
    for item in (item for item in items if item not in kept):
        hosts = [host for host in kept if item["stem"].startswith(f"{host['stem']}_") and not item["outdated"]]
        if hosts:
            hosts[-1]["parts"] += item["parts"]
            hosts[-1]["files"] |= {name: name for name in item["files"].values()}
        else:
            kept.append(item)
    return sorted(kept, key=lambda item: bool(item["table"]))


def _item(config: Config, stem: str, files: list[str]) -> dict[str, Any]:
    """A result: the figure, or the first block of the table; everything else is folded."""
    by_suffix = {name.rpartition(".")[2]: name for name in files if name.partition(".")[0] == stem}
    title, shown, rest = re.sub(r"^(table|figure)(?=\d)", r"\1 ", stem.replace("_", " ")).capitalize(), "", ""
    if "md" in by_suffix:
        title, shown, rest = _table(config.figures / by_suffix["md"], config.notice)
    elif "csv" in by_suffix:
        rest = _frame(_csv(config.figures / by_suffix["csv"]))
    if "png" in by_suffix or stem == "claims":  # the head of the page counts them
        shown, rest = "", shown + rest
    folded = [("all blocks and notes" if shown else title, Markup(rest))] if rest else []
    alt = ". ".join(part for part in (CONTENTS.get(stem, title), config.notice) if part)
    size = _size(config.figures / by_suffix["png"]) if "png" in by_suffix else None
    item = {"stem": stem, "title": title, "table": Markup(shown), "parts": folded, "alt": alt, "size": size}
    return item | {"files": by_suffix, "outdated": outdated(config, stem)}


def _size(path: Path) -> tuple[int, int] | None:
    """Width and height of a PNG, for a stable layout while it loads; ``None`` if the file is broken."""
    with path.open("rb") as stream:
        head = stream.read(24)
    return (int.from_bytes(head[16:20]), int.from_bytes(head[20:])) if head[12:16] == b"IHDR" else None


def _table(path: Path, notice: str) -> tuple[str, str, str]:
    """Title (without the notice), first block, and all others with the notes, of a table in Markdown."""
    first, _, body = path.read_text(encoding="utf-8", errors="replace").partition("\n")
    title = first.lstrip("# ").replace(f"({notice})", "").strip()
    body = body.strip()
    end = re.search(r"(?m)^\|.*\n(?!\|)", body + "\n")  # the last line of the first block
    cut = end.end() if end else len(body)
    return title, _markdown(body[:cut]), _markdown(body[cut:])


def _markdown(text: str) -> str:
    html = str(mistune.create_markdown(escape=True, plugins=["table"])(text))
    html = _without_empty_headings(html)
    return re.sub(r"(?s)<table>(.*?)</table>", lambda found: _scrolling(found[0]), html)


def _without_empty_headings(html: str) -> str:
    """The corner of a table without a name is a cell: an empty heading confuses screen readers."""
    return re.sub(r"<th( [^>]*)?></th>", lambda found: f"<td{found[1] or ''}></td>", html)


def _scrolling(table: str) -> str:
    """A table that may be wider than the page: it scrolls, by the keyboard too.

    Where it is too wide, sentences are wrapped; numbers only before an interval and after a comma outside of it.
    """
    sentences = any(len(cell) > 60 for cell in re.findall(r"<td[^>]*>([^<]*)", table))
    if not sentences:
        table = _unbroken(table)
    return f'<div class="table{" long" if sentences else ""}" tabindex="0">{table}</div>'


def _unbroken(html: str) -> str:
    """Cells such as ``0.59 [0.25, 0.94] *`` with one space left at which a line may end, that before the bracket."""
    space, cell = "\N{NO-BREAK SPACE}", r"(?<=>)−?\d[^<>]+(?=</(?:td|strong)>)"
    inside = re.compile(r"\[[^\]]*\]|(?<!,) (?!\[)")
    return re.sub(cell, lambda found: inside.sub(lambda part: part[0].replace(" ", space), found[0]), html)


def _csv(path: Path, **options: Any) -> pd.DataFrame:
    """A table; of one that is damaged, or not as its stage wrote it, a note."""
    try:
        return read_csv(path, **options)
    except (ValueError, OSError):
        return pd.DataFrame({path.name: ["cannot be read; make it again"]})


def _frame(frame: pd.DataFrame) -> str:
    html = frame.to_html(index=False, border=0, na_rep="–", float_format="{:.4g}".format, classes=[])
    return _scrolling(html)


def _missing(config: Config, pages: list[Page]) -> list[str]:
    """Failed notebooks and missing results, one sentence each."""
    lines = [f"{page.title}: {page.status}" for page in pages if page.status != "done"]
    for what, path in (("manifest", config.manifest), ("preprocessed volumes", config.volumes / "index.csv")):
        if not path.is_file():
            lines.append(f"no {what}: {path.relative_to(config.root)}")
    for name in config.methods:
        if not (config.model(name) / "model.safetensors").is_file():
            begun = (config.model(name) / "state.pt").is_file()
            lines.append(f"{name}: " + ("training not finished" if begun else "not trained"))
        elif not (config.predictions(name) / "scores.csv").is_file():
            lines.append(f"{name}: trained, but not synthesised")
    for section in SECTIONS:
        for stem in section.outputs if section.needed(config) else ():
            if not any(config.figures.glob(f"{stem}.*")):
                lines.append(f"{stem}, which notebook {section.notebook} makes")
            elif reason := outdated(config, stem):
                lines.append(f"{stem} of this run; the one below is {reason}")
    return lines


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────


def _facts(config: Config) -> list[tuple[str, str]]:
    grid = config.preprocess.grid
    facts = [("Grid", f"{' × '.join(map(str, grid.shape))} voxels of {grid.voxel_mm:g} mm")]
    index = config.volumes / "index.csv"
    if index.is_file():
        table = _csv(index, dtype=str).reindex(columns=["person", "split"])
        people = table.drop_duplicates("person")["split"].value_counts()
        parts = ", ".join(f"{people.get(name, 0)} {name}" for name in ("train", "validation", "test"))
        facts.insert(0, ("People", f"{people.sum()}: {parts}"))
    return [*facts, ("Methods", str(len(config.methods))), ("Seed", str(config.seed)), ("Settings", config.digest())]


def _quality(config: Config) -> dict[str, Any]:
    """Whether there are pages of `resdm qc` (one montage per session is too large to copy), and the flags of its table.

    ``flags`` is empty for a table that cannot be read, and None without one.
    """
    page, path, flags = config.work / "qc" / "index.html", config.work / "qc" / "qc.csv", None
    if path.is_file():
        flags = list(_csv(path, dtype=str, keep_default_na=False).get("flags", ()))
    return {"there": page.is_file(), "flags": flags}


def _state(missing: list[str], quality: dict[str, Any], jobs: list[Any]) -> Iterator[Answer]:
    """Whether the run is complete, its flags, and its time."""
    text = f"No: {len(missing)} results or notebooks are missing or failed." if missing else "Yes."
    yield Answer("Is this run complete?", text, "missing" * bool(missing), "What is missing")
    if quality["flags"]:
        text = f"{sum(map(bool, quality['flags']))} of {len(quality['flags'])} sessions have a flag of quality control."
        yield Answer("Are the scans sound?", text, "qc" * quality["there"], "Quality control")
    seconds = [job["seconds"] if isinstance(job, dict) else job.seconds for job in jobs]
    if seconds:
        text = f"{_duration(sum(seconds))} over {len(seconds)} jobs, some of them side by side."
        yield Answer("How long did it take?", text, "timings", "Every job")


def _commands(config: Config) -> list[dict[str, Any]]:
    """Commands (title) and their seconds from Snakemake's records; empty without readable records."""
    found = {}
    for path in sorted((config.root / ".snakemake" / "metadata").rglob("*")):
        with contextlib.suppress(*DAMAGED):
            record = stored_json(path) or {}
            command = record["shellcmd"].partition(" 2>&1")[0]  # without the redirection to the log
            own = any(log.startswith(f"work/{config.profile}/") for log in record["log"])
            if own and command.startswith("resdm ") and not command.startswith("resdm report "):
                found[command] = float(record["starttime"]), float(record["endtime"])
    ordered = sorted(found.items(), key=lambda item: item[1])
    return [{"title": words, "seconds": end - start} for words, (start, end) in ordered]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _trainings(config: Config) -> list[dict[str, str]]:
    rows = []
    for name in config.methods:
        path = config.model(name) / "timing.json"
        with contextlib.suppress(*DAMAGED):
            record = stored_json(path) or {}
            memory = record.get("peak_memory_bytes")
            row = {"method": name, "parameters": f"{record['parameters'] / 1e6:.2f} M", "steps": f"{record['steps']}"}
            row |= {"time": _duration(record["seconds"]), "ms a step": f"{1e3 * record['seconds_per_step']:.1f}"}
            row |= {"peak memory": f"{memory / 2**30:.2f} GiB" if memory else "–", "device": str(record["device"])}
            rows.append(row)
    return rows


def _environment(config: Config) -> list[tuple[str, str]]:
    record = provenance(config)
    commit = record["code"]["commit"] or "not a git checkout"
    return [
        ("code", commit + (", with changes" if record["code"]["dirty"] else "")),
        ("settings", f"configs/{config.profile}.yaml, digest {record['config']}"),
        ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        *record["versions"].items(),
    ]
