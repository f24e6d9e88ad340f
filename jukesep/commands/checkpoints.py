"""Commands for checkpoints: score them, add them to a folder of models, show such a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..base import paths
from ..base.errors import UserError
from .options import AsJson, Device, Stage1, Stage2, Stem, writing


def import_(
    stage1: Stage1,
    stage2: Stage2,
    stem: Annotated[Stem, typer.Option(help="The stem that they separate.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of models; created if missing.")
    ],
    sample_rate: Annotated[
        int | None,
        typer.Option(
            min=1, help="Sample rate in Hz, if the checkpoints do not have it. Default: 44100."
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the weights, for the card.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace the model of the stem in OUTPUT.")
    ] = False,
) -> None:
    """Add a pair of checkpoints to a folder of models.

    `separate` then uses them. Checkpoints have Jukebox's format, as the authors' and ours do. Run
    it once for each stem. All models of a folder have the same architecture and sample rate.
    """
    from ..separation import models

    with writing(output):
        if (output / models.CARD).exists():
            card = models.read_card(output)
            if stem in card.stems and not overwrite:
                raise UserError(f"{output}: has a model of {stem}. Pass --overwrite to replace it.")
        elif output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UserError(f"{output}: is no folder of models, and not empty. Choose another.")
        card = models.import_checkpoints(output, stem, stage1, stage2, sample_rate, licence)
    typer.echo(models.describe(card, output))


def info(
    folder: Annotated[Path, typer.Argument(help="Folder of models.")] = paths.SEPARATOR,
    as_json: AsJson = False,
) -> None:
    """Check a folder of models, and print what is in it."""
    from ..separation import models

    card = models.read_card(folder)
    for stem in card.stems:
        models.load(folder, stem, card)
    typer.echo(card.model_dump_json(indent=1) if as_json else models.describe(card, folder))


def evaluate(
    stage1: Stage1,
    stage2: Stage2,
    stem: Annotated[str, typer.Option(help="drums, bass, other or vocals.")],
    data: Annotated[
        Path,
        typer.Option(help="Songs in MUSDB18-HQ's layout: DATA/test/<song>/*.wav or DATA/<song>/."),
    ],
    split: Annotated[
        Literal["test", "valid", "train"],
        typer.Option(help="valid: the 14 songs of DATA/train that musdb lists; train: the others."),
    ] = "test",
    song: Annotated[
        list[str] | None, typer.Option(help="Score only this song; can be repeated.")
    ] = None,
    songs: Annotated[int | None, typer.Option(min=1, help="Score only the first N songs.")] = None,
    resample: Annotated[
        bool, typer.Option(help="Resample songs of another sample rate to the model's.")
    ] = False,
    chunk: Annotated[int, typer.Option(min=1, help="Samples separated at a time.")] = 393_216,
    chunking: Annotated[
        Literal["exact", "hard"],
        typer.Option(help="hard: chunks without context, as in the authors' code."),
    ] = "exact",
    bottleneck: Annotated[
        Literal["quantise", "bypass"], typer.Option(help="bypass: decode the latents unquantised.")
    ] = "quantise",
    device: Device = "auto",
    threads: Annotated[
        int,
        typer.Option(
            min=0,
            help="CPU threads for each song. With more threads, fewer songs run in parallel, "
            "which needs less memory.",
        ),
    ] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write every score to this CSV file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUTPUT if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score a pair of checkpoints, beside the paper's scores.

    Checkpoints have Jukebox's format, as the authors' and ours do. Songs are scored whole. If a
    song cannot be scored, the command says why, scores the others, and fails at the end.
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
    if scored.failed:
        faults = "".join(f"\n  {fault}" for fault in scored.failed.values())
        raise UserError(f"{len(scored.failed)} of {len(found)} songs not scored:{faults}")


def _check_output(path: Path, overwrite: bool) -> None:
    """UserError for a file that cannot be written, before hours of work."""
    if path.suffix != ".csv":
        raise UserError(f"{path}: a CSV file will be written; give it a name that ends in .csv.")
    if path.exists() and (path.is_dir() or not overwrite):
        raise UserError(f"{path}: already exists. Pass --overwrite to replace a file.")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
