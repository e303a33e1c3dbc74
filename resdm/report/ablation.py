"""Table 3: what the intra-domain loss and the prior information add, variant by variant.

The variants are methods of the profile, trained and synthesised like any other. ``X@seed1`` is variant ``X`` under
another seed: a person's scores are then averaged over the seeds, and the spread between seeds is told apart from the
spread between people.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resdm.config import TRACERS, Config
from resdm.evaluation.image_quality import HIGHER_IS_BETTER, METRICS, REGIONS, check_people, read_scores
from resdm.evaluation.statistics import bootstrap_mean, compare, holm
from resdm.report.tables import (
    METRIC_NAMES,
    METRIC_SCALES,
    METRIC_UNITS,
    REFERENCE_METHOD,
    REGION_TITLES,
    TRACER_NAMES,
    VARIANTS,
    Block,
    Table,
    number,
    p_value,
    quality,
    read_paper,
    span,
)

BASE = "Base"
"""The variant with neither part: tracer-only prompt, λ = 0."""

_COMPARISON = ("difference", "difference_low", "difference_high", "rank_biserial", "p")
_KEYS = ["method", "tracer", "region", "metric"]


def seeds_of(config: Config, method: str, condition: str = "factual") -> list[str]:
    """A method and its repetitions under other seeds, ``X``, ``X@seed1``, …, that have stored scores."""
    names = [name for name in config.methods if name.partition("@")[0] == method]
    return [name for name in names if (config.predictions(name, condition) / "scores.csv").is_file()]


def present_variants(config: Config) -> list[str]:
    """Rows of Table 3 that have stored scores, in the paper's order."""
    return [name for name in VARIANTS if seeds_of(config, name)]


def table3(config: Config) -> Table:
    """Image quality and status classification of every variant, beside the paper's printed values.

    Parameters
    ----------
    config : Config
        Read are ``scores.csv`` of the variants and their seeds, and ``evaluation/status.csv`` where it is.

    Returns
    -------
    Table
        Frame: one row a variant, tracer, region and metric. Columns: method, tracer, region (``whole``, ``brain``, or
        ``status`` for the metric ``acc``), metric, unit, mean, std (over people; of ``acc`` over the folds), n
        (people), sessions, paper, paper_std, ci_low, ci_high (bootstrap over people), seeds (trainings averaged),
        seed_std (standard deviation of the mean between them; empty for one), then two comparisons over people, each
        with difference, difference_low, difference_high, rank_biserial and p (Holm over the rows of the column):
        ``base_…`` is the variant − Base, ``full_…`` the variant − ResDM.

    Raises
    ------
    FileNotFoundError
        No variant has stored scores.
    ValueError
        Variants or seeds that were not scored on the same people.
    """
    repeats = {name: seeds_of(config, name) for name in present_variants(config)}
    names = list(repeats)
    if not names:
        raise FileNotFoundError(
            f"{config.work / 'predictions'}: no variant of Table 3 ({', '.join(VARIANTS)}) has scores.csv; train and "
            "synthesise them first"
        )
    scores = read_scores(config, [seed for seeds in repeats.values() for seed in seeds])
    paper = read_paper(3, config.root).assign(method=lambda t: t["variant"].map({v: k for k, v in VARIANTS.items()}))
    status = config.evaluation_folder / "status.csv"
    frame = ablation(scores, names, seed=config.seed, paper=paper)
    readings = read_status(status) if status.is_file() else None
    if readings is not None:
        check_people(readings, config, status)
    accuracy = _accuracy(readings, repeats, config.seed, paper)
    frame = pd.concat([frame, accuracy], ignore_index=True)
    frame["sessions"], frame["seeds"] = frame["sessions"].astype("Int64"), frame["seeds"].astype("Int64")
    blocks = [*(_block(frame, region, METRICS, names) for region in REGIONS)]
    if status.is_file():
        blocks.append(_block(frame, "status", ("acc",), names))
    return Table(
        name="table3",
        title="Table 3: Ablation of the residual diffusion model",
        notice=config.notice,
        frame=frame,
        blocks=tuple(blocks),
        notes=_notes(frame, names, repeats, status),
    )


