"""Shared parts of the competing methods: adversarial losses, patch discriminator, conditional GAN, ViT encoder.

They share these departures from their originals: kernels are 3D; instance norm with scale and shift replaces batch
norm, which is the same at the originals' batch size of 1; dropout is off at prediction. The norms remove mean and
amplitude of each channel from each volume, so a person's overall uptake passes them only as contrast between voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdm.baselines.per_tracer import TracerModel
from resdm.settings import MethodConfig, require


@dataclass(frozen=True)
class AdversarialConfig(MethodConfig):
    """Common settings of the four methods with a discriminator."""

    kind: str = ""
    learning_rate: float = 2e-4
    discriminator_learning_rate: float | None = None  # None: learning_rate, as in the originals
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0
    decay: Literal["none", "cosine", "linear_half"] = "linear_half"  # 100 constant and 100 decaying epochs
    l1_weight: float = 100.0
    discriminator_width: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        rate = self.discriminator_learning_rate
        require(rate is None or rate > 0, "discriminator_learning_rate", rate, "more than 0, or null")


Shape = tuple[int, int, int]


def adversarial_loss(logits: Tensor, real: bool, kind: Literal["bce", "lsgan"] = "bce") -> Tensor:
    """Mean over patches of −log D or −log(1 − D) (``bce``), or of the squared distance from 1 or 0 (``lsgan``).

    Computed from logits, so it is finite for a certain discriminator and works in half precision. MONAI's
    ``PatchAdversarialLoss`` has a sigmoid before ``BCELoss``, which autocast refuses, and a leaky ReLU before squares.
    """
    loss = F.binary_cross_entropy_with_logits if kind == "bce" else F.mse_loss
    return loss(logits, torch.full_like(logits, float(real)))


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, gradients pass through the module and do not reach its weights."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def detached(**values: Tensor) -> dict[str, Tensor]:
    """Scalars for ``history.csv``."""
    return {name: value.detach() for name, value in values.items()}


class Adversarial(nn.Module):
    """Optimisers of a method with a generator and a discriminator: one Adam each, in the order of ``phases``.

    The discriminator may have a separate learning rate (Heusel et al., NeurIPS 2017): at a common rate a small
    discriminator learns faster than the generator, whose adversarial gradient then carries no information.
    """

    phases = ("discriminator", "generator")
    """The networks in the order in which they step."""

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by network."""
        config = self.config
        rates = {"discriminator": config.discriminator_learning_rate or config.learning_rate}
        options = {"betas": config.betas, "weight_decay": config.weight_decay, "fused": True}
        return {
            name: torch.optim.Adam(getattr(self, name).parameters(), rates.get(name, config.learning_rate), **options)
            for name in self.phases
        }


