"""The five competitors and the released code at a few thousand weights each, and what their tests share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from conftest import tiny_prior

from resdm.baselines.ddpm import DDPMConfig
from resdm.baselines.pix2pix import Pix2PixConfig
from resdm.baselines.released import ReleasedConfig
from resdm.baselines.resvit import ResViTConfig
from resdm.baselines.scgan import SCGANConfig
from resdm.baselines.transunet import TransUNetConfig
from resdm.batch import Batch, Prior
from resdm.method import build_method

SHAPE = (16, 16, 16)

TINY = {
    "pix2pix": Pix2PixConfig(width=4, discriminator_width=4),
    "scgan": SCGANConfig(width=4, discriminator_width=4),
    "transunet": TransUNetConfig(width=8, units=(1, 1, 1), dim=16, layers=1, heads=2, discriminator_width=4),
    "resvit": ResViTConfig(width=4, middle=8, dim=16, layers=1, heads=2, discriminator_width=4),
    "ddpm": DDPMConfig(channels=(8, 16, 16), attention_levels=(), sampling_steps=2),
    "released": ReleasedConfig(width=8, mri_shift=0, ema=0.9, prior=tiny_prior(context="pooled", dim=64)),
}
PHASES = {
    "pix2pix": [f"{t}.{p}" for t in ("amyloid", "tau") for p in ("discriminator", "generator")],
    "scgan": [f"{t}.{p}" for t in ("amyloid", "tau") for p in ("generator", "discriminator")],
    "transunet": [f"{t}.{p}" for t in ("amyloid", "tau") for p in ("discriminator", "generator")],
    "resvit": ["discriminator", "generator"],
    "ddpm": ["model"],
}


def make(kind, shape=SHAPE, seed=0, **changes):
    """A tiny one in training mode."""
    torch.manual_seed(seed)
    config = TINY[kind]
    return build_method(type(config)(**{**vars(config), **changes}), shape)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def smooth_batch(n=2, shape=SHAPE, seed=0):
    """People who differ in smooth MRI and PET that are unrelated, so they can only be memorised."""
    g = seeded(seed)
    fields = F.interpolate(torch.rand((n, 3, 3, 3, 3), generator=g), shape, mode="trilinear", align_corners=True)
    low, high = fields.amin((2, 3, 4), keepdim=True), fields.amax((2, 3, 4), keepdim=True)
    fields = (fields - low) / (high - low)
    prior = Prior((70.0,) * n, ("F",) * n)
    return Batch(fields[:, :1], fields[:, 1:], torch.ones((n, 2), dtype=torch.bool), prior)


def fit(method, batch, steps, seed=0):
    """Train as the loop does; returns the names and values of the last step's losses."""
    optimisers, g = method.optimisers(), seeded(seed)
    for _ in range(steps):
        losses = {}
        for name, loss in method.losses(batch, g):
            optimisers[name].zero_grad()
            loss.backward()
            optimisers[name].step()
            losses[name] = loss.item()
    return losses


def count(module):
    return sum(weight.numel() for weight in module.parameters())
