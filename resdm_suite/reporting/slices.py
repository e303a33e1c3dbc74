"""Brain slices in MNI space and montages of them.

Slices are cut at MNI millimetres and shown in neurological convention: left is left (marked L and R; sagittal P and A).
They are sampled every millimetre by cubic interpolation, clipped to the range of the volume, for display only.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.ndimage import map_coordinates

from resdm_suite.anatomy import Grid, mni_map
from resdm_suite.evaluation.suvr import to_suvr
from resdm_suite.profiles import PreprocessConfig
from resdm_suite.reporting import style

Cut = tuple[str, float]
"""Axis and MNI mm of a slice."""

FIELD_MM = {"x": (-78.0, 78.0), "y": (-112.0, 78.0), "z": (-76.0, 88.0)}
"""What a slice shows, in MNI mm: the brain and a narrow rim."""

SLICES = {"amyloid": (("x", 7.0), ("z", 24.0)), "tau": (("y", -20.0), ("z", -16.0))}
"""Slices of Figure 2: through precuneus, cingulate and striatum for amyloid, through the temporal lobes for tau."""

GROUP_SLICES = {tracer: cuts[:1] for tracer, cuts in SLICES.items()}
"""Of Figure 2 where it shows the means of groups: there are twice as many rows."""

SHOWN_AXES = {"x": ("y", "z"), "y": ("x", "z"), "z": ("x", "y")}  # axis cut: axes shown (right, up)
SIDE_MARKS = {"x": ("P", "A"), "y": ("L", "R"), "z": ("L", "R")}


def slice_name(cut: Cut) -> str:
    """``("z", -16)`` → ``z = −16 mm``."""
    return f"{cut[0]} = {cut[1]:+.0f} mm".replace("-", "−")


def plane(volume: np.ndarray, grid: Grid, cut: Cut, order: int = 3) -> np.ndarray:
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
    right, up = SHOWN_AXES[axis]
    world = {axis: np.array([mm])} | {side: np.arange(FIELD_MM[side][0], FIELD_MM[side][1] + 1) for side in (right, up)}
    indices = []
    for i, name in enumerate("xyz"):
        edge = grid.affine[i, 3] - grid.voxel_mm / 2  # of the box
        size = grid.voxel_mm * grid.shape[i] / volume.shape[i]
        indices.append((world[name] - edge) / size - 0.5)
    points = np.stack(np.meshgrid(*indices, indexing="ij"))
    values = map_coordinates(np.asarray(volume, dtype=np.float64), points, order=order, mode="nearest")
    values = np.clip(values.squeeze("xyz".index(axis)), volume.min(), volume.max())
    return values.T  # both orders of SHOWN_AXES are increasing in x, y, z


def show_slice(
    axes: Axes, volume: np.ndarray, grid: Grid, cut: Cut, norm: Normalize, cmap: str, marks: bool = False,
    order: int = 3, ink: str = "white",
) -> None:  # fmt: skip
    """Draw a slice (see `plane`) in MNI mm; ``marks`` adds the letters of the sides in the colour ``ink``."""
    image, extent = plane(volume, grid, cut, order), slice_extent(cut)
    axes.imshow(image, cmap=cmap, norm=norm, origin="lower", extent=extent, interpolation="nearest")
    axes.set_facecolor("black")
    hide_axes(axes)
    for x, side, mark in zip((0.03, 0.97), ("left", "right"), SIDE_MARKS[cut[0]] if marks else (), strict=False):
        axes.text(x, 0.03, mark, transform=axes.transAxes, color=ink, fontsize=5.5, va="bottom", ha=side)


def draw_outline(axes: Axes, mask: np.ndarray, grid: Grid, cut: Cut, colour: str, width: float = 0.6) -> None:
    """Draw the edge of a mask on a slice and keep the slice's limits."""
    section = plane(mask.astype(np.float32), grid, cut, order=1)
    if section.max() > 0.5:
        left, right, bottom, top = slice_extent(cut)
        x = np.linspace(left + 0.5, right - 0.5, section.shape[1])
        y = np.linspace(bottom + 0.5, top - 0.5, section.shape[0])
        axes.contour(x, y, section, levels=[0.5], colors=[colour], linewidths=width)
    axes.set_xlim(slice_extent(cut)[:2])
    axes.set_ylim(slice_extent(cut)[2:])


