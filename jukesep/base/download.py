"""A download of gigabytes that resumes where it broke off: MUSDB18-HQ's archive.

What has arrived lies in `<target>.part` until its sha256 is right; then it takes the target's name.
Smaller files are fetched by pooch, which starts from the beginning. Does not import torch.
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
BACK_OFF = 1.0  # seconds before the second try; twice as long before each one after it
HEADWAY = 1 << 20  # bytes: a try that brings the part this much further is not a failed one


def download(
    url: str, target: Path, *, sha256: str, title: str, timeout: float = 30, tries: int = 3
) -> None:
    """Fetch `target` from `url` (http or https), or resume what an earlier call left of it.

    The address is tried again, until `tries` in a row have failed, after no connection, `timeout`
    seconds of silence, a transfer that broke off or a server in trouble. If the parts of several
    answers do not have the sum, the whole is fetched once. Of two processes that fetch the same
    target, one waits for the other.

    Raises UserError if the file cannot be fetched, has another sum, or does not fit on the disk.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target, title):
            if target.exists():  # the other process has fetched it
                return
            resumed = _receive_all(url, part, title, timeout, tries)
            found = _sum(part, title)
            if found != sha256 and resumed:
                _say(f"{title}: the parts do not make the file (sha256); fetching it whole")
                part.unlink()
                _receive_all(url, part, title, timeout, tries)
                found = _sum(part, title)
            if found != sha256:
                part.unlink()
                raise UserError(f"{title}: {url}: sha256 is {found}, but should be {sha256}.")
            os.replace(part, target)
    except KeyboardInterrupt:
        if part.exists():
            _say(f"{part}: kept; the next run resumes it")
        raise
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}.") from error


def reason(error: BaseException) -> str:
    """An exception of requests in a user's words: what lies at its root."""
    while error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _Again(Exception):
    """What went wrong with an answer; the next one may be right."""


def _receive_all(url: str, part: Path, title: str, timeout: float, tries: int) -> bool:
    """Bring the part to its end; whether it comes from more than one answer."""
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
                raise UserError(f"{title}: cannot be fetched from {url}: {fault}.") from fault
            pause = BACK_OFF * 2 ** max(failures - 1, 0)
            _say(f"{url}: {fault}; trying again in {pause:g} s")
            time.sleep(pause)


def _receive(url: str, part: Path, title: str, timeout: float) -> None:
    """One request: what the part lacks, or the whole if the server has no ranges."""
    import requests

    have = _size(part)
    headers = {"Accept-Encoding": "identity"}  # ranges are those of the file itself
    if have:
        headers["Range"] = f"bytes={have}-"
    wait = (min(CONNECT_SECONDS, timeout), timeout)
    try:
        with requests.get(url, headers=headers, stream=True, timeout=wait) as answer:
            status = answer.status_code
            if status == 416 and answer.headers.get("Content-Range") == f"bytes */{have}":
                return  # the part is whole: its call was killed at the end
            if status == 416 or (
                status == 206
                and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            ):
                part.unlink(missing_ok=True)
                raise _Again("has no more bytes than the part, or sends others")
            if status in (408, 425, 429) or status >= 500:
                raise _Again(f"HTTP {status} {answer.reason or ''}".rstrip())
            if status not in (200, 206):
                raise UserError(
                    f"{title}: cannot be fetched from {url}: HTTP {status} {answer.reason}."
                )
            have = have if status == 206 else 0
            length = answer.headers.get("Content-Length", "")
            lacking = int(length) if length.isdecimal() else None
            free = shutil.disk_usage(part.parent).free + (_size(part) if not have else 0)
            if lacking is not None and lacking > free:
                raise UserError(
                    f"{title}: {lacking / 1e9:.1f} GB are still to come, but the disk of "
                    f"{part.parent} has {free / 1e9:.1f} GB free. Make room and run again."
                )
            total = None if lacking is None else have + lacking
            line = bar(desc=title, total=total, initial=have, unit="B", unit_scale=True)
            with part.open("ab" if have else "wb") as file, line:
                for data in answer.iter_content(CHUNK):
                    file.write(data)
                    line.update(len(data))
    except (requests.RequestException, ValueError) as error:  # ValueError: a broken redirection
        raise _Again(reason(error)) from error


@contextmanager
def _alone(target: Path, title: str) -> Iterator[None]:
    """Keep other processes off the target."""
    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"{title}: another process is fetching it; waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sum(path: Path, title: str) -> str:
    _say(f"{title}: checking its sha256")
    return file_digest(path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)
