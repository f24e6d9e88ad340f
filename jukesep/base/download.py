"""Files from the network: gone on with where they broke off, checked, there whole or not at all.

What has arrived lies in `<target>.part` until its sha256 is right; then it takes the target's name.
Memory stays flat, and the sum is taken while the bytes arrive. This module does not import torch.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import requests
from filelock import FileLock, Timeout
from tqdm import tqdm

from .errors import UserError
from .progress import bar

CHUNK = 1 << 16  # bytes in memory at a time
REDIRECTS = 5
CONNECT_SECONDS = 10.0  # an address that does not even answer is given up sooner
BACK_OFF = 1.0  # seconds before the second try; twice as long before each one after it
HEADWAY = 1 << 20  # bytes: a try that brings the part this much further is not a failed one


def download(
    urls: Sequence[str],
    target: Path,
    *,
    sha256: str | None,
    title: str,
    timeout: float = 30,
    tries: int = 3,
    limit: int | None = None,
    setting: str | None = None,
    otherwise: str = "",
) -> Path:
    """Fetch `target` from the first of `urls` (http or https) that has it, and return its path.

    A target that has the sum already stays as it is, without a look at the network. An address is
    tried again, until `tries` in a row have failed, where that can help: no connection, `timeout`
    seconds of silence, a transfer that broke off, a server in trouble. A part that an earlier call
    left is taken up if `sha256` is given, which alone can prove it; if the whole then has another
    sum, it is fetched whole, once. `limit` bounds the size in bytes. Of two processes that fetch
    the same target, one waits for the other.

    Raises UserError if no address brings the file. It names what each one answered; after another
    sum both sums, and the parameter (`setting`) that accepts the one found; and `otherwise`, the
    way without the network.
    """
    for url in urls:
        if not url.startswith(("https://", "http://")):
            raise UserError(f"{url}: not an address of http or https.")
    sha256 = sha256 and sha256.lower()
    try:
        if _is_right(target, sha256, title):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target, title) as waited:
            if waited and _is_right(target, sha256, title):
                return target
            with _opened(target, title, keep=sha256 is not None) as part:
                # The part can be whole: its call was killed at the end, or its sum was refused then
                # and is accepted now.
                if part.sha256 != sha256:
                    transfer = _Transfer(part, sha256, title, timeout, tries, limit)
                    if faults := transfer.run(urls):
                        if setting and transfer.refused:
                            faults.append(
                                f"To accept the file all the same, if you trust where it comes "
                                f"from: {setting}={transfer.refused}"
                            )
                        raise UserError("\n".join([*faults, otherwise]).rstrip())
                part.finish(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}.") from error
    return target


def file_sha256(path: Path, title: str) -> str:
    """The sha256 of a file in hex digits, with a bar where that takes a while."""
    with path.open("rb") as file:
        return _hashed(file, title).hexdigest()


class _Fault(Exception):
    """What went wrong with an address, and whether the same again may go better."""

    def __init__(self, message: str, again: bool) -> None:
        super().__init__(message)
        self.again = again


class _Part:
    """What has arrived, and its sum."""

    def __init__(self, file: IO[bytes], title: str) -> None:
        self._file = file
        self._hash = _hashed(file, title)
        self.size = file.tell()
        self.spliced = False  # whether it comes from more than one answer

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def append(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash, self.size, self.spliced = hashlib.sha256(), 0, False

    def free_space(self) -> int:
        return shutil.disk_usage(Path(self._file.name).parent).free

    def finish(self, target: Path) -> None:
        self._file.close()
        os.replace(self._file.name, target)


@dataclass
class _Transfer:
    """The way of a file from its addresses into a part."""

    part: _Part
    sha256: str | None
    title: str
    timeout: float
    tries: int
    limit: int | None
    refused: str = ""  # the sum of a whole file that was not the right one
    session: requests.Session = field(default_factory=requests.Session)

    def run(self, urls: Sequence[str]) -> list[str]:
        """Bring the part to its end from one address or the next; the faults, if none could."""
        self.session.max_redirects = REDIRECTS
        faults = [f"{self.title}: cannot be fetched."]
        with self.session:
            for url in urls:
                try:
                    self._bring(url)
                    return []
                except _Fault as fault:
                    faults.append(f"  {url}: {fault}")
        return faults

    def _bring(self, url: str) -> None:
        """The whole file from this address, in as many tries as make sense."""
        failures, furthest, renewed = 0, self.part.size, False
        while True:
            before = self.part.size
            try:
                self._receive(url)
            except _Fault as fault:
                if not fault.again:
                    raise
                if before and not self.part.size:
                    continue  # The part did not fit: what failed was not the address.
                if self.part.size >= furthest + HEADWAY:
                    failures, furthest = 0, self.part.size
                else:
                    failures += 1
                if failures >= self.tries:
                    raise
                pause = BACK_OFF * 2 ** max(failures - 1, 0)
                _say(f"{url}: {fault}; trying again in {pause:g} s")
                time.sleep(pause)
                continue
            if self.sha256 in (None, self.part.sha256):
                return
            if renewed or not self.part.spliced:
                self.refused = self.part.sha256
                raise _Fault(f"sha256 is {self.refused}, but should be {self.sha256}", again=False)
            _say(f"{self.title}: the pieces do not make the file (sha256); fetching it whole")
            self.part.restart()
            failures, furthest, renewed = 0, 0, True

    def _receive(self, url: str) -> None:
        """One request: what the part lacks, or the whole if the server has no ranges."""
        headers = {"Accept-Encoding": "identity"}  # Sizes and ranges are those of the file itself.
        if self.part.size:
            headers["Range"] = f"bytes={self.part.size}-"
        wait = (min(CONNECT_SECONDS, self.timeout), self.timeout)
        try:
            with self.session.get(url, headers=headers, stream=True, timeout=wait) as answer:
                total = self._accept(answer)
                with bar(
                    desc=self.title,
                    total=total,
                    initial=self.part.size,
                    unit="B",
                    unit_scale=True,
                ) as line:
                    for data in answer.iter_content(CHUNK):
                        self._bound(self.part.size + len(data))
                        self.part.append(data)
                        line.update(len(data))
        except (requests.RequestException, ValueError) as error:  # ValueError: a broken redirection
            raise self._fault(error) from error
        if total is not None and self.part.size != total:
            raise _Fault(f"ended after {self.part.size} of {total} bytes", again=True)

    def _accept(self, answer: requests.Response) -> int | None:
        """The size of the whole file, if the answer tells, with the part made ready for it."""
        status = answer.status_code
        encoding = answer.headers.get("Content-Encoding", "identity")
        if status in (200, 206) and encoding != "identity":
            raise _Fault(f"sends the file in another encoding, {encoding}", again=False)
        if status == 206 and self.part.size:
            text = answer.headers.get("Content-Range", "")
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", text)
            if found is None or int(found[1]) != self.part.size:
                self.part.restart()
                raise _Fault(f"answers with another range: {text or 'none'}", again=True)
            self.part.spliced = True
            total = None if found[2] == "*" else int(found[2])
        elif status == 200:
            self.part.restart()
            length = answer.headers.get("Content-Length", "")
            total = int(length) if length.isdecimal() else None
        elif status == 416 and self.part.size:
            self.part.restart()
            raise _Fault("has no more bytes than the part", again=True)
        else:
            again = status in (408, 425, 429) or status >= 500
            raise _Fault(f"HTTP {status} {answer.reason or ''}".rstrip(), again)
        if total is not None:
            self._bound(total)
            lacking, free = total - self.part.size, self.part.free_space()
            if lacking > free:
                raise UserError(
                    f"{self.title}: {tqdm.format_sizeof(lacking, 'B')} are still to come, but its "
                    f"disk has {tqdm.format_sizeof(free, 'B')} free. Make room and run again."
                )
        return total

    def _bound(self, size: int) -> None:
        if self.limit is not None and size > self.limit:
            self.part.restart()
            raise _Fault(f"larger than the {self.limit} bytes it can be at most", again=False)

    def _fault(self, error: Exception) -> _Fault:
        """An exception of requests in a user's words: mostly what lies at its root."""
        if isinstance(error, requests.TooManyRedirects):
            return _Fault(f"more than {REDIRECTS} redirections", again=False)
        if isinstance(error, requests.ConnectTimeout):
            return _Fault("no connection in time", again=True)
        root: BaseException = error
        while root.__context__ is not None:
            root = root.__context__
        if isinstance(root, TimeoutError):
            return _Fault(f"silent for {self.timeout:g} s", again=True)
        if isinstance(error, requests.exceptions.ChunkedEncodingError):
            return _Fault(f"broke off after {self.part.size} bytes", again=True)
        if isinstance(error, requests.ConnectionError):
            return _Fault(getattr(root, "strerror", None) or str(root), again=True)
        return _Fault(str(error), again=False)


