"""Table 3: what the intra-domain loss and the prior information add, variant by variant.

The variants are methods of the profile, trained and synthesised like any other. ``X@seed1`` is variant ``X`` under
another seed: a person's scores are then averaged over the seeds, and the spread between seeds is told apart from the
spread between people.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from resdm.settings import TRACERS
from resdm_suite.evaluation.image_quality import REGIONS, check_people, read_scores
from resdm_suite.evaluation.statistics import holm
from resdm_suite.profiles import Config
from resdm_suite.reporting.tables import (
    COMPARISON,
    KEYS,
    REFERENCE_METHOD,
    REGION_TITLES,
    ROW_NAMES,
    TRACER_NAMES,
    VARIANTS,
    Block,
    Table,
    change,
    comparison,
    interval,
    metric_block,
    number,
    paper_block,
    quality,
    read_paper,
    read_trainings,
    seeds_of,
    span,
    spread,
    summary,
    trainings_block,
    trainings_note,
)

BASE = "Base"
"""The variant with neither part: tracer-only prompt, λ = 0."""

_AGAINST = {"base_": BASE, "full_": REFERENCE_METHOD}
"""Prefix of a comparison's columns → the variant that it is with."""


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
        (people), sessions, trainings (averaged by person), seed_std (standard deviation of the mean between them; empty
        for one), paper, paper_std, ci_low, ci_high (bootstrap over people and trainings), then two comparisons over
        people, each with difference, difference_low, difference_high, rank_biserial and p (Holm over the rows of the
        column): ``base_…`` is the variant − Base, ``full_…`` the variant − ResDM.

    Raises
    ------
    FileNotFoundError
        No variant has stored scores.
    ValueError
        Variants or trainings that were not scored on the same people.
    """
    repeats = {name: seeds_of(config, name) for name in present_variants(config)}
    names = list(repeats)
    if not names:
        raise FileNotFoundError(
            f"{config.work / 'predictions'}: no variant of Table 3 ({', '.join(VARIANTS)}) has scores.csv; train and "
            "synthesise them first"
        )
    paper = read_paper(3, config.root).assign(method=lambda t: t["variant"].map({v: k for k, v in VARIANTS.items()}))
    status = config.evaluation_folder / "status.csv"
    frame = ablation(read_trainings(config, names), names, seed=config.seed, paper=paper)
    readings = read_status(status) if status.is_file() else None
    if readings is not None:
        check_people(readings, config, status)
    accuracy = _accuracy(readings, repeats, config.seed, paper)
    frame = pd.concat([frame, accuracy], ignore_index=True)
    frame["sessions"], frame["trainings"] = frame["sessions"].astype("Int64"), frame["trainings"].astype("Int64")
    shown = [*REGIONS, *(["status"] if status.is_file() else [])]
    return Table(
        name="table3",
        title="Table 3: Ablation of the residual diffusion model",
        notice=config.notice,
        frame=frame,
        blocks=tuple(block for region in shown for block in _blocks(frame, region, names)),
        notes=_notes(frame, names, status),
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
    order = {name: place for place, name in enumerate(variants)}
    scores = scores.sort_values("method", key=lambda c: c.str.partition("@")[0].map(order), kind="stable")
    frames = [
        quality(scores, seed=seed, paper=paper, reference=other).rename(columns={k: prefix + k for k in COMPARISON})
        for prefix, other in _AGAINST.items()
    ]
    return frames[0].merge(frames[1][[*KEYS, *(f"full_{key}" for key in COMPARISON)]])


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
        blocks=tuple(
            metric_block(frame, region, rows, cell, title=REGION_TITLES[region] + title, head="Network")
            for region in REGIONS
            for rows, cell, title in ((names, spread, ""), (names[1:], change, f": difference to {names[0]}"))
            if rows
        ),
        notes=(
            f"{names[0]}: the network of the released code, fault for fault; every other row leaves out what its name "
            "says, and differs in nothing else. Mean ± standard deviation over test people "
            f"(n = {span(frame['n'])}); then the difference to the first row with its 95 % interval, and p, Wilcoxon "
            "signed-rank, Holm over the column.",
            *_shares(config, frame, names),
            "One training a row: a difference may be one between two seeds.",
        ),
    )


def _shares(config: Config, frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """What the augmentation and the missing y_0 alone do to PSNR in the brain, and how far the MRI is moved."""
    part = frame[(frame["region"] == "brain") & (frame["metric"] == "psnr")]
    differences = part.pivot_table("difference", "tracer", "method")
    settings = {name: (set(config.methods[name].mended), config.methods[name].mri_shift) for name in names}
    shift = settings[names[0]][1]

    def said(values: pd.Series, decimals: int, unit: str) -> str:
        cells = (f"{number(values[t], decimals)} {unit} ({TRACER_NAMES[t]})" for t in TRACERS if t in values)
        return " and ".join(cells)

    wanted = {"paired": (set(), 0), "y0": ({"input"}, shift), "all": ({"input", "attention", "middle"}, 0)}
    rows = {key: next((n for n in names if settings[n] == value), None) for key, value in wanted.items()}
    notes = []
    if shift and rows["paired"] and rows["all"]:
        share = 100 * differences[rows["paired"]] / differences[rows["all"]]
        notes.append(
            f"PSNR inside the brain: moving MRI and PET together ({rows['paired']}) alone makes {said(share, 0, '%')} "
            f"of the difference that {rows['all']} makes."
        )
    if rows["y0"]:
        change = said(differences[rows["y0"]], 2, "dB")
        notes.append(f"PSNR inside the brain: y_0 as an input ({rows['y0']}) alone changes it by {change}.")
    if shift:
        mm = shift * config.preprocess.grid.voxel_mm
        notes.append(f"Here the MRI is moved by up to {mm:g} mm an axis, in the released code by at most 3 mm.")
    return notes


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
        there = (
            {}
            if part is None
            else {n: [s for s in seeds if (part["source"] == s).any()] for n, seeds in repeats.items()}
        )
        people = {
            name: pd.DataFrame({s: status_accuracy(part, [s]).mean() for s in seeds}).T  # (trainings, people)
            for name, seeds in there.items()
            if seeds
        }
        column: list[dict[str, Any]] = []
        for name in repeats:
            row: dict[str, Any] = {"method": name, "tracer": tracer, "region": "status", "metric": "acc", "unit": "%"}
            row |= {"mean": math.nan, "std": math.nan, "n": 0}
            row |= {"paper": printed["mean"].get((name, tracer)), "paper_std": printed["std"].get((name, tracer))}
            if name in people:
                scored = part[part["source"].isin(there[name])]
                row |= summary(people[name].to_numpy(), seed)
                row |= {"std": status_accuracy(part, there[name]).mean(axis=1).std(ddof=1)}
                row |= {"sessions": len(scored[["person", "session"]].drop_duplicates())}
                for prefix, other in _AGAINST.items():
                    if other in people and other != name:
                        found = _against(people[name], people[other], name, other, seed)
                        row |= {prefix + key: value for key, value in found.items()}
            column.append(row)
        for prefix in _AGAINST:
            for row, p in zip(column, holm(row.get(f"{prefix}p", math.nan) for row in column), strict=True):
                row[f"{prefix}p"] = p
        rows += column
    return pd.DataFrame(rows)


def _against(a: pd.DataFrame, b: pd.DataFrame, name: str, other: str, seed: int) -> dict[str, float]:
    if not a.columns.equals(b.columns) or a.isna().any(axis=None) or b.isna().any(axis=None):
        raise ValueError(f"{name!r} and {other!r} were not classified on the same people; run the classification again")
    return comparison(a.to_numpy(), b.to_numpy(), seed)


# ── the page ──────────────────────────────────────────────────────────────────────────────────────


def _blocks(frame: pd.DataFrame, region: str, names: Sequence[str]) -> list[Block]:
    """A region's means, the paper's values; but for the whole grid, intervals, differences and trainings."""
    title = REGION_TITLES.get(region, "Status classification from the synthetic PET")
    options = {"head": "Variant"}
    blocks = [metric_block(frame, region, names, spread, title=title, best=True, **options)]
    if region != "brain":
        blocks += paper_block(frame, names, region=region, **options)
    if region != "whole":
        blocks.append(
            metric_block(frame, region, names, interval, title=f"{title}: 95 % interval of the mean", **options)
        )
        for prefix, other in _AGAINST.items():
            rows = [name for name in names if name != other]
            if other in names and rows:
                said = f"{title}: difference to {other} [95 % interval], p"
                blocks.append(metric_block(frame, region, rows, partial(change, prefix=prefix), title=said, **options))
    return blocks + (trainings_block(frame, names, **options) if region == "brain" else [])


def _notes(frame: pd.DataFrame, names: Sequence[str], status: Path) -> tuple[str, ...]:
    people = frame.loc[frame["region"] != "status", "n"]
    absent = [ROW_NAMES.get(name, name) for name in VARIANTS if name not in names]
    added = f" {ROW_NAMES['as_published']}: ResDM without the path of global features, as the paper has it."
    tested = [other for other in _AGAINST.values() if other in names and len(names) > 1]
    tests = f"p: two-sided Wilcoxon signed-rank tests over people, against {' and against '.join(tested)}, each "
    tests += "Holm-corrected over the rows of the column. The paper's claim is ResDM against Base."
    return (
        f"Mean ± standard deviation over test people (n = {span(people)}; sessions of one person averaged first). "
        "Bold: best mean of the column. Intervals and tests of the whole grid are in the CSV; see Table 2's notes.",
        "Base: tracer-only prompt, λ = 0. +L_high: tracer-only prompt, intra-domain loss. +prior: age and sex in the "
        "prompt, λ = 0. ResDM: both."
        + (added if "as_published" in names else "")
        + (f" Without stored scores: {', '.join(absent)}." if absent else ""),
        *trainings_note(frame[frame["region"] != "status"]),
        tests if tested else "No test: it needs Base or ResDM and one more variant.",
        "ACC: share of test people whose status is called right from the synthetic PET, ± over the folds of the "
        "classifier, which knows real training people only."
        if status.is_file()
        else f"No ACC: there is no {status.parent.name}/{status.name}; run the status classification first.",
        "Paper: printed values, on another cohort; see Table 2's notes.",
    )
