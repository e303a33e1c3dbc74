"""f_θ of Eq. 3: a 3D U-Net with cross-attention to the prior at its bottleneck (Eq. 5).

The layout is the released network's (guided-diffusion family: GroupNorm, SiLU, scale-shift time embedding), with the
middle block in use and attention over text tokens. ``stem: haar`` wraps it in an orthonormal wavelet transform and its
inverse: the same widths at an eighth of the voxels, and the same diffusion.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resdm.layers.paths import GlobalPath
from resdm.layers.upsampling import upsample
from resdm.layers.wavelet import haar, inverse_haar


@dataclass(frozen=True)
class NetworkConfig:
    """f_θ of Eq. 3: the released widths by default."""

    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    blocks: int = 1  # residual blocks per level of the encoder; the decoder has one more
    attention_levels: tuple[int, ...] = (3,)  # self-attention at these levels, 0 being the finest
    attention_heads: int = 1
    cross_heads: int = 8
    time_dim: int = 32  # sinusoidal; mapped to 4 × this
    norm_groups: int = 32  # of every GroupNorm; fewer where they do not divide the channels
    dropout: float = 0.0
    stem: Literal["haar", "none"] = "none"  # haar: orthonormal, 8 channels at half resolution
    global_path: bool = True  # addition (resdm.layers.paths): the coarse MRI scales and shifts every block
    linear_path: bool = False  # addition, for small grids: the network corrects a linear estimate of the PET
    fused_upsampling: bool = True  # nearest and convolution in one call: other last bits, a third of the work
    checkpoint_activations: bool = False  # recompute blocks in the backward pass: less memory, a third more work


def sinusoidal(t: Tensor, dim: int) -> Tensor:
    """Transformer position encoding of step indices (B,) → (B, dim)."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(dim // 2, device=t.device) / (dim // 2))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class GroupNorm(nn.GroupNorm):
    """GroupNorm in the precision of its input, with statistics in float32.

    Autocast would turn every input and output into float32: at 128³ in bfloat16 a third of the peak memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, …) → the same."""
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def norm(channels: int, groups: int) -> GroupNorm:
    """GroupNorm with fewer groups if they do not divide the channels."""
    return GroupNorm(math.gcd(channels, groups), channels)


