"""The speed-ups at equal quality: ``make ablation``, or ``python benchmarks/ablation.py --profile smoke --steps 2``.

Trains the ResDM of a profile on its preprocessed cohort: at full resolution, then with one change of the network after
the other. Parameters, seed, batches and number of optimiser steps are equal. One more row trains at full resolution
for as long as the fastest row took.

Options that change no value (one pass for both tracers, cached text, fused optimiser, activation checkpointing, memory
format: see tests/test_levers.py) are the same in all rows; `bench.py` times them. A stopped run continues, from
``work/ablation-…``. Writes ``ablation.{csv,md,png,svg}`` below ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jobs import SCAN, device_name, run_jobs, scan_metrics

from resdm.cpu_runtime import computes_bf16
from resdm.io import write_csv, write_text
from resdm.settings import Precision
from resdm_suite.evaluation.image_quality import read_index, read_scores
from resdm_suite.evaluation.statistics import interval
from resdm_suite.evaluation.suvr import regional_suvr
from resdm_suite.profiles import Config, load_config
from resdm_suite.reporting.tables import Table, text_block

HERE = Path(__file__).resolve().parent

_FULL, _HAAR = {"stem": "none", "fused_upsampling": False}, {"stem": "haar", "fused_upsampling": False}
_FUSED = {"stem": "haar", "fused_upsampling": True}

ROWS: dict[str, tuple[str, dict[str, Any], Precision | None]] = {
    "full": ("full resolution", _FULL, None),
    "haar": ("+ Haar stem", _HAAR, None),
    "upsampling": ("+ fused upsampling", _FUSED, None),
    "bf16": ("+ bfloat16", _FUSED, "bf16-mixed"),
    "full_time": ("full resolution, equal time", _FULL, None),
}
"""Name → title, the network's settings, precision (None: the profile's)."""

if not computes_bf16():
    del ROWS["bf16"]  # emulated, it takes a hundred times as long

FAST = "upsampling"
"""Row whose time is the budget of ``full_time``."""

GAINS = {
    pair: title
    for pair, title in {
        ("haar", "full"): "+ Haar stem",
        ("upsampling", "full"): "+ fused upsampling",
        ("bf16", "full"): "+ bfloat16",
        ("bf16", "upsampling"): "bfloat16 alone",
        ("upsampling", "full_time"): "+ fused upsampling, at equal time",
    }.items()
    if pair[0] in ROWS
}
"""(configuration, reference) → title of the comparison."""

METRICS = {
    "psnr": ("PSNR, whole (dB)", 1, 0.25),
    "ssim": ("SSIM, whole", 1, 0.005),
    "psnr_brain": ("PSNR, brain (dB)", 1, 0.25),
    "mae_brain": ("MAE, brain", -1, 0.001),
    "suvr_error": ("regional SUVR error", -1, 0.01),
    "wrong_age": ("PSNR lost to a wrong age (dB)", 1, 0.1),
    "wrong_sex": ("PSNR lost to a wrong sex (dB)", 1, 0.1),
}
"""Metric → title, +1 if higher is better, and the margin: a smaller loss still counts as the same.

The last two measure the effect of the prompt: the loss inside the brain with another person's age, or the other sex."""

WRONG = {"wrong_age": "shuffled_age", "wrong_sex": "wrong_sex"}
"""Metric → condition of the prompt."""

TRACERS = ("mean", "amyloid", "tau")


