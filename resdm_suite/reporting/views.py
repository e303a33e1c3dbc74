"""Linked orthogonal views of one synthesis: T1, both PETs, and what the prompt changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from resdm.settings import TRACERS
from resdm_suite.anatomy import Grid
from resdm_suite.reporting.slices import (
    FIELD_MM,
    SHOWN_AXES,
    SIDE_MARKS,
    hide_axes,
    plane,
    slice_aspect,
    slice_extent,
    slice_name,
)
from resdm_suite.reporting.style import ERROR_MAP, GREY, PET_MAP, T1_MAP, TRACER_TITLES, Page, round_up, styled

_COLUMN, _GAP, _LEFT, _HEAD = 1.42, 0.05, 0.16, 0.86


@dataclass(frozen=True)
class Scene:
    """What the views show, on one grid; PETs in SUVR.

    Parameters
    ----------
    grid : Grid
    mri : ndarray (X, Y, Z)
        Intensities in [0, 1].
    pet, change : mapping of tracer to ndarray (X, Y, Z)
        Mean over samples; that minus the mean under the factual prompt. The spread over samples is not shown: it is no
        error (notebook 14).
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


@styled
def orthogonal_views(
    scene: Scene, point: tuple[float, float, float], *, title: str = "", detail: str = "", notice: str = ""
) -> Figure:
    """Every volume of a scene cut through one point: a row a plane, a column a volume, cross hairs in all.

    Parameters
    ----------
    scene : Scene
    point : (x, y, z)
        MNI mm.
    title, detail, notice : str
        See `resdm_suite.reporting.style.Page.title`.

    Notes
    -----
    Scales are of the whole volumes, not of the slices, so a colour means the same wherever one looks. The scale of the
    change is symmetric and at least 0.05 SUVR wide, so that noise does not fill it.
    """
    cuts = tuple(zip("xyz", point, strict=True))
    heights = [_COLUMN * slice_aspect(cut) * _width(cut) for cut in cuts]
    columns = 1 + 2 * len(scene.pet)
    width = _LEFT + columns * (_COLUMN + _GAP) + 0.10 * len(scene.pet) + 0.12
    page = Page.of(width, _HEAD + sum(heights) + 2 * _GAP + 0.62)
    page.title(title, notice, detail)
    scales = _scales(scene)
    _column(page, _LEFT, scene.mri, scene, cuts, heights, (Normalize(0, 1), T1_MAP, "T1", "intensity"), names=True)
    left = _LEFT + _COLUMN + _GAP
    for tracer in (t for t in TRACERS if t in scene.pet):
        left += 0.10
        page.text(left, _HEAD - 0.38, TRACER_TITLES[tracer], fontsize=8, fontweight="bold")
        for kind, volumes in (("pet", scene.pet), ("change", scene.change)):
            _column(page, left, volumes[tracer], scene, cuts, heights, scales[kind])
            left += _COLUMN + _GAP
    return page.figure


def _scales(scene: Scene) -> dict[str, tuple[Normalize, str, str, str]]:
    """Norm, colour map, heading and unit of each kind of column, the same for both tracers."""
    bright = [np.quantile(volume, 0.999) for volume in scene.pet.values()]
    moved = round_up([*(np.quantile(np.abs(volume), 0.999) for volume in scene.change.values()), 0.05], 0.05)
    return {
        "pet": (Normalize(0, round_up(bright, 0.5)), PET_MAP, "synthetic", "SUVR"),
        "change": (Normalize(-moved, moved), ERROR_MAP, "change by the prompt", "SUVR − factual"),
    }


def _column(
    page: Page,
    left: float,
    volume: np.ndarray,
    scene: Scene,
    cuts: tuple[tuple[str, float], ...],
    heights: list[float],
    look: tuple[Normalize, str, str, str],
    names: bool = False,
) -> None:
    norm, cmap, heading, unit = look
    page.text(left, _HEAD - 0.19, heading, fontsize=7, color=GREY)
    top = _HEAD
    for cut, height in zip(cuts, heights, strict=True):
        width = _COLUMN * _width(cut)
        axes = page.axes(left + (_COLUMN - width) / 2, top, width, height)
        _slice(axes, volume, scene.grid, cut, dict(cuts), norm, cmap)
        if names:
            page.text(left - 0.05, top + height / 2, slice_name(cut), fontsize=6.5, color=GREY, rotation=90,
                      ha="right", va="center")  # fmt: skip
        top += height + _GAP
    bar = page.axes(left + 0.12, top + 0.07, _COLUMN - 0.24, 0.07)
    drawn = page.figure.colorbar(ScalarMappable(norm, cmap), cax=bar, orientation="horizontal")
    drawn.outline.set_linewidth(0.4)
    drawn.ax.tick_params(labelsize=6, width=0.4, length=2, pad=1.5)
    middle = (norm.vmin + norm.vmax) / 2
    drawn.set_ticks([norm.vmin, middle, norm.vmax], labels=[_tick(v) for v in (norm.vmin, middle, norm.vmax)])
    drawn.set_label(unit, fontsize=6.5, labelpad=1)


def _tick(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".").replace("-", "−") if abs(value) > 1e-9 else "0"


def _width(cut: tuple[str, float]) -> float:
    """Width of a slice over that of the widest, so that a millimetre is as long in every plane."""
    longest = max(high - low for low, high in FIELD_MM.values())
    low, high = FIELD_MM[SHOWN_AXES[cut[0]][0]]
    return (high - low) / longest


def _slice(
    axes: Axes,
    volume: np.ndarray,
    grid: Grid,
    cut: tuple[str, float],
    point: Mapping[str, float],
    norm: Normalize,
    cmap: str,
) -> None:
    order = 3 if grid.voxel_mm > 3 else 1  # a cubic spline of a fine grid takes longer than a slider's patience
    image = plane(volume, grid, cut, order)
    axes.imshow(image, cmap=cmap, norm=norm, origin="lower", extent=slice_extent(cut), interpolation="nearest")
    hide_axes(axes)
    ink = "#333333" if cmap == ERROR_MAP else "white"
    right, up = SHOWN_AXES[cut[0]]
    axes.axvline(point[right], color=ink, linewidth=0.5, alpha=0.55)
    axes.axhline(point[up], color=ink, linewidth=0.5, alpha=0.55)
    for x, mark in zip((0.03, 0.97), SIDE_MARKS[cut[0]], strict=True):
        axes.text(x, 0.03, mark, transform=axes.transAxes, color=ink, fontsize=6, va="bottom",
                  ha="left" if x < 0.5 else "right")  # fmt: skip
