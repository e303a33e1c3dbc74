"""What a stage read and wrote: one record in each folder of results, and the check of every file that is read.

``.record.json`` names the stage (the command or notebook to run again), the files that it wrote and those that they
follow from, with size and SHA-256. A reader opens a file through `checked`. Sizes are compared first. The digest is
compared where a file is newer than the record, by its content or by its place, so a copy of a folder is as good as the
folder, and an unchanged one is not read. A file that no record lists is accepted: tables may be written by hand.

The name begins with a dot, so BIDS tools pass it over.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, lru_cache, wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from resdm.io import is_leftover, sha256, write_json, writing
from resdm_suite.paths import relative
from resdm_suite.profiles import Config, load_config

if TYPE_CHECKING:
    import pandas as pd

NAME = ".record.json"

_STAGES = {
    "bids": "phantom", "truth": "phantom", "volumes": "preprocess", "qc": "qc", "models": "train",
    "pretraining": "train", "samples": "sample", "ceiling": "ceiling", "predictions": "predict",
    "evaluation": "evaluators",
}  # fmt: skip

_UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, zlib.error, zipfile.BadZipFile)


class RecordError(ValueError):
    """A file that is not what its stage wrote: names the file, the fault and the stage to run again."""


class StaleError(RecordError):
    """A file that follows from one that has changed since."""


def state(path: str | Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    return {"bytes": os.stat(path).st_size, "sha256": sha256(path)}


def unchanged(path: str | Path, known: Mapping[str, Any], since: int = 0, *, deep: bool = False) -> bool:
    """Whether a file exists with the content of a stored `state`.

    A file that has not changed since a time (ns), or is of the time ``known["mtime_ns"]``, is not read; ``deep`` reads
    it in any case.
    """
    if not Path(path).is_file():
        return False
    status = os.stat(path)
    size, times = status.st_size, (status.st_mtime_ns, status.st_ctime_ns)
    if size != known.get("bytes", size):
        return False
    if not deep and (max(times) < since or known.get("mtime_ns") == times[0]):
        return True
    return (sha256(path) if deep else _digest(str(path), size, *times)) == known.get("sha256")


def write_record(
    folder: str | Path,
    stage: str,
    outputs: Iterable[str | Path],
    inputs: Iterable[str | Path] = (),
    *,
    name: str = NAME,
    **extra: Any,
) -> None:
    """Write the record of a stage, after its files.

    Parameters
    ----------
    folder : path
    stage : str
        What makes the files, as a person types it: ``resdm preprocess phantom``.
    outputs, inputs : iterable of path
        Files written, below ``folder``, and files that they follow from. Missing ones are left out.
    name : str
        Of the record; ``.status.record.json`` is of ``status.csv`` and ``status_….csv`` where stages share a folder.
    **extra
        Further plain values, such as a digest of settings.
    """
    path, entry = Path(os.path.abspath(folder)) / name, {"stage": stage, **extra}
    since, before = _load(path, broken=True)
    for kind, files in (("inputs", inputs), ("outputs", outputs)):
        known, entry[kind] = before[kind], {}
        for file in sorted({relative(file, path.parent) for file in files if Path(file).is_file()}):
            same = file in known and unchanged(path.parent / file, known[file], since)
            entry[kind][file] = known[file] if same else state(path.parent / file)
    if entry != before:
        write_json(path, entry)


def read_record(folder: str | Path) -> tuple[dict[str, Any], set[Path]]:
    """The record of a folder, and the files in it that have changed or are missing; empty without a record."""
    since, entry = _load(Path(os.path.abspath(folder)) / NAME, broken=True)
    files = {Path(folder) / name: known for name, known in entry["outputs"].items()}
    return entry, {path for path, known in files.items() if not unchanged(path, known, since)}


def checked(path: str | Path, *, deep: bool = False) -> Path:
    """A file that is as its stage wrote it, from inputs that have not changed since; returns its path.

    Raises
    ------
    RecordError
        The file has changed, or one that it follows from has.
    """
    stage, record = _origin(path)
    if record is not None:
        since, entry = _load(record)
        known = entry["outputs"][relative(path, record.parent)]
        if Path(path).is_file() and not unchanged(path, known, since, deep=deep):
            raise RecordError(f"{path}: changed since {stage} wrote it; delete it and run {stage} again")
        for name, known in entry["inputs"].items():
            source = Path(os.path.normpath(record.parent / name))
            if source.is_file() and not unchanged(source, known, since, deep=deep):
                raise StaleError(f"{path}: made before {source} changed; run {stage} again")
            checked(source, deep=deep)
    return Path(path)


def check_folder(folder: str | Path) -> None:
    """Raise `RecordError` or `FileNotFoundError` for the first file of a folder's record that changed or is missing."""
    for fault in _faults(Path(os.path.abspath(folder)) / NAME, deep=False):
        raise fault


def _faults(record: Path, *, deep: bool) -> Iterator[RecordError | FileNotFoundError]:
    try:
        files = _load(record)[1]["outputs"]
    except RecordError as error:
        yield error
        return
    for file in files:
        try:
            with reading(record.parent / file, deep=deep):
                pass
        except (RecordError, FileNotFoundError) as error:
            yield error


