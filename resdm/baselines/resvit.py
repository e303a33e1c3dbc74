"""ResViT: a CNN whose bottleneck holds a weight-shared transformer; one model for both tracers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdm.baselines.adversarial import (
    AdversarialConfig,
    Conv3d,
    InstanceNorm3d,
    Shape,
    TokenEmbedding,
    adversarial_loss,
    adversaries,
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


def _down(before: int, after: int, stride: int = 2) -> nn.Sequential:
    conv = Conv3d(before, after, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, InstanceNorm3d(after), nn.ReLU())


class Up(nn.Module):
    """Transposed k3 convolution back to a given size, norm, ReLU."""

    def __init__(self, before: int, after: int, stride: int = 2) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(before, after, 3, stride, padding=1, bias=False)
        self.norm = InstanceNorm3d(after)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """(B, before, x, y, z) → (B, after, *size)."""
        return F.relu(self.norm(self.conv(x, output_size=size)))


def _block(before: int, after: int, mode: str) -> nn.Sequential:
    """Two k3 convolutions with norms, ReLU between."""
    return nn.Sequential(
        Conv3d(before, after, 3, padding=1, bias=False, padding_mode=mode), InstanceNorm3d(after), nn.ReLU(),
        Conv3d(after, after, 3, padding=1, bias=False, padding_mode=mode), InstanceNorm3d(after),
    )  # fmt: skip


class TransformerPath(nn.Module):
    """What an ART block with transformer has of its own: to tokens and back, and the channel compression.

    Parameters
    ----------
    channels : int
    config : ResViTConfig
    shape : tuple of int
        Of the bottleneck's map, a quarter of the grid. Tokens: a quarter of it, half where they would be fewer than
        4 an axis.
    """

    def __init__(self, channels: int, config: ResViTConfig, shape: Shape) -> None:
        super().__init__()
        stride = 2 if min(shape) >= 16 else 1
        self.grid = halved(halved(shape)) if stride == 2 else halved(shape)
        self.down = nn.Sequential(_down(channels, 2 * channels), _down(2 * channels, config.middle, stride))
        self.embedding = TokenEmbedding(config.middle, config.dim, self.grid, config.dropout)
        self.up1, self.up2 = Up(config.dim, 2 * channels, stride), Up(2 * channels, channels)
        self.compression = _block(2 * channels, channels, "zeros")
        self.skip = nn.Sequential(nn.Conv3d(2 * channels, channels, 1, bias=False), InstanceNorm3d(channels))

    def forward(self, x: Tensor, encoder: nn.Module) -> Tensor:
        """(B, C, x, y, z) → the same, with the transformer's context in it."""
        tokens = encoder(self.embedding(self.down(x)))  # (B, N, dim)
        context = tokens.transpose(1, 2).unflatten(2, self.grid)  # (B, dim, x/4, y/4, z/4)
        context = self.up2(self.up1(context, halved(x.shape[2:])), x.shape[2:])  # (B, C, x, y, z)
        both = torch.cat([context, x], 1)  # (B, 2C, x, y, z)
        return F.relu(self.compression(both) + self.skip(both))


