"""The methods of Table 2, and the registry that makes one from its configuration."""

from __future__ import annotations

from resdm.config import ConfigError, MethodConfig, imported_method
from resdm.methods.base import Method

__all__ = ["METHODS", "Method", "build_method"]

METHODS: dict[str, str] = {
    "residual_diffusion": "resdm.methods.residual_diffusion:ResidualDiffusion",
    "regression": "resdm.methods.regression:Regression",
    "released": "resdm.methods.released:Released",
    "pix2pix": "resdm.methods.pix2pix:Pix2Pix",
    "scgan": "resdm.methods.scgan:SCGAN",
    "transunet": "resdm.methods.transunet:TransUNet",
    "resvit": "resdm.methods.resvit:ResViT",
    "ddpm": "resdm.methods.ddpm:DDPM",
    "linear": "resdm.methods.linear:Linear",
    "demographics": "resdm.methods.linear:Demographics",
}
"""``kind`` in the YAML → module:Class, imported when it is built: a job has one method, and MONAI and open_clip, which
not all need, take seconds. Settings of each stand in `resdm.config.METHOD_CONFIGS`."""


def build_method(config: MethodConfig, shape: tuple[int, int, int]) -> Method:
    """A method with fresh weights (drawn from torch's global random state: seed it first)."""
    found = imported_method(METHODS.get(config.kind, config.kind), "kind")
    if not issubclass(found, Method):
        raise ConfigError(f"kind is {config.kind!r}; expected a class made from resdm.methods.Method")
    return found(config, shape)


def __getattr__(name: str) -> type[Method]:
    """The classes of `METHODS` by their names, as if they were imported here."""
    for target in METHODS.values():
        if target.partition(":")[2] == name:
            return imported_method(target, "kind")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
