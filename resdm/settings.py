"""Settings that all methods share, and the constants of the task.

The settings of one method are in the module of its class, whose annotation ``config`` names them. So a method of
another package (``kind: module:Class``) needs no entry here.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import sys
import typing
from dataclasses import dataclass
from typing import Any, Literal

TRACERS = ("amyloid", "tau")
"""The two PET targets, in channel order, everywhere."""

SEXES = ("F", "M")
"""The sex codes of manifests, prompts and tables."""

PROMPT_FIELDS = ("age", "sex")
"""Fields of a person that the paper's prompt contains; further ones are columns of the manifest."""

AGE_RANGE = (18.0, 110.0)
"""Plausible ages at scan, in years; others are treated as errors of entry."""

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
"""Lightning Fabric's names. The mixed ones compute in half precision; weights, optimisers and EMA stay in 32 bits."""

METHODS = {
    "residual_diffusion": "resdm.residual_diffusion:ResidualDiffusion",
    "regression": "resdm.baselines.regression:Regression",
    "separate_diffusion": "resdm.baselines.separate:SeparateDiffusion",
    "released": "resdm.baselines.released:Released",
    "pix2pix": "resdm.baselines.pix2pix:Pix2Pix",
    "scgan": "resdm.baselines.scgan:SCGAN",
    "transunet": "resdm.baselines.transunet:TransUNet",
    "resvit": "resdm.baselines.resvit:ResViT",
    "ddpm": "resdm.baselines.ddpm:DDPM",
    "linear_path": "resdm.baselines.linear_path:LinearPathAlone",
    "linear": "resdm.baselines.linear:Linear",
    "demographics": "resdm.baselines.linear:Demographics",
}
"""``kind`` in a profile → module:Class, imported on use: not all methods need MONAI."""


class ConfigError(ValueError):
    """An invalid setting: names the file, the key, its value and the expected values."""


def require(holds: bool, key: str, value: Any, expected: str) -> None:
    """Raise `ConfigError` where a setting is out of range. A profile's loader puts its section before the key."""
    if not holds:
        raise ConfigError(f"{key} is {value!r}; expected {expected}")


def check_person(age: float | None, sex: str | None, where: str) -> None:
    """Raise `ValueError` for an age or a sex that a prompt cannot hold; ``None`` leaves it out.

    ``where`` starts the message: a file and its row, or a command-line option.
    """
    if isinstance(age, str):
        raise ValueError(f"{where}: age {age!r} is text; expected a number of years, or none")
    if age is not None and not AGE_RANGE[0] <= age <= AGE_RANGE[1]:
        raise ValueError(f"{where}: age {age} is outside {AGE_RANGE[0]:.0f}–{AGE_RANGE[1]:.0f} years")
    if sex is not None and sex not in SEXES:
        raise ValueError(f"{where}: unknown sex {sex!r}; expected one of {', '.join(SEXES)}, or none")


def fields_of(settings: Any) -> tuple[str, ...]:
    """The fields that a method's settings name, in the prompt or in a linear design; none for other methods."""
    return tuple(getattr(getattr(settings, "prior", None) or settings, "fields", ()))


def further(fields: typing.Iterable[str]) -> tuple[str, ...]:
    """The fields that are neither age nor sex."""
    return tuple(name for name in fields if name not in PROMPT_FIELDS)


def derive_seed(*parts: object) -> int:
    """A seed (below 2⁶³) for one use of a profile's seed: ``derive_seed(seed, "order", epoch)``.

    Different uses get unrelated random streams. The parts alone determine the seed.
    """
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8]) >> 1


