"""`jukesep score`: the scores of any system on whole songs, with the baselines beside them.

A system is a folder of stems, or one that separates here. Every song is scored and kept by itself
(`store`): a fault fails that song only, and a second run scores only what has changed. This module
does not import torch.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import audio
from ..audio import Audio
from ..base import parallel
from ..base.errors import UserError
from ..base.unchanged import code
from ..songs.find import Found
from ..songs.manifest import PARTS, STEMS
from ..systems import equaliser as static
from ..systems import system as systems
from ..systems.system import System
from . import batch, estimates, evaluation, metrics
from .batch import Tell
from .estimates import Folder, Targets, reference, targets
from .evaluation import Row
from .store import Frames, Store, origin

CODE = code(
    *(__file__, batch.__file__, estimates.__file__, evaluation.__file__, metrics.__file__),
    *(audio.samples.__file__, audio.lengths.__file__, static.__file__, systems.__file__),
)


@dataclass(frozen=True)
class Fitted:
    """A baseline that is fitted to training songs: {stem: audio} of a mixture at a sample rate."""

    made_of: Mapping[str, Any]
    """What determines it, as JSON can store it."""
    sample_rate: int
    """In Hz; songs at another rate do without it."""
    fit: Callable[[], Callable[[Audio, int], Mapping[str, Audio]]]
    """Runs when the first song needs it."""


class Source(Protocol):
    """Where the estimates of songs come from."""

    @property
    def name(self) -> str: ...

    @property
    def targets(self) -> Targets | None:
        """What is scored; None if each song tells."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What determines the estimates beside the files, as JSON can store it."""

    def files(self, song: str) -> dict[str, Path]:
        """The files of a song's estimates."""

    def check(self, found: Found, resample: bool) -> int:
        """The sample rate in Hz to score a song at. UserError if its estimates do not fit it."""

    def estimates(
        self, found: Found, mixture: Audio, sample_rate: int
    ) -> tuple[Targets, dict[str, Audio], dict[str, Audio] | None]:
        """What is scored, its estimates, and those of the mono mixture or None."""


@dataclass(frozen=True)
class Files:
    """The stems of a folder as a source."""

    name: str
    folder: Folder

    @property
    def targets(self) -> Targets:
        return self.folder.targets

    @property
    def identity(self) -> Mapping[str, Any]:
        return {one.name: list(one.stems) for one in self.folder.targets.values()}

    def files(self, song: str) -> dict[str, Path]:
        return self.folder.files(song)

    def check(self, found: Found, resample: bool) -> int:
        return self.folder.check(found, resample)

    def estimates(
        self, found: Found, mixture: Audio, sample_rate: int
    ) -> tuple[Targets, dict[str, Audio], dict[str, Audio] | None]:
        return self.folder.targets, self.folder.read(found), None


class Separated:
    """A system that separates here as a source: one song at a time, on all cores.

    `mono` also separates the mono mixture, for `sdr`. `stems` are those to score, all by default.
    """

    def __init__(
        self, system: System, made_of: Mapping[str, Any], stems: Collection[str], mono: bool
    ) -> None:
        self.system, self.stems, self.mono = system, stems, mono
        self.name = system.name
        self.targets = None
        self.identity = {**made_of, "mono": mono, "stems": sorted(stems)}
        self._turn = threading.Lock()

    def files(self, song: str) -> dict[str, Path]:
        return {}

    def check(self, found: Found, resample: bool) -> int:
        return self.system.sample_rate or found.header.sample_rate

    def estimates(
        self, found: Found, mixture: Audio, sample_rate: int
    ) -> tuple[Targets, dict[str, Audio], dict[str, Audio] | None]:
        with self._turn:
            whole = self._separated(mixture, sample_rate)
            mono = self._separated(audio.to_mono(mixture), sample_rate) if self.mono else None
        wanted, _ = targets(whole, chosen=self.stems)
        if lacking := sorted(set(self.stems) - {one.name for one in wanted.values()}):
            raise UserError(f"{self.name}: returns no {lacking[0]}, only {', '.join(whole)}.")
        if not wanted:
            raise UserError(
                f"{self.name}: returns {', '.join(whole)}, but none of {', '.join(STEMS)}."
            )

        def chosen(given: Mapping[str, Audio]) -> dict[str, Audio]:
            return {label: given[one.name] for label, one in wanted.items()}

        return wanted, chosen(whole), None if mono is None else chosen(mono)

    def _separated(self, mixture: Audio, sample_rate: int) -> dict[str, Audio]:
        found = self.system(mixture, sample_rate)
        return {name.lower(): estimate for name, estimate in found.items()}


