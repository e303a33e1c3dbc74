"""A control that the paper does not show: the linear path of ResDM alone. It shows what the network adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from resdm.baselines.linear import mean_psnr
from resdm.baselines.regression import RegressionConfig
from resdm.batch import TRACERS, Batch, Prior
from resdm.method import Sessions
from resdm.residual_diffusion import PriorGuided
from resdm.settings import Precision
from resdm.unet import NetworkConfig


@dataclass(frozen=True)
class LinearPathConfig(RegressionConfig):
    """The linear path alone. Of the settings, those of ``prior`` alone have an effect."""

    kind: str = "linear_path"
    precision: Precision | None = "32-true"  # a closed form, see `resdm.baselines.linear`
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(linear_path=True))


class LinearPathAlone(PriorGuided):
    """The estimate from which ResDM starts, see `resdm.layers.paths.LinearPath`: no network, no training step.

    It is fitted on the training people alone, with the same text and the same dropout of age and sex. A method that
    does not beat it has a network that adds nothing to its own start.
    """

    config: LinearPathConfig
    closed_form = True

    @torch.no_grad()
    def fit(
        self, train: Dataset, validation: Dataset | None, collate: Callable[[list[Any]], Batch]
    ) -> list[dict[str, Any]]:
        """Score the path, which ``prepare`` has fitted: PSNR in the fitted voxels, before clipping, of each tracer."""
        errors: dict[str, list[Tensor]] = {}
        for one in Sessions(validation, collate) if validation is not None else ():
            squared = (self.estimate(one.mri, one.prior) - one.pet)[0, :, self.linear.voxels].square().mean(1)
            for tracer, has, error in zip(TRACERS, one.present[0], squared, strict=True):
                if has:
                    errors.setdefault(tracer, []).append(error)
        means = {tracer: mean_psnr(torch.stack(values)) for tracer, values in errors.items()}
        means = means or dict.fromkeys(TRACERS, float("nan"))  # nobody to validate on
        return [{"tracer": tracer, "fit": "linear path", "validation": mean} for tracer, mean in means.items()]

    @torch.no_grad()
    def synthesise(self, mri: Tensor, prior: Prior, generator: torch.Generator, *, steps: int | None = None) -> Tensor:
        """The estimate; ``generator`` and ``steps`` are not used."""
        return self.estimate(mri, prior).clamp(0, 1)
