"""The orthonormal 3D Haar transform of the network's stem: 8 channels at half resolution, exactly invertible."""

from __future__ import annotations

import math
from functools import cache

import torch
from einops import rearrange
from torch import Tensor


def haar(x: Tensor) -> Tensor:
    """(B, C, X, Y, Z) → (B, 8C, X/2, Y/2, Z/2); even sizes only. White noise stays white noise of the same variance."""
    blocks = rearrange(x, "b c (x i) (y j) (z k) -> b c (i j k) x y z", i=2, j=2, k=2)
    bands = torch.einsum("nm, b c m x y z -> b c n x y z", _basis(x.device, x.dtype), blocks)
    return bands.flatten(1, 2)


def inverse_haar(bands: Tensor) -> Tensor:
    """(B, 8C, X, Y, Z) → (B, C, 2X, 2Y, 2Z), the exact inverse of `haar`."""
    bands = bands.unflatten(1, (-1, 8))
    blocks = torch.einsum("nm, b c n x y z -> b c m x y z", _basis(bands.device, bands.dtype), bands)
    return rearrange(blocks, "b c (i j k) x y z -> b c (x i) (y j) (z k)", i=2, j=2, k=2)


@cache
def _basis(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The 8 × 8 orthonormal basis of a 2 × 2 × 2 block; row 0 is the block's mean times √8."""
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device=device, dtype=dtype) / math.sqrt(2)
    return torch.kron(torch.kron(pair, pair), pair)
