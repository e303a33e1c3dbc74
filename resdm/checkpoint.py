"""Model folders and training states: what a trained method leaves on disk, and how it comes back.

A model folder holds

- ``config.yaml``: a profile with this one method, which `profiles.load_config` reads like any other. It is all that
  rebuilding needs: the method's settings, grid, preprocessing, seed, cohort.
- ``model.safetensors``: the weights to synthesise with (EMA, where the method has one; the best by validation), and the
  settings they were trained with as metadata, so that a file put into another folder is noticed.
- ``history.csv``, ``timing.json``: written by `resdm.training`.
- ``state.pt``, while training goes on: everything an exact resume needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from resdm.io import atomic, sha256, write_text
from resdm.method import Method, build_method
from resdm.settings import ConfigError, MethodConfig, to_dict
from resdm_suite.profiles import Config, load_config

SYNTHETIC = "synthetic, not for clinical use"
"""What every synthetic volume and its sidecar say."""

FREE_SETTINGS = ("sampling_steps",)
"""Settings of a method in which a profile may differ from the trained model: they change no weight."""

ABSENT = "nothing"


class CheckpointError(ValueError):
    """A model folder or a training state that cannot be used: what was found, what was expected, the remedy."""


@dataclass(frozen=True)
class ModelCard:
    """What is known of a trained model beside its weights.

    Parameters
    ----------
    folder : Path
    name : str
        The method's name in the profile, as in the tables.
    config : Config
        The profile it was trained with, this one method left.
    digest : str
        SHA-256 of ``model.safetensors``.
    step, epoch : int
        Where in training the weights were taken.
    score : float or None
        Validation criterion of these weights; ``None`` where nobody was left to validate on.
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
        """The method's own settings."""
        return self.config.method(self.name)

    @property
    def phantom(self) -> bool:
        """Whether it has seen phantoms only."""
        return self.config.cohort.kind == "phantom"

    @property
    def notice(self) -> str:
        """What every output says."""
        return "; ".join([SYNTHETIC, *(["made by a phantom-trained model"] if self.phantom else [])])


# ── weights ───────────────────────────────────────────────────────────────────────────────────────


def tensors(method: nn.Module) -> dict[str, Tensor]:
    """Every weight and persistent buffer once, by the first of its names (a shared module has several)."""
    return {name: value for name, (first, value) in _named(method).items() if name == first}


