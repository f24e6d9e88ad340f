"""Mistakes a user can make and mend: shown as one message, never as a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A message that names the file or setting, the value found, and the remedy."""


# Packages of the extra `pipeline`, by the names they are imported by. pyproject.toml pins them.
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
    """A signal ended the work in good order: what there is to say, and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def reported() -> Iterator[None]:
    """Print a UserError of the block and exit with status 1; on Ctrl-C exit with 130.

    An import that fails because the extra `pipeline` is not installed is a UserError too.
    """
    try:
        try:
            yield
        except ModuleNotFoundError as error:  # importlib.metadata's names have dashes
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
