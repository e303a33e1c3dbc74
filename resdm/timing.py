"""What a long run takes, said once its first second is over."""

from __future__ import annotations

import time
from collections.abc import Callable

from tqdm.auto import tqdm

LONG = 60.0
"""Seconds beyond which a run says what it will cost."""


def about(seconds: float) -> str:
    """A duration to the precision of an estimate.

    >>> about(42.4), about(100), about(1500), about(5000), about(90000)
    ('42 s', '2 min', '25 min', '1.4 h', '25 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.{int(seconds < 36000)}f} h"


def forecaster(
    what: str, total: int, unit: str, done: int = 0, warm: int = 1, say: Callable[[str], None] = tqdm.write
) -> Callable[[int], None]:
    """A function that is told how many units are done, and says once what all take, if that is more than `LONG`.

    Parameters
    ----------
    what, unit : str
        As in "training ResDM on this CPU: about 2 min, 1160 steps".
    total, done : int
        Units in all, and before the start.
    warm : int
        Units that are not timed: the first pay for caches and for processes that start.
    say : callable
    """
    started, spoken = 0.0, False

    def note(now_done: int) -> None:
        nonlocal started, spoken
        now, timed = time.perf_counter(), now_done - done - warm
        if timed == 0:
            started = now
        elif timed > 0 and not spoken and now - started >= 1:
            spoken, left = True, total - done
            if (seconds := (now - started) / timed * left) > LONG:
                say(f"{what}: about {about(seconds)}, {left} {unit}")

    return note
