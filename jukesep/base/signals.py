"""Signals that end the work, and the end of the process that this one works for."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from .errors import Interrupted

# Read when the script starts: after the imports, that process may already have ended.
STARTED_BY = os.getppid()


def orphaned(parent: int | None = None) -> bool:
    """Whether the process that started this one has ended; `parent` is its number, if given."""
    return os.getppid() != (STARTED_BY if parent is None else parent)


def when_orphaned(do: Callable[[], object], parent: int | None = None) -> None:
    """Call `do`, in a thread, as soon as this process is orphaned."""

    def watch() -> None:
        while not orphaned(parent):
            time.sleep(0.5)
        do()

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """SIGINT and SIGTERM call `handler` in the block. Python allows it in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Signals:
    """Remembers SIGINT and SIGTERM, so that a step can end first; a second SIGINT ends at once.

    The end of DVC or torchrun counts as SIGTERM, if one of them started this process: DVC would
    take no result any more, and the next `dvc repro` would wait for this training to end.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self.why = ""
        self._watched = "DVC_STAGE" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
        self._handled = ExitStack()

    @property
    def received(self) -> int | None:
        """The number of the signal that came, if any."""
        if self._received is None and self._watched and orphaned():
            self._received, self.why = signal.SIGTERM, "the end of the process that started it"
        return self._received

    def __enter__(self) -> None:
        self._handled.enter_context(handled(self._remember))

    def __exit__(self, *_: object) -> None:
        self._handled.close()

    def _remember(self, number: int, _: FrameType | None) -> None:
        # SIGTERM may come from several who end things: a scheduler, DVC's group, torchrun.
        if self._received is not None and number == signal.SIGINT:
            raise Interrupted("stopped at once; the last save is kept", 128 + number)
        self._received = number


def begin_reading(_: int = 0) -> None:
    """For processes that read songs: they leave signals to the training, and end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # PyTorch's own watch ends the loop, but not a write to a pipe that nobody reads any more.
    when_orphaned(lambda: os._exit(1), os.getppid())
