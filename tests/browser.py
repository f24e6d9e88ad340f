"""Pages in the system's Chromium, without a network."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from programs import needs

FLAGS = ("--autoplay-policy=no-user-gesture-required", "--host-resolver-rules=MAP * ~NOTFOUND")
SECONDS = 30


@contextmanager
def opened(path: Path, expected: str | None = None, **options: Any) -> Iterator[Page]:
    """The page at `path`, with Playwright's options of a page.

    At the end the page must have loaded nothing but files below its folder, and its console must
    be empty but for lines that contain `expected`.
    """
    program = needs("chromium", "chromium-browser", "google-chrome")
    console: list[str] = []
    loaded: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page(**options)
        page.on("console", lambda message: console.append(message.text))
        page.on("pageerror", lambda error: console.append(str(error)))
        page.on("request", lambda request: loaded.append(request.url))
        page.goto(path.as_uri())
        yield page
        browser.close()
    assert [line for line in console if expected is None or expected not in line] == []
    assert loaded
    assert all(url.startswith((path.parent.as_uri(), "data:", "blob:")) for url in loaded)


def wait(page: Page, code: str) -> None:
    """Wait until an expression is true.

    The listening page's policy forbids what Playwright's `wait_for_function` evaluates.
    """
    end = time.monotonic() + SECONDS
    while not page.evaluate(code):
        assert time.monotonic() < end, f"never: {code}"
        page.wait_for_timeout(50)