@dataclass(frozen=True)
class Options:
    """How songs are scored."""

    museval: bool = False
    resample: bool = False
    needed: tuple[str, ...] = STEMS
    """The stems that a song must have."""
    again: bool = False
    """Score songs that have not changed, too."""


@dataclass(frozen=True)
class Scored:
    """The rows of the songs that were scored, the messages of the others."""

    rows: list[Row]
    failed: Mapping[str, str]
    kept: int
    """How many songs had been scored before."""
    foreign: list[str]
    """Songs in the output folder whose scores are of another run."""
    residuals: Mapping[str, tuple[str, ...]]
    """The residuals that were scored -> the stems in them."""
    sample_rates: tuple[int, ...]
    """In Hz, that songs were scored at."""


def score(
    songs: list[Found],
    source: Source,
    output: Path,
    options: Options,
    equaliser: Fitted | None = None,
) -> Scored:
    """Score a source and the baselines on every song; keep each song's scores in `output`."""
    store = Store(output, songs[0].song.split)
    run = {
        "code": CODE,
        "system": source.name,
        **source.identity,
        "museval": options.museval,
        "equaliser": equaliser.made_of if equaliser else None,
    }
    fit = cache(equaliser.fit) if equaliser else None
    lock = threading.Lock()
    kept: list[str] = []
    rates: list[int] = []

    def beside(mixture: Audio, sample_rate: int) -> Mapping[str, Audio] | None:
        if equaliser is None or fit is None or equaliser.sample_rate != sample_rate:
            return None
        with lock:
            separate = fit()
        return separate(mixture, sample_rate)

    def attempt(found: Found, tell: Tell) -> list[Row]:
        try:
            rate = source.check(found, options.resample)
            files = {part: found.song.file(part) for part in PARTS}
            files |= {
                f"estimate {name}": path for name, path in source.files(found.song.name).items()
            }
            made = origin(run, rate, files)
            rows = None if options.again else store.load(found.song, made)
            if rows is None:
                tell(0.0)
                rows, frames = _score_song(found, source, rate, options, beside, tell)
                if made == origin(run, rate, files):  # else the next run scores it again
                    store.save(found.song, rows, frames, made)
            else:
                kept.append(found.song.name)
                tell(1.0)
        except UserError as error:
            store.drop(found.song.name)
            raise UserError(f"{found.song.name}: {error}") from error
        rates.append(rate)
        return rows

    each = 0.0
    for found in songs:
        with suppress(UserError):  # `attempt` meets it again, and needs no memory then
            each = max(each, memory(found, source.check(found, options.resample), options.museval))
    workers = parallel.at_once(len(songs), each)
    title = f"{source.name}, {batch.counted(len(songs))}"
    results, failed = batch.score_each(songs, attempt, workers, title)
    rows = [row for rows in results.values() for row in rows]
    known = source.targets or targets(row.stem for row in rows)[0]
    residuals = {label: one.stems for label, one in known.items() if label not in STEMS}
    at = tuple(sorted(set(rates)))
    return Scored(rows, failed, len(kept), store.foreign(run), residuals, at)


def memory(found: Found, sample_rate: int, museval: bool) -> float:
    """Bytes of memory that scoring a song at `sample_rate` Hz takes; measured, rounded up."""
    samples = found.song.samples * max(1.0, sample_rate / found.header.sample_rate)
    return (700 if museval else 300) * found.header.channels * samples


