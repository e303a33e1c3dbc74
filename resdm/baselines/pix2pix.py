"""Pix2Pix: a U-Net against a patch discriminator, one model per tracer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdm.baselines.adversarial import AdversarialConfig, ConditionalGAN, InstanceNorm3d, Shape, normal_weights
from resdm.baselines.per_tracer import PerTracer


@dataclass(frozen=True)
class Pix2PixConfig(AdversarialConfig):
    """Pix2Pix (Isola et al. 2017), one model per tracer."""

    kind: str = "pix2pix"
    width: int = 32
    dropout: float = 0.5


class UNetGenerator(nn.Module):
    """k4 convolutions of stride 2 down to one voxel, their mirror up, skips concatenated, tanh.

    The shortest axis of ``shape`` sets the levels: 7 at 128, 5 at 32. Channels double from ``width`` to 8 × ``width``.
    Dropout acts in the decoder's blocks between the innermost and the fifth level from the top.
    """

    def __init__(self, width: int, shape: Shape, dropout: float) -> None:
        super().__init__()
        levels = min(shape).bit_length() - 1
        widths = [width * min(2**level, 8) for level in range(levels)]
        self.down, self.down_norm = nn.ModuleList(), nn.ModuleList()
        self.up, self.up_norm = nn.ModuleList(), nn.ModuleList()
        for level, channels in enumerate(widths):
            outermost, innermost = level == 0, level == levels - 1
            above = 1 if outermost else widths[level - 1]
            below = channels if innermost else 2 * channels
            self.down.append(nn.Conv3d(above, channels, 4, stride=2, padding=1, bias=False))
            self.down_norm.append(nn.Identity() if outermost or innermost else InstanceNorm3d(channels))
            self.up.append(nn.ConvTranspose3d(below, above, 4, stride=2, padding=1, bias=outermost))
            norm = [] if outermost else [InstanceNorm3d(above)]
            self.up_norm.append(nn.Sequential(*norm, nn.Dropout(dropout if 4 <= level < levels - 1 else 0.0)))
        self.apply(normal_weights)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) → the same, in (−1, 1)."""
        maps = [x]
        for level, (conv, norm) in enumerate(zip(self.down, self.down_norm, strict=True)):
            maps.append(norm(conv(F.leaky_relu(maps[-1], 0.2) if level else x)))  # (B, c, X/2, Y/2, Z/2)
        x = maps.pop()
        for level in reversed(range(len(self.up))):
            skip = maps.pop()
            # The output size is the skip's, so that an odd axis keeps its last voxel.
            x = self.up_norm[level](self.up[level](F.relu(x), output_size=skip.shape[2:]))  # (B, c, 2x, 2y, 2z)
            if level:
                x = torch.cat([skip, x], 1)
        return x.float().tanh()


class Pix2Pix(PerTracer):
    """Isola et al., "Image-to-image translation with conditional adversarial networks", CVPR 2017.

    Facts from `junyanz/pytorch-CycleGAN-and-pix2pix` (``unet_128``, ``basic`` discriminator, ``vanilla`` loss);
    departures: ``docs/baselines.md``. Only the first level's skip is not normalised: the last convolution gets the
    MRI's intensities, of the nearest voxels alone.
    """

    config: Pix2PixConfig

    def tracer_model(self) -> ConditionalGAN:
        """U-Net and PatchGAN."""
        config = self.config
        return ConditionalGAN(UNetGenerator(config.width, self.shape, config.dropout), config, self.shape)
