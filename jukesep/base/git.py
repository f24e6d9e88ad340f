"""What git says of the code that runs."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(*words: str, folder: Path | None = None) -> str | None:
    """What `git WORDS` prints, in the current or another folder.

    None if it prints nothing or fails, where there is no git or no repository.
    """
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
