"""Figures 1 and 2, the QC montage, training curves and the regional panel.

Every function takes arrays or frames and returns a matplotlib figure; `save_figure` writes it as SVG and PNG, the same
bytes for the same input. No pyplot, so no backend and no state: matplotlib's own defaults and bundled font are used
whatever the user's settings.

Slices are cut at MNI millimetres and shown in neurological convention: left is left (marked L and R; sagittal P and A).
They are sampled every millimetre by cubic interpolation, clipped to the values there are, for display only.
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy.ndimage import map_coordinates

from resdm.io import atomic, write_json
from resdm.settings import TRACERS
from resdm_suite.anatomy import REFERENCE, Grid, mni_map, regions
from resdm_suite.evaluation.image_quality import mae, psnr
from resdm_suite.evaluation.suvr import to_suvr
from resdm_suite.profiles import FEWEST

WIDTH = 7.2
"""Width of a full-page figure, in inches (183 mm)."""

T1_MAP, PET_MAP, ERROR_MAP, ATTENTION_MAP = "gray", "inferno", "RdBu_r", "viridis"
"""Colour maps: monotonic in lightness, and for errors diverging from white at zero (the lighter, the better)."""

TRACER_TITLES = {"amyloid": "Aβ-PET", "tau": "tau-PET"}

FIELD_MM = {"x": (-78.0, 78.0), "y": (-112.0, 78.0), "z": (-76.0, 88.0)}
"""What a slice shows, in MNI mm: the brain and a narrow rim."""

SLICES = {"amyloid": (("x", 7.0), ("z", 24.0)), "tau": (("y", -20.0), ("z", -16.0))}
"""Slices of Figure 2: through precuneus, cingulate and striatum for amyloid, through the temporal lobes for tau."""

GROUP_SLICES = {tracer: cuts[:1] for tracer, cuts in SLICES.items()}
"""Of Figure 2 where it shows the means of groups: there are twice as many rows."""

_COLOURS = {
    "ResDM": "#D55E00", "DDPM": "#0072B2", "ResViT": "#CC79A7", "TransUNet": "#56B4E9", "SC-GAN": "#009E73",
    "Pix2Pix": "#E69F00", "regression": "#333333", "linear": "#332288", "demographics": "#8E86C4",
    "template": "#999999", "ceiling": "#B8860B",
}  # fmt: skip
_SPARE_COLOURS = ("#882255", "#44AA99", "#6A3D9A", "#B15928")
_MARKERS = "osD^vP*X<>hp"
_COLUMN_NAMES = {"real": "Real", "as_published": "as published"}

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "mathtext.fontset": "dejavusans",
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "svg.fonttype": "path",
    "svg.hashsalt": "resdm",
}
_DPI = {".svg": 150, ".png": 200}  # of pictures inside the SVG, of the whole PNG
_INK, GREY, _WARN = "#222222", "#777777", "#B00020"


# ── frame: style, canvas, saving ──────────────────────────────────────────────────────────────────


class PaperFigure(Figure):
    """A figure that notebooks can show without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with _style():
            self.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
        return buffer.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's defaults and this module's style, not the user's settings."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in this module's style."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with _style():
            return function(*args, **kwargs)

    return wrapper


def save_figure(figure: Figure, stem: str | Path, provenance: Mapping[str, Any]) -> list[Path]:
    """Write ``<stem>.svg``, ``<stem>.png`` (200 dpi) and the ``<stem>.json`` sidecar, each atomically.

    No date and a fixed salt: a figure drawn twice from one input has the same bytes.

    Parameters
    ----------
    figure : Figure
    stem : path
        ``Config.figures / "figure2"``.
    provenance : mapping
        See `resdm_suite.reporting.provenance.provenance`.
    """
    stem = Path(stem)
    paths = [stem.with_name(stem.name + suffix) for suffix in (".svg", ".png", ".json")]
    with _style():
        for path, metadata in zip(paths, ({"Date": None, "Creator": None}, {"Software": None}), strict=False):
            with atomic(path) as temporary:
                figure.savefig(temporary, format=path.suffix[1:], metadata=metadata, dpi=_DPI[path.suffix])
    write_json(paths[2], dict(provenance))
    return paths


@dataclass(frozen=True)
class Page:
    """A figure on which axes are placed in inches from the upper left corner."""

    figure: Figure
    width: float
    height: float

    @classmethod
    def of(cls, width: float, height: float) -> Page:
        """An empty page of so many inches."""
        figure = PaperFigure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(figure)
        return cls(figure, width, height)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes of so many inches, their upper left corner so many from the page's."""
        bottom = self.height - top - height
        return self.figure.add_axes((left / self.width, bottom / self.height, width / self.width, height / self.height))

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text whose upper left corner is so many inches from the page's."""
        style = {"va": "top", "ha": "left", "color": _INK} | style
        self.figure.text(left / self.width, 1 - top / self.height, text, **style)

    def title(self, title: str, notice: str, detail: str = "") -> None:
        """Title line, notice at the right of it, detail below, wrapped where the page is narrow."""
        self.text(0.08, 0.08, title, fontsize=9, fontweight="bold")
        if notice:
            self.text(self.width - 0.08, 0.09, notice, fontsize=7, color=_WARN, ha="right", style="italic")
        if detail:
            lines = textwrap.wrap(detail, int(self.width / 0.049))  # inches a letter of this size takes
            self.text(0.08, 0.26, "\n".join(lines), fontsize=6.5, color=GREY, linespacing=1.15)

    def bar(self, left: float, top: float, height: float, norm: Normalize, cmap: str, label: str) -> None:
        """A vertical colour bar."""
        axes = self.axes(left, top, 0.07, height)
        bar = self.figure.colorbar(ScalarMappable(norm, cmap), cax=axes)
        bar.outline.set_linewidth(0.4)
        bar.ax.tick_params(labelsize=6, width=0.4, length=2, pad=1.5)
        bar.formatter.set_useOffset(False)
        bar.ax.locator_params(nbins=5) if height > 0.5 else bar.set_ticks([norm.vmin, norm.vmax])
        bar.set_label(label, fontsize=6.5, labelpad=2)


