"""Commands for checkpoints and models: `import` and `info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..base import paths
from ..base.errors import UserError
from .options import AsJson, Stage1, Stage2, Stem, writing


def import_(
    stage1: Stage1,
    stage2: Stage2,
    stem: Annotated[Stem, typer.Option(help="The stem that the checkpoints separate.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of models; created if missing.")
    ],
    sample_rate: Annotated[
        int | None,
        typer.Option(
            min=1, help="Sample rate in Hz, if the checkpoints do not state it. Default: 44100."
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the weights, shown by `jukesep info`.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace the model for this stem in OUTPUT.")
    ] = False,
) -> None:
    """Add a pair of checkpoints to a folder of models.

    `jukesep separate` can then use the folder. Checkpoints must have Jukebox's format, as those of
    this project and of the paper's authors do. Run the command once for each stem. All models in a
    folder must have the same architecture and sample rate.
    """
    from ..separation import models

    with writing(output):
        if (output / models.CARD).exists():
            card = models.read_card(output)
            if stem in card.stems and not overwrite:
                raise UserError(
                    f"{output}: already has a model for {stem}. Pass --overwrite to replace it."
                )
        elif output.exists() and not (output.is_dir() and models.started(output)):
            raise UserError(
                f"{output}: already exists and is not a folder of models. Choose another --output."
            )
        card = models.import_checkpoints(output, stem, stage1, stage2, sample_rate, licence)
    typer.echo(models.describe(card, output))


def info(
    folder: Annotated[Path, typer.Argument(help="Folder of models.")] = paths.SEPARATOR,
    as_json: AsJson = False,
) -> None:
    """Check a folder of models and print what it contains."""
    from ..separation import models

    card = models.read_card(folder)
    for stem in card.stems:
        models.load(folder, stem, card)
    typer.echo(card.model_dump_json(indent=1) if as_json else models.describe(card, folder))
