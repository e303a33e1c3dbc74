"""SIGKILL a run of the smoke profile at random moments, and compare its end with an undisturbed run.

    python tests/kill_at_random.py [--kills 20] [--seed 0]

Both runs are in copies of this checkout in a temporary folder, which stays after a fault. This takes hours, so it is no
part of `make test`; tests/test_records.py does the same to a tiny pipeline.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("configs", "notebooks", "data_manifests", "resdm", "resdm_suite")
CLOCK = {"timing.json", "README.md"}  # hold seconds; so do hidden files, or are what a killed writer left
TIMES = ("volumes/*/*/*_desc-preproc.json", "qc/*.json", "smoke/table2.*", "smoke/claims.json")
"""Hold times, or digests of files with times."""

SKIPPED = {"logs", "notebooks", "report", ".locks"}  # hold progress bars and seconds


def clone(folder: Path) -> Path:
    for name in PARTS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", folder)
    return folder


def start(folder: Path) -> subprocess.Popen:
    """Snakemake in a process group of its own, so that a kill takes its jobs along."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["snakemake", "--cores", "2", "--rerun-incomplete", "--quiet", "rules", "--config", "profile=smoke"]
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(folder)}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)


def finish(folder: Path) -> float:
    """Run to the end; seconds."""
    begin = time.monotonic()
    unlock = ["snakemake", "--unlock", "--quiet", "all", "--config", "profile=smoke"]
    subprocess.run([Path(sys.executable).parent / unlock[0], *unlock[1:]], cwd=folder, check=False)
    if start(folder).wait():
        sys.exit(f"{folder}: the run failed")
    return time.monotonic() - begin


def results(folder: Path) -> set[Path]:
    paths = (path.relative_to(folder) for name in ("work", "figures") for path in (folder / name).rglob("*"))
    return {
        path for path in paths
        if (folder / path).is_file() and path.name not in CLOCK and path.name[0] != "."
        and not SKIPPED & set(path.parts) and not any(map(path.match, TIMES))
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    temporary = Path(tempfile.mkdtemp())
    whole, killed = (clone(temporary / name) for name in ("whole", "killed"))
    seconds = finish(whole)
    for number in range(options.kills):
        run = start(killed)
        time.sleep(draw.uniform(0, seconds / 4))
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        shutil.rmtree(killed / ".snakemake" / "locks", ignore_errors=True)
        print(f"kill {number + 1}: {len(results(killed))} files", flush=True)
    finish(killed)
    one, other = results(whole), results(killed)
    differ = sorted(one ^ other) + sorted(
        path for path in one & other if not filecmp.cmp(whole / path, killed / path, shallow=False)
    )
    print("\n".join(map(str, differ)) or f"{len(one)} files, all the same")
    if differ:
        sys.exit(f"different in {whole} and {killed}")
    shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
