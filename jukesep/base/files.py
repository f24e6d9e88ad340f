"""Write files and folders atomically: they appear complete or not at all.

While it is written, a file is in a hidden folder beside its final place:

    song/.unfinished-k3x9/
      drums.wav                         what is written
      .unfinished-lock                  held by the process that writes
      .unfinished-earlier/drums.wav     what it replaces, for the moment of the renames

A process that is killed leaves the folder behind, but not the lock. Who writes to the same place
next deletes such folders (`sweep`), and puts back an earlier file or folder that lost its place.
Folders whose lock is held stay.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

UNFINISHED = ".unfinished-"
LOCK, EARLIER = f"{UNFINISHED}lock", f"{UNFINISHED}earlier"
FULL = (errno.ENOSPC, errno.EDQUOT)  # what the system says of a full disk
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class PartlyWritten(OSError):
    """Some renames of a set of files could not be undone. The message names the files."""


@contextmanager
def atomic(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary file with the name of `path`; it becomes `path` if the block succeeds.

    If the block fails, an existing file at `path` stays as it was. `durable` waits until the file
    is on the disk: without it, a loss of power can leave an empty file.
    """
    path = Path(path)
    with temporary(path) as unfinished:
        yield unfinished
        if durable:
            sync(unfinished)
        appear({unfinished: path})
        if durable:
            sync(path.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder with the name of `path`; it becomes `path` if the block succeeds.

    It replaces an existing folder. If the block fails, an existing folder stays as it was.
    """
    with temporary(path, folder=True) as unfinished:
        yield unfinished
        appear({unfinished: Path(path)})


def appear(complete: Mapping[Path, Path]) -> None:
    """Rename what `temporary` yielded, {temporary: path}: all of them appear, or none.

    They replace what is there. If a rename fails, the renames before it are undone, and the error
    is raised. PartlyWritten if undoing fails, too.
    """
    begun: list[tuple[Path, Path]] = []
    try:
        for new, path in complete.items():
            begun.append((new, path))
            # One file replaces another in one step; more files, or a folder, take several.
            if (len(complete) > 1 or new.is_dir()) and os.path.lexists(path):
                _set_aside(path, new)
            os.replace(new, path)
    except BaseException as error:
        wrong = []
        for new, path in reversed(begun):
            hidden = new.parent
            try:
                if not os.path.lexists(new):
                    os.replace(path, new)
                _put_back(hidden)
            except OSError:
                lost = not os.path.lexists(path)  # a later sweep tries again to put it back
                wrong.append(f"{path} is in {hidden / EARLIER}" if lost else f"{path} is new")
        if wrong:
            number, why = errno.EIO, str(error) or type(error).__name__
            if isinstance(error, OSError):
                number, why = error.errno or number, error.strerror or why
            raise PartlyWritten(number, f"{why}; not undone: {', '.join(wrong)}") from error
        raise


@contextmanager
def temporary(path: str | Path, folder: bool = False) -> Iterator[Path]:
    """Yield an empty file or folder named as `path`, in a hidden folder beside it.

    It is deleted afterwards. Missing parents of `path` are created; if the block fails, they are
    deleted again if empty. What killed processes left beside `path` is deleted first.
    """
    path = Path(path)
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        hidden, lock = _hidden(path.parent)
        try:
            unfinished = hidden / path.name
            # With the permissions of any new file and folder.
            unfinished.mkdir() if folder else unfinished.touch()
            yield unfinished
        finally:
            _discard(hidden, lock)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
            error.filename = os.fspath(path)  # Python names no file where a write fails
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder, to change it; wait while another process holds it.

    Where the place beside it cannot be written, such as that of a mounted folder, there is no lock.
    """
    beside = path.with_name(f".{path.name}.lock")
    lock = FileLock(beside, thread_local=False)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in (*NO_LOCKS, errno.EACCES, errno.EROFS):
            raise
    try:
        yield
    finally:
        with suppress(OSError):
            beside.unlink()  # who waits for it notices, and creates another
        lock.release()


def final(path: str | Path) -> Path:
    """Return where a temporary file or folder belongs, for messages; other paths as they are."""
    return Path(*(part for part in Path(path).parts if not part.startswith(UNFINISHED)))


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: object) -> None:
    """Write `content` to `path` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def remove(folder: Path) -> None:
    """Delete a folder. It is first renamed into a hidden one, so that it disappears at once."""
    with temporary(folder, folder=True) as away:
        shutil.rmtree(folder.rename(away / folder.name))


def sweep(folder: Path, below: bool = False) -> None:
    """Delete what killed processes left unfinished in a folder; `below`: in its subfolders too.

    Earlier files and folders that had been set aside are put back. What another process is
    writing stays.
    """
    for hidden in list((folder.rglob if below else folder.glob)(f"{UNFINISHED}*")):
        inside = hidden.parent.name.startswith(UNFINISHED)
        if inside or hidden.is_symlink() or not hidden.is_dir():
            continue
        lock = FileLock(hidden / LOCK, thread_local=False)
        with suppress(OSError, Timeout):  # Timeout: it is being written
            lock.acquire(timeout=0)
            _discard(hidden, lock)


def sync(path: str | Path) -> None:
    """Wait until a file, or the list of files in a folder, is written to the disk."""
    if os.name == "nt" and Path(path).is_dir():
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hidden(parent: Path) -> tuple[Path, FileLock]:
    """Create a hidden folder, and hold its lock where the file system has locks."""
    while True:
        hidden = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
        lock = FileLock(hidden / LOCK, thread_local=False)
        try:
            lock.acquire(timeout=0)
            (hidden / LOCK).stat()
        except (Timeout, FileNotFoundError, FileExistsError):
            lock.release()
            continue  # it was swept before it was locked
        except OSError as error:
            if error.errno not in NO_LOCKS:
                shutil.rmtree(hidden, ignore_errors=True)
                raise
        return hidden, lock


def _discard(hidden: Path, lock: FileLock) -> None:
    """Delete a hidden folder whose lock is held, unless it holds what cannot be put back."""
    try:
        _put_back(hidden)
    except OSError:
        lock.release()
        return
    with suppress(OSError):
        for path in hidden.iterdir():
            if path.name != LOCK:
                _delete(path)
    if os.name == "nt":  # Windows deletes no open file
        lock.release()
    # Else the lock is still held: nobody takes it, to write to a folder that is about to go.
    with suppress(OSError):
        (hidden / LOCK).unlink(missing_ok=True)
        hidden.rmdir()
    lock.release()


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _set_aside(path: Path, new: Path) -> None:
    """Keep what `new` is about to replace, in the hidden folder of `new`."""
    if path.is_dir() != new.is_dir():
        number = errno.EISDIR if path.is_dir() else errno.ENOTDIR
        raise OSError(number, os.strerror(number), str(path))
    earlier = new.parent / EARLIER / path.name
    earlier.parent.mkdir()
    if not path.is_dir():
        with suppress(OSError, NotImplementedError):  # not every file system has hard links
            os.link(path, earlier, follow_symlinks=False)
            return
    path.rename(earlier)


def _put_back(hidden: Path) -> None:
    """Put back earlier files and folders whose place is empty."""
    for earlier in (hidden / EARLIER).glob("*"):
        path = hidden.parent / earlier.name
        if not os.path.lexists(path):
            earlier.rename(path)


def emptied(folder: Path) -> Path:
    """Delete a stage's own folder of outputs and create it anew, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
