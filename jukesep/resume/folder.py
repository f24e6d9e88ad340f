"""The folder of a training in progress: the saves to resume from, and files to monitor it.

    trainings/stage1-vocals_pretrained-<key>/
      state-00000120.state  the last two saves; `saves` describes their content
      log.csv checkpoints/  the results so far; at the end they are copied to where DVC expects them
      progress.json         step, speed and time left, for `jukesep status`
      training.log          events with their time
      timing.csv            seconds, and steps per second
      samples/              validation songs as the model reproduces them, every `sample_minutes`
      identity.json         everything that determines the result; <key> is its digest
      results.json          see `results`
      lock                  held while a process trains

DVC deletes a stage's outputs before it runs the stage, and runs experiments in temporary folders.
So this folder is in the project, whatever folder the training runs in. At the end of a training,
training.log, timing.csv, progress.json, identity.json and samples/ stay. Nothing here affects what
a training computes.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from filelock import FileLock, Timeout

from .. import audio
from ..base import paths
from ..base.errors import Interrupted, UserError
from ..base.files import sweep, sync, write_json, write_text
from ..base.git import git
from ..base.signals import Signals
from ..kernels.devices import Precision
from . import beside, identity, results
from .layout import held, read_progress, saves
from .saves import Save, Saves, State, fingerprint

PATIENCE = 20.0  # seconds to wait for another process, which may be about to end
TICK = 2.0  # seconds between two versions of progress.json
TIMING = ("step", "seconds", "steps_per_second")
READER = "DataLoader worker (pid"  # of torch's error if a process that reads songs dies


@dataclass(frozen=True)
class About:
    """The description of a training, for messages, files and the key of its folder."""

    title: str
    """Such as "stage1 vocals pretrained"."""
    section: str
    """The section of params.yaml with its recipe."""
    out: Path
    """The folder of its results: log.csv and checkpoints/."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Other names of results in `out`: {name here: name there}."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What `identity.identity` returns."""
    save_minutes: float = 5.0
    sample_minutes: float = 0.0
    """Minutes between samples; 0: no samples."""
    sample_rate: int = 0
    """Sample rate of the samples in Hz."""


class Training:
    """A training: its folder, its device and its precision.

    A context manager that each process of the training enters. Only the `main` process writes.
    """

    def __init__(
        self,
        about: About,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        main: bool = True,
    ) -> None:
        self.about = about
        self.device = torch.device(device)
        self.precision = precision
        self.main = main
        self.step = 0
        """The last completed step."""
        name = about.title.replace(" ", "-", 1).replace(" ", "_")
        self.folder = paths.trainings() / f"{name}-{identity.key(about.identity)}"
        described = json.dumps(about.identity, indent=1, ensure_ascii=False)
        self._saves = Saves(self.folder, about.title, described, self.warn)
        self._lock = FileLock(self.folder / "lock")
        self._signals = Signals()
        self._log: list[str] = []
        self._timing = [",".join(TIMING)]
        self._first = self._steps = 0
        commit = git("rev-parse", "HEAD") or "unknown"
        self._facts = {"pid": os.getpid(), "host": socket.gethostname(), "commit": commit}

    # --- start and end -------------------------------------------------------------------------

    def __enter__(self) -> Training:
        if self.main:
            # Add who holds the lock to what an earlier run wrote.
            with self._disk(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._acquire()
                if beside.is_child() and self._done():
                    self._lock.release()
                    raise Interrupted("", 0)
                sweep(self.folder, below=True)
                known = {**read_progress(self.folder), "title": self.about.title, **self._facts}
                news = {**known, "state": "running", "updated": time.time()}
                write_json(self.folder / "identity.json", self.about.identity)
                write_json(self.folder / "progress.json", news)
        now = time.monotonic()
        self._start = self._began = self._last_save = self._last_sample = now
        self._last_tick = -TICK
        self._before = 0.0  # seconds that earlier processes trained
        self._row = (0, now)
        self._signals.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, _: object) -> None:
        self._signals.__exit__()
        if self.main:
            if error is not None:
                state = "interrupted" if kind in (Interrupted, KeyboardInterrupt) else "failed"
                self._note(f"{state}: {str(error) or type(error).__name__}")
                self._progress(state, str(error))
            self._lock.release()

    def _done(self) -> bool:
        """Whether the results were complete before; DVC has them, or this training's own stage."""
        return read_progress(self.folder).get("state") in ("finished", "trained")

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0.5)  # `jukesep status` holds it for a moment
            return
        except Timeout:
            who = read_progress(self.folder)
            print(
                f"{self.about.title}: process {who.get('pid')} on {who.get('host')} is already "
                f"training this. Waiting {PATIENCE:.0f} s in case it is about to end.",
                file=sys.stderr,
                flush=True,
            )
        try:
            self._lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise UserError(
                f"{self.about.title}: is already being trained, by process {who.get('pid')} on "
                f"{who.get('host')} (step {who.get('step')} of {who.get('steps')}). Wait for it "
                "(`jukesep status`), or stop it."
            ) from None

    def begin(self, step: int, steps: int, processes: int) -> None:
        """Announce the training. `step` is the step of the loaded save, or 0."""
        self._first = self.step = step
        self._steps = steps
        if not self.main:
            return
        on_gpu = self.device.type == "cuda"
        self._facts |= {
            "device": torch.cuda.get_device_name(self.device) if on_gpu else self.device.type,
            "precision": self.precision,
            "processes": processes,
        }
        self._began = time.monotonic()
        self._row = (step, self._began)
        resumes = f"resumes after step {step} of {steps}, where an earlier run stopped"
        if step == steps:
            resumes = "was trained beside another one; takes its results"
        described = ", ".join(f"{name} {value}" for name, value in self._facts.items())
        self._note(f"{self.about.title}: {resumes if step else f'{steps} steps'}; {described}")
        if step:
            print(f"{self.about.title}: {resumes}.", file=sys.stderr)
        else:
            self._tell_of_others()
        with self._disk():
            for name, lines in (("log.csv", self._log), ("timing.csv", self._timing)):
                write_text(self.folder / name, "".join(f"{line}\n" for line in lines))
        self._progress("running")

    def _tell_of_others(self) -> None:
        """Print why interrupted trainings of the same name are not resumed."""
        name = self.folder.name.rpartition("-")[0]
        for folder in self.folder.parent.glob(f"{name}-*"):
            if folder == self.folder or held(folder) or not saves(folder):
                continue
            try:
                theirs = json.loads((folder / "identity.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            names = identity.differences(theirs, self.about.identity)
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            print(
                f"{self.about.title}: starts from the beginning; {folder} holds an interrupted "
                f"training with other {', '.join(names[:5])}{more}. `jukesep clean` deletes it.",
                file=sys.stderr,
            )

    def finish(self) -> None:
        """Copy the results to where DVC expects them, and delete the saves.

        Beside another training, do neither: its own stage will.
        """
        if not self.main:
            return
        files = (self.folder / results.LOG, *self._saves.checkpoints())
        if beside.is_child():
            with self._disk(self.folder / results.RECORD):
                results.record(self.folder, files)
            self._note("trained beside another one; its stage takes the results from here")
            self._progress("trained")
            return
        with self._disk():
            results.deliver(files, self.folder, self.about.out, self.about.names)
        if self.stopping:  # DVC has ended and ignores the results; the last save gives them again
            raise self.interrupted()
        self._note("finished")
        self._progress("finished")
        results.clear(self.folder)

    # --- saves and checkpoints -----------------------------------------------------------------

    def newest(self, accept: Callable[[State], None]) -> None:
        """Pass the newest intact save to `accept`, if there is one. See `Saves.newest`."""
        save = self._saves.newest(accept)
        if save:
            self._log, self._timing, self._before = save.log, save.timing, save.seconds

    def loaded(self, step: int) -> None:
        """Record the step of the loaded save, in a process that does not write."""
        self._saves.step = step

    def save(self, step: int, training: State) -> None:
        """Write a save: the state after `step`. It is on the disk when this returns."""
        if not self.main:
            return
        save = Save(step, training, self._log, self._timing, self._seconds())
        with self._disk(self._saves.path(step)):
            self._saves.write(save, str(self._facts["commit"]))
        self._last_save = time.monotonic()
        self._note(f"saved step {step}: {fingerprint(training)}")

    def save_due(self) -> bool:
        """Whether `save_minutes` have passed since the last save."""
        return self.main and time.monotonic() - self._last_save >= 60 * self.about.save_minutes

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Call `write` with the path of a checkpoint in the training's folder."""
        if not self.main:
            return
        path = self.folder / "checkpoints" / f"{step}.pt"
        with self._disk(path):
            write(path)
            sync(path)
            sync(path.parent)
            self._saves.add_checkpoint(path)

    # --- logs and messages ---------------------------------------------------------------------

    def columns(self, names: Sequence[str]) -> None:
        """Start the log with its header, unless it comes from a save."""
        if not self._log:
            self._log = [_line(names)]

    def row(self, step: int, values: Sequence[str]) -> None:
        """Add a line to the log, and one to timing.csv."""
        if not self.main:
            return
        now = time.monotonic()
        speed = (step - self._row[0]) / max(now - self._row[1], 1e-9)
        self._row = (step, now)
        self._add("log.csv", self._log, values)
        self._add("timing.csv", self._timing, [step, f"{self._seconds():.2f}", f"{speed:.3f}"])

    def tick(self, step: int) -> None:
        """Record a completed step. progress.json shows it within TICK seconds."""
        self.step = step
        if self.main and time.monotonic() - self._last_tick >= TICK:
            self._progress("running")

    def sample_due(self) -> bool:
        """Whether `sample_minutes` have passed since the last samples."""
        minutes = self.about.sample_minutes
        return self.main and minutes > 0 and time.monotonic() - self._last_sample >= 60 * minutes

    def sample(self, step: int, sounds: Mapping[str, np.ndarray]) -> None:
        """Write samples/<step>-<name>.wav for sounds {name: (channels, samples)}."""
        folder = self.folder / "samples"
        with self._disk(folder):
            for name, sound in sounds.items():
                path = folder / f"{step:08d}-{name}.wav"
                audio.write(path, np.clip(sound, -1, 1), self.about.sample_rate, "PCM_16")
        self._last_sample = time.monotonic()

    def warn(self, message: str) -> None:
        """Print a warning and write it to training.log."""
        if self.main:
            print(f"warning: {self.about.title}: {message}", file=sys.stderr)
            self._note(f"warning: {message}")

    def fault(self, report: Mapping[str, object]) -> Path:
        """Write a report of a failed step to fault.json and return its path."""
        path = self.folder / "fault.json"
        if self.main:
            with self._disk(path):
                write_json(path, report)
        return path

    @property
    def stopping(self) -> bool:
        """Whether to stop: a signal came, or the process that started this one has ended."""
        return self._signals.received is not None

    def interrupted(self) -> Interrupted:
        """Return the exception to raise once an interrupted training is saved."""
        number = self._signals.received or signal.SIGTERM
        why = self._signals.why or signal.Signals(number).name
        said = (
            f"{self.about.title}: stopped by {why} after step {self.step} of {self._steps}, which "
            "is saved. The same command resumes from there."
        )
        return Interrupted(said if self.main else "", 128 + number)

    @property
    def kept(self) -> str:
        """Which save is kept, as a sentence without a full stop."""
        if self._saves.step is None:
            return "Nothing was saved yet"
        return f"The save of step {self._saves.step} is kept"

    @property
    def cost(self) -> str:
        """Where the same command resumes after a failure, as a sentence."""
        resumes = "" if self._saves.step is None else ", and the same command resumes from there"
        return f"{self.kept}{resumes}."

    def _add(self, name: str, lines: list[str], values: Sequence[object]) -> None:
        lines.append(_line(values))
        path = self.folder / name
        with self._disk(path), path.open("a", encoding="utf-8", newline="") as file:
            file.write(lines[-1] + "\n")

    def _progress(self, state: str, message: str = "") -> None:
        self._last_tick = time.monotonic()
        step, seconds = self.step, self._last_tick - self._began
        rate = (step - self._first) / seconds if seconds > 0 else 0.0
        known = {} if self._steps else read_progress(self.folder)  # not begun: of an earlier run
        content = {
            "title": self.about.title,
            "step": self.step,
            "steps": self._steps,
            "steps_per_second": round(rate, 4),
            "seconds_left": round((self._steps - self.step) / rate, 1) if rate else None,
            "saved_step": self._saves.step,
            "runs_in": str(Path.cwd()),
            **self._facts,
            **known,
            "state": state,
            "message": message,
            "updated": time.time(),
        }
        with suppress(OSError):  # it is only for information
            write_json(self.folder / "progress.json", content)

    def _note(self, message: str) -> None:
        results.note(self.folder, message)

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    @contextmanager
    def _disk(self, path: Path | None = None) -> Iterator[None]:
        """Raise UserError if the disk cannot be written to, and say where the training resumes."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            if READER in str(error):  # at any moment, also while another error is handled
                raise
            # torch raises an error of its own from that of the disk; libsndfile replaces it.
            hidden = error.__context__ if isinstance(error, RuntimeError) else None
            cause = hidden if isinstance(hidden, OSError) else error
            if not isinstance(cause, (OSError, soundfile.LibsndfileError)):
                raise
            why = cause.strerror if isinstance(cause, OSError) else None
            path = path or getattr(cause, "filename", None) or self.folder
            raise UserError(
                f"{self.about.title}: {path} cannot be written: "
                f"{why or str(cause).rstrip('.')}. {self.cost} Free some space, "
                f"change the permissions, or set {paths.VARIABLE} to another folder."
            ) from cause


def _line(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()
