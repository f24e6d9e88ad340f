"""Errors that a user can correct. They are shown as one message, never as a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """An error that a user can correct: it names the file or setting, the value and the remedy."""


# Packages of the extra `pipeline`, by import name. pyproject.toml pins them.
PIPELINE = frozenset(
    (
        *("dvc", "hydra", "matplotlib", "musdb", "museval", "omegaconf", "pandas", "pooch"),
        *("pretty_midi", "requests", "stempeg", "symusic", "vl_convert"),
    )
)


def not_installed(package: str) -> UserError:
    """The error for a package of the extra `pipeline` that is not installed."""
    return UserError(
        f"{package} is not installed. This needs jukesep[pipeline]: pip install 'jukesep[pipeline]'"
    )


class Interrupted(Exception):
    """A signal ended the work cleanly. Has a message for the user and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def reported() -> Iterator[None]:
    """Print a UserError raised in the block and exit with status 1; on Ctrl-C, exit with 130.

    A failed import of a package of the extra `pipeline` is reported as a UserError too.
    """
    try:
        try:
            yield
        except ModuleNotFoundError as error:  # names from importlib.metadata contain dashes
            package = str(error.name).partition(".")[0].replace("-", "_")
            if package not in PIPELINE:
                raise
            raise not_installed(package) from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as error:
        if str(error):
            print(error, file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
