"""Mistakes a user can make and mend: shown as one message, never as a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A message that names the file or setting, the value found, and the remedy."""


@contextmanager
def reported() -> Iterator[None]:
    """Print a UserError of the block and exit with status 1; on Ctrl-C exit with 130."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
