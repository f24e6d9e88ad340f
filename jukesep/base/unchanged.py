"""Whether something has changed: its digest, or, without reading it, the marks of its file.

A digest tells for certain. To read gigabytes of songs for it takes minutes; so `Known` keeps what
an earlier run found in files, for as long as their marks are the same: size, time of the last
change (in nanoseconds) and inode. A file that was written to or replaced is read again; one whose
bytes changed under the same marks, on a failing disk or by a program that sets the time back, is
not noticed. To delete the record has everything read again.
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
    """Facts about files by name, kept in a JSON file. Safe to use from several threads.

    What an earlier run knew and this one does not ask for is forgotten by `save`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        # It is there to save time: one that is damaged is as good as none.
        self._before: dict[str, Any] = found if isinstance(found, dict) else {}
        self._now: dict[str, Any] = {}

    def get(self, name: str, files: Iterable[Path], given: object = None) -> Any:
        """The facts that `put` was given for the same name, files and `given`; None if unknown.

        Unknown also if one of the files has changed, or is not there.
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
        """Keep facts that rest on files, and on `given`.

        Where they were found by reading: `before` is what `marks` said of the files (or of those
        that were read) until then, and nothing is kept if it is otherwise now.
        """
        now = marks(files)
        if now is not None and (before is None or before.items() <= now.items()):
            self._now[name] = {"given": _key(given), "files": now, "facts": facts}

    @property
    def files(self) -> set[Path]:
        """All files that this run's facts are about."""
        return {Path(file) for entry in self._now.values() for file in entry["files"]}

    def save(self, all_asked: bool = True) -> None:
        """Write the record; with `all_asked` off, keep what was not asked for as well.

        Of that, what still has its files.
        """
        entries = self._now
        if not all_asked:
            kept = {name: entry for name, entry in self._before.items() if _has_its_files(entry)}
            entries = {**kept, **entries}
        write_text(self.path, json.dumps(entries, indent=0, ensure_ascii=False) + "\n")


def marks(files: Iterable[Path]) -> Marks | None:
    """Size, time of the last change in ns and inode of each file; None if one is not there."""
    found = {}
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            return None
        found[str(file)] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    return found


def digest(content: bytes | Iterable[bytes]) -> str:
    """The sha256 of a content, or of several one after the other, in hex digits."""
    total = hashlib.sha256()
    for part in [content] if isinstance(content, bytes) else content:
        total.update(part)
    return total.hexdigest()


def file_digest(path: str | Path) -> str:
    """The sha256 of a file in hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code(*files: str | Path) -> str:
    """A digest of source files: what one version of the code found, another has to find again."""
    return digest(file.read_bytes() for file in sorted(map(Path, files)))[:16]


def _has_its_files(entry: Any) -> bool:
    files = entry.get("files") if isinstance(entry, dict) else None
    return isinstance(files, dict) and all(Path(file).exists() for file in files)


def _key(given: object) -> str:
    """Of anything that JSON can hold."""
    return json.dumps(given, sort_keys=True)
