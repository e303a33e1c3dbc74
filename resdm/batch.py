"""The input of a method: volumes and prior information of a few people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from resdm.settings import PROMPT_FIELDS, TRACERS

__all__ = ["PROMPT_FIELDS", "TRACERS", "Batch", "Prior"]


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
    more : mapping of str to tuple of float, str or None
        Further attributes: numbers, or categories as text. See `resdm.attributes`.

    Raises
    ------
    ValueError
        Fields of different lengths.
    """

    age: tuple[float | None, ...]
    sex: tuple[str | None, ...]
    shard: tuple[int, int] = (0, 1)
    more: Mapping[str, tuple[float | str | None, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.age) != len(self.sex):
            raise ValueError(f"prior: {len(self.age)} ages for {len(self.sex)} sexes")
        for name, values in self.more.items():
            if len(values) != len(self.age):
                raise ValueError(f"prior: {len(values)} values of {name} for {len(self.age)} people")

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

    @property
    def fields(self) -> tuple[str, ...]:
        """Age, sex and the further attributes."""
        return (*PROMPT_FIELDS, *self.more)

    def values(self, name: str) -> tuple[float | str | None, ...]:
        """A field of everyone; None for a further attribute that is not here."""
        return getattr(self, name) if name in PROMPT_FIELDS else self.more.get(name, (None,) * len(self))

    def people(self) -> list[dict[str, float | str | None]]:
        """Each person's fields, by name."""
        return [{name: self.values(name)[i] for name in self.fields} for i in range(len(self))]

    def stating(self, values: Mapping[str, Sequence[float | str | None]]) -> Prior:
        """The same people with other values of age and sex; further attributes are replaced as a whole."""
        own = {name: tuple(values[name]) for name in PROMPT_FIELDS if name in values}
        more = {name: tuple(column) for name, column in values.items() if name not in PROMPT_FIELDS}
        return replace(self, **own, more=more)

    def without(self, *fields: str) -> Prior:
        """The same people with None in some fields."""
        return self.stating(
            {name: (None,) * len(self) if name in fields else self.values(name) for name in self.fields}
        )

    def dropped(self, drop: Tensor) -> Prior:
        """The same people with None where ``drop`` (fields, B) is true."""
        kept = zip(self.fields, drop.tolist(), strict=True)
        return self.stating({
            name: tuple(None if gone else value for gone, value in zip(row, self.values(name), strict=True))
            for name, row in kept
        })  # fmt: skip

    @classmethod
    def joined(cls, priors: Sequence[Prior]) -> Prior:
        """The people of several priors with the same fields."""
        names = priors[0].fields if priors else PROMPT_FIELDS
        columns = {name: tuple(value for prior in priors for value in prior.values(name)) for name in names}
        return cls(columns.pop("age"), columns.pop("sex"), more=columns)


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
        Age, sex and further attributes.
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
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in self._tensors()})

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for asynchronous copies to a GPU; data loaders call it."""
        return replace(self, **{name: value.pin_memory() for name, value in self._tensors()})

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, value) for name, value in vars(self).items() if isinstance(value, Tensor))
