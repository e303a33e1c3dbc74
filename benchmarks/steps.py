"""Quality against cost of fewer sampling steps: ``python benchmarks/steps.py --profile phantom --steps 15 8 4 2 1``.

A profile's trained ResDM synthesises the people of a split at each number of steps; the last index is always visited.
Volumes are in separate folders below ``work/<profile>/steps``; the profile's predictions and model do not change.
Writes ``steps.{csv,md,png,svg}`` below ``benchmarks/results/``. Existing volumes and their timings are reused; delete
that folder to repeat them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from jobs import SCAN, device_name, scan_metrics

from resdm.io import sha256, write_csv, write_json, write_text
from resdm.settings import TRACERS, ConfigError
from resdm_suite.evaluation import statistics
from resdm_suite.evaluation.image_quality import read_index
from resdm_suite.evaluation.suvr import regional_suvr
from resdm_suite.profiles import MIN_GROUP_SIZE, Config, load_config

HERE = Path(__file__).resolve().parent

METRICS = {
    "psnr": ("PSNR, whole (dB)", "PSNR of the whole volume", 1),
    "psnr_brain": ("PSNR, brain (dB)", "PSNR in the brain", 1),
    "ssim": ("SSIM, whole", "SSIM", 1),
    "mae_brain": ("MAE, brain", "MAE in the brain", -1),
    "suvr_error": ("regional SUVR error", "SUVR error", -1),
    "texture": ("texture, synthetic/real", "texture", 0),
}
"""Metric → title, name in a sentence, and best direction: +1 higher, −1 lower, 0 nearer to 1."""

PANELS = ("psnr_brain", "ssim", "suvr_error", "texture")
"""What is drawn."""

COST = {"seconds_per_session": "s per person", "gflop_per_volume": "GFLOP a volume"}
"""Fields of ``timing.json``: mean time of both PETs over sessions, without the first one, and FLOPs of one PET."""


# ── synthesis ─────────────────────────────────────────────────────────────────────────────────────


def check(source: Config, method: str, split: str, steps: Sequence[int]) -> int:
    """T of a trained method; raises before any work if an input is missing or invalid.

    Raises
    ------
    CheckpointError
        Not trained: names the folder and the remedy.
    ConfigError
        A method without a residual diffusion, or a number of steps outside 1 … T.
    FileNotFoundError, ValueError
        No preprocessed cohort, an empty split, or fewer people than a group mean needs.
    """
    from resdm.checkpoint import load_model
    from resdm.scheduler import ResidualScheduler

    kind, index = source.method(method).kind, read_index(source, split)
    for tracer in TRACERS:
        n = index.loc[index[f"present_{tracer}"].astype(int) == 1, "person"].nunique()
        if 0 < n < MIN_GROUP_SIZE and not source.individual:
            raise ValueError(
                f"{source.volumes / 'index.csv'}: {n} {split} people with {tracer} PET; where single people may not be "
                f"shown (privacy), a mean needs {MIN_GROUP_SIZE} or more: take another --split"
            )
    scheduler = getattr(load_model(source.model(method)), "scheduler", None)
    if not isinstance(scheduler, ResidualScheduler):
        raise ConfigError(f"{method!r} is of kind {kind}, no residual diffusion; take another --method, such as ResDM")
    for n in steps:
        if not 1 <= n <= scheduler.steps:
            raise ConfigError(f"--steps {n}: {method!r} was trained with T = {scheduler.steps}; take 1 to that many")
    return scheduler.steps


def derived(source: Config, method: str, split: str, n: int) -> Config:
    """A profile for one number of steps below ``work/<profile>/steps``, with the volumes and weights of ``source``.

    The model's folder contains links and is not a link itself, since synthesis writes the model card there.
    """
    config = replace(source, profile=f"{source.profile}/steps/{method}-{split}-{n}")
    links = {config.volumes: source.volumes}
    links |= {config.model(method) / f: source.model(method) / f for f in ("config.yaml", "model.safetensors")}
    for link, target in links.items():
        if link.resolve() != target.resolve():  # missing, or the work folder was moved
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(target.resolve())
    return config


def synthesise(config: Config, method: str, split: str, n: int) -> dict[str, Any]:
    """Make and score missing volumes; returns ``steps``, `COST`, and the ``machine`` of the measurement."""
    import torch

    from resdm_suite.apps.synthesis import split_folder, synthesise_method

    folder, where = config.predictions(method, split_folder("factual", split)), config.work / "machine.json"
    timing = folder / "timing.json"
    before = sha256(timing) if timing.is_file() else None
    synthesise_method(config, method, split=split, steps=n, progress=False)
    if not timing.is_file():
        raise FileNotFoundError(f"{timing}: the cost of these volumes is unknown; delete {config.work}, run again")
    cost = json.loads(timing.read_text(encoding="utf-8"))
    if sha256(timing) != before or not where.is_file():
        parts = [device_name(cost["device"]), f"threads: {torch.get_num_threads()}", f"torch {version('torch')}"]
        write_json(where, {"machine": ", ".join(parts)})
    return {"steps": n} | {key: cost[key] for key in COST} | json.loads(where.read_text(encoding="utf-8"))


# ── comparison ────────────────────────────────────────────────────────────────────────────────────


def by_person(config: Config, method: str, split: str) -> pd.DataFrame:
    """One row per tracer and person: `METRICS`, means over sessions; SUVR error is the mean over regions."""
    from resdm_suite.apps.synthesis import split_folder

    folder = split_folder("factual", split)
    scores = pd.read_csv(config.predictions(method, folder) / "scores.csv", dtype={"person": str, "session": str})
    regional, textures = regional_suvr(config, method, read_index(config, split), folder)
    sessions = scan_metrics(scores, regional) | {"texture": textures.set_index(SCAN)["texture"]}
    return statistics.by_person(pd.DataFrame(sessions).reset_index(), METRICS)


def compare_steps(people: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means over people, paired differences to the most steps, and which number of steps is best.

    Parameters
    ----------
    people : DataFrame
        Rows of `by_person`, with ``steps``.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    table : DataFrame
        One row per number of steps and tracer: n (people), the mean of each metric with ``_low`` and ``_high``, and its
        ``_difference`` to the most steps over the same people with ``_difference_low`` and ``_difference_high``.
    best : DataFrame
        One row per tracer and metric: ``steps`` with the best mean; ``level``, the numbers of steps whose paired
        difference to it has an interval that contains 0. The best texture is nearest to 1, person by person.
    """
    rows, best = [], []
    for tracer in [tracer for tracer in TRACERS if tracer in set(people["tracer"])]:
        wide = people[people["tracer"] == tracer].pivot_table(list(METRICS), "person", "steps")
        steps = sorted(set(people["steps"]), reverse=True)
        for n in steps:
            row = {"steps": n, "tracer": tracer, "n": len(wide)}
            for metric in METRICS:
                values = wide[metric, n].to_numpy()
                row |= _interval(metric, values.mean(), *statistics.interval(values, seed=seed))
                found = statistics.paired_test(values, wide[metric, steps[0]].to_numpy(), seed=seed)
                row |= _interval(f"{metric}_difference", found.difference, found.low, found.high)
            rows.append(row)
        for metric, (*_, sign) in METRICS.items():
            good = {n: sign * wide[metric, n] if sign else -(wide[metric, n] - 1).abs() for n in steps}
            first = max(steps, key=lambda n: good[n].mean())
            ahead = {n: statistics.paired_test(good[first], good[n], seed=seed).low for n in steps if n != first}
            level = [n for n, low in ahead.items() if not low > 0]
            best.append({"tracer": tracer, "metric": metric, "steps": first, "level": level})
    return pd.DataFrame(rows), pd.DataFrame(best)


