"""Run git."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(*words: str, folder: Path | None = None) -> str | None:
    """Return the output of `git WORDS`, run in `folder` or the current folder.

    None if it prints nothing or fails, as it does without git or outside a repository.
    """
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
