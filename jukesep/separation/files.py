"""What `jukesep separate` does: read songs from files and write their stems to files."""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import audio
from ..audio import Audio, decode, encode
from ..base.errors import REMEDIES, Interrupted, UserError, not_utf8
from ..base.files import PartlyWritten, final, sweep, temporary
from ..base.progress import bar
from ..base.signals import handled
from ..base.unchanged import file_digest
from .names import STDIN, Job, Options, shown
from .origins import Origins, Recipe

if TYPE_CHECKING:
    from tqdm import tqdm

    from .separator import Separator

FAULTS = (UserError, OSError, RuntimeError, MemoryError, UnicodeError)  # of one song
MICRO = 1e-6  # the progress bar counts whole microseconds of audio: sums of them are exact


def separate(
    load: Callable[[], Separator],
    jobs: Sequence[Job],
    options: Options,
    recipe: Recipe,
    tell: Callable[[Path], object],
) -> None:
    """Separate songs one after the other. If a song fails, print why and continue with the next.

    Existing stems are kept if they are what would be written; if they were made from something
    else, the song fails, unless `overwrite` is set (`Origins`). If stems may be rescaled, they
    share one gain: a missing one then means that all stems of its song are written again.

    `load` loads the models and is only called if they are needed. `tell` is called with each file
    of a finished song. UserError at the end if any song failed.
    """
    failed: list[str] = []
    line: tqdm | None = None

    def fail(job: Job, error: Exception, file: Path | None = None) -> None:
        named = _named(error, job, options, file)
        if len(jobs) == 1:
            raise named from error
        failed.append(job.song)
        if line is not None:
            line.clear()
        print(f"error: {named}", file=sys.stderr, flush=True)

    with handled(_end), ExitStack() as kept:
        for folder in {options.output, *(p.parent for job in jobs for p in job.targets.values())}:
            sweep(folder)
        origins = Origins(options, recipe)
        todo: list[tuple[Job, Path]] = []
        for job in jobs:
            try:
                file = _given(job.song, kept)
                readable = _something_there(job) and os.path.isfile(file)
                separated = readable and not origins.missing(job, file_digest(file))
            except FAULTS as error:
                fail(job, error)
            else:
                if separated:
                    print(
                        f"{job.song}: already separated. Pass --overwrite to replace its stems.",
                        file=sys.stderr,
                    )
                    _tell_all(job, tell)
                else:
                    todo.append((job, file))
        known = _lengths(todo)
        separator: Separator | None = None
        first = shown(todo[0][0].track) if todo else ""
        total = sum(known.values())
        shape = {"total": total, "bar_format": _form(total), "unit_scale": MICRO}
        line = kept.enter_context(bar(desc=first, disable=not todo, **shape))
        for job, given in todo:
            line.set_description_str(shown(job.track))
            before, loading, read = line.n, False, None
            try:
                with ExitStack() as stack:
                    read = _opened(job.song, given, stack)
                    header = audio.info(read)
                    if not header.samples:
                        raise UserError(f"{job.song}: contains no samples.")
                    length = _length(header)
                    total += length - known.get(job.song, 0)
                    line.total, line.bar_format = total, _form(total)
                    sha256 = file_digest(given)
                    missing = origins.missing(job, sha256)
                    if missing and separator is None:
                        loading = True
                        separator = load()
                        loading = False
                    if separator and missing:
                        advance = _advance(line, before + length)
                        new = {n: stack.enter_context(temporary(p)) for n, p in missing.items()}
                        _separate_one(separator, read, header, job, new, options, advance)
                        origins.appear(job, sha256, new)
            except FAULTS as error:
                if loading:
                    raise  # no other song can avoid it
                line.update(before - line.n)
                fail(job, error, read)
            else:
                line.update(before + length - line.n)
                _tell_all(job, tell)
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} songs failed: {', '.join(failed)}.")


def _separate_one(
    separator: Separator,
    file: Path,
    header: audio.AudioInfo,
    job: Job,
    new: dict[str, Path],
    options: Options,
    advance: Callable[[float], None],
) -> None:
    """Write stems of a song, and its residual if that is in `new`: {name: temporary file}."""
    rate = header.sample_rate
    stems = [name for name in job.targets if name != job.residual]
    wanted = stems if job.residual in new else [name for name in stems if name in new]
    mixture: deque[Audio] = deque()

    def blocks() -> Iterator[Audio]:
        for block in audio.blocks(file):
            if job.residual in new:
                mixture.append(block)
            yield block

    shape = rate, header.channels, header.samples
    with encode.writing(new, options.form, options.clip, *shape) as put:
        for found in separator.stream(blocks(), rate, options.chunk, advance, stems=wanted):
            if job.residual in new:
                total = sum(found[stem] for stem in wanted)
                assert isinstance(total, np.ndarray)
                found[str(job.residual)] = _taken(mixture, total.shape[1], header.channels) - total
            put({name: found[name] for name in new})


