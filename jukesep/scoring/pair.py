"""`jukesep evaluate`: score a pair of checkpoint files, the authors' or ours, on whole songs.

`find_songs` checks the headers of all songs first. A fault found later fails that song only; the
others are still scored. torch is imported only when a model is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..base import parallel
from ..base.errors import UserError
from ..songs.find import Found
from ..songs.manifest import STEMS
from . import evaluation, metrics
from .batch import Tell, check_rates, counted, read, resampled, score_each
from .evaluation import Row
from .table import Evaluation

if TYPE_CHECKING:
    import torch

    from ..base.params import Separation
    from ..model.checkpoints import Pair


def evaluate(
    songs: list[Found],
    stage1: Path,
    stage2: Path,
    *,
    stem: str,
    data: Path,
    split: str,
    resample: bool,
    separation: Separation,
    device: str,
    threads: int,
) -> Evaluation:
    """Load the pair and score it on `songs`. UserError for files or songs that do not fit."""
    from ..kernels import devices
    from ..model.checkpoints import load_pair

    where = devices.choose(device)
    pair = load_pair(stage1, stage2, stem, where)
    check_rates(songs, pair.sample_rate, resample)
    rows, failed = score(songs, stem, pair, separation, where, threads)
    return Evaluation(
        stem=stem,
        stage1=stage1,
        stage2=stage2,
        steps=pair.steps,
        folder=data,
        split=split,
        songs=tuple(found.song.name for found in songs),
        sample_rate=pair.sample_rate,
        resampled=resampled(songs, pair.sample_rate),
        separation=separation,
        device=where.type,
        rows=rows,
        failed=failed,
    )


def score(
    songs: list[Found],
    stem: str,
    pair: Pair,
    separation: Separation,
    device: torch.device,
    threads: int = 0,
) -> tuple[list[Row], dict[str, str]]:
    """Score the pair, its ceiling, the mixture and the scaled mixture on whole songs.

    Returns the rows of the scored songs, in order, and an error message for each other song.
    On a CPU songs are scored in parallel, as memory allows, with `threads` threads each (0: share
    all cores evenly).
    """

    def attempt(found: Found, tell: Tell) -> list[Row]:
        length = found.song.samples * pair.sample_rate / found.header.sample_rate
        whole = length * (2 + found.header.channels)
        return _score_song(found, stem, pair, separation, lambda samples: tell(samples / whole))

    each = max(_memory(found, pair, separation) for found in songs)
    workers = _workers(len(songs), each, device, threads)
    scored, failed = score_each(songs, attempt, workers, f"{stem}, {counted(len(songs))}")
    return [row for rows in scored.values() for row in rows], failed


def _memory(found: Found, pair: Pair, separation: Separation) -> float:
    """Bytes that scoring a song takes, at its own rate or at the model's."""
    samples = found.song.samples * max(1.0, pair.sample_rate / found.header.sample_rate)
    return evaluation.memory(int(samples), found.header.channels, pair.stage1, separation)


def _workers(songs: int, each: float, device: torch.device, threads: int) -> int:
    """How many songs of `each` bytes to score in parallel; sets the torch threads for each."""
    import torch

    if device.type != "cpu":
        return 1
    if threads:
        songs = min(songs, max(parallel.cores() // threads, 1))
    workers = parallel.at_once(songs, each)
    cores = parallel.cores()
    torch.set_num_threads(min(threads, cores) or max(cores // workers, 1))
    return workers


def _score_song(
    found: Found, stem: str, pair: Pair, separation: Separation, progress: Callable[[int], object]
) -> list[Row]:
    """All rows of one song; NaN where a silent stem leaves the song out.

    UserError if another `sdr` or `sdr_mdx` is not finite.
    """
    song, rate = found.song, pair.sample_rate
    mixture, references = read(found, rate, (stem,))
    rows = []
    for system, estimate in (("mixture", mixture), ("scaled_mixture", mixture / len(STEMS))):
        values = metrics.score_song(song.name, stem, references, estimate, rate)
        rows += [Row(song, stem, system, "", "", m, v) for m, v in values.items()]
    models = {pair.steps[1]: pair.separator}
    rows += evaluation.score_separation(
        song,
        mixture,
        references,
        stem,
        pair.init,
        pair.stage1,
        models,
        rate,
        separation,
        progress=progress,
    )
    undefined = metrics.silent(references[stem])
    for row in rows:
        if row.metric in ("sdr", "sdr_mdx") and not (undefined or math.isfinite(row.value)):
            raise UserError(f"song {song.name!r}: {row.metric} of the {row.system} is {row.value}.")
    if len(references) < len(STEMS):
        rows = [row._replace(value=math.nan) if row.metric == "sdr_v4" else row for row in rows]
    return rows
