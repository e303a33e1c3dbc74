"""Methods with one model per tracer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from resdm.batch import TRACERS, Batch, Prior
from resdm.method import Method
from resdm.settings import MethodConfig


class TracerModel(nn.Module):
    """The model of one tracer in `PerTracer`: a `Method` for one PET, without prior."""

    def __init__(self) -> None:
        super().__init__()
        self.scalars: dict[str, Tensor] = {}

    def losses(self, mri: Tensor, pet: Tensor, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """As `Method.losses`, for MRI and PET of (B, 1, X, Y, Z) each, intensities in [0, 1], no PET missing."""
        raise NotImplementedError

    def synthesise(self, mri: Tensor, generator: torch.Generator) -> Tensor:
        """The PET of each MRI, both (B, 1, X, Y, Z) in [0, 1]."""
        raise NotImplementedError

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by name."""
        raise NotImplementedError


class PerTracer(Method):
    """Two identical models, one per tracer, as in the paper for Pix2Pix, SC-GAN and TransUNet (§4.2).

    Each learns from the people with its tracer, and takes no step if nobody in a batch has it.
    Names of optimisers and scalars start with the tracer: ``amyloid.generator``.
    """

    def __init__(self, config: MethodConfig, shape: tuple[int, int, int]) -> None:
        super().__init__(config, shape)
        self.models = nn.ModuleDict({tracer: self.tracer_model() for tracer in TRACERS})

    def tracer_model(self) -> TracerModel:
        """One of the two models, with fresh weights."""
        raise NotImplementedError

    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """Amyloid's losses over the people who have amyloid, then tau's."""
        self.scalars = {}
        for channel, (tracer, model) in enumerate(self.models.items()):
            if not batch.present[:, channel].any():
                continue
            for name, loss in self.tracer_losses(model, batch, channel, generator):
                yield f"{tracer}.{name}", loss
            self.scalars |= {f"{tracer}.{name}": value for name, value in model.scalars.items()}

    def tracer_losses(
        self, model: TracerModel, batch: Batch, channel: int, generator: torch.Generator
    ) -> Iterator[tuple[str, Tensor]]:
        """The losses of one model, over the people of the batch who have its tracer."""
        has = batch.present[:, channel]
        return model.losses(batch.mri[has], batch.pet[has, channel : channel + 1], generator)

    @torch.no_grad()
    def synthesise(self, mri: Tensor, prior: Prior, generator: torch.Generator, *, steps: int | None = None) -> Tensor:
        """Each tracer from its own model; ``prior`` and ``steps`` are not used."""
        return torch.cat([model.synthesise(mri, generator) for model in self.models.values()], 1)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """Those of both models."""
        return {
            f"{tracer}.{name}": optimiser
            for tracer, model in self.models.items()
            for name, optimiser in model.optimisers().items()
        }
