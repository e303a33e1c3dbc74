"""TransUNet: a residual CNN, a transformer on its deepest map and a U-Net decoder; one model per tracer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdm.baselines.adversarial import (
    AdversarialConfig,
    ConditionalGAN,
    Conv3d,
    Shape,
    TokenEmbedding,
    conv_norm_relu,
    halved,
    vit_encoder,
)
from resdm.baselines.per_tracer import PerTracer


@dataclass(frozen=True)
class TransUNetConfig(AdversarialConfig):
    """TransUNet (Chen et al. 2021) trained as Pix2Pix, one model per tracer."""

    kind: str = "transunet"
    width: int = 32
    units: tuple[int, int, int] = (3, 4, 9)  # residual units at 1/4, 1/8 and 1/16
    dim: int = 512
    layers: int = 8
    heads: int = 8
    dropout: float = 0.1


class StandardisedConv3d(Conv3d):
    """Convolution whose weights have mean 0 and variance 1 over each output channel (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """As `torch.nn.Conv3d`."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3, 4), correction=0, keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (variance + 1e-5).sqrt(), self.bias)


def _conv_norm(before: int, after: int, kernel: int, stride: int = 1, groups: int | None = None) -> list[nn.Module]:
    """Standardised convolution and group norm."""
    conv = StandardisedConv3d(before, after, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.GroupNorm(after, after) if groups else nn.GroupNorm(math.gcd(32, after), after, eps=1e-6)]


class Bottleneck(nn.Module):
    """(B, before, x, y, z) → (B, after, x / stride, …): 1³, 3³ and 1³ convolutions on a quarter of the channels."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        middle = after // 4
        self.branch = nn.Sequential(
            *_conv_norm(before, middle, 1), nn.ReLU(),
            *_conv_norm(middle, middle, 3, stride), nn.ReLU(),
            *_conv_norm(middle, after, 1),
        )  # fmt: skip
        self.shortcut = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(*_conv_norm(before, after, 1, stride, groups=after))

    def forward(self, x: Tensor) -> Tensor:
        """Branch plus shortcut, ReLU."""
        return F.relu(self.shortcut(x) + self.branch(x))


def _stage(before: int, after: int, units: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(Bottleneck(before, after, stride), *(Bottleneck(after, after) for _ in range(units - 1)))


class TransUNetGenerator(nn.Module):
    """Hybrid encoder, decoder with three skips, tanh.

    ``grid`` is the shape of the map whose voxels are the tokens: 1/16 of ``shape``, or 1/8 where the shortest axis has
    fewer than 64 voxels.
    """

    def __init__(self, config: TransUNetConfig, shape: Shape) -> None:
        super().__init__()
        w, dim = config.width, config.dim
        stride = 2 if min(shape) >= 64 else 1
        self.grid = halved(halved(halved(shape)))
        self.grid = halved(self.grid) if stride == 2 else self.grid
        self.root = nn.Sequential(*_conv_norm(1, w, 7, 2), nn.ReLU())
        self.pool = nn.MaxPool3d(3, 2, padding=1)
        widths, strides = (w, 4 * w, 8 * w, 16 * w), (1, 2, stride)
        self.stages = nn.ModuleList(map(_stage, widths, widths[1:], config.units, strides))
        self.embedding = TokenEmbedding(16 * w, dim, self.grid, config.dropout)
        self.encoder = vit_encoder(dim, config.layers, config.heads, config.dropout)
        self.bridge = conv_norm_relu(dim, 8 * w)
        widths, skips = (8 * w, 4 * w, 2 * w, w, max(w // 4, 8)), (8 * w, 4 * w, w, 0)
        self.decoder = nn.ModuleList(
            nn.Sequential(conv_norm_relu(before + skip, after), conv_norm_relu(after, after))
            for before, after, skip in zip(widths, widths[1:], skips, strict=False)
        )
        self.head = Conv3d(widths[-1], 1, 3, padding=1)

    def forward(self, mri: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) → the same, in (−1, 1)."""
        root = self.root(mri)  # (B, w, X/2, …)
        quarter = self.stages[0](self.pool(root))  # (B, 4w, X/4, …)
        eighth = self.stages[1](quarter)  # (B, 8w, X/8, …)
        tokens = self.encoder(self.embedding(self.stages[2](eighth)))  # (B, N, dim)
        x = self.bridge(tokens.transpose(1, 2).unflatten(2, self.grid))  # (B, 8w, x, y, z)
        for block, skip in zip(self.decoder, (eighth, quarter, root, None), strict=True):
            size = (mri if skip is None else skip).shape[2:]
            x = F.interpolate(x, size, mode="trilinear", align_corners=True)
            x = block(x if skip is None else torch.cat([x, skip], 1))
        return self.head(x).float().tanh()


class TransUNet(PerTracer):
    """Chen et al., "TransUNet: Transformers make strong encoders for medical image segmentation", 2021.

    Facts from `Beckschen/TransUNet` (``R50-ViT-B_16``); departures: ``docs/baselines.md``. Trained as Pix2Pix.
    Its norms let a person's overall uptake reach the output only as contrast between voxels.
    """

    config: TransUNetConfig

    def tracer_model(self) -> ConditionalGAN:
        """Hybrid generator and PatchGAN."""
        return ConditionalGAN(TransUNetGenerator(self.config, self.shape), self.config, self.shape)