def faults(folder: str | Path, *, deep: bool = False) -> list[str]:
    """Every file below a folder that is missing or not as its stage wrote it; one line each.

    Of the files of one record that follow from a changed file, the first: the same stage makes them all again.
    """
    lines = {}
    for record in sorted(Path(os.path.abspath(folder)).rglob(f"*{NAME}")):
        if is_leftover(record):
            continue
        stale = False
        for fault in _faults(record, deep=deep):
            if not (stale and isinstance(fault, StaleError)):
                lines[str(fault)] = None
            stale |= isinstance(fault, StaleError)
    return list(lines)


@contextmanager
def parsing(path: str | Path) -> Iterator[Path]:
    """Turn whatever a parser raises in the block about a file into one `RecordError`."""
    stage, _ = _origin(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; run {stage} first")
    try:
        yield Path(path)
    except RecordError:
        raise
    except _UNREADABLE as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RecordError(f"{path}: damaged ({text}); delete it and run {stage} again") from error


def reading(path: str | Path, *, deep: bool = False) -> AbstractContextManager[Path]:
    """`parsing` of a `checked` file."""
    return parsing(checked(path, deep=deep))


def read_json(path: str | Path) -> dict[str, Any]:
    """A `checked` JSON object."""
    with reading(path):
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        if not isinstance(value, dict):
            raise TypeError("no JSON object")
        return value


def read_of_model(path: str | Path, model: str) -> dict[str, Any]:
    """A JSON object that a stage stored with a model: empty without a file, or of other weights than those of a digest.

    It is not `checked`: a shared model folder has no records.
    """
    if not Path(path).is_file():
        return {}
    with parsing(path):
        stored = dict(json.loads(Path(path).read_text(encoding="utf-8")))
    return stored if stored.get("model") == model else {}


def read_csv(path: str | Path, **options: Any) -> pd.DataFrame:
    """A `checked` table; ``options`` as in `pandas.read_csv`."""
    import pandas as pd  # here: `resdm check` does without

    with reading(path):
        return pd.read_csv(path, **options)


def alone(name: str) -> Callable[[Callable], Callable]:
    """Decorator of a stage, ``stage(config, …)``: it waits until no other process does the same work of a profile.

    ``name`` tells the works of a profile apart, by arguments of the stage: ``train {name}``. See `locked`.
    """

    def decorate(stage: Callable) -> Callable:
        @wraps(stage)
        def run(config: Config | str | Path, *arguments: Any, **options: Any) -> Any:
            given = signature(stage).bind(config := load_config(config), *arguments, **options)
            given.apply_defaults()
            with locked(config.work, name.format(**given.arguments)):
                return stage(*given.args, **given.kwargs)

        return run

    return decorate


def locked(work: Path, name: str) -> AbstractContextManager:
    """A lock in a folder of results, for a ``with`` block: it waits until no other process does the work of that name.

    The lock is the system's, so a killed process leaves none behind.
    """
    if int(os.environ.get("LOCAL_RANK", 0)):  # a further process of one training
        return nullcontext()
    path = work / ".locks" / f"{re.sub('[^A-Za-z0-9@+._-]', '_', name)}.lock"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            return lock.acquire(timeout=0)
        except Timeout:
            print(f"{name}: another process is at work on it in {work}; waiting until it ends", file=sys.stderr)
            return lock.acquire()
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):  # a file system without locks
                raise
            return nullcontext()


def _origin(path: str | Path) -> tuple[str, Path | None]:
    """The stage that writes a file, and the record that lists it."""
    path = Path(os.path.abspath(path))
    names = f".{path.stem.partition('_')[0]}{NAME}", NAME
    records = (folder / name for folder in path.parents for name in names)
    record = next((record for record in records if record.is_file()), None)
    if record is not None and relative(path, record.parent) in (entry := _load(record)[1])["outputs"]:
        return f"`{entry['stage']}`", record
    stage = next((_STAGES[part] for part in reversed(path.parts) if part in _STAGES), None)
    return f"`resdm {stage}`" if stage else "the stage that writes it", None


@cache
def _digest(path: str, *size_and_times: int) -> str:
    return sha256(path)


def _load(record: Path, *, broken: bool = False) -> tuple[int, dict[str, Any]]:
    """When a record was written (ns), and its content; an empty one without a file or, if permitted, a broken one."""
    if not record.is_file():
        return 0, {"inputs": {}, "outputs": {}}
    status = os.stat(record)
    entry = _parsed(record, status.st_size, status.st_mtime_ns, status.st_ino)
    if entry is None and not broken:
        raise RecordError(f"{record}: damaged; delete it and run the stage again that wrote the files beside it")
    return status.st_mtime_ns, entry or {"inputs": {}, "outputs": {}}


@lru_cache(maxsize=256)
def _parsed(record: Path, *size_and_times: int) -> dict[str, Any] | None:
    try:
        entry = json.loads(record.read_text(encoding="utf-8"))
        known = [*entry["inputs"].values(), *entry["outputs"].values(), entry]
        return entry if all(isinstance(part, dict) for part in known) and "stage" in entry else None
    except (ValueError, LookupError, AttributeError, TypeError):
        return None
