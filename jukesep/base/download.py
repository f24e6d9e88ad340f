"""Download MUSDB18-HQ's archive and other large files, and resume an interrupted download.

The data is collected in `.<target>.part`, hidden, which is renamed to the target once its sha256 is
right. Programs of the user's, such as browsers, do not use this name.
pooch downloads smaller files; it cannot resume. This module does not import torch.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError
from .progress import bar
from .unchanged import file_digest

CHUNK = 1 << 16  # bytes in memory at a time
CONNECT_SECONDS = 10.0
BACK_OFF = 1.0  # seconds before the second try; doubled before each further one
HEADWAY = 1 << 20  # bytes: a try that receives at least this many does not count as failed


def download(
    url: str, target: Path, *, sha256: str | None, title: str, timeout: float = 30, tries: int = 3
) -> None:
    """Download `target` from `url` (http or https); resume what an earlier call left unfinished.

    Tries again if there is no connection, no data for `timeout` seconds, a broken transfer or a
    server error, until `tries` in a row have failed. If a resumed file has the wrong sha256, it is
    downloaded once from the beginning. If two processes download the same target, one waits for the
    other. `sha256` None: it is not known, and only the server's own word says that the file is
    whole.

    Raises UserError if the file cannot be downloaded, has the wrong sha256, or does not fit on the
    disk.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone(target, title):
            if target.exists():  # by another process
                return
            resumed = _receive_all(url, part, title, timeout, tries)
            found = sha256 and _sum(part, title)
            if found != sha256 and resumed:
                _say(f"{title}: the resumed file has the wrong sha256; downloading it again")
                part.unlink()
                _receive_all(url, part, title, timeout, tries)
                found = _sum(part, title)
            if found != sha256:
                part.unlink()
                raise UserError(
                    f"{title}: {url}: sha256 is {found}, expected {sha256}. Run again to download "
                    "it again."
                )
            if target.exists():
                raise UserError(
                    f"{target}: was put there during the download. Remove it, or run again to use "
                    "it."
                )
            os.replace(part, target)
    except KeyboardInterrupt:
        if part.exists():
            _say(f"{part}: kept; the next run resumes the download")
        raise
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}.") from error


def reason(error: BaseException) -> str:
    """Return the root cause of an exception of requests, in words for a user."""
    while error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _Again(Exception):
    """A request failed in a way that another try may not."""


def _receive_all(url: str, part: Path, title: str, timeout: float, tries: int) -> bool:
    """Complete the part; return whether it was resumed, here or from an earlier call."""
    failures, furthest, resumed = 0, _size(part), False
    while True:
        resumed |= _size(part) > 0
        try:
            _receive(url, part, title, timeout)
            return resumed
        except _Again as fault:
            if _size(part) >= furthest + HEADWAY:
                failures, furthest = 0, _size(part)
            else:
                failures += 1
            if failures >= tries:
                raise UserError(f"{title}: cannot be downloaded from {url}: {fault}.") from fault
            pause = BACK_OFF * 2 ** max(failures - 1, 0)
            _say(f"{url}: {fault}; trying again in {pause:g} s")
            time.sleep(pause)


def _receive(url: str, part: Path, title: str, timeout: float) -> None:
    """Request the rest of the file, or all of it if the server does not support ranges."""
    import requests

    have = _size(part)
    headers = {"Accept-Encoding": "identity"}  # ranges count bytes of the uncompressed file
    if have:
        headers["Range"] = f"bytes={have}-"
    wait = (min(CONNECT_SECONDS, timeout), timeout)
    try:
        with requests.get(url, headers=headers, stream=True, timeout=wait) as answer:
            status = answer.status_code
            if status == 416 and answer.headers.get("Content-Range") == f"bytes */{have}":
                return  # the part is complete: an earlier call was killed before it renamed it
            if status == 416 or (
                status == 206
                and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            ):
                part.unlink(missing_ok=True)
                raise _Again("the server sent other bytes than those requested")
            if status in (408, 425, 429) or status >= 500:
                raise _Again(f"HTTP {status} {answer.reason or ''}".rstrip())
            if status not in (200, 206):
                raise UserError(
                    f"{title}: cannot be downloaded from {url}: HTTP {status} {answer.reason}."
                )
            have = have if status == 206 else 0
            length = answer.headers.get("Content-Length", "")
            lacking = int(length) if length.isdecimal() else None
            free = shutil.disk_usage(part.parent).free + (_size(part) if not have else 0)
            if lacking is not None and lacking > free:
                raise UserError(
                    f"{title}: {lacking / 1e9:.1f} GB are missing, but the disk of "
                    f"{part.parent} has {free / 1e9:.1f} GB free. Free some space and run again."
                )
            total = None if lacking is None else have + lacking
            line = bar(desc=title, total=total, initial=have, unit="B", unit_scale=True)
            with part.open("ab" if have else "wb") as file, line:
                for data in answer.iter_content(CHUNK):
                    file.write(data)
                    line.update(len(data))
    except (requests.RequestException, ValueError) as error:  # ValueError: an invalid redirect
        raise _Again(reason(error)) from error


@contextmanager
def alone(target: Path, title: str) -> Iterator[None]:
    """Hold the lock of the target, also once more; wait if another process or thread holds it."""
    lock = FileLock(target.with_name(f".{target.name}.lock"), is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"{title}: another process is downloading it; waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sum(path: Path, title: str) -> str:
    _say(f"{title}: checking the sha256")
    return file_digest(path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)
