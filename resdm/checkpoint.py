"""Model folders and training states.

``model.safetensors`` holds the weights to synthesise with (averaged, where the method has an EMA; the best by
validation). Its metadata hold the method's settings and the grid's shape, so the file alone rebuilds the method.
``state.pt`` exists during training and holds everything that an exact resume needs.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resdm.io import atomic
from resdm.method import Method, build_method
from resdm.settings import ConfigError, method_from_dict, to_dict
from resdm.weights import CheckpointError, read_weights, save_weights

ABSENT = "nothing"
"""Value of a key that one of two compared mappings lacks."""


_METADATA = {"name", "method", "shape", "source", "step", "epoch", "score", "fingerprint"}


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
    *,
    name: str = "model",
    weights: Mapping[str, Tensor] | None = None,
    source: Mapping[str, Any] | None = None,
    step: int = 0,
    epoch: int = 0,
    score: float | None = None,
    fingerprint: dict[str, Any] | None = None,
) -> Path:
    """Write a method's settings, shape and weights to ``model.safetensors`` in a folder, atomically.

    Parameters
    ----------
    weights : mapping of str to Tensor, optional
        Values that replace those of the method (averaged weights), by the names of `tensors`.
    source : mapping, optional
        Further settings that the model depends on (preprocessing, cohort), as plain values.
    step, epoch : int
        When in training the weights were taken.
    score : float, optional
        Their validation score; None without validation people.
    """
    values = {key: (weights or {}).get(key, value) for key, value in tensors(method).items()}
    meta = {"name": name, "method": to_dict(method.config), "shape": list(method.shape), "source": dict(source or {})}
    meta |= {"step": step, "epoch": epoch, "score": score, "fingerprint": fingerprint}
    save_weights(Path(folder) / "model.safetensors", values, meta)
    return Path(folder)


def read_metadata(folder: str | Path) -> dict[str, Any]:
    """The metadata that `save_model` wrote: name, method, shape, source, step, epoch, score, fingerprint.

    Raises
    ------
    CheckpointError
        No such folder or file, a damaged one, or not a model of this version.
    """
    return _read(folder)[0]


def _read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = Path(folder) / "model.safetensors"
    if not path.parent.is_dir():
        raise CheckpointError(f"{folder}: no such model folder; train the method first (resdm train), or name another")
    if not path.is_file():
        unfinished = (path.parent / "state.pt").is_file()
        remedy = "its training is unfinished: run it again to continue" if unfinished else "train the method first"
        raise CheckpointError(f"{folder}: no model.safetensors there; {remedy}")
    meta, values = read_weights(path, "a model", "train again")
    if not meta.keys() >= _METADATA:
        raise CheckpointError(f"{path}: not a model of this version of resdm; delete it and train again")
    return meta, values


def load_model(folder: str | Path, device: torch.device | str = "cpu", *, trust_code: bool = False) -> Method:
    """A trained method, ready to synthesise, from ``model.safetensors`` alone.

    ``trust_code`` allows importing a class of another package that the file names (``kind: module:Class``). Without it,
    such a class is used only if the program has imported its module already.

    Raises
    ------
    CheckpointError
        No model there, code that is not trusted, or weights whose names or shapes are not the network's.
    """
    (meta, values), path = _read(folder), Path(folder) / "model.safetensors"
    try:
        settings = method_from_dict(meta["method"], str(path), trust_code)
    except ConfigError as error:
        raise CheckpointError(f"not a model that this version of resdm can use: {error}") from error
    # The file holds every weight, so pretrained weights of the text tower need not be downloaded.
    prior = getattr(settings, "prior", None)
    blank = replace(settings, prior=replace(prior, weights="none")) if hasattr(prior, "weights") else settings
    try:
        with torch.random.fork_rng(devices=[]):  # fresh weights are drawn and discarded
            method = build_method(blank, tuple(meta["shape"]))
    except Exception as error:  # types of stored settings are not checked, so anything may be raised
        raise CheckpointError(
            f"{path}: its settings do not build a method of this version of resdm ({error}); train it again"
        ) from error
    method.config = settings
    stored = {key: tuple(value.shape) for key, value in values.items()}
    method.resize(stored)
    different = differences(stored, {key: tuple(value.shape) for key, value in tensors(method).items()})
    if different:
        raise CheckpointError(
            f"{path} does not fit the network of {meta['name']!r} ({settings.kind}):\n"
            f"{describe(different, 'in the file', 'in the network')}\n"
            "it was written by another version of this method: delete it and train again"
        )
    load_tensors(method.to(device), values)
    return method.eval().requires_grad_(False)


def save_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write a training state atomically: a kill leaves the previous one."""
    with atomic(path) as temporary:
        torch.save(state, temporary)


def load_state(path: str | Path, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """Read a training state (tensors and plain values only) whose `resdm.training.fingerprint` is this one.

    Raises
    ------
    CheckpointError
        Not a state, or one of another configuration. The message lists the differences; the file is not changed.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:  # torch reads damaged tensors as they are
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(damaged)
        state = torch.load(path, map_location="cpu", weights_only=True)
        stored = state["fingerprint"]
    except Exception as error:  # a broken archive raises various errors
        raise CheckpointError(
            f"{path}: not a training state ({type(error).__name__}); delete it to start again"
        ) from error
    different = differences(stored, fingerprint)
    if different:
        raise CheckpointError(
            f"{path}: a training state of another configuration:\n"
            f"{describe(different, 'in the state', 'now')}\n"
            "go back to the settings it was made with, train under another profile name or root (another work folder), "
            f"or delete {path.name} to start again"
        )
    return state


def differences(one: Any, other: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """Differences of two nested mappings: (dotted key, value in one, value in the other), `ABSENT` if missing."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = [*one, *(key for key in other if key not in one)]
        return [
            row
            for key in keys
            for row in differences(one.get(key, ABSENT), other.get(key, ABSENT), f"{at}.{key}" if at else key)
        ]
    plain = [list(value) if isinstance(value, tuple) else value for value in (one, other)]
    return [] if plain[0] == plain[1] else [(at, *plain)]


def describe(different: list[tuple[str, Any, Any]], one: str, other: str) -> str:
    """`differences` as lines for an error message."""
    lines = [f"  {key}: {a} {one}, {b} {other}" for key, a, b in different]
    return "\n".join(lines[:8] + ([f"  … and {len(lines) - 8} more"] if len(lines) > 8 else []))
