"""The input of a method: volumes and prior information of a few people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from resdm.settings import TRACERS

__all__ = ["PROMPT_FIELDS", "TRACERS", "Batch", "Prior"]

PROMPT_FIELDS = ("age", "sex")
"""Fields of `Prior` that a prompt can contain."""


@dataclass(frozen=True)
class Prior:
    """Prior information, one entry per person; None is left out of the prompt.

    Parameters
    ----------
    age : tuple of float or None
        Age at scan, in years.
    sex : tuple of {"F", "M"} or None
    shard : (int, int)
        Rank of this process and number of processes: person i here is person ``i · processes + rank`` of the batch.
    """

    age: tuple[float | None, ...]
    sex: tuple[str | None, ...]
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if len(self.age) != len(self.sex):
            raise ValueError(f"prior: {len(self.age)} ages for {len(self.sex)} sexes")

    def __len__(self) -> int:
        return len(self.age)

    @property
    def global_size(self) -> int:
        """People of the batch in all processes together."""
        return len(self) * self.shard[1]

    def local(self, values: Tensor, dim: int = 0) -> Tensor:
        """These people's part of values drawn for the whole batch, so that draws do not depend on the processes."""
        rank, processes = self.shard
        return values.unflatten(dim, (-1, processes)).select(dim + 1, rank)

    def without(self, *fields: str) -> Prior:
        """The same people without ``"age"`` or ``"sex"`` or both."""
        return replace(self, **{name: (None,) * len(self) for name in fields})


@dataclass(frozen=True)
class Batch:
    """Sessions of a few people on the common grid.

    Parameters
    ----------
    mri : Tensor (B, 1, X, Y, Z)
        T1-weighted MRI y_0, RAS+, intensities in [0, 1].
    pet : Tensor (B, 2, X, Y, Z)
        PET x_0 in `TRACERS` order, intensities in [0, 1]; zeros where a tracer is missing.
    present : Tensor (B, 2), bool
        Whether a PET exists.
    prior : Prior
        Age and sex.
    rows : Tensor (B,), int, optional
        Indices in the data set, if the sessions come from one.
    people : tuple of str
        The person of each session, if known.
    """

    mri: Tensor
    pet: Tensor
    present: Tensor
    prior: Prior
    rows: Tensor | None = None
    people: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.mri)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        move = {name: value.to(device, non_blocking=True) for name, value in self._tensors()}
        return replace(self, **move)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for asynchronous copies to a GPU; data loaders call it."""
        return replace(self, **{name: value.pin_memory() for name, value in self._tensors()})

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Tensor))
