"""How many people does it take? ``make curve``, or ``python benchmarks/curve.py --profile smoke --sizes 5``.

Trains ResDM, its regression and the linear model of a profile on parts of its training people, and scores the unchanged
test people. Parts are drawn by seed over people; for one seed a smaller part lies within the larger ones. Settings are
the profile's. Every part gets the optimiser steps of everyone, to the nearest whole epoch, so that less data is not
less training. Weights are chosen on the unchanged validation people, at six points of a training if it has as many
epochs. A stopped run continues, from ``work/curve-…``, where the scores of single people stay. Writes
``curve.{csv,md,png,svg}`` below ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from jobs import device_name, link_volumes, run_jobs

from resdm.io import stored_json, write_csv, write_text
from resdm.settings import TRACERS, derive_seed
from resdm.timing import about
from resdm_suite.evaluation.classification import auc
from resdm_suite.evaluation.downstream import status_of_test_people
from resdm_suite.evaluation.image_quality import read_index, read_scores, score_people
from resdm_suite.evaluation.statistics import percentile_interval, person_draws, training_resamples
from resdm_suite.evaluation.stored import SESSION
from resdm_suite.evaluation.suvr import summary_suvr
from resdm_suite.profiles import Config, load_config
from resdm_suite.reporting import style
from resdm_suite.reporting.tables import TRACER_NAMES, Table, pivot, with_interval

HERE = Path(__file__).resolve().parent

METHODS = ("ResDM", "regression", "linear")
REFERENCE = "linear"
METRICS = {"psnr": "PSNR in the brain (dB)", "auc": "AUC of status (%)"}
LINES = {"template": "mean PET of all training people", "ceiling": "ceiling"}


# ── parts of the training people ──────────────────────────────────────────────────────────────────


def chosen(people: Sequence[str], size: int, seed: int) -> list[str]:
    """The first ``size`` people of an order drawn by seed: a smaller part lies within a larger one."""
    names = sorted(set(people))
    return [names[i] for i in np.random.default_rng(derive_seed(seed, "curve")).permutation(len(names))[:size]]


def derived(source: Config, size: int, seed: int) -> Config:
    """A profile ``curve-…`` with ``size`` of the training people of ``source``, and ResDM's steps of everyone.

    Raises
    ------
    ValueError
        Fewer training people than ``size``: names the file and the remedy.
    """
    index = read_index(source, None)
    train = index[index["split"] == "train"]
    everyone = train["person"].nunique()
    if not 1 < size <= everyone:
        path = source.volumes / "index.csv"
        raise ValueError(f"{path}: {everyone} training people; --sizes {size} must be 2 to that many")
    keep = (index["split"] != "train") | index["person"].isin(chosen(train["person"], size, seed))
    batch = source.method("ResDM").batch_size or source.training.batch_size
    steps = source.training.epochs * max(1, len(train) // batch)
    epochs = max(1, round(steps / max(1, int(keep[train.index].sum()) // batch)))
    run = replace(source.training, budget="equal_epochs", epochs=epochs, validate_every=max(1, epochs // 6))
    methods = {name: replace(source.method(name), seed=seed) for name in METHODS}
    config = replace(source, profile=f"curve-{source.profile}-{size}-seed{seed}", training=run, methods=methods)
    link_volumes(source, config, index["split"].where(keep, "").tolist())
    return config


def work(source: Config, size: int, seed: int) -> None:
    """Train the methods on a part, synthesise the test people and score them, in a separate process."""
    from resdm_suite.apps.synthesis import synthesise_method
    from resdm_suite.apps.training import train_method

    config = derived(source, size, seed)
    for name in METHODS:
        train_method(config, name, progress=False)
        if not (config.predictions(name) / "scores.csv").is_file():
            synthesise_method(config, name, progress=False)


def forecast(source: Config, sizes: Sequence[int], seeds: Sequence[int], at_once: int) -> str:
    """What remains to be trained, and the time of its steps and validations on this machine."""
    from resdm.cpu_runtime import set_up
    from resdm_suite.apps.cost import method_seconds, training_steps

    set_up(source.training)
    held_out = [len(read_index(source, split)) for split in ("validation", "test")]
    todo, seconds = 0, 0.0
    costs = {name: method_seconds(source, name) for name in METHODS if name != REFERENCE}
    for config in (derived(source, size, seed) for size in sizes for seed in seeds):
        run, sessions = config.training, len(read_index(config, "train"))
        for name, (step, volume) in costs.items():
            if not (config.model(name) / "model.safetensors").is_file():
                todo += 1
                volumes = -(-run.epochs // run.validate_every) * held_out[0] + held_out[1]
                seconds += training_steps(config, name, sessions) * step + volumes * volume
    return f"{todo} trainings of a network: about {about(seconds / at_once)}; starts and scores come in addition"


# ── comparison ────────────────────────────────────────────────────────────────────────────────────


def measured(config: Config, method: str) -> pd.DataFrame:
    """Test sessions of a method: person, session, tracer, psnr (brain, dB), suvr and real (SUVR, cortical summary)."""
    scores = score_people(config, method) if method == "template" else read_scores(config, [method])
    scores = scores.loc[scores["region"] == "brain", [*SESSION, "tracer", "psnr"]]
    summary = summary_suvr(config, method, read_index(config)).rename(columns={"synthetic": "suvr"})
    return scores.merge(summary, validate="one_to_one")


def collect(source: Config, sizes: Sequence[int], seeds: Sequence[int]) -> pd.DataFrame:
    """`measured` of every training (``size``, ``seed``), of the template and of a stored ceiling, with the ``label``.

    The label is the planted status of phantoms, else that of the cut-off; NaN where unknown.
    """
    parts = [
        measured(derived(source, size, seed), name).assign(size=size, seed=seed)
        for size in sizes for seed in seeds for name in METHODS
    ]  # fmt: skip
    stored = {"template", *(["ceiling"] if (source.predictions("ceiling") / "scores.csv").is_file() else [])}
    parts += [measured(source, name).assign(size=0, seed=0) for name in LINES if name in stored]
    status = status_of_test_people(source)
    return pd.concat(parts, ignore_index=True).merge(status, how="left", validate="many_to_one")


def compare(sessions: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Both metrics of every size and method, and the gain over the linear model of the same people and seed.

    Parameters
    ----------
    sessions : DataFrame
        Rows of `collect`.
    seed : int
        Of the bootstrap over people and trainings. A training stands for its part and its seed, so those of two
        methods are drawn together.

    Returns
    -------
    DataFrame
        size (0: a line), method, tracer, metric, n (people), trainings, value, low, high, gain, gain_low, gain_high.
    """
    return pd.DataFrame([
        {"tracer": tracer, "metric": metric} | row
        for tracer in TRACERS for metric in METRICS
        for row in _rows(sessions[sessions["tracer"] == tracer], metric, seed)
    ])  # fmt: skip


