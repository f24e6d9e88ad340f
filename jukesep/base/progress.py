"""What a user is told meanwhile: progress with the time left, and notes of one line."""

from __future__ import annotations

import multiprocessing
import os
import sys
from functools import cache
from typing import Any

from tqdm import tqdm

LOG_INTERVAL = 10.0  # seconds between lines if the output is not a terminal
ROW = "JUKESEP_ROW"
"""The environment variable with the line of a process's bar, below those of other processes."""


def bar(*args: Any, **options: Any) -> tqdm:
    """Return a tqdm, with tqdm's arguments and settings: a bar in a terminal, lines in a log."""
    if sys.stderr.isatty():
        options = {"position": int(os.environ.get(ROW, "0")), **options, "dynamic_ncols": True}
    else:
        options |= {"mininterval": LOG_INTERVAL, "maxinterval": LOG_INTERVAL, "ascii": True}
    return tqdm(*args, **options)


@cache
def note(message: str) -> None:
    """Print a line for the user, above a bar if there is one; the same line once in a process."""
    if speaks():
        tqdm.write(f"jukesep: {message}", file=sys.stderr)


def speaks() -> bool:
    """Whether this process tells the user things: child processes and other ranks stay quiet."""
    first = "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"
    return first and multiprocessing.parent_process() is None
