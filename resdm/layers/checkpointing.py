"""Less memory for more work: what a block computes inside is made again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

_aten = torch.ops.aten
_PRODUCTS = [
    getattr(_aten, name).default
    for name in ("convolution", "mm", "addmm", "bmm", "_scaled_dot_product_flash_attention_for_cpu",
                 "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
                 "_scaled_dot_product_cudnn_attention")
    if hasattr(_aten, name)
]  # fmt: skip
"""Operations whose results are kept: they are nearly all of the work. Norms, SiLU, sums and copies are cheap."""


def recomputable(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A ``forward`` that keeps less for the backward pass, as the module's ``recompute`` says.

    ``"all"``: its inputs alone, for a third more work. ``"pointwise"``: its inputs and the results of convolutions and
    matrix products, for next to none. ``None``: everything, as usual. Losses and gradients are the same, dropout's
    masks included.
    """

    @wraps(forward)
    def run(module: nn.Module, *inputs: Tensor) -> Tensor:
        if module.recompute is None or not torch.is_grad_enabled():
            return forward(module, *inputs)
        keep = partial(create_selective_checkpoint_contexts, _PRODUCTS)
        options = {"context_fn": keep} if module.recompute == "pointwise" else {}
        return checkpoint(forward, module, *inputs, use_reentrant=False, **options)

    return run
