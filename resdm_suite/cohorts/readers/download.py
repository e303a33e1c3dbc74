"""Files from a public S3 bucket over HTTPS: resumed, checked, a few at a time.

A file is downloaded to ``<name>.part``. It is renamed once it has the listed size and, if it is gzip, can be read to
its end. The part of a stopped download stays, and only the missing bytes are requested again.
"""

import errno
import gzip
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

import requests
from tenacity import Retrying, retry_if_exception, sleep_using_event
from tqdm.auto import tqdm
from urllib3.exceptions import HTTPError as TransferError

from resdm import __version__

DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each new attempt of a failed request; after an attempt that brought new bytes, from the first on."""

TIMEOUT = 60.0
"""Seconds without a byte before a connection is given up."""

_T = TypeVar("_T")

_CHUNK = 1 << 15
_SPARE = 64 << 20  # bytes of disk that a download leaves free
_SHOWN = 5
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # faults of the disk, not of the network
_TEMPORARY = {408, 416, 429}  # and 500 and above


class DownloadError(RuntimeError):
    """A download that failed: the message names address, fault and remedy."""


class _UnreachableError(DownloadError):
    """The server does not answer: other files would fail too."""


class _DamagedError(OSError):
    """The downloaded bytes are not the file."""


class Remote(NamedTuple):
    """A file of a bucket: its address, its place on disk, and its size as the bucket lists it."""

    url: str
    path: Path
    bytes: int

    @property
    def part(self) -> Path:
        """The file while it is downloaded."""
        return self.path.with_name(self.path.name + ".part")


def list_bucket(bucket: str, prefix: str, *, progress: bool = True) -> dict[str, int]:
    """List every key of a bucket that starts with ``prefix``, and its size, by S3's ListObjectsV2."""
    keys: dict[str, int] = {}
    query = {"list-type": "2", "prefix": prefix}
    with tqdm(desc="listing", unit="file", disable=not progress) as bar:
        while True:
            url = f"{bucket}/?{urlencode(query)}"
            try:
                page = ElementTree.fromstring(_retried(lambda url=url: _get(url).content, url))
                entries = [(item.findtext("{*}Key"), item.findtext("{*}Size")) for item in page.findall("{*}Contents")]
                if not page.tag.endswith("ListBucketResult"):
                    raise ValueError(page.tag)
                keys |= {key: int(size) for key, size in entries}
            except (ElementTree.ParseError, TypeError, ValueError) as error:
                raise DownloadError(
                    f"{url}: expected S3's list of files, found something else ({error}); is the address right, "
                    "or does a proxy or a login page answer in its place?"
                ) from None
            bar.update(len(entries))
            token = page.findtext("{*}NextContinuationToken")
            if page.findtext("{*}IsTruncated") != "true" or not token:
                return keys
            query["continuation-token"] = token


def address(bucket: str, key: str) -> str:
    """The URL of a key."""
    return f"{bucket}/{quote(key)}"


def fetch(files: Sequence[Remote], *, jobs: int = 4, progress: bool = True) -> int:
    """Download the files that are absent or of the wrong size, ``jobs`` at a time.

    Returns how many were downloaded. Too little disk space and failed files raise `DownloadError`; then the others are
    complete, and parts stay.
    """
    todo = [file for file in files if not (file.path.is_file() and _size(file.path) == file.bytes)]
    for file in todo:
        file.path.parent.mkdir(parents=True, exist_ok=True)
    present = sum(min(_size(file.part), file.bytes) for file in todo)
    total = sum(file.bytes for file in todo)
    if todo and (free := shutil.disk_usage(todo[0].path.parent).free) < total - present + _SPARE:
        raise DownloadError(
            f"{todo[0].path.parent}: {len(todo)} files of {(total - present) / 1e9:.2f} GB are to be downloaded, "
            f"{free / 1e9:.2f} GB are free; free disk space, or move cohort.folder to another disk"
        )
    stop, failed = threading.Event(), []
    options = {"desc": "download", "unit": "B", "unit_scale": True, "disable": not progress or not todo}
    with tqdm(total=total, initial=present, **options) as bar, ThreadPoolExecutor(max(1, jobs)) as pool:
        lock = threading.Lock()

        def tick(n: int) -> None:
            with lock:
                bar.update(n)

        futures = [pool.submit(_fetch, file, tick, stop) for file in todo]
        try:
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, DownloadError) and not isinstance(error, _UnreachableError):
                    failed.append(str(error))
                elif error is not None:
                    raise error
        finally:  # an interrupt too: threads end at their next chunk
            stop.set()
            pool.shutdown(cancel_futures=True)
    if failed:
        more = [f"… and {len(failed) - _SHOWN} more, {len(failed)} in all"] if len(failed) > _SHOWN else []
        raise DownloadError("\n".join([*sorted(failed)[:_SHOWN], *more]))
    return len(todo)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetch(file: Remote, tick: Callable[[int], None], stop: threading.Event) -> None:
    """Download one file, from the end of its part on."""

    def attempt() -> None:
        _stream(file, tick, stop)
        if stop.is_set():
            return
        if fault := _fault(file):
            if _size(file.part) >= file.bytes:  # a short part stays: only its rest is requested
                _drop(file.part, tick)
            raise _DamagedError(fault)
        os.replace(file.part, file.path)

    _retried(attempt, file.url, stop, lambda: _size(file.part))


