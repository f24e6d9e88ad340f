"""The command line: `jukesep separate`, `evaluate`, `status`, `clean`, `compose`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from .errors import UserError, reported

app = typer.Typer(
    help="Music source separation by transfer learning with Jukebox.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Init(StrEnum):
    """What stage 1 started from."""

    pretrained = "pretrained"
    scratch = "scratch"


@app.command()
def separate(
    song: Annotated[Path, typer.Argument(help="A wav, flac, mp3, ogg or opus file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the stems; made if it is missing.")
    ],
    models: Annotated[
        Path, typer.Option(help="Folder of trainings, as `dvc repro` leaves it.")
    ] = Path("runs"),
    init: Annotated[Init, typer.Option(help="Which trainings to use.")] = Init.pretrained,
    chunk: Annotated[
        int,
        typer.Option(
            min=1, help="Samples separated at a time: memory, not the result, depends on it."
        ),
    ] = 393_216,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace stems that are there already.")] = False,
) -> None:
    """Separate SONG into its stems: OUTPUT/<song>/<stem>.wav.

    The stems have the song's sample rate, channels and length, as 32-bit float: nothing clips.
    """
    from . import audio

    header = audio.info(song)
    if not header.samples:
        raise UserError(f"{song}: holds no samples.")
    folder = output / song.stem

    from . import devices
    from .progress import bar
    from .separation import load_separator

    separator = load_separator(models, init.value).to(devices.choose(device))
    targets = {stem: folder / f"{stem}.wav" for stem in separator.stems}
    there = [str(path) for path in targets.values() if path.exists()]
    if there and not overwrite:
        raise UserError(f"{', '.join(there)}: there already. Pass --overwrite to replace.")
    seconds = header.samples / header.sample_rate
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    with _made(folder), bar(total=seconds, desc=song.name, bar_format=form) as line:
        separator.separate_file(
            song, targets, chunk, lambda done: line.update(min(done, seconds - line.n))
        )
    for path in targets.values():
        typer.echo(path)


@app.command()
def evaluate(
    stage1: Annotated[Path, typer.Option(help="Checkpoint of stage 1: a whole VQ-VAE.")],
    stage2: Annotated[
        Path, typer.Option(help="Checkpoint of stage 2: E2, alone or in a whole VQ-VAE.")
    ],
    stem: Annotated[str, typer.Option(help="drums, bass, other or vocals.")],
    data: Annotated[
        Path, typer.Option(help="Songs as MUSDB18-HQ's: DATA/test/<song>/*.wav or DATA/<song>/.")
    ],
    split: Annotated[
        Literal["test", "valid", "train"],
        typer.Option(help="Which songs. valid: musdb's 14 of DATA/train, train: the others."),
    ] = "test",
    song: Annotated[
        list[str] | None, typer.Option(help="This song alone; may be given several times.")
    ] = None,
    songs: Annotated[int | None, typer.Option(min=1, help="The first so many songs alone.")] = None,
    resample: Annotated[
        bool, typer.Option(help="Score songs of another rate, resampled to the model's.")
    ] = False,
    chunk: Annotated[int, typer.Option(min=1, help="Samples separated at a time.")] = 393_216,
    chunking: Annotated[
        Literal["exact", "hard"],
        typer.Option(help="hard: chunks without context, as the authors' code cuts them."),
    ] = "exact",
    bottleneck: Annotated[
        Literal["quantise", "bypass"], typer.Option(help="bypass: decode the latents unquantised.")
    ] = "quantise",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    threads: Annotated[
        int,
        typer.Option(
            min=0, help="CPU threads of a song; songs fill the cores. Fewer songs, less memory."
        ),
    ] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write every score to this CSV file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace OUTPUT if it is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Score a pair of checkpoints, the authors' or ours, on whole songs beside the paper's row.

    Checkpoints have Jukebox's form. Songs that cannot be scored are named, and the command fails.
    """
    from . import evaluate_files, evaluation
    from .find_songs import find_songs
    from .params import Separation

    found = find_songs(data, split, stem, song or (), songs)
    if output:
        _check_output(output, overwrite)
    scored = evaluate_files.evaluate(
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
        with _writing(output):
            evaluation.write_scores(output, scored.rows)
    from . import score_table

    if as_json:
        typer.echo(json.dumps(score_table.as_dict(scored), indent=2, ensure_ascii=False))
    else:
        typer.echo(score_table.text(scored))
    if scored.failed:
        faults = "".join(f"\n  {fault}" for fault in scored.failed.values())
        raise UserError(f"{len(scored.failed)} of {len(found)} songs not scored:{faults}")


def _check_output(path: Path, overwrite: bool) -> None:
    """Mistakes in the name of a file to write show before the work of hours."""
    if path.suffix != ".csv":
        raise UserError(f"{path}: a CSV file will be written; give it a name that ends in .csv.")
    if path.exists() and (path.is_dir() or not overwrite):
        raise UserError(f"{path}: there already. Pass --overwrite to replace a file.")
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder to write to, made first: a mistake shows before the work. Not left behind empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            yield
    finally:
        with suppress(OSError):
            for path in new:
                path.rmdir()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A folder that cannot be written to is a user's mistake."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to: {error.strerror or error}.") from error


@app.command()
def compose(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="As for `dvc exp run -S`: scale=tiny stem=bass")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if params.yaml is not conf/'s.")
    ] = False,
) -> None:
    """Write params.yaml from conf/, for `dvc repro`."""
    from . import params

    path = Path("params.yaml")
    if not check:
        params.write_composed(path, overrides or [])
        return
    if not path.is_file() or path.read_text(encoding="utf-8") != params.compose(overrides or []):
        raise UserError(
            "params.yaml is not what conf/ composes to. `jukesep compose` writes it anew; a change "
            "made by hand in params.yaml belongs into conf/."
        )


@app.command()
def status(
    show_all: Annotated[
        bool, typer.Option("--all", help="Finished trainings too, whose logs are still there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """List the trainings in progress, and the interrupted ones: step, rate, time left.

    An interrupted training goes on when the command that started it is given again.
    """
    from . import status as trainings

    found = trainings.trainings()
    if not show_all:
        found = [one for one in found if one.condition != "finished"]
    if as_json:
        typer.echo(json.dumps([one.as_dict() for one in found], indent=2, ensure_ascii=False))
    elif found:
        typer.echo(trainings.table(found))
    else:
        typer.echo(f"No training in progress, and none interrupted, in {trainings.root()}.")


@app.command()
def clean(
    older_than: Annotated[
        float, typer.Option(min=0, help="Days since the last news of a training.")
    ] = 0.0,
    finished: Annotated[
        bool, typer.Option("--finished", help="Only the logs and samples of finished trainings.")
    ] = False,
    stale: Annotated[
        bool,
        typer.Option("--stale", help="Only those that would not go on as the project is now."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete what is kept of trainings that are not running: saves, logs, samples.

    An interrupted training then starts from its beginning. Results are elsewhere, and stay.
    """
    import time

    from . import status as trainings

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
        typer.echo(f"Nothing to delete in {trainings.root()}.")
        return
    typer.echo(trainings.table(found))
    total = trainings.size(sum(one.size for one in found))
    if yes or typer.confirm(f"Delete these {len(found)}, {total}?"):
        deleted = trainings.clean(found)
        total = trainings.size(sum(one.size for one in deleted))
        typer.echo(f"Deleted {len(deleted)}, {total}.")


def main() -> None:
    """Entry point: a user's mistake is one message, not a traceback."""
    with reported():
        app()
