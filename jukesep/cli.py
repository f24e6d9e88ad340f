"""The command line, `jukesep ...`."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from .base.errors import reported
from .commands import checkpoints, project, scores, songs, weights

app = typer.Typer(
    help="Music source separation by transfer learning with Jukebox.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(songs.separate)
app.command()(songs.listen)
app.command("import")(checkpoints.import_)
app.command()(checkpoints.info)
app.command()(weights.fetch)
app.command()(scores.score)
app.command()(scores.evaluate)
app.command()(project.compose)
app.command()(project.status)
app.command()(project.clean)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"jukesep {version('jukesep')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Music source separation by transfer learning with Jukebox."""


def main() -> None:
    """Entry point. A user's mistake prints one message and no traceback."""
    with reported():
        try:
            app()
        except SystemExit as end:
            if end.code == 128 + signal.SIGINT:  # typer says nothing of it
                raise KeyboardInterrupt from None
            raise


if __name__ == "__main__":
    main()
