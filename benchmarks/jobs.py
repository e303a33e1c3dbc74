"""What the scripts beside this file share: trainings side by side, parts of a cohort, scores by scan, the device."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import cpu_count
from tqdm.auto import tqdm

from resdm.io import atomic, stored_json, write_json, write_text
from resdm_suite.profiles import Config

SCAN = ["person", "session", "tracer"]


def processor() -> str:
    """Name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """Name of the device, for results."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"{cpu_count()} × {processor()}"


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
    index = pd.read_csv(source.volumes / "index.csv", dtype=str, keep_default_na=False).assign(split=splits)
    keep = index["split"] != ""
    text = index[keep].to_csv(index=False, lineterminator="\n")
    card["digest"] = hashlib.sha256(f"{card.get('digest')}\n{text}".encode()).hexdigest()
    if stored_json(config.volumes / "cohort.json") == card:
        return
    config.volumes.mkdir(parents=True, exist_ok=True)
    for folder in source.volumes.glob("sub-*"):
        link = config.volumes / folder.name
        if not link.is_symlink():
            link.symlink_to(folder.resolve(), target_is_directory=True)
    with atomic(config.volumes / "cohort.npy") as temporary, open(temporary, "wb") as stream:
        np.save(stream, np.load(source.volumes / "cohort.npy", mmap_mode="r")[keep])
    write_text(config.volumes / "index.csv", text)
    write_json(config.volumes / "cohort.json", card)


def scan_metrics(scores: pd.DataFrame, regional: pd.DataFrame) -> dict[str, pd.Series]:
    """Image quality, and the mean absolute error of SUVR over regions, of each scan.

    From rows of ``scores.csv`` and of `resdm_suite.evaluation.suvr.regional_suvr`.
    """
    where = {region: rows.set_index(SCAN) for region, rows in scores.groupby("region")}
    whole, brain = where["whole"], where["brain"]
    error = (regional["synthetic"] - regional["real"]).abs().groupby([regional[column] for column in SCAN]).mean()
    sessions = {"psnr": whole["psnr"], "ssim": whole["ssim"], "psnr_brain": brain["psnr"], "mae_brain": brain["mae"]}
    return sessions | {"suvr_error": error}
