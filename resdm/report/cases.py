"""Stored volumes → what the figures take: who is shown, by which rule, and their arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from resdm.anatomy import Grid
from resdm.config import TRACERS, Config
from resdm.evaluation.image_quality import read_index, read_volume, volume_pairs
from resdm.evaluation.statistics import typical_session
from resdm.evaluation.suvr import agreement, regional_suvr, texture_summary
from resdm.report.tables import present_methods


def typical_case(config: Config, scores: pd.DataFrame, methods: Iterable[str] | None = None) -> dict[str, Any]:
    """The arguments of `resdm.report.figures.figure2` for a typical test person: the median in-brain PSNR of ResDM.

    Parameters
    ----------
    config : Config
    scores : DataFrame
        Stored scores of ResDM at least, see `resdm.evaluation.image_quality.read_scores`.
    methods : iterable of str, optional
        Columns of the figure; by default every method with stored scores.
    """
    grid = Grid.of(config.preprocess.grid)
    person, session = typical_session(scores)
    index = read_index(config)
    row = index[(index["person"] == person) & (index["session"] == session)]
    real: dict[str, np.ndarray] = {}
    synthetic: dict[str, dict[str, np.ndarray]] = {}
    for method in present_methods(config) if methods is None else methods:
        for _, _, tracer, real_path, synthetic_path in volume_pairs(config, method, row):
            real.setdefault(tracer, read_volume(real_path, grid))
            synthetic.setdefault(method, {})[tracer] = read_volume(synthetic_path, grid)
    who = row.iloc[0]
    shown = f"{person} ({who['diagnosis']}, {who['age']:.0f} years, {who['sex']}): median in-brain PSNR of ResDM."
    return {
        "real": real,
        "synthetic": synthetic,
        "grid": grid,
        "suvr_range": config.preprocess.suvr_range,
        "mri": read_volume(config.volumes / who["t1w"], grid),
        "person": shown if config.cohort.kind != "adni" else "One test person: median in-brain PSNR of ResDM.",
    }


def quality_cases(config: Config, index: pd.DataFrame, similarity: str = "t1_correlation") -> dict[str, Any]:
    """The arguments of `resdm.report.figures.qc_montage`: the first of each diagnosis, and the worst T1 registration.

    Parameters
    ----------
    config : Config
    index : DataFrame
        All sessions, rows of ``index.csv``.
    similarity : str
        Column of ``index`` that falls where the T1 fits the template badly.
    """
    grid = Grid.of(config.preprocess.grid)
    first = index.sort_values(["person", "session"]).drop_duplicates("diagnosis")
    worst = index.loc[[index[similarity].idxmin()]]
    chosen = pd.concat([first, worst]).drop_duplicates(["person", "session"])
    people = [
        {
            "label": f"{row['diagnosis']}, {row['age']:.0f} years, {row['sex']}\n{similarity} {row[similarity]:.2f}",
            "mri": read_volume(config.volumes / row["t1w"], grid),
            "flags": [flag for flag in str(row.get("flags") or "").split(";") if flag and flag != "nan"],
        }
        | {
            tracer: read_volume(config.volumes / row[tracer], grid) if row[f"present_{tracer}"] else None
            for tracer in TRACERS
        }
        for row in chosen.to_dict("records")
    ]
    return {"people": people, "grid": grid, "suvr_range": config.preprocess.suvr_range, "notice": config.notice}


def regional_comparison(config: Config, methods: Iterable[str] | None = None) -> tuple[pd.DataFrame, ...]:
    """Regional SUVR of every method with stored predictions: all values, agreement by region, texture by method."""
    parts = [regional_suvr(config, m) for m in (present_methods(config) if methods is None else methods)]
    regional, textures = (pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True))
    return regional, agreement(regional), texture_summary(textures)
