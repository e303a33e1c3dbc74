"""Trials of the competitors' settings by cross-validation over training people: ``python benchmarks/search.py``.

Trains each setting of ``search.yaml`` on four fifths of a profile's training people and scores the other fifth. Weights
are chosen on the profile's validation people; its test people are in no file of a trial. A stopped search continues,
from ``work/trial-…``; at its end every training is a row of ``results/trials.csv``. ``--folds 1 --best 2`` then goes on
with the best two of each method.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import trials
from curve import measured
from jobs import device_name, link_volumes, run_jobs
from sklearn.model_selection import GroupKFold

from resdm.io import stored_json, write_csv
from resdm.settings import TRACERS, MethodConfig
from resdm_suite.evaluation.classification import auc
from resdm_suite.evaluation.downstream import labelled
from resdm_suite.evaluation.image_quality import read_index
from resdm_suite.evaluation.stored import SESSION
from resdm_suite.profiles import Config, load_config, read_config

HERE = Path(__file__).resolve().parent

FOLDS = 5


def _method(name: str) -> str:
    return name.rpartition("-")[0]


@cache
def tried() -> dict[str, MethodConfig]:
    """The settings by name, ``<method>-<number>``."""
    return dict(read_config(HERE / "search.yaml").methods)


def in_words(settings: MethodConfig) -> str:
    """What a setting changes of the defaults of its class, as text."""
    pairs = [(one.name, getattr(settings, one.name), getattr(type(settings)(), one.name)) for one in fields(settings)]
    return "; ".join(f"{k} {list(v) if isinstance(v, tuple) else v}" for k, v, default in pairs if v != default)


def part(source: Config, name: str, fold: int) -> Config:
    """A profile with one setting as its method, whose test people are one fold of the training people of ``source``."""
    index = read_index(source, None)
    split = index["split"].mask(index["split"] == "test", "")
    train = np.flatnonzero(split == "train")
    folds = GroupKFold(FOLDS, shuffle=True, random_state=7).split(train, groups=index["person"].iloc[train])
    split.iloc[train[list(folds)[fold][1]]] = "test"
    config = replace(source, profile=f"trial-{source.profile}-fold{fold}", methods={name: tried()[name]})
    link_volumes(source, config, split.tolist())
    return config


def work(source: Config, name: str, fold: int) -> None:
    """Train one setting, synthesise the people of its fold and score them, in a separate process."""
    from resdm_suite.apps.synthesis import synthesise_method
    from resdm_suite.apps.training import train_method

    config = part(source, name, fold)
    train_method(config, name, progress=False)
    synthesise_method(config, name, progress=False)


def row(source: Config, name: str, fold: int) -> dict[str, Any]:
    """The scores of one training, as in ``trials.csv``."""
    config = part(source, name, fold)
    scores, words = measured(config, name), in_words(tried()[name])
    result = {"trial": name, "method": _method(name), "seed": source.seed, "changes": words, "fold": fold}
    for tracer in TRACERS:
        status = labelled(source, "train", tracer, "planted" if source.cohort.kind == "phantom" else "label")
        people = scores[scores["tracer"] == tracer].merge(status[[*SESSION, "label"]], validate="one_to_one")
        result[f"psnr_{tracer}"] = round(people["psnr"].mean(), 3)
        result[f"r_{tracer}"] = round(people["suvr"].corr(people["real"]), 3)
        result[f"auc_{tracer}"] = round(float(auc(people["label"], people["suvr"].to_numpy(), np.ones(len(people)))), 3)
    timing = stored_json(config.model(name) / "timing.json")
    return result | {"seconds": round(timing["seconds"], 1), "device": f"{device_name('cpu')}, 1 thread each"}


def best(number: int, stored: pd.DataFrame) -> list[str]:
    """The settings of the highest mean PSNR over tracers and stored trainings, so many of each method."""
    means = stored[["psnr_amyloid", "psnr_tau"]].mean(axis=1).groupby(stored["trial"]).mean()
    ranked = means[list(tried())].sort_values(ascending=False, kind="stable")
    return [*ranked.groupby(_method, sort=False).head(number).index]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and add its rows to the trials."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="phantom")
    parser.add_argument("--folds", type=int, nargs="+", default=[0], choices=range(FOLDS))
    parser.add_argument("--best", type=int, help="only so many settings of each method, by the trials so far")
    parser.add_argument("--at-once", type=int, default=2, help="trainings side by side, a thread each (default: 2)")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    source = load_config(options.profile)
    if options.job:
        work(source, options.job[0], int(options.job[1]))
        return
    stored = trials.read_trials(trials.PATH)
    names = best(options.best, stored) if options.best else list(tried())
    pairs = [(name, fold) for fold in options.folds for name in names]
    jobs = {f"{name}, fold {fold}": ["--profile", options.profile, "--job", name, str(fold)] for name, fold in pairs}
    for fold in options.folds:
        part(source, names[0], fold)  # the volumes, before two processes would write them
    run_jobs(Path(__file__).resolve(), jobs, options.at_once)
    rows = pd.DataFrame([row(source, *pair) for pair in pairs]).astype({"seed": str, "fold": str})
    both = pd.concat([stored, rows]).drop_duplicates(["trial", "seed", "fold"], keep="last")
    write_csv(trials.PATH, both[list(trials.COLUMNS)])
    print(trials.main(trials.PATH))


if __name__ == "__main__":
    main()
