"""Does a brain mask of the person help? Registration and SUVR of phantoms with skull and scalp, by ``brain_mask``.

    python benchmarks/brain_mask.py --people 12

The same scans are preprocessed with ``preprocess.brain_mask`` ``mni`` (registration inside the MNI152 brain), and with
``deepbet`` (the T1 without skull and scalp). Errors are against the transforms and the cortical summaries with which
the phantoms were made. Writes ``results/brain_mask.{csv,md}``.

The scalp of the phantoms is a shell of constant thickness, without eyes, neck and fat. So this shows what a mask costs,
and whether it does harm; on real heads the gain may be larger.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from jobs import processor
from preprocessing import ROOT, prepare, profile

from resdm.io import write_text
from resdm.settings import TRACERS
from resdm_suite.evaluation.statistics import interval
from resdm_suite.preprocessing.qc import registration_error, sessions
from resdm_suite.preprocessing.volumes import preprocess
from resdm_suite.profiles import GridConfig

MASKS = ("mni", "deepbet")


def measure(root: Path, people: int) -> pd.DataFrame:
    """Errors of each person's first session: a row per person and mask."""
    config = profile(root, people=people, t1_voxel_mm=(2.0, 2.0, 2.0), pet_voxel_mm=(3.0, 3.0, 3.3))
    settings = dataclasses.replace(config.preprocess, grid=GridConfig((64, 64, 64), 3.0))
    config = dataclasses.replace(config, preprocess=settings)
    prepare(config)
    rows = []
    for mask in MASKS:
        masked = dataclasses.replace(config, preprocess=dataclasses.replace(settings, brain_mask=mask))
        start = time.process_time()
        preprocess(masked, progress=False)
        seconds = (time.process_time() - start) / people
        for session in sessions(masked):
            truth = json.loads((config.work / "truth" / f"{session.row['person']}.json").read_text())["sessions"][0]
            row = {"person": session.row["person"], "mask": mask, "cpu_s": seconds} | registration_error(session)
            for tracer in TRACERS:
                row[f"{tracer}_suvr_error"] = session.record["measured"][f"{tracer}_suvr"] - truth["summary"][tracer]
            rows.append(row)
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean absolute error by mask, the paired difference with its 95 % interval over people, and the worst person."""
    rows = []
    for name in [column for column in table if column.endswith(("_error_mm", "_suvr_error"))]:
        mni, deepbet = (table[table["mask"] == mask].set_index("person")[name].abs() for mask in MASKS)
        low, high = interval(deepbet, minus=mni[deepbet.index], seed=0)
        difference = f"{(deepbet - mni).mean():+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")
        row = {"error": name, "mni": f"{mni.mean():.3f}", "deepbet": f"{deepbet.mean():.3f}", "difference": difference}
        rows.append(row | {"worst, mni": f"{mni.max():.2f}", "worst, deepbet": f"{deepbet.max():.2f}"})
    return pd.DataFrame(rows)


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = measure(Path(folder), options.people)
    machine = f"{processor()} ({platform.machine()}), deepbet {version('deepbet')}"
    seconds = table.groupby("mask")["cpu_s"].first()
    rows = summarise(table)
    cells = [list(rows), ["---"] * len(rows.columns), *rows.to_numpy().tolist()]
    lines = ["# Brain mask of the person or of MNI152", "",
             f"phantom data: {options.people} people with skull and scalp; T1 of 2 mm, PET of 3 mm, grid of 3 mm. Mean "
             "absolute errors against the truth (mm; SUVR of the cortical summary), the difference deepbet − mni with "
             f"its 95 % interval over people, and the worst person. {machine}; "
             "`python benchmarks/brain_mask.py`", "",
             *(f"| {' | '.join(row)} |" for row in cells), "",
             f"CPU seconds per person: mni {seconds['mni']:.1f}, deepbet {seconds['deepbet']:.1f}.", ""]  # fmt: skip
    write_text(options.out / "brain_mask.md", "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
