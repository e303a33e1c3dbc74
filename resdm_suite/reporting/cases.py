"""Stored volumes → what the figures take: who is shown, by which rule, and their arrays."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resdm.settings import TRACERS
from resdm_suite.anatomy import Grid
from resdm_suite.evaluation.conditioning import age_part, age_sweep
from resdm_suite.evaluation.image_quality import read_index, read_volume, volume_pairs
from resdm_suite.evaluation.readings import present_tracers
from resdm_suite.evaluation.statistics import person_weights, typical_session
from resdm_suite.evaluation.suvr import regional_agreement, regional_suvr, texture_summary
from resdm_suite.profiles import FEWEST, Config
from resdm_suite.reporting.slices import GROUP_SLICES
from resdm_suite.reporting.style import TRACER_TITLES
from resdm_suite.reporting.tables import REFERENCE_METHOD, present_methods


def typical_case(config: Config, scores: pd.DataFrame, methods: Iterable[str] | None = None) -> dict[str, Any]:
    """The arguments of `reporting.slices.figure2` for a typical test person: the median in-brain PSNR of ResDM.

    Parameters
    ----------
    config : Config
    scores : DataFrame
        Stored scores of ResDM at least, see `resdm_suite.evaluation.image_quality.read_scores`.
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
    if config.cohort.kind != "phantom":
        shown = "One test person: median in-brain PSNR of ResDM."  # no real person is named
    return {
        "real": real,
        "synthetic": synthetic,
        "grid": grid,
        "suvr_range": config.preprocess.suvr_range,
        "mri": read_volume(config.volumes / who["t1w"], grid),
        "person": shown,
    }


def shown_cases(config: Config, scores: pd.DataFrame, methods: Iterable[str] | None = None) -> dict[str, Any]:
    """The arguments of `reporting.slices.figure2`: a typical person, or means where `Config.individual` is not."""
    return (typical_case if config.individual else mean_cases)(config, scores, methods)


def mean_cases(config: Config, scores: pd.DataFrame, methods: Iterable[str] | None = None) -> dict[str, Any]:
    """The arguments of `resdm_suite.reporting.slices.figure2` for groups of test people: means of their volumes.

    Groups are the negative and the positive of each tracer by its own status, where at least `FEWEST` people are in
    one; else all people with that tracer; else nothing. Sessions of one person are averaged first.

    Parameters
    ----------
    config : Config
    scores : DataFrame
        Stored scores of the methods, see `resdm_suite.evaluation.image_quality.read_scores`.
    methods : iterable of str, optional
        Columns of the figure; by default every method with stored scores.
    """
    grid, index = Grid.of(config.preprocess.grid), read_index(config)
    methods = present_methods(config) if methods is None else list(methods)
    case: dict[str, Any] = {"real": {}, "synthetic": {m: {} for m in methods}, "mri": {}, "groups": {}, "quality": {}}
    for tracer in TRACERS:
        rows = index[index[f"present_{tracer}"] == 1]
        for name, part in _status_groups(rows, tracer).items():
            count = part["person"].nunique()
            group = f"{TRACER_TITLES[tracer]}, {name} (n = {count})"
            weights = (1 / part.groupby("person")["session"].transform("size") / count).to_numpy()
            case["groups"][group] = tracer
            case["real"][group] = _mean([config.volumes / path for path in part[tracer]], weights, grid)
            case["mri"][group] = _mean([config.volumes / path for path in part["t1w"]], weights, grid)
            scored = scores.merge(part[["person", "session"]])
            scored = scored[(scored["tracer"] == tracer) & (scored["region"] == "brain")]
            for method in methods:
                pairs = [pair for pair in volume_pairs(config, method, part) if pair[2] == tracer]
                case["synthetic"][method][group] = _mean([synthetic for *_, synthetic in pairs], weights, grid)
                people = scored[scored["method"] == method].groupby("person")[["psnr", "mae"]].mean().mean()
                case["quality"][method, group] = (float(people["psnr"]), 100 * float(people["mae"]))
    said = "Means of test people by status; nobody is shown alone."
    if not case["groups"]:
        said = f"Fewer than {FEWEST} test people: no mean is drawn, as privacy: aggregate asks."
    common = {"grid": grid, "suvr_range": config.preprocess.suvr_range, "cuts": GROUP_SLICES}
    return case | common | {"person": said}


def _status_groups(rows: pd.DataFrame, tracer: str) -> dict[str, pd.DataFrame]:
    """Test sessions by the tracer's status, where enough people are in each group."""
    status = rows.get(f"{tracer}_status", pd.Series(np.nan, index=rows.index))
    groups = {name: rows[status == value] for value, name in enumerate(("negative", "positive"))}
    large = {name: part for name, part in groups.items() if part["person"].nunique() >= FEWEST}
    return large or ({"all": rows} if rows["person"].nunique() >= FEWEST else {})