def _interval(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def in_words(table: pd.DataFrame, best: pd.DataFrame) -> list[str]:
    """One sentence per tracer on the best number of steps by metric, and one on the cost of the most steps."""
    lines = []
    for tracer, part in best.groupby("tracer", sort=False):
        sentences = []
        for n, rows in part.groupby("steps"):
            level = {row.metric: f" ({_and(row.level)} level)" if row.level else "" for row in rows.itertuples()}
            sentences.append(f"{_steps(n)} by {_and([METRICS[metric][1] + text for metric, text in level.items()])}")
        lines.append(f"- **{tracer}**: best is {'; '.join(sentences)}.")
    cost = table.drop_duplicates("steps").set_index("steps")
    if len(cost) > 1:
        most, least = cost.loc[cost.index.max()], cost.loc[cost.index.min()]
        time, work = (most[key] / least[key] for key in COST)
        lines.append(
            f"- {_steps(most.name)} take {time:.1f} times as long as {_steps(least.name)} "
            f"({most['seconds_per_session']:.2g} against {least['seconds_per_session']:.2g} s per person), and "
            f"{work:.1f} times the work."
        )
    return lines


def _steps(n: int) -> str:
    return f"{n} step{'s' if n > 1 else ''}"


def _and(items: Sequence[Any]) -> str:
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


# ── output ────────────────────────────────────────────────────────────────────────────────────────


def markdown(
    source: Config, method: str, split: str, total: int, table: pd.DataFrame, best: pd.DataFrame, machine: str
) -> str:
    """The results as a page."""
    profile_steps = getattr(source.method(method), "sampling_steps", None)
    chosen = " uses all T steps"
    if profile_steps:
        chosen = f"'s number of steps, {profile_steps}, was chosen on validation people"
        chosen += ", not by this page" if split != "validation" else ""
    titles = " | ".join(title for title, *_ in METRICS.values())
    columns = "|--:|---|--:|" + "---|" * len(METRICS)
    lines = [
        "# Fewer sampling steps",
        "",
        f"{source.notice or 'ADNI'}. `python benchmarks/steps.py`: {method} of profile `{source.profile}`, trained "
        f"with T = {total}, on its {split} people, by the number of sampling steps; on {machine}. Means over people "
        "of the mean over sessions; in brackets, 95 % bootstrap intervals over people. Seconds are for both PETs of "
        "one person, GFLOP for one PET. SUVR error: mean absolute error over regions. Texture: gradient energy of "
        f"synthetic over real PET; 1 is as sharp as real, lower is smoother. The profile{chosen}.",
        "",
        f"| steps | tracer | people | {titles} | {' | '.join(COST.values())} |",
        f"{columns}--:|--:|",
    ]
    for row in table.to_dict("records"):
        cells = [f"{row[m]:#.4g} [{row[f'{m}_low']:#.4g}, {row[f'{m}_high']:#.4g}]" for m in METRICS]
        cells += [f"{row[key]:.3g}" for key in COST]
        lines.append(f"| {row['steps']} | {row['tracer']} | {row['n']} | {' | '.join(cells)} |")
    most = table["steps"].max()
    fewer = table[table["steps"] != most].to_dict("records")
    if fewer:
        lines += ["", f"Differences to {_steps(most)}, paired over people:", ""]
        lines += [f"| steps | tracer | people | {titles} |", columns]
    for row in fewer:
        differences = [[row[f"{m}_difference{end}"] for end in ("", "_low", "_high")] for m in METRICS]
        cells = [f"{value:+#.2g} [{low:+#.2g}, {high:+#.2g}]" for value, low, high in differences]
        lines.append(f"| {row['steps']} | {row['tracer']} | {row['n']} | {' | '.join(cells)} |")
    level = "“Level”: the interval of the paired difference to the best contains 0. Best texture: nearest to 1."
    return "\n".join([*lines, "", *in_words(table, best), "", level]) + "\n"


def draw(title: str, table: pd.DataFrame, profile_steps: int, stem: Path) -> None:
    """One panel per metric, one line per tracer: quality over seconds per person, as ``<stem>.svg`` and ``.png``.

    Points are labelled with the number of steps; a ring marks the ``profile_steps``; bars are intervals.
    """
    from matplotlib import pyplot
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from resdm_suite.reporting.qc import TRACER_COLOURS
    from resdm_suite.reporting.style import TRACER_TITLES, save_figure

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(11.0, 2.9), layout="constrained")
    for panel, metric in zip(axes, PANELS, strict=True):
        name, _, sign = METRICS[metric]
        if not sign:
            panel.axhline(1, color="#8A8A8A", linewidth=0.8, zorder=0)
        at = table.groupby("steps")
        middle = at[metric].mean()
        ends = {-1: at[f"{metric}_low"].min().fillna(middle), 1: at[f"{metric}_high"].max().fillna(middle)}
        for side, (tracer, part) in zip((0.98, 1.02), table.groupby("tracer", sort=False), strict=False):
            x, y, colour = part["seconds_per_session"] * side, part[metric], TRACER_COLOURS[tracer]  # bars side by side
            bars = (y - part[f"{metric}_low"], part[f"{metric}_high"] - y)
            panel.errorbar(x, y, yerr=bars, fmt="o-", color=colour, markersize=3.5, linewidth=1.2, elinewidth=0.9,
                           label=TRACER_TITLES[tracer])  # fmt: skip
            ring = part["steps"] == profile_steps
            panel.plot(x[ring], y[ring], "o", color=colour, markersize=8, markerfacecolor="none", markeredgewidth=0.9)
            for n, x_n, y_n in zip(part["steps"], x, y, strict=True):
                up = 1 if y_n >= middle[n] else -1  # the upper line's numbers above, the lower's below
                panel.annotate(n, (x_n, ends[up][n]), xytext=(0, 3 * up), textcoords="offset points", fontsize=7,
                               color=colour, ha="center", va="bottom" if up > 0 else "top",
                               path_effects=[withStroke(linewidth=2, foreground="white")])  # fmt: skip
        panel.set_xscale("log")
        panel.margins(x=0.1, y=0.16)
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        how = {1: "higher is better", -1: "lower is better", 0: "1: as sharp as real"}[sign]
        panel.set_title(f"{name}\n{how}", fontsize=8, loc="left")
        panel.tick_params(labelsize=7)
        panel.locator_params(axis="y", nbins=5)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper right", ncols=2, fontsize=8, frameon=False)
    figure.supxlabel("seconds a person, both PETs (logarithmic)", fontsize=8)
    figure.suptitle(title, fontsize=8, x=0.01, ha="left")
    save_figure(figure, stem, {"title": title})
    pyplot.close(figure)


