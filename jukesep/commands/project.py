"""Commands for the project: its parameters and its trainings."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ..base import paths
from ..base.errors import UserError
from .options import AsJson


def compose(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="As for `dvc exp run -S`: scale=tiny stem=bass")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if params.yaml is not conf/'s.")
    ] = False,
) -> None:
    """Write params.yaml from conf/, for `dvc repro`."""
    from ..base import params

    path = paths.PARAMS
    if not check:
        params.write_composed(path, overrides or [])
        return
    if not path.is_file() or path.read_text(encoding="utf-8") != params.compose(overrides or []):
        raise UserError(
            "params.yaml is not what conf/ composes to. `jukesep compose` writes it; make "
            "changes in conf/, not in params.yaml."
        )


def status(
    show_all: Annotated[
        bool, typer.Option("--all", help="Also finished trainings whose logs were kept.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the trainings in progress and the interrupted ones.

    With the step, the rate and the time left. To resume an interrupted training, run the command
    that started it again.
    """
    from ..resume import status as trainings

    found = trainings.trainings()
    if not show_all:
        found = [one for one in found if one.condition != "finished"]
    if as_json:
        typer.echo(json.dumps([one.as_dict() for one in found], indent=2, ensure_ascii=False))
    elif found:
        typer.echo(trainings.table(found))
    else:
        typer.echo(f"No training in progress, and none interrupted, in {paths.trainings()}.")


def clean(
    older_than: Annotated[
        float, typer.Option(min=0, help="Only trainings without progress for this many days.")
    ] = 0.0,
    finished: Annotated[
        bool, typer.Option("--finished", help="Only finished trainings: their logs and samples.")
    ] = False,
    stale: Annotated[
        bool,
        typer.Option("--stale", help="Only those that the project as it is now would not resume."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete what is kept of trainings that are not running.

    That is saves, logs and samples. An interrupted training then starts from the beginning. Results
    are not deleted.
    """
    import time

    from ..resume import status as trainings

    latest = time.time() - older_than * 24 * 3600
    found = [
        one
        for one in trainings.trainings()
        if one.condition != "running"
        and (one.condition == "finished" or not finished)
        and (one.outdated or not stale)
        and one.progress.get("updated", 0.0) <= latest
    ]
    if not found:
        typer.echo(f"Nothing to delete in {paths.trainings()}.")
        return
    typer.echo(trainings.table(found))
    total = trainings.size(sum(one.size for one in found))
    if yes or typer.confirm(f"Delete these {len(found)}, {total}?"):
        deleted = trainings.clean(found)
        total = trainings.size(sum(one.size for one in deleted))
        typer.echo(f"Deleted {len(deleted)}, {total}.")
