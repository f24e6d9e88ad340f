"""Commands for the project's parameters and trainings: `compose`, `status` and `clean`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ..base import paths
from ..base.errors import UserError
from .options import AsJson


def compose(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Parameters to change, as for `dvc exp run -S`: scale=tiny stem=bass"),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Write nothing; fail if params.yaml differs from what conf/ composes."
        ),
    ] = False,
) -> None:
    """Compose params.yaml from conf/, for `dvc repro`."""
    from ..base import params

    path = paths.PARAMS
    if not check:
        params.write_composed(path, overrides or [])
        return
    composed = params.compose(overrides or []).encode()
    if not path.is_file() or path.read_bytes() != composed:
        raise UserError(
            "params.yaml: differs from what conf/ composes, perhaps after `dvc exp run -S`. Run "
            "`jukesep compose` to compose it again; make changes in conf/, not in params.yaml."
        )


def status(
    show_all: Annotated[
        bool, typer.Option("--all", help="Also list finished trainings whose logs are kept.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the trainings that are running, interrupted, failed, or trained beside another one.

    Shows the step, the speed and the time left of each. To resume an interrupted training, repeat
    the command that started it.
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
        typer.echo(f"No unfinished trainings in {paths.trainings().resolve()}.")


def clean(
    older_than: Annotated[
        float, typer.Option(min=0, help="Only trainings that made no progress for this many days.")
    ] = 0.0,
    finished: Annotated[
        bool,
        typer.Option("--finished", help="Only finished trainings: delete their logs and samples."),
    ] = False,
    stale: Annotated[
        bool,
        typer.Option(
            "--stale",
            help="Only trainings that would not resume, because parameters, songs, code or "
            "libraries changed.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete the saves, logs and samples of trainings that are not running.

    An interrupted training then starts from the beginning. Results are not deleted.
    """
    import time

    from ..resume import status as trainings

    latest = time.time() - older_than * 24 * 3600
    found = [
        one
        for one in trainings.trainings()
        if one.condition != "running"
        and not one.folder.is_symlink()
        and (one.condition == "finished" or not finished)
        and (one.outdated or not stale)
        and one.progress.get("updated", 0.0) <= latest
    ]
    if not found:
        typer.echo(f"Nothing to delete in {paths.trainings().resolve()}.")
        return
    typer.echo(trainings.table(found))
    total = trainings.size(sum(one.size for one in found))
    if yes or typer.confirm(f"Delete all {len(found)} ({total})?"):
        deleted = trainings.clean(found)
        total = trainings.size(sum(one.size for one in deleted))
        typer.echo(f"Deleted {len(deleted)} ({total}).")
