"""Commands for scores: `score` and `evaluate`."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..base import paths
from ..base.errors import UserError
from ..base.files import temporary, write_text
from .options import AsJson, Device, Stage1, Stage2, writing

if TYPE_CHECKING:
    from ..scoring.score import Fitted, Scored, Source
    from ..songs.find import Found

Data = Annotated[
    Path,
    typer.Option(
        help="Folder of songs in MUSDB18-HQ's layout: DATA/test/<song>/*.wav or "
        "DATA/<song>/*.wav, also flac; or songs that `prepare` made, such as data/prepared."
    ),
]
Split = Annotated[
    Literal["test", "valid", "train"],
    typer.Option(
        help="Songs to score. valid: the 14 validation songs that musdb lists in DATA/train; "
        "train: the other songs there."
    ),
]
Names = Annotated[list[str] | None, typer.Option(help="Score only this song. Can be repeated.")]
First = Annotated[int | None, typer.Option(min=1, help="Score only the first N songs.")]


def score(
    data: Data,
    stems: Annotated[
        Path | None,
        typer.Argument(
            metavar="STEMS",
            help="Folder of separated stems: STEMS/<song>/<stem>.wav (or .flac), as Demucs, "
            "Open-Unmix, MSST and `jukesep separate` write them. A song's folder has the name of "
            "the song in DATA.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            help="Separate the songs here instead, with this system: jukesep, static-equaliser, "
            "open-unmix, hdemucs, htdemucs, or a function of your own as package.module:function, "
            "which takes (mixture, sample rate) and returns {stem: audio}, all (channels, samples)."
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="File or folder of the system's weights. Default for jukesep: "
            f"{paths.SEPARATOR.as_posix()}; for others' systems: where `jukesep fetch` puts them.",
            show_default=False,
        ),
    ] = None,
    refine: Annotated[
        Literal["wiener", "masks", "consistency", "none"],
        typer.Option(help="Refine the stems of the system jukesep. none: as in the paper."),
    ] = "none",
    mono: Annotated[
        bool,
        typer.Option(
            "--mono",
            help="For --system: separate the mono mixture too, and take sdr of it, as the paper "
            "does. Default: sdr of the mean of the separated channels. Takes half as long again.",
        ),
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            "--stems",
            help="Score only these, separated by commas: vocals,drums. Default: all that there "
            "are.",
            show_default=False,
        ),
    ] = None,
    residual: Annotated[
        str | None,
        typer.Option(
            help="Name of the files in STEMS that hold the mixture without the stems beside them. "
            "no_vocals (or another stem), accompaniment, instrumental and residual are known.",
            show_default=False,
        ),
    ] = None,
    museval: Annotated[
        bool,
        typer.Option(
            "--museval",
            help="Also SIR, SAR and ISR by museval: minutes for each song, and more memory.",
        ),
    ] = False,
    split: Split = "test",
    song: Names = None,
    songs: First = None,
    resample: Annotated[
        bool,
        typer.Option(help="Resample songs to the sample rate of the estimates, where it differs."),
    ] = False,
    device: Device = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the scores. Default: STEMS-scores, or SYSTEM-scores.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Score all songs again, also those that have not changed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score separated stems, or any system, on whole songs.

    Prints a table for each metric, with the baselines, the oracle and the published rows beside
    it. OUTPUT has the tables (scores.md), every score (scores.csv) and a file for each song in
    museval's form (test/<song>.json). A second run scores only songs that have changed. If a song
    cannot be scored, the command prints the reason, scores the other songs, and fails at the end.
    """
    chosen = tuple(one.strip().lower() for one in only.split(",")) if only is not None else ()
    if (stems is None) == (system is None):
        raise UserError("give either STEMS, a folder of separated stems, or --system.")
    if system is not None and residual is not None:
        raise UserError("--residual: only for STEMS.")
    for option, given in (("--weights", weights), ("--mono", mono), ("--refine", refine != "none")):
        if given and stems is not None:
            raise UserError(f"{option}: only for --system. STEMS have been separated already.")
    from ..base.progress import note
    from ..scoring import batch, comparison, evaluation, store
    from ..scoring import score as scoring
    from ..songs.find import choose, find_songs
    from ..systems import equaliser

    songs_chosen = choose(data, split, song or (), songs)
    if stems is not None:
        source, needed, about = _folder(
            stems, songs_chosen, split, residual and residual.lower(), chosen
        )
        target = output or Path(f"{stems if stems.name else stems.resolve()}-scores")
    else:
        source, needed, about = _system(str(system), weights, device, refine, data, chosen, mono)
        target = output or Path(f"{str(system).replace(':', '.')}-scores")
    found = find_songs(data, split, needed, song or (), songs)
    if isinstance(source, scoring.Separated) and (rate := source.system.sample_rate):
        batch.check_rates(found, rate, resample, source.name)
    beside = _equaliser(data) if source.name != equaliser.NAME else None
    options = scoring.Options(museval, resample, tuple(needed), overwrite)
    with writing(target):
        scored = scoring.score(found, source, target, options, beside)
    if scored.kept:
        note(
            f"{scored.kept} of {batch.counted(len(found))} have not changed, and keep their scores"
        )
    if scored.foreign:
        note(
            f"{target}: also has scores of {batch.counted(len(scored.foreign))} from another run, "
            f"such as {scored.foreign[0]}. Programs that read the whole folder will mix them."
        )
    if scored.rows:
        compared = comparison.Comparison(
            source.name,
            about | _about(data, split, found, scored, source),
            {one.song.name: one.song.group for one in found},
            split,
            scored.residuals,
            _sdr(found, mono),
            scored.rows,
            scored.failed,
        )
        with writing(target):
            evaluation.write_scores(target / store.CSV, scored.rows)
            write_text(target / store.TABLES, comparison.markdown(compared))
        if as_json:
            typer.echo(json.dumps(comparison.as_dict(compared), indent=2, ensure_ascii=False))
        else:
            typer.echo(comparison.text(compared))
            typer.echo(f"\n{target / store.TABLES}\n{target / store.CSV}")
    if scored.failed:
        raise batch.failure(scored.failed, len(found))


