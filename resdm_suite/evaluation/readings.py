"""Stored readings of the evaluators, ``work/<profile>/evaluation/*.csv``: read and checked."""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from resdm.settings import SEXES, TRACERS
from resdm_suite.evaluation.image_quality import check_people
from resdm_suite.evaluation.stored import SESSION, Numbers, read_table
from resdm_suite.profiles import Config

TARGETS = ("planted", "label")
"""Kinds of status: planted in phantoms, or the label that a cut-off on the measured SUVR gives."""

_READING = {"source": str, "condition": str, "person": str, "session": str, "tracer": TRACERS}
_CLASS = {"label": (0, 1), "score": Numbers(0, 1), "threshold": Numbers(0, 1)}
_CARD = {"tracer": TRACERS, "n_train": Numbers(0), "n_held_out": Numbers(0)}
_QUALITY = {"held_out_auc": Numbers(0, 1, True), "held_out_p": Numbers(0, 1, True), "threshold": Numbers(0, 1, True)}

COLUMNS = {
    "status": {"fold": Numbers(0), "target": TARGETS, "source": str, "person": str, "session": str}
    | {"age": Numbers(0, 130), "sex": SEXES, "tracer": TRACERS} | _CLASS,
    "status_folds": {"fold": Numbers(0), "target": TARGETS, "source": str} | _CARD | _QUALITY,
    "sex": _READING | _CLASS | {"prompt": (*SEXES, math.nan)},
    "sex_folds": _CARD | _QUALITY,
    "age": _READING | {"age": Numbers(0, 130), "prompt_age": Numbers(0, 130, True), "predicted": Numbers()},
    "age_folds": _CARD | {"held_out_r": Numbers(-1, 1, True), "held_out_p": Numbers(0, 1, True)}
    | {"bias": Numbers(empty=True)},
}  # fmt: skip
"""Columns of the stored readings with their values, by file; ``…_folds`` hold the evaluators' quality on held-out
training people, empty where these people define no evaluator."""


def readings_path(config: Config, name: str) -> Path:
    """Where the readings of `COLUMNS` are stored."""
    return config.evaluation_folder / f"{name}.csv"


def read_readings(config: Config, name: str) -> pd.DataFrame:
    """The stored readings of one evaluator, identifiers as text.

    Raises `FileNotFoundError` or `ValueError` (see `stored.read_table`), and `LeakageError` for readings of people whom
    ``index.csv``, where it exists, does not test.
    """
    path, columns = readings_path(config, name), COLUMNS[name]
    keys = [key for key in ("fold", "target", "source", "condition", *SESSION, "tracer") if key in columns]
    frame = read_table(path, columns, keys, "stored readings", "the evaluators", empty=name == "status")
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
            which = f"only one has {' '.join(min(apart))}; {len(apart)} in all"
            fault = f"{first!r} and {name!r} are not of the same sessions ({which})"
            raise ValueError(f"readings of {where}: {fault}; run the evaluators again")


def present_tracers(frame: pd.DataFrame) -> list[str]:
    """Tracers of a frame, in the usual order."""
    return [tracer for tracer in TRACERS if (frame["tracer"] == tracer).any()]