def derived(profile: str, steps: int | None, seeds: Sequence[int]) -> Config:
    """The profile with one method per row and seed, trained for whole epochs, about ``steps`` steps, on its volumes.

    Parameters
    ----------
    profile : str
        Name or path.
    steps : int, optional
        By default the profile's epochs.
    seeds : sequence of int

    Raises
    ------
    FileNotFoundError
        The profile's cohort is not preprocessed; names the commands.
    """
    source = load_config(profile)
    if not (source.volumes / "index.csv").is_file():
        raise FileNotFoundError(
            f"{source.volumes / 'index.csv'}: no preprocessed cohort; `resdm phantom {profile}`, `resdm manifest "
            f"bids {profile}` and `resdm preprocess {profile}` make it"
        )
    resdm = source.method("ResDM")
    size = resdm.batch_size or source.training.batch_size
    an_epoch = max(1, len(read_index(source, "train")) // size)
    epochs = source.training.epochs if steps is None else max(1, round(steps / an_epoch))
    training = replace(
        source.training,
        budget="equal_epochs",
        epochs=epochs,
        validate_every=epochs,
        threads=1,
        channels_last=False,
    )  # the last weights are kept, in every row
    methods = {
        _name(row, seed): replace(resdm, seed=seed, precision=precision, network=replace(resdm.network, **change))
        for row, (_, change, precision) in ROWS.items()
        for seed in seeds
    }
    config = replace(source, profile=f"ablation-{source.profile}-{epochs}epochs", methods=methods, training=training)
    config.work.mkdir(parents=True, exist_ok=True)
    if not config.volumes.exists():
        config.volumes.symlink_to(source.volumes.resolve(), target_is_directory=True)
    return config


def _name(key: str, seed: int) -> str:
    return f"{key}-seed{seed}"


def timing(config: Config, key: str, seed: int) -> dict[str, Any]:
    """``timing.json`` of a row's training."""
    return json.loads((config.model(_name(key, seed)) / "timing.json").read_text(encoding="utf-8"))


def work(profile: str, key: str, steps: int | None, seeds: Sequence[int], seed: int) -> None:
    """Train a row, synthesise the test people and score them, in a separate process."""
    from resdm_suite.apps.synthesis import synthesise_conditions
    from resdm_suite.apps.training import train_method

    config = derived(profile, steps, seeds)
    if key == "full_time":
        seconds = timing(config, FAST, seed)["seconds"]
        config = replace(config, training=replace(config.training, budget="equal_time", seconds=seconds))
    train_method(config, _name(key, seed), progress=False)
    synthesise_conditions(config, _name(key, seed), ["factual", *WRONG.values()], progress=False)


def train_all(profile: str, steps: int | None, seeds: Sequence[int], at_once: int) -> None:
    """Train all rows, ``at_once`` in parallel on one thread each; ``full_time`` last, when its budget is known."""
    options = ["--profile", profile, "--seeds", *map(str, seeds)]
    options += [] if steps is None else ["--steps", str(steps)]
    for keys in ([key for key in ROWS if key != "full_time"], ["full_time"]):
        jobs = {_name(key, seed): ["--job", key, str(seed), *options] for key in keys for seed in seeds}
        run_jobs(Path(__file__).resolve(), jobs, at_once)


# ── comparison ────────────────────────────────────────────────────────────────────────────────────


def by_person(config: Config, seeds: Sequence[int]) -> pd.DataFrame:
    """One row per configuration, seed, tracer and test person: `METRICS`, means over sessions.

    Tracer ``mean`` averages the person's tracers. The SUVR error is the mean absolute error over regions.
    """
    frames = []
    for key in ROWS:
        for seed in seeds:
            name = _name(key, seed)
            scan_scores = scan_metrics(read_scores(config, [name]), regional_suvr(config, name)[0])
            for metric, condition in WRONG.items():
                wrong = read_scores(config, [name], condition)
                wrong = wrong[wrong["region"] == "brain"].set_index(SCAN)["psnr"]
                scan_scores[metric] = scan_scores["psnr_brain"] - wrong
            frames.append(pd.DataFrame(scan_scores).reset_index().assign(configuration=key, seed=seed))
    every, values = pd.concat(frames), list(METRICS)
    means = every.groupby(["configuration", "seed", "tracer", "person"])[values].mean().reset_index()
    both = means.groupby(["configuration", "seed", "person"])[values].mean().reset_index().assign(tracer="mean")
    return pd.concat([means, both], ignore_index=True)


def compare(people: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means over people with intervals, and paired gains over another row with a verdict.

    Intervals are over people and trainings (seeds), see `statistics.interval`. ``by_seed``: gain of each training.

    Returns
    -------
    values : DataFrame
        configuration, tracer, metric, n, value, low, high.
    gains : DataFrame
        configuration, over, tracer, metric, n, gain (positive is better), low, high, by_seed,
        margin, verdict (see `verdict`).
    """
    means, gains = [], []
    for tracer in TRACERS:
        tracer_scores = people[people["tracer"] == tracer]
        for metric, (_, sign, margin) in METRICS.items():
            # rows of all configurations are in the same order of people
            table = tracer_scores.pivot_table(metric, ["configuration", "person"], "seed")
            of = {key: table.loc[key].to_numpy() for key in ROWS}  # (people, trainings)
            same = {"tracer": tracer, "metric": metric, "n": len(of["full"])}
            for key, values in of.items():
                low, high = interval(values.T, seed=seed)
                means.append({"configuration": key} | same | {"value": values.mean(), "low": low, "high": high})
            for key, over in GAINS:
                gain = sign * (of[key] - of[over])
                low, high = interval(gain.T, seed=seed)
                row = {"configuration": key, "over": over} | same | {"gain": gain.mean(), "low": low, "high": high}
                row["by_seed"] = " ".join(f"{each:.4g}" for each in gain.mean(0))
                gains.append(row | {"margin": margin, "verdict": verdict(low, high, margin)})
    return pd.DataFrame(means), pd.DataFrame(gains)


def verdict(low: float, high: float, margin: float) -> str:
    """Verdict on the interval of a gain.

    ``better``: above 0; ``the same``: above minus the margin; ``worse``: below 0 and partly beyond the margin;
    otherwise ``undecided``.
    """
    if low > 0:
        return "better"
    if low > -margin:
        return "the same"
    return "worse" if high < 0 else "undecided"


def costs(config: Config, seeds: Sequence[int]) -> pd.DataFrame:
    """Steps, seconds per step and peak memory of the process of every row; medians over seeds.

    Seconds are the minimum: other work on the machine slows the rest.
    """
    rows = []
    for key, (title, *_) in ROWS.items():
        timings = pd.DataFrame([timing(config, key, seed) for seed in seeds])
        named = {"configuration": key, "title": title}
        named |= timings[["steps", "peak_memory_bytes", "parameters"]].median().to_dict()
        rows.append(named | timings[["seconds", "seconds_per_step"]].min().to_dict())
    frame = pd.DataFrame(rows)
    return frame.assign(faster=frame["seconds_per_step"].iloc[0] / frame["seconds_per_step"])


def _gains(gains: pd.DataFrame, key: str, over: str) -> pd.DataFrame:
    """A comparison's rows, over both tracers, by metric."""
    rows = gains[(gains["configuration"] == key) & (gains["over"] == over) & (gains["tracer"] == "mean")]
    return rows.set_index("metric")


def in_words(cost: pd.DataFrame, gains: pd.DataFrame) -> list[str]:
    """One sentence per comparison: how much faster, and which metrics are better, the same, worse or undecided."""
    lines, cost = [], cost.set_index("configuration")
    for (key, over), title in GAINS.items():
        rows = _gains(gains, key, over)
        words = [word for word in ("better", "the same", "worse", "undecided") if (rows["verdict"] == word).any()]
        named = {
            word: ", ".join(METRICS[metric][0] for metric in rows.index[rows["verdict"] == word]) for word in words
        }
        found = f"{words[0]} throughout" if len(words) == 1 else "; ".join(f"{word} in {named[word]}" for word in words)
        lines.append(
            f"**{title}** against {ROWS[over][0]} ({cost.loc[key, 'faster']:.1f} times as fast a step as full "
            f"resolution; {cost.loc[key, 'steps']:.0f} steps against {cost.loc[over, 'steps']:.0f}): {found}."
        )
    return lines


# ── output ────────────────────────────────────────────────────────────────────────────────────────


def page(
    notice: str, cost: pd.DataFrame, values: pd.DataFrame, gains: pd.DataFrame, device: str, seeds: Sequence[int]
) -> Table:
    """The results: costs by configuration; image quality and gains by metric."""
    steps, n = cost["steps"].iloc[0], values.loc[values["tracer"] == "mean", "n"].iloc[0]
    notes = (
        f"`python benchmarks/ablation.py`: ResDM of the same widths, {steps:.0f} optimiser steps per row, the same "
        f"batches, seeds {', '.join(map(str, seeds))}; one thread per training, on {device}, torch {version('torch')}.",
        f"{n} test people; means over sessions and tracers of each person. In brackets: 95 % bootstrap intervals over "
        "people and trainings. Gains are paired, positive is better. “The same”: the interval stays above minus the "
        "margin.",
        "Peak memory is that of the whole process, imports included; ms a step are those of the fastest training.",
    )
    formats = {"parameters (M)": ("parameters", 1e-6, ".2f"), "steps": ("steps", 1, ".0f"),
               "ms a step": ("seconds_per_step", 1e3, ".0f"), "×": ("faster", 1, ".1f"),
               "peak (GiB)": ("peak_memory_bytes", 2**-30, ".2f")}  # fmt: skip
    costs = {title: [f"{value * unit:{form}}" for value in cost[key]] for title, (key, unit, form) in formats.items()}
    mean = values[values["tracer"] == "mean"].set_index(["configuration", "metric"])
    quality = {
        title: [_interval(mean.loc[key, metric], "value", 4) for metric in METRICS] for key, (title, *_) in ROWS.items()
    }
    gained = {}
    for (key, over), title in GAINS.items():
        rows = _gains(gains, key, over).loc[[*METRICS]].to_dict("records")
        gained[f"{title} over {ROWS[over][0]}"] = [f"{_interval(row, 'gain', 2)}, {row['verdict']}" for row in rows]
    titles, _, margins = zip(*METRICS.values(), strict=True)
    blocks = (
        text_block({"configuration": cost["title"]} | costs, "Cost"),
        text_block({"metric": titles} | quality, "Image quality"),
        text_block({"metric": titles, "margin": [f"{margin:g}" for margin in margins]} | gained, "Gain"),
    )
    frame = pd.concat([values.merge(cost, on="configuration"), gains], ignore_index=True)
    notes += tuple(in_words(cost, gains))
    return Table("ablation", "The speed-ups at equal quality", notice or "ADNI", frame, blocks, notes)


def _interval(row: Mapping[str, float], value: str, digits: int) -> str:
    return f"{row[value]:.{digits}g} [{row['low']:.{digits}g}, {row['high']:.{digits}g}]"


def draw(cost: pd.DataFrame, gains: pd.DataFrame, notice: str, device: str, stem: Path) -> None:
    """Cost of a step, and the gain of every metric with its interval and margin, as ``<stem>.svg`` and ``.png``.

    Panels fit the gains after equal steps; larger values are written at the edge.
    """
    from matplotlib import pyplot

    from resdm_suite.reporting.style import save_figure

    rows = 2
    columns = -(-(1 + len(METRICS)) // rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=(11.0, 4.6), layout="constrained")
    y = np.arange(len(cost))[::-1]
    panel, *panels = axes.flat
    bars = panel.barh(y, cost["seconds_per_step"] * 1e3, 0.6, color="#3B6FA0")
    panel.bar_label(bars, [f"{v:.1f}×" for v in cost["faster"]], fontsize=7, padding=2)
    panel.set_xlim(0, cost["seconds_per_step"].max() * 1.25e3)
    panel.set_title("ms a training step\n", fontsize=8, loc="left")
    panel.set_yticks(y, cost["title"])
    y = np.arange(len(GAINS))[::-1]
    equal_steps = np.array([over != "full_time" for _, over in GAINS])
    for i, (panel, (metric, (title, sign, margin))) in enumerate(zip(panels, METRICS.items(), strict=True), 1):
        comparisons = pd.DataFrame([_gains(gains, *pair).loc[metric] for pair in GAINS])
        gain, low, high = (comparisons[column].to_numpy(float) for column in ("gain", "low", "high"))
        left, right = min(-margin, low[equal_steps].min()), max(margin, high[equal_steps].max())
        left, right = left - 0.08 * (right - left), right + 0.08 * (right - left)
        panel.axvspan(-margin, 0, color="#E6E6E6", zorder=0, linewidth=0)
        panel.axvline(0, color="#8A8A8A", linewidth=0.8)
        inside = (gain >= left) & (gain <= right)
        errors = (gain - low)[inside], (high - gain)[inside]
        panel.errorbar(gain[inside], y[inside], xerr=errors, fmt="o", color="#3B6FA0", markersize=3.5, linewidth=1.2)
        for at, value in zip(y[~inside], gain[~inside], strict=True):
            text, edge, side = (
                (f"{value:+.2g} →", right, "right") if value > right else (f"← {value:+.2g}", left, "left")
            )
            panel.text(edge, at, text, fontsize=7, color="#3B6FA0", ha=side, va="center")
        panel.set_xlim(left, right)
        name, _, unit = title.partition(" (")
        wrapped = ("gain in " if sign > 0 else "less ") + name.replace(" lost to", "\nlost to")
        panel.set_title(wrapped + f" ({unit}" * bool(unit) + "\n" * ("\n" not in wrapped), fontsize=8, loc="left")
        panel.set_yticks(y, GAINS.values() if i == 1 or i % columns == 0 else [""] * len(y))
        panel.set_ylim(-0.6, len(y) - 0.4)
    for panel in axes.flat:
        panel.tick_params(labelsize=7)
        panel.locator_params(axis="x", nbins=4)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Right of 0 is better; grey: the margin; bars: 95 % intervals over people and trainings"
                    f"\n{device}" + (f" · {notice}" if notice else ""), fontsize=8, x=0.01, ha="left")  # fmt: skip
    save_figure(figure, stem, {"device": device, "torch": version("torch")})
    pyplot.close(figure)


def report(
    out: Path, notice: str, cost: pd.DataFrame, values: pd.DataFrame, gains: pd.DataFrame, seeds: Sequence[int]
) -> None:
    """Write ``ablation.{csv,md,png,svg}``."""
    device = device_name("cpu")
    result = page(notice, cost, values, gains, device, seeds)
    write_csv(out / "ablation.csv", result.frame, "%.6g")
    write_text(out / "ablation.md", result.markdown())
    draw(cost, gains, notice, device, out / "ablation")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="phantom")
    parser.add_argument("--steps", type=int, help="a row, rounded to whole epochs (default: the profile's)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=2, help="trainings side by side, a thread each (default: 2)")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.job:
        work(options.profile, options.job[0], options.steps, options.seeds, int(options.job[1]))
        return
    config = derived(options.profile, options.steps, options.seeds)
    train_all(options.profile, options.steps, options.seeds, options.at_once)
    cost = costs(config, options.seeds)
    values, gains = compare(by_person(config, options.seeds), config.seed)
    report(options.out, config.notice, cost, values, gains, options.seeds)
    print("\n".join(in_words(cost, gains)))


if __name__ == "__main__":
    main()
