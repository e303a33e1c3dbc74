"""Frames of a PET: which of them lie in the tracer's window after injection, and the weight of each in their mean.

Early frames follow blood flow, late frames follow binding. SUVR is defined in a window of late frames, and a mean over
a whole run from injection on is no SUVR. Times come from the BIDS sidecar. Its usual faults are found: milliseconds,
times that count from the scan's start, entries that do not fit the file, frames without content.
"""

from pathlib import Path
from typing import Any

import numpy as np

from resdm_suite.cohorts.tables import read_sidecar
from resdm_suite.preprocessing.measures import LIMITS

WINDOWS = {
    "18FAV45": (50, 70), "18FFBB": (90, 110), "18FFMM": (90, 110), "11CPIB": (50, 70), "18FNAV4694": (50, 70),
    "18FAV1451": (75, 105), "18FMK6240": (90, 110), "18FPI2620": (45, 75), "18FRO948": (70, 90), "18FGTP1": (60, 90),
}  # fmt: skip
"""Minutes after injection in which each tracer's SUVR is measured, by BIDS label."""

_LATE_RUN = LIMITS["frame_minutes"][1]  # minutes; a longer run holds more than a late window
_NEAR = LIMITS["minutes_outside_window"][1]  # minutes by which protocols differ
_MILLISECONDS = 10_000  # a longer frame, and
_LATEST = 36_000  # a later time, are no seconds


class FrameError(ValueError):
    """Frames without any in the tracer's window."""


