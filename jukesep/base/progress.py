"""Progress with time left: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

LOG_INTERVAL = 10.0  # seconds between lines where the output is no terminal


def bar(*args: Any, **options: Any) -> tqdm:
    """A tqdm, with tqdm's arguments, that suits where it is shown."""
    if sys.stderr.isatty():
        options |= {"dynamic_ncols": True}
    else:
        options |= {"mininterval": LOG_INTERVAL, "maxinterval": LOG_INTERVAL, "ascii": True}
    return tqdm(*args, **options)
