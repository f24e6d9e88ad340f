"""What `jukesep separate` does: read songs from files and write their stems to files."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING

import numpy as np

from .. import audio
from ..audio import Audio, decode, encode
from ..base.errors import Interrupted, UserError
from ..base.progress import bar
from ..base.signals import handled

if TYPE_CHECKING:
    from tqdm import tqdm

    from .separator import Separator

STDIN = "-"
RESIDUAL = "residual"
FIELDS = ("track", "stem", "ext")
LONGEST = 255  # bytes of a file name, on most systems


@dataclass(frozen=True)
class Options:
    """How songs are separated and where their stems are written. `chunk` is in samples."""

    output: Path
    filename: str = "{track}/{stem}.{ext}"
    form: encode.Format = encode.FORMATS["wav"]
    clip: encode.Clip = "rescale"
    stems: tuple[str, ...] = ()
    residual: bool = False
    chunk: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Job:
    """A song and the files to write for it, by stem.

    `residual` is the name of the mixture without the stems, or None if it is not wanted.
    """

    song: str
    track: str
    targets: dict[str, Path]
    residual: str | None


def find(songs: Iterable[str], output: Path) -> dict[str, str]:
    """Return the songs to separate, {song: track}; `-` is standard input.

    A folder stands for all songs in it and in its subfolders, sorted by path; their track names
    include the subfolders. Files in `output` are stems and are left out. UserError if a folder has
    no songs or is `output`, or if no song exists.
    """
    found: dict[str, str] = {}
    suffixes = decode.READ | decode.DECODED
    for song in songs:
        if not song:
            raise UserError("the name of a song is empty. Pass a file, a folder or -.")
        if song == STDIN or not os.path.isdir(song):
            found.setdefault(song, _track(song))
            continue
        folder = Path(song)
        if _same(folder, output):
            raise UserError(
                f"{song}: is also the output folder, so its stems would be read as songs. "
                "Choose another --output."
            )
        inside = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in suffixes and path.name[0] != "." and path.is_file()
        )
        stems = _resolved(output)
        if stems.is_relative_to(_resolved(folder)):
            inside = [path for path in inside if not path.resolve().is_relative_to(stems)]
        if not inside:
            raise UserError(
                f"{song}: contains no audio files. Looked for {', '.join(sorted(suffixes))}."
            )
        for path in inside:
            between = path.parent.relative_to(folder)
            found.setdefault(str(path), (between / _track(str(path))).as_posix())
    if not any(song == STDIN or os.path.lexists(song) for song in found):
        raise UserError(f"{next(iter(found))}: no such file.")
    return found


def plan(songs: Mapping[str, str], stems: Sequence[str], options: Options) -> list[Job]:
    """Return the files to write for each song; `songs` is what `find` returned.

    UserError if the pattern for file names lacks a field that it needs, if two songs would be
    written to the same file, or if a file would be outside the output folder or replace a song.
    """
    residual = None
    if options.residual:
        residual = f"no_{stems[0]}" if len(stems) == 1 else RESIDUAL
    names = [*stems, *([residual] if residual else [])]
    _check_filename(options.filename, len(songs) > 1, len(names) > 1)
    jobs, owners = [], dict[str, str]()
    output = _resolved(options.output)
    for song, track in songs.items():
        targets = {}
        for name in names:
            fields = {"track": track, "stem": name, "ext": options.form.suffix}
            target = options.output / options.filename.format(**fields)
            resolved = _resolved(target)
            if not resolved.is_relative_to(output) or resolved == output:
                raise UserError(f"{target}: is outside {options.output}. Change --filename.")
            # Some file systems ignore case, or how accents are encoded.
            key = unicodedata.normalize("NFC", str(resolved)).casefold()
            if owners.setdefault(key, song) != song:
                raise UserError(
                    f"{owners[key]} and {song}: both would be written to {target}. Pass the "
                    "folder that contains both, or separate them one by one."
                )
            if song != STDIN and _same(target, Path(song)):
                raise UserError(f"{target}: is the song itself. Choose another --output.")
            if target.is_dir():
                raise UserError(f"{target}: is a folder. Change --filename.")
            targets[name] = target
        jobs.append(Job(song, track, targets, residual))
    return jobs


def separate(
    load: Callable[[], Separator],
    jobs: Sequence[Job],
    options: Options,
    tell: Callable[[Path], object],
) -> None:
    """Separate songs one after the other. If a song fails, print why and continue with the next.

    Existing stems are kept, unless `overwrite` is set. If stems may be rescaled, they share one
    gain: a missing one then means that all stems of its song are written again. `load` loads the
    models and is only called if they are needed. `tell` is called with each file of a finished
    song. UserError at the end if any song failed.
    """
    failed: list[str] = []
    todo = []
    together = options.clip == "rescale" and options.form.limited
    for job in jobs:
        missing = {n: p for n, p in job.targets.items() if options.overwrite or not p.exists()}
        if missing:
            todo.append((job, job.targets if together else missing))
        else:
            print(
                f"{job.song}: already separated. Pass --overwrite to replace its stems.",
                file=sys.stderr,
            )
            for path in job.targets.values():
                tell(path)
    separator: Separator | None = None
    known = _seconds(todo)
    about = {"total": sum(known.values()), "desc": _shown(todo[0][0].track) if todo else ""}
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    with handled(_end), bar(**about, bar_format=form, disable=not todo) as line:
        for job, missing in todo:
            line.set_description_str(_shown(job.track))
            before, opened, file = line.n, False, None
            try:
                with ExitStack() as stack:
                    file = _opened(job.song, stack)
                    header = audio.info(file)
                    if not header.samples:
                        raise UserError(f"{job.song}: contains no samples.")
                    opened = True
                    seconds = header.samples / header.sample_rate
                    line.total = (line.total or 0) + seconds - known.get(job.song, 0.0)
                    separator = separator or load()
                    _separate_one(separator, file, header, job, missing, options, line)
            except (UserError, OSError, RuntimeError, MemoryError, UnicodeError) as error:
                if opened and separator is None:
                    raise  # loading the models failed, which no other song can avoid
                named = _named(error, job, options, file)
                if len(jobs) == 1:
                    raise named from error
                failed.append(job.song)
                line.clear()
                print(f"error: {named}", file=sys.stderr, flush=True)
                line.update(before - line.n)
            else:
                line.update(before + seconds - line.n)
                for path in job.targets.values():
                    tell(path)
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} songs failed: {', '.join(failed)}.")


def _separate_one(
    separator: Separator,
    file: Path,
    header: audio.AudioInfo,
    job: Job,
    missing: dict[str, Path],
    options: Options,
    line: tqdm,
) -> None:
    """Write the files of a song that are in `missing`, and advance the progress bar `line`."""
    rate = header.sample_rate
    stems = [name for name in job.targets if name != job.residual]
    wanted = stems if job.residual in missing else [name for name in stems if name in missing]
    mixture: deque[Audio] = deque()

    def blocks() -> Iterator[Audio]:
        for block in audio.blocks(file):
            if job.residual in missing:
                mixture.append(block)
            yield block

    shape = rate, header.channels, header.samples
    with encode.writing(missing, options.form, options.clip, *shape) as put:
        for found in separator.stream(blocks(), rate, options.chunk, line.update, stems=wanted):
            if job.residual in missing:
                total = sum(found[stem] for stem in wanted)
                assert isinstance(total, np.ndarray)
                found[str(job.residual)] = _taken(mixture, total.shape[1], header.channels) - total
            put({name: found[name] for name in missing})


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


def _opened(song: str, stack: ExitStack) -> Path:
    path = stack.enter_context(decode.spooled()) if song == STDIN else Path(song)
    try:
        return stack.enter_context(decode.readable(path))
    except UserError as error:
        if song != STDIN:
            raise
        raise UserError(str(error).replace(str(path), "standard input")) from error


def _seconds(todo: Sequence[tuple[Job, object]]) -> dict[str, float]:
    """Return the length of each song whose header can be read now; others are read later."""
    found = {}
    for job, _ in todo:
        path = Path(job.song)
        if job.song != STDIN and os.path.isfile(path):
            with suppress(UserError, UnicodeError):
                header = audio.info(path)
                found[job.song] = header.samples / header.sample_rate
    return found


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
        return UserError(f"{job.song}: its name is not valid UTF-8. Rename the file.")
    if devices.out_of_memory(error):
        return UserError(
            f"{job.song}: out of memory. Lower --chunk, or choose another --device. No stem of it "
            "was written."
        )
    if not isinstance(error, OSError):
        raise error
    place = error.filename or options.output
    return UserError(f"{job.song}: {place}: {error.strerror or error}. No stem of it was written.")


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # links that form a circle
        raise UserError(
            f"{path}: cannot be resolved ({error}). Choose another --output."
        ) from error


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _track(song: str) -> str:
    """Return the name of a song for its files: one path component, never empty or too long."""
    if song == STDIN:
        return "stdin"
    name = Path(song).name or Path(song).resolve().name
    track = Path(name).stem
    if not track.strip(". "):
        track = name.strip(". ") or "song"
    while len(os.fsencode(track)) > LONGEST:
        track = track[:-1]
    return track


def _check_filename(filename: str, songs: bool, names: bool) -> None:
    known = ", ".join(f"{{{field}}}" for field in FIELDS)
    try:
        fields = {field for _, field, _, _ in Formatter().parse(filename) if field is not None}
        if unknown := fields - set(FIELDS):
            raise UserError(f"--filename {filename!r}: {{{min(unknown)}}} is not one of {known}.")
        filename.format(**dict.fromkeys(FIELDS, "x"))
    except (ValueError, LookupError) as error:
        raise UserError(f"--filename {filename!r}: may only contain {known} ({error}).") from error
    for field, needed in (("track", songs), ("stem", names)):
        if needed and field not in fields:
            raise UserError(
                f"--filename {filename!r}: needs {{{field}}} to tell {field}s apart, for example "
                "'{track}/{stem}.{ext}'."
            )


def _shown(track: str) -> str:
    """Return a short name for the terminal, without control characters."""
    plain = "".join(char if char.isprintable() else "?" for char in track)
    return plain if len(plain) <= 40 else f"{plain[:39]}…"


def _end(number: int, _: object) -> None:
    """Handle a signal: end with one line of text and without incomplete files."""
    raise Interrupted("interrupted", 128 + number)