def slice_extent(cut: Cut) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a slice in MNI mm."""
    right, up = SHOWN_AXES[cut[0]]
    return (FIELD_MM[right][0] - 0.5, FIELD_MM[right][1] + 0.5, FIELD_MM[up][0] - 0.5, FIELD_MM[up][1] + 0.5)


def slice_aspect(cut: Cut) -> float:
    """Height of a slice over its width."""
    left, right, bottom, top = slice_extent(cut)
    return (top - bottom) / (right - left)


def hide_axes(axes: Axes) -> None:
    """Remove ticks and spines."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def suvr_window(volumes: Iterable[np.ndarray], mask: np.ndarray) -> Normalize:
    """Colour scale of SUVR: 0 to the largest 99.9th percentile inside a mask; brighter voxels saturate."""
    return Normalize(0, style.round_up([np.quantile(volume[mask], 0.999) for volume in volumes] or [1.0], 0.25))


def error_window(errors: Iterable[np.ndarray], mask: np.ndarray) -> Normalize:
    """Symmetrical colour scale of errors: the median over methods of their 99.5th percentile of ``|error|`` in a mask.

    Larger errors saturate. The median keeps one poor method from fading all others.
    """
    limits = [np.quantile(np.abs(error[mask]), 0.995) for error in errors] or [0.1]
    limit = style.round_up([float(np.median(limits))], 0.1)
    return Normalize(-limit, limit)


# ── one scan ─────────────────────────────────────────────────────────────────────────────────────


SCAN_CUTS = (("x", 7.0), ("y", -58.0), ("y", -20.0), ("z", -18.0), ("z", 24.0))
"""Slices of the picture of one scan."""


@style.style()
def scan_montage(
    mri: np.ndarray,
    volumes: Mapping[str, np.ndarray],
    grid: Grid,
    preprocess: PreprocessConfig,
    *,
    notice: str = "",
    title: str = "Synthetic PET",
    detail: str = "",
) -> Figure:
    """One person's T1 and synthetic PETs, in MNI space.

    Parameters
    ----------
    mri : ndarray (X, Y, Z)
        In [0, 1].
    volumes : mapping of str to ndarray (X, Y, Z)
        Of ``amyloid`` and ``tau``, in [0, 1].
    grid : Grid
    preprocess : PreprocessConfig
        What intensities 0 and 1 stand for.
    notice, title, detail : str
    """
    brain = mni_map("brain", grid)
    pets = {tracer: to_suvr(volumes[tracer], preprocess.pet_range[tracer]) for tracer in volumes}
    norm = suvr_window(pets.values(), brain)
    rows: list[tuple[str, np.ndarray, Normalize, str, str]] = [("T1", mri, Normalize(0, 1), style.T1_MAP, "intensity")]
    names, unit = style.TRACER_TITLES, preprocess.pet_unit
    rows += [(f"{names[tracer]}, mean", pets[tracer], norm, style.PET_MAP, unit) for tracer in pets]
    widths = [1 / slice_aspect(cut) for cut in SCAN_CUTS]  # at height 1
    detail = f"{detail} Outline: MNI152 brain; left is left.".strip()
    figure = style.paper_figure(0.8 + len(rows) * (style.WIDTH - 0.8) / sum(widths), title, notice, detail)
    panels = figure.subplots(len(rows), len(SCAN_CUTS), width_ratios=widths)
    for line, (label, volume, limits, cmap, unit) in zip(panels, rows, strict=True):
        for axes, cut in zip(line, SCAN_CUTS, strict=True):
            show_slice(axes, volume, grid, cut, limits, cmap, marks=label == "T1")
            draw_outline(axes, brain, grid, cut, "#35C9E8", 0.5)
        line[0].set_ylabel(label, fontweight="bold")
        style.colour_bar(line, limits, cmap, unit)
    for axes, cut in zip(panels[0], SCAN_CUTS, strict=True):
        axes.set_title(slice_name(cut), fontsize=5.5, color=style.GREY)
    return figure
