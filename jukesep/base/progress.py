"""Progress with time left: a bar in a terminal, or a line every few seconds in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LOG_INTERVAL = 10.0  # seconds between lines if the output is not a terminal


def bar(*args: Any, **options: Any) -> tqdm:
    """Return a tqdm, with tqdm's arguments and settings for a terminal or a log."""
    if sys.stderr.isatty():
        options |= {"dynamic_ncols": True}
    else:
        options |= {"mininterval": LOG_INTERVAL, "maxinterval": LOG_INTERVAL, "ascii": True}
    return tqdm(*args, **options)
