"""SC-GAN: a 3D U-Net and a discriminator, both with spectral norm and self-attention; one model per tracer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from resdm.baselines.adversarial import (
    Adversarial,
    AdversarialConfig,
    Conv3d,
    InstanceNorm3d,
    Shape,
    adversarial_loss,
    detached,
    frozen,
    halved,
)
from resdm.baselines.per_tracer import PerTracer, TracerModel


@dataclass(frozen=True)
class SCGANConfig(AdversarialConfig):
    """SC-GAN (Lan et al. 2021), one model per tracer. Its L2 term is part of the loss, so there is no weight decay."""

    kind: str = "scgan"
    learning_rate: float = 1e-3
    decay: Literal["none", "cosine", "linear_half"] = "none"
    width: int = 32
    dropout: float = 0.5
    l1_weight: float = 200.0
    rmse_weight: float = 200.0
    matching_weight: float = 20.0
    l2_weight: float = 0.001


def _spectral(conv: nn.Conv3d | nn.ConvTranspose3d) -> nn.Module:
    """N(0, 0.02) cut at 2σ; spectral norm of the original's matrix: the weight's first axis against the rest."""
    nn.init.trunc_normal_(conv.weight, std=0.02, a=-0.04, b=0.04)
    return spectral_norm(conv, dim=0)


def _conv(before: int, after: int, kernel: int, stride: int = 2) -> nn.Module:
    return _spectral(Conv3d(before, after, kernel, stride, (kernel - 1) // 2, bias=False))


def _norm(channels: int, shape: Shape) -> nn.Module:
    return nn.Identity() if shape == (1, 1, 1) else InstanceNorm3d(channels)


def _attention_level(shapes: list[Shape], wanted: int) -> int:
    """The wanted level, or the deepest above it with 3 voxels per axis: fewer would leave a single key."""
    return max(level for level in range(wanted + 1) if level < len(shapes) and min(shapes[level]) >= 3)


class SelfAttention(nn.Module):
    """Every voxel of (B, C, x, y, z) attends to a pooled map: (x + σa) / (1 + σ), where σ is learned and starts at 0.

    ``stride`` is that of the 2³ max pooling of keys and values.
    """

    def __init__(self, channels: int, stride: int = 2) -> None:
        super().__init__()
        key, value = channels // 8 or 4, channels // 2 or 16
        self.query, self.key = nn.Conv3d(channels, key, 1, bias=False), nn.Conv3d(channels, key, 1, bias=False)
        self.value, self.out = nn.Conv3d(channels, value, 1, bias=False), nn.Conv3d(value, channels, 1, bias=False)
        for conv in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(conv.weight)
            spectral_norm(conv)
        self.pool = nn.MaxPool3d(2, stride, ceil_mode=True)
        self.sigma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, x, y, z) → the same."""
        query = self.query(x).flatten(2)  # (B, C/8, N)
        key = self.pool(self.key(x)).flatten(2)  # (B, C/8, M)
        value = self.pool(self.value(x)).flatten(2)  # (B, C/2, M)
        weights = (key.mT @ query).softmax(1)  # (B, M, N): keys first, since M is small and N a volume
        attended = self.out((value @ weights).unflatten(2, x.shape[2:]))  # (B, C, x, y, z)
        return (x + self.sigma * attended) / (1 + self.sigma)


