"""Options that several commands share, and the error for a folder that cannot be written to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..base.errors import REMEDIES, UserError

Stem = Literal["drums", "bass", "other", "vocals"]
Device = Annotated[
    str,
    typer.Option(
        help="Device to compute on: auto, cpu, cuda or mps. auto: cuda if available, else mps, "
        "else cpu."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Stage1 = Annotated[Path, typer.Option(help="Checkpoint of stage 1: a complete VQ-VAE.")]
Stage2 = Annotated[
    Path, typer.Option(help="Checkpoint of stage 2: encoder E2, alone or in a complete VQ-VAE.")
]


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise UserError if the block cannot write to `folder`."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "Choose another folder.")
        raise UserError(
            f"{folder}: cannot be written to: {error.strerror or error}. {remedy}"
        ) from error
