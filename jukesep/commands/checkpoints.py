"""Commands for checkpoints and models: `import`, `info` and `evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..base import paths
from ..base.errors import UserError
from ..base.files import temporary
from .options import AsJson, Device, Stage1, Stage2, Stem, writing


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


def evaluate(
    stage1: Stage1,
    stage2: Stage2,
    stem: Annotated[
        str,
        typer.Option(help="The stem that the checkpoints separate: drums, bass, other or vocals."),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder of songs in MUSDB18-HQ's layout: DATA/test/<song>/*.wav or "
            "DATA/<song>/*.wav. The files may also be flac."
        ),
    ],
    split: Annotated[
        Literal["test", "valid", "train"],
        typer.Option(
            help="Songs to score. valid: the 14 validation songs that musdb lists in DATA/train; "
            "train: the other songs there."
        ),
    ] = "test",
    song: Annotated[
        list[str] | None, typer.Option(help="Score only this song. Can be repeated.")
    ] = None,
    songs: Annotated[int | None, typer.Option(min=1, help="Score only the first N songs.")] = None,
    resample: Annotated[
        bool, typer.Option(help="Resample songs whose sample rate differs from the model's.")
    ] = False,
    chunk: Annotated[
        int, typer.Option(min=1, help="Samples separated at a time. Fewer need less memory.")
    ] = 393_216,
    chunking: Annotated[
        Literal["exact", "hard", "published"],
        typer.Option(
            help="exact: chunks with context, with the same result as the whole song at once; "
            "hard: chunks without context; published: chunks without context, at the positions "
            "of the authors' code."
        ),
    ] = "exact",
    bottleneck: Annotated[
        Literal["quantise", "bypass"],
        typer.Option(help="bypass: decode the latents without quantising them."),
    ] = "quantise",
    device: Device = "auto",
    threads: Annotated[
        int,
        typer.Option(
            min=0,
            help="CPU threads for each song. With more threads, fewer songs run in parallel, "
            "which needs less memory. 0: choose by the number of songs and cores.",
        ),
    ] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write all scores to this CSV file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUTPUT if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score a pair of checkpoints and compare the scores with the paper's.

    Checkpoints must have Jukebox's format, as those of this project and of the paper's authors do.
    Each song is scored over its full length. A song in which the stem is silent has no SDR: it is
    named, and left out of the averages. If a song cannot be scored, the command prints the reason,
    scores the other songs, and fails at the end.
    """
    from ..base.params import Separation
    from ..scoring import evaluation, pair
    from ..songs.find import find_songs

    found = find_songs(data, split, stem, song or (), songs)
    if output:
        _check_output(output, overwrite)
    scored = pair.evaluate(
        found,
        stage1,
        stage2,
        stem=stem,
        data=data,
        split=split,
        resample=resample,
        separation=Separation(chunk=chunk, chunking=chunking, bottleneck=bottleneck),
        device=device,
        threads=threads,
    )
    if output:
        with writing(output):
            evaluation.write_scores(output, scored.rows)
    from ..scoring import table

    if as_json:
        typer.echo(json.dumps(table.as_dict(scored), indent=2, ensure_ascii=False))
    else:
        typer.echo(table.text(scored))
    if len(scored.silent) == len(found):
        raise UserError(f"{data}: {stem} is silent in all songs, so there is nothing to score.")
    if scored.failed:
        faults = "".join(f"\n  {fault}" for fault in scored.failed.values())
        raise UserError(f"{len(scored.failed)} of {len(found)} songs could not be scored:{faults}")


def _check_output(path: Path, overwrite: bool) -> None:
    """Raise UserError if `path` cannot be written, before hours of work."""
    if path.suffix != ".csv":
        raise UserError(f"{path}: the scores are written as CSV; choose a name that ends in .csv.")
    if path.exists() and (path.is_dir() or not overwrite):
        raise UserError(
            f"{path}: already exists. Pass --overwrite to replace it, or choose another --output."
        )
    with writing(path), temporary(path):
        pass