class ResidualBlock(nn.Module):
    """Norm, SiLU, conv, scale-shift by the time embedding, SiLU, conv, a skip connection; then self-attention."""

    def __init__(self, channels_in: int, channels_out: int, config: NetworkConfig, attend: bool = False) -> None:
        super().__init__()
        groups, dropout = config.norm_groups, config.dropout
        self.checkpoint_activations = config.checkpoint_activations
        conv_in, conv_out = (nn.Conv3d(n, channels_out, 3, padding=1) for n in (channels_in, channels_out))
        self.first = nn.Sequential(norm(channels_in, groups), nn.SiLU(), conv_in)
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.time_dim, 2 * channels_out))
        self.norm = norm(channels_out, groups)
        self.second = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), conv_out)
        self.skip = nn.Conv3d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.attention = Attention(channels_out, config.attention_heads, groups) if attend else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C_in, X, Y, Z), (B, time_dim) → (B, C_out, X, Y, Z)."""
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(self._forward, x, time, use_reentrant=False)
        return self._forward(x, time)

    def _forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[..., None, None, None].chunk(2, dim=1)  # (B, C, 1, 1, 1) each
        return self.attention(self.skip(x) + self.second(self.norm(self.first(x)) * (1 + scale) + shift))


class Attention(nn.Module):
    """Multi-head attention of voxels over ``context`` (Eq. 5) or over themselves, with a residual."""

    def __init__(self, channels: int, heads: int, groups: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm(channels, groups)
        self.q = nn.Linear(channels, channels, bias=False)
        self.kv = nn.Linear(context_dim or channels, 2 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, X, Y, Z), (B, tokens, context_dim) → (B, C, X, Y, Z)."""
        q, k, v = self.project(x, context)
        attended = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
        return x + self.out(attended).transpose(1, 2).reshape(x.shape)

    def project(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, voxels, d), keys and values (B, heads, tokens, d)."""
        voxels = self.norm(x).flatten(2).transpose(1, 2)  # (B, voxels, C)
        k, v = self.kv(voxels if context is None else context).chunk(2, dim=-1)
        return tuple(rearrange(z, "b n (h d) -> b h n d", h=self.heads) for z in (self.q(voxels), k, v))


class UNet(nn.Module):
    """f_θ(x_t, y_0, t, text) → x̂_0, for at least 2^(levels − 1) voxels per axis (twice that with the Haar stem)."""

    def __init__(self, config: NetworkConfig, context_dim: int) -> None:
        super().__init__()
        self.config = config
        fold = 8 if config.stem == "haar" else 1
        widths = [config.width * multiplier for multiplier in config.multipliers]
        time_dim, groups = 4 * config.time_dim, config.norm_groups
        self.time = nn.Sequential(nn.Linear(config.time_dim, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        self.global_path = GlobalPath(time_dim) if config.global_path else None
        self.inlet = nn.Conv3d((4 if config.linear_path else 2) * fold, widths[0], 3, padding=1)

        self.down, skips, channels = nn.ModuleList(), [widths[0]], widths[0]
        for level, width in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(ResidualBlock(channels, width, config, level in config.attention_levels))
                skips.append(channels := width)
            if level < len(widths) - 1:
                self.down.append(nn.Conv3d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle_in = ResidualBlock(channels, channels, config, attend=True)
        self.cross_attention = Attention(channels, config.cross_heads, groups, context_dim)
        self.middle_out = ResidualBlock(channels, channels, config)
        self.up = nn.ModuleList()
        for level, width in reversed([*enumerate(widths)]):
            for _ in range(config.blocks + 1):
                self.up.append(ResidualBlock(channels + skips.pop(), width, config, level in config.attention_levels))
                channels = width
            if level > 0:
                self.up.append(nn.Conv3d(channels, channels, 3, padding=1))
        self.outlet = nn.Sequential(norm(channels, groups), nn.SiLU(), nn.Conv3d(channels, fold, 3, padding=1))
        nn.init.normal_(self.outlet[-1].weight, std=1e-3)  # starts near 0

    def forward(self, x_t: Tensor, y0: Tensor, t: Tensor, context: Tensor, maps: Tensor | None = None) -> Tensor:
        """Predict x_0 (B, 1, X, Y, Z), in (−1, 1) by the released network's tanh.

        Inputs: x_t and y0 (B, 1, X, Y, Z), step indices t (B,), context (B, tokens, context_dim). With ``linear_path``
        also `LinearPath.maps` (B, 2, X, Y, Z); the output is then x_0 minus the estimate, in standard deviations.
        """
        x, skips, time = self.encode(x_t, y0, t, maps)
        x = self.middle_out(self.cross_attention(x, context), time)
        for part in self.up:
            if isinstance(part, nn.Conv3d):
                x = upsample(x, part, skips[-1].shape[2:], self.config.fused_upsampling)
            else:
                x = part(torch.cat([x, skips.pop()], dim=1), time)
        x = self.outlet(x)
        if self.config.stem == "haar":
            x = inverse_haar(x)[..., : y0.shape[2], : y0.shape[3], : y0.shape[4]]
        return x if self.config.linear_path else x.tanh()

    def encode(self, x_t: Tensor, y0: Tensor, t: Tensor, maps: Tensor | None) -> tuple[Tensor, list[Tensor], Tensor]:
        """Bottleneck features, skips and time embedding."""
        x = torch.cat([x_t, y0] if maps is None else [x_t, y0, maps], dim=1)  # (B, 2 or 4, X, Y, Z)
        if self.config.stem == "haar":
            pad = [n % 2 for n in x.shape[:1:-1]]  # z, y, x
            x = haar(F.pad(x, [v for p in pad for v in (0, p)]))  # (B, 16, X/2, Y/2, Z/2)
        time = self.time(sinusoidal(t, self.config.time_dim).to(x.dtype))  # (B, 4 time_dim)
        if self.global_path is not None:
            time = time + self.global_path(y0)
        skips = [x := self.inlet(x)]
        for part in self.down:
            skips.append(x := part(x) if isinstance(part, nn.Conv3d) else part(x, time))
        return self.middle_in(x, time), skips, time
