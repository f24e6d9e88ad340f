"""Signals that end the work, and the end of the process that started this one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from .errors import Interrupted

# A closed terminal sends SIGHUP; Windows has none.
ENDING = tuple(one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGHUP"))

# Read when the script starts: later, after the imports, that process may already have ended.
STARTED_BY = os.getppid()


def orphaned(parent: int | None = None) -> bool:
    """Whether the process that started this one has ended; `parent` is its id, if known.

    A stage that runs in a copy of `forkserver` was started by the server, which ends with DVC.
    """
    return os.getppid() != (STARTED_BY if parent is None else parent)


def when_orphaned(do: Callable[[], object], parent: int | None = None) -> None:
    """Call `do` in a thread once the process that started this one has ended."""

    def watch() -> None:
        while not orphaned(parent):
            time.sleep(0.5)
        do()

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call `handler` on SIGINT, SIGTERM and SIGHUP in the block. Only works in the main thread.

    Under nohup, SIGHUP stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for number in ENDING:
        if number.name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Signals:
    """Records a signal, so that the step can finish; a second SIGINT ends at once.

    If DVC or torchrun started this process, the end of it counts as SIGTERM: nothing would collect
    the results, and the next `dvc repro` would wait for this training.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self.why = ""
        self._watched = "DVC_STAGE" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
        self._handled = ExitStack()

    @property
    def received(self) -> int | None:
        """The number of the received signal, or None."""
        if self._received is None and self._watched and orphaned():
            self._received, self.why = signal.SIGTERM, "the end of the process that started it"
        return self._received

    def __enter__(self) -> None:
        self._handled.enter_context(handled(self._remember))

    def __exit__(self, *_: object) -> None:
        self._handled.close()

    def _remember(self, number: int, _: FrameType | None) -> None:
        # SIGTERM may come more than once: from a scheduler, DVC's process group, torchrun.
        if self._received is not None and number == signal.SIGINT:
            raise Interrupted("stopped at once; the last save is kept", 128 + number)
        self._received = number


def begin_reading(_: int = 0) -> None:
    """Set up a process that reads songs: it ignores signals, and ends with the training."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    # PyTorch's own check ends the loop, but not a blocked write to a pipe that nobody reads.
    when_orphaned(lambda: os._exit(1), os.getppid())
