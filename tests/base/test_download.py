"""Downloads against a server of the test's own: whole and right, or not there and said why."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from web import Handler, Site, cut, nobody, redirect, running, silent, status, whole

from jukesep.base import download as module
from jukesep.base.download import CHUNK, HEADWAY, download
from jukesep.base.errors import UserError

CONTENT = random.Random(0).randbytes(5 * CHUNK + 7)
OTHER = random.Random(1).randbytes(5 * CHUNK + 7)
HALF = 2 * CHUNK


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(module, "BACK_OFF", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running() as site:
        yield site


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "file.bin"


def fetch(target: Path, url: str, content: bytes = CONTENT, **options: float) -> bytes:
    download(url, target, sha256=sha256(content), title="The file", **{"timeout": 5.0} | options)  # type: ignore[arg-type]
    assert not part(target).exists()
    return target.read_bytes()


def part(target: Path) -> Path:
    return target.with_name(".file.bin.part")


def left(target: Path, content: bytes) -> None:
    """As an earlier call left it."""
    target.parent.mkdir()
    part(target).write_bytes(content)


# --- a server as it should be -----------------------------------------------------------------


def test_a_file_arrives(site: Site, target: Path, capfd) -> None:
    url = site.at("/file", whole(CONTENT))
    assert fetch(target, url) == CONTENT
    assert site.requests == [("/file", None)]
    assert "The file: 100%" in capfd.readouterr().err


def test_a_redirection_is_followed(site: Site, target: Path) -> None:
    site.at("/there", whole(CONTENT))
    assert fetch(target, site.at("/here", redirect("/there"))) == CONTENT


def test_a_size_that_is_not_told(site: Site, target: Path) -> None:
    def answer(handler: Handler) -> None:
        handler.head(200)
        handler.wfile.write(CONTENT)

    assert fetch(target, site.at("/file", answer)) == CONTENT


def test_the_file_is_asked_for_as_it_is(site: Site, target: Path) -> None:
    asked = []

    def answer(handler: Handler) -> None:
        asked.append(handler.headers["Accept-Encoding"])
        whole(CONTENT)(handler)

    fetch(target, site.at("/file", answer))
    assert asked == ["identity"]


def test_memory_stays_flat(site: Site, target: Path) -> None:
    content = bytes(24 << 20)

    def answer(handler: Handler) -> None:
        handler.head(200, Content_Length=len(content))
        for start in range(0, len(content), CHUNK):
            handler.wfile.write(memoryview(content)[start : start + CHUNK])

    url = site.at("/file", answer)
    tracemalloc.start()
    download(url, target, sha256=sha256(content), title="The file")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_two_at_once_fetch_it_once(site: Site, target: Path, capfd) -> None:
    def answer(handler: Handler) -> None:
        time.sleep(0.3)  # time for the second to come upon the first
        whole(CONTENT)(handler)

    url = site.at("/file", answer)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: fetch(target, url), range(2))) == [CONTENT, CONTENT]
    assert len(site.requests) == 1
    assert "another process is downloading it" in capfd.readouterr().err


# --- resumed ----------------------------------------------------------------------------------


def test_a_transfer_that_breaks_off_is_resumed(site: Site, target: Path) -> None:
    url = site.at("/file", cut(CONTENT, HALF), cut(CONTENT, CHUNK), whole(CONTENT))
    assert fetch(target, url) == CONTENT
    assert site.ranges == [None, f"bytes={HALF}-", f"bytes={HALF + CHUNK}-"]


def test_a_part_of_an_earlier_call_is_resumed(site: Site, target: Path) -> None:
    left(target, CONTENT[:1000])
    assert fetch(target, site.at("/file", whole(CONTENT))) == CONTENT
    assert site.ranges == ["bytes=1000-"]


def test_a_part_that_is_whole_is_taken(site: Site, target: Path) -> None:
    left(target, CONTENT)
    assert fetch(target, site.at("/file", whole(CONTENT))) == CONTENT
    assert site.ranges == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize(
    "wrong", [OTHER[:HALF], OTHER, OTHER + OTHER], ids=["half", "whole", "longer"]
)
def test_a_wrong_part_is_thrown_away(site: Site, target: Path, wrong: bytes) -> None:
    left(target, wrong)
    assert fetch(target, site.at("/file", whole(CONTENT))) == CONTENT
    assert site.ranges == [f"bytes={len(wrong)}-", None]


def test_a_server_without_ranges_sends_the_whole(site: Site, target: Path) -> None:
    left(target, OTHER[:1000])
    url = site.at("/file", cut(CONTENT, HALF, ranges=False), whole(CONTENT, ranges=False))
    assert fetch(target, url) == CONTENT
    assert site.ranges == ["bytes=1000-", f"bytes={HALF}-"]


def test_a_range_that_was_not_asked_for_is_not_taken(site: Site, target: Path) -> None:
    left(target, CONTENT[:1000])

    def answer(handler: Handler) -> None:
        end = len(CONTENT)
        handler.head(206, Content_Range=f"bytes 999-{end - 1}/{end}", Content_Length=end - 999)
        handler.wfile.write(CONTENT[999:])

    assert fetch(target, site.at("/file", answer, whole(CONTENT))) == CONTENT
    assert site.ranges == ["bytes=1000-", None]


def test_headway_is_no_failure(site: Site, target: Path) -> None:
    content = random.Random(2).randbytes(4 * HEADWAY)
    url = site.at("/file", cut(content, HEADWAY + CHUNK))
    assert fetch(target, url, content=content, tries=1) == content
    assert len(site.requests) == 4


def test_the_same_bytes_again_are_no_headway(site: Site, target: Path) -> None:
    content = random.Random(2).randbytes(4 * HEADWAY)
    url = site.at("/file", cut(content, 2 * HEADWAY, ranges=False))
    with pytest.raises(UserError, match="IncompleteRead"):
        fetch(target, url, content=content)
    assert len(site.requests) == 4  # the first brought something


INTERRUPTED = """
import signal
import sys
from pathlib import Path
from jukesep.base.download import download
from jukesep.base.errors import reported

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
with reported():
    download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], title="The file")