class Generator(nn.Module):
    """Encoder and mirrored decoder with attention in both and on the output, tanh.

    The shortest axis of ``shape`` sets the levels: 8 at 256, 7 at 128, 5 at 32. Channels double from ``width`` up to
    8 × ``width``. Dropout acts in the decoder's three deepest layers.
    """

    def __init__(self, width: int, shape: Shape, dropout: float) -> None:
        super().__init__()
        kernels = (5, 5, 5, 5, 3, 3, 3, 2)[: min(shape).bit_length() - 1]
        levels = len(kernels)
        widths = [width * min(2**level, 8) for level in range(levels)]
        shapes = [halved(shape)]
        for _ in range(levels - 1):
            shapes.append(halved(shapes[-1]))
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.down_norm, self.up_norm = nn.ModuleList(), nn.ModuleList()
        for level, (kernel, channels) in enumerate(zip(kernels, widths, strict=True)):
            above = widths[level - 1] if level else 1
            below = channels if level == levels - 1 else 2 * channels
            self.down.append(_conv(above, channels, kernel))
            self.down_norm.append(_norm(channels, shapes[level]) if level else nn.Identity())
            self.up.append(_spectral(nn.ConvTranspose3d(below, above, kernel, 2, (kernel - 1) // 2, bias=False)))
            chance = dropout if level >= levels - 3 else 0.0
            self.up_norm.append(nn.Sequential(InstanceNorm3d(above), nn.Dropout(chance), nn.ReLU()))
        self.encoder_level = _attention_level(shapes, 4)
        self.decoder_level = _attention_level(shapes, 2)
        self.encoder_attention = SelfAttention(widths[self.encoder_level])
        self.decoder_attention = SelfAttention(widths[self.decoder_level])
        self.last = _conv(1, 1, 3, 1)
        self.output_attention = SelfAttention(1, min(64, min(shape) // 2))

    def forward(self, mri: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) → the same, in (−1, 1)."""
        x, maps = mri, [mri]
        for level, (conv, norm) in enumerate(zip(self.down, self.down_norm, strict=True)):
            x = F.leaky_relu(norm(conv(x)), 0.2)  # (B, c, x/2, y/2, z/2)
            maps.append(x)  # the skip starts before the attention
            if level == self.encoder_level:
                x = self.encoder_attention(x)
        maps.pop()
        for level in reversed(range(len(self.up))):
            skip = maps.pop()
            x = self.up_norm[level](self.up[level](x, output_size=skip.shape[2:]))  # (B, c, 2x, 2y, 2z)
            if level - 1 == self.decoder_level:
                x = self.decoder_attention(x)
            if level:
                x = torch.cat([x, skip], 1)
        return self.output_attention(self.last(x)).float().tanh()


class Discriminator(nn.Module):
    """k5 convolutions of stride 2, attention after the third, a k5 patch head."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        shapes, self.down, self.norm, before = [], nn.ModuleList(), nn.ModuleList(), 2
        for level in range(4):
            shape, after = halved(shape), width * 2**level
            shapes.append(shape)
            self.down.append(_conv(before, after, 5))
            self.norm.append(_norm(after, shape) if level else nn.Identity())
            before = after
        self.attention_level = _attention_level(shapes, 2)
        self.attention = SelfAttention(width * 2**self.attention_level)
        self.head = _conv(before, 1, 5, 1)

    def forward(self, mri: Tensor, pet: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, 1, x, y, z) and the five maps that feature matching compares."""
        x, maps = torch.cat([mri, pet], 1), []
        for level, (conv, norm) in enumerate(zip(self.down, self.norm, strict=True)):
            x = F.leaky_relu(norm(conv(x)), 0.2)  # (B, c, x/2, y/2, z/2)
            maps.append(x)
            if level == self.attention_level:
                x = self.attention(x)
                maps.append(x)
        return self.head(x), maps


def brain_rmse(fake: Tensor, real: Tensor) -> Tensor:
    """Root mean square error over the voxels where the real PET is above its background of −1."""
    brain = real > -1
    error = torch.where(brain, fake - real, 0.0).square().sum() / brain.sum().clamp(min=1)
    return error.clamp(min=1e-12).sqrt()  # the root's slope at 0 is infinite


def feature_matching(fake: list[Tensor], real: list[Tensor]) -> Tensor:
    """Mean over maps of the mean absolute difference."""
    return torch.stack([F.l1_loss(a, b) for a, b in zip(fake, real, strict=True)]).mean()


def l2(module: nn.Module) -> Tensor:
    """½ Σ w² over all weights."""
    return 0.5 * torch.stack([weight.square().sum() for weight in module.parameters()]).sum()


class TracerSCGAN(Adversarial, TracerModel):
    """One tracer's generator and discriminator."""

    phases = ("generator", "discriminator")

    def __init__(self, config: SCGANConfig, shape: Shape) -> None:
        super().__init__()
        self.config = config
        self.generator = Generator(config.width, shape, config.dropout)
        self.discriminator = Discriminator(config.discriminator_width, shape)

    def losses(self, mri: Tensor, pet: Tensor, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """Generator, then discriminator on a fresh synthesis by the updated generator."""
        c, real = self.config, 2 * pet - 1
        fake = self.generator(mri)
        with frozen(self.discriminator):
            logits, maps = self.discriminator(mri, fake)
            _, real_maps = self.discriminator(mri, real)
        adversarial, l1 = adversarial_loss(logits, True), F.l1_loss(fake, real)
        rmse, matching = brain_rmse(fake, real), feature_matching(maps, real_maps)
        self.scalars = detached(adversarial=adversarial, l1=l1, rmse=rmse, matching=matching)
        image = adversarial + c.l1_weight * l1 + c.rmse_weight * rmse + c.matching_weight * matching
        yield "generator", image + c.l2_weight * l2(self.generator)
        with torch.no_grad():
            fake = self.generator(mri)
        real_logits, fake_logits = self.discriminator(mri, real)[0], self.discriminator(mri, fake)[0]
        discriminator = adversarial_loss(real_logits, True) + adversarial_loss(fake_logits, False)
        self.scalars |= detached(discriminator=discriminator)
        yield "discriminator", discriminator + c.l2_weight * l2(self.discriminator)

    def synthesise(self, mri: Tensor, generator: torch.Generator) -> Tensor:
        """One pass of the network; no random numbers are drawn."""
        return (self.generator(mri) + 1) / 2


class SCGAN(PerTracer):
    """Lan et al., "Three-dimensional self-attention conditional GAN with spectral normalization", MRM 2021.

    Facts from `Haoyulance/SC-GAN` (TensorFlow 1, natively 3D); departures: ``docs/baselines.md``. The one channel
    before the last convolution is normalised, so overall uptake hardly varies between people.
    """

    config: SCGANConfig

    def tracer_model(self) -> TracerSCGAN:
        """Generator and discriminator."""
        return TracerSCGAN(self.config, self.shape)
