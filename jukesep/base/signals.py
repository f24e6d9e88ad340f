"""Signals that end a training: remembered, until its step has ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from .errors import Interrupted

# Taken when the script starts: to have it only after the imports would be too late.
STARTED_BY = os.getppid()


class Signals:
    """SIGINT and SIGTERM are remembered, for the step to end first; SIGINT once more ends at once.

    So is the death of the process that a training was started for: DVC, or torchrun. What would
    come of it then is lost to DVC, while a new `dvc repro` waits for the training to end.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self.why = ""
        watched = "DVC_STAGE" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
        self._parent = STARTED_BY if watched else None

    @property
    def received(self) -> int | None:
        if self._received is None and self._parent not in (None, os.getppid()):
            self._received, self.why = signal.SIGTERM, "the end of the process that started it"
        return self._received

    def __enter__(self) -> None:
        self._old: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread
                return

    def __exit__(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        # SIGTERM may come from several who end things: a scheduler, DVC's group, torchrun.
        if self._received is not None and number == signal.SIGINT:
            raise Interrupted("stopped at once; the last save is kept", 128 + number)
        self._received = number


def begin_reading(_: int = 0) -> None:
    """For the processes that read songs: the training ends them, and they end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    # PyTorch's own watch ends the loop, but not a write to a pipe that nobody reads any more.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
