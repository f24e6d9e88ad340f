"""Signals reach the handler of a block, and a process learns that its parent has ended."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jukesep.base import signals

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("number", ALL)
def test_a_handler_is_called_within_its_block_alone(number):
    before, received = [signal.getsignal(one) for one in ALL], []
    with signals.handled(lambda number, _: received.append(number)):
        signal.raise_signal(number)
    assert received == [number]
    assert [signal.getsignal(one) for one in ALL] == before


def test_handlers_are_put_back_after_an_error():
    before = [signal.getsignal(one) for one in ALL]
    with pytest.raises(KeyError), signals.handled(lambda *_: None):
        raise KeyError
    assert [signal.getsignal(one) for one in ALL] == before


def test_a_closed_terminal_does_not_end_what_nohup_started():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    received = []
    try:
        with signals.handled(lambda number, _: received.append(number)):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert received == []


def test_another_thread_has_no_handlers_and_no_error():
    ended = []

    def work():
        with signals.handled(lambda *_: None):
            ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [True]


def test_the_end_of_its_parent_is_noticed(tmp_path):
    """A shell starts a process that watches it, waits until it runs, and ends."""
    ready, done = tmp_path / "ready", tmp_path / "done"
    code = f"""
import os, pathlib, time
from jukesep.base import signals
assert not signals.orphaned()
signals.when_orphaned(lambda: (pathlib.Path({str(done)!r}).touch(), os._exit(0)))
pathlib.Path({str(ready)!r}).touch()
time.sleep(60)
os._exit(1)
"""
    script = f'"$0" -c "$1" & while [ ! -e {ready} ]; do sleep 0.05; done; test ! -e {done}'
    subprocess.run(["sh", "-c", script, sys.executable, code], check=True, timeout=60)
    end = time.monotonic() + 30
    while not done.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert done.exists()


def test_a_process_with_its_parent_is_no_orphan():
    assert not signals.orphaned()
    assert not signals.orphaned(os.getppid())
    assert signals.orphaned(os.getpid())