def report(
    out: Path, source: Config, method: str, split: str, total: int, people: pd.DataFrame, costs: pd.DataFrame
) -> list[str]:
    """Write ``steps.{csv,md,png,svg}`` from rows of `by_person`, with ``steps``, and of `synthesise`; ``total`` is T.

    Returns the sentences.
    """
    table, best = compare_steps(people, source.seed)
    table = table.merge(costs, on="steps")
    machine = "; ".join(dict.fromkeys(costs["machine"]))
    profile_steps = getattr(source.method(method), "sampling_steps", None) or total
    ring = "; ring: the profile's own" if profile_steps in set(costs["steps"]) else ""
    title = f"{method} by the number of sampling steps, written at each point{ring}; bars: 95 % intervals over {split} "
    title += "people\n" + " · ".join(filter(None, [machine, source.notice]))
    write_csv(out / "steps.csv", table, "%.6g")
    write_text(out / "steps.md", markdown(source, method, split, total, table, best, machine))
    draw(title, table, profile_steps, out / "steps")
    return in_words(table, best)


def main(arguments: Sequence[str] | None = None) -> None:
    """Synthesise, compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="phantom")
    parser.add_argument("--method", default="ResDM")
    parser.add_argument("--steps", type=int, nargs="+", default=[15, 8, 4, 2, 1])
    parser.add_argument("--split", choices=["train", "validation", "test"], default="test")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    source, method, split = load_config(options.profile), options.method, options.split
    total = check(source, method, split, options.steps)
    people, costs = [], []
    for n in sorted(set(options.steps), reverse=True):
        config = derived(source, method, split, n)
        costs.append(synthesise(config, method, split, n))
        print(f"{_steps(n)}: {costs[-1]['seconds_per_session']:.3g} s per person", file=sys.stderr, flush=True)
        people.append(by_person(config, method, split).assign(steps=n))
    print("\n".join(report(options.out, source, method, split, total, pd.concat(people), pd.DataFrame(costs))))


if __name__ == "__main__":
    main()