def ablation(
    scores: pd.DataFrame, variants: Sequence[str], *, seed: int, paper: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The image quality of Table 3 from stored scores.

    Parameters
    ----------
    scores : DataFrame
        Rows of ``scores.csv`` with ``method``: a variant, or a variant, ``@`` and a name of the seed.
    variants : sequence of str
        Row order.
    seed : int
        Of the bootstrap.
    paper : DataFrame, optional
        Printed values: method, tracer, metric, mean, std.

    Returns
    -------
    DataFrame
        See `table3`; MAE and SSIM in %, PSNR in dB.
    """
    named = scores.assign(variant=scores["method"].str.partition("@")[0])
    keys = ["variant", "person", "session", "tracer", "region"]
    trainings = named.groupby("variant")["method"].nunique()
    scored = named.groupby(keys)["method"].nunique()
    uneven = scored[scored != scored.index.get_level_values("variant").map(trainings)]
    if len(uneven):
        variant, person, session, *_ = uneven.index[0]
        raise ValueError(
            f"{variant!r}: its seeds were not scored on the same people ({person} {session} has {uneven.iloc[0]} of "
            f"{trainings[variant]}); synthesise and score them again"
        )
    mean = named.groupby(keys, sort=False)[list(METRICS)].mean().reset_index().rename(columns={"variant": "method"})
    mean = mean.sort_values("method", key=lambda column: column.map(list(variants).index), kind="stable")

    frame = quality(mean, seed=seed, paper=paper, reference=BASE)
    full = quality(mean, seed=seed, reference=REFERENCE_METHOD)
    frame = frame.rename(columns={key: f"base_{key}" for key in _COMPARISON})
    frame = frame.merge(full[[*_KEYS, *_COMPARISON]].rename(columns={key: f"full_{key}" for key in _COMPARISON}))

    people = named.groupby(["variant", "method", "tracer", "region", "person"])[list(METRICS)].mean()
    between = people.groupby(["variant", "method", "tracer", "region"]).mean() * pd.Series(METRIC_SCALES)
    between = between.groupby(["variant", "tracer", "region"]).std(ddof=1)  # NaN of one seed
    at = frame.columns.get_loc("ci_high") + 1
    frame.insert(at, "seeds", frame["method"].map(trainings))
    places = frame[["method", "tracer", "region", "metric"]].itertuples(index=False, name=None)
    frame.insert(at + 1, "seed_std", [between.loc[place[:3], place[3]] for place in places])
    return frame


def departures(config: Config) -> Table:
    """What each departure of the released code costs: its network, and the same with one fault left out at a time.

    Parameters
    ----------
    config : Config
        A profile with methods of kind ``released``; the first is the reference, with every fault.

    Returns
    -------
    Table
        Frame: columns of Table 2 without costs and paper; ``difference`` is the row − the reference.

    Raises
    ------
    ValueError
        The profile has no such method.
    """
    names = [name for name, method in config.methods.items() if method.kind == "released"]
    if not names:
        raise ValueError(f"profile {config.profile!r} has no method of kind released; configs/released.yaml has")
    frame = quality(read_scores(config, names), seed=config.seed, reference=names[0])
    frame = frame.drop(columns=["paper", "paper_std"])
    return Table(
        name="departures",
        title="What each departure of the released code costs",
        notice=config.notice,
        frame=frame,
        blocks=tuple(_departures(frame, region, names) for region in REGIONS),
        notes=(
            f"{names[0]}: the network of the released code, fault for fault; every other row leaves out what its name "
            "says, and differs in nothing else. Mean ± standard deviation over test people "
            f"(n = {span(frame['n'])}); below it the "
            "difference to the first row with its 95 % interval, and p, Wilcoxon signed-rank, Holm over the column.",
            "One training a row: a difference may be one between two seeds.",
        ),
    )


def _departures(frame: pd.DataFrame, region: str, names: Sequence[str]) -> Block:
    part = frame[frame["region"] == region].set_index(["method", "tracer", "metric"])
    heads = [(tracer, metric) for tracer in TRACERS for metric in METRICS if (names[0], tracer, metric) in part.index]
    columns = [("", "Network"), *((TRACER_NAMES[t], f"{METRIC_NAMES[m]} ({METRIC_UNITS[m]})") for t, m in heads)]
    rows = []
    for name in names:
        cells: list[Any] = [name]
        for head in heads:
            values = part.loc[(name, *head)]
            low, high = number(values["difference_low"], 2), number(values["difference_high"], 2)
            lines = [f"{number(values['mean'], 2)} ± {number(values['std'], 2)}"]
            if name != names[0]:
                lines += [f"{number(values['difference'], 2)} [{low}, {high}]", p_value(values["p"])]
            cells.append(tuple(lines))
        rows.append(tuple(cells))
    return Block(REGION_TITLES[region], tuple(columns), tuple(rows))


# ── status classification ─────────────────────────────────────────────────────────────────────────


def read_status(path: str | Path) -> pd.DataFrame:
    """``evaluation/status.csv``, target ``label``: fold, source, person, session, tracer, label, score, threshold.

    Raises
    ------
    ValueError
        Columns that are missing: names the file.
    """
    frame = pd.read_csv(path, dtype={"person": str, "session": str, "source": str})
    needed = ("fold", "target", "source", "person", "session", "tracer", "label", "score", "threshold")
    missing = [column for column in needed if column not in frame]
    if missing:
        raise ValueError(f"{path}: columns missing: {', '.join(missing)}; run the status classification again")
    return frame[frame["target"] == "label"]


def status_accuracy(status: pd.DataFrame, sources: Iterable[str]) -> pd.DataFrame:
    """Share of right calls by fold (rows) and person (columns), in %: sessions averaged, then sources (seeds).

    A call is right where ``score ≥ threshold`` equals ``label``.
    """
    part = status[status["source"].isin(list(sources))]
    right = ((part["score"] >= part["threshold"]) == (part["label"] == 1)) * 100.0
    right = part[["source", "fold", "person"]].assign(right=right)
    right = right.groupby(["source", "fold", "person"])["right"].mean().reset_index()
    return right.pivot_table("right", "fold", "person")


def _accuracy(
    status: pd.DataFrame | None, repeats: Mapping[str, Sequence[str]], seed: int, paper: pd.DataFrame
) -> pd.DataFrame:
    """Rows of the metric ``acc``; without numbers of ours where there is no classification."""
    printed = paper[paper["metric"] == "acc"].set_index(["method", "tracer"])
    rows = []
    for tracer in TRACERS:
        part = None if status is None else status[status["tracer"] == tracer]
        grids = {name: None if part is None else status_accuracy(part, seeds) for name, seeds in repeats.items()}
        people = {name: grid.mean() for name, grid in grids.items() if grid is not None and len(grid)}
        column: list[dict[str, Any]] = []
        for name, seeds in repeats.items():
            row: dict[str, Any] = {"method": name, "tracer": tracer, "region": "status", "metric": "acc", "unit": "%"}
            row |= {"mean": math.nan, "std": math.nan, "n": 0}
            row |= {"paper": printed["mean"].get((name, tracer)), "paper_std": printed["std"].get((name, tracer))}
            if name in people:
                grid, values = grids[name], people[name]
                scored = part[part["source"].isin(list(seeds))]
                means = [status_accuracy(scored, [s]).mean(axis=1).mean() for s in seeds if (scored.source == s).any()]
                low, high = bootstrap_mean(values.to_numpy(), seed=seed)
                row |= {"mean": values.mean(), "std": grid.mean(axis=1).std(ddof=1), "n": len(values)}
                row |= {"sessions": len(scored[["person", "session"]].drop_duplicates())}
                row |= {"ci_low": low, "ci_high": high, "seeds": len(means)}
                row |= {"seed_std": float(np.std(means, ddof=1)) if len(means) > 1 else math.nan}
                for prefix, other in (("base", BASE), ("full", REFERENCE_METHOD)):
                    if other in people and other != name:
                        row |= _against(values, people[other], name, other, prefix, seed)
            column.append(row)
        for key in ("base_p", "full_p"):
            for row, p in zip(column, holm(row.get(key, math.nan) for row in column), strict=True):
                row[key] = p
        rows += column
    return pd.DataFrame(rows)


def _against(a: pd.Series, b: pd.Series, name: str, other: str, prefix: str, seed: int) -> dict[str, float]:
    if not a.index.equals(b.index):
        raise ValueError(f"{name!r} and {other!r} were not classified on the same people; run the classification again")
    result = compare(a.to_numpy(), b.to_numpy(), seed=seed)
    values = (result.difference, result.low, result.high, result.rank_biserial, result.p)
    return {f"{prefix}_{key}": value for key, value in zip(_COMPARISON, values, strict=True)}


# ── the page ──────────────────────────────────────────────────────────────────────────────────────


def _block(frame: pd.DataFrame, region: str, metrics: Sequence[str], names: Sequence[str]) -> Block:
    part = frame[frame["region"] == region]
    heads = [(t, m) for t in TRACERS if (part["tracer"] == t).any() for m in metrics]
    columns, best = [("", "Variant")], set()
    rows: list[list[Any]] = [[name] for name in names]
    for j, (tracer, metric) in enumerate(heads, start=1):
        better = HIGHER_IS_BETTER.get(metric, True)
        label, unit = METRIC_NAMES.get(metric, "ACC"), METRIC_UNITS.get(metric, "%")
        columns.append((TRACER_NAMES[tracer], f"{label} ({unit}) {'↑' if better else '↓'}"))
        chosen = part[(part["tracer"] == tracer) & (part["metric"] == metric)].set_index("method").loc[list(names)]
        order = chosen["mean"] if better else -chosen["mean"]
        best |= {(i, j) for i in range(len(names)) if order.iloc[i] == order.max()}
        for row, (_, values) in zip(rows, chosen.iterrows(), strict=True):
            tests = [(other, p_value(values[f"{key}_p"])) for other, key in ((BASE, "base"), ("ResDM", "full"))]
            lines = [
                f"{number(values['mean'], 2)} ± {number(values['std'], 2)}",
                f"[{number(values['ci_low'], 2)}, {number(values['ci_high'], 2)}]",
                "" if pd.isna(values["seed_std"]) else f"seeds ± {number(values['seed_std'], 2)}",
                *(f"{p} vs {other}" for other, p in tests if p),
                f"paper {number(values['paper'], 2)} ± {number(values['paper_std'], 2)}" if region != "brain" else "",
            ]
            row.append(tuple(line for line in lines if line))
    title = REGION_TITLES.get(region, "Status classification from the synthetic PET")
    return Block(title, tuple(columns), tuple(map(tuple, rows)), frozenset(best))


def _notes(
    frame: pd.DataFrame, names: Sequence[str], repeats: Mapping[str, Sequence[str]], status: Path
) -> tuple[str, ...]:
    people = frame.loc[frame["region"] != "status", "n"]
    counts = {name: len(seeds) for name, seeds in repeats.items()}
    absent = [name for name in VARIANTS if name not in names]
    if max(counts.values()) == 1:
        seeds = "One training a variant: the spread between seeds is not known here, and a difference between two rows "
        seeds += "may be one between two seeds."
    else:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        seeds = (
            f"Trainings (seeds) a variant: {said}. A person's scores are averaged over them; ± after 'seeds' is the "
        )
        seeds += "standard deviation of the mean between them, ± in the first line that between people."
    tested = [other for other in (BASE, REFERENCE_METHOD) if other in names and len(names) > 1]
    tests = f"p: two-sided Wilcoxon signed-rank tests over people, against {' and against '.join(tested)}, each "
    tests += "Holm-corrected over the rows of the column. The paper's claim is ResDM against Base."
    return (
        f"Mean ± standard deviation over test people (n = {span(people)}; sessions of "
        "one person averaged first), 95 % bootstrap interval of the mean below it. Bold: best mean of the column.",
        "Base: tracer-only prompt, λ = 0. +L_high: tracer-only prompt, intra-domain loss. +prior: age and sex in the "
        "prompt, λ = 0. ResDM: both." + (f" Without stored scores: {', '.join(absent)}." if absent else ""),
        seeds,
        tests if tested else "No test: it needs Base or ResDM and one more variant.",
        "ACC: share of test people whose status is called right from the synthetic PET, ± over the folds of the "
        "classifier, which knows real training people only."
        if status.is_file()
        else f"No ACC: there is no {status.parent.name}/{status.name}; run the status classification first.",
        "Paper: printed values, on another cohort; see Table 2's notes.",
    )
