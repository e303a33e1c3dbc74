"""A phantom's anatomy: tissue maps that thin with age and disease, and a smooth deformation of the template."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import ndimage

from resdm_suite.anatomy import Grid, brain_points, mni_map, regions
from resdm_suite.cohorts.phantom.people import DEFORMATION, random_stream

CORTEX = dict.fromkeys(
    ("precuneus", "posterior_cingulate", "anterior_cingulate", "frontal", "lateral_temporal", "inferior_temporal",
     "medial_temporal", "parietal", "sensorimotor", "occipital"), 1.0,
)  # fmt: skip
"""Cortical regions, each with the value 1."""

# Fraction of grey matter lost per decade of age, and by a neurodegeneration of 1.
_THINNING = {
    "age": dict.fromkeys(CORTEX, 0.05) | {"medial_temporal": 0.07, "frontal": 0.08, "sensorimotor": 0.06},
    "disease": dict.fromkeys(CORTEX, 0.12)
    | {"medial_temporal": 0.44, "inferior_temporal": 0.28, "lateral_temporal": 0.26, "precuneus": 0.20,
       "posterior_cingulate": 0.20, "parietal": 0.22, "sensorimotor": 0.05, "occipital": 0.07},
}  # fmt: skip
_BUMPS = 48  # Gaussians of the random deformation
_RMS_MM = 3.2  # root mean square length of the random deformation in the brain
_VENTRICLES = (  # right side: centre, SD, weight of the stretch along x, y, z
    ((11.0, 18.0, 10.0), (8.0, 13.0, 10.0), (1.0, 0.5, 0.8)),
    ((14.0, -10.0, 21.0), (8.0, 15.0, 9.0), (1.0, 0.4, 0.8)),
    ((24.0, -42.0, 10.0), (9.0, 12.0, 11.0), (1.0, 0.6, 1.0)),
)
TORQUE = (
    ((28.0, 56.0, 0.0), 20.0, -3.5), ((-28.0, 56.0, 0.0), 20.0, 1.5),
    ((-24.0, -92.0, 4.0), 20.0, 4.0), ((24.0, -92.0, 4.0), 20.0, -1.5),
)  # fmt: skip
"""Yakovlevian torque of everyone (centre, SD, shift along y): right frontal and left occipital poles protrude."""


@dataclass(frozen=True)
class Template:
    """The anatomy that all people share, on the anatomy grid in MNI space; arrays are (X, Y, Z)."""

    grid: Grid
    gm: np.ndarray
    wm: np.ndarray
    csf: np.ndarray
    brain: np.ndarray
    edge: np.ndarray  # 0 deep in the cortical ribbon … 1 beside fluid
    labels: np.ndarray  # 0: none; position in `names` + 1
    names: tuple[str, ...]
    thinning: dict[str, np.ndarray]  # `_THINNING` as maps
    air_mm: np.ndarray  # distance outside the brain


@cache
def make_template(voxel_mm: float) -> Template:
    """The template on a grid of isotropic voxels."""
    grid = _head_grid(voxel_mm)
    gm, wm, brain = (mni_map(name, grid).astype(np.float32) for name in ("gm", "wm", "brain"))
    total = np.maximum(gm + wm, 1)
    gm, wm = gm / total * brain, wm / total * brain
    csf = brain - gm - wm
    edge = ndimage.gaussian_filter(csf + 1 - brain, 2.5 / voxel_mm)
    masks = regions(grid)
    labels = np.zeros(grid.shape, np.uint8)
    for number, mask in enumerate(masks.values(), 1):  # the inferior cerebellum follows the cerebellum that holds it
        labels[mask] = number
    return Template(
        grid=grid, gm=gm, wm=wm, csf=csf, brain=brain, edge=np.clip(1.6 * edge, 0, 1), labels=labels,
        names=tuple(masks), thinning=blend_regions(grid, _THINNING),
        air_mm=ndimage.distance_transform_edt(brain < 0.5, voxel_mm).astype(np.float32),
    )  # fmt: skip


def _head_grid(voxel_mm: float) -> Grid:
    """A grid that holds the MNI head with some air around."""
    return Grid(tuple(int(np.ceil(mm / voxel_mm)) for mm in (200, 232, 208)), voxel_mm)


def blend_regions(grid: Grid, tables: dict[str, dict[str, float]]) -> dict[str, np.ndarray]:
    """Smooth maps that take each table's values in the regions and blend between them."""
    coarse = _head_grid(4.0)
    masks = {name: mask for name, mask in regions(coarse).items() if name != "inferior_cerebellum"}
    soft = {name: ndimage.gaussian_filter(mask.astype(np.float32), 9 / 4) + 1e-9 for name, mask in masks.items()}
    total = sum(soft.values())
    to_coarse = np.linalg.inv(coarse.affine) @ grid.affine
    place = {"matrix": to_coarse[:3, :3], "offset": to_coarse[:3, 3], "output_shape": grid.shape}
    maps = {}
    for key, values in tables.items():
        blended = sum(soft[name] * np.float32(value) for name, value in values.items()) / total
        maps[key] = ndimage.affine_transform(blended, **place, order=1, mode="nearest")
    return maps


