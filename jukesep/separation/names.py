"""Which songs `jukesep separate` reads, and what the files of their stems are called."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import Formatter

from ..audio import decode, encode
from ..base.errors import UserError
from ..songs.manifest import STEMS

STDIN = "-"
RECORD = "separated.json"  # in the output folder; `origins` describes it
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

    @property
    def format(self) -> str:
        """The name of the format, as `--format` takes it."""
        return next(name for name, form in encode.FORMATS.items() if form == self.form)

    @property
    def one_gain(self) -> bool:
        """Whether stems that are written together may be lowered by one gain."""
        return self.clip == "rescale" and self.form.limited


@dataclass(frozen=True)
class Job:
    """A song and the files to write for it, by stem.

    `residual` is the name of the mixture without the stems, or None if it is not wanted. `beside`
    are the files of the song's other stems and residuals, which another run may have written.
    """

    song: str
    track: str
    targets: dict[str, Path]
    residual: str | None
    beside: dict[str, Path]


def find(songs: Iterable[str], output: Path) -> dict[str, str]:
    """Return the songs to separate, {song: track}, each file once; `-` is standard input.

    A folder stands for all songs in it and in its subfolders, sorted by path; their track names
    include the subfolders. Hidden files and folders in it are left out, and so are files in
    `output`, which are stems. A link to a folder is followed, unless that folder was searched
    already or contains the link. UserError if a folder has no songs, cannot be read or is `output`,
    or if no song exists.
    """
    found: dict[str, str] = {}
    known: set[str] = set()

    def add(song: str, track: str) -> None:
        place = song
        if song != STDIN:  # the same file, however it is spelled
            place = os.path.join(os.path.realpath(os.path.dirname(song)), os.path.basename(song))
        if place not in known:
            known.add(place)
            found[song] = track

    for song in songs:
        if not song:
            raise UserError("the name of a song is empty. Pass a file, a folder or -.")
        if song == STDIN or not os.path.isdir(song):
            add(song, _track(song))
            continue
        folder = Path(song)
        if _same(folder, output):
            raise UserError(
                f"{song}: is also the output folder, so its stems would be read as songs. "
                "Choose another --output."
            )
        suffixes, stems = decode.READ | decode.DECODED, resolved(output)
        inside = sorted(
            path
            for path in _walk(folder)
            if path.suffix.lower() in suffixes
            and not Path(os.path.realpath(path)).is_relative_to(stems)
        )
        if not inside:
            raise UserError(
                f"{song}: contains no audio files. Looked for {', '.join(sorted(suffixes))}."
            )
        for path in inside:
            between = path.parent.relative_to(folder)
            add(str(path), (between / _track(str(path))).as_posix())
    if not any(song == STDIN or os.path.lexists(song) for song in found):
        raise UserError(f"{next(iter(found))}: no such file.")
    return _told_apart(found)


def plan(songs: Mapping[str, str], stems: Sequence[str], options: Options) -> list[Job]:
    """Return the files to write for each song; `songs` is what `find` returned.

    UserError if the pattern for file names lacks a field that it needs, if two songs would be
    written to the same file, or if a file would be outside the output folder, replace a song, or be
    in a folder that is a file.
    """
    residual = None
    if options.residual:
        residual = f"no_{stems[0]}" if len(stems) == 1 else RESIDUAL
    names = [*stems, *([residual] if residual else [])]
    _check_filename(options.filename, len(songs) > 1, len(names) > 1)
    every = dict.fromkeys((*names, *STEMS, RESIDUAL, *(f"no_{stem}" for stem in STEMS)))
    jobs, owners = [], dict[str, str]()
    output = resolved(options.output)
    given = {os.path.realpath(song) for song in songs if song != STDIN}
    for song, track in songs.items():
        targets, beside = dict[str, Path](), dict[str, Path]()
        for name in every:
            fields = {"track": track, "stem": name, "ext": options.form.suffix}
            target = options.output / options.filename.format(**fields)
            if name not in names:
                if target not in targets.values():
                    beside[name] = target
                continue
            place = resolved(target)
            if not place.is_relative_to(output) or place == output:
                raise UserError(f"{target}: is outside {options.output}. Change --filename.")
            if place == output / RECORD:
                raise UserError(f"{target}: is the record of all stems. Change --filename.")
            if owners.setdefault(_folded(str(place)), song) != song:
                raise UserError(
                    f"{owners[_folded(str(place))]} and {song}: both would be written to {target}. "
                    "Change --filename, or separate them one by one."
                )
            if str(place) in given or (song != STDIN and _same(target, Path(song))):
                which = "the song itself" if _same(target, Path(song)) else "one of the songs"
                raise UserError(f"{target}: is {which}. Choose another --output.")
            if target.is_dir():
                raise UserError(f"{target}: is a folder. Change --filename.")
            for parent in target.parents:
                if os.path.lexists(parent) and not os.path.isdir(parent):
                    raise UserError(
                        f"{parent}: is not a folder. Choose another --output or --filename."
                    )
            targets[name] = target
        jobs.append(Job(song, track, targets, residual, beside))
    return jobs


def resolved(path: Path) -> Path:
    """Return the path without links. UserError if they form a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: cannot be resolved ({error}). Choose another --output."
        ) from error


