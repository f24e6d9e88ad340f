"""Take the README's picture of the listening page: docs/listen.png.

    uv run python -m studies.listen_picture    # needs `dvc repro` (or pull) first, and Chromium

The picture is the page as it opens: by its own rule, with the song and stem where the method gains
most over the static equaliser.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import sync_playwright

from jukesep.base import paths
from jukesep.base.errors import UserError, reported
from jukesep.base.files import atomic

PICTURE = Path("docs/listen.png")
WIDTH = 1120  # pixels; the picture is as high as the page
TRIES = 300  # of 0.1 s each


def take(page: Path, picture: Path) -> None:
    """Write a picture of a listening page."""
    if not page.is_file():
        raise UserError(f"{page}: no such file; run `dvc repro` to write it")
    programs = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    program = next(filter(None, programs), None)
    if program is None:
        raise UserError("Chromium, which opens the page, is not installed.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        tab = browser.new_page(viewport={"width": WIDTH, "height": 600})
        tab.goto(page.resolve().as_uri())
        # The page's policy forbids what `wait_for_function` evaluates.
        for _ in range(TRIES):
            if tab.evaluate("jukesep.state.ready"):
                break
            tab.wait_for_timeout(100)
        else:
            raise UserError(f"{page}: has no sounds to show")
        tab.wait_for_timeout(100)  # the next frame is drawn
        content = tab.screenshot(full_page=True)
        browser.close()
    with atomic(picture) as unfinished:
        unfinished.write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the picture."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args(arguments)
    take(paths.LISTEN / "index.html", PICTURE)
    print(PICTURE)


if __name__ == "__main__":
    with reported():
        main()
