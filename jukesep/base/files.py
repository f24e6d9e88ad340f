"""Write files and folders atomically: they appear complete or not at all.

While it is written, a file has a hidden name that starts with UNFINISHED, beside its final name. A
process that is killed leaves it behind; `sweep` deletes it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".unfinished-"


@contextmanager
def atomic(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary file beside `path`; rename it to `path` if the block succeeds.

    The temporary name keeps the suffix, for writers that choose the format by it. If the block
    fails, an existing file at `path` stays as it was. `durable` waits until the file is on the
    disk: without it, a loss of power can leave an empty file.
    """
    path = Path(path)
    with temporary(path) as unfinished:
        yield unfinished
        unfinished.chmod(_permissions(0o666))
        if durable:
            sync(unfinished)
        os.replace(unfinished, path)
        if durable:
            sync(path.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` if the block succeeds.

    It replaces an existing folder. If the block fails, an existing folder stays as it was.
    """
    path = Path(path)
    with temporary(path, folder=True) as unfinished:
        yield unfinished
        unfinished.chmod(_permissions(0o777))
        if path.exists():
            remove(path)
        os.replace(unfinished, path)


@contextmanager
def temporary(path: str | Path, folder: bool = False) -> Iterator[Path]:
    """Yield an empty file or folder with a hidden name beside `path`; delete it afterwards.

    Missing parents of `path` are created. If the block fails, they are deleted again if empty.
    """
    path = Path(path)
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if folder:
            unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=path.parent))
        else:
            handle, name = tempfile.mkstemp(path.suffix, UNFINISHED, path.parent)
            os.close(handle)
            unfinished = Path(name)
        try:
            yield unfinished
        finally:
            _delete(unfinished)
    except BaseException:
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: object) -> None:
    """Write `content` to `path` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def remove(folder: Path) -> None:
    """Delete a folder. It is first renamed to a hidden name, so that it disappears at once."""
    with temporary(folder, folder=True) as away:
        shutil.rmtree(folder.rename(away / folder.name))


def sweep(folder: Path) -> None:
    """Delete the unfinished files of killed processes, in a folder and its subfolders.

    No other process may be writing to the folder.
    """
    for path in list(folder.rglob(f"{UNFINISHED}*")):
        _delete(path)


def sync(path: str | Path) -> None:
    """Wait until a file, or the list of files in a folder, is written to the disk."""
    if os.name == "nt" and Path(path).is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _permissions(most: int) -> int:
    """The permissions of a usual new file or folder; those from `tempfile` are private."""
    umask = os.umask(0)
    os.umask(umask)
    return most & ~umask