class Generator(nn.Module):
    """Encoder, nine ART blocks, decoder; channels (MRI, amyloid, tau) in and out.

    The first and the sixth block have a transformer path; both run through the one ``encoder``.
    """

    def __init__(self, config: ResViTConfig, shape: Shape) -> None:
        super().__init__()
        w, channels = config.width, 1 + len(TRACERS)
        inner = halved(halved(shape))
        reach = {"kernel_size": config.kernel, "padding": config.kernel // 2, "padding_mode": "reflect"}
        self.stem = nn.Sequential(Conv3d(channels, w, bias=False, **reach), InstanceNorm3d(w), nn.ReLU())
        self.down1, self.down2 = _down(w, 2 * w), _down(2 * w, 4 * w)
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


class ResViT(Method):
    """Dalmaz et al., "ResViT: Residual vision transformers for multimodal medical image synthesis", TMI 2022.

    Facts from `icon-lab/ResViT`; the unified model, whose code is not public, from the paper's §III.

    Notes
    -----
    Kept: layers and paddings, one transformer shared by ART blocks 1 and 6 (embedding and positions are each block's
    own), availability a_i (channel i is a_i·m_i on the way in), LSGAN × 1 + 100·L1 over synthesised + 100·L1 over
    available channels, halved discriminator loss, 3-layer PatchGAN on source and target, Adam (0.5, 0.999), constant
    then linear decay, batch size 1, everything in [−1, 1].

    Normalisation and amplitude: batch norm at batch size 1 follows every convolution but the last, and no skip passes
    the encoder. Mean and amplitude of each channel leave each volume: what the output knows of a person is contrast.

    Availability in training: the MRI always; of a person with both PETs, amyloid, tau or both are to be synthesised,
    one chance in three each; of a person with one PET, that one. A missing PET is unavailable, has no L1 and is 0 in
    what the discriminator sees. At test the MRI alone is available.

    Departures:

    - 3D kernels; width 16 instead of 64, tokens of 384 from 256 channels instead of 768 from 1024, 6 layers instead of
      12: 19.4 M weights at 128³. Tokens lie at 1/16 of the grid, 1/8 where the shortest axis has fewer than 64 voxels.
    - ``kernel``, of the first and the last convolution, is the original's 7. A coarse grid may have less: at 6 mm, 7³
      spans 42 mm and takes most of the time.
    - The discriminator sees one (MRI, amyloid, tau) stack, real where available and synthetic elsewhere.
    - Instance norm for batch norm, the same at batch size 1.
    - The paper trains the CNN alone at 2e-4, then inserts a transformer from ImageNet and goes on at 1e-3. There are
      no 3D ImageNet weights, and 1e-3 without them is a risk: the rate stays at 2e-4, and ``cnn_steps`` sets the first
      stage's length (0 leaves it out; the paper gives it two thirds of the epochs).
    - Blocks are MONAI's `TransformerBlock`: layer norms with ε 1e-5 instead of 1e-6, its own initial weights.
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
        some = batch.present.any(1)
        if not some.any():
            return
        present = batch.present[some]
        real = 2 * torch.cat([batch.mri, batch.pet], 1)[some] - 1  # (B, 3, X, Y, Z)
        mri = torch.ones_like(present[:, :1])
        known = torch.cat([mri, present], 1)  # (B, 3)
        available = torch.cat([mri, self._available(present, generator)], 1)  # (B, 3)
        fake = self._translate(real, available)
        self.steps_done += self.training
        judged_fake = self.discriminator(_stack(fake.detach(), real, available, known))[-1]
        judged_real = self.discriminator(_stack(real, real, available, known))[-1]
        judgement = 0.5 * (adversarial_loss(judged_fake, False, "lsgan") + adversarial_loss(judged_real, True, "lsgan"))
        yield "discriminator", judgement

        with frozen(self.discriminator):
            logits = self.discriminator(_stack(fake, real, available, known))[-1]
        adversarial = adversarial_loss(logits, True, "lsgan")
        l1 = (fake - real).abs().flatten(2).mean(2)  # (B, 3)
        pixel = torch.where(known & ~available, l1, 0.0).sum(1).mean()
        reconstruction = torch.where(available, l1, 0.0).sum(1).mean()
        self.scalars = {
            "discriminator": judgement.detach(), "adversarial": adversarial.detach(), "pixel": pixel.detach(),
            "reconstruction": reconstruction.detach(),
        }  # fmt: skip
        yield "generator", adversarial + self.config.l1_weight * (pixel + reconstruction)

    @torch.no_grad()
    def synthesise(self, mri: Tensor, prior: Prior, generator: torch.Generator, *, steps: int | None = None) -> Tensor:
        """Both PETs from the MRI alone, in one pass; ``prior``, ``generator`` and ``steps`` are not used."""
        volumes = F.pad(2 * mri - 1, (0, 0, 0, 0, 0, 0, 0, len(TRACERS)))  # (B, 3, X, Y, Z)
        available = torch.tensor([[True, False, False]], device=mri.device).expand(len(mri), -1)
        return (self._translate(volumes, available)[:, 1:] + 1) / 2

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """One Adam each."""
        return adversaries(self.config, discriminator=self.discriminator, generator=self.generator)

    def _available(self, present: Tensor, generator: torch.Generator) -> Tensor:
        """Which PETs a training step shows, (B, 2): at most one, and never a person's only one."""
        hidden = torch.randint(3, (len(present), 1), generator=generator, device=present.device)  # 0, 1, or 2: both
        shown = torch.cat([hidden == 1, hidden == 0], 1)
        return shown & present.all(1, keepdim=True)

    def _translate(self, volumes: Tensor, available: Tensor) -> Tensor:
        masked = torch.where(available[..., None, None, None], volumes, 0.0)
        return self.generator(masked, transformer=bool(self.steps_done >= self.config.cnn_steps))


def _stack(volumes: Tensor, real: Tensor, available: Tensor, known: Tensor) -> Tensor:
    """What the discriminator sees, (B, 3, X, Y, Z): real where available, ``volumes`` elsewhere, 0 where missing."""
    stack = torch.where(available[..., None, None, None], real, volumes)
    return torch.where(known[..., None, None, None], stack, 0.0)
