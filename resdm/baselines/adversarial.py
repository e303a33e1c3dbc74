"""What the competitors share: adversarial losses, the patch discriminator, the conditional GAN, the ViT encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdm.method import TracerModel
from resdm.settings import Demand, MethodConfig


@dataclass(frozen=True)
class AdversarialConfig(MethodConfig):
    """What the four with a discriminator have in common; no method by itself."""

    kind: str = ""
    learning_rate: float = 2e-4
    discriminator_learning_rate: float | None = None  # None: learning_rate, as in the originals
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0
    decay: Literal["none", "cosine", "linear_half"] = "linear_half"  # 100 constant and 100 decaying epochs
    l1_weight: float = 100.0
    discriminator_width: int = 32

    def check(self, at: str, demand: Demand) -> None:
        """Ranges that types cannot say."""
        super().check(at, demand)
        rate = self.discriminator_learning_rate
        demand(rate is None or rate > 0, f"{at}.discriminator_learning_rate must be more than 0, or null")


Shape = tuple[int, int, int]


def adversarial_loss(logits: Tensor, real: bool, kind: Literal["bce", "lsgan"] = "bce") -> Tensor:
    """How far a discriminator's answer is from "all real" or "all synthetic", as a mean over patches.

    ``bce`` is −log D or −log(1 − D) for D = σ(logits), taken from the logits so that no logarithm meets a 0 and
    half precision stays safe; ``lsgan`` is the squared distance of the bare logits from 1 or 0.

    Notes
    -----
    MONAI's `PatchAdversarialLoss` puts a sigmoid before `BCELoss`, which autocast refuses, and a leaky ReLU before
    its least squares, which the originals lack; hence these.
    """
    target = torch.full_like(logits, float(real))
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits, target)
    return F.mse_loss(logits, target)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """What is computed inside sends no gradient to the module's weights, only through them."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def adversaries(config: AdversarialConfig, **networks: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """Adam for the ``generator`` and the ``discriminator``, in the order in which they step.

    Settings are those of their method: β₁ is 0.5 in all the originals. The discriminator has a learning rate of its own
    where the settings name one (Heusel et al., NeurIPS 2017): at one rate for both, a discriminator that is far the
    smaller network learns faster than the generator, whose adversarial gradient then says nothing but that all it draws
    is wrong.
    """
    rates = {"discriminator": config.discriminator_learning_rate or config.learning_rate}
    return {
        name: torch.optim.Adam(
            network.parameters(),
            lr=rates.get(name, config.learning_rate),
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        for name, network in networks.items()
    }


class Conv3d(nn.Conv3d):
    """Convolution (dilation 1, one group) that computes one small volume on a CPU as two halves: as exact, faster.

    PyTorch takes a kernel of its own for a single volume of up to 20,480 numbers a slice, unless the convolution spans
    more than 3 voxels, and oneDNN for two: in training, 2 to 8 times as fast. So the volume is cut along its first
    axis, with the overlap that the convolution needs.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        span, stride = self.kernel_size[0], self.stride[0]
        if len(x) > 1 or x.device.type != "cpu" or x[..., 0].numel() > 20_480 or span not in (2, 3):
            return super()._conv_forward(x, weight, bias)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x = F.pad(x, self._reversed_padding_repeated_twice, mode)
        size = (x.shape[2] - span) // stride + 1  # of the answer's first axis
        half = -(-size // 2)
        length, start = (half - 1) * stride + span, (size - half) * stride
        halves = torch.cat([x[:, :, :length], x[:, :, start : start + length]])
        one, two = F.conv3d(halves, weight, bias, self.stride).split(1)
        return torch.cat([one, two[:, :, 2 * half - size :]], 2)


class InstanceNorm3d(nn.InstanceNorm3d):
    """Batch norm as it is at batch size 1: each volume by its own statistics, with learned scale and shift.

    The originals train with batch norm at batch size 1; over the volumes of a larger batch theirs would mix people.
    Mean and amplitude of each channel leave each volume here, so that a person's global intensity, and with it how much
    uptake there is, goes on in no map behind it but as the contrast between voxels.

    Notes
    -----
    Computed as a group norm of one channel a group: the same values in two thirds of the time on a CPU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """As `torch.nn.InstanceNorm3d`; raises `ValueError` on a map of one voxel."""
        if x[0, 0].numel() == 1:
            raise ValueError(f"a map of one voxel has no variance to normalise by: {tuple(x.shape)}")
        return F.group_norm(x.contiguous(), self.num_features, self.weight, self.bias, self.eps)


def normal_weights(module: nn.Module) -> None:
    """N(0, 0.02) for convolutions, N(1, 0.02) for the scales of norms, 0 for shifts and biases; for `Module.apply`."""
    if isinstance(module, nn.InstanceNorm3d):  # MONAI's function knows batch norm alone
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
    else:
        from monai.networks.utils import normal_init

        normal_init(module)


def halved(shape: Shape) -> Shape:
    """The map's shape after a convolution of stride 2 that keeps an odd axis' last voxel."""
    return tuple(-(-n // 2) for n in shape)


def patch_discriminator(channels: int, width: int, shape: Shape) -> nn.Module:
    """The 70-voxel PatchGAN: k4 convolutions of ``width`` × 1, 2, 4, 8, the first three with stride 2.

    Its last output holds the logits. Grids under 24 voxels an axis have one strided layer less, since the last
    normalised map would be a single voxel.
    """
    layers = 3 if min(shape) >= 24 else 2
    norm = ("INSTANCE", {"affine": True})
    from monai.networks.nets import PatchDiscriminator  # here: MONAI takes seconds to import

    return PatchDiscriminator(3, width, channels, num_layers_d=layers, norm=norm).apply(normal_weights)


class ConditionalGAN(TracerModel):
    """Pix2Pix's game: a patch discriminator sees (MRI, PET) pairs, the generator minimises BCE + λ·L1.

    As in `junyanz/pytorch-CycleGAN-and-pix2pix`: the discriminator steps first, its loss halved, on a detached
    synthesis; then the generator, against the discriminator as just updated and now frozen. Everything in [−1, 1].

    Parameters
    ----------
    generator : Module
        (B, 1, X, Y, Z) in [−1, 1] → the same.
    config : AdversarialConfig
    shape : tuple of int
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
        judged_fake, judged_real = self._judge(source, fake.detach()), self._judge(source, real)
        judgement = 0.5 * (adversarial_loss(judged_fake, False) + adversarial_loss(judged_real, True))
        yield "discriminator", judgement

        with frozen(self.discriminator):
            adversarial = adversarial_loss(self._judge(source, fake), True)
        l1 = F.l1_loss(fake, real)
        self.scalars = {
            "discriminator": judgement.detach(), "adversarial": adversarial.detach(), "l1": l1.detach(),
        }  # fmt: skip
        yield "generator", adversarial + self.config.l1_weight * l1

    def synthesise(self, mri: Tensor, generator: torch.Generator) -> Tensor:
        """One pass of the generator; ``generator`` (of random numbers) is not used."""
        return (self.generator(2 * mri - 1) + 1) / 2

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """One Adam each."""
        return adversaries(self.config, discriminator=self.discriminator, generator=self.generator)

    def _judge(self, source: Tensor, pet: Tensor) -> Tensor:
        return self.discriminator(torch.cat([source, pet], 1))[-1]  # logits (B, 1, x, y, z)


class TokenEmbedding(nn.Module):
    """A feature map as tokens: 1³ convolution, learned positions that start at 0, dropout.

    Parameters
    ----------
    channels : int
        Of the map.
    dim : int
        Of a token.
    grid : tuple of int
        The map's shape; a token a voxel.
    dropout : float
    """

    def __init__(self, channels: int, dim: int, grid: Shape, dropout: float) -> None:
        super().__init__()
        self.projection = nn.Conv3d(channels, dim, 1)
        self.positions = nn.Parameter(torch.zeros(1, grid[0] * grid[1] * grid[2], dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, x, y, z) → (B, xyz, dim)."""
        tokens = self.projection(x).flatten(2).transpose(1, 2)  # (B, N, dim)
        return self.dropout(tokens + self.positions)


def vit_encoder(dim: int, layers: int, heads: int, dropout: float) -> nn.Sequential:
    """The encoder of ViT-B/16 at other widths: pre-norm blocks, MLP of 4 × ``dim``, a last layer norm.

    Dropout acts in the MLPs alone, as `Beckschen/TransUNet` and `icon-lab/ResViT` configure it.
    """
    from monai.networks.blocks import TransformerBlock

    blocks = [TransformerBlock(dim, 4 * dim, heads, dropout, qkv_bias=True) for _ in range(layers)]
    for block in blocks:
        # Made but not used without cross-attention: no gradient would reach them.
        block.norm_cross_attn = block.cross_attn = nn.Identity()
        block.attn.drop_weights = block.attn.drop_output = nn.Identity()
    return nn.Sequential(*blocks, nn.LayerNorm(dim, eps=1e-6))