@dataclass(frozen=True)
class MethodConfig:
    """Settings of every method. ``kind`` names the class, see `METHODS`."""

    kind: str
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam
    decay: Literal["none", "cosine", "linear_half"] = "none"  # linear_half: constant, then to 0 over the last half
    ema: float = 0.0  # 0: none
    batch_size: int | None = None  # None: training.batch_size
    precision: Precision | None = None  # None: training.precision
    seed: int | None = None  # of training and sampling; None: the profile's. X@seed1 is X with another one

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "more than 0")
        betas = all(0 <= beta < 1 for beta in self.betas)
        require(betas, "betas", self.betas, "two numbers from 0 to below 1")
        require(0 <= self.ema < 1, "ema", self.ema, "0 (none) or a decay below 1")
        require(self.batch_size is None or self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(self.seed is None or 0 <= self.seed < 2**63, "seed", self.seed, "0 or more, below 2⁶³")


@dataclass(frozen=True)
class TrainingConfig:
    """One loop, one split, one augmentation, one budget for every method."""

    budget: Literal["equal_epochs", "equal_time"] = "equal_epochs"
    epochs: int = 1000  # not used by equal_time
    seconds: float | None = None  # s, of training steps, the budget of equal_time; turned into a number of steps once
    batch_size: int = 1  # sessions per step, over all devices together, both tracers each
    shift_voxels: int = 2  # augmentation: a translation of up to this many voxels, the same for MRI and PETs
    flip: bool = False  # left–right, the same for all volumes of a person
    validate_every: int = 10  # epochs; the last step is always validated
    checkpoint_every: int = 500  # optimiser steps
    clip_norm: float | None = None  # largest L2 norm of an optimiser's gradients; None: no clipping
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a CUDA GPU where there is one
    devices: int = 1  # processes, one per device; each averages a loss over its own people with the tracer
    precision: Precision = "32-true"
    channels_last: bool | None = None  # memory format of volumes in the networks, other last bits; None: on AVX2 CPUs
    compile: bool = False  # torch.compile of the networks, in training and sampling; other last bits, minutes to start
    deterministic: bool = True  # CUDA kernels that repeat their bytes, where there are any; those of CPUs always do
    threads: int | None = None  # CPU threads of torch; a number makes results independent of the machine's cores
    keep_memory: bool = True  # CPU: what tensors free stays with the process: the same values, faster on large grids
    workers: int = 0  # processes that load volumes; 0: the memory map is read in the training process

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size", "validate_every", "checkpoint_every", "devices", "threads"):
            value = getattr(self, key)
            require(value is None or value >= 1, key, value, "at least 1")
        for key in ("seconds", "clip_norm"):
            value = getattr(self, key)
            require(value is None or value > 0, key, value, "more than 0, or null for none")
        for key in ("workers", "shift_voxels"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "0 or more")
        timed = self.budget != "equal_time" or self.seconds is not None
        require(timed, "seconds", None, "a number of seconds, since budget is equal_time")


def imported_method(kind: str, where: str, trust_code: bool = True) -> type:
    """The class that a ``kind`` names, imported; ``where`` starts the message of an error.

    Without ``trust_code`` no module is imported for a ``module:Class``. Its class is found only if the program has
    imported the module already, as for a profile that names it.

    Raises
    ------
    ConfigError
        No such module or class, or code that is not trusted.
    """
    if not isinstance(kind, str) or (kind not in METHODS and ":" not in kind):
        raise ConfigError(
            f"{where} is {kind!r}{suggest(str(kind), METHODS)}; expected one of {', '.join(METHODS)}, or module:Class"
        )
    module, _, name = METHODS.get(kind, kind).partition(":")
    if not (trust_code or kind in METHODS or module in sys.modules):
        raise ConfigError(
            f"{where} is {kind!r}, code that would run on this machine, and is not imported; if you trust its source, "
            "import it first, or allow it with trust_code=True (--trust-code)"
        )
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{where} is {kind!r}, which cannot be imported: {error}; expected module:Class of an installed package, "
            "or of a file in a folder on PYTHONPATH"
        ) from error


def settings_class(kind: str, where: str = "kind", trust_code: bool = True) -> type[MethodConfig]:
    """The settings of a method: the dataclass that its class annotates as ``config``; `ConfigError` without one."""
    method = imported_method(kind, where, trust_code)
    settings = typing.get_type_hints(method).get("config", MethodConfig) if isinstance(method, type) else None
    if not (isinstance(settings, type) and issubclass(settings, MethodConfig)):
        raise ConfigError(f"{where} is {kind!r}; expected a class with config: a dataclass derived from MethodConfig")
    return settings


def method_from_dict(tree: dict[str, Any], where: str, trust_code: bool = True) -> MethodConfig:
    """Rebuild a method's settings from `to_dict`, as a model file holds them; types of values are not checked.

    Raises `ConfigError` for settings that do not build the class; ``where`` starts the message.
    """
    if not isinstance(tree, dict) or "kind" not in tree:
        raise ConfigError(f"{where}: a method needs a kind: one of {', '.join(METHODS)}")
    try:
        return _build(settings_class(tree["kind"], "kind", trust_code), tree)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:  # of values of other types
        raise ConfigError(f"{where}: {error}") from error


def _build(hint: Any, value: Any) -> Any:
    section = next((item for item in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(item)), None)
    if section is None or value is None:
        return tuple(value) if isinstance(value, list) else value
    hints = typing.get_type_hints(section)
    for key in value:
        if key not in hints:
            raise ConfigError(f"unknown key {key!r}{suggest(key, hints)}; expected: {', '.join(hints)}")
    return section(**{key: _build(hints[key], item) for key, item in value.items()})


ADDED = {"added": True}
"""Metadata of a field that older revisions did not have: its default is not stored, so digests of older runs stay."""


def to_dict(config: Any) -> Any:
    """Plain dictionaries and lists, as YAML and JSON hold them, without ``root`` and without defaults of `ADDED`."""
    if dataclasses.is_dataclass(config):
        values = [(f, getattr(config, f.name)) for f in dataclasses.fields(config) if f.name != "root"]
        return {f.name: to_dict(value) for f, value in values if not (f.metadata == ADDED and value == f.default)}
    if isinstance(config, dict):
        return {key: to_dict(item) for key, item in config.items()}
    return [to_dict(item) for item in config] if isinstance(config, list | tuple) else config


def suggest(word: str, known: typing.Iterable[str]) -> str:
    """The nearest known word, as the end of an error message; empty where none is near."""
    lower = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(word).lower(), lower, n=1)
    return f" (did you mean {lower[close[0]]!r}?)" if close else ""