def thin_cortex(
    template: Template, decades: float, severity: float, ribbon: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey matter, white matter, fluid: the cortex thins from outside, and fluid takes its place.

    ``decades`` count from `AGE_CENTRE`; ``ribbon`` is a person's variation of thickness.
    """
    loss = template.thinning["age"] * (1 + decades) + template.thinning["disease"] * severity + ribbon
    gm = template.gm * np.clip(1 - loss * (0.5 + 1.1 * template.edge), 0.15, 1.0)
    return gm, template.wm, template.csf + template.gm - gm


def random_field(rng: np.random.Generator, template: Template, count: int, sd: tuple[float, float]) -> np.ndarray:
    """A random field on the anatomy grid, of about unit variance in the brain: ``count`` Gaussians of ``sd`` mm."""
    points = brain_points(_head_grid(10.0))
    centre = points[rng.integers(len(points), size=count)]
    width, weight = rng.uniform(*sd, count), rng.normal(0, 1, count)
    gauss = [
        np.exp(-0.5 * ((axis - centre[:, i, None]) / width[:, None]) ** 2).astype(np.float32)
        for i, axis in enumerate(template.grid.axes)
    ]
    volume = len(points) * 10.0**3
    norm = np.sqrt((weight**2 * width**3 * np.pi**1.5).sum() / volume)
    plane = gauss[0][:, :, None] * gauss[1][:, None, :] * (weight / norm)[:, None, None].astype(np.float32)
    return (plane.reshape(count, -1).T @ gauss[2]).reshape(template.grid.shape)


# ── deformation ───────────────────────────────────────────────────────────────────────────────────

_KEYS = ("centre", "sd", "shift", "stretch", "affine")


def displacement(deformation: dict[str, Any], points: np.ndarray) -> np.ndarray:
    """Offset to the template's anatomy that a point of the affinely aligned person shows.

    Parameters
    ----------
    deformation : dict
        ``sessions[i]["deformation"]`` of a person's truth: Gaussians (``centre`` (K, 3), ``sd`` (K, 3), ``shift``
        (K, 3) mm, ``stretch`` (K, 3) without unit) and ``affine`` (3, 4), the affine part that is subtracted.
    points : ndarray (N, 3)
        MNI mm.

    Returns
    -------
    ndarray (N, 3)
        mm; ``points`` show the template's anatomy at ``points + offset``.
    """
    centre, sd, shift, stretch, affine = (np.asarray(deformation[key]) for key in _KEYS)
    sharp = 1 / sd**2  # Σ ((p − c) / sd)² by its three terms, as matrix products
    weight = np.exp(points @ (centre * sharp).T - 0.5 * (points**2 @ sharp.T + (centre**2 * sharp).sum(1)))  # (N, K)
    moved = weight @ (shift - centre * stretch) + points * (weight @ stretch)
    return moved - points @ affine[:, :3].T - affine[:, 3]


def displacement_on_axes(deformation: dict[str, Any], axes: tuple[np.ndarray, ...]) -> np.ndarray:
    """`displacement` on a grid, (3, X, Y, Z): a Gaussian is a product of three 1-D ones, so a matrix product does."""
    centre, sd, shift, stretch, affine = (np.asarray(deformation[key]) for key in _KEYS)
    away = [axis - centre[:, i, None] for i, axis in enumerate(axes)]  # 3 × (K, n)
    gauss = [np.exp(-0.5 * (a / sd[:, i, None]) ** 2) for i, a in enumerate(away)]
    shape = tuple(len(axis) for axis in axes)
    open_axes = np.ix_(*axes)
    field = np.empty((3, *shape), np.float32)
    for c in range(3):
        # shift_c · gx gy gz + stretch_c · (p_c − centre_c) gx gy gz: both factors of axis c in one
        factors = [g.astype(np.float32) for g in gauss]
        factors[c] = (gauss[c] * (shift[:, c, None] + stretch[:, c, None] * away[c])).astype(np.float32)
        plane = (factors[0][:, :, None] * factors[1][:, None, :]).reshape(len(centre), -1)  # (K, X·Y)
        field[c] = (plane.T @ factors[2]).reshape(shape)
        field[c] -= sum(affine[c, i] * open_axes[i] for i in range(3)) + affine[c, 3]
    return field


def draw_deformation(seed: int, index: int, ventricles: float) -> dict[str, Any]:
    """The person's smooth deformation with this session's ventricles, without an affine part over the brain."""
    rng = random_stream(seed, index, DEFORMATION)
    points = brain_points(_head_grid(10.0))
    zero = np.zeros((1, 3))
    centre = points[rng.integers(len(points), size=_BUMPS)] + rng.uniform(-4, 4, (_BUMPS, 3))
    sd = np.repeat(rng.uniform(15, 32, (_BUMPS, 1)), 3, axis=1)
    shift = rng.normal(0, 1, (_BUMPS, 3))
    target = _RMS_MM * rng.uniform(0.8, 1.2)
    smooth = {"centre": centre, "sd": sd, "shift": shift, "stretch": np.zeros_like(shift), "affine": np.zeros((3, 4))}
    smooth["affine"] = _affine_part(smooth, points)
    shift = shift * target / np.sqrt((displacement(smooth, points) ** 2).sum(1).mean())

    sides = [(np.array([side, 1, 1]) * c, s, w) for c, s, w in _VENTRICLES for side in (-1, 1)]
    parts = {
        "centre": [centre, [t[0] for t in TORQUE], [c for c, _, _ in sides]],
        "sd": [sd, [[t[1]] * 3 for t in TORQUE], [s for _, s, _ in sides]],
        "shift": [shift, [[0, t[2], 0] for t in TORQUE], np.repeat(zero, len(sides), 0)],
        # a negative stretch draws anatomy from nearer to the ventricle's centre, which widens the ventricle
        "stretch": [np.zeros_like(shift), np.repeat(zero, len(TORQUE), 0),
                    [-ventricles * np.array(w) for _, _, w in sides]],
    }  # fmt: skip
    whole = {key: np.round(np.concatenate(value), 4) for key, value in parts.items()} | {"affine": np.zeros((3, 4))}
    whole["affine"] = _affine_part(whole, points)
    return {key: np.asarray(value).tolist() for key, value in whole.items()}


def _affine_part(deformation: dict[str, Any], points: np.ndarray) -> np.ndarray:
    homogeneous = np.column_stack([points, np.ones(len(points))])
    return np.linalg.lstsq(homogeneous, displacement(deformation, points), rcond=None)[0].T