def load_tensors(method: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy `tensors` back, under every name."""
    method.load_state_dict({name: values[first] for name, (first, _) in _named(method).items()})


def _named(method: nn.Module) -> dict[str, tuple[str, Tensor]]:
    first: dict[int, str] = {}
    state = method.state_dict(keep_vars=True)
    return {name: (first.setdefault(id(value), name), value) for name, value in state.items()}


def save_model(
    folder: str | Path,
    method: Method,
    config: Config,
    name: str,
    *,
    weights: Mapping[str, Tensor] | None = None,
    step: int = 0,
    epoch: int = 0,
    score: float | None = None,
    fingerprint: dict[str, Any] | None = None,
) -> Path:
    """Write ``config.yaml``, then ``model.safetensors``, each at once or not at all.

    Parameters
    ----------
    folder : path
    method : Method
    config : Config
        The whole profile; the other methods are left out.
    name : str
    weights : mapping of str to Tensor, optional
        Values that replace the method's own (an average of the weights), by the names of `tensors`.
    step, epoch, score
        See `ModelCard`.
    fingerprint : dict, optional
        What training depended on; lets `resdm.training` see that nothing is left to do.
    """
    folder = Path(folder)
    own = replace(config, methods={name: config.method(name)})
    heading = f"# {name}, trained by resdm" + (f": {config.notice}" if config.notice else "")
    write_text(folder / "config.yaml", heading + "\n" + yaml.safe_dump(to_dict(own), sort_keys=False))
    # Clones, since safetensors refuses tensors that share memory and takes contiguous ones only. One metadata key:
    # the order of several is not fixed, and the same training must give the same bytes.
    values = {key: (weights or {}).get(key, value) for key, value in tensors(method).items()}
    values = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in values.items()}
    meta = {"name": name, "settings": _settings(own, name), "step": step, "epoch": epoch, "score": score}
    meta |= {"fingerprint": fingerprint}
    with atomic(folder / "model.safetensors") as temporary:
        save_file(values, temporary, metadata={"resdm": json.dumps(meta, sort_keys=True)})
    return folder


def load_card(folder: str | Path) -> ModelCard:
    """A model folder's description, checked, without its weights.

    Raises
    ------
    CheckpointError
        No such folder or file, or weights that were trained with other settings than ``config.yaml`` says.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder; train the method first (resdm train), or name another")
    missing = [file for file in ("config.yaml", "model.safetensors") if not (folder / file).is_file()]
    if missing:
        unfinished = (folder / "state.pt").is_file()
        remedy = "its training is unfinished: run it again, it goes on" if unfinished else "train the method first"
        raise CheckpointError(f"{folder}: no {' and no '.join(missing)} there; {remedy}")
    try:
        config = load_config((folder / "config.yaml").resolve())
    except ConfigError as error:
        raise CheckpointError(f"not a model of this version of resdm: {error}") from error
    meta = read_metadata(folder)
    name = meta["name"]
    if name not in config.methods:
        raise CheckpointError(
            f"{folder}: the weights are of method {name!r}, config.yaml describes {', '.join(config.methods)}; "
            "copy config.yaml and model.safetensors from one folder"
        )
    different = differences(meta["settings"], _settings(config, name))
    different = [row for row in different if row[1] != ABSENT]  # settings that came with a later version
    if different:
        raise CheckpointError(
            f"{folder}: model.safetensors was trained with other settings than config.yaml says:\n"
            f"{describe(different, 'in the weights', 'in config.yaml')}\n"
            "copy config.yaml and model.safetensors from one folder"
        )
    digest = sha256(folder / "model.safetensors")
    return ModelCard(folder, name, config, digest, meta["step"], meta["epoch"], meta["score"])


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> tuple[Method, ModelCard]:
    """A trained method, ready to synthesise, and its card.

    Raises
    ------
    CheckpointError
        As `load_card`, and weights whose names or shapes are not the network's: names them.
    """
    card = load_card(folder)
    settings = card.settings
    # The file holds every weight: a pretrained text tower need not be fetched only to be overwritten.
    prior = getattr(settings, "prior", None)
    blank = replace(settings, prior=replace(prior, weights="none")) if prior is not None else settings
    with torch.random.fork_rng(devices=[]):  # the fresh weights are drawn for nothing; leave no trace of that
        method = build_method(blank, card.config.preprocess.grid.shape)
    method.config = settings
    with safe_open(card.folder / "model.safetensors", "pt", device=str(device)) as file:
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    found = {key: tuple(value.shape) for key, value in values.items()}
    method.resize(found)
    own = {key: tuple(value.shape) for key, value in tensors(method).items()}
    different = differences(found, own)
    if different:
        raise CheckpointError(
            f"{card.folder}/model.safetensors does not fit the network of {card.name!r} ({settings.kind}):\n"
            f"{describe(different, 'in the file', 'in the network')}\n"
            "it was written by another version of this method: train it again"
        )
    load_tensors(method.to(device), values)
    return method.eval().requires_grad_(False), card


def check_model(card: ModelCard, config: Config, name: str) -> None:
    """Raise `CheckpointError` where a model is not the one that a profile describes, naming each difference."""
    expected = to_dict(config.method(name))
    found = to_dict(card.settings)
    different = differences(
        {"grid": to_dict(card.config.preprocess.grid), f"methods.{name}": found},
        {"grid": to_dict(config.preprocess.grid), f"methods.{name}": expected},
    )
    different = [row for row in different if row[0].rsplit(".", 1)[-1] not in FREE_SETTINGS]
    if different:
        raise CheckpointError(
            f"{card.folder}: a model of another method or grid than profile {config.profile!r} describes:\n"
            f"{describe(different, 'in the model', 'in the profile')}\n"
            "train it with this profile, or use the profile that it was trained with"
        )


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """What `save_model` wrote beside the weights."""
    path = Path(folder) / "model.safetensors"
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["resdm"])
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not a model of resdm ({error}); delete it and train again") from error


def _settings(config: Config, name: str) -> dict[str, Any]:
    """What a synthesis depends on."""
    return {
        f"methods.{name}": to_dict(config.method(name)),
        "preprocess": to_dict(config.preprocess),
        "cohort.kind": config.cohort.kind,
    }


# ── training states ───────────────────────────────────────────────────────────────────────────────


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write a training state atomically: a kill leaves the one before."""
    with atomic(path) as temporary:
        torch.save(state, temporary)


def load_state(path: str | Path, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Read a training state (tensors and plain values only), if it is one of this configuration.

    Parameters
    ----------
    path : path
    fingerprint : dict
        What the training depends on; must equal the stored one, see `resdm.training.fingerprint`.

    Raises
    ------
    CheckpointError
        Not a state, or one of another configuration: says what differs. The file is left as it is.
    """
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored = state["fingerprint"]
    except Exception as error:  # torch raises what it likes on a broken archive
        raise CheckpointError(
            f"{path}: not a training state ({type(error).__name__}); delete it to start anew"
        ) from error
    different = differences(stored, fingerprint)
    if different:
        raise CheckpointError(
            f"{path}: a training state of another configuration:\n"
            f"{describe(different, 'in the state', 'now')}\n"
            "go back to the settings it was made with, train under another profile name or root (another work folder), "
            f"or delete {path.name} to start anew"
        )
    return state


def differences(one: Any, other: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """Where two nested mappings differ: (dotted key, value in one, value in the other), `ABSENT` where not there."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = [*one, *(key for key in other if key not in one)]
        return [
            row
            for key in keys
            for row in differences(one.get(key, ABSENT), other.get(key, ABSENT), f"{at}.{key}" if at else key)
        ]
    plain = [list(value) if isinstance(value, tuple) else value for value in (one, other)]
    return [] if plain[0] == plain[1] else [(at, *plain)]


def describe(different: list[tuple[str, Any, Any]], one: str, other: str, most: int = 8) -> str:
    """`differences` as lines for an error message."""
    lines = [f"  {key}: {a} {one}, {b} {other}" for key, a, b in different[:most]]
    return "\n".join(lines + ([f"  … and {len(different) - most} more"] if len(different) > most else []))
