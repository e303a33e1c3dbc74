"""Provenance of a table or figure: code, configuration, inputs, versions. No date, so equal work has equal bytes."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from threadpoolctl import threadpool_info

from resdm.io import sha256, write_json
from resdm_suite.cohorts.splits import split_digest
from resdm_suite.paths import visible
from resdm_suite.profiles import Config
from resdm_suite.records import RecordError, parsing, read_csv, read_json, unchanged

PACKAGES = (
    "resdm", "numpy", "scipy", "pandas", "scikit-image", "matplotlib", "nibabel", "nilearn", "SimpleITK",
    "torch", "monai", "open_clip_torch", "lightning-fabric",
)  # fmt: skip
"""Distributions whose versions are recorded where installed, without importing them."""


def provenance(
    config: Config, inputs: Iterable[str | Path] = (), *, device: str = "cpu", parts: Iterable[str] = (), **extra: Any
) -> dict:
    """The sidecar of a table or figure.

    Parameters
    ----------
    config : Config
    inputs : iterable of path
        Input files; each is recorded by its path below ``config.root`` (else by its name) and its digest.
    device : str
        Device of the computation.
    parts : iterable of str
        Parts of the configuration that matter beside those of `depends_on`.
    **extra
        Further entries, plain JSON values; they come last.

    Returns
    -------
    dict
        profile, notice, config (digest), settings (digest of each part that it depends on), seed, split (digest), code
        (git commit, dirty), device, processor, versions, inputs. Stable order. ``split`` is that of the manifest (see
        `cohorts.splits.split_digest`); None where no input is of the profile's work folder, or no split is
        drawn.

    Raises
    ------
    FileNotFoundError
        A missing input.
    """
    digests, work, paths = {}, config.work.resolve(), sorted({Path(item) for item in inputs})
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: an input of the table or figure is missing")
        digests[_portable(path, config.root)] = sha256(path)
    return {
        "profile": config.profile,
        "notice": config.notice,
        "config": config.digest(),
        "settings": {part: config.digest(part) for part in sorted({*depends_on(config, paths), *parts})},
        "seed": config.seed,
        "split": _split(config) if any(path.resolve().is_relative_to(work) for path in paths) else None,
        "code": git_state(),
        "device": device,
        "processor": processor(),
        "versions": versions(),
        "inputs": dict(sorted(digests.items())),
        **extra,
    }


def write_sidecar(stem: str | Path, provenance: Mapping[str, Any]) -> Path:
    """Write ``<stem>.json`` with `provenance` and the digests of the result's tables, which are written before it.

    They are ``<stem>`` and ``<stem>_…`` as CSV, Markdown and LaTeX, under ``files``.
    """
    stem = Path(stem)
    tables = [path for path in visible(stem.parent, "*.*") if path.suffix in (".csv", ".md", ".tex")]
    digests = {path.name: sha256(path) for path in tables if f"{path.stem}_".startswith(f"{stem.name}_")}
    entry = dict(provenance) | ({"files": digests} if digests else {})
    return write_json(stem.with_name(f"{stem.name}.json"), entry)


def altered(folder: Path, stem: str) -> list[str]:
    """Tables of a stored result that are not those of its sidecar, see `write_sidecar`.

    ``figure4_effects`` belongs to the sidecar of ``figure4``. Raises `RecordError` for a damaged sidecar.
    """
    sidecar = sidecar_of(folder, stem)
    if sidecar is None:
        return []
    with parsing(sidecar):
        files = dict(read_json(sidecar).get("files", {}))
        mine = {name: digest for name, digest in files.items() if name.partition(".")[0] == stem}
        return [name for name, digest in mine.items() if not unchanged(folder / name, {"sha256": digest})]


def sidecar_of(folder: Path, stem: str) -> Path | None:
    """The sidecar to which a file of this stem belongs, if there is one: ``figure4.json`` of ``figure4_effects``."""
    parts = stem.split("_")
    paths = (folder / f"{'_'.join(parts[:n])}.json" for n in range(len(parts), 0, -1))
    return next((path for path in paths if path.is_file()), None)


def depends_on(config: Config, inputs: Iterable[Path]) -> set[str]:
    """Parts of the configuration that decide a result, from the places of its inputs.

    They match the settings that make the Snakefile rerun its rule.
    """
    parts, work = {"cohort", "preprocess", "privacy", "seed"}, config.work.resolve()
    for path in map(Path.resolve, inputs):
        stage, name, *rest = (*path.relative_to(work).parts, "", "") if path.is_relative_to(work) else ("", "")
        if stage in ("models", "predictions"):
            parts |= {"training", f"methods.{name}"} if name in config.methods else set()
            parts |= {"uncertainty"} if "samples" in rest else set()
        elif stage == "evaluation":  # the evaluators of status read every method's PET
            parts |= {"evaluation", *(("training", "methods") if name.startswith("status") else ())}
        elif path.is_relative_to(config.figures.resolve()):  # a table of tables
            parts |= {"evaluation", "training", "methods"}
    return parts


def stale(config: Config, record: Mapping[str, Any]) -> list[str]:
    """Parts of the configuration that have changed since a sidecar was written; all where it records none.

    Parameters
    ----------
    config : Config
    record : mapping
        A stored sidecar, see `provenance`.
    """

    def digest(part: str) -> str | None:
        try:
            return config.digest(part)
        except KeyError:  # a method that the profile no longer has
            return None

    settings = record.get("settings", {})
    return [part for part, stored in settings.items() if digest(part) != stored] if settings else ["all"]


def outdated(config: Config, stem: str) -> str:
    """Why a stored result is not one of this run: edited, other settings, or inputs that are missing or have changed.

    Empty where it is one, or where no sidecar belongs to it; see `altered`.
    """
    sidecar = sidecar_of(config.figures, stem)
    if sidecar is None:
        return ""
    try:
        record = read_json(sidecar)
        if edited := altered(config.figures, stem):
            return f"changed after it was made: {', '.join(edited)}"
        if settings := stale(config, record):
            return f"made with other settings: {', '.join(settings)}"
        for name, digest in record["inputs"].items():
            path = config.root / name
            if "/" in name and not unchanged(path, {"sha256": digest}):
                return f"made of {'another' if path.is_file() else 'a missing'} {name}"
    except (RecordError, LookupError, TypeError, AttributeError):
        return f"{sidecar.name} is damaged"
    return ""


def read_result(config: Config, stem: str) -> pd.DataFrame:
    """A table of this run. Raises `LookupError` where it is missing or `outdated`, `RecordError` if damaged."""
    path = config.figures / f"{stem}.csv"
    if not path.is_file() or outdated(config, stem):
        raise LookupError(f"{path}: no table of this run")
    return read_csv(path)


def processor() -> dict[str, str]:
    """Code paths of the linear algebra on this CPU: the last bits of results depend on them.

    Returns
    -------
    dict of str
        ``blas``: core type of OpenBLAS (set by ``OPENBLAS_CORETYPE``); ``torch``: vector instructions of its kernels
        (set by ``ATEN_CPU_CAPABILITY``), if this process has loaded torch.
    """
    cores = sorted({library["architecture"] for library in threadpool_info() if library.get("architecture")})
    paths = {"blas": ", ".join(cores)} if cores else {}
    if "torch" in sys.modules:  # not imported for this: a table of stored scores needs no torch
        paths["torch"] = sys.modules["torch"].backends.cpu.get_cpu_capability()
    return paths


def _split(config: Config) -> str | None:
    if not config.manifest.is_file():
        return None
    frame = pd.read_csv(config.manifest, dtype=str, keep_default_na=False)
    drawn = {"person", "split"} <= set(frame) and (frame["split"] != "").all()
    return split_digest(frame) if drawn else None


def git_state(folder: str | Path | None = None) -> dict[str, str | bool | None]:
    """Commit of the source, and whether tracked or new files differ from it.

    ``dirty`` ignores results (``figures/``, ``benchmarks/results/``): drawing a figure must not change the sidecar of
    the next. Both are ``None`` outside a git checkout (an installed package, an archive, no git).

    Parameters
    ----------
    folder : path, optional
        A folder of the checkout; this package's by default.
    """
    file = Path(__file__).resolve()
    here = file.parents[2] if folder is None else Path(folder)
    commit = _git(here, "rev-parse", "--verify", "HEAD")
    results = ":(top,exclude)figures", ":(top,exclude)benchmarks/results"
    changed = _git(here, "status", "--porcelain", "--", ":/", *results)
    foreign = folder is None and _git(here, "ls-files", "--error-unmatch", str(file)) is None  # inside another checkout
    if commit is None or changed is None or foreign:
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
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _portable(path: Path, root: Path) -> str:
    """A path that is valid on other machines."""
    places = ((Path(os.path.abspath(path)), Path(os.path.abspath(root))), (path.resolve(), root.resolve()))
    # first as they are named: work/ may be a link to another disk
    return next((at.relative_to(base).as_posix() for at, base in places if at.is_relative_to(base)), path.name)
