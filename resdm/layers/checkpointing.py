"""Activation checkpointing: a block keeps its inputs only and is recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Checkpoint a ``forward`` if the module's ``checkpoint_activations`` is set; the values stay the same."""

    @wraps(forward)
    def run(module: nn.Module, *inputs: Tensor) -> Tensor:
        if module.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(forward, module, *inputs, use_reentrant=False)
        return forward(module, *inputs)

    return run
