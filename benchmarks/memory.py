"""Memory of a training step at 128³, counted from shapes: ``python benchmarks/memory.py``. Takes seconds, no GPU.

Writes ``memory_128.csv`` and ``memory_128.md`` below ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from measure import Case, count

from resdm.io import write_csv, write_text

HERE = Path(__file__).resolve().parent

GIB = 2**30
COPIES = 5
"""Copies of the network's weights in 32 bits: weights, gradients, two moments of AdamW, EMA."""


def rows(size: int) -> list[tuple[str, Case]]:
    """Names and cases: the released network, then ours; each row adds one option."""
    ours = Case("resdm", size, together=True)
    named = [("released, fp32", Case("released", size)), ("ResDM, fp32, full resolution", ours)]
    for name, change in (
        ("+ Haar stem", {"stem": "haar"}),
        ("+ fused upsampling", {"upsampling": True}),
        ("+ bf16 autocast", {"bf16": True}),
        ("+ activation checkpointing", {"checkpoint": True}),
    ):
        ours = replace(ours, **change)
        named.append((name, ours))
    return named


def table(size: int) -> pd.DataFrame:
    """One row per configuration: GiB saved for the backward pass, GiB of weights and optimiser, sum; FLOPs per step."""
    records = []
    for name, case in rows(size):
        counts = count(case)
        states = COPIES * counts["weight_bytes"]
        records.append(
            {
                "configuration": name,
                "voxels": " × ".join(map(str, case.shape)),
                "saved_gib": counts["saved_bytes"] / GIB,
                "saved_a_volume_gib": counts["saved_bytes"] / 2 / GIB,
                "states_gib": states / GIB,
                "sum_gib": (counts["saved_bytes"] + states) / GIB,
                "step_tflop": counts["step_gflop"] / 1e3,
            }
        )
    return pd.DataFrame(records)


def markdown(frame: pd.DataFrame, size: int) -> str:
    """The table as a page."""
    stem, half = (frame.set_index("configuration").loc[row, "sum_gib"] for row in ("+ Haar stem", "+ bf16 autocast"))
    lines = [
        f"# Memory of a training step at {size}³",
        "",
        "One person, both tracers. Counted from shapes (fake tensors), nothing is run: storages that exist between "
        f"forward and backward pass; {COPIES} copies of the network's weights in 32 bits (weights, gradients, two "
        "moments of AdamW, EMA). Not counted: the text tower (0.14 GiB for ViT-B/32, of which 14 MiB are trained), the "
        "largest temporaries of the backward pass, cuDNN's workspace, the CUDA context. One H100 needed 2.45 GiB at "
        "most with the stem and bf16 on the whole grid ([phantom128_h100.md](phantom128_h100.md)).",
        "",
        "| configuration | voxels | saved (GiB) | per volume (GiB) | weights and optimiser (GiB) | sum (GiB) "
        "| TFLOP a step |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in frame.to_dict("records"):
        numbers = [f"{row[key]:.2f}" for key in ("saved_gib", "saved_a_volume_gib", "states_gib", "sum_gib")]
        lines.append(f"| {row['configuration']} | {row['voxels']} | {' | '.join(numbers)} | {row['step_tflop']:.2f} |")
    lines += [
        "",
        f"**Within 8 GiB of GPU memory:** the Haar stem, which every {size}³ profile has, brings a step to "
        f"{stem:.1f} GiB, and bf16, which those for GPUs have (`training.precision: bf16-mixed`), to {half:.1f}. For "
        "less: `network.checkpoint_activations: true` recomputes residual blocks in the backward pass, for one forward "
        "pass more.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    frame = table(options.size)
    write_csv(options.out / f"memory_{options.size}.csv", frame, "%.6g")
    write_text(options.out / f"memory_{options.size}.md", markdown(frame, options.size))
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