"""


def test_ctrl_c_leaves_the_part_for_the_next_try(site: Site, target: Path) -> None:
    url = site.at("/file", cut(CONTENT, HALF, stall=True), whole(CONTENT))
    command = [sys.executable, "-c", INTERRUPTED, url, str(target), sha256(CONTENT)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (part(target).exists() and part(target).stat().st_size == HALF):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"{part(target)}: kept" in said
    assert "Traceback" not in said
    assert not target.exists()

    assert fetch(target, url) == CONTENT
    assert site.ranges == [None, f"bytes={HALF}-"]


# --- what cannot be fetched -------------------------------------------------------------------


def test_a_server_in_trouble_is_asked_again(site: Site, target: Path, capfd) -> None:
    url = site.at("/file", status(503), status(429), whole(CONTENT))
    assert fetch(target, url) == CONTENT
    assert f"{url}: HTTP 503 Service Unavailable; trying again" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("answer", "message", "requests"),
    [
        (status(404), "HTTP 404 Not Found", 1),
        (status(500), "HTTP 500 Internal Server Error", 3),
        (status(206), "sent other bytes", 3),
        (silent, "timed out", 3),
        (cut(CONTENT, CHUNK, stall=True), "timed out", 3),
        (cut(CONTENT, CHUNK), "IncompleteRead", 3),
        (lambda handler: None, "without response", 3),
        (redirect("file:///etc/hostname"), "No connection adapters", 3),
        (redirect("http://["), "Invalid|Failed to parse", 3),
    ],
    ids=["404", "500", "206", "silent", "stalled", "cut", "nothing", "file", "broken"],
)
def test_what_an_address_answered_is_said(
    site: Site, target: Path, answer, message: str, requests: int
) -> None:
    url = site.at("/file", answer)
    with pytest.raises(UserError, match=message) as caught:
        fetch(target, url, timeout=0.2)
    assert str(caught.value).startswith(f"The file: cannot be downloaded from {url}: ")
    assert len(site.requests) == requests
    assert not target.exists()


def test_a_server_that_is_gone(target: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "BACK_OFF", 0.0)
    with pytest.raises(UserError, match="Connection refused"):
        fetch(target, nobody())
    assert os.listdir(target.parent) == [".file.bin.lock"]


def test_a_wrong_sum_shows_both(site: Site, target: Path) -> None:
    with pytest.raises(UserError) as caught:
        fetch(target, site.at("/file", whole(OTHER)))
    assert f"sha256 is {sha256(OTHER)}, expected {sha256(CONTENT)}" in str(caught.value)
    assert not target.exists()
    assert not part(target).exists()


def test_a_server_of_another_file_is_believed_only_so_often(site: Site, target: Path) -> None:
    left(target, CONTENT[:1000])
    with pytest.raises(UserError, match="sha256 is"):
        fetch(target, site.at("/file", cut(OTHER, HALF)))
    assert site.ranges.count(None) == 1  # the whole once, in three pieces after the first three
    assert len(site.requests) == 6


def test_a_disk_without_room_is_seen_before(site: Site, target: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 100_000))
    with pytest.raises(UserError, match=r"0\.0 GB are missing, but the disk of"):
        fetch(target, site.at("/file", whole(CONTENT)))
    assert not part(target).exists()
    left_over = CONTENT[: len(CONTENT) - 100_000]
    part(target).write_bytes(left_over)  # what lacks then has room
    assert fetch(target, site.at("/file", whole(CONTENT))) == CONTENT


def test_a_place_that_cannot_be_written_to(site: Site, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match=r"file\.bin: cannot be written"):
        fetch(tmp_path / "cache" / "file.bin", site.at("/file", whole(CONTENT)))
