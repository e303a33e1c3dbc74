"""Activation checkpointing: what a block computes inside is made again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputable(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A ``forward`` that keeps its inputs alone where the module's ``recompute`` says so: a third more work.

    Losses and gradients are the same, dropout's masks included.
    """

    @wraps(forward)
    def run(module: nn.Module, *inputs: Tensor) -> Tensor:
        if module.recompute and torch.is_grad_enabled():
            return checkpoint(forward, module, *inputs, use_reentrant=False)
        return forward(module, *inputs)

    return run
