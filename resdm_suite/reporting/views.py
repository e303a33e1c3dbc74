"""Linked orthogonal views of one synthesis: T1, both PETs, and what the prompt changed."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from resdm.settings import TRACERS
from resdm_suite.anatomy import Grid
from resdm_suite.reporting import style
from resdm_suite.reporting.slices import FIELD_MM, SHOWN_AXES, show_slice, slice_name


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
    unit : str
        Of the PETs, see `resdm_suite.profiles.PreprocessConfig.pet_unit`.
    """

    grid: Grid
    mri: np.ndarray
    pet: Mapping[str, np.ndarray]
    change: Mapping[str, np.ndarray]
    unit: str = "SUVR"

    def at(self, point: tuple[float, float, float]) -> dict[str, dict[str, float]]:
        """Values of the voxel that holds a point (MNI mm): tracer → ``pet`` and ``change``."""
        index = np.rint((np.array(point) - self.grid.affine[:3, 3]) / self.grid.voxel_mm).astype(int)
        voxel = tuple(np.clip(index, 0, np.array(self.grid.shape) - 1))
        kinds = {"pet": self.pet, "change": self.change}
        return {tracer: {kind: float(volumes[tracer][voxel]) for kind, volumes in kinds.items()} for tracer in self.pet}


@style.style()
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
    symmetric and reaches at least 0.05, so that noise does not fill it.
    """
    highest = style.round_up([np.quantile(volume, 0.999) for volume in scene.pet.values()], 0.5)
    change = style.round_up([*(np.quantile(np.abs(volume), 0.999) for volume in scene.change.values()), 0.05], 0.05)
    columns = [("T1", scene.mri, Normalize(0, 1), style.T1_MAP, "intensity")]
    for tracer in (t for t in TRACERS if t in scene.pet):
        name = style.TRACER_TITLES[tracer]
        columns += [
            (f"{name}\nsynthetic", scene.pet[tracer], Normalize(0, highest), style.PET_MAP, scene.unit),
            (f"{name}\nchange by the prompt", scene.change[tracer], Normalize(-change, change), style.ERROR_MAP,
             f"{scene.unit} − factual"),
        ]  # fmt: skip
    sizes = {axis: high - low for axis, (low, high) in FIELD_MM.items()}
    heights = [sizes[SHOWN_AXES[axis][1]] for axis in "xyz"]  # equal mm in every plane
    inches = 1.42 / max(sizes.values())  # per mm
    width = 0.3 + len(columns) * 1.5
    figure = style.paper_figure(1.5 + inches * sum(heights), title, notice, detail, width)
    panels = figure.subplots(3, len(columns), height_ratios=heights)
    place, order = dict(zip("xyz", point, strict=True)), 3 if scene.grid.voxel_mm > 3 else 1  # cubic is slow when fine
    for line, (heading, volume, norm, cmap, unit) in zip(panels.T, columns, strict=True):
        ink = "#333333" if cmap == style.ERROR_MAP else "white"
        for axes, cut in zip(line, place.items(), strict=True):
            show_slice(axes, volume, scene.grid, cut, norm, cmap, marks=True, order=order, ink=ink)
            right, up = SHOWN_AXES[cut[0]]
            axes.axvline(place[right], color=ink, linewidth=0.5, alpha=0.55)
            axes.axhline(place[up], color=ink, linewidth=0.5, alpha=0.55)
        line[0].set_title(heading)
        style.colour_bar(line, norm, cmap, unit, location="bottom")
    for axes, cut in zip(panels[:, 0], place.items(), strict=True):
        axes.set_ylabel(slice_name(cut), color=style.GREY)
    return figure
