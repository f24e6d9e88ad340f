"""The folder of a training in progress: what it resumes from, and what people watch it by.

    trainings/stage1-vocals_pretrained-<key>/
      state-00000120.state  the last two saves: `saves` says what is in them
      log.csv checkpoints/  the results so far; at the end they are copied to where DVC expects them
      progress.json         step, rate, time left: `jukesep status`
      training.log          what happened, and when
      timing.csv            seconds and steps a second
      samples/              what validation songs sound like, now and then
      identity.json         what the key stands for: everything that determines the result
      lock                  held while a process trains

DVC deletes a stage's outputs before it runs the stage, and runs experiments in folders of their
own. So this folder lies in the project, whatever folder the training runs in. When a training has
finished, training.log, timing.csv, progress.json, identity.json and samples/ stay. Nothing here
changes what a training computes.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from ..base.files import atomic, sweep, sync, write_json, write_text
from ..base.git import git
from ..base.signals import Signals
from ..kernels.devices import Precision
from . import identity
from .layout import held, read_progress
from .saves import Save, Saves, State, fingerprint

PATIENCE = 20.0  # seconds that a process waits for one that may be just about to end
TICK = 2.0  # seconds between two versions of progress.json
TIMING = ("step", "seconds", "steps_per_second")


@dataclass(frozen=True)
class About:
    """What a training is: for messages, files and the key of its folder."""

    title: str
    """stage1 vocals pretrained"""
    section: str
    """The section of the parameters with its recipe."""
    out: Path
    """Where its results go: log.csv and checkpoints/."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What a result is called there, if not as here."""
    identity: dict[str, Any] = field(default_factory=dict)
    """As `identity.identity` returns it."""
    save_minutes: float = 5.0
    sample_minutes: float = 0.0
    """0: no samples."""
    sample_rate: int = 0
    """Hz, of the samples."""


