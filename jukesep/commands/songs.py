"""Commands for songs: `separate` and `listen`."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..base import paths
from ..base.errors import UserError
from .options import Device

if TYPE_CHECKING:
    from ..separation.separator import Separator


class Init(StrEnum):
    """The weights that stage 1 started from."""

    pretrained = "pretrained"
    scratch = "scratch"


def separate(
    songs: Annotated[
        list[str],
        typer.Argument(
            metavar="SONG...",
            help="Audio files, folders of audio files, or - for standard input. wav, flac, mp3, "
            "ogg, opus and aiff are read directly; other formats (m4a, mp4, ...) need ffmpeg.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the stems; created if missing.")
    ],
    models: Annotated[
        Path, typer.Option(help="Folder of models, or of training results such as runs/.")
    ] = paths.SEPARATOR,
    init: Annotated[
        Init | None,
        typer.Option(
            help="For a folder such as runs/: use the trainings that started from these weights. "
            "Default: pretrained.",
            show_default=False,
        ),
    ] = None,
    stems: Annotated[
        str | None,
        typer.Option(help="Stems to write, separated by commas: vocals,drums. Default: all."),
    ] = None,
    residual: Annotated[
        bool,
        typer.Option(
            "--residual",
            help="Also write the mixture without the chosen stems: no_vocals for --stems vocals, "
            "residual for several stems.",
        ),
    ] = False,
    refine: Annotated[
        Literal["wiener", "masks", "consistency", "none"] | None,
        typer.Option(
            help="Method to improve the stems; needs models for all four. none: the models' own "
            "output, as in the paper. Default: wiener, or none if a stem has no model.",
            show_default=False,
        ),
    ] = None,
    shifts: Annotated[
        int,
        typer.Option(
            min=1,
            help="Average over this many slightly shifted copies of the song, at most the models' "
            "hop (8 in the paper's). Takes as many times longer.",
        ),
    ] = 1,
    form: Annotated[
        Literal["wav", "wav24", "wav16", "flac", "flac16", "ogg", "mp3"],
        typer.Option("--format", help="Format of the stems. wav: 32-bit float; flac: 24 bits."),
    ] = "wav",
    clip: Annotated[
        Literal["rescale", "clamp", "none"],
        typer.Option(
            help="What to do with samples beyond full scale, which most formats cannot store. "
            "rescale: lower all stems of the song by one gain; clamp: cut the samples off; none: "
            "leave it to the format."
        ),
    ] = "rescale",
    filename: Annotated[
        str,
        typer.Option(
            help="File name of each stem, in OUTPUT. Songs of the same name keep their suffix in "
            "{track} (song.flac, song.mp3), or get a number: Song, SONG (2)."
        ),
    ] = "{track}/{stem}.{ext}",
    chunk: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples separated at a time. Changes memory and speed, and the result at most by "
            "rounding. Default: 18 s of audio.",
        ),
    ] = None,
    device: Device = "auto",
    precision: Annotated[
        Literal["fp32", "tf32", "bf16"],
        typer.Option(
            help="fp32 is the most exact. bf16 is faster on GPUs, and on CPUs with AVX-512 BF16 "
            "but without AMX. tf32 is faster on NVIDIA GPUs. A line says so where they are not "
            "faster."
        ),
    ] = "fp32",
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads, at most one for each core. 0: all cores.")
    ] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace existing stems.")] = False,
) -> None:
    """Separate songs into their stems: OUTPUT/<song>/<stem>.wav.

    The stems have the song's sample rate, channels and length. OUTPUT/separated.json records what
    they were made from: existing stems are kept if they are from the same song, models and options;
    otherwise the song fails. If a song fails, the command prints the reason, separates the other
    songs, and fails at the end.
    """
    from ..audio import encode
    from ..separation import files, names
    from ..songs.manifest import STEMS

    chosen = tuple(one.strip() for one in stems.split(",")) if stems is not None else ()
    if wrong := [one for one in chosen if one not in STEMS]:
        raise UserError(f"--stems {stems}: '{wrong[0]}' is not one of {', '.join(STEMS)}.")
    options = names.Options(
        output, filename, encode.FORMATS[form], clip, chosen, residual, chunk, overwrite
    )
    found = names.find(songs, output)

    from ..kernels import devices
    from ..separation import origins
    from ..separation import refine as refinements
    from ..separation.separator import available, digests, load_separator

    there = available(models, init and init.value)
    wanted = chosen or there
    if lacking := [one for one in wanted if one not in there]:
        raise UserError(
            f"{models}: has no model for {lacking[0]}, only for {', '.join(there)}. Change --stems "
            "or --models."
        )
    jobs = names.plan(found, wanted, options)
    refined = refinements.chosen(refine, there)
    recipe = origins.Recipe(
        digests(there if refined else wanted, models, init and init.value),
        refined or "none",
        shifts,
        precision,
        devices.resolve(device),
    )

    def load() -> Separator:
        separator = load_separator(models, init and init.value, refine, shifts, stems=wanted)
        return separator.to(devices.choose(device, threads), precision)

    # As bytes, since the name of a file may be invalid as text.
    files.separate(load, jobs, options, recipe, lambda path: typer.echo(os.fsencode(path)))


def listen(
    folder: Annotated[
        Path,
        typer.Argument(help="Stems, as `jukesep separate` writes them: FOLDER/<song>/<stem>.wav."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the page. Default: FOLDER-listen."),
    ] = None,
    mixture: Annotated[
        Path | None,
        typer.Option(
            help="Audio file of the song, if FOLDER has one song. Default: the sum of the stems."
        ),
    ] = None,
) -> None:
    """Write a web page to listen to separated songs.

    A browser opens it from disk, without a network. `dvc repro` writes such a page for the
    experiment, listen/index.html.
    """
    from ..report.listen import of_stems

    target = output or Path(f"{folder.resolve()}-listen")
    of_stems(folder, target, mixture)
    typer.echo(target / "index.html")
