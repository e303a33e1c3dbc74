"""Cost of a synthesis: ``timing.json`` of one call, or of its shards together."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from resdm.batch import TRACERS
from resdm.io import write_json
from resdm_suite.records import read_json


def write_timing(
    out: Path, seconds: list[float], flop: int, device: str, steps: int | None, shard: tuple[int, int], sessions: int
) -> None:
    """Cost of the sessions made by a call, or of all shards if this call without shard made none."""
    part, parts = shard
    if seconds:
        each = float(np.mean(seconds[1:] or seconds))
        cost = {"sessions": len(seconds), "seconds": round(sum(seconds), 3), "seconds_per_session": each}
        cost |= {"gflop_per_volume": flop / len(TRACERS) / 1e9, "device": device, "steps": steps}
        write_json(out / ("timing.json" if parts == 1 else f"timing_{part}of{parts}.json"), cost)
    elif parts == 1 and (joined := _join_timings(out, sessions)):
        write_json(out / "timing.json", joined)


def _join_timings(out: Path, sessions: int) -> dict[str, Any] | None:
    """Cost of the shards together; None if no complete set of shards made all sessions, each in one call.

    Seconds are summed. Seconds per session are the shards' mean, weighted by their sessions.
    """
    files = {tuple(map(int, m.groups())): path for path in sorted(out.glob("timing_*of*.json"))
             if (m := re.fullmatch(r"timing_(\d+)of(\d+)\.json", path.name))}  # fmt: skip
    for parts in sorted({n for _, n in files}):
        # with more parts than sessions, some have nothing to make, and no file
        names = [(part, parts) for part in range(1, min(parts, sessions) + 1)]
        costs = [read_json(files[name]) for name in names if name in files]
        same = {tuple(cost[key] for key in ("gflop_per_volume", "device", "steps")) for cost in costs}
        counts = [cost["sessions"] for cost in costs]
        if len(costs) == len(names) and sum(counts) == sessions and len(same) == 1:
            mean = float(np.average([cost["seconds_per_session"] for cost in costs], weights=counts))
            seconds = round(sum(cost["seconds"] for cost in costs), 3)
            return costs[0] | {"sessions": sessions, "seconds": seconds, "seconds_per_session": mean, "shards": parts}
    return None