class Training:
    """One training: its folder, its device and its precision.

    Each process that trains enters it; only the `main` one writes.
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
        """The last step that was taken."""
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

    # --- from the beginning to the end ---------------------------------------------------------

    def __enter__(self) -> Training:
        if self.main:
            # Who holds the lock, beside what is known from before.
            with self._disk(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._acquire()
                sweep(self.folder)
                known = {**read_progress(self.folder), "title": self.about.title, **self._facts}
                news = {**known, "state": "running", "updated": time.time()}
                write_json(self.folder / "identity.json", self.about.identity)
                write_json(self.folder / "progress.json", news)
        now = time.monotonic()
        self._start = self._began = self._last_save = self._last_sample = now
        self._last_tick = -TICK
        self._before = 0.0  # seconds of earlier processes
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

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0.5)  # `jukesep status` holds it for a moment
            return
        except Timeout:
            who = read_progress(self.folder)
            print(
                f"{self.about.title}: process {who.get('pid')} on {who.get('host')} is training "
                f"this already; waiting {PATIENCE:.0f} s in case it is about to end.",
                file=sys.stderr,
                flush=True,
            )
        try:
            self._lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise UserError(
                f"{self.about.title}: it is being trained already, by process {who.get('pid')} on "
                f"{who.get('host')} (step {who.get('step')} of {who.get('steps')}). Wait for it "
                "(`jukesep status`), or stop it first."
            ) from None

    def begin(self, step: int, steps: int, processes: int) -> None:
        """Announce the training: it starts after `step`, the step of the save that was loaded."""
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
        resumes = f"resumes after step {step} of {steps}"
        described = ", ".join(f"{name} {value}" for name, value in self._facts.items())
        self._note(f"{self.about.title}: {resumes if step else f'{steps} steps'}; {described}")
        if step:
            print(f"{self.about.title}: {resumes}, where an earlier run stopped.", file=sys.stderr)
        else:
            self._tell_of_others()
        with self._disk():
            for name, lines in (("log.csv", self._log), ("timing.csv", self._timing)):
                write_text(self.folder / name, "".join(f"{line}\n" for line in lines))
        self._progress("running")

    def _tell_of_others(self) -> None:
        """Say why interrupted trainings of the same name are not resumed."""
        name = self.folder.name.rpartition("-")[0]
        for folder in self.folder.parent.glob(f"{name}-*"):
            if folder == self.folder or held(folder) or not any(folder.glob("state-*.state")):
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
        """Copy the results to where DVC expects them, then delete the saves."""
        if not self.main:
            return
        checkpoints = self._saves.checkpoints()
        for path in (self.folder / "log.csv", *checkpoints):
            name = path.relative_to(self.folder).as_posix()
            target = self.about.out / self.about.names.get(name, name)
            with self._disk(target), atomic(target, durable=True) as unfinished:
                shutil.copyfile(path, unfinished)
        if self.stopping:  # DVC will not take the results; the saves give them again at once
            raise self.interrupted()
        self._note("finished")
        self._progress("finished")
        self._saves.delete()
        for name in ("log.csv", "fault.json"):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    # --- what the next step depends on ---------------------------------------------------------

    def newest(self, accept: Callable[[State], None]) -> None:
        """Hand the newest save that is whole to `accept`, if there is one: see `Saves.newest`."""
        save = self._saves.newest(accept)
        if save:
            self._log, self._timing, self._before = save.log, save.timing, save.seconds

    def loaded(self, step: int) -> None:
        """Tell a process that writes nothing which save was loaded."""
        self._saves.step = step

    def save(self, step: int, training: State) -> None:
        """Write what the next step depends on; it is on the disk when this returns."""
        if not self.main:
            return
        save = Save(step, training, self._log, self._timing, self._seconds())
        with self._disk(self._saves.path(step)):
            self._saves.write(save, str(self._facts["commit"]))
        self._last_save = time.monotonic()
        self._note(f"saved step {step}: {fingerprint(training)}")

    def save_due(self) -> bool:
        """Whether the last save is old enough for the next one."""
        return self.main and time.monotonic() - self._last_save >= 60 * self.about.save_minutes

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Have `write` make a checkpoint in the training's folder."""
        if not self.main:
            return
        path = self.folder / "checkpoints" / f"{step}.pt"
        with self._disk(path):
            write(path)
            sync(path)
            sync(path.parent)

    # --- what people watch it by ---------------------------------------------------------------

    def columns(self, names: Sequence[str]) -> None:
        """Head the log, unless a save brought one."""
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
        """Say that a step was taken; progress.json has it within TICK seconds."""
        self.step = step
        if self.main and time.monotonic() - self._last_tick >= TICK:
            self._progress("running")

    def sample_due(self) -> bool:
        """Whether it is time for samples."""
        minutes = self.about.sample_minutes
        return self.main and minutes > 0 and time.monotonic() - self._last_sample >= 60 * minutes

    def sample(self, step: int, sounds: Mapping[str, np.ndarray]) -> None:
        """Write sounds to listen to, {name: (channels, samples)}: samples/<step>-<name>.wav."""
        folder = self.folder / "samples"
        with self._disk(folder):
            for name, sound in sounds.items():
                path = folder / f"{step:08d}-{name}.wav"
                audio.write(path, np.clip(sound, -1, 1), self.about.sample_rate, "PCM_16")
        self._last_sample = time.monotonic()

    def warn(self, message: str) -> None:
        """Show a warning, and keep it in training.log."""
        if self.main:
            print(f"warning: {self.about.title}: {message}", file=sys.stderr)
            self._note(f"warning: {message}")

    def fault(self, report: Mapping[str, object]) -> Path:
        """Write what is known of a step that failed; returns the file."""
        path = self.folder / "fault.json"
        if self.main:
            with self._disk(path):
                write_json(path, report)
        return path

    @property
    def stopping(self) -> bool:
        """Whether a signal asked for the end, or the process that started this one has ended."""
        return self._signals.received is not None

    def interrupted(self) -> Interrupted:
        """What to raise once an interrupted training has been saved."""
        number = self._signals.received or signal.SIGTERM
        why = self._signals.why or signal.Signals(number).name
        said = (
            f"{self.about.title}: stopped by {why} after step {self.step} of {self._steps}, which "
            "is saved. The same command resumes from there."
        )
        return Interrupted(said if self.main else "", 128 + number)

    @property
    def kept(self) -> str:
        """What was saved, in words."""
        if self._saves.step is None:
            return "Nothing was saved yet"
        return f"The save of step {self._saves.step} is kept"

    @property
    def cost(self) -> str:
        """What a failure costs, in words: where the same command resumes."""
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
        content = {
            "title": self.about.title,
            "state": state,
            "message": message,
            "step": step,
            "steps": self._steps,
            "steps_per_second": round(rate, 4),
            "seconds_left": round((self._steps - step) / rate, 1) if rate else None,
            "saved_step": self._saves.step,
            "updated": time.time(),
            "runs_in": str(Path.cwd()),
            **self._facts,
        }
        try:
            write_json(self.folder / "progress.json", content)
        except OSError:
            return  # nothing depends on it

    def _note(self, message: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            with (self.folder / "training.log").open("a", encoding="utf-8") as file:
                file.write(f"{stamp} {message}\n")
        except OSError:
            return  # what matters is shown as well

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    @contextmanager
    def _disk(self, path: Path | None = None) -> Iterator[None]:
        """Say in words what a disk that cannot be written to does to a training."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            # torch hides the disk's error behind one of its own, libsndfile replaces it.
            hidden = error.__context__ if isinstance(error, RuntimeError) else None
            cause = hidden if isinstance(hidden, OSError) else error
            if not isinstance(cause, (OSError, soundfile.LibsndfileError)):
                raise
            why = cause.strerror if isinstance(cause, OSError) else None
            path = path or getattr(cause, "filename", None) or self.folder
            raise UserError(
                f"{self.about.title}: {path} cannot be written: "
                f"{why or str(cause).rstrip('.')}. {self.cost} Make room or change the "
                f"permissions; {paths.VARIABLE} puts the folder of trainings elsewhere."
            ) from cause


def _line(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()