# ── slices ────────────────────────────────────────────────────────────────────────────────────────

_SIDES = {"x": ("y", "z"), "y": ("x", "z"), "z": ("x", "y")}  # axis cut: axes shown (right, up)
_MARKS = {"x": ("P", "A"), "y": ("L", "R"), "z": ("L", "R")}


def slice_name(cut: tuple[str, float]) -> str:
    """``("z", -16)`` → ``z = −16 mm``."""
    return f"{cut[0]} = {cut[1]:+.0f} mm".replace("-", "−")


def plane(volume: np.ndarray, grid: Grid, cut: tuple[str, float], order: int = 3) -> np.ndarray:
    """A slice of a volume at an MNI coordinate, sampled every millimetre over `FIELD_MM`.

    Parameters
    ----------
    volume : ndarray (X', Y', Z')
        Any array over the grid's box, on its voxels or on coarser ones (an attention map).
    grid : Grid
    cut : (str, float)
        Axis and MNI mm.
    order : int
        Of the spline; 1 is linear.

    Returns
    -------
    ndarray (up, right)
        Clipped to the volume's own values; beyond the grid, its outermost voxels.
    """
    axis, mm = cut
    right, up = _SIDES[axis]
    world = {axis: np.array([mm])} | {side: np.arange(FIELD_MM[side][0], FIELD_MM[side][1] + 1) for side in (right, up)}
    indices = []
    for i, name in enumerate("xyz"):
        edge = grid.affine[i, 3] - grid.voxel_mm / 2  # of the box
        size = grid.voxel_mm * grid.shape[i] / volume.shape[i]
        indices.append((world[name] - edge) / size - 0.5)
    points = np.stack(np.meshgrid(*indices, indexing="ij"))
    values = map_coordinates(np.asarray(volume, dtype=np.float64), points, order=order, mode="nearest")
    values = np.clip(values.squeeze("xyz".index(axis)), volume.min(), volume.max())
    return values.T  # both orders of _SIDES are increasing in x, y, z


def _show(
    axes: Axes, volume: np.ndarray, grid: Grid, cut: tuple[str, float], norm: Normalize, cmap: str, marks: bool = False
) -> None:
    extent = _extent(cut)
    axes.imshow(plane(volume, grid, cut), cmap=cmap, norm=norm, origin="lower", extent=extent, interpolation="nearest")
    axes.set_facecolor("black")
    _bare(axes)
    if marks:
        for x, mark in zip((0.03, 0.97), _MARKS[cut[0]], strict=True):
            axes.text(x, 0.03, mark, transform=axes.transAxes, color="white", fontsize=5.5, va="bottom",
                      ha="left" if x < 0.5 else "right")  # fmt: skip


def _outline(axes: Axes, mask: np.ndarray, grid: Grid, cut: tuple[str, float], colour: str, width: float = 0.6) -> None:
    section = plane(mask.astype(np.float32), grid, cut, order=1)
    if section.max() > 0.5:
        left, right, bottom, top = _extent(cut)
        x = np.linspace(left + 0.5, right - 0.5, section.shape[1])
        y = np.linspace(bottom + 0.5, top - 0.5, section.shape[0])
        axes.contour(x, y, section, levels=[0.5], colors=[colour], linewidths=width)


def _extent(cut: tuple[str, float]) -> tuple[float, float, float, float]:
    right, up = _SIDES[cut[0]]
    return (FIELD_MM[right][0] - 0.5, FIELD_MM[right][1] + 0.5, FIELD_MM[up][0] - 0.5, FIELD_MM[up][1] + 0.5)


def _aspect(cut: tuple[str, float]) -> float:
    """Height over width."""
    left, right, bottom, top = _extent(cut)
    return (top - bottom) / (right - left)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _top(values: Sequence[float], step: float) -> float:
    """The largest value, rounded up to a step."""
    return float(max(step, np.ceil(max(values) / step - 1e-9) * step))


# ── QC montage ────────────────────────────────────────────────────────────────────────────────────


