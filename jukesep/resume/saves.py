"""The saves of a training: everything that its next step depends on, in files with a checksum.

    state-00000120.state    MAGIC, the sha256 of the rest, a line feed, and the rest: a `torch.save`

A save also lists the checkpoints that were written before it, with their digests.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..base.errors import UserError
from ..base.files import atomic
from ..base.unchanged import digest, file_digest
from ..kernels.devices import out_of_memory

MAGIC = b"jukesep state 1\n"
START = len(MAGIC) + 65  # bytes before the content
KEPT = 2  # the number of saves to keep

State = dict[str, Any]
"""The state of the training loop: tensors, numbers and text."""


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
        self.step: int | None = None
        """The step of the last save that was written or loaded."""

    def newest(self, accept: Callable[[State], None]) -> Save | None:
        """Pass the newest intact save to `accept` and return it; None if there is none.

        A save is skipped, with a warning, if it is damaged, if one of its checkpoints is missing,
        or if `accept` raises an exception. Checkpoints of later steps are deleted. UserError if a
        save cannot be read, because it may still be intact.
        """
        for path in reversed(self.files()):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise UserError(
                    f"{self._title}: {path} cannot be read: {error.strerror or error}. Make it "
                    "readable, and the same command resumes from it; or delete it."
                ) from error
            try:
                found = self._read(content)
                save = Save(
                    found["step"],
                    found["training"],
                    list(found["log"]),
                    list(found["timing"]),
                    found["seconds"],
                )
                accept(save.training)
            except Exception as error:  # a damaged file can raise anything
                if out_of_memory(error):
                    raise
                self._warn(f"{path} is not an intact save ({error}). Trying the one before it.")
                path.replace(path.with_suffix(".damaged"))
                continue
            self.step = save.step
            self._delete_checkpoints_but(found["checkpoints"])
            return save
        self._delete_checkpoints_but(())
        return None

    def write(self, save: Save, commit: str) -> None:
        """Write a save atomically, and delete all but the last KEPT saves.

        The save is on the disk when this returns. It records `commit`, the git commit of the code,
        for information only.
        """
        content = {
            **vars(save),
            "checkpoints": {path.name: file_digest(path) for path in self.checkpoints()},
            "identity": self._identity,
            "commit": commit,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getvalue()
        path = self.path(save.step)
        with atomic(path, durable=True) as unfinished:
            unfinished.write_bytes(MAGIC + digest(data).encode() + b"\n" + data)
        for old in self.files()[:-KEPT]:
            old.unlink()
        self.step = save.step

    def path(self, step: int) -> Path:
        """The file for the save of a step."""
        return self._folder / f"state-{step:08d}.state"

    def files(self) -> list[Path]:
        """The files of all saves, the newest last."""
        return sorted(self._folder.glob("state-*.state"))

    def checkpoints(self) -> list[Path]:
        """The files of the checkpoints so far."""
        return sorted((self._folder / "checkpoints").glob("[!.]*"))

    def delete(self) -> None:
        """Delete all saves, damaged ones first and the newest last."""
        for path in (*self._folder.glob("state-*.damaged"), *self.files()):
            path.unlink()

    def _read(self, data: bytes) -> State:
        """Return the content of a save. UserError if it is damaged or does not belong here."""
        if not data.startswith(MAGIC) or len(data) < START:
            raise UserError("not a save of this version")
        if digest(data[START:]).encode() != data[len(MAGIC) : START - 1]:
            raise UserError("its checksum is wrong")
        try:
            content: State = torch.load(
                io.BytesIO(data[START:]), map_location="cpu", weights_only=True
            )
        except pickle.UnpicklingError:  # its message suggests to trust the file
            raise UserError("it contains more than tensors, numbers and text") from None
        if content["identity"] != self._identity:
            raise UserError("it belongs to another training")
        for name, sha256 in content["checkpoints"].items():
            checkpoint = self._folder / "checkpoints" / name
            if not checkpoint.is_file() or file_digest(checkpoint) != sha256:
                raise UserError(f"{checkpoint} is missing or damaged")
        return content

    def _delete_checkpoints_but(self, names: Collection[str]) -> None:
        for checkpoint in self.checkpoints():
            if checkpoint.name not in names:
                checkpoint.unlink()


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
