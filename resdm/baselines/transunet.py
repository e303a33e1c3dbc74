"""TransUNet: a residual CNN and a transformer on its deepest map, a U-Net decoder; one model a tracer."""

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
    InstanceNorm3d,
    Shape,
    TokenEmbedding,
    halved,
    vit_encoder,
)
from resdm.method import PerTracer


@dataclass(frozen=True)
class TransUNetConfig(AdversarialConfig):
    """TransUNet (Chen et al. 2021) trained as Pix2Pix is, one model a tracer."""

    kind: str = "transunet"
    width: int = 32  # a multiple of 4
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


def _conv(before: int, after: int, kernel: int, stride: int = 1) -> StandardisedConv3d:
    return StandardisedConv3d(before, after, kernel, stride, kernel // 2, bias=False)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class Bottleneck(nn.Module):
    """1³, 3³ and 1³ convolutions on a quarter of the channels, and a shortcut."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        middle = after // 4
        self.branch = nn.Sequential(
            _conv(before, middle, 1), _group_norm(middle), nn.ReLU(),
            _conv(middle, middle, 3, stride), _group_norm(middle), nn.ReLU(),
            _conv(middle, after, 1), _group_norm(after),
        )  # fmt: skip
        self.shortcut = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(_conv(before, after, 1, stride), nn.GroupNorm(after, after))

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, x, y, z) → (B, after, x / stride, …)."""
        return F.relu(self.shortcut(x) + self.branch(x))


def _stage(before: int, after: int, units: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(Bottleneck(before, after, stride), *(Bottleneck(after, after) for _ in range(units - 1)))


def _conv_relu(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(Conv3d(before, after, 3, padding=1, bias=False), InstanceNorm3d(after), nn.ReLU())


class TransUNetGenerator(nn.Module):
    """Hybrid encoder, decoder with three skips, tanh.

    Parameters
    ----------
    config : TransUNetConfig
    shape : tuple of int

    Attributes
    ----------
    grid : tuple of int
        Shape of the map whose voxels are the tokens: 1/16 of the grid, 1/8 where the shortest axis has fewer than 64.
    """

    def __init__(self, config: TransUNetConfig, shape: Shape) -> None:
        super().__init__()
        w, dim = config.width, config.dim
        stride = 2 if min(shape) >= 64 else 1
        self.grid = halved(halved(halved(shape)))
        self.grid = halved(self.grid) if stride == 2 else self.grid
        self.root = nn.Sequential(_conv(1, w, 7, 2), _group_norm(w), nn.ReLU())
        self.pool = nn.MaxPool3d(3, 2, padding=1)
        self.stages = nn.ModuleList(
            [
                _stage(w, 4 * w, config.units[0]),
                _stage(4 * w, 8 * w, config.units[1], 2),
                _stage(8 * w, 16 * w, config.units[2], stride),
            ]
        )
        self.embedding = TokenEmbedding(16 * w, dim, self.grid, config.dropout)
        self.encoder = vit_encoder(dim, config.layers, config.heads, config.dropout)
        self.bridge = _conv_relu(dim, 8 * w)
        widths, skips = (8 * w, 4 * w, 2 * w, w, max(w // 4, 8)), (8 * w, 4 * w, w, 0)
        self.decoder = nn.ModuleList(
            nn.Sequential(_conv_relu(before + skip, after), _conv_relu(after, after))
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

    Facts from `Beckschen/TransUNet` (``R50-ViT-B_16``).

    Notes
    -----
    Kept: weight-standardised residual units 3/4/9 with group norm, their order of norm and ReLU, max pooling, learned
    positions, pre-norm ViT blocks with dropout 0.1, the decoder's widths and its three skips, align-corners upsampling.

    Normalisation and amplitude: group norm follows every convolution of the encoder, batch norm every one of the
    decoder but the last; the original takes its statistics over 24 images, and running ones at test. Here both act on
    one volume and take its mean and amplitude out: over the default phantom's validation people the in-brain mean of
    the synthetic Aβ-PET has a standard deviation of 0.003 after 250 steps of L1 alone, that of the real PET 0.036.
    Running statistics in the decoder change little (0.004): the encoder's group norm leaves no amplitude to pass on.

    Departures:

    - Synthesis, not segmentation: one input and one output channel, tanh; the loss is Pix2Pix's (PatchGAN, 100·L1,
      Adam at 2e-4), since the paper counts TransUNet among "methods based on GAN" and says no more.
    - 3D kernels and trilinear upsampling; width 32, 8 layers of 512 with 8 heads instead of 64 and 12 of 768 with 12:
      38.2 M weights at 128³, 8³ tokens. Weights start random: the ImageNet ones are 2D.
    - Under 64 voxels an axis the last stage keeps its resolution, or 2³ tokens would be left at 32³.
    - The decoder's last map has a quarter of the root's channels, as the original's, but at least 8: under two or four
      normalised channels a narrow network cannot draw the image.
    - The max pooling pads by one voxel; the original pads by none and then appends zeros to its skips.
    - Instance norm for the decoder's batch norm, the same at batch size 1.
    - Blocks are MONAI's `TransformerBlock`: layer norms with ε 1e-5 instead of 1e-6, its own initial weights.
    """

    config: TransUNetConfig

    def tracer_model(self) -> ConditionalGAN:
        """Hybrid generator and PatchGAN."""
        return ConditionalGAN(TransUNetGenerator(self.config, self.shape), self.config, self.shape)