@styled
def qc_montage(
    people: Sequence[Mapping[str, Any]],
    grid: Grid,
    suvr_range: Mapping[str, tuple[float, float]],
    *,
    notice: str = "",
    title: str = "Preprocessed volumes in MNI space",
    cuts: Sequence[tuple[str, float]] = (("x", 7.0), ("y", -58.0), ("z", -18.0)),
) -> Figure:
    """T1, amyloid and tau of several people in MNI space, with the outlines that registration must match.

    Parameters
    ----------
    people : sequence of mapping
        One row each: ``label`` (text, its first line bold), ``mri`` (X, Y, Z) in [0, 1], ``amyloid`` and ``tau``
        (X, Y, Z) in [0, 1] or None, ``flags`` (list of text; empty is a pass; without the key nothing is said).
    grid : Grid
    suvr_range : mapping of tracer to (low, high)
        What intensities 0 and 1 stand for.
    notice, title : str
    cuts : sequence of (axis, mm)
        Slices of each volume.
    """
    label_width, gap, group_gap, bar_width = 0.95, 0.02, 0.10, 0.42
    widths = [1 / _aspect(cut) for cut in cuts]  # at height 1
    room = WIDTH - label_width - bar_width - 3 * (len(cuts) - 1) * gap - 2 * group_gap - 0.08
    height = room / (3 * sum(widths))
    head = 0.78
    page = Page.of(WIDTH, head + len(people) * (height + 0.06) + 0.12)
    page.title(title, notice, "Outlines: MNI152 brain (cyan), reference region of the tracer (white); left is left.")
    brain, masks = mni_map("brain", grid), regions(grid)
    pets = [to_suvr(person[t], suvr_range[t])[brain] for person in people for t in TRACERS if person.get(t) is not None]
    norm = Normalize(0, _top([np.quantile(pet, 0.999) for pet in pets] or [1.0], 0.25))
    for row, person in enumerate(people):
        top = head + row * (height + 0.06)
        first, *more = str(person["label"]).split("\n")
        page.text(0.08, top + 0.03, first, fontsize=6.5, fontweight="bold")
        page.text(0.08, top + 0.16, "\n".join(more), fontsize=6)
        if "flags" in person:
            flags = list(person["flags"])
            text = "\n".join(flags) if flags else "no flags"
            page.text(0.08, top + 0.17 + 0.12 * len(more), text, fontsize=6, color=_WARN if flags else GREY)
        left = label_width
        for kind in ("mri", *TRACERS):
            for column, (cut, width) in enumerate(zip(cuts, widths, strict=True)):
                axes = page.axes(left, top, width * height, height)
                volume = person.get(kind)
                if volume is None:
                    _bare(axes)
                    axes.set_facecolor("#EEEEEE")
                    if column == len(cuts) // 2:
                        axes.text(0.5, 0.5, "not acquired", transform=axes.transAxes, ha="center", va="center",
                                  fontsize=6, color=GREY)  # fmt: skip
                else:
                    if kind == "mri":
                        _show(axes, volume, grid, cut, Normalize(0, 1), T1_MAP, marks=row == 0)
                    else:
                        _show(axes, to_suvr(volume, suvr_range[kind]), grid, cut, norm, PET_MAP, marks=row == 0)
                    _outline(axes, brain, grid, cut, "#35C9E8", 0.5)
                    if kind != "mri":
                        _outline(axes, masks[REFERENCE[kind]], grid, cut, "white", 0.6)
                    axes.set_xlim(_extent(cut)[:2])
                    axes.set_ylim(_extent(cut)[2:])
                if row == 0:
                    axes.set_title(slice_name(cut), fontsize=5.5, pad=2, color=GREY)
                    if column == 0:
                        name = "T1" if kind == "mri" else TRACER_TITLES[kind]
                        page.text(left, head - 0.30, name, fontsize=7.5, fontweight="bold")
                left += width * height + gap
            left += group_gap - gap
    page.bar(WIDTH - bar_width + 0.02, head, height, norm, PET_MAP, "SUVR")
    return page.figure


@styled
def scan_montage(
    mri: np.ndarray,
    volumes: Mapping[str, np.ndarray],
    grid: Grid,
    suvr_range: Mapping[str, tuple[float, float]],
    *,
    notice: str = "",
    title: str = "Synthetic PET",
    detail: str = "",
    cuts: Sequence[tuple[str, float]] = (("x", 7.0), ("y", -58.0), ("y", -20.0), ("z", -18.0), ("z", 24.0)),
) -> Figure:
    """One person's T1 and synthetic PETs, in MNI space.

    Parameters
    ----------
    mri : ndarray (X, Y, Z)
        In [0, 1].
    volumes : mapping of str to ndarray (X, Y, Z)
        ``amyloid`` and ``tau`` in [0, 1].
    grid : Grid
    suvr_range : mapping of tracer to (low, high)
        What intensities 0 and 1 stand for.
    notice, title, detail : str
    cuts : sequence of (axis, mm)
    """
    label_width, gap, bar_width, head = 0.85, 0.03, 0.5, 0.72
    widths = [1 / _aspect(cut) for cut in cuts]  # at height 1
    height = (WIDTH - label_width - bar_width - 0.08 - (len(cuts) - 1) * gap) / sum(widths)
    brain = mni_map("brain", grid)
    pets = {tracer: to_suvr(volumes[tracer], suvr_range[tracer]) for tracer in TRACERS}
    norm = Normalize(0, _top([np.quantile(pet[brain], 0.999) for pet in pets.values()], 0.25))
    rows: list[tuple[str, np.ndarray, Normalize, str, str]] = [("T1", mri, Normalize(0, 1), T1_MAP, "intensity")]
    rows += [(f"{TRACER_TITLES[tracer]}\nmean", pets[tracer], norm, PET_MAP, "SUVR") for tracer in TRACERS]
    page = Page.of(WIDTH, head + len(rows) * (height + 0.06) + 0.06)
    page.title(title, notice, f"{detail} Outline: MNI152 brain; left is left.".strip())
    for number, (label, volume, limits, cmap, unit) in enumerate(rows):
        top, left = head + number * (height + 0.06), label_width
        first, *more = label.split("\n")
        page.text(0.08, top + 0.03, first, fontsize=7, fontweight="bold")
        page.text(0.08, top + 0.16, "\n".join(textwrap.wrap(" ".join(more), 12)), fontsize=6, color=GREY)
        for cut, width in zip(cuts, widths, strict=True):
            axes = page.axes(left, top, width * height, height)
            _show(axes, volume, grid, cut, limits, cmap, marks=number == 0)
            _outline(axes, brain, grid, cut, "#35C9E8", 0.5)
            axes.set_xlim(_extent(cut)[:2])
            axes.set_ylim(_extent(cut)[2:])
            if number == 0:
                axes.set_title(slice_name(cut), fontsize=5.5, pad=2, color=GREY)
            left += width * height + gap
        page.bar(WIDTH - bar_width + 0.02, top, height, limits, cmap, unit)
    return page.figure


