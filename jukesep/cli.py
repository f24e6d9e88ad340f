"""The command line, `jukesep ...`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .base import paths
from .base.errors import UserError, reported

if TYPE_CHECKING:
    from .separation.separator import Separator

app = typer.Typer(
    help="Music source separation by transfer learning with Jukebox.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


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


class Init(StrEnum):
    """What stage 1 started from."""

    pretrained = "pretrained"
    scratch = "scratch"


@app.command()
def separate(
    songs: Annotated[
        list[str],
        typer.Argument(
            metavar="SONG...",
            help="Audio files, folders of them, or - for standard input. wav, flac, mp3, ogg, opus "
            "and aiff are read as they are, all else (m4a, mp4, ...) through ffmpeg where it is.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the stems; made if it is missing.")
    ],
    models: Annotated[
        Path, typer.Option(help="Folder of models, or of trainings as runs/ is.")
    ] = paths.SEPARATOR,
    init: Annotated[
        Init | None,
        typer.Option(
            help="Which trainings to use, of a folder of trainings. [default: pretrained]",
            show_default=False,
        ),
    ] = None,
    stems: Annotated[
        str | None, typer.Option(help="Those to write: vocals, or vocals,drums. All by default.")
    ] = None,
    residual: Annotated[
        bool,
        typer.Option(
            "--residual",
            help="Write what the mixture is without these stems too: no_vocals, or residual.",
        ),
    ] = False,
    refine: Annotated[
        Literal["wiener", "masks", "consistency", "none"] | None,
        typer.Option(
            help="How the mixture is shared out among the stems afterwards; none: as in the paper. "
            "Needs models for all four stems. [default: wiener, with fewer models none]",
            show_default=False,
        ),
    ] = None,
    shifts: Annotated[
        int,
        typer.Option(
            min=1, max=32, help="The mean of so many runs, the song shifted: as many times as slow."
        ),
    ] = 1,
    form: Annotated[
        Literal["wav", "wav24", "wav16", "flac", "flac16", "ogg", "mp3"],
        typer.Option("--format", help="wav: 32-bit float; flac: 24 bit."),
    ] = "wav",
    clip: Annotated[
        Literal["rescale", "clamp", "none"],
        typer.Option(
            help="What is beyond full scale, where the format has none: all stems of the song are "
            "lowered, or it is cut off, or left to the format."
        ),
    ] = "rescale",
    filename: Annotated[
        str, typer.Option(help="Of each stem, below OUTPUT.")
    ] = "{track}/{stem}.{ext}",
    chunk: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples separated at a time: memory and speed, not the result, depend on it. "
            "[default: 18 s of audio]",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[
        Literal["fp32", "tf32", "bf16"],
        typer.Option(help="bf16 is faster, also on a CPU that multiplies it; tf32 on NVIDIA GPUs."),
    ] = "fp32",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all cores.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace stems that are there already.")] = False,
) -> None:
    """Separate songs into their stems: OUTPUT/<song>/<stem>.wav.

    The stems have the song's sample rate, channels and length. Stems that are there already are
    kept. A song that cannot be separated is named, the others go on, and the command fails in the
    end.
    """
    from .audio import encode
    from .separation import files
    from .songs.manifest import STEMS

    chosen = tuple(one.strip() for one in stems.split(",")) if stems is not None else ()
    if wrong := [one for one in chosen if one not in STEMS]:
        raise UserError(f"--stems {stems}: '{wrong[0]}' is none of {', '.join(STEMS)}.")
    options = files.Options(
        output, filename, encode.FORMATS[form], clip, chosen, residual, chunk, overwrite
    )
    found = files.find(songs, output)

    from .separation.separator import available, load_separator

    there = available(models, init and init.value)
    wanted = chosen or there
    if lacking := [one for one in wanted if one not in there]:
        raise UserError(f"{models}: has no model for {lacking[0]}, only for {', '.join(there)}.")
    jobs = files.plan(found, wanted, options)

    def load() -> Separator:
        from .kernels import devices
        from .separation.refine import choose

        separator = load_separator(models, init and init.value)
        choose(refine, separator.stems, separator.sample_rate)
        separator.refinement, separator.shifts = refine, shifts
        return separator.to(devices.choose(device, threads), precision)

    # As bytes: a file's name need not be text.
    files.separate(load, jobs, options, lambda path: typer.echo(os.fsencode(path)))


@app.command("import")
def import_(
    stage1: Annotated[Path, typer.Option(help="Checkpoint of stage 1: a whole VQ-VAE.")],
    stage2: Annotated[
        Path, typer.Option(help="Checkpoint of stage 2: E2, alone or in a whole VQ-VAE.")
    ],
    stem: Annotated[
        Literal["drums", "bass", "other", "vocals"], typer.Option(help="What they separate.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of models; made if it is missing.")
    ],
    sample_rate: Annotated[
        int | None,
        typer.Option(min=1, help="Hz, of checkpoints that do not say. [default: 44100]"),
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights, for the card.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the stem's model in OUTPUT.")] = False,
) -> None:
    """Add a pair of checkpoints, the authors' or ours, to a folder of models for `separate`.

    Checkpoints have Jukebox's form. Once for each stem; models of one folder are alike.
    """
    from .separation import models

    with _writing(output):
        if (output / models.CARD).exists():
            card = models.read_card(output)
            if stem in card.stems and not overwrite:
                raise UserError(f"{output}: has a model of {stem}. Pass --overwrite to replace it.")
        elif output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UserError(f"{output}: is no folder of models, and not empty. Choose another.")
        card = models.import_checkpoints(output, stem, stage1, stage2, sample_rate, licence)
    typer.echo(models.describe(card, output))


@app.command()
def info(
    folder: Annotated[Path, typer.Argument(help="Folder of models.")] = paths.SEPARATOR,
    as_json: Annotated[bool, typer.Option("--json", help="The card as it is.")] = False,
) -> None:
    """Check a folder of models, and print what is in it."""
    from .separation import models

    card = models.read_card(folder)
    for stem in card.stems:
        models.load(folder, stem, card)
    typer.echo(card.model_dump_json(indent=1) if as_json else models.describe(card, folder))


@app.command()
def listen(
    folder: Annotated[
        Path, typer.Argument(help="Stems, as `separate` leaves them: FOLDER/<song>/<stem>.wav.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the page. [default: FOLDER-listen]"),
    ] = None,
    mixture: Annotated[
        Path | None, typer.Option(help="The song itself, if FOLDER holds one. [default: the sum]")
    ] = None,
) -> None:
    """Make a page to listen to separated songs: it opens from disk, without a network.

    The experiment's own page is listen/index.html, which `dvc repro` makes.
    """
    from .report.listen import of_stems

    target = output or Path(f"{folder.resolve()}-listen")
    of_stems(folder, target, mixture)
    typer.echo(target / "index.html")


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
    from .base.params import Separation
    from .scoring import evaluation, pair
    from .songs.find import find_songs

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
        with _writing(output):
            evaluation.write_scores(output, scored.rows)
    from .scoring import table

    if as_json:
        typer.echo(json.dumps(table.as_dict(scored), indent=2, ensure_ascii=False))
    else:
        typer.echo(table.text(scored))
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
    from .base import params

    path = paths.PARAMS
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
    from .resume import status as trainings

    found = trainings.trainings()
    if not show_all:
        found = [one for one in found if one.condition != "finished"]
    if as_json:
        typer.echo(json.dumps([one.as_dict() for one in found], indent=2, ensure_ascii=False))
    elif found:
        typer.echo(trainings.table(found))
    else:
        typer.echo(f"No training in progress, and none interrupted, in {paths.trainings()}.")


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

    from .resume import status as trainings

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


def main() -> None:
    """Entry point: a user's mistake is one message, not a traceback."""
    with reported():
        app()


if __name__ == "__main__":
    main()
