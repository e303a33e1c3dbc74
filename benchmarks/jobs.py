"""Trainings in processes of their own, side by side, also on parts of a cohort, for the scripts beside this file."""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from resdm.io import atomic, stored_json, write_json, write_text
from resdm_suite.profiles import Config


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


def link_volumes(source: Config, config: Config, splits: Sequence[str]) -> None:
    """The preprocessed volumes of a profile as those of another, each session in the given split; "" leaves it out."""
    card = stored_json(source.volumes / "cohort.json") or {}
    rows = list(csv.DictReader((source.volumes / "index.csv").read_text(encoding="utf-8").splitlines()))
    keep = np.array([split != "" for split in splits])
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"split": split} for row, split in zip(rows, splits, strict=True) if split)
    card["digest"] = hashlib.sha256(f"{card.get('digest')}\n{text.getvalue()}".encode()).hexdigest()
    if stored_json(config.volumes / "cohort.json") == card:
        return
    config.volumes.mkdir(parents=True, exist_ok=True)
    for folder in source.volumes.glob("sub-*"):
        link = config.volumes / folder.name
        if not link.is_symlink():
            link.symlink_to(folder.resolve(), target_is_directory=True)
    with atomic(config.volumes / "cohort.npy") as temporary, open(temporary, "wb") as stream:
        np.save(stream, np.load(source.volumes / "cohort.npy", mmap_mode="r")[keep])
    write_text(config.volumes / "index.csv", text.getvalue())
    write_json(config.volumes / "cohort.json", card)
