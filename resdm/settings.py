"""What all methods share: constants of the paper's task, settings, and how a method is built from its settings.

A method's own settings stand beside its class. Its class names them by the annotation ``config``, so a method from
outside this package (``kind: module:Class``) needs no entry here.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

TRACERS = ("amyloid", "tau")
"""The two PET targets, in channel order, everywhere."""


SEXES = ("F", "M")
"""The sex codes of manifests, prompts and tables."""


AGE_RANGE = (18.0, 110.0)
"""Plausible ages at scan, in years; anything outside is taken for a mistake of entry."""


Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
"""Lightning Fabric's names. The mixed ones compute in half precision; weights, optimisers and EMA stay in 32 bits."""


METHODS = {
    "residual_diffusion": "resdm.residual_diffusion:ResidualDiffusion",
    "regression": "resdm.baselines.regression:Regression",
    "released": "resdm.baselines.released:Released",
    "pix2pix": "resdm.baselines.pix2pix:Pix2Pix",
    "scgan": "resdm.baselines.scgan:SCGAN",
    "transunet": "resdm.baselines.transunet:TransUNet",
    "resvit": "resdm.baselines.resvit:ResViT",
    "ddpm": "resdm.baselines.ddpm:DDPM",
    "linear": "resdm.baselines.linear:Linear",
    "demographics": "resdm.baselines.linear:Demographics",
}
"""``kind`` in a profile → module:Class, imported on use: a job has one method, and not all need MONAI."""


class ConfigError(ValueError):
    """A configuration that cannot be used: names the file, the key, what was found and what was expected."""


Demand = Callable[[bool, str], None]
"""Raises `ConfigError` with its message where a condition does not hold."""


def check_person(age: float | None, sex: str | None, where: str) -> None:
    """Raise `ValueError` where an age or a sex is none that a prompt can say; ``None`` means unsaid.

    ``where`` starts the message: a file and its row, or a command-line option.
    """
    if isinstance(age, str):
        raise ValueError(f"{where}: age {age!r} is text; expected a number of years, or none")
    if age is not None and not AGE_RANGE[0] <= age <= AGE_RANGE[1]:
        raise ValueError(f"{where}: age {age} is outside {AGE_RANGE[0]:.0f}–{AGE_RANGE[1]:.0f} years")
    if sex is not None and sex not in SEXES:
        raise ValueError(f"{where}: unknown sex {sex!r}; expected one of {', '.join(SEXES)}, or none")


def derive_seed(*parts: object) -> int:
    """A seed (below 2⁶³) for one use of a profile's seed: ``derive_seed(seed, "order", epoch)``.

    Different uses get unrelated streams, and each is a function of its parts alone: nothing but the parts need be
    stored to draw the same again.
    """
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8]) >> 1


@dataclass(frozen=True)
class MethodConfig:
    """What every method has. ``kind`` names the class, see `METHODS`."""

    kind: str
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)  # of Adam
    decay: Literal["none", "cosine", "linear_half"] = "none"  # linear_half: constant, then to 0 over the last half
    ema: float = 0.0  # 0: none
    batch_size: int | None = None  # None: training.batch_size
    precision: Precision | None = None  # None: training.precision
    seed: int | None = None  # of training and sampling; None: the profile's. X@seed1 is X with another one

    def check(self, at: str, demand: Demand) -> None:
        """Ranges and combinations that types cannot say; ``demand(holds, message)`` raises `ConfigError`."""
        demand(self.learning_rate > 0, f"{at}.learning_rate must be more than 0")
        demand(0 <= self.ema < 1, f"{at}.ema is {self.ema}; expected 0 (none) or a decay below 1")
        demand(
            self.batch_size is None or self.batch_size >= 1,
            f"{at}.batch_size is {self.batch_size}; expected at least 1",
        )
        demand(self.seed is None or self.seed >= 0, f"{at}.seed is {self.seed}; expected 0 or more")


@dataclass(frozen=True)
class TrainingConfig:
    """One loop, one split, one augmentation, one budget for every method."""

    budget: Literal["equal_epochs", "equal_time"] = "equal_epochs"
    epochs: int = 1000  # not used by equal_time
    seconds: float | None = None  # of training steps, the budget of equal_time; turned into a number of steps once
    batch_size: int = 1  # people (sessions) a step, over all devices together, both tracers each
    shift_voxels: int = 2  # augmentation: a translation of up to this many voxels, the same for MRI and PETs
    flip: bool = False  # left–right, the same for all volumes of a person
    validate_every: int = 10  # epochs; the last step is always validated
    checkpoint_every: int = 500  # optimiser steps
    clip_norm: float | None = None
    accelerator: str = "auto"
    devices: int = 1
    precision: Precision = "32-true"
    channels_last: bool | None = None  # memory format of volumes in the networks, other last bits; None: on AVX2 CPUs
    compile: bool = False  # torch.compile of the networks, in training and sampling; other last bits, minutes to start
    deterministic: bool = True  # CUDA kernels that give the same bits every time, where there are any; CPU always does
    threads: int | None = None  # CPU threads of torch; a number makes results independent of the machine's cores
    keep_memory: bool = True  # CPU: what tensors free stays with the process: the same values, faster on large grids
    workers: int = 0  # processes that load volumes; 0: the memory map is read in the training process


