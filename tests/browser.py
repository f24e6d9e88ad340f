"""A headless browser of a test's own, spoken to through pipes in Chromium's DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 30


def program() -> str | None:
    return shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """One page: what it said on its console, and every address that it asked for."""

    def __init__(self, to: int, back: int) -> None:
        self.to, self.back = to, back
        self.console: list[str] = []
        self.requests: list[str] = []
        self._text, self._number = b"", 0
        self._session: str | None = None

    def open(self, address: str, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        self.send("Page.navigate", url=address)

    def value(self, code: str) -> object:
        """What an expression of the page is."""
        found = self.send(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, code: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self.value(code):
            assert time.monotonic() < end, f"never: {code}; {self.console}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, **(text if kind == "keyDown" else {})
            )

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        box = self.value(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)})"
            ".getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
        )
        left, top, width, height = box  # type: ignore[misc]
        for kind in ("mousePressed", "mouseReleased"):
            self.send(
                "Input.dispatchMouseEvent", type=kind, button="left", clickCount=1,
                x=left + x * width, y=top + y * height,
            )  # fmt: skip

    def picture(self, path: Path) -> None:
        found = self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    def send(self, method: str, **parameters: object) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith("Target."):
            message["sessionId"] = self._session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def _read(self) -> dict:
        while b"\0" not in self._text:
            part = os.read(self.back, 1 << 16)
            assert part, "the browser has ended"
            self._text += part
        text, self._text = self._text.split(b"\0", 1)
        found = json.loads(text)
        given = found.get("params", {})
        match found.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(given["request"]["url"])
            case "Runtime.consoleAPICalled":
                self.console.append(str([one.get("value") for one in given["args"]]))
            case "Runtime.exceptionThrown":
                self.console.append(str(given["exceptionDetails"]))
            case "Log.entryAdded":
                self.console.append(given["entry"]["text"])
        return found


@contextmanager
def running(folder: Path) -> Iterator[Browser]:
    """A browser whose profile is in a folder."""
    name = program()
    assert name
    (to_read, to), (back, back_write) = os.pipe(), os.pipe()

    def pipes() -> None:
        """The protocol's are the descriptors 3 and 4."""
        given = os.dup(to_read), os.dup(back_write)  # neither may lie in the other's way
        os.dup2(given[0], 3)
        os.dup2(given[1], 4)

    process = subprocess.Popen(
        [name, *FLAGS, f"--user-data-dir={folder}"],
        preexec_fn=pipes,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(back_write)
    try:
        yield Browser(to, back)
    finally:
        process.kill()
        process.wait()
        os.close(to)
        os.close(back)
