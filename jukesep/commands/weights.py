"""The command `fetch`: weights that others have published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def fetch(
    name: Annotated[
        str | None, typer.Argument(help="open-unmix, hdemucs or htdemucs. Without it: list them.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the files, which keep their names; created if "
            "missing. Default: weights/NAME.",
        ),
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licence, and download.")
    ] = False,
) -> None:
    """Download published weights of other separators, once you have accepted their licence.

    Without --accept-licence, the command prints source, licence and size, and downloads nothing.
    Where the sha256 is known, it is checked.
    """
    from ..systems.published import catalogue

    if name is None:
        for known in catalogue.PUBLISHED:
            typer.echo(f"{known}\n{catalogue.describe(known)}")
        return
    for path in catalogue.fetch(name, output or Path("weights") / name, accept_licence):
        typer.echo(path)
