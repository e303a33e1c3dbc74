"""A page to look through every preprocessed session: montages, measures, flags, and their distributions.

``work/<profile>/qc/``, which git ignores: ``<person>_<session>.png`` and ``.json`` (its measures, written last, so a
killed call loses the sessions in work, no more), ``qc.csv`` (one row a session) and ``index.html``. The histograms of
the measures, which name nobody, go to ``figures/<profile>/qc`` too.

A montage is put together from arrays, not drawn by matplotlib: hundreds of them in seconds. Slices are those of
`resdm_suite.reporting.slices.plane`, a pixel a millimetre.
"""

from __future__ import annotations

import functools
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed, effective_n_jobs
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from tqdm.auto import tqdm

from resdm.io import atomic, sha256, write_json, write_text
from resdm.settings import TRACERS
from resdm_suite.anatomy import REFERENCE, Grid, mni_map, regions
from resdm_suite.evaluation.suvr import to_suvr
from resdm_suite.preprocessing import qc
from resdm_suite.preprocessing.volumes import FLAGS
from resdm_suite.profiles import Config
from resdm_suite.reporting.provenance import provenance
from resdm_suite.reporting.slices import FIELD_MM, slice_name
from resdm_suite.reporting.style import (
    GREY,
    PET_MAP,
    T1_MAP,
    TRACER_TITLES,
    WIDTH,
    Page,
    PaperFigure,
    save_figure,
    styled,
)

CUTS = (("x", 7.0), ("y", -58.0), ("z", -18.0))
"""Slices of the montages: each shows the cerebellum, where the reference regions lie."""

SUVR_SHOWN = 2.2
"""SUVR that is brightest in the montages, of everyone, so that pages can be compared."""

TRACER_COLOURS = {"t1": "#444444", "amyloid": "#0072B2", "tau": "#D55E00"}

_SIDES = {"x": ("y", "z"), "y": ("x", "z"), "z": ("x", "y")}  # axis cut: axes shown (right, up)
_MARKS = {"x": ("P", "A"), "y": ("L", "R"), "z": ("L", "R")}
_HEAD, _GAP = 20, 2  # pixels
_BRAIN_INK, _REFERENCE_INK = (53, 201, 232), (255, 255, 255)


# ── one montage ───────────────────────────────────────────────────────────────────────────────────