@contextmanager
def _opened(target: Path, title: str, keep: bool) -> Iterator[_Part]:
    """The part of a target; kept if the block fails, if another call can go on with it."""
    path = target.with_name(f"{target.name}.part")
    part = None
    try:
        with path.open("a+b") as file:
            part = _Part(file, title)
            if not keep:
                part.restart()
            yield part
    except KeyboardInterrupt:
        if keep and part is not None and part.size:
            _say(f"{path}: kept; the next try goes on from there")
        raise
    finally:
        if path.is_file() and not (keep and path.stat().st_size):
            path.unlink()


@contextmanager
def _alone(target: Path, title: str) -> Iterator[bool]:
    """Keep other processes off the target; whether it took a wait for one of them."""
    lock = FileLock(f"{target}.lock")
    waited = False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waited = True
        _say(f"{title}: another process is fetching it; waiting")
        lock.acquire()
    try:
        yield waited
    finally:
        lock.release()


def _is_right(target: Path, sha256: str | None, title: str) -> bool:
    if sha256 is None or not target.is_file():
        return False
    found = file_sha256(target, title)
    if found != sha256:
        _say(f"{target}: its sha256 is {found}, but should be {sha256}; fetching it anew")
    return found == sha256


def _hashed(file: IO[bytes], title: str) -> hashlib._Hash:
    """The sha256 of all of an open file, which is left at its end."""
    total, digest = os.fstat(file.fileno()).st_size, hashlib.sha256()
    file.seek(0)
    form = {"unit": "B", "unit_scale": True, "delay": 1.0}
    with bar(desc=f"{title}: sha256", total=total, **form) as line:
        while data := file.read(CHUNK):
            digest.update(data)
            line.update(len(data))
    return digest


def _say(text: str) -> None:
    print(text, file=sys.stderr)