def _rows(sessions: pd.DataFrame, metric: str, seed: int) -> Iterator[dict]:
    rows = sessions if metric == "psnr" else sessions.dropna(subset=["label"])
    for size, part in rows.groupby("size"):
        column = "psnr" if metric == "psnr" else "suvr"
        wide = part.pivot_table(column, SESSION, ["method", "seed"])  # sessions in one order
        people = wide.index.get_level_values("person")
        label = part.groupby(SESSION)["label"].first().loc[wide.index].to_numpy()
        weights, draws = person_draws(people, seed=seed)
        values = {
            name: [_statistic(metric, wide[name].to_numpy().T, label, one) for one in (weights, draws)]
            for name in dict.fromkeys((*METHODS, *LINES)) if name in wide
        }  # fmt: skip
        for name, (value, drawn) in values.items():
            shares = training_resamples(len(value), seed=[seed, 1])
            row = {"size": size, "method": name, "n": people.nunique(), "trainings": len(value)}
            row |= _with_ends("value", "low", "high", value, drawn, shares)
            if name != REFERENCE and REFERENCE in values:
                gains = [a - b for a, b in zip(values[name], values[REFERENCE], strict=True)]
                row |= _with_ends("gain", "gain_low", "gain_high", *gains, shares)
            yield row


