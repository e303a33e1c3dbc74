"""Measures of quality, and the limits beyond which a session is flagged."""

import numpy as np
from scipy.stats import entropy

from resdm.settings import TRACERS
from resdm_suite.anatomy import Grid
from resdm_suite.preprocessing.resampling import Scan, smooth

LIMITS = {
    # measured by preprocessing
    "correlation": (0.6, np.inf),
    "reference_coverage": (0.95, np.inf),
    "similarity": (1.06, np.inf),
    "reference_cov": (-np.inf, 0.4),
    "suvr_max": (1.1, 6.0),
    "clipped_percent": (-np.inf, 0.5),
    "frame_minutes": (-np.inf, 40.0),
    "minutes_outside_window": (-np.inf, 20.0),
    # by quality control
    "t1w_error_mm": (-np.inf, 3.0),
    "pet_error_mm": (-np.inf, 2.0),
    "reference_suvr": (0.98, 1.02),
    "mirror": (0.0, np.inf),
    "form_mm": (-np.inf, 20.0),
}
"""Range of each measure beyond which a session is flagged."""


def limits(name: str) -> tuple[float, float]:
    """Limits of a measure by its column (``tau_similarity``), infinite if it has none."""
    scan, _, measure = name.partition("_")
    key = "pet_error_mm" if measure == "error_mm" and scan in TRACERS else name if name in LIMITS else measure
    return LIMITS.get(key, (-np.inf, np.inf))


def blur(volume: np.ndarray, grid: Grid) -> np.ndarray:
    """Smoothing by 6 mm FWHM, so that measures are comparable between fine and coarse grids."""
    return smooth(Scan(volume, grid.affine), 6.0).data


def shared_information(one: np.ndarray, other: np.ndarray) -> float:
    """Normalised mutual information (Studholme et al. 1999): (H(a) + H(b)) / H(a, b); 1 if unrelated, 2 if equal."""
    joint = np.histogram2d(one, other, bins=24)[0]
    return float((entropy(joint.sum(0)) + entropy(joint.sum(1))) / entropy(joint, axis=None))


def measure_flags(measured: dict[str, float]) -> list[str]:
    """Measures beyond `LIMITS`, each with scan, name and value."""
    flags = []
    for name, value in measured.items():
        scan, _, measure = name.partition("_")
        low, high = limits(name)
        if not low <= value <= high:
            flags.append(f"{scan} {measure.replace('_', ' ')} {value:.2f}")
    return flags