def _taken(blocks: deque[Audio], samples: int, channels: int) -> Audio:
    """Remove the first `samples` from `blocks` and return them: (channels, samples)."""
    taken = [np.empty((channels, 0), np.float32)]
    while samples:
        block = blocks.popleft()
        if block.shape[1] > samples:
            blocks.appendleft(block[:, samples:])
            block = block[:, :samples]
        taken.append(block)
        samples -= block.shape[1]
    return np.concatenate(taken, axis=1)


def _given(song: str, stack: ExitStack) -> Path:
    """The file of a song; standard input is kept in a temporary one."""
    return stack.enter_context(decode.spooled()) if song == STDIN else Path(song)


def _opened(song: str, file: Path, stack: ExitStack) -> Path:
    """The file that `audio` can read for a song."""
    try:
        return stack.enter_context(decode.readable(file))
    except UserError as error:
        if song != STDIN:
            raise
        raise UserError(str(error).replace(str(file), "standard input")) from error


def _something_there(job: Job) -> bool:
    return any(path.exists() for path in (*job.targets.values(), *job.beside.values()))


def _tell_all(job: Job, tell: Callable[[Path], object]) -> None:
    for path in job.targets.values():
        tell(path)


def _lengths(todo: Sequence[tuple[Job, Path]]) -> dict[str, int]:
    """Return the length of each song whose header can be read now; others are read later."""
    found = {}
    for job, path in todo:
        if os.path.isfile(path):
            with suppress(UserError, UnicodeError):
                header = audio.info(path)
                found[job.song] = _length(header)
    return found


def _length(header: audio.AudioInfo) -> int:
    """The length of a song in microseconds, 1 at least."""
    return max(1, round(header.samples / header.sample_rate / MICRO))


def _form(total: int) -> str:
    """The form of the progress bar for songs of `total` microseconds: seconds, of two digits."""
    digits = max(0, 1 - math.floor(math.log10(total * MICRO))) if total else 0
    done = f"{{n:.{digits}f}}/{{total:.{digits}f}} s"
    return f"{{desc}}: {{percentage:3.0f}}%|{{bar}}| {done} [{{elapsed}}<{{remaining}}]"


def _advance(line: tqdm, end: float) -> Callable[[float], None]:
    """Return a function that takes the seconds done; the bar goes no further than to `end`."""

    def advance(seconds: float) -> None:
        line.update(min(round(seconds / MICRO), end - line.n))

    return advance


def _named(error: Exception, job: Job, options: Options, file: Path | None) -> Exception:
    """Return the error as a UserError that names the song.

    `file` is what was read instead of the song, perhaps a temporary file: the message names the
    song in its place. Raises `error` if it is not a user's mistake.
    """
    from ..kernels import devices

    if isinstance(error, UserError):
        said, song = str(error), "standard input" if job.song == STDIN else job.song
        if file:
            said = said.replace(str(file), song)
        return UserError(said if Path(song).name in said else f"{song}: {said}")
    if isinstance(error, UnicodeError):
        named = error.object if isinstance(error, UnicodeEncodeError) else job.song
        return UserError(not_utf8(named))
    if devices.out_of_memory(error):
        return UserError(
            f"{job.song}: out of memory. Lower --chunk, or choose another --device. No stem of it "
            "was written."
        )
    if not isinstance(error, OSError):
        raise error
    why = error.strerror or str(error)
    if isinstance(error, PartlyWritten):
        return UserError(f"{job.song}: {why}.")
    place = final(error.filename) if error.filename else options.output
    # The remedies are for the folder that is written to, not for a song that cannot be read.
    remedy = REMEDIES.get(error.errno or 0, "") if place != Path(job.song) else ""
    return UserError(f"{job.song}: {place}: {why}. No stem of it was written. {remedy}".rstrip())


def _end(number: int, _: object) -> None:
    """Handle a signal: end with one line of text and without incomplete files."""
    raise Interrupted("interrupted", 128 + number)