def _statistic(metric: str, values: np.ndarray, label: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of each training of ``values`` (trainings, sessions), at weights (…, sessions): (trainings, …)."""
    if metric == "auc":
        return np.array([100 * auc(label, row, weights) for row in values])
    return np.moveaxis(weights @ values.T / weights.sum(-1)[..., None], -1, 0)


def _with_ends(name: str, low: str, high: str, value: np.ndarray, drawn: np.ndarray, shares: np.ndarray) -> dict:
    """Mean over trainings, and its interval over resampled people (trainings, repeats) and trainings."""
    return {name: value.mean(), **dict(zip((low, high), percentile_interval((drawn * shares.T).sum(0)), strict=True))}


def fewest_people(table: pd.DataFrame) -> pd.DataFrame:
    """From which size on each network is above the linear model: tracer, metric, method, average, interval.

    ``average``: by its mean; ``interval``: with an interval above 0. Sizes as text; ``none``: not even at the largest.
    """
    rows = []
    gains = table[table["gain"].notna()].sort_values("size", kind="stable")
    for key, part in gains.groupby(["tracer", "metric", "method"], sort=False):
        row = dict(zip(("tracer", "metric", "method"), key, strict=True))
        for kind, bound in (("average", "gain"), ("interval", "gain_low")):
            from_here_on = part.loc[(part[bound] > 0)[::-1].cummin()[::-1], "size"]
            row[kind] = str(from_here_on.iloc[0]) if len(from_here_on) else "none"
        rows.append(row)
    return pd.DataFrame(rows)


# ── output ────────────────────────────────────────────────────────────────────────────────────────


def page(source: Config, table: pd.DataFrame, machine: str, steps: tuple[int, int]) -> Table:
    """The results; ``steps`` are the fewest and the most of a training."""
    parts, fewest = table[table["size"] > 0], fewest_people(table)
    cells = {"{}: on average": "average", "{}: interval above 0": "interval"}
    title = f"Fewest training people from which a network is better than {REFERENCE}"
    fewest = fewest.assign(metric=fewest["metric"].str.upper())
    blocks = [pivot(fewest, "method", ["tracer", "metric"], cells, title=title)]
    for metric, title in METRICS.items():
        shown = parts[parts["metric"] == metric].assign(
            people=lambda frame: frame["size"].astype(str) + " people",
            text=lambda frame: [with_interval(*row) for row in frame[["value", "low", "high"]].to_numpy()],
            over=lambda frame: [with_interval(*row) for row in frame[["gain", "gain_low", "gain_high"]].to_numpy()],
        )
        names = TRACER_NAMES | {name: f"{name} − {REFERENCE}" for name in METHODS}
        networks = shown[shown["method"] != REFERENCE]
        columns = ["tracer", "people"]
        blocks.append(pivot(shown, "method", columns, {"{}": "text"}, title=title))
        blocks.append(pivot(networks, "method", columns, {"{}": "over"}, title=f"Gain: {title}", names=names))
    lines = table[table["size"] == 0].groupby(["method", "metric"], sort=False)["value"]
    values = {key: " / ".join(f"{value:.1f}" for value in part) for key, part in lines}
    known = [
        f"{text} {values[name, 'psnr']} dB, {values[name, 'auc']} %"
        for name, text in LINES.items()
        if (name, "psnr") in values
    ]
    trainings = parts["trainings"].max()
    notes = (
        f"`make curve`, on {machine}, torch {version('torch')}. Test people: {table['n'].max()} at most. In brackets: "
        f"95 % bootstrap intervals over people and {trainings} trainings. Each training has a part of its own, drawn "
        "by seed over people; its smaller parts lie within it. Everyone: the parts are equal, the seeds differ.",
        f"Settings are the profile's. {steps[0]} to {steps[1]} optimiser steps of a network at every size (whole "
        "epochs). Validation people are the same at every size; a study of 25 people would have fewer.",
        "Status: "
        + ("planted" if source.cohort.kind == "phantom" else "by the cut-off")
        + "; its score is the cortical summary SUVR of the synthetic PET.",
        f"For comparison, {' / '.join(TRACER_NAMES.values())}, PSNR and AUC: {'; '.join(known)}.",
    )
    return Table("curve", "How many training people does it take?", source.notice, table, tuple(blocks), notes)


@style.style()
def draw(source: Config, table: pd.DataFrame, machine: str, stem: Path) -> None:
    """Both metrics of both tracers against the number of training people, as ``<stem>.svg`` and ``.png``."""
    detail = f"Test people; bars: 95 % intervals over people and trainings. {machine}."
    figure = style.paper_figure(4.9, "Quality by number of training people", source.notice, detail)
    axes, looks = figure.subplots(len(METRICS), len(TRACERS), sharex=True), style.method_styles([*METHODS, *LINES])
    sizes = sorted(set(table["size"]) - {0})
    for row, (metric, title) in zip(axes, METRICS.items(), strict=True):
        for axis, tracer in zip(row, TRACERS, strict=True):
            shown = table[(table["metric"] == metric) & (table["tracer"] == tracer)].set_index("method")
            for place, name in enumerate(METHODS):
                part, (colour, marker) = shown.loc[[name]].sort_values("size"), looks[name]
                bars = part["value"] - part["low"], part["high"] - part["value"]
                axis.errorbar(part["size"] * 1.03 ** (place - 1), part["value"], yerr=bars, color=colour, marker=marker,
                              markersize=3.5, linewidth=1.1, elinewidth=0.8, label=name)  # fmt: skip
            for name in (name for name in LINES if name in shown.index):
                axis.axhline(shown.loc[name, "value"], color=looks[name][0], dashes=(4, 2), label=LINES[name])
            axis.set_xscale("log")
            axis.set_xticks(sizes, [str(size) for size in sizes])
            axis.minorticks_off()
            axis.set_title(f"{TRACER_NAMES[tracer]}: {title}", loc="left")
    for axis in axes[-1]:
        axis.set_xlabel("training people (logarithmic)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(looks))
    style.save_figure(figure, stem, {"device": machine, "torch": version("torch")})


def report(source: Config, sessions: pd.DataFrame, out: Path, steps: tuple[int, int]) -> Table:
    """Write ``curve.{csv,md,png,svg}``."""
    machine, table = device_name("cpu"), compare(sessions, source.seed)
    write_csv(out / "curve.csv", table, "%.6g")
    result = page(source, table, machine, steps)
    write_text(out / "curve.md", result.markdown())
    draw(source, table, machine, out / "curve")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, compare, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="phantom")
    parser.add_argument("--sizes", type=int, nargs="+", default=[25, 50, 100], help="everyone comes in addition")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=2, help="trainings side by side, a thread each (default: 2)")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--job", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    source = load_config(options.profile)
    if options.job:
        work(source, *options.job)
        return
    everyone = read_index(source, "train")["person"].nunique()
    sizes = [*sorted({size for size in options.sizes if size != everyone}), everyone]
    print(forecast(source, sizes, options.seeds, options.at_once), file=sys.stderr, flush=True)
    pairs = [(size, seed) for seed in options.seeds for size in sizes[::-1]]
    jobs = {f"{n} people, seed {seed}": ["--profile", options.profile, "--job", str(n), str(seed)] for n, seed in pairs}
    run_jobs(Path(__file__).resolve(), jobs, options.at_once)
    done = [stored_json(derived(source, *pair).model("ResDM") / "timing.json")["steps"] for pair in pairs]
    result = report(source, collect(source, sizes, options.seeds), options.out, (min(done), max(done)))
    print(fewest_people(result.frame).to_string(index=False))


if __name__ == "__main__":
    main()
