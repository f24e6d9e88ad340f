"""Detect changed files, by their digest or, without reading them, by their marks.

A digest is certain, but it takes minutes to read gigabytes of songs. So `Known` keeps what an
earlier run found in files, while their marks stay the same: size, time of the last change (in
nanoseconds) and inode. A file that was written to or replaced is read again. A change that keeps
the marks, on a failing disk or by a program that resets the time, is not detected. Delete the
record to read all files again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .files import write_text

Marks = dict[str, list[int]]


class Known:
    """Facts about files by name, stored in a JSON file. Safe to use from several threads.

    `save` drops facts of earlier runs that this run did not ask for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        # The record only saves time, so a damaged one is ignored.
        self._before: dict[str, Any] = found if isinstance(found, dict) else {}
        self._now: dict[str, Any] = {}

    def get(self, name: str, files: Iterable[Path], given: object = None) -> Any:
        """Return the facts that `put` stored for the same name, files and `given`.

        None if there are none, or if one of the files has changed or is missing.
        """
        entry = self._before.get(name)
        if not isinstance(entry, dict) or entry.get("given") != _key(given):
            return None
        found = marks(files)
        if found is None or entry.get("files") != found:
            return None
        self._now[name] = entry
        return entry.get("facts")

    def put(
        self,
        name: str,
        files: Iterable[Path],
        facts: object,
        given: object = None,
        before: Marks | None = None,
    ) -> None:
        """Store facts that depend on `files` and on `given`.

        `before` is the result of `marks` from before the files (or some of them) were read: nothing
        is stored if they have changed since then.
        """
        now = marks(files)
        if now is not None and (before is None or before.items() <= now.items()):
            self._now[name] = {"given": _key(given), "files": now, "facts": facts}

    @property
    def files(self) -> set[Path]:
        """The files that the facts of this run depend on."""
        return {Path(file) for entry in self._now.values() for file in entry["files"]}

    def save(self, all_asked: bool = True) -> None:
        """Write the record. With `all_asked=False`, also keep facts that were not asked for.

        Facts whose files no longer exist are dropped.
        """
        entries = self._now
        if not all_asked:
            kept = {name: entry for name, entry in self._before.items() if _has_its_files(entry)}
            entries = {**kept, **entries}
        write_text(self.path, json.dumps(entries, indent=0, ensure_ascii=False) + "\n")


def marks(files: Iterable[Path]) -> Marks | None:
    """Return size, time of the last change in ns and inode of each file; None if one is missing."""
    found = {}
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            return None
        found[str(file)] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    return found


def digest(content: bytes | Iterable[bytes]) -> str:
    """Return the sha256, in hex digits, of bytes or of several pieces one after the other."""
    total = hashlib.sha256()
    for part in [content] if isinstance(content, bytes) else content:
        total.update(part)
    return total.hexdigest()


def file_digest(path: str | Path) -> str:
    """Return the sha256 of a file in hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code(*files: str | Path) -> str:
    """Return a digest of source files, to recognise facts that another version of them found."""
    return digest(file.read_bytes() for file in sorted(map(Path, files)))[:16]


def _has_its_files(entry: Any) -> bool:
    files = entry.get("files") if isinstance(entry, dict) else None
    return isinstance(files, dict) and all(Path(file).exists() for file in files)


def _key(given: object) -> str:
    """Return `given`, which JSON can store, as text."""
    return json.dumps(given, sort_keys=True)