# ── figure 1 ──────────────────────────────────────────────────────────────────────────────────────


@styled
def figure1(
    tensors: Mapping[str, Any], grid: Grid, *, notice: str = "", cut: tuple[str, float] = ("z", 14.0)
) -> Figure:
    """The method, from tensors of a real run: the forward process, the reverse path, and where the text attends.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        As of ``numpy.load`` of an ``.npz``; intensities in [0, 1]; tracers in the order amyloid, tau:

        ``mri`` (X, Y, Z)
            y_0.
        ``pet`` (2, X, Y, Z)
            x_0.
        ``forward`` (2, K, X, Y, Z), ``forward_t`` (K,)
            Noisy x_t of Eq. 1 at a few t, increasing.
        ``reverse`` (2, M, X, Y, Z), ``reverse_t`` (M,)
            States of sampling from x_T down; the last, t = 0, is the synthetic PET x̂_0.
        ``eta`` (T,)
            The shifting sequence η_1 … η_T.
        ``attention`` (2, G, X', Y', Z'), ``attention_names`` (G,)
            Share of the cross-attention that a group of prompt tokens receives at each voxel of the bottleneck, summed
            over the group, averaged over heads; optional.
        ``prompts`` (2,)
            The texts, for the heading of the attention maps; optional.
        ``people`` ()
            Over how many people the tensors are averaged; optional, one person without it.
    grid : Grid
    notice : str
    cut : (axis, mm)
        The slice that is shown.
    """
    mri, pet = np.asarray(tensors["mri"]), np.asarray(tensors["pet"])
    forward, reverse = np.asarray(tensors["forward"]), np.asarray(tensors["reverse"])
    forward_t, reverse_t = (np.asarray(tensors[key]).ravel() for key in ("forward_t", "reverse_t"))
    eta = np.asarray(tensors["eta"]).ravel()
    shares = np.asarray(tensors["attention"]) if "attention" in tensors else None
    columns = max(forward.shape[1] + 2, reverse.shape[1] + 1, 6)
    label, gap, bars = 0.62, 0.03, 0.46
    width = (WIDTH - label - bars - (columns - 1) * gap) / columns
    height = width * _aspect(cut)
    strip = 2 * height + gap
    tops = [0.78, 0.78 + strip + 0.52]
    third = tops[1] + strip + 0.52
    fourth = third + strip + 0.56
    page = Page.of(WIDTH, third + strip + 0.20 if shares is None else fourth + strip + 0.12)
    whose = "Tensors of one person and one run."
    if "people" in tensors:
        whose = f"Tensors are means over {int(tensors['people'])} test people, a run each; nobody is shown alone."
    page.title(
        "Figure 1: The residual diffusion model", notice,
        f"{whose} One slice, {slice_name(cut)}; left is left.",
    )  # fmt: skip
    grey = Normalize(0, 1)

    def left_of(column: int) -> float:
        return label + column * (width + gap)

    def picture(column: int, top: float, volume: np.ndarray, norm: Normalize, cmap: str, title: str = "") -> Axes:
        axes = page.axes(left_of(column), top, width, height)
        _show(axes, volume, grid, cut, norm, cmap, marks=column == 0)
        if title:
            axes.set_title(title, fontsize=7, pad=2.5)
        return axes

    def heading(letter: str, top: float, text: str) -> None:
        page.text(0.08, top - 0.36, f"{letter}", fontsize=8.5, fontweight="bold")
        page.text(0.26, top - 0.355, text, fontsize=7.5)

    def names(top: float) -> None:
        for row, tracer in enumerate(TRACERS):
            page.text(label - 0.06, top + row * (height + gap) + height / 2, TRACER_TITLES[tracer], rotation=90,
                      ha="right", va="center", fontsize=7)  # fmt: skip

    # a: forward
    heading("a", tops[0], "Forward process (Eq. 1): the PET moves along its residual into a noisy MRI, "
            r"$x_t = x_0 + \eta_t\,(y_0 - x_0) + \kappa\sqrt{\eta_t}\,\varepsilon$")  # fmt: skip
    names(tops[0])
    for row in range(2):
        top = tops[0] + row * (height + gap)
        picture(0, top, pet[row], grey, T1_MAP, "$x_0$" if row == 0 else "")
        for k, t in enumerate(forward_t):
            picture(k + 1, top, forward[row, k], grey, T1_MAP, f"$x_{{{int(t)}}}$" if row == 0 else "")
        picture(forward.shape[1] + 1, top, mri, grey, T1_MAP, "$y_0$ (MRI)" if row == 0 else "")
    # b: reverse
    heading("b", tops[1], r"Reverse path (Eq. 2–3): from the noisy MRI to the synthetic PET $\hat{x}_0$")
    names(tops[1])
    for row in range(2):
        top = tops[1] + row * (height + gap)
        for k, t in enumerate(reverse_t):
            title = r"$\hat{x}_0$" if int(t) == 0 else f"$x_{{{int(t)}}}$"
            picture(k, top, reverse[row, k], grey, T1_MAP, title if row == 0 else "")
        picture(reverse.shape[1], top, pet[row], grey, T1_MAP, "$x_0$ (real)" if row == 0 else "")
    for top, used in zip(tops, (forward.shape[1] + 2, reverse.shape[1] + 1), strict=True):
        page.bar(left_of(used) + 0.01, top, strip, grey, T1_MAP, "intensity")
    # c: differences between and within the domains
    heading("c", third, "Inter-domain difference")
    residual = mri[None] - pet
    synthetic = reverse[:, -1]
    left_out = mri[None] - synthetic
    limit = _top([np.quantile(np.abs(residual[:, mri > 0]), 0.99) if (mri > 0).any() else 1.0], 0.1)
    signed = Normalize(-limit, limit)
    names(third)
    for row in range(2):
        top = third + row * (height + gap)
        picture(0, top, residual[row], signed, ERROR_MAP, "$e_0 = y_0 - x_0$" if row == 0 else "")
        picture(1, top, left_out[row], signed, ERROR_MAP, r"$y_0 - \hat{x}_0$" if row == 0 else "")
    page.bar(left_of(2) + 0.04, third, strip, signed, ERROR_MAP, "intensity")
    start = 3  # one column for the bar and its label
    page.text(left_of(start), third - 0.355, r"Intra-domain difference (Eq. 6)", fontsize=7.5)
    inside = [np.abs(pet[0] - pet[1]), np.abs(synthetic[0] - synthetic[1])]
    size = Normalize(0, _top([np.quantile(inside[0][mri > 0], 0.995) if (mri > 0).any() else 1.0], 0.05))
    formulas = (r"real $|x_0^1 - x_0^2|$", r"synthetic $|\hat{x}_0^1 - \hat{x}_0^2|$")
    for row, (volume, name) in enumerate(zip(inside, formulas, strict=True)):
        top = third + row * (height + gap)
        picture(start, top, volume, size, PET_MAP)
        page.text(left_of(start) - 0.05, top + height / 2, name, rotation=90, ha="right", va="center", fontsize=6.5)
    page.bar(left_of(start + 1) + 0.04, third, strip, size, PET_MAP, "intensity")
    plot_left = left_of(start + 2) + 0.36
    axes = page.axes(plot_left, third + 0.02, WIDTH - plot_left - 0.12, strip - 0.30)
    steps = np.arange(1, len(eta) + 1)
    axes.plot(steps, eta, color=_COLOURS["DDPM"], marker="o", markersize=2.5)
    shown = [int(t) for t in forward_t if 1 <= int(t) <= len(eta)]
    drawn = eta[np.array(shown, dtype=int) - 1]
    axes.plot(shown, drawn, "o", color=_COLOURS["ResDM"], markersize=4.5, label="shown in a")
    axes.set_xlabel("$t$")
    axes.set_ylabel(r"$\eta_t$", labelpad=1)
    axes.set_ylim(0, 1.05)
    axes.set_xlim(0, len(eta) + 0.5)
    axes.legend(loc="lower right", handletextpad=0.1)
    page.text(plot_left, third - 0.355, r"Shifting sequence $\eta_t$", fontsize=7.5)
    # d: attention
    if shares is not None:
        said = f": “{np.asarray(tensors['prompts']).ravel()[0]}” and tau" if "prompts" in tensors else ""
        heading("d", fourth, f"Where the text attends (Eq. 5){said}")
        names(fourth)
        group_names = [str(name) for name in np.asarray(tensors["attention_names"]).ravel()]
        pitch = (WIDTH - 0.08 - label) / len(group_names)
        brain = mni_map("brain", grid)
        for i, name in enumerate(group_names):
            low, high = 100 * float(shares[:, i].min()), 100 * float(shares[:, i].max())
            norm = Normalize(low, max(high, low + 0.1))  # one scale for both prompts
            left = label + i * pitch
            for row in range(2):
                axes = page.axes(left, fourth + row * (height + gap), width, height)
                _show(axes, 100 * shares[row, i], grid, cut, norm, ATTENTION_MAP, marks=i == 0)
                _outline(axes, brain, grid, cut, "white", 0.6)
                if row == 0:
                    axes.set_title(name, fontsize=7, pad=2.5)
            page.bar(left + width + 0.04, fourth, strip, norm, ATTENTION_MAP, "% of attention")
    return page.figure


