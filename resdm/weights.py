"""Weights on disk: safetensors with one entry of metadata, JSON, and a digest over all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from resdm.io import atomic

KEY = "resdm-sha256"
"""Name of the entry: digest, space, JSON. One entry: the order of several is not fixed."""


class CheckpointError(ValueError):
    """A model folder or a training state that cannot be used: the fault, the expected content, the remedy."""


def save_weights(path: str | Path, values: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and plain values atomically; the same content gives the same bytes."""
    # Clones: safetensors refuses tensors that share memory, and takes contiguous ones only.
    values = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in values.items()}
    text = json.dumps(meta, sort_keys=True)
    with atomic(path) as temporary:
        save_file(values, temporary, metadata={KEY: f"{_digest(text, values)} {text}"})


def read_weights(path: str | Path, what: str, again: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save_weights` wrote: plain values and tensors, on the CPU.

    Raises `CheckpointError` for a damaged file; ``what`` it should be and what to do ``again`` complete the message.
    """
    try:
        with safe_open(path, "pt") as file:
            digest, _, text = file.metadata()[KEY].partition(" ")
            values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        meta = dict(json.loads(text))
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not {what} of resdm ({error}); delete it and {again}") from error
    if digest != _digest(text, values):
        raise CheckpointError(f"{path}: damaged, its bytes are not those that were written; delete it and {again}")
    return meta, values


def _digest(text: str, values: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for key, value in sorted(values.items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
