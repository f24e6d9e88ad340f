"""Errors that a user can correct. They are shown as one message, never as a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import final

_PERMISSIONS = "Change the permissions, or choose a folder that you may write to."
_SPACE = "Free some space."
_FILE = "There is a file where a folder should be: move it elsewhere."
_FOLDER = "There is a folder where a file should be: move it elsewhere."
_LOOP = "The link leads to itself: remove it."
# What a user can do about an error of the disk.
REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _PERMISSIONS),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _SPACE),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), _FILE),
    errno.EISDIR: _FOLDER,
    errno.ELOOP: _LOOP,
}


class UserError(Exception):
    """An error that a user can correct: it names the file or setting, the value and the remedy."""


# Packages by import name, and the extra to install for each. pyproject.toml pins them.
# `pipeline` brings openunmix too; who lacks it needs no more than `peers`.
EXTRAS = dict.fromkeys(
    (
        *("dvc", "hydra", "matplotlib", "musdb", "museval", "omegaconf", "pandas", "pooch"),
        *("pretty_midi", "requests", "stempeg", "symusic", "vl_convert"),
    ),
    "pipeline",
) | dict.fromkeys(("demucs", "openunmix"), "peers")


def not_installed(package: str) -> UserError:
    """The error for a package of an extra that is not installed."""
    extra = f"jukesep[{EXTRAS.get(package, 'pipeline')}]"
    return UserError(f"{package} is not installed. This needs {extra}: pip install '{extra}'")


def not_utf8(name: str) -> str:
    """What is wrong with a name of a file that is not text."""
    shown = name.encode("utf-8", "backslashreplace").decode()
    return f"{shown}: this name is not valid UTF-8. Rename the file or folder."


class Interrupted(Exception):
    """A signal ended the work cleanly. Has a message for the user and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def reported() -> Iterator[None]:
    """Print a UserError raised in the block and exit with status 1; on Ctrl-C, exit with 130.

    A failed import of a package of an extra is reported as a UserError too, and so are missing
    permissions, a full disk and names that are not UTF-8, wherever they are met. If nobody reads
    the output any more, as behind `| head`, the program ends in silence with status 1.
    """
    try:
        try:
            yield
        except ModuleNotFoundError as error:  # names from importlib.metadata contain dashes
            package = str(error.name).partition(".")[0].replace("-", "_")
            if package not in EXTRAS:
                raise
            raise not_installed(package) from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except UnicodeEncodeError as error:
        print(f"error: {not_utf8(error.object)}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        place = f"{_place(os.fsdecode(error.filename))}: " if error.filename else ""
        print(f"error: {place}{error.strerror}. {REMEDIES[error.errno]}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as error:
        if str(error):
            print(error, file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _place(name: str) -> Path:
    """Where an error happened, without the hidden names of unfinished files."""
    place = final(name)
    return place if place.name else Path.cwd()
