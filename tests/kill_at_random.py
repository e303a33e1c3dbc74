"""SIGKILL a run of the smoke profile at random moments, and compare its end with an undisturbed run.

    python tests/kill_at_random.py [--kills 20] [--seed 0]

Both runs are in copies of this checkout in a temporary folder, which stays after a fault. This takes hours, so it is no
part of `make test`; tests/test_records.py does the same to a tiny pipeline.
"""

from __future__ import annotations

import argparse
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

from conftest import BIN, clone, digests, run

CLOCK = {"timing.json", "README.md"}  # hold seconds; so do hidden files, or are what a killed writer left
TIMES = ("volumes/*/*/*_desc-preproc.json", "qc/*.json", "smoke/table2.*", "smoke/claims.json")
"""Hold times, or digests of files with times."""

SKIPPED = {"logs", "notebooks", "report", ".locks"}  # hold progress bars and seconds
COMMAND = [BIN / "snakemake", "--quiet", "all", "--config", "profile=smoke"]


def start(folder: Path) -> subprocess.Popen:
    """Snakemake in a process group of its own, so that a kill takes its jobs along."""
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    command = [*COMMAND, "--cores", "2", "--rerun-incomplete"]
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)


def finish(folder: Path) -> float:
    """Run to the end; seconds."""
    begin = time.monotonic()
    run(*COMMAND, "--unlock", cwd=folder, code=None, PYTHONPATH=str(folder))
    if start(folder).wait():
        sys.exit(f"{folder}: the run failed")
    return time.monotonic() - begin


def results(folder: Path) -> dict[Path, str]:
    parts = {name: digests(folder / name) for name in ("work", "figures")}
    found = {Path(name, path): digest for name, part in parts.items() for path, digest in part.items()}
    return {
        path: digest for path, digest in found.items()
        if path.name not in CLOCK and path.name[0] != "." and not SKIPPED & {*path.parts}
        and not any(map(path.match, TIMES))
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, temporary = random.Random(options.seed), Path(tempfile.mkdtemp())
    whole, killed = (clone(temporary / name) for name in ("whole", "killed"))
    seconds = finish(whole)
    for number in range(options.kills):
        process = start(killed)
        time.sleep(draw.uniform(0, seconds / 4))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(killed / ".snakemake" / "locks", ignore_errors=True)
        print(f"kill {number + 1}: {len(results(killed))} files", flush=True)
    finish(killed)
    differ = {path for path, _ in results(whole).items() ^ results(killed).items()}
    print("\n".join(sorted(map(str, differ))) or f"{len(results(whole))} files, all the same")
    if differ:
        sys.exit(f"different in {whole} and {killed}")
    shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
