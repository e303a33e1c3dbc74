"""Trainings in processes of their own, side by side; `ablation.py` and `curve.py` run their jobs with it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm.auto import tqdm


def run_jobs(script: str | Path, jobs: Mapping[str, Sequence[str]], at_once: int) -> None:
    """Run a script with the arguments of each job, ``at_once`` in parallel, under a bar.

    Raises `RuntimeError` with a failed job's name and last line, after the jobs that had begun.
    """

    def run(name: str) -> str:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, str(script), *jobs[name]], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name}: {' '.join(done.stderr.strip().splitlines()[-1:])}")
        return f"{name} ({time.perf_counter() - start:.0f} s)"

    with ThreadPoolExecutor(at_once) as pool, tqdm(total=len(jobs), unit="job") as bar:
        try:
            for future in as_completed([pool.submit(run, name) for name in jobs]):
                bar.write(future.result(), file=sys.stderr)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