def average_frames(data: np.ndarray, path: Path, tracer: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Mean of a PET's frames in the tracer's window, weighted by duration, and its description.

    Parameters
    ----------
    data : ndarray (X, Y, Z, T)
    path : path
        Of the scan; the times are in its BIDS sidecar, beside it or in a folder above.
    tracer : str
        BIDS label.

    Returns
    -------
    ndarray (X, Y, Z)
    dict
        ``number`` of frames; ``weights``: what they follow; where known ``minutes`` averaged and
        ``minutes_after_injection``; where some frames are left out ``used`` (positions) and ``window``; ``empty``:
        frames without content; ``note``: what the sidecar lacks. Empty for one frame, unless it lies far from the
        window.

    Raises
    ------
    FrameError
        A run from injection on that ends before the window.
    """
    number = data.shape[3]
    durations, starts, source = _frame_times(path, number)
    low, high = (reduce.reduce(data, axis=(0, 1, 2)) for reduce in (np.fmin, np.fmax))  # NaN only where all are NaN
    empty = ~((high > 0) & (high > low))
    used, window = ~empty if not empty.all() else empty, WINDOWS.get(tracer)
    info: dict[str, Any] = {"number": number, "weights": source}
    if starts is None or not window:
        known = source if starts is None else "no window is known of this tracer"
        info["note"] = f"{number} frames averaged without regard to the tracer's window ({known})"
    if starts is not None and window and number > 1:
        stop = starts[-1] + durations[-1]
        if starts[0] < window[0] - _NEAR or stop - starts[0] > _LATE_RUN:
            middle = starts + durations / 2
            inside = (middle >= window[0]) & (middle <= window[1])
            if (inside & used).any():
                used, info["window"] = inside & used, list(window)
            elif stop - starts[0] > _LATE_RUN:
                raise FrameError(
                    f"frames from {starts[0]:.0f} to {stop:.0f} min after injection, none in the window of {tracer} "
                    f"({window[0]} to {window[1]} min); take a scan of that window, or correct its sidecar"
                )
    if not used.all():
        info["used"] = np.flatnonzero(used).tolist()
    if empty.any():
        info["empty"] = np.flatnonzero(empty).tolist()
    if durations is not None:
        info["minutes"] = round(float(durations[used].sum()), 3)
    if starts is not None:
        first, last = np.flatnonzero(used)[[0, -1]]
        span = starts[first], starts[last] + durations[last]
        info["minutes_after_injection"] = [round(float(minute), 2) for minute in span]
        if window:
            info["minutes_outside_window"] = max(0.0, *np.round([window[0] - span[0], span[1] - window[1]], 2).tolist())
    if number == 1:
        far = info.get("minutes_outside_window", 0) > _NEAR or info.get("minutes", 0) > _LATE_RUN
        return data[..., 0], info if far else {}
    chosen = data if used.all() else data[..., used]
    if durations is None or not np.ptp(durations[used]):
        return chosen.mean(axis=3), info
    weights = durations[used] / durations[used].sum()
    return np.tensordot(chosen, weights.astype(np.float32), 1), info


def _frame_times(path: Path, number: int) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    """Durations and starts after injection of each frame in minutes, where known, and what the weights follow."""
    sidecar = read_sidecar(path) or {}
    durations, starts = (_numbers(sidecar, key) for key in ("FrameDuration", "FrameTimesStart"))
    if durations.size != number and np.count_nonzero(durations) == number:
        starts = starts[durations != 0] if starts.size == durations.size else starts  # entries without a frame
        durations = durations[durations != 0]
    fault = ""
    if not durations.size:
        fault = "no FrameDuration beside the scan"
    elif durations.size != number:
        fault = f"FrameDuration has {durations.size} frames, the file {number}"
    elif not (np.isfinite(durations).all() and durations.min() > 0):
        fault = "FrameDuration has a frame of no duration"
    if fault and number > 1 and starts.size == number and (np.diff(starts) > 0).all():
        durations, fault = np.append(np.diff(starts), starts[-1] - starts[-2]), ""
    if fault:
        return None, None, f"equal: {fault}"
    durations = durations / (60_000 if durations.max() > _MILLISECONDS else 60)
    starts = _starts_after_injection(sidecar, starts, durations)
    return durations, starts, "FrameDuration" if starts is not None else "FrameDuration: no time after injection"


def _starts_after_injection(sidecar: dict[str, Any], starts: np.ndarray, durations: np.ndarray) -> np.ndarray | None:
    """Minutes from injection to each frame; None where the sidecar does not state them, or contradicts itself.

    FrameTimesStart, InjectionStart and ScanStart count from one time zero. Some converters count the frames from the
    scan's start, which is later.
    """
    injection, scan = (seconds(sidecar, key) / 60 for key in ("InjectionStart", "ScanStart"))
    if not starts.size:  # the frames follow each other
        if np.isnan(scan) or np.isnan(injection):
            return None
        starts = np.cumsum([0.0, *durations[:-1]]) * 60
    if starts.shape != durations.shape or not np.isfinite(starts).all():
        return None
    if len(starts) == 1:
        starts = starts / (60_000 if starts[0] > _LATEST else 60)
    else:
        ratio = np.ptp(starts) / durations[:-1].sum()  # units per minute, and more where there are gaps
        unit = next((unit for unit in (60_000, 60, 1) if ratio >= 0.9 * unit), np.nan)
        starts = starts / unit
        if not (np.diff(starts) >= 0.5 * durations[:-1]).all():
            return None
    if scan > starts[0] + 0.1:
        starts = starts + scan - starts[0]
    if np.isnan(injection):
        from_zero = starts[0] < _NEAR / 2 and starts[-1] + durations[-1] <= _LATE_RUN
        return None if from_zero else starts  # a short run that begins at time zero may begin at any time
    starts = starts - injection
    return starts if starts[-1] >= 0 else None  # no scan ends before the injection


def _numbers(sidecar: Any, key: str) -> np.ndarray:
    """A list of numbers in a sidecar; empty if there is none."""
    try:
        return np.atleast_1d(np.asarray(sidecar[key], dtype=np.float64)).ravel()
    except (KeyError, TypeError, ValueError):
        return np.empty(0)


def seconds(sidecar: Any, key: str) -> float:
    """A time in a sidecar; NaN if there is none."""
    values = _numbers(sidecar, key)
    if values.size != 1 or not np.isfinite(values[0]):
        return np.nan
    return float(values[0]) / (1000 if abs(values[0]) > _LATEST else 1)
