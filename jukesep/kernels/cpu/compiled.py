"""Functions compiled by numba, kept on disk and shared by all copies of this folder.

By default numba keeps what it compiles beside the source, so that every clone, and every copy that
DVC makes for an experiment, compiles for half a minute again. Here it is kept in the user's cache
under a digest of the source.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core import caching, event
from numpy.typing import NDArray
from platformdirs import user_cache_path
from tqdm import tqdm

from ...base import distributed, progress
from ...base.unchanged import digest

Array = NDArray[Any]

# Sums may be reordered and fused, for speed; NaN and infinity stay what they are.
_FAST = {"reassoc", "contract", "nsz"}

# numba compiles a function again in each of its callers, and in theirs. Short functions, and those
# with one caller, become part of the caller instead.
inlined = njit(inline="always")


def compiled(function: Callable[..., Any]) -> Any:
    """The function compiled by numba on its first call, or loaded if it was compiled before.

    It runs without Python's lock. NUMBA_CACHE_DIR and NUMBA_CACHE_LOCATOR_CLASSES, if set, decide
    where compiled code is kept.
    """
    made: Any = njit(nogil=True, error_model="numpy", fastmath=_FAST)(function)
    config: Any = numba.config
    chosen = config.CACHE_LOCATOR_CLASSES
    config.CACHE_LOCATOR_CLASSES = chosen or _LOCATORS
    try:
        made.enable_caching()
    finally:
        config.CACHE_LOCATOR_CLASSES = chosen
    _functions.add(function)
    return made


class ByContent(caching.InTreeCacheLocator):
    """A cache locator of numba: a folder of the user's cache, named by a digest of the source."""

    def __init__(self, function: Any, file: str) -> None:
        super().__init__(function, file)
        # The module's name too: what is kept refers to it, and fails in a module that has moved.
        source = _source() + function.__module__.encode()
        name = f"{digest(source)[:16]}-numba-{numba.__version__}"
        self._cache_path = str(user_cache_path("jukesep") / "compiled" / name)


@cache
def _source() -> bytes:
    """All of this folder: functions of one file become part of functions of another."""
    return b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))


# The first of these with a writable folder; NUMBA_CACHE_DIR comes first if it is set.
_LOCATORS = f"UserProvidedCacheLocator,{__name__}.ByContent,InTreeCacheLocator,UserWideCacheLocator"

_functions: set[Callable[..., Any]] = set()


class _Announcement(event.Listener):
    """Tells the user that functions of this package are being compiled, and counts them.

    The first line appears once in a process; a terminal shows a bar as well. Child processes,
    which prepare batches, and all ranks but the first stay quiet.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._announced = False
        self._bar: tqdm | None = None

    def on_start(self, started: Any) -> None:
        function = started.data["dispatcher"].py_func
        if not self._depth and function not in _functions:
            return
        self._depth += 1  # numba compiles what a function calls while it compiles the function
        if self._depth == 1 and not multiprocessing.parent_process() and not distributed.rank():
            if not self._announced:
                message = "jukesep: compiling the CPU kernels for this machine (once, about 30 s)"
                tqdm.write(message, file=sys.stderr)
                self._announced = True
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
