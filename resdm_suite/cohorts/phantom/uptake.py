"""Tracer in a phantom's tissue: base uptake, pathology, and the planted effects of age and sex."""

from functools import cache

import numpy as np

from resdm_suite.anatomy import REFERENCE, SUMMARY
from resdm_suite.cohorts.phantom.anatomy import CORTEX, Template, blend_regions, make_template

REGIONAL: dict[str, dict[str, float]] = {
    # amyloid: uptake of a load of 1 in pure grey matter
    "amyloid": {
        "precuneus": 0.92, "posterior_cingulate": 0.88, "anterior_cingulate": 0.86, "frontal": 0.78,
        "lateral_temporal": 0.66, "parietal": 0.66, "inferior_temporal": 0.45, "striatum": 0.60, "occipital": 0.28,
        "medial_temporal": 0.14, "sensorimotor": 0.14, "thalamus": 0.14,
    },
    # tau: the stage at which a region begins to fill, and its uptake when full
    "tau_onset": {
        "medial_temporal": 0.9, "inferior_temporal": 1.5, "lateral_temporal": 1.9, "posterior_cingulate": 2.2,
        "parietal": 2.3, "precuneus": 2.4, "frontal": 2.8, "occipital": 2.9, "anterior_cingulate": 3.0,
        "sensorimotor": 3.6, "striatum": 4.5, "thalamus": 4.5, "cerebellum": 6.0, "pons": 6.0,
    },
    "tau_full": {
        "medial_temporal": 0.95, "inferior_temporal": 1.95, "lateral_temporal": 1.80, "posterior_cingulate": 1.30,
        "parietal": 1.40, "precuneus": 1.35, "frontal": 1.10, "occipital": 1.05, "anterior_cingulate": 0.70,
        "sensorimotor": 0.60,
    },
    # uptake of pure grey matter without pathology and effects, relative to a cerebellum near 1
    "amyloid_base": dict.fromkeys(CORTEX, 0.89)
    | {"thalamus": 1.30, "striatum": 1.02, "cerebellum": 0.92, "pons": 1.50},
    "tau_base": dict.fromkeys(CORTEX, 1.07)
    | {"thalamus": 1.18, "striatum": 1.34, "medial_temporal": 1.15, "cerebellum": 0.98, "pons": 1.05},
    # sex (women +, men −) and age (per decade): SUVR in pure grey matter
    "amyloid_sex": dict.fromkeys((*CORTEX, "striatum", "thalamus"), 0.16),
    "tau_sex": dict.fromkeys((*CORTEX, "striatum", "thalamus"), 0.115),
    "amyloid_age": dict.fromkeys(CORTEX, 0.07)
    | {"frontal": 0.18, "anterior_cingulate": 0.18, "striatum": 0.20, "thalamus": 0.18},
    "tau_age": dict.fromkeys(CORTEX, 0.065)
    | {"striatum": 0.26, "thalamus": 0.22, "medial_temporal": 0.12, "occipital": 0.14, "parietal": 0.11},
    # white matter above the tentorium, where the age effect reaches it
    "white": dict.fromkeys((*CORTEX, "striatum", "thalamus"), 1.0),
}  # fmt: skip
"""Planted values by region; between regions they blend."""

LEFT_SHARE = {"amyloid": 0.06, "tau": 0.10}
"""How much more the left hemisphere's grey matter holds than the right's."""

_WHITE = {"18FAV45": 1.55, "18FFBB": 1.42, "18FAV1451": 1.02}  # uptake of white matter
_WHITE_AGE = {"amyloid": 0.14, "tau": 0.09}  # SUVR per decade, above the tentorium
_FLUID = {"amyloid": 0.45, "tau": 0.40}
_CONTRAST = {"18FAV45": 1.0, "18FFBB": 1.12, "18FAV1451": 1.0}  # of the pathology
_CHOROID = ((24.0, -40.0, 10.0), 7.0, 0.9)  # off-target tau: centre (both sides), SD in mm, uptake in fluid


@cache
def _maps(voxel_mm: float) -> dict[str, np.ndarray]:
    """`REGIONAL` on the anatomy grid; ``left``: 1 in the left hemisphere, 0 in the right; ``choroid``: off-target."""
    template = make_template(voxel_mm)
    x, y, z = template.grid.mm().astype(np.float32)
    (cx, cy, cz), width, _ = _CHOROID
    near = np.exp(-((np.abs(x) - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / (2 * width**2))
    maps = blend_regions(template.grid, REGIONAL)
    return maps | {"left": 1 / (1 + np.exp(x / 4)), "choroid": near * template.csf}


def tissue_uptake(
    template: Template,
    tissues: tuple[np.ndarray, ...],
    tracer: str,
    label: str,
    *,
    load: float,
    stage: float | np.ndarray,
    decades: float,
    sex: float,
    white: float = 0.0,
    personal: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Tracer in the tissue before the scanner, on the anatomy grid; unit: about SUVR.

    ``tissues`` are those of `thin_cortex`; ``label`` is the tracer's BIDS label. ``load`` and ``stage`` are the latent
    causes; for several equally likely values of ``stage`` the mean uptake results. ``decades`` and ``sex`` are the
    regressors of the planted effects, multiplied by the configured strength; ``white`` and ``personal`` the person's
    variation of uptake in white and grey matter.
    """
    gm, wm, csf = tissues
    maps = _maps(template.grid.voxel_mm)
    if tracer == "amyloid":
        pathology = load * maps["amyloid"]
    else:
        rise = [1 / (1 + np.exp((maps["tau_onset"] - s) / 0.3)) for s in (0.2, *np.atleast_1d(stage).tolist())]
        pathology = maps["tau_full"] * (np.mean(rise[1:], axis=0) - rise[0])
    effects = decades * maps[f"{tracer}_age"] + sex * maps[f"{tracer}_sex"]
    lateral = 1 + LEFT_SHARE[tracer] * (maps["left"] - 0.5) * maps["white"]
    grey = (maps[f"{tracer}_base"] + _CONTRAST[label] * pathology + personal * maps["white"]) * lateral + effects
    fluid = _FLUID[tracer] + (0 if tracer == "amyloid" else _CHOROID[2] * maps["choroid"])
    # the white age term leaves out cerebellum and pons: in the reference region it would cancel
    white_uptake = _WHITE[label] * (1 + white) + decades * _WHITE_AGE[tracer] * maps["white"]
    return gm * grey + wm * white_uptake + csf * fluid


def regional_suvr(
    uptake: np.ndarray, labels: np.ndarray, names: tuple[str, ...], tracer: str
) -> tuple[float, dict[str, float], float]:
    """Reference mean, SUVR by region, and cortical summary of an image with region ``labels``."""
    count = np.bincount(labels.ravel(), minlength=len(names) + 1)[1:]
    total = np.bincount(labels.ravel(), uptake.ravel(), minlength=len(names) + 1)[1:]
    outer, inner = names.index("cerebellum"), names.index("inferior_cerebellum")
    count[outer] += count[inner]
    total[outer] += total[inner]
    mean = dict(zip(names, total / np.maximum(count, 1), strict=True))
    size = dict(zip(names, count, strict=True))
    reference = mean[REFERENCE[tracer]]
    summary = sum(mean[r] * size[r] for r in SUMMARY[tracer]) / sum(size[r] for r in SUMMARY[tracer])
    suvr = {name: float(value / reference) for name, value in mean.items()}
    return float(reference), suvr, float(summary / reference)