def _mean(paths: Iterable[Path], weights: np.ndarray, grid: Grid) -> np.ndarray:
    """The weighted mean of stored volumes, one in memory at a time."""
    total = np.zeros(grid.shape)
    for path, weight in zip(paths, weights, strict=True):
        total += weight * read_volume(path, grid)
    return total.astype(np.float32)


def read_trace(config: Config, method: str = REFERENCE_METHOD) -> dict[str, np.ndarray]:
    """What `resdm_suite.reporting.figures.figure1` draws: the stored ``trace.npz`` of a method.

    Raises
    ------
    FileNotFoundError
        None is stored: the method is not synthesised, or too few people may be shown.
    ValueError
        It is of one person, where figures may not show single people.
    """
    path = config.predictions(method) / "trace.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no trace of {method!r}; synthesise the test people. One person with both tracers is needed, or "
            f"{FEWEST} where privacy is aggregate"
        )
    with np.load(path) as stored:
        trace = dict(stored)
    if not config.individual and int(trace.get("people", 1)) < FEWEST:
        raise ValueError(
            f"{path}: the tensors of {int(trace.get('people', 1))} person, and profile {config.profile!r} shows no "
            f"single people (privacy: aggregate); synthesise the test people of {method!r} again, {FEWEST} or more"
        )
    return trace


FIGURE5_AXES = {"real": "age", "factual": "prompt_age", "no_age": "age", "shuffled_age": "prompt_age"}
"""Panels of Figure 5: condition, and the age on its x axis (the person's own, or the prompt's)."""


def figure5_data(
    config: Config, age: pd.DataFrame, method: str = REFERENCE_METHOD
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What Figure 5 may show.

    Parameters
    ----------
    config : Config
    age : DataFrame
        Rows of ``age.csv``.
    method : str

    Returns
    -------
    points : DataFrame
        tracer, condition, years (see `FIGURE5_AXES`), predicted, spread. One row per session. Where single people may
        not be shown, one row per five years of age with at least `FEWEST` people: mean and standard deviation.
    lines : DataFrame
        Of the sweep over prompt ages: tracer, line, years, predicted, spread. One line per person and their ``mean``;
        the mean alone where single people may not be shown.
    """
    points, lines = [], []
    for tracer in present_tracers(age):
        for condition, column in FIGURE5_AXES.items():
            part = age_part(age, method, condition, tracer)
            part = part.assign(years=part[column].astype(float), spread=np.nan)
            if not config.individual:
                part = _five_years(part.assign(weight=person_weights(part["person"])))
            points.append(part[["years", "predicted", "spread"]].assign(tracer=tracer, condition=condition))
        sweep = age_sweep(age, method, tracer)
        if sweep.shape[1] > 1 and (config.individual or len(sweep) >= FEWEST):
            tables = {"mean": pd.DataFrame({"predicted": sweep.mean(), "spread": sweep.std(ddof=1)})}
            if config.individual:
                single = {
                    f"{i}": pd.DataFrame({"predicted": row, "spread": np.nan})
                    for i, (_, row) in enumerate(sweep.iterrows())
                }
                tables = single | tables
            lines += [
                table.rename_axis("years").reset_index().assign(tracer=tracer, line=name)
                for name, table in tables.items()
            ]
    columns = ["tracer", "line", "years", "predicted", "spread"]
    return pd.concat(points, ignore_index=True), pd.concat(lines, ignore_index=True) if lines else pd.DataFrame(
        columns=columns
    )


def _five_years(part: pd.DataFrame) -> pd.DataFrame:
    """Weighted mean and standard deviation of every five years with enough people."""
    rows = []
    for years, group in part.groupby(5 * np.floor(part["years"] / 5)):
        if group["person"].nunique() >= FEWEST:
            mean = np.average(group["predicted"], weights=group["weight"])
            variance = np.average((group["predicted"] - mean) ** 2, weights=group["weight"])
            rows.append({"years": years + 2.5, "predicted": mean, "spread": np.sqrt(variance)})
    return pd.DataFrame(rows, columns=["years", "predicted", "spread"])


def quality_cases(config: Config, index: pd.DataFrame, similarity: str = "t1_correlation") -> dict[str, Any]:
    """The arguments of `reporting.slices.qc_montage`: the first of each diagnosis, and the worst T1 registration.

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
    return regional, regional_agreement(regional), texture_summary(textures)
