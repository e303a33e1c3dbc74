"""ResViT: a CNN whose bottleneck holds a weight-shared transformer; one model for both tracers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdm.baselines.adversarial import (
    Adversarial,
    AdversarialConfig,
    Conv3d,
    InstanceNorm3d,
    Shape,
    TokenEmbedding,
    adversarial_loss,
    conv_norm_relu,
    detached,
    frozen,
    halved,
    patch_discriminator,
    vit_encoder,
)
from resdm.batch import TRACERS, Batch, Prior
from resdm.method import Method


@dataclass(frozen=True)
class ResViTConfig(AdversarialConfig):
    """ResViT (Dalmaz et al. 2022), its unified form: one model for both tracers."""

    kind: str = "resvit"
    width: int = 16
    kernel: int = 7  # of the first and the last convolution; odd
    middle: int = 256  # channels between the two strided convolutions of a transformer block
    dim: int = 384
    layers: int = 6
    heads: int = 6
    dropout: float = 0.1
    cnn_steps: int = 0  # training steps with the transformer left out, the paper's first stage


class Up(nn.Module):
    """Transposed k3 convolution back to a given size, norm, ReLU."""

    def __init__(self, before: int, after: int, stride: int = 2) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(before, after, 3, stride, padding=1, bias=False)
        self.norm = InstanceNorm3d(after)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """(B, before, x, y, z) → (B, after, …), with ``size`` as the last three."""
        return F.relu(self.norm(self.conv(x, output_size=size)))


def _block(before: int, after: int, mode: str) -> nn.Sequential:
    """Two k3 convolutions with norms, ReLU between."""
    return nn.Sequential(
        Conv3d(before, after, 3, padding=1, bias=False, padding_mode=mode), InstanceNorm3d(after), nn.ReLU(),
        Conv3d(after, after, 3, padding=1, bias=False, padding_mode=mode), InstanceNorm3d(after),
    )  # fmt: skip


class TransformerPath(nn.Module):
    """The unshared parts of an ART block's transformer: to tokens and back, and the channel compression.

    ``shape`` is that of the bottleneck's map, a quarter of the grid. There are a quarter as many tokens per axis, or
    half as many where a quarter would be fewer than 4.
    """

    def __init__(self, channels: int, config: ResViTConfig, shape: Shape) -> None:
        super().__init__()
        stride = 2 if min(shape) >= 16 else 1
        self.grid = halved(halved(shape)) if stride == 2 else halved(shape)
        self.down = nn.Sequential(
            conv_norm_relu(channels, 2 * channels, 2), conv_norm_relu(2 * channels, config.middle, stride)
        )
        self.embedding = TokenEmbedding(config.middle, config.dim, self.grid, config.dropout)
        self.up1, self.up2 = Up(config.dim, 2 * channels, stride), Up(2 * channels, channels)
        self.compression = _block(2 * channels, channels, "zeros")
        self.skip = nn.Sequential(nn.Conv3d(2 * channels, channels, 1, bias=False), InstanceNorm3d(channels))

    def forward(self, x: Tensor, encoder: nn.Module) -> Tensor:
        """(B, C, x, y, z) → the same, with the transformer's context."""
        tokens = encoder(self.embedding(self.down(x)))  # (B, N, dim)
        context = tokens.transpose(1, 2).unflatten(2, self.grid)  # (B, dim, x/4, y/4, z/4)
        context = self.up2(self.up1(context, halved(x.shape[2:])), x.shape[2:])  # (B, C, x, y, z)
        both = torch.cat([context, x], 1)  # (B, 2C, x, y, z)
        return F.relu(self.compression(both) + self.skip(both))