# ── figure 2 ──────────────────────────────────────────────────────────────────────────────────────


@styled
def figure2(
    real: Mapping[str, np.ndarray],
    synthetic: Mapping[str, Mapping[str, np.ndarray]],
    grid: Grid,
    suvr_range: Mapping[str, tuple[float, float]],
    *,
    mri: np.ndarray | None = None,
    notice: str = "",
    person: str = "",
    title: str = "Figure 2: Real and synthetic PET",
    cuts: Mapping[str, Sequence[tuple[str, float]]] = SLICES,
    groups: Mapping[str, str] | None = None,
    quality: Mapping[tuple[str, str], tuple[float, float]] | None = None,
) -> Figure:
    """Ground truth, syntheses and error maps of one person, both tracers; or those of the means of groups of people.

    Parameters
    ----------
    real : mapping of tracer to ndarray (X, Y, Z)
        Real PET, intensities in [0, 1]; with ``groups``, of group. Nothing in it gives a page that says so.
    synthetic : mapping of method to mapping of tracer to ndarray (X, Y, Z)
        Synthetic PET, in column order.
    grid : Grid
    suvr_range : mapping of tracer to (low, high)
        What intensities 0 and 1 stand for.
    mri : ndarray (X, Y, Z) or mapping of group to it, optional
        The person's T1, or the group's mean, shown below the real PET.
    notice : str
    person : str
        Who it is and by which rule chosen, for the line under the title.
    title : str
        Figure 3 is this figure with the variants of Table 3 as its methods.
    cuts : mapping of tracer to sequence of (axis, mm)
    groups : mapping of str to str, optional
        Name of a group as it is printed, to its tracer, in row order.
    quality : mapping of (method, group) to (float, float), optional
        PSNR (dB) and MAE (%) to print below the columns, of people; by default those of the volumes shown.

    Notes
    -----
    One colour scale a tracer for all images, 0 to the 99.9th percentile of the real PET's brain, and one symmetrical
    scale for all errors, up to the largest of the methods' 99.5th percentiles. Numbers below a column are in-brain.
    """
    methods = list(synthetic)
    tracer_of = {tracer: tracer for tracer in TRACERS if tracer in real} if groups is None else dict(groups)
    if not tracer_of:
        page = Page.of(WIDTH, 0.62)
        page.title(title, notice, person)
        return page.figure
    names, comma, difference = TRACER_TITLES, ", ", "synthetic − real (SUVR)"
    if groups is not None:
        names, comma, difference = {group: group for group in groups}, "\n", "difference"
        title = f"{title}, means of groups"
    label, gap, bars = 0.52, 0.03, 0.58
    room = WIDTH - label - bars - len(methods) * gap
    width = min(room / (len(methods) + 1), 0.95)
    total = label + (len(methods) + 1) * width + len(methods) * gap + bars
    total, head, foot, tracer_gap = max(total, 5.8), 0.68, 0.34, 0.10
    heights = {block: [2 * width * _aspect(cut) + gap for cut in cuts[tracer]] for block, tracer in tracer_of.items()}
    blocks = {block: sum(heights[block]) + gap * len(heights[block]) + foot for block in tracer_of}
    page = Page.of(total, head + sum(blocks.values()) + tracer_gap * (len(blocks) - 1) + 0.06)
    detail = "Left is left. PSNR and MAE are of this person, inside the brain."
    if groups is not None:
        detail = "Below: synthetic − real. Left is left. PSNR and MAE: means over people, inside the brain."
    page.title(title, notice, f"{person} {detail}".strip())
    brain = mni_map("brain", grid)
    top = head
    for block, tracer in tracer_of.items():
        truth = to_suvr(real[block], suvr_range[tracer])
        made = {method: to_suvr(synthetic[method][block], suvr_range[tracer]) for method in methods}
        t1 = mri.get(block) if isinstance(mri, Mapping) else mri
        errors = {method: volume - truth for method, volume in made.items()}
        norm = Normalize(0, _top([np.quantile(truth[brain], 0.999)], 0.25))
        limit = _top([np.quantile(np.abs(error[brain]), 0.995) for error in errors.values()] or [0.1], 0.1)
        signed = Normalize(-limit, limit)
        start = top
        for i, (cut, tall) in enumerate(zip(cuts[tracer], heights[block], strict=True)):
            height = width * _aspect(cut)
            page.text(label - 0.06, top + tall / 2, f"{names[block]}{comma}{slice_name(cut)}", rotation=90,
                      ha="right", va="center", fontsize=6.5)  # fmt: skip
            for column, name in enumerate(["real", *methods]):
                left = label + column * (width + gap)
                axes = page.axes(left, top, width, height)
                volume = truth if name == "real" else made[name]
                _show(axes, volume, grid, cut, norm, PET_MAP, marks=column == 0)
                if top == head:
                    style = {"fontweight": "bold"} if name == "ResDM" else {}
                    axes.set_title(_COLUMN_NAMES.get(name, name), fontsize=min(7, 10.5 * width), pad=3, **style)
                if name != "real" or t1 is not None:
                    axes = page.axes(left, top + height + gap, width, height)
                    if name == "real":
                        _show(axes, t1, grid, cut, Normalize(0, 1), T1_MAP)
                        axes.text(0.03, 0.96, "T1", transform=axes.transAxes, color="white", fontsize=5.5, va="top")
                    else:
                        _show(axes, errors[name], grid, cut, signed, ERROR_MAP)
                        _outline(axes, brain, grid, cut, "#888888", 0.5)
                        axes.set_xlim(_extent(cut)[:2])
                        axes.set_ylim(_extent(cut)[2:])
            top += tall + gap
            if i == 0:
                first_bottom = top - gap
        small = {"fontsize": 6, "linespacing": 1.25}
        page.text(label + width, top + 0.01, "PSNR (dB)\nMAE (%)", ha="right", color=GREY, **small)
        for column, name in enumerate(methods, start=1):
            values = real[block], synthetic[name][block], brain
            shown = (psnr(*values), 100 * mae(*values)) if quality is None else quality[name, block]
            page.text(
                label + column * (width + gap) + width / 2, top + 0.01,
                f"{shown[0]:.1f}\n{shown[1]:.2f}",
                ha="center", **small,
            )  # fmt: skip
        bar_left = label + (len(methods) + 1) * (width + gap) + 0.02
        middle = first_bottom if len(cuts[tracer]) > 1 else start + (top - start) / 2
        page.bar(bar_left, start, middle - start - 0.08, norm, PET_MAP, "SUVR")
        page.bar(bar_left, middle + 0.08, top - gap - middle - 0.08, signed, ERROR_MAP, difference)
        top += foot + tracer_gap
    return page.figure


