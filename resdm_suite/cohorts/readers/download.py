"""Files from a public S3 bucket over HTTPS: resumed, checked, a few at a time.

A file arrives beside its place as ``<name>.part`` and is moved there once it has the size that the bucket lists and,
if it is gzip, can be read to its end. A stopped download goes on where it was: the part is kept and its rest asked for.
"""

from __future__ import annotations

import errno
import gzip
import http.client
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen
from xml.etree import ElementTree

from tqdm.auto import tqdm

from resdm import __version__

DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each new try of a request that failed; a try that brought new bytes starts the row again."""

TIMEOUT = 60.0
"""Seconds without a byte before a connection is given up."""

_CHUNK = 1 << 18
_SPARE = 64 << 20  # bytes of disk that a download leaves free
_SHOWN = 5
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # of this machine, not of the network


class DownloadError(RuntimeError):
    """A download that cannot be finished: names the address, what was found and expected, and the remedy."""


class Remote(NamedTuple):
    """A file of a bucket.

    Parameters
    ----------
    url : str
    path : Path
        Where it belongs.
    bytes : int
        As the bucket lists it.
    """

    url: str
    path: Path
    bytes: int


class _Unreachable(DownloadError):
    """The server does not answer: nothing else will come either."""


def list_bucket(bucket: str, prefix: str, *, progress: bool = True) -> dict[str, int]:
    """Every key of a bucket that starts with ``prefix``, and its size, by S3's ListObjectsV2.

    Raises
    ------
    DownloadError
        No answer, or one that is no listing.
    """
    keys: dict[str, int] = {}
    token = None
    with tqdm(desc="listing", unit="file", disable=not progress) as bar:
        while True:
            query = {"list-type": "2", "prefix": prefix} | ({"continuation-token": token} if token else {})
            url = f"{bucket}/?{urlencode(query)}"
            try:
                page = ElementTree.fromstring(_retried(lambda url=url: _read(url), url))
                found = [(entry.findtext("{*}Key"), entry.findtext("{*}Size")) for entry in page.findall("{*}Contents")]
                if not page.tag.endswith("ListBucketResult"):
                    raise ValueError(page.tag)
                keys |= {key: int(size) for key, size in found}
            except (ElementTree.ParseError, TypeError, ValueError) as error:
                raise DownloadError(
                    f"{url}: expected S3's list of files, found something else ({error}); is the address right, "
                    "or does a proxy or a login page answer in its place?"
                ) from None
            bar.update(len(found))
            token = page.findtext("{*}NextContinuationToken")
            if page.findtext("{*}IsTruncated") != "true" or not token:
                return keys


def address(bucket: str, key: str) -> str:
    """The URL of a key."""
    return f"{bucket}/{quote(key)}"


def fetch(files: Sequence[Remote], *, jobs: int = 4, progress: bool = True) -> int:
    """Bring files that are not there yet, or not of the right size.

    Parameters
    ----------
    files : sequence of Remote
    jobs : int
        Connections at a time.
    progress : bool
        Show a bar, of bytes.

    Returns
    -------
    int
        How many were brought.

    Raises
    ------
    DownloadError
        Too little disk, or files that could not be brought; those that could be are there, and parts are kept.
    """
    todo = [file for file in files if not _there(file)]
    for file in todo:
        file.path.parent.mkdir(parents=True, exist_ok=True)
    had = sum(min(_size(_part(file)), file.bytes) for file in todo)
    total = sum(file.bytes for file in todo)
    if todo and (free := shutil.disk_usage(todo[0].path.parent).free) < total - had + _SPARE:
        raise DownloadError(
            f"{todo[0].path.parent}: {len(todo)} files of {(total - had) / 1e9:.2f} GB are to come, "
            f"{free / 1e9:.2f} GB are free; make room, or let cohort.folder lie on another disk"
        )
    stop, lock, failed = threading.Event(), threading.Lock(), []
    with tqdm(
        total=total, initial=had, desc="download", unit="B", unit_scale=True, disable=not progress or not todo
    ) as bar:

        def tick(n: int) -> None:
            with lock:
                bar.update(n)

        with ThreadPoolExecutor(max(1, jobs)) as pool:
            futures = [pool.submit(_fetch, file, tick, stop) for file in todo]
            try:
                for future in as_completed(futures):
                    if (error := future.exception()) is None:
                        continue
                    if not isinstance(error, DownloadError) or isinstance(error, _Unreachable):
                        raise error
                    failed.append(str(error))
            finally:  # an interrupt too: threads end at their next chunk
                stop.set()
                pool.shutdown(cancel_futures=True)
    if failed:
        more = [f"… and {len(failed) - _SHOWN} more, {len(failed)} in all"] if len(failed) > _SHOWN else []
        raise DownloadError("\n".join([*sorted(failed)[:_SHOWN], *more]))
    return len(todo)


def _part(file: Remote) -> Path:
    return file.path.with_name(file.path.name + ".part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _there(file: Remote) -> bool:
    return file.path.is_file() and _size(file.path) == file.bytes


def _fetch(file: Remote, tick: Callable[[int], None], stop: threading.Event) -> None:
    """One file, from where its part ends."""
    part = _part(file)

    def attempt() -> None:
        _stream(file, part, tick, stop)
        if stop.is_set():
            return
        fault = _fault(part, file)
        if fault and _size(part) >= file.bytes:  # of no use; a short one is, for its rest
            _drop(part, tick)
        if fault:
            raise _Damaged(fault)
        os.replace(part, file.path)

    _retried(attempt, file.url, stop, lambda: _size(part))


def _drop(part: Path, tick: Callable[[int], None]) -> None:
    tick(-_size(part))
    part.unlink()


class _Damaged(OSError):
    """What came is not the file."""


def _stream(file: Remote, part: Path, tick: Callable[[int], None], stop: threading.Event) -> None:
    """Append to the part what is missing; start again where the server does not do ranges."""
    start = _size(part)
    if start >= file.bytes:
        return
    try:
        answer = _open(file.url, {"Range": f"bytes={start}-"} if start else {})
    except HTTPError as error:
        if error.code == 416:  # the server's file ends before the part does
            _drop(part, tick)
        raise
    with answer:
        if start and not (answer.status == 206 and f"bytes {start}-" in answer.headers.get("Content-Range", "")):
            tick(-start)
            start = 0
        with open(part, "ab" if start else "wb") as stream:
            while not stop.is_set() and (chunk := answer.read(_CHUNK)):
                stream.write(chunk)
                start += len(chunk)
                tick(len(chunk))
                if start > file.bytes:
                    return


def _fault(part: Path, file: Remote) -> str:
    """What is wrong with a part that should be the whole."""
    size = _size(part)
    if size != file.bytes:
        return f"found {size} bytes, expected {file.bytes}"
    if file.path.suffix == ".gz":
        try:
            with gzip.open(part) as stream:
                while stream.read(1 << 22):
                    pass
        except (OSError, EOFError, zlib.error) as error:
            return f"not a whole gzip file ({error})"
    return ""


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    agent = {"User-Agent": f"resdm/{__version__}", "Accept-Encoding": "identity"}
    return urlopen(Request(url, headers=agent | headers), timeout=TIMEOUT)


def _read(url: str) -> bytes:
    with _open(url, {}) as answer:
        return answer.read()


def _retried(
    work: Callable[[], bytes | None], url: str, stop: threading.Event | None = None, size: Callable[[], int] = int
) -> bytes | None:
    """Do it, again after a while where the network or the server failed; ``size``: bytes that are there already."""
    stop, tries, most = stop or threading.Event(), 0, size()
    while True:
        try:
            return work()
        except HTTPError as error:
            if error.code < 500 and error.code not in (408, 416, 429):
                raise DownloadError(
                    f"{url}: the server refuses ({error.code} {error.reason}); is the address right?"
                ) from None
            problem: OSError | http.client.HTTPException = error
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _LOCAL:
                raise DownloadError(f"{url}: cannot be written: {error}; make room, or mend the folder") from None
            problem = error
        if size() > most:
            tries, most = 0, size()
        if tries == len(DELAYS) or stop.is_set():
            kind = DownloadError if isinstance(problem, _Damaged | HTTPError) else _Unreachable
            said = problem.reason if isinstance(problem, URLError) and not isinstance(problem, HTTPError) else problem
            remedy = (
                "run the same command again; what is there is kept"
                if kind is DownloadError
                else "is there a connection to the internet, or a proxy to be named in HTTPS_PROXY? What is there is "
                "kept: run the same command again to go on"
            )
            raise kind(f"{url}: {said}, {tries + 1} times in a row; {remedy}") from None
        stop.wait(DELAYS[tries])
        tries += 1
