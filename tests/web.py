"""A web server of a test's own, on the loopback address, with the faults that servers have."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Answers with the next answer planned for the path; the last one stays."""

    server: Server

    def do_GET(self) -> None:
        self.server.site.requests.append((self.path, self.headers["Range"]))
        answers = self.server.site.answers.get(self.path, [status(404)])
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, *args: object) -> None:
        """Keep the test's output to itself."""

    def head(self, code: int, **headers: object) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    site: Site

    def handle_error(self, *args: object) -> None:
        """A client that hangs up is no error here."""


@dataclass
class Site:
    """What the server answers, and what it was asked: (path, Range) of each request."""

    address: str
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def at(self, path: str, *answers: Answer) -> str:
        """The address of a path, with its answers planned."""
        self.answers[path] = list(answers)
        return self.address + path

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked in self.requests]


@contextmanager
def running() -> Iterator[Site]:
    server = Server(("127.0.0.1", 0), Handler)
    server.site = Site(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.site
    finally:
        server.site.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def nobody() -> str:
    """An address at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def whole(content: bytes, ranges: bool = True) -> Answer:
    """A server as it should be; without `ranges` it sends the whole whatever is asked."""
    return cut(content, len(content), ranges)


def cut(content: bytes, after: int, ranges: bool = True, stall: bool = False) -> Answer:
    """Hangs up, or falls silent, after so many bytes of the answer."""

    def answer(handler: Handler) -> None:
        start = 0
        if ranges and (asked := re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")):
            start = int(asked[1])
        end = len(content)
        if start >= end:
            handler.head(416, Content_Range=f"bytes */{end}", Content_Length=0)
            return
        length = {"Content_Length": end - start}
        if start:
            handler.head(206, Content_Range=f"bytes {start}-{end - 1}/{end}", **length)
        else:
            handler.head(200, **length)
        handler.wfile.write(content[start : start + after])
        if stall:
            handler.server.site.ended.wait()

    return answer


def status(code: int) -> Answer:
    return lambda handler: handler.head(code, Content_Length=0)


def redirect(location: str) -> Answer:
    return lambda handler: handler.head(302, Location=location, Content_Length=0)


def silent(handler: Handler) -> None:
    handler.server.site.ended.wait()
