"""Where a table or figure comes from: code, configuration, inputs, versions. No date: equal work, equal bytes."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd

from resdm.cohort.manifest import split_digest
from resdm.config import Config
from resdm.io import sha256

PACKAGES = (
    "resdm", "numpy", "scipy", "pandas", "scikit-image", "matplotlib", "nibabel", "nilearn", "SimpleITK",
    "torch", "monai", "open_clip_torch", "lightning-fabric",
)  # fmt: skip
"""Distributions whose versions are recorded, where installed; none is imported for it."""


def provenance(config: Config, inputs: Iterable[str | Path] = (), *, device: str = "cpu", **extra: Any) -> dict:
    """The sidecar of a table or figure.

    Parameters
    ----------
    config : Config
    inputs : iterable of path
        Files that it was made from; each is recorded by its path below ``config.root`` (else by its name) and digest.
    device : str
        What computed it.
    **extra
        Further entries, plain JSON values (a person's choice by rule, a method, …); they come last.

    Returns
    -------
    dict
        profile, notice, config (digest), seed, split (digest), code (git commit, dirty), device, versions, inputs.
        Stable order. ``split`` is that of the manifest (see `resdm.cohort.manifest.split_digest`); None where no input
        is of the profile's work folder, or no split is drawn.

    Raises
    ------
    FileNotFoundError
        An input that is not there.
    """
    digests, work, paths = {}, config.work.resolve(), sorted({Path(item) for item in inputs})
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: an input of the table or figure is not there")
        digests[_portable(path, config.root)] = sha256(path)
    return {
        "profile": config.profile,
        "notice": config.notice,
        "config": config.digest(),
        "seed": config.seed,
        "split": _split(config) if any(path.resolve().is_relative_to(work) for path in paths) else None,
        "code": git_state(),
        "device": device,
        "versions": versions(),
        "inputs": dict(sorted(digests.items())),
        **extra,
    }


def _split(config: Config) -> str | None:
    if not config.manifest.is_file():
        return None
    frame = pd.read_csv(config.manifest, dtype=str, keep_default_na=False)
    drawn = {"person", "split"} <= set(frame) and (frame["split"] != "").all()
    return split_digest(frame) if drawn else None


def git_state(folder: str | Path | None = None) -> dict[str, str | bool | None]:
    """Commit of the source and whether tracked or new files beside ``figures/`` differ from it.

    Drawn figures are left out of ``dirty``: drawing one must not change the sidecar of the next. Outside a git checkout
    (an installed package, an archive, no git) both are ``None``.

    Parameters
    ----------
    folder : path, optional
        Where to look; this package's source by default.
    """
    here = Path(__file__).resolve().parents[2] if folder is None else Path(folder)
    marker = [] if folder is not None else ["ls-files", "--error-unmatch", str(Path(__file__).resolve())]
    if marker and _git(here, *marker) is None:  # a package installed below somebody else's checkout
        return {"commit": None, "dirty": None}
    commit = _git(here, "rev-parse", "--verify", "HEAD")
    changed = _git(here, "status", "--porcelain", "--", ":/", ":(top,exclude)figures")
    if commit is None or changed is None:
        return {"commit": None, "dirty": None}
    return {"commit": commit.strip(), "dirty": bool(changed.strip())}


def _git(folder: Path, *arguments: str) -> str | None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, env=environment, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Versions of Python and of `PACKAGES`, from their metadata."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _portable(path: Path, root: Path) -> str:
    """A path that means the same on another machine."""
    resolved, base = path.resolve(), root.resolve()
    return resolved.relative_to(base).as_posix() if resolved.is_relative_to(base) else path.name