class Generator(nn.Module):
    """Encoder, nine ART blocks, decoder; channels (MRI, amyloid, tau) in and out.

    The first and the sixth block have a transformer path; both use the one ``encoder``.
    """

    def __init__(self, config: ResViTConfig, shape: Shape) -> None:
        super().__init__()
        w, channels = config.width, 1 + len(TRACERS)
        inner = halved(halved(shape))
        reach = {"kernel_size": config.kernel, "padding": config.kernel // 2, "padding_mode": "reflect"}
        self.stem = nn.Sequential(Conv3d(channels, w, bias=False, **reach), InstanceNorm3d(w), nn.ReLU())
        self.down1, self.down2 = conv_norm_relu(w, 2 * w, 2), conv_norm_relu(2 * w, 4 * w, 2)
        self.encoder = vit_encoder(config.dim, config.layers, config.heads, config.dropout)
        self.paths = nn.ModuleDict({block: TransformerPath(4 * w, config, inner) for block in ("0", "5")})
        self.residual = nn.ModuleList(_block(4 * w, 4 * w, "reflect") for _ in range(9))
        self.up1, self.up2 = Up(4 * w, 2 * w), Up(2 * w, w)
        self.head = Conv3d(w, channels, **reach)

    def forward(self, x: Tensor, transformer: bool = True) -> Tensor:
        """(B, 3, X, Y, Z) → the same, in (−1, 1); without ``transformer``, the CNN of the first stage."""
        full = self.stem(x)  # (B, w, X, …)
        half = self.down1(full)  # (B, 2w, X/2, …)
        x = self.down2(half)  # (B, 4w, X/4, …)
        for number, block in enumerate(self.residual):
            if transformer and str(number) in self.paths:
                x = self.paths[str(number)](x, self.encoder)
            x = x + block(x)
        x = self.up2(self.up1(x, half.shape[2:]), full.shape[2:])  # (B, w, X, …)
        return self.head(x).float().tanh()


class ResViT(Adversarial, Method):
    """Dalmaz et al., "ResViT: Residual vision transformers for multimodal medical image synthesis", TMI 2022.

    Facts from `icon-lab/ResViT`; the unified model, whose code is not public, from the paper's §III. Departures:
    ``docs/baselines.md``. The norm after the first convolution removes the MRI's amplitude.

    Availability in training: the MRI always. Of a person with both PETs, amyloid, tau or both are synthesised, with
    chance 1/3 each; of a person with one PET, that one. A missing PET is unavailable, has no L1, and is 0 in the
    discriminator's input. At test only the MRI is available.
    """

    config: ResViTConfig

    def __init__(self, config: ResViTConfig, shape: tuple[int, int, int]) -> None:
        super().__init__(config, shape)
        self.generator = Generator(config, self.shape)
        self.discriminator = patch_discriminator(1 + len(TRACERS), config.discriminator_width, self.shape)
        self.register_buffer("steps_done", torch.zeros((), dtype=torch.long))

    def losses(self, batch: Batch, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """Discriminator, then generator, over the people who have a PET."""
        self.scalars = {}
        has_pet = batch.present.any(1)
        if not has_pet.any():
            return
        present = batch.present[has_pet]
        real = 2 * torch.cat([batch.mri, batch.pet], 1)[has_pet] - 1  # (B, 3, X, Y, Z)
        mri = torch.ones_like(present[:, :1])
        known = torch.cat([mri, present], 1)  # (B, 3)
        available = torch.cat([mri, self._available(present, generator)], 1)  # (B, 3)
        fake = self._translate(real, available)
        self.steps_done += self.training

        def loss(volumes: Tensor, target: bool) -> Tensor:
            """The discriminator gets ``real`` where available, ``volumes`` elsewhere, 0 where missing."""
            stack = torch.where(available[..., None, None, None], real, volumes)
            stack = torch.where(known[..., None, None, None], stack, 0.0)  # (B, 3, X, Y, Z)
            return adversarial_loss(self.discriminator(stack)[-1], target, "lsgan")

        discriminator = 0.5 * (loss(fake.detach(), False) + loss(real, True))
        yield "discriminator", discriminator
        with frozen(self.discriminator):
            adversarial = loss(fake, True)
        l1 = (fake - real).abs().flatten(2).mean(2)  # (B, 3)
        pixel = torch.where(known & ~available, l1, 0.0).sum(1).mean()
        reconstruction = torch.where(available, l1, 0.0).sum(1).mean()
        self.scalars = detached(
            discriminator=discriminator, adversarial=adversarial, pixel=pixel, reconstruction=reconstruction
        )
        yield "generator", adversarial + self.config.l1_weight * (pixel + reconstruction)

    @torch.no_grad()
    def synthesise(self, mri: Tensor, prior: Prior, generator: torch.Generator, *, steps: int | None = None) -> Tensor:
        """Both PETs from the MRI alone, in one pass; the other arguments are not used."""
        volumes = F.pad(2 * mri - 1, (0, 0, 0, 0, 0, 0, 0, len(TRACERS)))  # (B, 3, X, Y, Z)
        available = torch.tensor([[True, False, False]], device=mri.device).expand(len(mri), -1)
        return (self._translate(volumes, available)[:, 1:] + 1) / 2

    def _available(self, present: Tensor, generator: torch.Generator) -> Tensor:
        """Which PETs (B, 2) are input in a training step: at most one, and never a person's only one."""
        hidden = torch.randint(3, (len(present), 1), generator=generator, device=present.device)  # 0, 1, or 2: both
        return torch.cat([hidden == 1, hidden == 0], 1) & present.all(1, keepdim=True)

    def _translate(self, volumes: Tensor, available: Tensor) -> Tensor:
        masked = torch.where(available[..., None, None, None], volumes, 0.0)
        return self.generator(masked, transformer=bool(self.steps_done >= self.config.cnn_steps))