def imported_method(kind: str, where: str) -> type:
    """The class that a ``kind`` names, imported.

    Raises
    ------
    ConfigError
        No such module or class; ``where`` starts the message.
    """
    module, _, name = METHODS.get(kind, kind).partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where} is {kind!r}, and cannot be had: {error}; expected module:Class of an installed package, or of a "
            "file in a folder that PYTHONPATH names"
        ) from error


def settings_class(kind: str, where: str = "kind") -> type[MethodConfig]:
    """The settings of a method: the dataclass that its class annotates as ``config``."""
    found = imported_method(kind, where)
    settings = typing.get_type_hints(found).get("config", MethodConfig) if isinstance(found, type) else None
    if not (isinstance(settings, type) and issubclass(settings, MethodConfig)):
        raise ConfigError(f"{where} is {kind!r}; expected a class with config: a dataclass made from MethodConfig")
    return settings


def to_dict(config: Any) -> dict[str, Any]:
    """Plain dictionaries and lists, as YAML and JSON hold them, without ``root``."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name != "root"}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return plain(config)


def method_from_dict(tree: dict[str, Any], where: str) -> MethodConfig:
    """A method's settings from a dictionary with ``kind``, checked like a profile (model folders use it)."""
    return _method(tree, where, "")


def build_settings(cls: type, tree: Any, file: str, at: str) -> Any:
    """A dataclass from a mapping, strictly: an unknown key or a value of another type is a `ConfigError`."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: {at or 'the file'}: expected a mapping, found {tree!r}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name != "root"}
    for key in tree:
        if key not in fields:
            raise ConfigError(
                f"{file}: unknown key {join_key(at, key)!r}{suggest(key, fields)}; "
                f"{at or 'the file'} takes: {', '.join(fields)}"
            )
    hints = typing.get_type_hints(cls)
    values = {key: _convert(hints[key], value, file, join_key(at, key)) for key, value in tree.items()}
    for name, spec in fields.items():
        missing = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if missing and name not in values:
            raise ConfigError(f"{file}: {join_key(at, name)} is missing")
    return cls(**values)


def _convert(hint: Any, value: Any, file: str, at: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, file, at)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{file}: {at} is {value!r}; expected one of {', '.join(map(str, arguments))}")
        return value
    if hint is MethodConfig:
        return _method(value, file, at)
    if dataclasses.is_dataclass(hint):
        return build_settings(hint, value, file, at)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{file}: {at}: expected a mapping, found {value!r}")
        return {str(key): _convert(arguments[1], item, file, join_key(at, key)) for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{file}: {at}: expected a list, found {value!r}")
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], item, file, f"{at}[{i}]") for i, item in enumerate(value))
        if len(value) != len(arguments):
            raise ConfigError(f"{file}: {at}: expected {len(arguments)} values, found {len(value)}")
        return tuple(_convert(a, v, file, f"{at}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4, without a dot, as text
        try:
            return float(value)
        except ValueError:
            pass
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{file}: {at}: expected {hint.__name__}, found {value!r}")


def _method(tree: Any, file: str, at: str) -> MethodConfig:
    if not isinstance(tree, dict) or "kind" not in tree:
        raise ConfigError(f"{file}: {at or 'method'} needs a kind: one of {', '.join(METHODS)}")
    kind = tree["kind"]
    if kind not in METHODS and not (isinstance(kind, str) and ":" in kind):
        raise ConfigError(
            f"{file}: {join_key(at, 'kind')} is {kind!r}{suggest(str(kind), METHODS)}; "
            f"expected one of {', '.join(METHODS)}, or module:Class"
        )
    return build_settings(settings_class(kind, f"{file}: {join_key(at, 'kind')}"), tree, file, at)


def join_key(at: str, key: Any) -> str:
    """A dotted key."""
    return f"{at}.{key}" if at else str(key)


def suggest(word: str, known: typing.Iterable[str]) -> str:
    """The nearest of the known words, as the end of an error message; empty where none is near."""
    lower = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(word).lower(), lower, n=1)
    return f" (did you mean {lower[close[0]]!r}?)" if close else ""
