"""Transfer learning with Jukebox for music source separation.

Public names are imported on first use, so that `import jukesep` and the scores do not load torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

# Read when torch is first imported. By default its threads spin while they wait, which keeps their
# cores busy: on a machine with other work, a small matrix product then takes forty times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from .base.errors import UserError
    from .model.jukebox import load_jukebox
    from .model.vqvae import VQVAE, Architecture
    from .scoring.metrics import sdr, sdr_mdx, sdr_v4
    from .separation.separator import load_separator
    from .songs.manifest import STEMS

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
    "STEMS": "songs.manifest",
    "VQVAE": "model.vqvae",
    "Architecture": "model.vqvae",
    "UserError": "base.errors",
    "load_jukebox": "model.jukebox",
    "load_separator": "separation.separator",
    "sdr": "scoring.metrics",
    "sdr_mdx": "scoring.metrics",
    "sdr_v4": "scoring.metrics",
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
