"""The style of all figures: matplotlib settings, colours, sizes, headings, and saving.

A notebook calls `use_style` once, makes a page with `paper_figure` and draws with ordinary matplotlib axes. Nothing
depends on pyplot or on the user's settings, so the same input gives the same bytes.
"""

import gc
import io
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.transforms import Bbox

from resdm.io import atomic, write_text
from resdm_suite.profiles import Config
from resdm_suite.reporting.provenance import write_sidecar

WIDTH = 7.2
"""Width of a full-page figure, in inches (183 mm)."""

T1_MAP, PET_MAP, ERROR_MAP, ATTENTION_MAP = "gray", "inferno", "RdBu_r", "viridis"
"""Colour maps. All but `ERROR_MAP` are monotonic in lightness; that one diverges from white at zero."""

TRACER_TITLES = {"amyloid": "Aβ-PET", "tau": "tau-PET"}

COLOURS = {
    "ResDM": "#D55E00", "DDPM": "#0072B2", "ResViT": "#CC79A7", "TransUNet": "#56B4E9", "SC-GAN": "#009E73",
    "Pix2Pix": "#E69F00", "regression": "#117733", "linear": "#332288", "linear_path": "#88CCEE",
    "demographics": "#8E86C4", "template": "#999999", "ceiling": "#B8860B", "real": "#000000", "mri": "#8C564B",
    "age_sex": "#00A3A3",
}  # fmt: skip
"""Colour of each method and of each other source of a status, the same in all figures."""
_SPARE_COLOURS = (
    "#882255", "#44AA99", "#6A3D9A", "#B15928", "#999933", "#CC6677", "#DDCC77", "#661100",
    "#AA4499", "#556B2F",
)  # fmt: skip
_MARKERS = "osD^vP*X<>hp"
_METHOD_LABELS = {
    "+L_high": r"+$L_\mathrm{high}$", "as_published": "as published", "per_tracer": "one per tracer",
    "linear_path": "linear path",
}  # fmt: skip

INK, GREY, WARNING = "#222222", "#777777", "#B00020"

RC_PARAMS = {
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
    "pdf.fonttype": 42,  # TrueType: text stays text
    "svg.fonttype": "path",
    "svg.hashsalt": "resdm",
}
_DPI = {".svg": 150, ".pdf": 300, ".png": 200}  # of pictures inside SVG and PDF, of the whole PNG
_UNDATED = {
    ".svg": {"Date": None, "Creator": None}, ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}  # fmt: skip

REDRAWN_AS, *_BARE = os.environ.get("RESDM_FIGURE_FORMAT", "").split() or [""]
"""Format of a figure that `resdm figures` draws; empty otherwise. A second word, ``bare``, leaves headings out."""


def use_style() -> None:
    """Set matplotlib's defaults and this style for the rest of a notebook."""
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(RC_PARAMS)


@contextmanager
def style() -> Iterator[None]:
    """`use_style` for a ``with`` block, or for a function as its decorator ``@style()``."""
    with matplotlib.rc_context():
        use_style()
        yield


class PaperFigure(Figure):
    """A figure that notebooks show without pyplot; its ``caption`` is the heading as text."""

    caption = ""

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        buffer = io.BytesIO()
        with style():
            self.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
        return buffer.getvalue(), {"alt": self.caption}


class _Markdown(str):
    """Text that notebooks show as Markdown."""

    def _repr_markdown_(self) -> str:
        return self


def heading(config: Config) -> _Markdown:
    """The line below a notebook's title: notice, profile, seed, digest of the settings; and a kernel from elsewhere."""
    gc.freeze()  # nilearn collects garbage at each image: half a second with all the libraries that are loaded
    text = (
        f"**{config.notice or 'ADNI'}** · profile `{config.profile}`, seed {config.seed}, settings `{config.digest()}`"
    )
    environment = config.root / ".venv"
    if environment.is_dir() and environment.resolve() != Path(sys.prefix).resolve():
        text += f" · **kernel of `{sys.prefix}`, not of `{environment}`: start JupyterLab as described in the README**"
    return _Markdown(text)


def paper_figure(height: float, title: str, notice: str = "", detail: str = "", width: float = WIDTH) -> PaperFigure:
    """An empty figure with a heading. Axes made in it are laid out below the heading (constrained layout).

    Parameters
    ----------
    height, width : float
        Inches; the heading is part of the height.
    title, notice, detail : str
        Title, a notice to the right of it (`Config.notice`), and an explanation below.
    """
    figure = PaperFigure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.caption = " ".join(f"{part.rstrip('.')}." for part in (title, notice, detail) if part)
    lines = textwrap.wrap(detail, int(width / 0.049))  # inches per letter of this size
    head = 0.30 + 0.12 * len(lines)
    if _BARE:
        figure.set_figheight(height - head)
        head = 0.0
    else:
        _heading(figure, title, notice, lines)
    figure.get_layout_engine().set(rect=(0.005, 0, 0.985, 1 - head / height), w_pad=0.04, h_pad=0.04)
    return figure


