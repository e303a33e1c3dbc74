"""Atomic writes, JSON that may be absent, and digests."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class WriteError(OSError):
    """A file that cannot be written: names it, the reason and the remedy."""


_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space in your quota",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EACCES: "change the permissions there",
    errno.EPERM: "change the permissions there",
    errno.EROFS: "give a folder on a disk that can be written",
    errno.ENOTDIR: "a file is where a folder must be; move it away",
    errno.EEXIST: "a file is where a folder must be; move it away",
    errno.EISDIR: "a folder is where the file must be; move it away",
    errno.ELOOP: "its folder is a link to itself; remove the link",
}


@contextmanager
def writing(path: str | Path, *others: Path) -> Iterator[None]:
    """Turn errors of writing a file into `WriteError`: a full disk, no right to write, a file in place of a folder."""
    try:
        yield
    except OSError as error:
        written = {None, *map(str, (path, *Path(path).parents, *others))}  # other files are read by the block
        if error.errno not in _REMEDIES or error.filename not in written:
            raise
        raise WriteError(
            f"{path}: cannot be written ({error.strerror}); {_REMEDIES[error.errno]} and run the same command again: "
            "finished files stay"
        ) from None


def temporary_beside(path: Path) -> Path:
    """A hidden path beside ``path``, which keeps its suffix: writers choose a format by it.

    Its number is not the process's, as threads and computers with a shared folder may write one file at once.
    """
    return path.with_name(f".{secrets.randbits(32)}.{path.name}")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block succeeds; otherwise ``path`` does not change.

    Raises `WriteError`, see `writing`.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    with writing(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # do not hide the block's error
                temporary.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether it is the temporary file of a killed writer, see `atomic`."""
    return re.match(r"\.\d+\.", path.name) is not None


def remove(path: str | Path) -> None:
    """Remove a file if it exists; `WriteError` if that is not allowed."""
    with writing(path):
        Path(path).unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write JSON atomically: two spaces, keys in the order given."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: str | Path, frame: pd.DataFrame, float_format: str | None = None, *, separator: str = ",") -> Path:
    """Write a table as CSV atomically, without the index."""
    return write_text(path, frame.to_csv(index=False, sep=separator, float_format=float_format, lineterminator="\n"))


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as CSV atomically: nine significant digits, missing and NaN values empty."""

    def cell(value: Any) -> str:
        if value is None or value != value:  # NaN
            return ""
        return f"{value:.9g}" if isinstance(value, float) else str(value)

    columns, text = list(dict.fromkeys(key for row in rows for key in row)), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *([cell(row.get(column)) for column in columns] for row in rows)])
    return write_text(path, text.getvalue())


def stored_json(path: str | Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where the file is missing or broken, or holds something else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
