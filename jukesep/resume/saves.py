"""The saves of a training: all that its next step depends on, in files that prove they are whole.

    state-00000120.state    MAGIC, the sha256 of what follows and a line feed, then a `torch.save`

A save also names the checkpoints that were written before it, with their digests.
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
KEPT = 2  # saves

State = dict[str, Any]
"""What the training loop hands over and takes back: tensors, numbers, texts."""


@dataclass(frozen=True)
class Save:
    """What is known of a training after a step."""

    step: int
    training: State
    log: list[str]
    timing: list[str]
    seconds: float
    """That the training took so far."""


class Saves:
    """The saves in the folder of a training, and its checkpoints.

    `title` is what messages call the training, `identity` describes what determines its result,
    `warn` shows a message.
    """

    def __init__(
        self, folder: Path, title: str, identity: str, warn: Callable[[str], object]
    ) -> None:
        self._folder = folder
        self._title = title
        self._identity = identity
        self._warn = warn
        self.step: int | None = None
        """Of the last save that was written or loaded."""

    def newest(self, accept: Callable[[State], None]) -> Save | None:
        """Hand the newest save that is whole to `accept`, and return it; None if there is none.

        Saves are passed over, with a message, that are damaged, that `accept` refuses (by any
        exception), or whose checkpoints are missing. Checkpoints of later steps are deleted.
        UserError for a save that cannot be read: it may be whole all the same.
        """
        for path in reversed(self.files()):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise UserError(
                    f"{self._title}: {path} cannot be read: {error.strerror or error}. Repair "
                    "that, and the same command resumes from it; or delete it."
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
            except Exception as error:  # A damaged file can fail anywhere in what reads it.
                if out_of_memory(error):
                    raise
                self._warn(f"{path} is no whole save ({error}); looking for the one before it.")
                path.replace(path.with_suffix(".damaged"))
                continue
            self.step = save.step
            self._delete_checkpoints_but(found["checkpoints"])
            return save
        self._delete_checkpoints_but(())
        return None

    def write(self, save: Save, commit: str) -> None:
        """Write a save, atomically; it is on the disk when this returns. Only KEPT saves stay.

        `commit` is the code's, for people who look for the origin of a save.
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
        """The file of the save of a step."""
        return self._folder / f"state-{step:08d}.state"

    def files(self) -> list[Path]:
        """The files of the saves, the newest last."""
        return sorted(self._folder.glob("state-*.state"))

    def checkpoints(self) -> list[Path]:
        """The checkpoints of the training so far."""
        return sorted((self._folder / "checkpoints").glob("[!.]*"))

    def delete(self) -> None:
        """Delete all saves, the newest last."""
        for path in (*self._folder.glob("state-*.damaged"), *self.files()):
            path.unlink()

    def _read(self, data: bytes) -> State:
        """The content of a save's file, checked. UserError says what is wrong with it."""
        if not data.startswith(MAGIC) or len(data) < START:
            raise UserError("not a save of this version")
        if digest(data[START:]).encode() != data[len(MAGIC) : START - 1]:
            raise UserError("its content is not what was written")
        try:
            content: State = torch.load(
                io.BytesIO(data[START:]), map_location="cpu", weights_only=True
            )
        except pickle.UnpicklingError:  # whose advice is to trust the file
            raise UserError("it holds more than tensors, numbers and text") from None
        if content["identity"] != self._identity:
            raise UserError("it is of another training")
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
    """A digest of all numbers that a training resumes from: it shows whether two runs are equal."""

    def contents() -> Iterator[bytes]:
        for name, value in sorted(training.items()):
            tensors = value if isinstance(value, dict) else {"": value}
            for part, one in sorted(tensors.items()):
                is_tensor = isinstance(one, torch.Tensor)
                content = one.numpy().tobytes() if is_tensor else repr(one).encode()
                yield f"{name} {part} ".encode() + content

    return digest(contents())[:16]
