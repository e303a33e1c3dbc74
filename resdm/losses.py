"""The losses of Eq. 4, 6 and 7, masked by the tracers that each person has."""

from __future__ import annotations

import torch
from torch import Tensor


def reconstruction_loss(x0_hat: Tensor, x0: Tensor, present: Tensor) -> Tensor:
    """Eq. 4, L_rec: mean squared error over voxels and people, summed over the two tracers.

    Predicted and real PET are (B, 2, X, Y, Z), ``present`` (B, 2) bool. A tracer that nobody has adds 0.
    """
    error = (x0_hat - x0).square().flatten(2).mean(2)  # (B, 2)
    return _masked_mean(error, present).sum()


def difference_loss(x0_hat: Tensor, x0: Tensor, present: Tensor) -> Tensor:
    """Eq. 6, L_high: ``‖ |x̂¹ − x̂²| − |x¹ − x²| ‖²`` as a mean over voxels, and over the people who have both tracers.

    Shapes as in `reconstruction_loss`; 0 where nobody has both.
    """
    predicted = (x0_hat[:, 0] - x0_hat[:, 1]).abs()  # (B, X, Y, Z)
    real = (x0[:, 0] - x0[:, 1]).abs()
    error = (predicted - real).square().flatten(1).mean(1)  # (B,)
    return _masked_mean(error, present.all(1))


def total_loss(x0_hat: Tensor, x0: Tensor, present: Tensor, lambda_high: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 7, L = L_rec + λ L_high, and its two parts by name, detached."""
    rec, high = reconstruction_loss(x0_hat, x0, present), difference_loss(x0_hat, x0, present)
    return rec + lambda_high * high, {"rec": rec.detach(), "high": high.detach()}


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the masked values over the first axis; 0 (with a gradient of 0) if there are none."""
    return torch.where(mask, values, 0.0).sum(0) / mask.sum(0).clamp(min=1)