def _drop(part: Path, tick: Callable[[int], None]) -> None:
    tick(-_size(part))
    part.unlink()


def _stream(file: Remote, tick: Callable[[int], None], stop: threading.Event) -> None:
    """Append the missing bytes to the part; start again where the server ignores ranges."""
    start = _size(file.part)
    if start and start >= file.bytes:  # of an empty file, the part is still to be made
        return
    try:
        answer = _get(file.url, {"Range": f"bytes={start}-"} if start else {}, stream=True)
    except requests.HTTPError as error:
        if error.response.status_code == 416:  # the server's file ends before the part does
            _drop(file.part, tick)
        raise
    with answer:
        if start and not (answer.status_code == 206 and f"bytes {start}-" in answer.headers.get("Content-Range", "")):
            tick(-start)
            start = 0
        with open(file.part, "ab" if start else "wb") as output:
            for chunk in answer.raw.stream(_CHUNK, decode_content=False):
                output.write(chunk)
                start += len(chunk)
                tick(len(chunk))
                if start > file.bytes or stop.is_set():
                    return


def _fault(file: Remote) -> str:
    """Describe the fault of a part that should be complete."""
    size = _size(file.part)
    if size != file.bytes:
        return f"found {size} bytes, expected {file.bytes}"
    if file.path.suffix == ".gz":
        try:
            with gzip.open(file.part) as stream:
                while stream.read(1 << 22):
                    pass
        except (OSError, EOFError, zlib.error) as error:
            return f"not a whole gzip file ({error})"
    return ""


def _get(url: str, headers: dict[str, str] | None = None, *, stream: bool = False) -> requests.Response:
    agent = {"User-Agent": f"resdm/{__version__}", "Accept-Encoding": "identity"}
    answer = requests.get(url, headers=agent | (headers or {}), timeout=TIMEOUT, stream=stream)
    answer.raise_for_status()
    return answer


def _is_temporary(error: BaseException) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response.status_code >= 500 or error.response.status_code in _TEMPORARY
    return isinstance(error, TransferError) or (isinstance(error, OSError) and error.errno not in _LOCAL)


def _retried(
    work: Callable[[], _T], url: str, stop: threading.Event | None = None, size: Callable[[], int] = int
) -> _T:
    """Repeat a request while network or server fail, and give up after `DELAYS` without a new byte (``size``)."""
    stop, failures, most = stop or threading.Event(), 0, size()

    def count(_: object) -> None:
        nonlocal failures, most
        failures = 1 if size() > most else failures + 1
        most = max(most, size())

    retrying = Retrying(
        retry=retry_if_exception(_is_temporary),
        after=count,
        wait=lambda _: (*DELAYS, 0.0)[min(failures - 1, len(DELAYS))],
        stop=lambda _: failures > len(DELAYS) or stop.is_set(),
        sleep=sleep_using_event(stop),
        reraise=True,
    )
    try:
        return retrying(work)
    except (OSError, TransferError) as error:
        refused = isinstance(error, requests.HTTPError)
        if refused:
            fault = f"{error.response.status_code} {error.response.reason}"
        else:
            fault = getattr(error.args[0] if error.args else None, "reason", error)  # of requests' ConnectionError
        if refused and not _is_temporary(error):
            raise DownloadError(f"{url}: the server refuses ({fault}); is the address right?") from None
        if not _is_temporary(error):
            raise DownloadError(f"{url}: cannot be written: {error}; free disk space, or correct the folder") from None
        if refused or isinstance(error, _DamagedError):
            raise DownloadError(
                f"{url}: {fault}, {failures} times in a row; run the same command again; complete files are kept"
            ) from None
        raise _UnreachableError(
            f"{url}: {fault}, {failures} times in a row; is there a connection to the internet, or a proxy to be named "
            "in HTTPS_PROXY? Complete files are kept: run the same command again to continue"
        ) from None
