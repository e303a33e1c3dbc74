"""The methods of Table 2, and the registry that makes one from its configuration."""

from __future__ import annotations

from resdm.config import ConfigError, MethodConfig, imported_method
from resdm.methods.base import Method
from resdm.methods.ddpm import DDPM
from resdm.methods.pix2pix import Pix2Pix
from resdm.methods.regression import Regression
from resdm.methods.released import Released
from resdm.methods.residual_diffusion import ResidualDiffusion
from resdm.methods.resvit import ResViT
from resdm.methods.scgan import SCGAN
from resdm.methods.transunet import TransUNet

__all__ = ["METHODS", "Method", "build_method"]

METHODS: dict[str, type[Method]] = {
    "residual_diffusion": ResidualDiffusion,
    "regression": Regression,
    "released": Released,
    "pix2pix": Pix2Pix,
    "scgan": SCGAN,
    "transunet": TransUNet,
    "resvit": ResViT,
    "ddpm": DDPM,
}
"""``kind`` in the YAML → class. Settings of each stand in `resdm.config.METHOD_CONFIGS`."""


def build_method(config: MethodConfig, shape: tuple[int, int, int]) -> Method:
    """A method with fresh weights (drawn from torch's global random state: seed it first)."""
    if ":" not in config.kind:
        return METHODS[config.kind](config, shape)
    found = imported_method(config.kind, "kind")
    if not issubclass(found, Method):
        raise ConfigError(f"kind is {config.kind!r}; expected a class made from resdm.methods.Method")
    return found(config, shape)
