"""Model folders of a profile: ``config.yaml`` beside the weights, and the check that both fit.

``config.yaml`` is a profile with this one method.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from resdm.checkpoint import ABSENT, CheckpointError, describe, differences, read_metadata
from resdm.io import sha256, stored_json, write_text
from resdm.settings import TRACERS, ConfigError, MethodConfig, to_dict
from resdm_suite.paths import INPUT_CHECK, MEMORISATION
from resdm_suite.profiles import Config, read_config
from resdm_suite.records import checked, read_of_model, read_record

SYNTHETIC = "synthetic, not for clinical use"
"""Notice of every synthetic volume and its sidecar."""

LABELS = {"amyloid": "18FAV45", "tau": "18FAV1451"}
"""BIDS labels of the tracers where neither a real PET nor the model's training scans define them."""

PROVENANCE = "provenance.json"
"""File of a model folder: the training's sidecar, with `tracer_scans`."""

FREE_SETTINGS = ("sampling_steps",)
"""Settings of a method in which a profile may differ from the trained model: they change no weight."""


@dataclass(frozen=True)
class ModelCard:
    """Description of a trained model.

    Parameters
    ----------
    folder : Path
    name : str
        The method's name in the profile, as in the tables.
    config : Config
        The profile it was trained with, reduced to this method.
    digest : str
        SHA-256 of ``model.safetensors``.
    step, epoch : int
        When in training the weights were taken.
    score : float or None
        Validation score of these weights; None without validation people.
    """

    folder: Path
    name: str
    config: Config
    digest: str
    step: int
    epoch: int
    score: float | None

    @property
    def settings(self) -> MethodConfig:
        """The method's settings."""
        return self.config.method(self.name)

    @property
    def phantom(self) -> bool:
        """Whether it was trained on phantoms only."""
        return self.config.cohort.kind == "phantom"

    @property
    def notice(self) -> str:
        """Notice of every output."""
        return "; ".join([SYNTHETIC, *(["made by a phantom-trained model"] if self.phantom else [])])

    @cached_property
    def scans(self) -> dict[str, dict[str, int]]:
        """`tracer_scans` of the training; empty where no training of this version stored it."""
        return (stored_json(self.folder / PROVENANCE) or {}).get("scans", {})

    @property
    def labels(self) -> dict[str, str]:
        """BIDS label of each tracer that the model was trained on; of several that of the most training scans."""
        known = {tracer: max(labels, key=labels.get) for tracer, labels in self.scans.items() if labels}
        return known or LABELS


def tracer_scans(index: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Number of PETs by tracer and BIDS label, of sessions of ``index.csv``."""
    labels = {tracer: index.loc[index[f"present_{tracer}"] == 1, f"{tracer}_tracer"] for tracer in TRACERS}
    return {tracer: names.value_counts().sort_index().to_dict() for tracer, names in labels.items()}


def source_settings(config: Config) -> dict[str, Any]:
    """Settings of a profile that a synthesis depends on, without those of the method."""
    return {"preprocess": to_dict(config.preprocess), "cohort.kind": config.cohort.kind}


def training_options(config: Config, name: str) -> dict[str, Any]:
    """Arguments of `resdm.training.train` from a profile, without the method and the data."""
    return {
        "run": config.training,
        "name": name,
        "seed": config.seeded(name).seed,
        "source": source_settings(config),
        "cache": config.work / "pretraining",
    }


def write_config(folder: str | Path, config: Config, name: str) -> Path:
    """Write ``config.yaml`` of a model folder: the profile, reduced to one method."""
    reduced = replace(config.seeded(name), methods={name: config.method(name)})
    heading = f"# {name}, trained by resdm" + (f": {config.notice}" if config.notice else "")
    path, text = Path(folder) / "config.yaml", heading + "\n" + yaml.safe_dump(to_dict(reduced), sort_keys=False)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return Path(folder)


def load_card(folder: str | Path, *, trust_code: bool = False) -> ModelCard:
    """A model folder's description, checked, without its weights; ``trust_code`` as in `load_model`.

    Raises
    ------
    CheckpointError
        No such folder or file, or weights that were trained with other settings than ``config.yaml`` holds.
    """
    folder = Path(folder)
    meta = read_metadata(folder)
    check_unchanged(folder, ("model.safetensors", "config.yaml", INPUT_CHECK))
    if not (folder / "config.yaml").is_file():
        raise CheckpointError(f"{folder}: no config.yaml there; train the method again: its weights are kept")
    try:
        config = read_config((folder / "config.yaml").resolve(), trust_code=trust_code)
    except ConfigError as error:
        raise CheckpointError(f"not a model of this version of resdm: {error}") from error
    name = meta["name"]
    if name not in config.methods:
        raise CheckpointError(
            f"{folder}: the weights are of method {name!r}, config.yaml describes {', '.join(config.methods)}; "
            "copy config.yaml and model.safetensors from one folder"
        )
    described = {f"methods.{name}": to_dict(config.method(name))} | source_settings(config)
    different = differences({f"methods.{name}": meta["method"]} | meta["source"], described)
    different = [row for row in different if row[1] != ABSENT]  # settings of a later version
    if different:
        raise CheckpointError(
            f"{folder}: model.safetensors was trained with other settings than config.yaml holds:\n"
            f"{describe(different, 'in the weights', 'in config.yaml')}\n"
            "copy config.yaml and model.safetensors from one folder"
        )
    digest = sha256(folder / "model.safetensors")
    return ModelCard(folder, name, config, digest, meta["step"], meta["epoch"], meta["score"])


def check_unchanged(folder: Path, names: Iterable[str]) -> None:
    """Raise `CheckpointError` where a file of a model folder is no longer as its training wrote it."""
    for path in sorted(read_record(folder)[1] & {folder / name for name in names}):
        if path.is_file():
            raise CheckpointError(f"{path}: changed since the training wrote it; delete it and train again")


def check_model(card: ModelCard, config: Config, name: str) -> None:
    """Raise `CheckpointError` if a model does not fit the profile, `RecordError` if it is not of its volumes."""
    checked(card.folder / "model.safetensors")
    stored, expected = (
        {"grid": to_dict(c.preprocess.grid), f"methods.{name}": to_dict(settings)}
        for c, settings in ((card.config, card.settings), (config, config.method(name)))
    )
    different = [row for row in differences(stored, expected) if row[0].rsplit(".", 1)[-1] not in FREE_SETTINGS]
    if different:
        raise CheckpointError(
            f"{card.folder}: a model of another method or grid than in profile {config.profile!r}:\n"
            f"{describe(different, 'in the model', 'in the profile')}\n"
            "train it with this profile, or use the profile that it was trained with"
        )


def read_audit(card: ModelCard) -> dict[str, Any]:
    """What `resdm_suite.apps.memorisation.audit_method` found of these weights; empty where there is nothing."""
    return read_of_model(card.folder / MEMORISATION, card.digest)
