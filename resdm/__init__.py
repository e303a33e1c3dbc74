"""ResDM: multi-modal PET synthesis from MRI by a residual diffusion model with prior information (IJCAI 2024)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resdm.batch import Batch, Prior
    from resdm.checkpoint import load_model
    from resdm.method import Method, build_method
    from resdm.prior import PriorConfig, PriorModule, TowerConfig
    from resdm.residual_diffusion import ResidualDiffusion, ResidualDiffusionConfig
    from resdm.scheduler import ResidualScheduler
    from resdm.settings import TrainingConfig
    from resdm.training import train
    from resdm.unet import NetworkConfig, UNet

__version__ = "0.1.0"

_MODULES = {
    "batch": ["Batch", "Prior"],
    "checkpoint": ["load_model"],
    "method": ["Method", "build_method"],
    "prior": ["PriorConfig", "PriorModule", "TowerConfig"],
    "residual_diffusion": ["ResidualDiffusion", "ResidualDiffusionConfig"],
    "scheduler": ["ResidualScheduler"],
    "settings": ["TrainingConfig"],
    "training": ["train"],
    "unet": ["NetworkConfig", "UNet"],
}
_PUBLIC = {name: module for module, names in _MODULES.items() for name in names}
"""Public name → its module, imported on first use: `import resdm` alone needs no torch."""

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
