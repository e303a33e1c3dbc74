"""The control for joint synthesis that the paper does not show: ResDM as one model per tracer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from resdm.attributes import Known
from resdm.baselines.per_tracer import PerTracer
from resdm.batch import TRACERS, Batch, Prior
from resdm.residual_diffusion import ResidualDiffusion, ResidualDiffusionConfig
from resdm.settings import require


@dataclass(frozen=True)
class SeparateConfig(ResidualDiffusionConfig):
    """ResDM's settings; no intra-domain loss, which compares the two tracers of a person."""

    kind: str = "separate_diffusion"
    lambda_high: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lambda_high == 0, "lambda_high", self.lambda_high, "0: each model is trained on one tracer")


class SeparateDiffusion(PerTracer):
    """Two `ResidualDiffusion` models: each learns one tracer, from the people who have it, and synthesises that one.

    So it has twice ResDM's weights, and neither model learns from the other tracer. The models compute both PETs as
    ResDM does; the other one is neither trained nor used.
    """

    config: SeparateConfig

    def tracer_model(self) -> ResidualDiffusion:
        """ResDM with fresh weights."""
        return ResidualDiffusion(self.config, self.shape)

    @property
    def known(self) -> Known:
        """The same for both models."""
        return self.models[TRACERS[0]].known

    def prepare(self, seed: int, folder: Path | None = None, train: Iterable[Batch] = ()) -> None:
        """As ResDM, each model."""
        for model in self.models.values():
            model.prepare(seed, folder, train)

    def tracer_losses(
        self, model: ResidualDiffusion, batch: Batch, channel: int, generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        """Eq. 4 over the people of the batch who have the tracer."""
        only = torch.zeros_like(batch.present)
        only[:, channel] = batch.present[:, channel]
        yield from model.losses(replace(batch, present=only), generator)
        del model.scalars["high"]  # always 0 without the other tracer

    @torch.no_grad()
    def synthesise(self, mri: Tensor, prior: Prior, generator: torch.Generator, *, steps: int | None = None) -> Tensor:
        """Each tracer from its own model."""
        pets = [model.synthesise(mri, prior, generator, steps=steps) for model in self.models.values()]
        return torch.stack([pet[:, channel] for channel, pet in enumerate(pets)], 1)
