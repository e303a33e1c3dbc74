"""ResDM: multi-modal PET synthesis from MRI by a residual diffusion model with prior information (IJCAI 2024)."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "ResidualScheduler": "scheduler",
    "UNet": "unet",
    "PriorModule": "prior",
    "ResidualDiffusion": "residual_diffusion",
    "Method": "method",
    "build_method": "method",
    "load_model": "checkpoint",
    "train": "training",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
