"""Speed and memory against the released network and MONAI's: ``make bench``, or ``python benchmarks/bench.py --quick``.

Every configuration runs in a separate process, so peak memory is that of one configuration. Ratios are within one run
on one machine. Writes ``bench.csv``, ``growth.csv``, ``machine.csv``, ``bench.md`` and a plot below
``benchmarks/results/<device>/``. Each measurement is written at once, so a stopped run continues. Rows of another
`REVISION` or torch version are measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from joblib import cpu_count
from jobs import device_name
from measure import CLIP_IMAGE_HALF, FIELD_MM, Case, count, measure, peak_rates, timed

from resdm.cpu_runtime import computes_bf16
from resdm.io import write_csv, write_text

HERE = Path(__file__).resolve().parent

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("full resolution, nothing else", {}),
    ("+ Haar stem", {"stem": "haar"}),
    ("+ fused upsampling", {"upsampling": True}),
    ("+ both tracers in one pass", {"together": True}),
    ("+ frozen text cached", {"cache": True}),
    ("+ fused AdamW and EMA", {"fused": True}),
    ("+ freed memory kept", {"keep": True}),
    ("+ bfloat16", {"bf16": True}),
    ("+ channels_last", {"channels_last": True}),
)
"""Options; each row adds one to those before. README.md lists their defaults."""

FAST = "+ freed memory kept"
"""Row with all defaults of the profiles: other grids and batches use it."""

KEPT = "released, freed memory kept"
"""The released network with one of our options, to show the gain by the network alone."""

COMPARED = (FAST, "+ bfloat16")
"""Rows compared with `ASKED`: fp32, and the precision of the 128³ profiles."""

REVISION = 1
"""Raise it when a change of the code may change a measurement: rows of an older revision are measured again."""

CUDA_OPTIONS = (("+ torch.compile", {"compiled": True}),)
GIB = 2**30


def configurations(size: int, device: str, threads: int, width: int, whole: bool = True) -> list[tuple[str, Case]]:
    """Names and cases of one grid, references first; without ``whole`` only these and `COMPARED`."""
    base = Case("resdm", size, width=width, threads=threads, device=device)
    released = replace(base, network="released")
    rows = [("released", released), ("MONAI", replace(base, network="monai"))]
    for name, change in (*OPTIONS, *(CUDA_OPTIONS if device == "cuda" else ())):
        if "bf16" in change and device == "cpu" and not computes_bf16():
            continue
        base = replace(base, **change)
        rows.append((name, base))
    if device == "cpu":
        rows.insert(1, (KEPT, replace(released, keep=True)))
        if threads > 1:
            rows.append((f"“{FAST}” on one thread", replace(dict(rows)[FAST], threads=1)))
    return rows if whole else [row for row in rows if row[0] in ("released", "MONAI", *COMPARED)]


class StoredRows:
    """Rows of a CSV, each written when it is measured; a stored row of the same job is not measured again.

    Parameters
    ----------
    path : Path
    fresh : bool
        Measure everything again.
    """

    def __init__(self, path: Path, fresh: bool) -> None:
        there = path.is_file() and not fresh
        stored = pd.read_csv(path, dtype={"job": str}).to_dict("records") if there else []
        self.path, self.rows = path, []
        self.stored = {row["job"]: row for row in stored if isinstance(row.get("job"), str)}
        self.code = hashlib.sha256("/".join([str(REVISION), version("torch"), version("monai")]).encode())

    def row(self, named: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
        """Append one row: ``named`` and the job's measurements."""
        digest = self.code.copy()
        digest.update(json.dumps(job, sort_keys=True).encode())
        key = digest.hexdigest()[:12]
        what = " ".join(map(str, named.values()))
        if key in self.stored:
            row = self.stored.pop(key) | named
            _say(f"{what}: stored")
        else:
            start = time.perf_counter()
            row = named | {k: v for k, v in job.items() if k == "threads"} | run_apart(job) | {"job": key}
            shown = ", ".join(f"{k} {row[k]:.3g}" for k in ("train_s", "sample15_s") if k in row)
            _say(f"{what}: {shown} ({time.perf_counter() - start:.0f} s)")
        self.rows.append(row)
        write_csv(self.path, pd.DataFrame([*self.rows, *self.stored.values()]), "%.6g")
        return row


