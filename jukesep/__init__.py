"""Transfer learning with Jukebox for music source separation.

The public names are imported when they are first used: `import jukesep` and the scores do not
wait for torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

# Read when torch is first imported. Its threads wait for each other without leaving their cores,
# and on a machine that does something else too, a small product then takes forty times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from .errors import UserError
    from .jukebox import load_jukebox
    from .scores import sdr, sdr_mdx, sdr_v4
    from .separator import load_separator
    from .songs import STEMS
    from .vqvae import VQVAE, Architecture

__all__ = [
    "STEMS",
    "VQVAE",
    "Architecture",
    "UserError",
    "load_jukebox",
    "load_separator",
    "sdr",
    "sdr_mdx",
    "sdr_v4",
]

_MODULES = {
    "STEMS": "songs",
    "VQVAE": "vqvae",
    "Architecture": "vqvae",
    "UserError": "errors",
    "load_jukebox": "jukebox",
    "load_separator": "separator",
    "sdr": "scores",
    "sdr_mdx": "scores",
    "sdr_v4": "scores",
}


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
