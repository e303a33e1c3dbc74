"""Linked orthogonal views of one synthesis: T1, real and synthetic PETs, the error, and what the prompt changed.

A `Scene` holds the volumes and `columns` their colours. `orthogonal_views` draws a figure, for a file; `slice_png`
makes one slice in milliseconds, for the explorer.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from PIL import Image

from resdm.settings import TRACERS
from resdm_suite.anatomy import Grid, regions
from resdm_suite.evaluation.suvr import regional_means
from resdm_suite.reporting import style
from resdm_suite.reporting.slices import FIELD_MM, SHOWN_AXES, SIDE_MARKS, Cut, plane, show_slice, slice_name

Point = tuple[float, float, float]
"""x, y and z in MNI mm."""


@dataclass(frozen=True)
class Scene:
    """What the views show, on one grid.

    Parameters
    ----------
    grid : Grid
    mri : ndarray (X, Y, Z)
        Intensities in [0, 1].
    pet, change : mapping of tracer to ndarray (X, Y, Z)
        Mean over samples, and its difference to the mean under the factual prompt. The spread over samples is not
        shown, because it is not the error (notebook 14).
    real : mapping of tracer to ndarray (X, Y, Z)
        The person's real PETs, where there are any.
    unit : str
        Of the PETs, see `resdm_suite.profiles.PreprocessConfig.pet_unit`.
    """

    grid: Grid
    mri: np.ndarray
    pet: Mapping[str, np.ndarray]
    change: Mapping[str, np.ndarray]
    real: Mapping[str, np.ndarray] = field(default_factory=dict)
    unit: str = "SUVR"

    def voxel(self, point: Point) -> tuple[int, ...]:
        """Index of the voxel that holds a point; of the nearest one for a point beyond the grid."""
        index = np.rint((np.array(point) - self.grid.affine[:3, 3]) / self.grid.voxel_mm).astype(int)
        return tuple(np.clip(index, 0, np.array(self.grid.shape) - 1).tolist())


@dataclass(frozen=True)
class Column:
    """A volume of the views and how it is coloured; ``tracer`` is None for the T1."""

    tracer: str | None
    title: str
    volume: np.ndarray
    norm: Normalize
    cmap: str
    unit: str

    @property
    def signed(self) -> bool:
        """Whether the volume is a difference, light at zero."""
        return self.cmap == style.ERROR_MAP

    def text(self, value: float) -> str:
        """A value of the volume, with its sign where it is a difference."""
        return f"{value:{'+.2f' if self.signed else '.2f'}}".replace("-", "−")


def columns(scene: Scene) -> list[Column]:
    """T1, then for each tracer real PET, synthetic PET, error (synthetic − real) and change by the prompt.

    Colour scales belong to the whole volumes, so they do not change with the point. All PETs share one scale. Those of
    differences are symmetric and reach at least 0.05, so that noise does not fill them. A change of 0 is left out.
    """
    pets, tracers = [*scene.pet.values(), *scene.real.values()], [t for t in TRACERS if t in scene.pet]
    brightest = Normalize(0, style.round_up([np.quantile(volume, 0.999) for volume in pets], 0.5))
    error = {tracer: scene.pet[tracer] - real for tracer, real in scene.real.items()}
    changed = {tracer: change for tracer, change in scene.change.items() if change.any()}
    shown = [Column(None, "T1", scene.mri, Normalize(0, 1), style.T1_MAP, "intensity")]
    for tracer in tracers:
        real = {"real": scene.real[tracer]} if tracer in error else {}
        for title, volume in (real | {"synthetic": scene.pet[tracer]}).items():
            shown.append(Column(tracer, title, volume, brightest, style.PET_MAP, scene.unit))
        for title, volumes, against in (("error", error, "real"), ("change by prompt", changed, "factual")):
            if tracer in volumes:
                highest = style.round_up([*(np.quantile(np.abs(v), 0.999) for v in volumes.values()), 0.05], 0.05)
                norm = Normalize(-highest, highest)
                shown.append(Column(tracer, title, volumes[tracer], norm, style.ERROR_MAP, f"{scene.unit} − {against}"))
    return shown


def page(columns: Sequence[Column], grid: Grid) -> dict[str, Any]:
    """What the front end of the explorer (``templates/explorer.js``) needs to arrange and label slices; JSON types.

    ``cortex`` is the mean over the tracer's cortical summary regions.
    """
    shown = [
        {
            "tracer": style.TRACER_TITLES.get(column.tracer, ""),
            "title": column.title,
            "unit": column.unit,
            "signed": column.signed,
            "cortex": column.tracer and column.text(regional_means(column.volume, grid, column.tracer)["summary"]),
            "ends": [f"{end:g}".replace("-", "−") for end in (column.norm.vmin, column.norm.vmax)],
            "colours": ", ".join(map(to_hex, matplotlib.colormaps[column.cmap](np.linspace(0, 1, 17)))),
        }
        for column in columns
    ]
    return {"columns": shown, "field": FIELD_MM, "axes": SHOWN_AXES, "marks": SIDE_MARKS}


def readout(scene: Scene, columns: Sequence[Column], point: Point) -> dict[str, Any]:
    """Texts at a point: ``here``, the value of each column, and ``place``, its MNI mm and built-in regions."""
    voxel = scene.voxel(point)
    inside = [name.replace("_", " ") for name, mask in regions(scene.grid).items() if mask[voxel]]
    mm = ", ".join(f"{axis} {value:+.0f}" for axis, value in zip("xyz", point, strict=True)).replace("-", "−")
    here = [column.text(column.volume[voxel]) for column in columns]
    return {"here": here, "place": " · ".join([f"{mm} mm", *inside])}


def slice_png(column: Column, grid: Grid, cut: Cut) -> bytes:
    """A slice as PNG, one pixel per millimetre over `FIELD_MM`, without axes."""
    levels = np.clip(column.norm(plane(column.volume, grid, cut, _order(grid))), 0, 1)
    picture = Image.fromarray(np.ascontiguousarray(np.rint(255 * levels)[::-1].astype(np.uint8)))
    picture.putpalette(matplotlib.colormaps[column.cmap](np.arange(256), bytes=True)[:, :3].tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _order(grid: Grid) -> int:
    return 3 if grid.voxel_mm > 3 else 1  # cubic is slow when fine


@style.style()
def orthogonal_views(scene: Scene, point: Point, *, title: str = "", detail: str = "", notice: str = "") -> Figure:
    """Slices of every volume through one point: one row per plane, one column per volume, with cross hairs.

    Parameters
    ----------
    scene : Scene
    point : (x, y, z)
        MNI mm.
    title, detail, notice : str
        See `resdm_suite.reporting.style.paper_figure`.
    """
    shown = columns(scene)
    sizes = {axis: high - low for axis, (low, high) in FIELD_MM.items()}
    heights = [sizes[SHOWN_AXES[axis][1]] for axis in "xyz"]  # equal mm in every plane
    inches = 1.42 / max(sizes.values())  # per mm
    figure = style.paper_figure(1.5 + inches * sum(heights), title, notice, detail, 0.3 + len(shown) * 1.5)
    panels = figure.subplots(3, len(shown), height_ratios=heights)
    place, order = dict(zip("xyz", point, strict=True)), _order(scene.grid)
    for line, column in zip(panels.T, shown, strict=True):
        ink = "#333333" if column.signed else "white"
        for axes, cut in zip(line, place.items(), strict=True):
            show_slice(axes, column.volume, scene.grid, cut, column.norm, column.cmap, marks=True, order=order, ink=ink)
            right, up = SHOWN_AXES[cut[0]]
            axes.axvline(place[right], color=ink, linewidth=0.5, alpha=0.55)
            axes.axhline(place[up], color=ink, linewidth=0.5, alpha=0.55)
        line[0].set_title(f"{style.TRACER_TITLES[column.tracer]}\n{column.title}" if column.tracer else column.title)
        style.colour_bar(line, column.norm, column.cmap, column.unit, location="bottom")
    for axes, cut in zip(panels[:, 0], place.items(), strict=True):
        axes.set_ylabel(slice_name(cut), color=style.GREY)
    return figure
