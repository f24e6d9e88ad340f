"""The saves of a training: everything that its next step depends on, in files with a checksum.

    state-00000120.state    MAGIC, the sha256 of the rest, a line feed, and the rest: a `torch.save`

A save also lists the checkpoints that were written before it, with their digests. Only the content
of its file makes a save damaged; any other error leaves all saves as they are.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..base.errors import UserError
from ..base.files import atomic
from ..base.unchanged import digest, file_digest
from .layout import saves, step_of

MAGIC = b"jukesep state 1\n"
START = len(MAGIC) + 65  # bytes before the content
KEPT = 2  # the number of saves to keep

State = dict[str, Any]
"""The state of the training loop: tensors, numbers and text."""


class _Damaged(Exception):
    """A file is not an intact save; says why."""


@dataclass(frozen=True)
class Save:
    """The state of a training after a step, and its logs so far."""

    step: int
    training: State
    log: list[str]
    timing: list[str]
    seconds: float
    """The time that the training took so far."""


class Saves:
    """The saves in the folder of a training, and its checkpoints.

    `title` names the training in messages, `identity` describes what determines its result, and
    `warn` prints a warning.
    """

    def __init__(
        self, folder: Path, title: str, identity: str, warn: Callable[[str], object]
    ) -> None:
        self._folder = folder
        self._title = title
        self._identity = identity
        self._warn = warn
        self._checkpoints: dict[str, str] = {}
        """Name and sha256 of each checkpoint that was written so far."""
        self.step: int | None = None
        """The step of the last save that was written, loaded or tried."""

    def newest(self, accept: Callable[[State], None]) -> Save | None:
        """Pass the newest intact save to `accept` and return it; None if there is none.

        A save is skipped, with a warning, if it is damaged: it is then renamed to *.damaged. It is
        also skipped, but kept, if one of its checkpoints is missing or damaged: the training writes
        that checkpoint again. An exception of `accept` is raised, and no save changes.

        UserError if a save cannot be read, or if it is intact but does not fit this training.
        """
        for path in reversed(saves(self._folder)):
            self.step = step_of(path)
            with self._readable(path):
                data = path.read_bytes()
            try:
                found = _content(data)
            except _Damaged as why:
                self._warn(f"{path} is not an intact save ({why}). Trying the one before it.")
                path.replace(path.with_suffix(".damaged"))
                continue
            if lost := self._lost(found["checkpoints"]):
                self._warn(
                    f"{path} needs {lost}, which is missing or damaged. Trying the save before it."
                )
                continue
            try:
                if found["identity"] != self._identity:
                    raise UserError("it belongs to another training")
                accept(found["training"])
            except UserError as error:
                raise UserError(
                    f"{self._title}: {path} is intact, but does not fit this training ({error}). "
                    "Move it to another folder, and run the same command again."
                ) from error
            self._checkpoints = dict(found["checkpoints"])
            return Save(**{field.name: found[field.name] for field in fields(Save)})
        self.step = None
        return None

    def write(self, save: Save, commit: str) -> None:
        """Write a save atomically, and delete all but the last KEPT saves up to it.

        The save is on the disk when this returns. It records `commit`, the git commit of the code,
        for information only.
        """
        content = {
            **vars(save),
            "checkpoints": self._checkpoints,
            "identity": self._identity,
            "commit": commit,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getvalue()
        path = self.path(save.step)
        with atomic(path, durable=True) as unfinished:
            unfinished.write_bytes(MAGIC + digest(data).encode() + b"\n" + data)
        # Later ones, whose checkpoints are written again, stay until the training passes them.
        passed = [path for path in saves(self._folder) if step_of(path) <= save.step]
        for old in passed[:-KEPT]:
            old.unlink()
        self.step = save.step

    def path(self, step: int) -> Path:
        """The file for the save of a step."""
        return self._folder / f"state-{step:08d}.state"

    def add_checkpoint(self, path: Path) -> None:
        """Record a checkpoint that was written: later saves need it."""
        self._checkpoints[path.name] = file_digest(path)

    def checkpoints(self) -> list[Path]:
        """The files of the checkpoints so far. UserError if one is missing or damaged."""
        if lost := self._lost(self._checkpoints):
            raise UserError(
                f"{self._title}: {lost} is missing, or has changed since it was written. The same "
                "command resumes from the last save before it."
            )
        return [self._checkpoint(name) for name in sorted(self._checkpoints)]

    def _checkpoint(self, name: str) -> Path:
        return self._folder / "checkpoints" / name

    def _lost(self, checkpoints: Mapping[str, str]) -> Path | None:
        """The first of these checkpoints, {name: sha256}, that is missing or damaged."""
        for name, sha256 in checkpoints.items():
            path = self._checkpoint(name)
            with self._readable(path):
                if not path.exists() or file_digest(path) != sha256:
                    return path
        return None

    @contextmanager
    def _readable(self, path: Path) -> Iterator[None]:
        """Raise UserError if a file cannot be read, because it may still be intact."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._title}: {path} cannot be read: {error.strerror or error}. Make it "
                "readable, and the same command resumes from it; or delete it."
            ) from error


def _content(data: bytes) -> State:
    """The content of a save. Raises _Damaged for other data than `Saves.write` wrote."""
    if not data.startswith(MAGIC) or len(data) < START:
        raise _Damaged("not a save of this version")
    if digest(data[START:]).encode() != data[len(MAGIC) : START - 1]:
        raise _Damaged("its checksum is wrong")
    if not zipfile.is_zipfile(io.BytesIO(data[START:])):
        raise _Damaged("not a file of PyTorch")
    try:
        content: State = torch.load(io.BytesIO(data[START:]), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its message suggests to trust the file
        raise _Damaged("it contains more than tensors, numbers and text") from None
    needed = {field.name for field in fields(Save)} | {"checkpoints", "identity"}
    if not isinstance(content, dict) or not needed <= content.keys():
        raise _Damaged("it lacks a part")
    return content


def fingerprint(training: State) -> str:
    """Return a digest of the state that a training resumes from, to compare runs by."""

    def contents() -> Iterator[bytes]:
        for name, value in sorted(training.items()):
            tensors = value if isinstance(value, dict) else {"": value}
            for part, one in sorted(tensors.items()):
                is_tensor = isinstance(one, torch.Tensor)
                content = one.numpy().tobytes() if is_tensor else repr(one).encode()
                yield f"{name} {part} ".encode() + content

    return digest(contents())[:16]
