"""What notebook 13 shows of SUVR fidelity: quantities, their names, single people or groups, and notes."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from resdm.settings import TRACERS
from resdm_suite.evaluation.fidelity import BUILT_IN, CALIBRATED, UNCALIBRATED
from resdm_suite.profiles import MIN_GROUP_SIZE
from resdm_suite.reporting.style import TRACER_TITLES
from resdm_suite.reporting.tables import notes, span


def shown_quantities(values: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Tracer, region and unit of the quantities in the figure and the printed table; the CSV has every region.

    The cortical summary of each tracer, then Centiloid where the profile has a calibration, else the uncalibrated
    estimate.
    """
    measured = {tuple(row) for row in values[["tracer", "region", "unit"]].drop_duplicates().to_numpy()}
    scale = CALIBRATED if ("amyloid", CALIBRATED, "CL") in measured else UNCALIBRATED
    wanted = [(tracer, "summary", "SUVR") for tracer in TRACERS] + [("amyloid", scale, "CL")]
    return [quantity for quantity in wanted if quantity in measured]


def quantity_title(tracer: str, region: str) -> str:
    """``Aβ-PET, cortical summary``."""
    name = "cortical summary" if region == "summary" else region.replace("_", " ")
    return f"{TRACER_TITLES[tracer]}, {name}"


def shown_range(values: np.ndarray, individual: bool, *others: float) -> tuple[float, float]:
    """Ends of an axis with a margin; where single people may not be shown, no single person's value decides them."""
    values = np.asarray(values, dtype=float)
    ends = [values.min(), values.max()] if individual else values.mean() + np.array([-2.5, 2.5]) * values.std()
    low, high = np.nanmin([*ends, *others]), np.nanmax([*ends, *others])
    margin = 0.06 * max(high - low, 1e-3)
    return float(low - margin), float(high + margin)


def draw_people(
    axes: Axes, x: pd.Series, y: pd.Series, colour: str, individual: bool, ranges: tuple[tuple[float, float], ...]
) -> None:
    """One point per person; where single people may not be shown, hexagons of `MIN_GROUP_SIZE` people or more.

    Parameters
    ----------
    axes : Axes
    x, y : Series (people,)
    colour : str
    individual : bool
        `Config.individual`.
    ranges : (low, high), (low, high)
        Ends of both axes, see `shown_range`.
    """
    if individual:
        axes.plot(x, y, "o", color=colour, markersize=2.6, alpha=0.7, markeredgewidth=0)
    else:
        shades = LinearSegmentedColormap.from_list("people", ["#FFFFFF", colour])
        cells = int(np.clip(np.sqrt(len(x)) / 1.5, 3, 12))  # few people: large cells, else none would be drawn
        extent = (*ranges[0], *ranges[1])
        axes.hexbin(x, y, gridsize=cells, mincnt=MIN_GROUP_SIZE, extent=extent, cmap=shades, vmin=0, linewidths=0.2)
    axes.set_xlim(ranges[0])
    axes.set_ylim(ranges[1])
    axes.locator_params(nbins=5)


def fidelity_notes(frame: pd.DataFrame, repeated: bool) -> tuple[str, ...]:
    """Notes below the table, from its frame; ``repeated``: a method has several trainings."""
    atlases = [name for name in dict.fromkeys(frame["regions"]) if name not in (BUILT_IN, "Centiloid VOIs")]
    values = {"n": span(frame["n"]), "regions": set(frame["region"]), "atlases": atlases, "repeated": repeated}
    return notes("suvr_fidelity", calibrated=CALIBRATED, uncalibrated=UNCALIBRATED, **values)
