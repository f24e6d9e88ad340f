"""What several commands share: options, and a mistake that each of them explains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..base.errors import UserError

Stem = Literal["drums", "bass", "other", "vocals"]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Stage1 = Annotated[Path, typer.Option(help="Checkpoint of stage 1: a whole VQ-VAE.")]
Stage2 = Annotated[
    Path, typer.Option(help="Checkpoint of stage 2: the encoder E2, alone or in a whole VQ-VAE.")
]


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """UserError for a folder that cannot be written to."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to: {error.strerror or error}.") from error