class Conv3d(nn.Conv3d):
    """Convolution (dilation 1, one group) that splits a single small volume on a CPU into two halves.

    The values are the same. For one volume of up to 20,480 numbers per slice, PyTorch uses a slow kernel;
    for two it uses oneDNN, 2 to 8 times as fast in training. The halves overlap as far as the kernel needs.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        span, stride = self.kernel_size[0], self.stride[0]
        if len(x) > 1 or x.device.type != "cpu" or x[..., 0].numel() > 20_480 or span not in (2, 3):
            return super()._conv_forward(x, weight, bias)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x = F.pad(x, self._reversed_padding_repeated_twice, mode)
        size = (x.shape[2] - span) // stride + 1  # of the output's first axis
        half = -(-size // 2)
        length, start = (half - 1) * stride + span, (size - half) * stride
        halves = torch.cat([x[:, :, :length], x[:, :, start : start + length]])
        one, two = F.conv3d(halves, weight, bias, self.stride).split(1)
        return torch.cat([one, two[:, :, 2 * half - size :]], 2)


class InstanceNorm3d(nn.InstanceNorm3d):
    """Instance norm with scale and shift, as a group norm of one channel per group: a third faster on a CPU."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """As `torch.nn.InstanceNorm3d`; raises `ValueError` on a map of one voxel."""
        if x[0, 0].numel() == 1:
            raise ValueError(f"a map of one voxel has no variance to normalise by: {tuple(x.shape)}")
        return F.group_norm(x.contiguous(), self.num_features, self.weight, self.bias, self.eps)


def conv_norm_relu(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """3³ convolution without bias, instance norm, ReLU."""
    return nn.Sequential(Conv3d(before, after, 3, stride, 1, bias=False), InstanceNorm3d(after), nn.ReLU())


def normal_weights(module: nn.Module) -> None:
    """N(0, 0.02) for convolutions, N(1, 0.02) for the scales of norms, 0 for shifts, biases; for ``Module.apply``."""
    if isinstance(module, nn.InstanceNorm3d):  # MONAI's function covers batch norm only
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
    else:
        from monai.networks.utils import normal_init

        normal_init(module)


def halved(shape: Shape) -> Shape:
    """Shape after a convolution of stride 2 that keeps the last voxel of an odd axis."""
    return tuple(-(-n // 2) for n in shape)


def patch_discriminator(channels: int, width: int, shape: Shape) -> nn.Module:
    """The 70-voxel PatchGAN: k4 convolutions of ``width`` × 1, 2, 4, 8, the first three with stride 2.

    Its last output holds the logits. Grids under 24 voxels per axis have one strided layer less: the last normalised
    map would be a single voxel.
    """
    from monai.networks.nets import PatchDiscriminator  # here: MONAI takes seconds to import

    layers, norm = 3 if min(shape) >= 24 else 2, ("INSTANCE", {"affine": True})
    return PatchDiscriminator(3, width, channels, num_layers_d=layers, norm=norm).apply(normal_weights)


class ConditionalGAN(Adversarial, TracerModel):
    """Pix2Pix's training: a patch discriminator on (MRI, PET) pairs; the generator minimises BCE + λ·L1.

    As in `junyanz/pytorch-CycleGAN-and-pix2pix`. The discriminator steps first, with half its loss, on a detached
    synthesis. The generator, (B, 1, X, Y, Z) in [−1, 1] → the same, then steps against the updated, frozen
    discriminator.
    """

    def __init__(self, generator: nn.Module, config: AdversarialConfig, shape: Shape) -> None:
        super().__init__()
        self.config = config
        self.generator = generator
        self.discriminator = patch_discriminator(2, config.discriminator_width, shape)

    def losses(self, mri: Tensor, pet: Tensor, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """Discriminator, then generator."""
        source, real = 2 * mri - 1, 2 * pet - 1
        fake = self.generator(source)
        fake_logits, real_logits = self._logits(source, fake.detach()), self._logits(source, real)
        discriminator = 0.5 * (adversarial_loss(fake_logits, False) + adversarial_loss(real_logits, True))
        yield "discriminator", discriminator
        with frozen(self.discriminator):
            adversarial = adversarial_loss(self._logits(source, fake), True)
        l1 = F.l1_loss(fake, real)
        self.scalars = detached(discriminator=discriminator, adversarial=adversarial, l1=l1)
        yield "generator", adversarial + self.config.l1_weight * l1

    def synthesise(self, mri: Tensor, generator: torch.Generator) -> Tensor:
        """One pass of the network; no random numbers are drawn."""
        return (self.generator(2 * mri - 1) + 1) / 2

    def _logits(self, source: Tensor, pet: Tensor) -> Tensor:
        return self.discriminator(torch.cat([source, pet], 1))[-1]  # (B, 1, x, y, z)


class TokenEmbedding(nn.Module):
    """A feature map (B, channels, x, y, z) of shape ``grid`` → tokens (B, xyz, dim), with learned positions."""

    def __init__(self, channels: int, dim: int, grid: Shape, dropout: float) -> None:
        super().__init__()
        self.projection = nn.Conv3d(channels, dim, 1)
        self.positions = nn.Parameter(torch.zeros(1, grid[0] * grid[1] * grid[2], dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """1³ convolution, flattening, positions, dropout."""
        return self.dropout(self.projection(x).flatten(2).transpose(1, 2) + self.positions)


def vit_encoder(dim: int, layers: int, heads: int, dropout: float) -> nn.Sequential:
    """The encoder of ViT-B/16 at other widths: pre-norm blocks, MLP of 4 × ``dim``, a last layer norm.

    Dropout acts only in the MLPs, as in `Beckschen/TransUNet` and `icon-lab/ResViT`. Blocks are MONAI's: their layer
    norms have ε 1e-5 instead of 1e-6, and their initial weights differ.
    """
    from monai.networks.blocks import TransformerBlock

    blocks = [TransformerBlock(dim, 4 * dim, heads, dropout, qkv_bias=True) for _ in range(layers)]
    for block in blocks:
        # MONAI makes these but does not use them without cross-attention: they would get no gradient.
        block.norm_cross_attn = block.cross_attn = nn.Identity()
        block.attn.drop_weights = block.attn.drop_output = nn.Identity()
    return nn.Sequential(*blocks, nn.LayerNorm(dim, eps=1e-6))
