"""Functions compiled by numba, kept on disk and shared by all copies of this folder.

By default numba keeps what it compiles beside the source, so that every clone, and every copy that
DVC makes for an experiment, compiles for 15 seconds again. It raises on import if it finds no
writable folder, and a damaged file makes LLVM abort the process. Here compiled code is kept in the
user's cache under a digest of the source, each file with a digest of its content. What is missing
or damaged is compiled again; what cannot be kept is compiled in each process, with a word.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core import caching, event
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numpy.typing import NDArray
from platformdirs import user_cache_path
from tqdm import tqdm

from ...base import files, progress
from ...base.errors import UserError
from ...base.unchanged import digest

Array = NDArray[Any]

# Sums may be reordered and fused, for speed; NaN and infinity stay what they are.
_FAST = {"reassoc", "contract", "nsz"}

# numba compiles a function again in each of its callers, and in theirs. Short functions, and those
# with one caller, become part of the caller instead.
inlined = njit(inline="always")


def compiled(function: Callable[..., Any]) -> Any:
    """The function, of this folder, compiled by numba on its first call or loaded from disk.

    It runs without Python's lock. UserError if numba is told not to compile.
    """
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        raise UserError(
            "NUMBA_DISABLE_JIT is set, but the kernels for CPUs must be compiled. Unset it, or set "
            "JUKESEP_KERNELS=off."
        )
    made: Any = njit(nogil=True, error_model="numpy", fastmath=_FAST)(function)
    made._cache = _Kept(function)
    _functions.add(function)
    return made


class _Kept(caching.NullCache):
    """A cache of numba: what a function was compiled to, in a file for each signature."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was compiled for the signature and this processor, if it is kept whole; or None."""
        target_context.refresh()
        name, key = self._file(sig, target_context.codegen())
        for folder in folders():
            content = _read(folder / name, key)
            if content is not None:
                return CompileResult._rebuild(target_context, *pickle.loads(content))
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled in the first folder that can be written to."""
        if data.library.has_dynamic_globals:  # addresses of this process
            return
        name, key = self._file(sig, data.codegen)
        content = dumps(data._reduce())
        sealed = digest([key, content]).encode() + content
        failed = []
        for folder in folders():
            try:
                with files.temporary(folder / name) as unfinished:
                    unfinished.write_bytes(sealed)
                    unfinished.chmod(0o644)
                    os.replace(unfinished, folder / name)
                return
            except OSError as error:
                failed.append(f"{folder.parent}: {error.strerror or error}")
        progress.note(
            f"compiled code cannot be kept ({failed[0]}). Each process compiles again. Set "
            "NUMBA_CACHE_DIR to a writable folder."
        )

    def _file(self, sig: Any, codegen: Any) -> tuple[str, bytes]:
        """The name of the file, and all that its content depends on besides the source."""
        function = self._function
        python = sys.implementation.cache_tag, getattr(sys, "abiflags", "")
        # The module's name too: what is kept refers to it, and fails in a module that has moved.
        where = function.__module__, function.__qualname__, function.__code__.co_firstlineno
        key = repr((where, sig, codegen.magic_tuple(), python)).encode()
        return f"{function.__name__.strip('_<>')}-{digest(key)[:32]}.nbc", key


def folders() -> list[Path]:
    """Where compiled code is looked for and kept, the best place first.

    NUMBA_CACHE_DIR if it is set, then the user's cache, then the folder of the source.
    """
    chosen: str = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    parents = [Path(chosen)] if chosen else []
    with suppress(RuntimeError):  # a user without a home folder
        parents.append(user_cache_path("jukesep") / "compiled")
    parents.append(Path(__file__).parent / "__pycache__")
    return [parent / f"{digest(_source())[:16]}-numba-{numba.__version__}" for parent in parents]


@cache
def _source() -> bytes:
    """All of this folder, and `network`: the code of one file becomes part of others."""
    folder = Path(__file__).parent
    sources = [folder.parent / "network.py", *sorted(folder.glob("*.py"))]
    return b"".join(file.read_bytes() for file in sources)


def _read(path: Path, key: bytes) -> bytes | None:
    """The content of a file that `save_overload` wrote for `key`; None if it is not whole."""
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            sealed = file.read()
    except OSError:
        return None
    if not _trusted(about):
        progress.note(
            f"compiled code in {path.parent} is not used: other users can write to it. Set "
            "NUMBA_CACHE_DIR to a folder of your own."
        )
        return None
    content = sealed[_DIGITS:]
    return content if sealed[:_DIGITS] == digest([key, content]).encode() else None


def _trusted(about: os.stat_result) -> bool:
    """Whether only those can have written a file who can change this source: loading runs it."""
    if os.name == "nt":
        return True
    owners = {os.geteuid(), 0, Path(__file__).stat().st_uid}
    return about.st_uid in owners and not about.st_mode & 0o022


_DIGITS = len(digest(b""))

_functions: set[Callable[..., Any]] = set()


class _Announcement(event.Listener):
    """Tells the user that functions of this package are being compiled, and counts them.

    The first line appears once in a process; a terminal shows a bar as well. Child processes,
    which prepare batches, and all ranks but the first stay quiet.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._bar: tqdm | None = None

    def on_start(self, started: Any) -> None:
        function = started.data["dispatcher"].py_func
        if not self._depth and function not in _functions:
            return
        self._depth += 1  # numba compiles what a function calls while it compiles the function
        if self._depth == 1 and progress.speaks():
            progress.note("compiling the CPU kernels for this machine (once, about 15 s)")
            name = function.__name__.strip("_")
            self._bar = progress.bar(
                desc=f"compiling {name}", unit=" functions", leave=False, disable=None
            )

    def on_end(self, ended: Any) -> None:
        if not self._depth:
            return
        self._depth -= 1
        if self._bar is not None:
            self._bar.update()
            if not self._depth:
                self._bar.close()
                self._bar = None


event.register("numba:compile", _Announcement())
