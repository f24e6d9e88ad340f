"""Functions compiled once for a machine, not once for each folder that holds the code.

numba keeps what it has compiled beside the source. A clone, or an experiment in DVC's queue, is
another folder with the same source, and would compile it again, seconds long.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numba
from numba.core import caching
from platformdirs import user_cache_path

# Sums may be reordered and fused, for speed; NaN and infinity stay what they are.
_FAST = {"reassoc", "contract", "nsz"}


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """A module that an import would find is not there for a while."""
    absent = object()
    found: Any = sys.modules.get(module, absent)
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
        if found is not absent:
            sys.modules[module] = found


# numba asks SciPy for BLAS, for products of matrices in compiled code. There are none here, and to
# import SciPy's linear algebra is a third of what a process waits for its first compiled function.
with _hidden("scipy.linalg.cython_blas"):
    import_module("numba.np.arraymath")


class ByContent(caching.InTreeCacheLocator):
    """Tells numba where a function is kept: in the user's cache, under the digest of its source."""

    def __init__(self, function: Any, file: str) -> None:
        super().__init__(function, file)
        # This file too, for the flags that it compiles with, and what becomes part of functions.
        here = Path(__file__)
        source = b"".join(f.read_bytes() for f in (Path(file), here, here.with_name("tiles.py")))
        source += function.__module__.encode()  # what is kept imports it
        name = f"{hashlib.sha256(source).hexdigest()[:16]}-numba-{numba.__version__}"
        self._cache_path = str(user_cache_path("jukesep") / "compiled" / name)


# In this order, each if the one before has no folder that can be written to; the first is where
# NUMBA_CACHE_DIR says.
_PLACES = f"UserProvidedCacheLocator,{__name__}.ByContent,InTreeCacheLocator,UserWideCacheLocator"


def compiled(function: Callable[..., Any]) -> Any:
    """The function compiled by numba, without Python's lock; kept for the next process."""
    made: Any = numba.njit(nogil=True, error_model="numpy", fastmath=_FAST)(function)
    config: Any = numba.config
    chosen = config.CACHE_LOCATOR_CLASSES
    config.CACHE_LOCATOR_CLASSES = chosen or _PLACES
    try:
        made.enable_caching()
    finally:
        config.CACHE_LOCATOR_CLASSES = chosen
    return made
