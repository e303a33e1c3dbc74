"""Stored readings of the evaluators, ``work/<profile>/evaluation/*.csv``: read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from resdm.settings import TRACERS
from resdm_suite.evaluation.image_quality import check_people
from resdm_suite.profiles import Config

COLUMNS = {
    "status": (
        "fold", "target", "source", "person", "session", "age", "sex", "tracer", "label", "score", "threshold",
    ),
    "status_folds": (
        "fold", "target", "source", "tracer", "n_train", "n_held_out", "held_out_auc", "held_out_p", "threshold",
    ),
    "sex": ("source", "condition", "person", "session", "tracer", "label", "score", "threshold", "prompt"),
    "sex_folds": ("tracer", "n_train", "n_held_out", "held_out_auc", "held_out_p", "threshold"),
    "age": ("source", "condition", "person", "session", "tracer", "age", "prompt_age", "predicted"),
    "age_folds": ("tracer", "n_train", "n_held_out", "held_out_r", "held_out_p", "bias"),
}  # fmt: skip
"""Columns of the stored readings, by file; ``…_folds`` hold the evaluators' quality on held-out training people."""

SESSION = ["person", "session"]


def readings_path(config: Config, name: str) -> Path:
    """Where the readings of `COLUMNS` are stored."""
    return config.evaluation_folder / f"{name}.csv"


def read_readings(config: Config, name: str) -> pd.DataFrame:
    """The stored readings of one evaluator, identifiers as text.

    Raises `FileNotFoundError` or `ValueError` (columns missing, no row), and `LeakageError` for readings of people whom
    ``index.csv``, where it exists, does not test.
    """
    path = readings_path(config, name)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no stored readings; run the evaluators first")
    frame = pd.read_csv(path, dtype={"person": str, "session": str, "source": str, "condition": str})
    missing = [column for column in COLUMNS[name] if column not in frame]
    if missing or frame.empty:
        fault = f"columns missing: {', '.join(missing)}" if missing else "no row"
        raise ValueError(f"{path}: {fault}; run the evaluators again")
    if "person" in frame:
        check_people(frame, config, path)
    return frame


def one_per_session(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """The rows sorted by session; `ValueError` for none, or for a session twice."""
    frame = frame.sort_values(SESSION, kind="stable").reset_index(drop=True)
    if frame.empty or frame.duplicated(SESSION).any():
        twice = frame.loc[frame.duplicated(SESSION), SESSION]
        fault = "no row" if frame.empty else f"{' '.join(twice.iloc[0])} twice"
        raise ValueError(f"readings of {where}: {fault}; expected one row per session: run the evaluators again")
    return frame


def check_same_sessions(parts: Mapping[str, pd.DataFrame], where: str) -> None:
    """Raise `ValueError` where two parts do not hold the same sessions."""
    (first, reference), *others = parts.items()
    for name, part in others:
        apart = set(map(tuple, reference[SESSION].to_numpy())) ^ set(map(tuple, part[SESSION].to_numpy()))
        if apart:
            raise ValueError(
                f"readings of {where}: {first!r} and {name!r} are not of the same sessions (only one has "
                f"{' '.join(min(apart))}; {len(apart)} in all); run the evaluators again"
            )


def present_tracers(frame: pd.DataFrame) -> list[str]:
    """Tracers of a frame, in the usual order."""
    return [tracer for tracer in TRACERS if (frame["tracer"] == tracer).any()]
