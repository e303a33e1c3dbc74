"""Synthesise the participants of a split with a trained method, and score them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resdm.io import remove, write_csv
from resdm.settings import TRACERS
from resdm_suite.apps.model_card import write_card
from resdm_suite.apps.prediction import Model, synthesise_people
from resdm_suite.apps.trace import write_trace
from resdm_suite.evaluation.image_quality import (
    read_index,
    read_volume,
    record_predictions,
    score_method,
    volume_pairs,
)
from resdm_suite.evaluation.intervals import write_calibration
from resdm_suite.evaluation.suvr import real_regional_means, regional_means, sidecar_range, to_suvr
from resdm_suite.paths import sidecar_path, std_path
from resdm_suite.preprocessing.dataset import CohortDataset
from resdm_suite.profiles import READING, Config, load_config
from resdm_suite.records import NAME, alone, checked, read_csv, write_record


def split_folder(condition: str, split: str) -> str:
    """Folder of the predictions of a split: other people than the test people never replace these."""
    return condition if split == "test" else f"{condition}_{split}"


@alone("predict {name} {condition} {split} {shard}")
def synthesise_method(
    config: Config | str | Path,
    name: str,
    condition: str = "factual",
    *,
    split: str = "test",
    steps: int | None = None,
    shard: tuple[int, int] = (1, 1),
    progress: bool = True,
) -> Path:
    """Synthesise the people of a split with a trained method under a condition, and score them.

    Parameters
    ----------
    config : Config, name or path
    name : str
        A method of the profile.
    condition : str
        Content of the prompt, see `resdm_suite.profiles.CONDITIONS`.
    split : {"test", "validation", "train"}
    steps : int, optional
        Sampling steps; the profile's by default.
    shard : (int, int)
        Part of the people, and number of parts. A part is not scored: when all exist, a call without shard scores them.

    Returns
    -------
    Path
        ``predictions/<name>/<condition>`` (of another split than the test people ``…/<condition>_<split>``) with
        volumes, sidecars, ``scores.csv`` and, for a residual diffusion, ``trace.npz``.
    """
    folder = split_folder(condition, split)
    settings, out = config.method(name), config.predictions(name, folder)
    model, people, data = Model.of_profile(config, name), read_index(config, split), CohortDataset(config, split)
    for outdated in (NAME, "scores.csv"):
        remove(out / outdated)  # written again when all volumes are made
    steps, seed = steps or getattr(settings, "sampling_steps", None), config.seeded(name).seed
    options = {"steps": steps, "seed": seed, "shard": shard, "progress": progress}
    synthesise_people(model, people, data.mri, out, condition=condition, **options)
    if shard != (1, 1):
        return out
    if condition == "factual":
        write_trace(model, data, out, individual=config.individual)
    score_method(config, name, people, folder)
    prompt = "" if condition == "factual" else f" --condition {condition}"
    prompt += "" if split == "test" else f" --split {split}"
    record_predictions(config, out, name, f"resdm predict {config.profile} {name}{prompt}")
    if folder == "factual":
        write_card(config, name)  # its metrics
    return out


def sample_method(
    config: Config | str | Path, name: str | None = None, *, samples: int | None = None, progress: bool = True
) -> Path:
    """Several samples of every validation and test person by a trained method, for `evaluation.uncertainty`.

    Parameters
    ----------
    config : Config, name or path
    name : str, optional
        A method of the profile; by default ``uncertainty.method``.
    samples : int, optional
        By default ``uncertainty.samples``.

    Returns
    -------
    Path
        ``predictions/<name>/samples``: mean and standard deviation as volumes, and ``regional.csv``: person, session,
        split, tracer, region, mean, std (over samples) and real, SUVR, of tracers that were acquired. The model folder
        gets ``calibration.json``, the intervals of `resdm synthesise`.
    """
    config = load_config(config)
    return _sample(config, config.uncertainty.method if name is None else name, samples, progress)


@alone("sample {name}")  # the default's name and the same name given are one work
def _sample(config: Config, name: str, samples: int | None, progress: bool) -> Path:
    settings, out = config.method(name), config.predictions(name, "samples")
    if READING:
        return checked(out / "regional.csv").parent
    model = Model.of_profile(config, name)
    for outdated in (NAME, "regional.csv"):
        remove(out / outdated)
    ranges = config.preprocess.suvr_range

    def measure(pet: np.ndarray, channel: int) -> dict[str, float]:
        tracer = TRACERS[channel]
        return regional_means(to_suvr(pet, ranges[tracer]), model.grid, tracer)

    rows: list[dict[str, Any]] = []
    options = {"samples": samples or config.uncertainty.samples, "measure": measure, "progress": progress}
    options |= {"steps": getattr(settings, "sampling_steps", None), "seed": config.seeded(name).seed}
    for split in ("validation", "test"):
        people, data = read_index(config, split), CohortDataset(config, split)
        synthesise_people(model, people, data.mri, out, **options)
        for person, session, tracer, source, path in volume_pairs(config, name, people, "samples"):
            measured = json.loads(sidecar_path(std_path(path)).read_text())["measured"]
            suvr = to_suvr(read_volume(source, model.grid), sidecar_range(source))
            real = real_regional_means(source, suvr, model.grid, tracer)
            who = {"person": person, "session": session, "split": split, "tracer": tracer}
            rows += [who | {"region": r, "mean": m, "std": s, "real": real[r]} for r, (m, s) in measured.items()]
    write_csv(out / "regional.csv", pd.DataFrame(rows), "%.9g")
    stage = f"resdm sample {config.profile}"
    record_predictions(config, out, name, stage)
    calibration = write_calibration(config, name, model.card.digest, model.card.folder)
    write_record(calibration.parent, stage, [calibration], [out / "regional.csv"], name=f".{calibration.stem}{NAME}")
    return out


def synthesise_conditions(
    config: Config | str | Path, name: str, conditions: Iterable[str], **options: Any
) -> pd.DataFrame:
    """`synthesise_method` under several conditions; returns their scores, with a first column ``condition``."""
    frames = []
    for condition in conditions:
        frame = read_csv(synthesise_method(config, name, condition, **options) / "scores.csv")
        frame.insert(0, "condition", condition)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)