def _score_song(
    found: Found,
    source: Source,
    sample_rate: int,
    options: Options,
    equaliser: Callable[[Audio, int], Mapping[str, Audio] | None],
    tell: Tell,
) -> tuple[list[Row], Frames]:
    """All rows of one song, and the system's scores by second."""
    song = found.song
    mixture, references = batch.read(found, sample_rate, options.needed)
    wanted, estimates, mono = source.estimates(found, mixture, sample_rate)
    tell(0.5)
    frames: dict[str, dict[str, metrics.Array]] = {}
    rows: list[Row] = []

    def add(system: str, given: Mapping[str, Audio], **options: Any) -> None:
        for part in _groups(wanted, references):
            chosen = {label: given[label] for label in part.labels if label in given}
            found = evaluation.score_estimates(
                song, part.references, chosen, system, "", sample_rate, si_sdr=True, **options
            )
            if part.incomplete:
                found = [
                    row._replace(value=math.nan) if row.metric.endswith("_v4") else row
                    for row in found
                ]
            rows.extend(found)

    add(source.name, estimates, mono=mono, museval=options.museval, frames=frames)
    if len(references) < len(STEMS):
        frames = {label: {} for label in wanted}
    beside = _beside(mixture, references, wanted, equaliser, sample_rate)
    in_mono = {}
    if mono is not None:
        blended = {stem: audio.to_mono(given) for stem, given in references.items()}
        in_mono = _beside(audio.to_mono(mixture), blended, wanted, equaliser, sample_rate)
    for system, given in beside.items():
        if system != source.name:
            add(system, given, mono=in_mono.get(system))
        tell(0.5 / len(beside))
    return rows, frames


@dataclass(frozen=True)
class _Group:
    """Estimates that are scored against the same references."""

    labels: tuple[str, ...]
    references: dict[str, Audio]
    incomplete: bool
    """Whether a stem of the song is missing, so that there are no scores of BSSEval v4."""


def _groups(wanted: Targets, references: Mapping[str, Audio]) -> list[_Group]:
    """The stems are scored against all stems; a residual against itself and the stems not in it.

    As in museval, whose "accompaniment" is scored beside the vocals alone.
    """
    incomplete = len(references) < len(STEMS)
    stems = tuple(label for label, one in wanted.items() if len(one.stems) == 1 and label in STEMS)
    groups = [_Group(stems, dict(references), incomplete)] if stems else []
    for label, one in wanted.items():
        if label not in stems:
            rest = {stem: given for stem, given in references.items() if stem not in one.stems}
            groups.append(_Group((label,), {label: reference(references, one), **rest}, incomplete))
    return groups


def _beside(
    mixture: Audio,
    references: Mapping[str, Audio],
    wanted: Targets,
    equaliser: Callable[[Audio, int], Mapping[str, Audio] | None],
    sample_rate: int,
) -> dict[str, dict[str, Audio]]:
    """The estimates of the baselines and the oracle: {system: {what is scored: audio}}.

    That of a residual is the mixture, or the sum of the stems in it. The ideal ratio mask needs the
    references of all stems.
    """
    found: dict[str, Mapping[str, Audio]]
    if len(references) < len(STEMS):
        quarter = mixture / np.float32(len(STEMS))
        found = {
            "scaled_mixture": dict.fromkeys(references, quarter),
            "mixture": dict.fromkeys(references, mixture),
        }
    else:
        stacked = np.array(list(references.values()))
        found = {
            system: dict(zip(references, separate(mixture, stacked), strict=True))
            for system, separate in evaluation.BASELINES.items()
        }
    if equalised := equaliser(mixture, sample_rate):
        found[static.NAME] = equalised
    return {
        system: {
            label: given[one.stems[0]] if system == "mixture" else reference(given, one)
            for label, one in wanted.items()
        }
        for system, given in found.items()
    }