def montage(volumes: Mapping[str, np.ndarray | None], grid: Grid, title: str = "") -> Image.Image:
    """T1 and PETs of one session, three slices each, with the outlines that registration must match.

    Parameters
    ----------
    volumes : mapping
        ``t1w`` (X, Y, Z) in [0, 1], ``amyloid`` and ``tau`` (X, Y, Z) in SUVR, or None where not acquired.
    grid : Grid
    title : str

    Returns
    -------
    Image
        RGB, a pixel a millimetre; left is left, marked L and R (sagittal P and A). MNI152 brain in cyan, reference
        region of the tracer in white.
    """
    sizes = [tuple(int(np.ptp(FIELD_MM[side])) + 1 for side in _SIDES[axis]) for axis, _ in CUTS]  # (right, up)
    width, height = sum(w for w, _ in sizes) + 2 * _GAP, max(h for _, h in sizes)
    page = Image.new("RGB", (width, _HEAD + 3 * (height + _GAP) - _GAP))
    ink = ImageDraw.Draw(page)
    ink.text((4, 3), title, fill="white", font=_font(12))
    ink.text((width - 4, 4), ", ".join(slice_name(cut) for cut in CUTS), fill="#AAAAAA", font=_font(10), anchor="ra")
    for row, kind in enumerate(("t1w", *TRACERS)):
        volume, left, top = volumes.get(kind), 0, _HEAD + row * (height + _GAP)
        for (axis, mm), (w, h) in zip(CUTS, sizes, strict=True):
            if volume is not None:
                section = _section(volume, grid, (axis, mm), 3)
                cmap, one = (T1_MAP, 1.0) if kind == "t1w" else (PET_MAP, SUVR_SHOWN)
                picture = _lookup(cmap)[np.clip(section / one * 255, 0, 255).astype(np.uint8)]  # (up, right, 3)
                picture[_edge(grid, "brain", (axis, mm))] = _BRAIN_INK
                if kind != "t1w":
                    picture[_edge(grid, REFERENCE[kind], (axis, mm))] = _REFERENCE_INK
                page.paste(Image.fromarray(np.ascontiguousarray(picture[::-1])), (left, top + (height - h) // 2))
                for x, mark, anchor in zip((left + 3, left + w - 3), _MARKS[axis], ("ls", "rs"), strict=True):
                    ink.text((x, top + (height + h) // 2 - 4), mark, fill="white", font=_font(11), anchor=anchor)
            left += w + _GAP
        name = "T1" if kind == "t1w" else TRACER_TITLES[kind]
        ink.text((4, top + 3), name if volume is not None else f"{name}: not acquired", fill="white", font=_font(12))
    return page


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


@functools.cache
def _lookup(cmap: str) -> np.ndarray:
    return (matplotlib.colormaps[cmap](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


@functools.cache
def _weights(grid: Grid, axis: str, at: float | None, order: int) -> np.ndarray:
    """Spline weights of a grid's voxels along an axis, for one millimetre or for all of `FIELD_MM`: (places, voxels).

    A spline on a grid is the product of those along its axes, so a section is three small matrix products.
    """
    i = "xyz".index(axis)
    mm = np.arange(FIELD_MM[axis][0], FIELD_MM[axis][1] + 1) if at is None else np.array([at])
    places = (mm - grid.affine[i, 3]) / grid.voxel_mm
    units = np.eye(grid.shape[i])
    return np.stack([ndimage.map_coordinates(unit, [places], order=order, mode="nearest") for unit in units], axis=1)


def _section(volume: np.ndarray, grid: Grid, cut: tuple[str, float], order: int) -> np.ndarray:
    """The slice that `resdm_suite.reporting.slices.plane` gives, (up, right), without clipping."""
    axis, mm = cut
    flat = np.tensordot(_weights(grid, axis, mm, order)[0], volume, axes=(0, "xyz".index(axis)))  # (right, up)
    right, up = (_weights(grid, side, None, order) for side in _SIDES[axis])
    return up @ flat.T @ right.T


@functools.cache
def _edge(grid: Grid, name: str, cut: tuple[str, float]) -> np.ndarray:
    mask = mni_map("brain", grid) if name == "brain" else regions(grid)[name]
    inside = _section(mask.astype(np.float32), grid, cut, 1) > 0.5
    return inside & ~ndimage.binary_erosion(inside)


# ── the cohort ────────────────────────────────────────────────────────────────────────────────────


def write_qc(config: Config, *, jobs: int = 1, progress: bool = True) -> pd.DataFrame:
    """Measure and draw every preprocessed session that is not done yet, and write the table, the page and the figure.

    Parameters
    ----------
    config : Config
        Reads ``manifest.csv`` and ``volumes/``, writes ``qc/`` and ``figures/<profile>/qc``.
    jobs : int
        Processes; -1 for as many as cores.
    progress : bool
        Show a bar.

    Returns
    -------
    DataFrame
        ``qc.csv``: measures of `preprocessing.qc.session_quality`, one row a session, and ``kept``: 0 where the session
        is left out of ``index.csv``.
    """
    folder, todo, lines = config.work / "qc", [], []
    there = qc.sessions(config)
    code = sha256(__file__)[:16]
    for one in there:
        one["digest"] += code
        if _line(folder, one) is None:
            todo.append(one)
    done = Parallel(n_jobs=min(effective_n_jobs(jobs), max(len(todo), 1)), return_as="generator_unordered")(
        delayed(_write_session)(config, folder, one) for one in todo
    )
    for _ in tqdm(done, total=len(todo), desc="qc", unit="session", disable=not progress or not todo):
        pass
    index = pd.read_csv(config.volumes / "index.csv", dtype={"person": str, "session": str})
    kept = set(zip(index["person"], index["session"], strict=True))
    for one in there:
        line = _line(folder, one)
        lines.append(line | {"kept": int((line["person"], line["session"]) in kept)})
    table = pd.DataFrame(lines)
    table = table[[*(name for name in table if name not in ("kept", "flags")), "kept", "flags"]]
    stems = {_stem(one["row"]) for one in there}
    for path in folder.glob("sub-*_ses-*.*"):
        if path.stem not in stems:  # of a session that left the manifest
            path.unlink()
    _write_cohort(config, table)
    return table


def _write_cohort(config: Config, table: pd.DataFrame) -> None:
    folder, left = config.work / "qc", config.volumes / "excluded.csv"
    excluded = pd.read_csv(left, dtype=str) if left.is_file() else pd.DataFrame(columns=["step"])
    texts = {
        "qc.csv": table.to_csv(index=False, float_format="%.6g", lineterminator="\n"),
        "index.html": page(config, table, excluded[excluded["step"] == "unusable"]),
    }
    figures = [config.figures / "qc.png", config.figures / "qc.svg", folder / "distributions.png"]
    same = [(folder / name).is_file() and (folder / name).read_text(encoding="utf-8") == text
            for name, text in texts.items()]  # fmt: skip
    if all(same) and all(path.is_file() for path in figures):
        return
    for name, text in texts.items():
        write_text(folder / name, text)
    figure = qc_distributions(table, notice=config.notice)
    save_figure(figure, config.figures / "qc", provenance(config, [folder / "qc.csv"]))
    with atomic(folder / "distributions.png") as temporary:
        temporary.write_bytes((config.figures / "qc.png").read_bytes())


def _stem(row: Mapping[str, Any]) -> str:
    return f"{row['person']}_{row['session']}"


def _line(folder: Path, one: dict[str, Any]) -> dict[str, Any] | None:
    """The stored measures of a session, if they and its montage are of these very volumes."""
    path = folder / f"{_stem(one['row'])}.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if stored["digest"] != one["digest"] or not path.with_suffix(".png").is_file():
        return None
    return {name: np.nan if value is None else value for name, value in stored["measures"].items()} | {
        "split": one["row"]["split"]
    }


def _write_session(config: Config, folder: Path, one: dict[str, Any]) -> None:
    row, record, grid = one["row"], one["record"], Grid.of(config.preprocess.grid)
    volumes = qc.stored_volumes(config, record)
    measures = qc.session_quality(config, row, record, volumes)
    for tracer in TRACERS:
        if tracer in volumes:
            scale = qc.suvr_range(config, record, tracer)
            volumes[tracer] = to_suvr(volumes[tracer], scale)
    path = folder / f"{_stem(row)}.png"
    with atomic(path) as temporary:
        image = montage(volumes, grid, f"{row['person']} {row['session']}")
        image.save(temporary, format="PNG", compress_level=2)  # a third of the default's time; a sixth larger
    plain = {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in measures.items()}
    write_json(path.with_suffix(".json"), {"digest": one["digest"], "measures": plain})


# ── the page ──────────────────────────────────────────────────────────────────────────────────────

_SHOWN = {
    "t1_correlation": "T1 with template", "{}_similarity": "shared with T1", "{}_mirror": "minus mirrored",
    "{}_reference_mean": "reference mean", "{}_reference_cov": "reference COV", "{}_reference_suvr": "reference SUVR",
    "{}_suvr_low": "SUVR, 1st percentile", "{}_suvr_high": "SUVR, 99th percentile", "{}_suvr_max": "SUVR, highest",
    "{}_clipped_percent": "brain voxels clipped, %",
    "t1w_error_mm": "T1 → MNI, mm off the truth", "{}_error_mm": "PET → T1, mm off the truth", "t1_torque": "torque",
}  # fmt: skip

_CSS = """
:root { color-scheme: light dark }
body { font: 16px/1.4 system-ui, sans-serif; margin: 0 auto; max-width: 90rem; padding: 1rem }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)) }
article { border: 1px solid #8886; border-radius: .4rem; overflow: hidden }
article > * { margin: .4rem .6rem } article > a { display: block; margin: 0 }
img { width: 100%; height: auto; display: block; background: #000 }
h2 { font-size: 1rem } .flag { color: #c62828; font-weight: 600 }
table { border-collapse: collapse; font-size: .8rem } td, th { padding: .1rem .5rem .1rem 0; text-align: right }
td:first-child, th:first-child { text-align: left } .wide { overflow-x: auto } .plot { max-width: 60rem }
"""


def page(config: Config, table: pd.DataFrame, unusable: pd.DataFrame) -> str:
    """``index.html``: every session with its montage and measures, flagged ones first; no script, relative links."""
    said = html.escape
    flagged = table["flags"] != ""
    order = table.assign(clean=~flagged).sort_values(["clean", "t1_correlation"], kind="stable")
    left = int((table["kept"] == 0).sum())
    head = (
        f"{len(table)} sessions of {table['person'].nunique()} people, {int(flagged.sum())} flagged"
        + (f", {left} of them left out of the cohort" if left else "")
        + (f"; {len(unusable)} could not be used" if len(unusable) else "")
    )
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>QC of {said(config.profile)}</title><style>{_CSS}</style></head><body>",
        f"<h1>QC of {said(config.profile)}</h1>",
        f"<p>{said(config.notice)}</p>" if config.notice else "",
        f'<p>{head}. Flagged sessions come first, then those whose T1 fits the template least. All measures: <a '
        'href="qc.csv">qc.csv</a>. Outlines: MNI152 brain (cyan), reference region of the tracer (white); left is '
        f"left. PET from SUVR 0 (black) to {SUVR_SHOWN:g} (brightest).</p>",
        '<p class="plot"><img src="distributions.png" alt="distributions of the measures" loading="lazy"></p>',
    ]  # fmt: skip
    if len(unusable):
        rows = "".join(f"<tr><td>{said(r.person)} {said(r.session)}</td><td>{said(r.reason)}</td></tr>"
                       for r in unusable.itertuples())  # fmt: skip
        parts.append(f'<h2 class="flag">Could not be used</h2><div class="wide"><table>{rows}</table></div>')
    parts.append("<main>")
    for row in order.to_dict("records"):
        stem, who = said(_stem(row)), f"{said(row['person'])} {said(row['session'])}"
        flags = "".join(f'<p class="flag">{said(flag)}</p>' for flag in row["flags"].split("; ") if flag)
        out = '<p class="flag">left out of the cohort</p>' if not row["kept"] else ""
        parts.append(
            f'<article id="{stem}"><a href="{stem}.png"><img src="{stem}.png" alt="montage of {who}" loading="lazy">'
            f"</a><h2>{who}</h2>{flags}{out}<details><summary>measures</summary>{_measures(row)}</details></article>"
        )
    return "\n".join([*(part for part in parts if part), "</main></body></html>", ""])


def _measures(row: Mapping[str, Any]) -> str:
    cells = []
    for name, title in _SHOWN.items():
        values = [row.get(name.format(kind), np.nan) for kind in (TRACERS if "{}" in name else ("",))]
        if not np.isnan(values).all():
            shown = "".join(f"<td>{'–' if np.isnan(v) else format(v, '.4g').replace('-', '−')}</td>" for v in values)
            cells.append(f"<tr><td>{title}</td>{shown}</tr>")
    heads = "".join(f"<th>{tracer}</th>" for tracer in TRACERS)
    axes = html.escape(str(row["axes"]))
    return f"<table><tr><th></th>{heads}</tr>{''.join(cells)}<tr><td>stored axes</td><td>{axes}</td></tr></table>"


# ── the figure ────────────────────────────────────────────────────────────────────────────────────

_PANELS = (  # columns, title of the x axis, limits; {} is a tracer
    ("t1_correlation", "T1: correlation with MNI152", FLAGS["correlation"]),
    ("{}_similarity", "PET and T1: shared information (NMI)", FLAGS["similarity"]),
    ("{}_mirror", "the same, minus that of the mirrored PET", qc.LIMITS["mirror"]),
    ("{}_reference_mean", "reference mean before scaling (scan's unit)", (-np.inf, np.inf)),
    ("{}_reference_cov", "reference region: COV", FLAGS["reference_cov"]),
    ("{}_suvr_max", "highest SUVR in the brain", FLAGS["suvr_max"]),
    ("t1_torque", "T1: torque (information only)", (-np.inf, np.inf)),
    ("t1w_error_mm", "T1 → MNI: error against the truth (mm)", qc.LIMITS["t1w_error_mm"]),
    ("{}_error_mm", "PET → T1: error against the truth (mm)", qc.LIMITS["pet_error_mm"]),
)


@styled
def qc_distributions(table: pd.DataFrame, *, notice: str = "", bins: int = 24) -> PaperFigure:
    """Histograms of the measures of quality over sessions, with the limits beyond which a session is flagged.

    Parameters
    ----------
    table : DataFrame
        Of `write_qc`. Measures that nobody has (errors, where no truth is known) get no panel.
    notice : str
    bins : int
    """
    panels = [(_columns(table, name), title, limits) for name, title, limits in _PANELS]
    panels = [panel for panel in panels if panel[0]]
    width, height, pitch, head = 1.98, 0.95, 1.48, 0.66
    page = Page.of(WIDTH, head + pitch * -(-len(panels) // 3) + 0.02)
    flagged, named = int((table["flags"] != "").sum()), False
    page.title("Quality of the preprocessed sessions", notice,
               f"{len(table)} sessions of {table['person'].nunique()} people, {flagged} flagged. Grey: beyond the "
               "limit, a session is flagged.")  # fmt: skip
    for i, (columns, title, limits) in enumerate(panels):
        axes = page.axes(0.36 + (i % 3) * 2.36, head + (i // 3) * pitch, width, height)
        values = {kind: table[column].dropna().to_numpy(dtype=float) for kind, column in columns.items()}
        every = np.concatenate(list(values.values()))
        near = [limit for limit in limits if np.isfinite(limit) and _near(limit, every)]
        low, high = min([every.min(), *near]), max([every.max(), *near])
        rim = 0.04 * (high - low) or 0.5
        edges = np.linspace(low - rim, high + rim, bins + 1)
        for kind, numbers in values.items():
            style = {"color": TRACER_COLOURS[kind], "label": TRACER_TITLES.get(kind, "T1")}
            axes.hist(numbers, edges, histtype="stepfilled", alpha=0.25, color=style["color"], linewidth=0)
            axes.hist(numbers, edges, histtype="step", linewidth=1.0, **style)
        axes.set_xlim(edges[0], edges[-1])
        for limit, end in zip(limits, edges[[0, -1]], strict=True):
            if limit in near:
                axes.axvspan(min(limit, end), max(limit, end), color=GREY, alpha=0.18, linewidth=0)
                axes.axvline(limit, color=GREY, linewidth=0.8, dashes=(3, 2))
        axes.set_xlabel(title, labelpad=2)
        axes.locator_params(axis="x", nbins=6)
        axes.locator_params(axis="y", nbins=4, integer=True)
        if i % 3 == 0:
            axes.set_ylabel("sessions", labelpad=2)
        if "t1" not in values and not named:  # the colours are the same in every panel
            axes.legend(loc="upper right", handlelength=1.0, handletextpad=0.4, borderaxespad=0.1)
            named = True
    return page.figure


def _columns(table: pd.DataFrame, name: str) -> dict[str, str]:
    kinds: Sequence[str] = TRACERS if "{}" in name else ("t1",)
    columns = {kind: name.format(kind) for kind in kinds}
    return {kind: column for kind, column in columns.items() if column in table and table[column].notna().any()}


def _near(limit: float, values: np.ndarray) -> bool:
    """Whether a limit is close enough to the values to be worth the room."""
    spread = np.ptp(values) or abs(limit) or 1.0
    return values.min() - 2 * spread <= limit <= values.max() + 2 * spread
