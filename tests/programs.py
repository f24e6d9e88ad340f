"""Programs that some tests need beside Python's packages."""

import os
import shutil

import pytest


def needs(*names: str) -> str:
    """The path of the first of these programs that is installed.

    If none is, the test is skipped; where the environment variable CI is set, it fails.
    """
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing(f"not installed: {' or '.join(names)}")
    return found
