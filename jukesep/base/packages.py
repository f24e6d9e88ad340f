"""Find the files of installed packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from .errors import not_installed


def package_folder(name: str) -> Path:
    """Return the folder of an installed package without importing it.

    An import can take seconds (torchaudio) or need ffmpeg (musdb, museval, stempeg). UserError if
    the package is not installed.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise not_installed(name)
    return Path(spec.origin).parent
