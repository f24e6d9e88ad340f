"""The folder of a training in progress: what it needs to go on, and what one watches it by.

    trainings/stage1-vocals_pretrained-<key>/
      state-00000120.state  all that the next step depends on; the newest, and the one before
      log.csv checkpoints/  the results so far: in the end they go where DVC expects them
      progress.json         step, rate, time left: `jukesep status`
      training.log          what happened, and when
      timing.csv            seconds and steps a second
      samples/              what validation songs sound like, now and then
      identity.json         what the key stands for: everything that determines the result
      lock                  held while a process trains

DVC deletes a stage's outputs before it runs the stage, and runs experiments in folders of their
own; so this one lies in the project, whatever folder the training runs in. When a training ends
well, the last four stay. Nothing here changes what a training computes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
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
from ..base.files import atomic, sync, write_text
from ..base.signals import Signals
from ..kernels.devices import Precision, out_of_memory
from . import identity
from .layout import held, read_progress

MAGIC = b"jukesep state 1\n"
KEPT = 2  # saves
PATIENCE = 20.0  # seconds that a process waits for one that may be just about to end
TICK = 2.0  # seconds between two versions of progress.json
TIMING = ("step", "seconds", "steps_per_second")

State = dict[str, Any]


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
    """As `identity.identity` has it."""
    save_minutes: float = 5.0
    sample_minutes: float = 0.0
    """0: no samples."""
    sample_rate: int = 0


class Training:
    """One training: its folder, where and how exactly it is computed.

    Entered by each process that trains; only the `main` one writes.
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
        name = about.title.replace(" ", "-", 1).replace(" ", "_")
        self.folder = paths.trainings() / f"{name}-{identity.key(about.identity)}"
        self._described = json.dumps(about.identity, indent=1, ensure_ascii=False)
        self._lock = FileLock(self.folder / "lock")
        self._signals = Signals()
        self._log: list[str] = []
        self._timing: list[str] = []
        self._saved: int | None = None
        self._first = self.step = self._steps = 0
        self._facts = {"pid": os.getpid(), "host": socket.gethostname(), "commit": commit()}

    # --- from the beginning to the end ---------------------------------------------------------

    def __enter__(self) -> Training:
        if self.main:
            with self._disk(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._acquire()
                for leftover in self.folder.rglob(".*"):  # of a write that was cut off
                    leftover.unlink()
            # Who holds the lock, beside what is known from before.
            known = {**read_progress(self.folder), "title": self.about.title, **self._facts}
            news = json.dumps({**known, "state": "running", "updated": time.time()}, indent=1)
            with self._disk(self.folder):
                write_text(self.folder / "identity.json", self._described + "\n")
                write_text(self.folder / "progress.json", news + "\n")
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
                self._progress(state=state, message=str(error))
            self._lock.release()

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0.5)  # `jukesep status` holds it for a moment
            return
        except Timeout:
            who = read_progress(self.folder)
            print(
                f"{self.about.title}: process {who.get('pid')} on {who.get('host')} trains this "
                f"already; waiting {PATIENCE:.0f} s in case it is about to end.",
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
        """The first step is about to be taken, after what was saved, if anything was."""
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
        going_on = f"goes on after step {step} of {steps}" if step else f"{steps} steps"
        described = ", ".join(f"{name} {value}" for name, value in self._facts.items())
        self._note(f"{self.about.title}: {going_on}; {described}")
        if step:
            print(
                f"{self.about.title}: goes on after step {step} of {steps}, where an earlier run "
                "stopped.",
                file=sys.stderr,
            )
        else:
            self._others()
        with self._disk():
            _write_lines(self.folder / "log.csv", self._log)
            _write_lines(self.folder / "timing.csv", self._timing or [",".join(TIMING)])
        self._timing = self._timing or [",".join(TIMING)]
        self._progress(state="running")

    def _others(self) -> None:
        """Say why interrupted trainings of the same name are not gone on with."""
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
                f"{self.about.title}: starts anew; {folder} holds an interrupted training of "
                f"other {', '.join(names[:5])}{more}. `jukesep clean` deletes it.",
                file=sys.stderr,
            )

    def finish(self) -> None:
        """Put the results where DVC expects them, then forget how to go on."""
        if not self.main:
            return
        out = self.about.out
        for path in (self.folder / "log.csv", *self._checkpoints()):
            name = path.relative_to(self.folder).as_posix()
            target = out / self.about.names.get(name, name)
            with self._disk(target), atomic(target, durable=True) as temporary:
                shutil.copyfile(path, temporary)
        if self.stopping:  # what comes of it now is lost to DVC: keep what makes it again at once
            raise self.interrupted()
        self._note("finished")
        self._progress(state="finished")
        damaged = self.folder.glob("state-*.damaged")
        fault = self.folder / "fault.json"
        for path in (*damaged, *self._states(), self.folder / "log.csv", fault):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)

    # --- what the next step depends on ---------------------------------------------------------

    def newest(self, accept: Callable[[State], None]) -> bool:
        """Hand the newest save that is whole to `accept`; says whether there was one.

        A damaged save, one that `accept` refuses (by any exception), and one whose checkpoints
        are not there any more, are passed over with a message.
        """
        for path in reversed(self._states()):
            try:
                content = path.read_bytes()
            except OSError as error:  # may be whole all the same
                raise UserError(
                    f"{self.about.title}: {path} cannot be read: {error.strerror or error}. "
                    "Mend that, and the same command goes on from it; or delete it."
                ) from error
            try:
                state = self._read(content)
                log, timing = list(state["log"]), list(state["timing"])
                seconds, step, checkpoints = state["seconds"], state["step"], state["checkpoints"]
                accept(state["training"])
            except Exception as error:  # A damaged file can fail anywhere in what reads it.
                if out_of_memory(error):
                    raise
                self.warn(f"{path} is no whole save ({error}); looking for the one before it.")
                path.replace(path.with_suffix(".damaged"))
                continue
            self._log, self._timing = log, timing
            self._before, self._saved = seconds, step
            self._forget_checkpoints_but(checkpoints)
            return True
        self._forget_checkpoints_but(())
        return False

    def _forget_checkpoints_but(self, names: Collection[str]) -> None:
        """Those of later steps are written again."""
        for checkpoint in self._checkpoints():
            if checkpoint.name not in names:
                checkpoint.unlink()

    def loaded(self, step: int) -> None:
        """Tell a process that writes nothing what was loaded."""
        self._saved = step

    def save(self, step: int, training: State) -> None:
        """Write what the next step depends on; atomic, and on the disk when this returns."""
        if not self.main:
            return
        state = {
            "step": step,
            "training": training,
            "log": self._log,
            "timing": self._timing,
            "seconds": self._seconds(),
            "checkpoints": {path.name: _sha256(path.read_bytes()) for path in self._checkpoints()},
            "identity": self._described,
            "commit": self._facts["commit"],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        path = self.folder / f"state-{step:08d}.state"
        with self._disk(path), atomic(path, durable=True) as temporary:
            temporary.write_bytes(MAGIC + _sha256(content).encode() + b"\n" + content)
        for old in self._states()[:-KEPT]:
            old.unlink()
        self._saved, self._last_save = step, time.monotonic()
        self._note(f"saved step {step}: {_fingerprint(training)}")

    def save_due(self) -> bool:
        """Whether the last save is old enough for the next."""
        return self.main and time.monotonic() - self._last_save >= 60 * self.about.save_minutes

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.state"))

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("[!.]*"))

    def _read(self, content: bytes) -> State:
        start = len(MAGIC) + 65
        if not content.startswith(MAGIC) or len(content) < start:
            raise UserError("not a save of this version")
        if _sha256(content[start:]).encode() != content[len(MAGIC) : start - 1]:
            raise UserError("its content is not what was written")
        stream = io.BytesIO(content[start:])
        try:
            state: State = torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # whose advice is to trust the file
            raise UserError("it holds more than tensors, numbers and text") from None
        if state["identity"] != self._described:
            raise UserError("it is of another training")
        for name, sha256 in state["checkpoints"].items():
            checkpoint = self.folder / "checkpoints" / name
            if not checkpoint.is_file() or _sha256(checkpoint.read_bytes()) != sha256:
                raise UserError(f"{checkpoint} is missing or damaged")
        return state

    # --- what one watches ----------------------------------------------------------------------

    def row(self, step: int, values: Sequence[str]) -> None:
        """A line of the log; `columns` before the first."""
        if not self.main:
            return
        now = time.monotonic()
        speed = (step - self._row[0]) / max(now - self._row[1], 1e-9)
        self._row = (step, now)
        self._add("log.csv", self._log, values)
        self._add("timing.csv", self._timing, [step, f"{self._seconds():.2f}", f"{speed:.3f}"])

    def columns(self, names: Sequence[str]) -> None:
        """Head the log, if it is not headed yet."""
        if not self._log:
            self._log = [_line(names)]

    def checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Have a checkpoint written where this training keeps them."""
        if not self.main:
            return
        path = self.folder / "checkpoints" / f"{step}.pt"
        with self._disk(path):
            write(path)
            sync(path)
            sync(path.parent)

    def tick(self, step: int) -> None:
        """Tell now and then how far the training is."""
        self.step = step
        if self.main and time.monotonic() - self._last_tick >= TICK:
            self._progress(state="running")

    def sample_due(self) -> bool:
        """Whether it is time to listen."""
        minutes = self.about.sample_minutes
        return self.main and minutes > 0 and time.monotonic() - self._last_sample >= 60 * minutes

    def sample(self, step: int, sounds: Mapping[str, np.ndarray]) -> None:
        """Write what one listens to, {name: (channels, samples)}: samples/<step>-<name>.wav."""
        folder = self.folder / "samples"
        with self._disk(folder):
            for name, sound in sounds.items():
                path = folder / f"{step:08d}-{name}.wav"
                audio.write(path, np.clip(sound, -1, 1), self.about.sample_rate, "PCM_16")
        self._last_sample = time.monotonic()

    def warn(self, message: str) -> None:
        """On the screen, and in training.log."""
        if self.main:
            print(f"warning: {self.about.title}: {message}", file=sys.stderr)
            self._note(f"warning: {message}")

    def fault(self, report: Mapping[str, object]) -> Path:
        """Write what is known of a step that cannot be taken; the file."""
        path = self.folder / "fault.json"
        if self.main:
            with self._disk(path):
                write_text(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        return path

    @property
    def stopping(self) -> bool:
        """Whether a signal asked for the end, or who started this training has died."""
        return self._signals.received is not None

    def interrupted(self) -> Interrupted:
        """What is raised once the training has been saved."""
        number = self._signals.received or signal.SIGTERM
        why = self._signals.why or signal.Signals(number).name
        return Interrupted(
            f"{self.about.title}: stopped by {why} after step {self.step} of {self._steps}, which "
            "is saved. The same command goes on from there."
            if self.main
            else "",
            128 + number,
        )

    @property
    def saved(self) -> str:
        """How much a failure costs."""
        again = "" if self._saved is None else ", and the same command goes on from there"
        return f"{self.kept}{again}."

    @property
    def kept(self) -> str:
        """What is there to go on from."""
        if self._saved is None:
            return "Nothing was saved yet"
        return f"The save of step {self._saved} is kept"

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
            "saved_step": self._saved,
            "updated": time.time(),
            "runs_in": str(Path.cwd()),
            **self._facts,
        }
        try:
            write_text(self.folder / "progress.json", json.dumps(content, indent=1) + "\n")
        except OSError:
            return  # nothing hangs on it

    def _note(self, message: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            with (self.folder / "training.log").open("a", encoding="utf-8") as file:
                file.write(f"{stamp} {message}\n")
        except OSError:
            return  # what matters is said on the screen too

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def _disk(self, path: Path | None = None) -> _Disk:
        return _Disk(self, path)


class _Disk:
    """Says in words what a disk that cannot be written to does to a training."""

    def __init__(self, training: Training, path: Path | None) -> None:
        self.training, self.path = training, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        # torch hides the disk's error behind one of its own, libsndfile replaces it.
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            error = error.__context__
        if isinstance(error, (OSError, soundfile.LibsndfileError)):
            why = error.strerror if isinstance(error, OSError) else None
            path = self.path or getattr(error, "filename", None) or self.training.folder
            raise UserError(
                f"{self.training.about.title}: {path} cannot be written: "
                f"{why or str(error).rstrip('.')}. {self.training.saved} Make room or change the "
                f"permissions; {paths.VARIABLE} puts the folder of trainings elsewhere."
            ) from error


def commit() -> str:
    """The git commit of the folder that the training runs in; `unknown` where there is none."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def _line(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _fingerprint(training: State) -> str:
    """Of all the numbers in what a training goes on from: two runs can be compared by it."""
    total = hashlib.sha256()
    for name, value in sorted(training.items()):
        tensors = value if isinstance(value, dict) else {"": value}
        for part, one in sorted(tensors.items()):
            content = one.numpy().tobytes() if isinstance(one, torch.Tensor) else repr(one).encode()
            total.update(f"{name} {part} ".encode() + content)
    return total.hexdigest()[:16]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