_BEGAN = time.perf_counter()


def _say(line: str) -> None:
    minutes, seconds = divmod(int(time.perf_counter() - _BEGAN), 60)
    print(f"[{minutes:2d}:{seconds:02d}] {line}", file=sys.stderr, flush=True)


def run_apart(job: dict[str, Any]) -> dict[str, Any]:
    """The result of `work` in a separate process."""
    threads = str(job.get("threads", job.get("case", {}).get("threads", 1)))
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    command = [sys.executable, str(Path(__file__).resolve()), "--job", json.dumps(job)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        tail = done.stderr.strip().splitlines()[-1:]
        raise RuntimeError(f"{job}: ended with {done.returncode}: {' '.join(tail)}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Time, memory and FLOPs of a case, the machine's peak, or the speed of reading volumes."""
    match job["what"]:
        case "measure":
            case = Case(**job["case"])
            return measure(case, job["seconds"], job["least"]) | count(case)  # last: not in the peak
        case "peak":
            return peak_rates(job["device"], job["threads"], job["quick"])
    return loading(job["size"], job["sessions"])


def loading(size: int, sessions: int) -> dict[str, Any]:
    """Sessions per second from the float16 memory map (in the page cache), augmented."""
    from resdm.io import write_json
    from resdm.settings import TrainingConfig, to_dict
    from resdm_suite.preprocessing.dataset import CohortDataset
    from resdm_suite.profiles import CohortConfig, Config, GridConfig, PreprocessConfig

    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            profile="bench",
            cohort=CohortConfig(kind="other"),
            preprocess=PreprocessConfig(grid=GridConfig((size,) * 3, FIELD_MM / size)),
            training=TrainingConfig(shift_voxels=2),
            root=Path(folder),
        )
        config.volumes.mkdir(parents=True)
        one = np.random.default_rng(0).random((1, 3, size, size, size), dtype=np.float32).astype(np.float16)
        np.save(config.volumes / "cohort.npy", one.repeat(sessions, 0))
        columns = {"person": [f"sub-{i}" for i in range(sessions)], "session": "ses-1", "split": "train"}
        columns |= {"age": 70.0, "sex": "F", "present_amyloid": 1, "present_tau": 1}
        write_csv(config.volumes / "index.csv", pd.DataFrame(columns))
        card = {"grid": to_dict(config.preprocess.grid), "settings": config.digest("preprocess"), "digest": ""}
        write_json(config.volumes / "cohort.json", card)
        data = CohortDataset(config, "train", augment=True)
        seconds = timed(lambda: [data[i] for i in range(sessions)], "cpu", 2.0, least=3)
        return {"whole_sessions_s": sessions / float(np.median(seconds))}


# ── all measurements ──────────────────────────────────────────────────────────────────────────────


def run(
    sizes: Sequence[int], device: str, threads: int, quick: bool, folder: Path, fresh: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """All measurements: the tables of configurations and of growth, and the machine's rates."""
    width, seconds = (8, 0.2) if quick else (32, 6.0)
    machine = StoredRows(folder / "machine.csv", fresh)
    machine.row({"what": "peak"}, {"what": "peak", "device": device, "threads": threads, "quick": quick})
    load = {"what": "load", "size": 16 if quick else 128, "sessions": 4 if quick else 12}
    machine.row({"what": "reading"}, load)
    measured = StoredRows(folder / "bench.csv", fresh)
    for size in sorted(sizes, reverse=True):  # the grid of the requirements comes first
        whole = size == max(sizes) and not quick
        for name, case in configurations(size, device, threads, width, whole):
            least = 2 if name == "released" and not quick else 1  # the reference of all ratios
            named = {"size": size, "configuration": name, "voxels": " × ".join(map(str, case.shape))}
            named |= {"threads": case.threads, "precision": "bf16" if case.bf16 else "fp32"}
            measured.row(named, {"what": "measure", "case": asdict(case), "seconds": seconds, "least": least})
    rates = {k: v for row in machine.rows for k, v in row.items() if k.endswith("_s") and not pd.isna(v)}
    growth = grow(device, threads, width, seconds, quick, folder, fresh)
    return compared(pd.DataFrame(measured.rows), rates), growth, rates


def compared(table: pd.DataFrame, machine: dict[str, float]) -> pd.DataFrame:
    """The table with ratios to the released row of the same grid, and fractions of the machine's peak."""
    table["above_states_bytes"] = table["train_peak_bytes"] - table["states_bytes"]
    ratios = ["train_s", "sample15_s", "sample2_s", "step_gflop"]
    for column in [*ratios, "train_peak_bytes", "above_states_bytes", "process_bytes"]:
        first = table[table["configuration"] == "released"].set_index("size")[column]
        table[f"{column}_released_over"] = table["size"].map(first) / table[column]
    table["gflop_s"] = table["step_gflop"] / table["train_s"]
    for what in ("matmul", "conv"):
        peak = table["precision"].map({p: machine.get(f"{what}_{n}_gflop_s") for p, n in _PRECISIONS.items()})
        table[f"of_{what}_peak"] = table["gflop_s"] / peak.astype(float)
    return table


_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}


def grow(device: str, threads: int, width: int, seconds: float, quick: bool, folder: Path, fresh: bool) -> pd.DataFrame:
    """Counted cost from 32³ to 128³ of the released network and ours, and measured cost of 1 to 16 people per batch."""
    fast = dict(configurations(32, device, threads, width))[FAST]
    counted = []
    for n in (16, 32) if quick else (32, 64, 96, 128):
        for case in (Case("released", n, width=width), replace(fast, size=n)):
            counted.append({"what": "grid", "network": case.network, "size": n, "people": 1} | count(case))
    measured = StoredRows(folder / "growth.csv", fresh)
    for people in (1,) if quick else (1, 2, 4, 8, 16):
        case = replace(fast, people=people)
        named = {"what": "batch", "network": "resdm", "size": 32, "people": people}
        measured.row(named, {"what": "measure", "case": asdict(case), "seconds": seconds / 4, "least": 1})
    batches = pd.DataFrame(measured.rows)
    return pd.concat([pd.DataFrame(counted), batches.assign(train_s_a_person=batches["train_s"] / batches["people"])])


# ── output ────────────────────────────────────────────────────────────────────────────────────────


def markdown(
    table: pd.DataFrame, growth: pd.DataFrame, machine: dict[str, float], device: str, kind: str, quick: bool
) -> str:
    """The results as a page."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai", "numpy"))
    lines = [
        f"# Speed and memory on {device}",
        "",
        f"Python {platform.python_version()}, {versions}. Random weights and volumes; a cube of {FIELD_MM:g} mm; "
        "batch of one person, both tracers; AdamW and EMA in the step. The released network runs as in its main.py: "
        "one pass per tracer, fp32, prompts encoded in every step, all of CLIP in memory (0.33 GiB of it, the image "
        "half, are never run). Medians; “×” is the released network's value over the row's, in this run. Peak memory "
        "is the maximum that tensors need in a step (weights with the text tower, moments, EMA, gradients, "
        "activations), counted tensor by tensor on a CPU, by the allocator on a GPU. “Above states”: the part that is "
        "no weight, moment or average, so it grows with the volume. “Process”: growth of the process since before the "
        "network was built, workspaces of libraries and unused memory of the allocator included. “Freed memory kept”: "
        "malloc returns no pages to the system, which would clear new ones for every large tensor; the second row is "
        "the released network with that setting. † One of the 15 sampling steps (one pass per tracer, or both in one) "
        "was timed and multiplied by 15, because synthesis is long."
        + (" **A quick run: tiny networks, no result.**" if quick else ""),
        "",
        "Measured peak, GFLOP/s: "
        + ", ".join(f"{k.removesuffix('_gflop_s').replace('_', ' ')} {v:,.0f}" for k, v in machine.items()
                    if k.endswith("gflop_s")) + ".",
        f"Reading the float16 memory map, augmented: {machine['whole_sessions_s']:.1f} sessions/s.",
    ]  # fmt: skip
    for size, part in table.groupby("size", sort=False):
        lines += [
            "", f"## {size}³", "",
            "| configuration | voxels | TFLOP a step | step (s) | × | both PETs, 15 steps (s) | × | 2 steps (s) "
            "| peak of a step (GiB) | × | above states (GiB) | × | process (GiB) | × | GFLOP/s "
            "| of matmul, conv peak |",
            "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]  # fmt: skip
        for row in part.to_dict("records"):
            mark = "" if row["sample_steps_timed"] == 15 else " †"
            cells = [
                row["configuration"], row["voxels"], f"{row['step_gflop'] / 1e3:.3f}",
                f"{row['train_s']:.3g}", f"{row['train_s_released_over']:.1f}",
                f"{row['sample15_s']:.3g}{mark}", f"{row['sample15_s_released_over']:.1f}", f"{row['sample2_s']:.3g}",
                f"{row['train_peak_bytes'] / GIB:.2f}", f"{row['train_peak_bytes_released_over']:.1f}",
                f"{row['above_states_bytes'] / GIB:.2f}", f"{row['above_states_bytes_released_over']:.1f}",
                f"{row['process_bytes'] / GIB:.2f}", f"{row['process_bytes_released_over']:.1f}",
                f"{row['gflop_s']:.0f}", f"{row['of_matmul_peak']:.0%}, {row['of_conv_peak']:.0%}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    lines += shown(table, kind)
    lines += [
        "",
        "## Growth with the grid, counted",
        "",
        "| network | grid | TFLOP a step | saved for backward (GiB) |",
    ]
    lines += ["|---|--:|--:|--:|"]
    for row in growth[growth["what"] == "grid"].to_dict("records"):
        lines.append(f"| {row['network']} | {row['size']}³ | {row['step_gflop'] / 1e3:.3f} "
                     f"| {row['saved_bytes'] / GIB:.2f} |")  # fmt: skip
    lines += ["", "## Growth with the batch, ours at 32³", "", "| people | step (s) | a person (s) | peak (GiB) |"]
    lines += ["|--:|--:|--:|--:|"]
    for row in growth[growth["what"] == "batch"].to_dict("records"):
        lines.append(f"| {row['people']} | {row['train_s']:.3g} | {row['train_s_a_person']:.3g} "
                     f"| {row['train_peak_bytes'] / GIB:.2f} |")  # fmt: skip
    return "\n".join(lines) + "\n"


ASKED = {
    "train_s": ("training step", {"cpu": 12, "cuda": 30}, "{:.1f} times as fast"),
    "sample15_s": ("both PETs in 15 steps", {"cpu": 12, "cuda": 12}, "{:.1f} times"),
    "train_peak_bytes": ("peak memory of a step", {"cpu": 5, "cuda": 5}, "1/{:.1f}"),
}
"""Column → name, required factor over the released network at the largest grid, format."""


def shown(table: pd.DataFrame, kind: str) -> list[str]:
    """Requirements and measurements in words."""
    part = table[table["size"] == table["size"].max()].set_index("configuration")
    asked, size = ", ".join(f"{what} {least[kind]}" for what, least, _ in ASKED.values()), part["size"].iloc[0]
    lines = ["", f"**Results**, {size:.0f}³, against the released network. Required factors: {asked}.", ""]
    for name in [name for name in COMPARED if name in part.index]:
        results = []
        for column, (what, least, words) in ASKED.items():
            ratio = part.loc[name, f"{column}_released_over"]
            results.append(f"{what} {words.format(ratio)} ({'met' if ratio >= least[kind] else 'not met'})")
        bare = part.loc["released", "train_peak_bytes"] - 4 * CLIP_IMAGE_HALF
        results[-1] += f", 1/{bare / part.loc[name, 'train_peak_bytes']:.1f} if CLIP's image half were not loaded"
        lines.append(f"- “{name}”, with all options above it: {'; '.join(results)}.")
    if KEPT in part.index:
        train, sample = (part.loc[KEPT, column] / part.loc[FAST, column] for column in ("train_s", "sample15_s"))
        lines.append(
            f"- With freed memory kept in both, “{FAST}” is {train:.1f} times as fast a step, {sample:.1f} times as "
            "fast a synthesis: the gain of the network alone."
        )
    return lines


def draw(table: pd.DataFrame, growth: pd.DataFrame, device: str, stem: Path) -> None:
    """Bars of a training step by configuration, and growth with the grid, as ``<stem>.svg`` and ``.png``."""
    from matplotlib import pyplot

    from resdm_suite.reporting.style import save_figure

    size = int(table["size"].max())
    part = table[table["size"] == size].iloc[::-1]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.0, 3.4), width_ratios=(2, 1), layout="constrained")
    y = np.arange(len(part))
    reference = part["configuration"].str.startswith(("released", "MONAI"))
    for offset, column, colours, label in (
        (0.2, "train_s", ("#3B6FA0", "#8A8A8A"), "training step"),
        (-0.2, "sample15_s", ("#9DBEDB", "#C4C4C4"), "both PETs, 15 steps"),
    ):
        bars = left.barh(y + offset, part[column], 0.38, color=[colours[int(r)] for r in reference], label=label)
        texts = [f"{s:.3g} s, {x:.1f}×" for s, x in zip(part[column], part[f"{column}_released_over"], strict=True)]
        left.bar_label(bars, texts, fontsize=6, padding=2)
    left.set_yticks(y, part["configuration"], fontsize=7)
    left.set_xscale("log")
    left.set_xlim(part[["train_s", "sample15_s"]].min().min() / 2, part[["train_s", "sample15_s"]].max().max() * 8)
    left.set_xlabel("seconds (upper bar: training step; lower: both PETs in 15 steps)", fontsize=7)
    left.set_title(f"{size}³, two tracers of one person\n{device}", fontsize=8, loc="left")
    grid = growth[growth["what"] == "grid"]
    for name, colour in (("released", "#8A8A8A"), ("resdm", "#3B6FA0")):
        one = grid[grid["network"] == name]
        right.plot(one["size"], one["step_gflop"] / 1e3, "o-", color=colour, markersize=3, linewidth=1.2)
        right.annotate(name, (one["size"].iloc[-1], one["step_gflop"].iloc[-1] / 1e3), fontsize=7, color=colour,
                       xytext=(-4, 5), textcoords="offset points", ha="right")  # fmt: skip
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks(grid["size"].unique(), [f"{n}³" for n in grid["size"].unique()])
    right.minorticks_off()
    right.set_title("TFLOP of a training step, counted", fontsize=8, loc="left")
    for axes in (left, right):
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, stem, {"device": device, "torch": version("torch"), "monai": version("monai")})
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few tiny networks on 16³: for the test")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU where there is one")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all cores)")
    parser.add_argument("--sizes", type=int, nargs="+", help="default: 32 and 64, with CUDA 64 and 128")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--fresh", action="store_true", help="repeat the measurements of an earlier run")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job:
        print(json.dumps(work(json.loads(options.job))))
        return
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    threads = options.threads or cpu_count()
    sizes = options.sizes or ([16] if options.quick else [64, 128] if device == "cuda" else [32, 64])
    name = device_name(device)
    folder = options.out / re.sub(r"[^a-z0-9]+", "_", name.lower().replace("×", "x")).strip("_")
    if options.quick:
        folder = folder / "quick"  # no result: apart from results
    table, growth, machine = run(sizes, device, threads, options.quick, folder, options.fresh)
    write_csv(folder / "bench.csv", table, "%.6g")
    write_csv(folder / "growth.csv", growth, "%.6g")
    write_text(folder / "bench.md", markdown(table, growth, machine, name, device, options.quick))
    draw(table, growth, name, folder / "bench")
    print(folder)


if __name__ == "__main__":
    main()