def _folder(
    stems: Path,
    songs: Collection[str],
    split: str,
    residual: str | None,
    chosen: Collection[str],
) -> tuple[Source, list[str], dict[str, str]]:
    """A folder of stems: the source, the stems that songs need, what a reader must know."""
    from ..base.progress import note
    from ..scoring import estimates
    from ..scoring.score import Files
    from ..songs.headers import held
    from ..systems.published.catalogue import refuse

    folder = estimates.open_folder(stems, split, songs, residual, chosen)
    name = stems.resolve().name
    if folder.unknown:
        note(f"{stems}: not scored, since no stem has this name: {', '.join(folder.unknown)}")
    if others := sorted(set(folder.songs) - set(songs)):
        note(f"{stems}: not scored, since --data has no such song: {held(others)}")
    try:
        refuse(name)
    except UserError as error:
        note(f"{stems}: {error}")
    return Files(name, folder), estimates.needed(folder.targets), {"stems": str(stems)}


def _system(
    name: str,
    weights: Path | None,
    device: str,
    refine: str,
    data: Path,
    chosen: tuple[str, ...],
    mono: bool,
) -> tuple[Source, list[str], dict[str, str]]:
    """The same for a system that separates here."""
    from ..scoring.score import Separated
    from ..songs.manifest import STEMS
    from ..systems import registry

    loaded = registry.load(name, registry.Given(weights, device, refine, data))
    about = {
        "trained on": loaded.system.trained_on,
        "licence": loaded.system.licence,
        "long songs": loaded.system.long_songs,
    }
    if weights is not None:
        about = {"weights": str(weights)} | about
    needed = list(chosen) if chosen and set(chosen) <= set(STEMS) else list(STEMS)
    return Separated(loaded.system, loaded.made_of, chosen, mono), needed, about


def _equaliser(data: Path) -> Fitted | None:
    """The static equaliser of the folder's training songs; None, with a word, if it cannot be."""
    from ..base.progress import note
    from ..scoring.score import Fitted
    from ..songs.find import training_songs
    from ..systems import registry

    try:
        songs = training_songs(data)
        rate = registry.one_rate(songs) if songs else 0
    except UserError as error:
        note(f"no static equaliser: {error}")
        return None
    if not songs:
        return None
    fit = partial(registry.fit_equaliser, songs)
    return Fitted({"songs": registry.songs_digest(songs)}, rate, lambda: fit().separate)


def _about(
    data: Path, split: str, songs: list[Found], scored: Scored, source: Source
) -> dict[str, str]:
    """The songs and their sample rate, in words."""
    scored_at = ", ".join(f"{rate} Hz" for rate in scored.sample_rates)
    own = {found.header.sample_rate for found in songs if found.song.name not in scored.failed}
    if own - set(scored.sample_rates):
        rates = ", ".join(map(str, sorted(own)))
        scored_at += f", resampled from {rates} Hz: scores differ from the original songs'"
    return {"songs": f"{len(songs)} of {data}, split {split}", "rate": scored_at}


def _sdr(songs: list[Found], mono: bool) -> str:
    """How `sdr` comes to mono, in words."""
    if mono:
        return "the mono mixture was separated, as in the paper."
    if all(found.header.channels == 1 for found in songs):
        return "the songs are mono."
    return "of the mean of the estimate's channels. (In the paper the mono mixture is separated.)"


def evaluate(
    stage1: Stage1,
    stage2: Stage2,
    stem: Annotated[
        str,
        typer.Option(help="The stem that the checkpoints separate: drums, bass, other or vocals."),
    ],
    data: Data,
    split: Split = "test",
    song: Names = None,
    songs: First = None,
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
        Literal["quantise", "soft", "bypass"],
        typer.Option(
            help="soft: decode the mean of the codes near each latent; bypass: decode the latents "
            "without quantising them."
        ),
    ] = "quantise",
    temperature: Annotated[
        float,
        typer.Option(min=1e-6, help="Of a soft bottleneck: a higher one weighs more codes."),
    ] = 20.0,
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
    from ..scoring import batch, evaluation, pair, table
    from ..songs.find import find_songs
    from ..songs.manifest import STEMS

    if stem not in STEMS:
        raise UserError(f"--stem {stem}: no such stem. Choose one of {', '.join(STEMS)}.")
    found = find_songs(data, split, (stem,), song or (), songs)
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
        separation=Separation(
            chunk=chunk, chunking=chunking, bottleneck=bottleneck, temperature=temperature
        ),
        device=device,
        threads=threads,
    )
    if output:
        with writing(output):
            evaluation.write_scores(output, scored.rows)
    if as_json:
        typer.echo(json.dumps(table.as_dict(scored), indent=2, ensure_ascii=False))
    else:
        typer.echo(table.text(scored))
    if len(scored.silent) == len(found):
        raise UserError(f"{data}: {stem} is silent in all songs, so there is nothing to score.")
    if scored.failed:
        raise batch.failure(scored.failed, len(found))


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
