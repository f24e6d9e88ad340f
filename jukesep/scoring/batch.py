"""Songs scored side by side: as many as cores and memory allow, and those that fail are named.

This module does not import torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TypeVar

from .. import audio
from ..audio import Audio
from ..base.errors import UserError
from ..base.progress import bar
from ..songs.find import Found
from ..songs.manifest import MIXTURE, PARTS

Result = TypeVar("Result")
Tell = Callable[[float], None]
"""Takes the share of a song that has been finished since the last call."""
FORM = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


def score_each(
    songs: Sequence[Found], score: Callable[[Found, Tell], Result], workers: int, title: str
) -> tuple[dict[str, Result], dict[str, str]]:
    """Run `score` on every song, `workers` at a time, with a progress bar.

    Returns the results by song, in order, and the message of each song that raised a UserError. On
    Ctrl-C songs that wait are dropped, and running ones stop when they next tell their progress.
    """
    stop, lock = threading.Event(), threading.Lock()

    def attempt(found: Found) -> Result | UserError:
        def tell(share: float) -> None:
            if stop.is_set():
                raise CancelledError
            with lock:
                line.update(min(share, len(songs) - line.n))

        try:
            return score(found, tell)
        except UserError as error:
            return error

    results: dict[str, Result] = {}
    failed: dict[str, str] = {}
    pool = ThreadPoolExecutor(max(workers, 1))
    with bar(total=len(songs), desc=title, bar_format=FORM) as line:
        try:
            for found, result in zip(songs, pool.map(attempt, songs), strict=True):
                if isinstance(result, UserError):
                    failed[found.song.name] = str(result)
                else:
                    results[found.song.name] = result
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return results, failed


def check_rates(
    songs: Sequence[Found], sample_rate: int, resample: bool, who: str = "the model"
) -> None:
    """UserError if songs differ from the rate (Hz) that `who` needs and `resample` is off."""
    other = [found for found in songs if found.header.sample_rate != sample_rate]
    if other and not resample:
        first = other[0]
        raise UserError(
            f"{first.song.file(MIXTURE)}: sample rate {first.header.sample_rate} Hz, {who} "
            f"needs {sample_rate} Hz ({counted(len(other))} of {len(songs)} differ). Resampling "
            "changes the scores; pass --resample to resample anyway."
        )


def counted(songs: int) -> str:
    """A number of songs in words: "1 song", "2 songs"."""
    return f"{songs} song{'' if songs == 1 else 's'}"


def read(found: Found, sample_rate: int, needed: Collection[str]) -> tuple[Audio, dict[str, Audio]]:
    """Read a song's mixture and stems at a sample rate in Hz, each (channels, samples).

    Stems that are not `needed` count in `sdr_v4` only, and may be missing: the song then has none.
    """
    parts = {}
    for part in PARTS:
        if part in (MIXTURE, *needed) or found.song.file(part).exists():
            samples = audio.read(found.song.file(part))
            parts[part] = audio.resample(samples, found.header.sample_rate, sample_rate)
    return parts.pop(MIXTURE), parts


def resampled(songs: Sequence[Found], sample_rate: int) -> tuple[int, ...]:
    """The sample rates in Hz, sorted, that songs have beside `sample_rate`."""
    return tuple(sorted({found.header.sample_rate for found in songs} - {sample_rate}))


def failure(failed: Mapping[str, str], songs: int) -> UserError:
    """The error that ends a run in which songs failed."""
    faults = "".join(f"\n  {fault}" for fault in failed.values())
    return UserError(f"{len(failed)} of {songs} songs could not be scored:{faults}")
