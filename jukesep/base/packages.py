"""Files that installed packages carry."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from .errors import not_installed


def package_folder(name: str) -> Path:
    """The folder of an installed package, found without importing it.

    Imports can take seconds (torchaudio) or need ffmpeg (musdb, museval, stempeg). Raises
    UserError if the package is not installed.
    """
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise not_installed(name)
    return Path(spec.origin).parent
