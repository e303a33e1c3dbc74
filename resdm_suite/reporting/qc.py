"""A page to look through every preprocessed session: montages, measures, flags, and their distributions.

In ``work/<profile>/qc/``, which git ignores: ``<person>_<session>.png`` and ``.json`` (measures, written last, so a
killed call loses the sessions in work only), ``qc.csv`` (one row per session) and ``index.html``. The histograms of the
measures, which name nobody, go to ``figures/<profile>/qc`` too.

A montage is composed from arrays, not drawn by matplotlib: hundreds of them take seconds.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from joblib import Parallel, delayed, effective_n_jobs
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from tqdm.auto import tqdm

from resdm.io import atomic, remove, stored_json, write_json, write_text
from resdm.settings import TRACERS
from resdm_suite.anatomy import REFERENCE, Grid, mni_map, regions
from resdm_suite.paths import visible
from resdm_suite.preprocessing.measures import limits
from resdm_suite.preprocessing.qc import PreprocessedSession, session_quality, sessions
from resdm_suite.profiles import Config
from resdm_suite.records import alone, read_csv, read_record, write_record
from resdm_suite.reporting import style
from resdm_suite.reporting.provenance import outdated, provenance
from resdm_suite.reporting.slices import FIELD_MM, SHOWN_AXES, SIDE_MARKS, Cut, plane, slice_name

CUTS = (("x", 7.0), ("y", -58.0), ("z", -18.0))
"""Slices of the montages: each shows the cerebellum, where the reference regions lie."""

MAX_SUVR = 2.2
"""SUVR of the brightest colour in all montages, so that sessions can be compared."""

TRACER_COLOURS = {"t1": "#444444", "amyloid": "#0072B2", "tau": "#D55E00"}

HEAD, GAP = 20, 2  # pixels of a montage
BRAIN_COLOUR, REFERENCE_COLOUR = (53, 201, 232), (255, 255, 255)


# ── one montage ───────────────────────────────────────────────────────────────────────────────────


def montage(volumes: Mapping[str, np.ndarray], grid: Grid, title: str = "") -> Image.Image:
    """T1 and PETs of one session, three slices each, with the outlines that registration must match.

    Parameters
    ----------
    volumes : mapping
        ``t1w`` (X, Y, Z) in [0, 1]; ``amyloid`` and ``tau`` (X, Y, Z) in SUVR, where acquired.
    grid : Grid
    title : str

    Returns
    -------
    Image
        RGB, one pixel per millimetre; left is left, marked L and R (sagittal P and A). MNI152 brain in cyan, reference
        region of the tracer in white.
    """
    sizes = [tuple(int(np.ptp(FIELD_MM[side])) + 1 for side in SHOWN_AXES[axis]) for axis, _ in CUTS]  # (right, up)
    width, height = sum(w for w, _ in sizes) + 2 * GAP, max(h for _, h in sizes)
    page = Image.new("RGB", (width, HEAD + 3 * (height + GAP) - GAP))
    draw = ImageDraw.Draw(page)
    draw.text((4, 3), title, fill="white", font=_font(12))
    draw.text((width - 4, 4), ", ".join(slice_name(cut) for cut in CUTS), fill="#AAAAAA", font=_font(10), anchor="ra")
    for row, kind in enumerate(("t1w", *TRACERS)):
        left, top, name = 0, HEAD + row * (height + GAP), style.TRACER_TITLES.get(kind, "T1")
        for cut, (w, h) in zip(CUTS, sizes, strict=True):
            if kind in volumes:
                page.paste(_slice_image(volumes[kind], grid, cut, kind), (left, top + (height - h) // 2))
                for x, mark, anchor in zip((left + 3, left + w - 3), SIDE_MARKS[cut[0]], ("ls", "rs"), strict=True):
                    draw.text((x, top + (height + h) // 2 - 4), mark, fill="white", font=_font(11), anchor=anchor)
            left += w + GAP
        draw.text((4, top + 3), name if kind in volumes else f"{name}: not acquired", fill="white", font=_font(12))
    return page


def _slice_image(volume: np.ndarray, grid: Grid, cut: Cut, kind: str) -> Image.Image:
    cmap, brightest = (style.T1_MAP, 1.0) if kind == "t1w" else (style.PET_MAP, MAX_SUVR)
    section = np.clip(plane(volume, grid, cut, order=1) / brightest, 0, 1)
    picture = matplotlib.colormaps[cmap](section, bytes=True)[..., :3].copy()  # (up, right, 3)
    picture[_edge(grid, "brain", cut)] = BRAIN_COLOUR
    if kind != "t1w":
        picture[_edge(grid, REFERENCE[kind], cut)] = REFERENCE_COLOUR
    return Image.fromarray(np.ascontiguousarray(picture[::-1]))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


@functools.cache
def _edge(grid: Grid, name: str, cut: Cut) -> np.ndarray:
    mask = mni_map("brain", grid) if name == "brain" else regions(grid)[name]
    inside = plane(mask.astype(np.float32), grid, cut, order=1) > 0.5
    return inside & ~ndimage.binary_erosion(inside)


# ── the cohort ────────────────────────────────────────────────────────────────────────────────────


@alone("qc")
def write_qc(config: Config, *, jobs: int = 1, progress: bool = True) -> pd.DataFrame:
    """Measure and draw every preprocessed session that is not done yet, and write the table, the page and the figure.

    Parameters
    ----------
    config : Config
        Reads ``manifest.csv`` and ``volumes/``, writes ``qc/`` and ``figures/<profile>/qc``.
    jobs : int
        Processes; -1 for one per core.
    progress : bool
        Show a bar.

    Returns
    -------
    DataFrame
        ``qc.csv``: measures of `session_quality`, one row per session, and ``kept``: 0 for a session that is left out
        of ``index.csv``.
    """
    folder, preprocessed = config.work / "qc", sessions(config)
    for path in read_record(folder)[1]:
        remove(path)  # damaged; it is made again
    todo = [session for session in preprocessed if _stored_measures(folder, session) is None]
    work = Parallel(n_jobs=min(effective_n_jobs(jobs), max(len(todo), 1)), return_as="generator_unordered")(
        delayed(_write_session)(folder, session) for session in todo
    )
    for _ in tqdm(work, total=len(todo), desc="qc", unit="session", disable=not progress or not todo):
        pass
    keys = ["person", "session"]
    index = read_csv(config.volumes / "index.csv", dtype=dict.fromkeys(keys, str))
    table = pd.DataFrame([_stored_measures(folder, session) for session in preprocessed])
    flags = table.pop("flags")
    kept = pd.MultiIndex.from_frame(table[keys]).isin(pd.MultiIndex.from_frame(index[keys]))
    table = table.assign(kept=kept.astype(int), flags=flags)
    names = {session.name for session in preprocessed}
    for path in folder.glob("sub-*_ses-*.*"):
        if path.stem not in names:  # of a session that left the manifest
            path.unlink()
    _write_cohort(config, table)
    write_record(folder, f"resdm qc {config.profile}", visible(folder, "*"), [config.volumes / "index.csv"])
    return table


def _write_cohort(config: Config, table: pd.DataFrame) -> None:
    folder, excluded_path = config.work / "qc", config.volumes / "excluded.csv"
    excluded = read_csv(excluded_path, dtype=str) if excluded_path.is_file() else pd.DataFrame(columns=["step"])
    texts = {
        "qc.csv": table.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
        "index.html": page(config, table, excluded[excluded["step"] == "unusable"]),
    }
    figures = [config.figures / "qc.png", config.figures / "qc.svg", folder / "distributions.png"]
    current = [(folder / name).is_file() and (folder / name).read_text(encoding="utf-8") == text
               for name, text in texts.items()]  # fmt: skip
    if all(current) and all(path.is_file() for path in figures) and not outdated(config, "qc"):
        return
    for name, text in texts.items():
        write_text(folder / name, text)
    figure = qc_distributions(table, notice=config.notice)
    style.save_figure(figure, config.figures / "qc", provenance(config, [folder / "qc.csv"]))
    with atomic(folder / "distributions.png") as temporary:
        temporary.write_bytes((config.figures / "qc.png").read_bytes())


def _stored_measures(folder: Path, session: PreprocessedSession) -> dict[str, Any] | None:
    """The stored measures of a session, if they and its montage are of its volumes."""
    path = folder / f"{session.name}.json"
    stored = stored_json(path) or {}
    if stored.get("digest") != session.digest or not path.with_suffix(".png").is_file():
        return None
    measures = {name: np.nan if value is None else value for name, value in stored["measures"].items()}
    return measures | {"split": session.row["split"]}


def _write_session(folder: Path, session: PreprocessedSession) -> None:
    path, row = folder / f"{session.name}.png", session.row
    grid, title = Grid.of(session.config.preprocess.grid), f"{row['person']} {row['session']}"
    with atomic(path) as temporary:
        image = montage(session.shown_volumes(), grid, title)
        image.save(temporary, format="PNG", compress_level=2)  # a third of the default's time; a sixth larger
    measures = session_quality(session)
    plain = {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in measures.items()}
    write_json(path.with_suffix(".json"), {"digest": session.digest, "measures": plain})


# ── the page ──────────────────────────────────────────────────────────────────────────────────────

_MEASURE_TITLES = {
    "t1_correlation": "T1 with template", "{}_similarity": "shared with T1", "{}_mirror": "minus mirrored",
    "{}_reference_mean": "reference mean", "{}_reference_cov": "reference COV", "{}_reference_suvr": "reference SUVR",
    "{}_suvr_low": "SUVR, 1st percentile", "{}_suvr_high": "SUVR, 99th percentile", "{}_suvr_max": "SUVR, highest",
    "{}_clipped_percent": "brain voxels clipped, %",
    "t1w_error_mm": "T1 → MNI, mm off the truth", "{}_error_mm": "PET → T1, mm off the truth", "t1_torque": "torque",
}  # fmt: skip


def page(config: Config, table: pd.DataFrame, unusable: pd.DataFrame) -> str:
    """``index.html``: every session with its montage and measures, flagged ones first; no script, relative links."""
    flagged = table["flags"] != ""
    order = table.assign(clean=~flagged).sort_values(["clean", "t1_correlation"], kind="stable")
    rows = [row | {"measures": _measures(row)} for row in order.to_dict("records")]
    environment = Environment(loader=PackageLoader("resdm_suite.reporting"), autoescape=True, trim_blocks=True)
    return environment.get_template("qc.html.j2").render(
        profile=config.profile, notice=config.notice, people=table["person"].nunique(), flagged=int(flagged.sum()),
        left_out=int((table["kept"] == 0).sum()), max_suvr=f"{MAX_SUVR:g}", sessions=rows,
        unusable=unusable.to_dict("records"), tracers=TRACERS,
    )  # fmt: skip


def _measures(row: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Title and formatted values, one per tracer or a single one, of the measures that a session has."""
    lines = []
    for name, title in _MEASURE_TITLES.items():
        values = [row.get(name.format(kind), np.nan) for kind in (TRACERS if "{}" in name else ("",))]
        if not np.isnan(values).all():
            lines.append((title, ["–" if np.isnan(v) else f"{v:.4g}".replace("-", "−") for v in values]))
    given = row.get("registration")
    return [*lines, ("stored axes", [row["axes"]]), *([("registration", [given])] if isinstance(given, str) else [])]


