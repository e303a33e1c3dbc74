"""Forecast of a long run's duration."""

from __future__ import annotations

import time
from collections.abc import Callable

from tqdm.auto import tqdm

LONG = 60.0
"""Shortest run, in seconds, that prints a forecast."""


def about(seconds: float) -> str:
    """A duration to the precision of an estimate.

    >>> about(42.4), about(100), about(1500), about(5000), about(90000)
    ('42 s', '2 min', '25 min', '1.4 h', '25 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.{int(seconds < 36000)}f} h"


def forecaster(
    what: str, total: int, unit: str, done: int = 0, warm: int = 1, write: Callable[[str], None] = tqdm.write
) -> Callable[[int], None]:
    """A function to call with the number of finished units; it prints one forecast if the run takes more than `LONG`.

    The text is "<what>: about 2 min, 1160 <unit>". ``total`` units are needed, ``done`` were finished before. The first
    ``warm`` units are not timed: they include caches and starting processes.
    """
    started, printed = 0.0, False

    def note(now_done: int) -> None:
        nonlocal started, printed
        now, timed = time.perf_counter(), now_done - done - warm
        if timed == 0:
            started = now
        elif timed > 0 and not printed and now - started >= 1:
            printed, left = True, total - done
            if (seconds := (now - started) / timed * left) > LONG:
                write(f"{what}: about {about(seconds)}, {left} {unit}")

    return note
