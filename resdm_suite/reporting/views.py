"""Linked orthogonal views of one synthesis: T1, both PETs, and what the prompt changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from resdm.settings import TRACERS
from resdm_suite.anatomy import Grid
from resdm_suite.reporting.slices import FIELD_MM, SHOWN_AXES, SIDE_MARKS, hide_axes, plane, slice_extent, slice_name
from resdm_suite.reporting.style import (
    ERROR_MAP,
    GREY,
    PET_MAP,
    T1_MAP,
    TRACER_TITLES,
    colour_bar,
    paper_figure,
    round_up,
    style,
)


@dataclass(frozen=True)
class Scene:
    """What the views show, on one grid; PETs in SUVR.

    Parameters
    ----------
    grid : Grid
    mri : ndarray (X, Y, Z)
        Intensities in [0, 1].
    pet, change : mapping of tracer to ndarray (X, Y, Z)
        Mean over samples, and its difference to the mean under the factual prompt. The spread over samples is not
        shown, because it is not the error (notebook 14).
    """

    grid: Grid
    mri: np.ndarray
    pet: Mapping[str, np.ndarray]
    change: Mapping[str, np.ndarray]

    def at(self, point: tuple[float, float, float]) -> dict[str, dict[str, float]]:
        """Values of the voxel that holds a point (MNI mm): tracer → ``pet`` and ``change``."""
        index = np.rint((np.array(point) - self.grid.affine[:3, 3]) / self.grid.voxel_mm).astype(int)
        voxel = tuple(np.clip(index, 0, np.array(self.grid.shape) - 1))
        kinds = {"pet": self.pet, "change": self.change}
        return {tracer: {kind: float(volumes[tracer][voxel]) for kind, volumes in kinds.items()} for tracer in self.pet}


@style()
def orthogonal_views(
    scene: Scene, point: tuple[float, float, float], *, title: str = "", detail: str = "", notice: str = ""
) -> Figure:
    """Slices of every volume through one point: one row per plane, one column per volume, with cross hairs.

    Parameters
    ----------
    scene : Scene
    point : (x, y, z)
        MNI mm.
    title, detail, notice : str
        See `resdm_suite.reporting.style.paper_figure`.

    Notes
    -----
    Colour scales belong to the whole volumes, so they do not change with the point. The scale of the change is
    symmetric and reaches at least 0.05 SUVR, so that noise does not fill it.
    """
    highest = round_up([np.quantile(volume, 0.999) for volume in scene.pet.values()], 0.5)
    change = round_up([*(np.quantile(np.abs(volume), 0.999) for volume in scene.change.values()), 0.05], 0.05)
    columns = [("T1", scene.mri, Normalize(0, 1), T1_MAP, "intensity")]
    for tracer in (t for t in TRACERS if t in scene.pet):
        name = TRACER_TITLES[tracer]
        columns += [
            (f"{name}\nsynthetic", scene.pet[tracer], Normalize(0, highest), PET_MAP, "SUVR"),
            (f"{name}\nchange by the prompt", scene.change[tracer], Normalize(-change, change), ERROR_MAP,
             "SUVR − factual"),
        ]  # fmt: skip
    sizes = {axis: high - low for axis, (low, high) in FIELD_MM.items()}
    heights = [sizes[SHOWN_AXES[axis][1]] for axis in "xyz"]  # equal mm in every plane
    inches = 1.42 / max(sizes.values())  # per mm
    width = 0.3 + len(columns) * 1.5
    figure = paper_figure(1.5 + inches * sum(heights), title, notice, detail, width)
    panels = figure.subplots(3, len(columns), height_ratios=heights)
    for line, (heading, volume, norm, cmap, unit) in zip(panels.T, columns, strict=True):
        for axes, axis in zip(line, "xyz", strict=True):
            _draw_slice(axes, volume, scene.grid, axis, point, norm, cmap)
        line[0].set_title(heading)
        colour_bar(line, norm, cmap, unit, location="bottom")
    for axes, cut in zip(panels[:, 0], zip("xyz", point, strict=True), strict=True):
        axes.set_ylabel(slice_name(cut), color=GREY)
    return figure


def _draw_slice(
    axes: Axes,
    volume: np.ndarray,
    grid: Grid,
    axis: str,
    point: tuple[float, float, float],
    norm: Normalize,
    cmap: str,
) -> None:
    """Draw one slice with its side letters and a cross hair."""
    place = dict(zip("xyz", point, strict=True))
    cut, (right, up) = (axis, place[axis]), SHOWN_AXES[axis]
    order = 3 if grid.voxel_mm > 3 else 1  # cubic interpolation of a fine grid is too slow for a slider
    image = plane(volume, grid, cut, order)
    axes.imshow(image, cmap=cmap, norm=norm, origin="lower", extent=slice_extent(cut), interpolation="nearest")
    hide_axes(axes)
    ink = "#333333" if cmap == ERROR_MAP else "white"
    axes.axvline(place[right], color=ink, linewidth=0.5, alpha=0.55)
    axes.axhline(place[up], color=ink, linewidth=0.5, alpha=0.55)
    for x, mark in zip((0.03, 0.97), SIDE_MARKS[axis], strict=True):
        align = "left" if x < 0.5 else "right"
        axes.text(x, 0.03, mark, transform=axes.transAxes, color=ink, fontsize=6, va="bottom", ha=align)
