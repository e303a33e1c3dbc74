"""The one contract between a method and everything around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from resdm.batch import TRACERS, Batch, Prior
from resdm.cpu_runtime import channels_last
from resdm.settings import ConfigError, MethodConfig, TrainingConfig, imported_method

NETWORKS = ("unet", "generator", "discriminator")
"""What methods call their networks."""

_REORDERED = 2**15  # weights of a kernel whose layout is changed on a CPU at most; measured on the phantoms' grid


class Method(nn.Module):
    """A way to synthesise amyloid and tau PET from MRI.

    The training loop and the synthesis know this class alone, never a method's name. A subclass is made from its
    configuration and the grid's shape, and implements `losses` and `synthesise`.

    Parameters
    ----------
    config : MethodConfig
        The method's own settings.
    shape : tuple of int
        Voxels of the grid (X, Y, Z).

    Attributes
    ----------
    scalars : dict of str to Tensor
        Detached values of the last `losses` call that are worth a column in ``history.csv``.
    shared_draws : bool
        Whether `losses` draws for all processes and takes its own part (`Prior.local`); otherwise each process
        has a stream of its own.
    closed_form : bool
        Whether `fit` finds the weights at once, from images that are not augmented, instead of steps on `losses`.
    """

    shared_draws: bool = False
    closed_form: bool = False

    def __init__(self, config: MethodConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.config = config
        self.shape = tuple(shape)
        self.scalars: dict[str, Tensor] = {}

    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """Yield ``(optimiser name, scalar loss)``; the loop steps that optimiser before it asks for the next.

        So an adversarial method yields its discriminator's loss, then the generator's against the discriminator as
        just updated. Before each backward pass the loop clears the gradients of that optimiser's weights alone.
        """
        raise NotImplementedError

    def synthesise(self, mri: Tensor, prior: Prior, generator: torch.Generator, *, steps: int | None = None) -> Tensor:
        """Both PETs of a few people.

        Parameters
        ----------
        mri : Tensor (B, 1, X, Y, Z)
            Intensities in [0, 1].
        prior : Prior
            B entries.
        generator : torch.Generator
            On the device of ``mri``; the only source of randomness.
        steps : int, optional
            Sampling steps; ``None`` takes the configuration's, methods without steps ignore it.

        Returns
        -------
        Tensor (B, 2, X, Y, Z)
            Amyloid, tau, in [0, 1].
        """
        raise NotImplementedError

    def fit(
        self, train: Dataset, validation: Dataset | None, collate: Callable[[list[Any]], Batch]
    ) -> list[dict[str, Any]]:
        """Find the weights in closed form, where the method is `closed_form`.

        Parameters
        ----------
        train, validation : Dataset
            Index → one session; ``validation`` is for what has to be chosen.
        collate : callable
            List of sessions → `Batch`.

        Returns
        -------
        list of dict
            Rows of ``history.csv``: ``tracer``, what was tried, and ``validation``, its score (higher is better).
        """
        raise NotImplementedError

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Take on the shapes of stored tensors, by name, before they are loaded; only closed forms have some to."""

    def prepare(self, seed: int, folder: Path | None = None, train: Iterable[Batch] = ()) -> None:
        """Work before the first step of a training, or before it goes on: what the method finds without gradients.

        ``folder`` may keep what other methods of the profile can start with too; ``train`` are the training sessions,
        a batch each.
        """

    def adapt(self, run: TrainingConfig, device: torch.device) -> None:
        """Lay the networks' weights out as suits the device, and have torch.compile make kernels where it is asked to.

        A convolution answers in the layout of its weights or of its input, and layers between keep it, so no input need
        be converted. On a CPU large kernels stay as they are: of few voxels they learn, and oneDNN's gradients would be
        copied into the other layout weight by weight. Weights keep their names.
        """
        if channels_last(run, device):
            for weight in self.parameters():
                if weight.dim() == 5 and (device.type != "cpu" or weight.numel() <= _REORDERED):
                    weight.data = weight.data.to(memory_format=torch.channels_last_3d)
        for name, module in self.named_modules():
            if run.compile and name.rpartition(".")[2] in NETWORKS:
                module.compile()

    def averages(self, name: str) -> bool:
        """Whether the EMA, where the configuration has one, holds the trained weight of this name: all by default."""
        return True

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by name, over trainable weights only: one AdamW named ``model`` unless overridden."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        config = self.config
        rate, decay = config.learning_rate, config.weight_decay
        return {"model": torch.optim.AdamW(weights, lr=rate, betas=config.betas, weight_decay=decay, fused=True)}


class TracerModel(nn.Module):
    """One tracer's model, as `PerTracer` drives it: a `Method` without the other tracer and without the prior."""

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
    """Two identical models, one a tracer, as the paper has Pix2Pix, SC-GAN and TransUNet (§4.2).

    Each learns from the people who have its tracer; where nobody in a batch has it, its model takes no step.
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
            has = batch.present[:, channel]
            if not has.any():
                continue
            for name, loss in model.losses(batch.mri[has], batch.pet[has, channel : channel + 1], generator):
                yield f"{tracer}.{name}", loss
            self.scalars |= {f"{tracer}.{name}": value for name, value in model.scalars.items()}

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


def build_method(config: MethodConfig, shape: tuple[int, int, int]) -> Method:
    """A method with fresh weights (drawn from torch's global random state: seed it first)."""
    found = imported_method(config.kind, "kind")
    if not issubclass(found, Method):
        raise ConfigError(f"kind is {config.kind!r}; expected a class made from resdm.Method")
    return found(config, shape)