# ── the figure ────────────────────────────────────────────────────────────────────────────────────

_PANELS = {  # columns, {} is a tracer: title of the x axis
    "t1_correlation": "T1: correlation with MNI152",
    "{}_similarity": "PET and T1: shared information (NMI)",
    "{}_mirror": "the same, minus that of the mirrored PET",
    "{}_reference_mean": "reference mean before scaling (scan's unit)",
    "{}_reference_cov": "reference region: COV",
    "{}_suvr_max": "highest SUVR in the brain",
    "t1_torque": "T1: torque (information only)",
    "t1w_error_mm": "T1 → MNI: error against the truth (mm)",
    "{}_error_mm": "PET → T1: error against the truth (mm)",
}


@style.style()
def qc_distributions(table: pd.DataFrame, *, notice: str = "") -> style.PaperFigure:
    """Histograms of the measures of quality over sessions, with the limits beyond which a session is flagged.

    Parameters
    ----------
    table : DataFrame
        Of `write_qc`. Measures without a value (errors, where no truth is known) get no panel.
    notice : str
    """
    panels = [(_columns(table, name), title) for name, title in _PANELS.items()]
    panels = [(columns, title) for columns, title in panels if columns]
    flagged, rows = int((table["flags"] != "").sum()), -(-len(panels) // 3)
    detail = f"{len(table)} sessions of {table['person'].nunique()} people, {flagged} flagged. Grey: beyond the limit, "
    detail += "a session is flagged."
    figure = style.paper_figure(0.7 + 1.48 * rows, "Quality of the preprocessed sessions", notice, detail)
    for i, (columns, title) in enumerate(panels):
        axes = figure.add_subplot(rows, 3, i + 1)
        values = {kind: table[column].dropna().to_numpy(dtype=float) for kind, column in columns.items()}
        pooled = np.concatenate(list(values.values()))
        ends = limits(next(iter(columns.values())))
        near = [limit for limit in ends if np.isfinite(limit) and _near(limit, pooled)]
        low, high = min([pooled.min(), *near]), max([pooled.max(), *near])
        rim = 0.04 * (high - low) or 0.5
        edges = np.linspace(low - rim, high + rim, 25)
        for kind, numbers in values.items():
            colour, label = TRACER_COLOURS[kind], style.TRACER_TITLES.get(kind, "T1")
            axes.hist(numbers, edges, histtype="stepfilled", alpha=0.25, color=colour, linewidth=0)
            axes.hist(numbers, edges, histtype="step", linewidth=1.0, color=colour, label=label)
        axes.set_xlim(edges[0], edges[-1])
        for limit, edge in zip(ends, edges[[0, -1]], strict=True):
            if limit in near:
                axes.axvspan(min(limit, edge), max(limit, edge), color=style.GREY, alpha=0.18, linewidth=0)
                axes.axvline(limit, color=style.GREY, linewidth=0.8, dashes=(3, 2))
        axes.set_xlabel(title, labelpad=2)
        axes.locator_params(axis="x", nbins=6)
        axes.locator_params(axis="y", nbins=4, integer=True)
        if i % 3 == 0:
            axes.set_ylabel("sessions", labelpad=2)
    with_tracers = [axes for axes, (columns, _) in zip(figure.axes, panels, strict=True) if "t1" not in columns]
    for axes in with_tracers[:1]:  # the colours are the same in every panel
        axes.legend(loc="upper right", handlelength=1.0, handletextpad=0.4, borderaxespad=0.1)
    return figure


def _columns(table: pd.DataFrame, name: str) -> dict[str, str]:
    kinds: Sequence[str] = TRACERS if "{}" in name else ("t1",)
    columns = {kind: name.format(kind) for kind in kinds}
    return {kind: column for kind, column in columns.items() if column in table and table[column].notna().any()}


def _near(limit: float, values: np.ndarray) -> bool:
    """Whether a limit is close enough to the values to be shown."""
    spread = np.ptp(values) or abs(limit) or 1.0
    return values.min() - 2 * spread <= limit <= values.max() + 2 * spread
