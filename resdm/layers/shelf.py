"""Weights that are read now and then: they lie in a file, and in memory only while they are read."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import torch
from torch import nn


class Shelf:
    """Parameters moved into an unnamed temporary file that is mapped into memory.

    Each stays a parameter like any other: it can be read, written, saved and moved to a device, which takes it off the
    shelf. The values are the same.

    Parameters
    ----------
    weights : iterable of Parameter
        On the CPU. Others (a ``meta`` device) are left alone.

    Attributes
    ----------
    weights : list of Parameter
        What lies on it.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self.weights = [weight for weight in weights if weight.device.type == "cpu"]
        self._map: mmap.mmap | None = None
        ends = list(accumulate(weight.nbytes for weight in self.weights))
        if not ends:
            return
        with tempfile.TemporaryFile() as file:
            file.truncate(ends[-1])
            self._map = mmap.mmap(file.fileno(), ends[-1])  # shared with the file: what is written stays written
        for weight, end in zip(self.weights, ends, strict=True):
            start = end - weight.nbytes
            place = torch.frombuffer(self._map, dtype=weight.dtype, count=weight.numel(), offset=start)
            weight.data = place.view(weight.shape).copy_(weight.data)
        self.put_back()

    def put_back(self) -> None:
        """Give the memory back to the system; the next read takes the weights from the file (or its cache) again."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def clear(self) -> None:
        """Take the weights back into memory, to stay there."""
        for weight in self.weights:
            weight.data = weight.data.clone()
        self.weights, self._map = [], None

    def __getstate__(self) -> dict[str, Any]:
        return {"weights": [], "_map": None}  # in another process the weights come without their file
