"""The contract between a method and the training and synthesis around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from resdm.attributes import Known
from resdm.batch import Batch, Prior
from resdm.cpu_runtime import channels_last
from resdm.settings import ConfigError, MethodConfig, TrainingConfig, imported_method

NETWORKS = ("unet", "generator", "discriminator")
"""Attribute names of networks, which torch.compile may compile."""

_MAX_REORDERED = 2**15  # largest kernel whose layout is changed on a CPU; measured on the phantoms' grid


class Method(nn.Module):
    """A way to synthesise amyloid and tau PET from MRI.

    Training and synthesis use this class only, never a method's name. A subclass takes its settings and the grid's
    shape (X, Y, Z), and implements `losses` and `synthesise`.

    Attributes
    ----------
    scalars : dict of str to Tensor
        Detached values of the last `losses` call, one column of ``history.csv`` each.
    shared_draws : bool
        Whether `losses` draws for all processes and takes its part (`Prior.local`); otherwise each process
        has a separate random stream.
    closed_form : bool
        Whether `fit` computes the weights from images without augmentation, instead of steps on `losses`.
    """

    shared_draws: bool = False
    closed_form: bool = False

    def __init__(self, config: MethodConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.config = config
        self.shape = tuple(shape)
        self.scalars: dict[str, Tensor] = {}

    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """Yield ``(optimiser name, scalar loss)``; the loop steps that optimiser before it asks for the next loss.

        So an adversarial method yields its discriminator's loss, then the generator's against the updated
        discriminator. Before each backward pass the loop clears the gradients of that optimiser's weights only.
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
            Sampling steps, by default the configuration's; not used by methods without steps.

        Returns
        -------
        Tensor (B, 2, X, Y, Z)
            Amyloid, tau, in [0, 1].

        Raises
        ------
        ValueError
            A number of ``steps`` that the method cannot take.
        """
        raise NotImplementedError

    def fit(
        self, train: Dataset, validation: Dataset | None, collate: Callable[[list[Any]], Batch]
    ) -> list[dict[str, Any]]:
        """Compute the weights of a `closed_form` method; ``validation`` selects its hyperparameters.

        Returns rows of ``history.csv``: ``tracer``, the candidate, and ``validation``, its score (higher is better).
        Raises `ValueError` where the sessions do not suffice.
        """
        raise NotImplementedError

    @property
    def known(self) -> Known:
        """Attributes besides age and sex that the method accepts, with their values, see `resdm.attributes`."""
        return getattr(getattr(self, "prior", None), "known", {})

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give parts that have a `resize` the shapes of stored tensors, by name, before they are loaded."""
        for name, part in list(self.named_modules()):  # a list: a part may replace its modules
            if not isinstance(part, Method) and hasattr(part, "resize"):
                at = f"{name}."
                part.resize({key.removeprefix(at): shape for key, shape in shapes.items() if key.startswith(at)})

    def prepare(self, seed: int, folder: Path | None = None, train: Iterable[Batch] = ()) -> None:
        """Work without gradients before a training starts or continues.

        ``folder`` caches results that methods share; ``train`` yields the training sessions, one batch each.
        """

    def adapt(self, run: TrainingConfig, device: torch.device) -> None:
        """Set the memory layout of the weights for the device, and compile the networks if ``run.compile`` is set.

        Convolutions work in the layout of their weights, so no input is converted. On a CPU large kernels, which are
        applied at few voxels, stay as they are: oneDNN would copy their gradients into the other layout. Weights keep
        their names.
        """
        if channels_last(run, device):
            for weight in self.parameters():
                if weight.dim() == 5 and (device.type != "cpu" or weight.numel() <= _MAX_REORDERED):
                    weight.data = weight.data.to(memory_format=torch.channels_last_3d)
        for name, module in self.named_modules():
            if run.compile and name.rpartition(".")[2] in NETWORKS:
                module.compile()

    def averages(self, name: str) -> bool:
        """Whether the EMA follows the trained weight of this name: all by default."""
        return True

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by name, over trainable weights only: one AdamW named ``model`` by default."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        config = self.config
        rate, decay = config.learning_rate, config.weight_decay
        return {"model": torch.optim.AdamW(weights, lr=rate, betas=config.betas, weight_decay=decay, fused=True)}


@dataclass(frozen=True)
class Sessions:
    """A data set session by session, as often as it is read; one session at a time is in memory."""

    data: Dataset
    collate: Callable[[list[Any]], Batch]

    def __iter__(self) -> Iterator[Batch]:
        return (self.collate([self.data[i]]) for i in range(len(self.data)))


def build_method(config: MethodConfig, shape: tuple[int, int, int]) -> Method:
    """A method on a grid of ``shape`` voxels, with fresh weights from torch's global random state: seed it first.

    Raises `ConfigError` where ``kind`` names no method, or code that cannot be imported.
    """
    cls = imported_method(config.kind, "kind")
    if not issubclass(cls, Method):
        raise ConfigError(f"kind is {config.kind!r}; expected a subclass of resdm.Method")
    return cls(config, shape)