# ── curves and points ─────────────────────────────────────────────────────────────────────────────


def looks(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every method, the same in all figures for the known ones."""
    spare = iter(_SPARE_COLOURS * (len(methods) // len(_SPARE_COLOURS) + 1))
    return {m: (_COLOURS.get(m) or next(spare), _MARKERS[i % len(_MARKERS)]) for i, m in enumerate(methods)}


@styled
def training_curves(histories: Mapping[str, pd.DataFrame], *, notice: str = "") -> Figure:
    """Losses and validation scores of one or more methods over training.

    Parameters
    ----------
    histories : mapping of method to DataFrame
        ``history.csv``: ``epoch``, one row each; one panel for every other numeric column but ``step``. Empty cells
        (epochs without validation) are passed over. Losses are drawn on a logarithmic scale, validation is not.
    notice : str
    """
    skip = {"epoch", "step"}
    names: list[str] = []
    for frame in histories.values():
        for column in frame.columns:
            numbers = pd.to_numeric(frame[column], errors="coerce")
            if column not in skip and column not in names and numbers.notna().any():
                names.append(column)
    if not names:
        raise ValueError("training curves: no history has a numeric column beside epoch and step")
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    height, left, head, pitch = 1.25, 0.48, 0.62, (WIDTH - 0.1) / columns
    width = min(pitch - left - 0.08, 4.0)
    page = Page.of(WIDTH, head + lines * (height + 0.52) + 0.12)
    page.title("Training", notice)
    look = looks(list(histories))
    for i, name in enumerate(names):
        axes = page.axes(left + (i % columns) * pitch, head + (i // columns) * (height + 0.52), width, height)
        for method, frame in histories.items():
            if name in frame:
                y = pd.to_numeric(frame[name], errors="coerce")
                kept = y.notna()
                x = frame["epoch"] if "epoch" in frame else pd.Series(np.arange(1, len(frame) + 1))
                sparse = kept.sum() <= 40
                axes.plot(x[kept], y[kept], color=look[method][0], label=method, marker="o" if sparse else "",
                          markersize=2)  # fmt: skip
        axes.set_title(name.replace("_", " "), pad=3)
        axes.grid(True, color="#E6E6E6", linewidth=0.5)
        axes.set_axisbelow(True)
        if not name.startswith("validation") and all((np.asarray(line.get_ydata()) > 0).all() for line in axes.lines):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if i // columns == lines - 1 or i + columns >= len(names):
            axes.set_xlabel("epoch", labelpad=1)
    if len(histories) > 1:
        handles, labels = page.figure.axes[0].get_legend_handles_labels()
        page.figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.06, 1 - 0.22 / page.height),
                           ncols=len(labels), columnspacing=1.2, handlelength=1.4)  # fmt: skip
    return page.figure


@styled
def regional_panel(
    regional: pd.DataFrame,
    agreement: pd.DataFrame,
    textures: pd.DataFrame | None = None,
    *,
    method: str = "ResDM",
    people: bool = True,
    notice: str = "",
) -> Figure:
    """Regional SUVR, real against synthetic: the scatter of one method; r, bias and texture of all.

    Parameters
    ----------
    regional : DataFrame
        Rows of `resdm_suite.evaluation.suvr.regional_suvr`, one or more methods.
    agreement : DataFrame
        From `resdm_suite.evaluation.suvr.agreement`.
    textures : DataFrame, optional
        From `resdm_suite.evaluation.suvr.texture_summary`.
    method : str
        Whose scatter is drawn (summary region).
    people : bool
        One point a person. Else, for cohorts whose single people may not be shown, up to ten groups of as many people
        of like real SUVR, at least `FEWEST` each: mean and standard deviation of both.
    notice : str

    Notes
    -----
    Intervals of the bias (95 %) are drawn for up to four methods; more would hide each other.
    """
    tracers = [tracer for tracer in TRACERS if (agreement["tracer"] == tracer).any()]
    methods = list(dict.fromkeys(agreement["method"]))
    if method not in methods:
        raise ValueError(f"no regional SUVR of {method!r}; there are: {', '.join(methods) or 'none'}")
    look = looks(methods)
    more = 0.1 * max(0, len(methods) - 8)  # inches, for the names of the texture's rows
    head, height, side, pitch = 0.82, 3.05 + more, 1.72, 3.68 + more
    page = Page.of(WIDTH, head + len(tracers) * pitch - 0.20)
    page.title("Regional SUVR: real against synthetic PET", notice)
    if not people:
        page.text(
            WIDTH - 0.08,
            0.24,
            "scatter: means and deviations of groups of people",
            fontsize=6.5,
            color=GREY,
            ha="right",
        )
    for i, tracer in enumerate(tracers):
        top = head + i * pitch
        _scatter(page.axes(0.50, top, side, side), regional, agreement, tracer, method, look[method][0], people)
        if textures is not None:
            part = textures[textures["tracer"] == tracer].set_index("method").reindex(methods)
            axes = page.axes(0.88, top + side + 0.62, side + 0.50 - 0.88, height - side - 0.62)
            places = np.arange(len(methods))[::-1]
            axes.axvline(1, color=GREY, linewidth=0.6)
            for place, (name, values) in zip(places, part.iterrows(), strict=True):
                colour, marker = look[name]
                low, high = values["mean"] - values["std"], values["mean"] + values["std"]
                axes.hlines(place, low, high, color=colour, linewidth=0.7)
                axes.plot(values["mean"], place, marker, color=colour, markersize=3, markeredgewidth=0)
            axes.set_xlim(0, max(1.15, float((part["mean"] + part["std"].fillna(0)).max()) * 1.05))
            axes.set_ylim(-0.6, len(methods) - 0.4)
            axes.set_yticks(places, methods)
            axes.tick_params(axis="y", length=0, labelsize=5.5 if more else 6)
            axes.set_title("texture: gradient energy ÷ real", pad=3, loc="right")
        for column, left, width, title in (
            ("r", 3.50, 1.70, "r over people"),
            ("bias", 5.42, 1.66, "bias: synthetic − real (SUVR)"),
        ):
            axes = page.axes(left, top, width, height)
            _by_region(axes, agreement[agreement["tracer"] == tracer], column, methods, look)
            axes.set_title(title, pad=4, loc="left")
        if i == 0:
            handles, labels = axes.get_legend_handles_labels()
            lines = -(-len(labels) // 8)
            page.figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.055, 1 - 0.30 / page.height),
                               ncols=-(-len(labels) // lines), columnspacing=1.2, handletextpad=0.1)  # fmt: skip
    return page.figure


def _scatter(
    axes: Axes, regional: pd.DataFrame, agreement: pd.DataFrame, tracer: str, method: str, colour: str, single: bool
) -> None:
    chosen = (regional["tracer"] == tracer) & (regional["method"] == method) & (regional["region"] == "summary")
    people = regional[chosen].groupby("person")[["real", "synthetic"]].mean()
    groups = people if single else _grouped(people)
    spread = 0 if single else groups[["real_std", "synthetic_std"]].to_numpy()
    values = groups[["real", "synthetic"]].to_numpy()
    low, high = 0.0, 1.0  # of nothing
    if len(values):
        low, high = np.floor((values - spread).min() * 10) / 10, np.ceil((values + spread).max() * 10) / 10
    axes.plot([low, high], [low, high], color=GREY, linewidth=0.7, dashes=(3, 2))
    if single:
        axes.plot(people["real"], people["synthetic"], "o", color=colour, markersize=3, alpha=0.75, markeredgewidth=0)
    else:
        axes.errorbar(
            groups["real"], groups["synthetic"], groups["synthetic_std"], groups["real_std"],
            fmt="o", color=colour, markersize=3, markeredgewidth=0, elinewidth=0.7,
        )  # fmt: skip
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.locator_params(nbins=5)
    axes.set_xlabel("real (SUVR)", labelpad=1)
    axes.set_ylabel("synthetic (SUVR)", labelpad=2)
    rows = agreement[(agreement["tracer"] == tracer) & (agreement["method"] == method)].set_index("region")
    values = rows.loc["summary"]
    text = f"r = {values['r']:.2f}\nICC = {values['icc']:.2f}\nn = {int(values['n'])}".replace("-", "−")
    axes.text(0.04, 0.97, text, transform=axes.transAxes, va="top", fontsize=6.5)
    axes.set_title(f"{TRACER_TITLES[tracer]}, cortical summary, {method}", pad=4, loc="left")


def _grouped(people: pd.DataFrame) -> pd.DataFrame:
    """Up to ten groups of people of like real SUVR, at least `FEWEST` each: means, and deviations as ``…_std``."""
    ordered = people.sort_values("real", kind="stable").reset_index(drop=True)
    count = min(10, len(ordered) // FEWEST)
    group = np.arange(len(ordered)) * count // max(len(ordered), 1)
    parts = ordered.groupby(group) if count else ordered.iloc[:0].groupby(group[:0])
    return parts.mean().join(parts.std(ddof=1).add_suffix("_std"))


def region_rows(axes: Axes, regions: Sequence[str], *, names: bool, rim: float) -> np.ndarray:
    """A banded row a region, from the top, on axes with zero marked, a ``rim`` of rows around; their heights."""
    places = np.arange(len(regions))[::-1]
    for place in places[::2]:
        axes.axhspan(place - 0.5, place + 0.5, color="#F4F4F4", linewidth=0)
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.set_ylim(-0.5 - rim, len(regions) - 0.5 + rim)
    axes.set_yticks(places, [name.replace("_", " ") for name in regions] if names else [""] * len(regions))
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=5)
    axes.spines["left"].set_visible(False)
    return places


def _by_region(
    axes: Axes, agreement: pd.DataFrame, column: str, methods: Sequence[str], look: Mapping[str, tuple[str, str]]
) -> None:
    names = list(dict.fromkeys(agreement["region"]))
    places = region_rows(axes, names, names=column == "r", rim=0.2)
    for k, name in enumerate(methods):
        rows = agreement[agreement["method"] == name].set_index("region").reindex(names)
        colour, marker = look[name]
        y = places + (0.5 - (k + 0.5) / len(methods)) * 0.75
        if column == "bias" and len(methods) <= 4:
            axes.hlines(y, rows["bias_low"], rows["bias_high"], color=colour, linewidth=0.7)
        axes.plot(rows[column], y, marker, color=colour, markersize=3, markeredgewidth=0, label=name)
    if column == "r":
        lowest = agreement["r"].min()
        axes.set_xlim(min(-0.05, (0.0 if np.isnan(lowest) else lowest) - 0.05), 1.03)
