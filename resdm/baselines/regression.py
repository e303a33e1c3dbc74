"""The control that the paper does not show: ResDM's network as plain L2 regression, no diffusion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from resdm.batch import TRACERS, Batch, Prior
from resdm.losses import total_loss
from resdm.prior import PriorConfig
from resdm.residual_diffusion import PriorGuided
from resdm.settings import MethodConfig
from resdm.unet import NetworkConfig


@dataclass(frozen=True)
class RegressionConfig(MethodConfig):
    """The control that the paper does not show: the same network, one pass, plain L2, no diffusion."""

    kind: str = "regression"
    lambda_high: float = 0.1
    ema: float = 0.9999
    ema_warmup: int = 2000
    network: NetworkConfig = field(default_factory=NetworkConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)


class Regression(PriorGuided):
    """One pass from MRI to both PETs with ResDM's network, text and loss: x_t := y_0 and t := 0.

    It predicts the mean PET given MRI and prompt, which PSNR and MAE reward. It lacks texture and contrast, which
    sampling restores.
    """

    config: RegressionConfig

    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """Eq. 7 without diffusion."""
        prior = self.prior.mask_fields(batch.prior, generator)
        x0_hat = self._regress(batch.mri, prior, batch.rows)
        loss, self.scalars = total_loss(x0_hat, batch.pet, batch.present, self.config.lambda_high)
        yield "model", loss

    @torch.no_grad()
    def synthesise(self, mri: Tensor, prior: Prior, generator: torch.Generator, *, steps: int | None = None) -> Tensor:
        """One deterministic pass; ``generator`` and ``steps`` are not used."""
        return self._regress(mri, prior).clamp(0, 1)

    def _regress(self, mri: Tensor, prior: Prior, rows: Tensor | None = None) -> Tensor:
        t = torch.zeros(len(mri), dtype=torch.long, device=mri.device)
        y0 = mri.expand(-1, len(TRACERS), -1, -1, -1)
        return self.predict(y0, mri, t, self.context(prior), self.estimate(mri, prior, rows))
