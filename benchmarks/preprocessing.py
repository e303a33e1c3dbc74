"""One person from scanner to grid: T1 at 1 mm with scalp and two PETs onto 128³ of 1.5 mm, on a number of cores.

    python benchmarks/preprocessing.py

A phantom with a scanner's voxel size is written to a temporary folder and preprocessed with the settings of profile
``adni`` (registration at 2 mm, N4). Seconds are those of `preprocessing.volumes.preprocess` alone, in a separate
process. They include imports and template maps, so they are the cost of the first person. Writes
``results/preprocessing.{csv,md}``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resdm_suite.profiles import Config

ROOT = Path(__file__).resolve().parents[1]
TARGET_S = 90
PACKAGES = ("numpy", "scipy", "SimpleITK", "nilearn", "nibabel")


def profile(root: Path, **phantom: Any) -> Config:
    """Profile ``adni``'s preprocessing for phantoms with a scalp and both PETs."""
    from resdm_suite.profiles import CohortConfig, PhantomConfig, load_config

    phantom = PhantomConfig(scalp=True, single_pet=0.0, repeat_visits=0.0, **phantom)
    cohort = CohortConfig(kind="phantom", phantom=phantom)
    config = load_config(ROOT / "configs" / "adni.yaml")
    return dataclasses.replace(config, profile="benchmark", cohort=cohort, root=root)


def prepare(config: Config) -> None:
    """Write the phantoms and their manifest."""
    from resdm_suite.cohorts.manifest import write_manifest
    from resdm_suite.cohorts.phantom import write_phantoms
    from resdm_suite.cohorts.readers.bids import build_manifest

    found = build_manifest(write_phantoms(config, progress=False), config)
    write_manifest(found.manifest.assign(split="train"), config.manifest)


ONE = {"people": 1, "t1_voxel_mm": (1.0, 1.0, 1.0)}


def measure(root: Path) -> None:
    """Preprocess; print seconds, peak memory in GiB, shapes, and the errors against the truth in mm."""
    start = time.perf_counter()
    from resdm_suite.preprocessing.qc import registration_error, sessions
    from resdm_suite.preprocessing.scans import read_scan
    from resdm_suite.preprocessing.volumes import preprocess

    config = profile(root, **ONE)
    preprocess(config, progress=False)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024) / 2**10
    (session,) = sessions(config)
    shape = "x".join(map(str, read_scan(session.row["t1w"]).data.shape))
    error = registration_error(session)
    errors = (error[f"{what}_error_mm"] for what in ("t1w", "amyloid", "tau"))
    print("result", f"{seconds:.1f}", f"{peak:.2f}", shape, *(f"{mm:.2f}" for mm in errors))


def main() -> None:
    """Measure in a fresh process and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    from importlib.metadata import version

    import pandas as pd
    from jobs import processor

    from resdm.io import write_csv, write_text

    with tempfile.TemporaryDirectory() as folder:
        prepare(profile(Path(folder), **ONE))
        command = [sys.executable, __file__, "--measure", folder]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.cores), "PYTHONPATH": str(ROOT)}
        pin = {0} if not hasattr(os, "sched_getaffinity") else set(sorted(os.sched_getaffinity(0))[: options.cores])
        start = (lambda: os.sched_setaffinity(0, pin)) if hasattr(os, "sched_setaffinity") else None
        done = subprocess.run(command, env=environment, preexec_fn=start, capture_output=True, text=True, check=True)
    _, seconds, peak, shape, *errors = done.stdout.splitlines()[-1].split()
    row = {
        "t1": shape, "t1_voxel_mm": 1.0, "pets": 2, "grid": "128x128x128", "cores": min(options.cores, len(pin)),
        "seconds": float(seconds), "target_s": TARGET_S, "peak_gib": float(peak),
        **{f"{what}_error_mm": float(mm) for what, mm in zip(("t1w", "amyloid", "tau"), errors, strict=True)},
        "device": f"{processor()} ({platform.machine()})", "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }  # fmt: skip
    write_csv(options.out / "preprocessing.csv", pd.DataFrame([row]))
    lines = ["# Preprocessing one person", "",
             "phantom data: a T1 with scalp and two PETs onto the grid of profile `adni`; "
             "`python benchmarks/preprocessing.py`", "",
             "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in row.items()), ""]  # fmt: skip
    write_text(options.out / "preprocessing.md", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