def shown(name: str) -> str:
    """Return a short name for the terminal, without control characters."""
    plain = "".join(char if char.isprintable() else "?" for char in name)
    return plain if len(plain) <= 40 else f"{plain[:39]}…"


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, links to folders included, but no hidden one.

    Links are followed last, so that a folder keeps its own name if a link leads to it, too.
    """
    seen: set[str] = set()
    links: list[Path] = []

    def inside(one: Path) -> Iterator[Path]:
        seen.add(os.path.realpath(one))
        try:
            entries = sorted((path, path.is_dir()) for path in one.iterdir() if path.name[0] != ".")
        except OSError as error:
            raise UserError(
                f"{one}: cannot be read ({error.strerror}). Make it readable, or move it elsewhere."
            ) from error
        for path, is_folder in entries:
            if not is_folder:
                yield path
            elif path.is_symlink():
                links.append(path)
            elif os.path.realpath(path) not in seen:
                yield from inside(path)

    yield from inside(folder)
    while links:
        link = links.pop(0)
        place = Path(os.path.realpath(link))
        circular = Path(os.path.realpath(link.parent)).is_relative_to(place)
        if not circular and str(place) not in seen:
            yield from inside(link)


def _told_apart(songs: Mapping[str, str]) -> dict[str, str]:
    """Return the songs with a track name of their own each.

    Songs of one name keep their suffix in it, as song.flac and song.mp3. Those that still have one
    name are numbered: Song, SONG (2). Some file systems ignore case, or how accents are encoded.
    """
    suffixes = {song: Path(song).suffix if song != STDIN else "" for song in songs}
    count = Counter(_folded(track) for track in songs.values())
    kinds = Counter(
        track for track, _ in {(_folded(songs[s]), suffixes[s].casefold()) for s in songs}
    )
    found: dict[str, str] = {}
    taken: set[str] = set()
    # First those whose name is theirs alone: numbers must not take it.
    for song in sorted(songs, key=lambda song: count[_folded(songs[song])] > 1):
        track = songs[song]
        tail = suffixes[song] if kinds[_folded(track)] > 1 else ""
        name, number = _with_tail(track, tail), 1
        while _folded(name) in taken:
            number += 1
            name = _with_tail(track, f"{tail} ({number})")
        taken.add(_folded(name))
        found[song] = name
    return {song: found[song] for song in songs}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _with_tail(track: str, tail: str) -> str:
    path = PurePosixPath(track)
    name = path.name
    while name and len(os.fsencode(name + tail)) > LONGEST:
        name = name[:-1]
    return str(path.with_name(name + tail)) if tail else track


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


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


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