def _heading(figure: Figure, title: str, notice: str, lines: Sequence[str]) -> None:
    width, height = figure.get_size_inches()
    left, top = 0.08 / width, 1 - 0.08 / height
    figure.text(left, top, title, fontsize=9, fontweight="bold", color=INK, va="top")
    if notice:
        figure.text(
            1 - left, top - 0.01 / height, notice, fontsize=7, color=WARNING, ha="right", va="top", style="italic"
        )
    figure.text(left, 1 - 0.26 / height, "\n".join(lines), fontsize=6.5, color=GREY, va="top", linespacing=1.15)


def save_figure(figure: Figure, stem: str | Path, provenance: Mapping[str, Any]) -> list[Path]:
    """Write ``<stem>.svg``, ``<stem>.png`` (200 dpi) and the ``<stem>.json`` sidecar, each atomically.

    No date and a fixed salt: a figure drawn twice from one input has the same bytes. For `resdm figures`, in its format
    alone, with the caption as ``<stem>.txt``.

    Parameters
    ----------
    figure : Figure
    stem : path
        ``Config.figures / "figure2"``.
    provenance : mapping
        See `resdm_suite.reporting.provenance.provenance`.
    """
    stem, suffixes = Path(stem), (f".{REDRAWN_AS}",) if REDRAWN_AS else (".svg", ".png")
    paths = [stem.with_name(stem.name + suffix) for suffix in suffixes]
    with style():
        matplotlib.rcParams["svg.fonttype"] = "none" if REDRAWN_AS else "path"
        _freeze_layout(figure)
        for path in paths:
            with atomic(path) as temporary:
                figure.savefig(temporary, format=path.suffix[1:], metadata=_UNDATED[path.suffix], dpi=_DPI[path.suffix])
    if REDRAWN_AS:
        paths.append(write_text(stem.with_name(f"{stem.name}.txt"), figure.caption))
    return [*paths, write_sidecar(stem, provenance)]


def _freeze_layout(figure: Figure) -> None:
    """Fix a constrained layout. Its solver varies in the last bits, so positions are rounded for equal bytes."""
    if figure.get_layout_engine() is None:
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for part in figure.findobj(SubFigure):
        part._redo_transform_rel_fig(bbox=Bbox.from_bounds(*np.round(part.bbox_relative.bounds, 6)))
    for axes in figure.axes:
        axes.set_position(np.round(axes.get_position(original=True).bounds, 6))
    for part in (figure, *figure.findobj(SubFigure)):
        if part._suptitle is not None:
            part._suptitle.set_position(np.round(part._suptitle.get_position(), 6))


def colour_bar(
    axes: Sequence[Axes], norm: Normalize, cmap: str, label: str, extend: str = "neither", location: str = "right",
    pad: float = 0.01,
) -> Colorbar:  # fmt: skip
    """A colour bar beside axes; ``extend`` marks ends at which colours saturate, ``pad`` is a share of the axes."""
    layout = {"fraction": 0.03, "aspect": 25, "pad": pad, "location": location}
    bar = axes[0].figure.colorbar(ScalarMappable(norm, cmap), ax=list(axes), extend=extend, **layout)
    bar.ax.locator_params(nbins=4)
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(labelsize=6, width=0.4, length=2, pad=1.5)
    bar.formatter.set_useOffset(False)
    bar.set_label(label, fontsize=6.5, labelpad=2)
    return bar


def round_up(values: Sequence[float], step: float) -> float:
    """The largest value, rounded up to a step."""
    return float(max(step, np.ceil(max(values) / step - 1e-9) * step))


def method_label(method: str) -> str:
    """A method's name as figures print it."""
    return _METHOD_LABELS.get(method, method)


def method_styles(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every method, the same in all figures for the known ones."""
    spare = iter(_SPARE_COLOURS * (len(methods) // len(_SPARE_COLOURS) + 1))
    return {m: (COLOURS.get(m) or next(spare), _MARKERS[i % len(_MARKERS)]) for i, m in enumerate(methods)}


def region_rows(axes: Axes, regions: Sequence[str], *, names: bool, rim: float = 0.0) -> np.ndarray:
    """Prepare axes for one banded row per region, first at the top, with zero marked. Returns the rows' heights."""
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
