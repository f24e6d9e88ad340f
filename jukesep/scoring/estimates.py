"""Estimates of stems to score: what their names mean, and folders of them that any program wrote.

    STEMS/<song>/{drums,bass,other,vocals}.wav     Demucs, MSST, `jukesep separate`
    STEMS/<split>/<song>/...                       musdb, Open-Unmix

Files may also be flac, with upper-case letters. Part of the stems is enough. A residual is what is
left of the mixture without some stems: `no_vocals`, `accompaniment`, ... Its reference is the sum
of the stems in it, as in musdb, and not the mixture minus the others: a mastered mixture differs.

This module does not import torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import audio
from ..audio import Audio
from ..base.errors import UserError
from ..songs.find import Found
from ..songs.headers import entries, held, read_headers
from ..songs.manifest import MIXTURE, STEMS, SUFFIXES, is_part, part_file

RESIDUAL = "residual"
WITHOUT_VOCALS = ("accompaniment", "instrumental", "karaoke")


@dataclass(frozen=True)
class Target:
    """What an estimate holds."""

    name: str
    """Of the file, or of what the system returns."""
    stems: tuple[str, ...]
    """One, or those of a residual."""


Targets = dict[str, Target]
"""The stem or the residual that is scored -> what holds its estimate."""


def targets(
    names: Iterable[str], residual: str | None = None, chosen: Collection[str] = ()
) -> tuple[Targets, list[str]]:
    """What estimates of these names hold, and the names that say nothing.

    `residual` names one more that holds the mixture without the stems beside it. `chosen` are the
    names to score, all by default.
    """
    there = {name.lower() for name in names} - {MIXTURE}
    rests = {RESIDUAL, residual}
    alone = [stem for stem in STEMS if stem in there - rests]
    found: Targets = {stem: Target(stem, (stem,)) for stem in alone}
    for name in sorted(there - set(alone)):
        without: Collection[str] = ()
        if name in rests:
            without = alone
        elif name in WITHOUT_VOCALS:
            without = ("vocals",)
        elif name.startswith("no_") and name[3:] in STEMS:
            without = (name[3:],)
        held_in = tuple(stem for stem in STEMS if stem not in without)
        if without and held_in:
            found[RESIDUAL if name in STEMS else name] = Target(name, held_in)
    unknown = sorted(there - {target.name for target in found.values()})
    wanted = {label: one for label, one in found.items() if not chosen or one.name in chosen}
    return wanted, unknown


def reference(references: Mapping[str, Audio], target: Target) -> Audio:
    """What a perfect estimate would be, (channels, samples)."""
    first, *others = (references[stem] for stem in target.stems)
    return sum(others, start=first)


def needed(wanted: Targets) -> list[str]:
    """The stems whose references are needed."""
    return [stem for stem in STEMS if any(stem in one.stems for one in wanted.values())]


@dataclass(frozen=True)
class Folder:
    """A folder of estimates."""

    root: Path
    songs: Mapping[str, Path]
    """The folder of each song."""
    targets: Targets
    unknown: tuple[str, ...] = ()
    """Names of files that are not scored."""

    def files(self, song: str) -> dict[str, Path]:
        """The files of a song, by target. UserError if the song has no folder."""
        if song not in self.songs:
            near = difflib.get_close_matches(song, self.songs, n=2, cutoff=0.6)
            hint = f" Rename {' or '.join(map(repr, near))} if it is the same song." if near else ""
            raise UserError(f"{self.root / song}: no such folder.{hint}")
        folder = self.songs[song]
        return {label: part_file(folder, one.name) for label, one in self.targets.items()}

    def check(self, found: Found, resample: bool = False) -> int:
        """The sample rate of a song's estimates in Hz.

        UserError unless they have one rate, and the song's channels and length at that rate. With
        `resample` the rate may differ from the song's.
        """
        song, files = found.song.name, self.files(found.song.name)
        names = [one.name for one in self.targets.values()]
        headers, faults = read_headers(self.songs[song], names)
        rate = next((header.sample_rate for header in headers.values()), 0)
        for name, header in headers.items():
            kind = {1: "mono", 2: "stereo"}
            if header.sample_rate != rate:
                faults.append((name, f"{header.sample_rate} Hz, another file has {rate} Hz."))
                continue
            if rate != found.header.sample_rate and not resample:
                other = f"{found.header.sample_rate} Hz"
                said = f"{rate} Hz, but the song has {other}. Separate it at {other}, or pass"
                faults.append((name, f"{said} --resample to resample the song."))
                continue
            if header.channels != found.header.channels:
                one, two = (kind.get(n, f"{n} channels") for n in (header.channels,
                            found.header.channels))  # fmt: skip
                faults.append((name, f"{one}, but the song is {two}."))
            if header.samples != (wanted := samples(found, rate)):
                faults.append((name, f"{header.samples} samples, but the song has {wanted}."))
        if faults:
            paths = {one.name: files[label] for label, one in self.targets.items()}
            raise UserError("\n  ".join(f"{paths[name]}: {fault}" for name, fault in faults))
        return rate

    def read(self, found: Found) -> dict[str, Audio]:
        """The estimates of a song, by target, each (channels, samples)."""
        return {label: audio.read(path) for label, path in self.files(found.song.name).items()}


def samples(found: Found, sample_rate: int) -> int:
    """How many samples a song has at another sample rate (Hz), as `audio.resample` makes it."""
    return -(-found.song.samples * sample_rate // found.header.sample_rate)


def open_folder(
    root: Path,
    split: str,
    songs: Collection[str],
    residual: str | None = None,
    chosen: Collection[str] = (),
) -> Folder:
    """Find the estimates of `songs` in a folder. UserError if there are none."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder. Stems are expected as {root}/<song>/vocals.wav.")
    inside = root / split
    base = inside if inside.is_dir() and split not in songs else root
    folders = {path.name: path for path in entries(base) if path.is_dir()}
    there = {name: path for name, path in folders.items() if name in songs}
    if not there:
        raise UserError(f"{base}: no folder has the name of a song. {_hint(base, folders, songs)}")
    names = {
        path.stem.lower()
        for folder in there.values()
        for path in entries(folder)
        if path.suffix.lower() in SUFFIXES
    }
    missing = [name for name in (*chosen, *([residual] if residual else [])) if name not in names]
    if missing:
        raise UserError(f"{base}: no song has {missing[0]}.wav (or .flac), only {held(names)}.")
    found, unknown = targets(names, residual, chosen)
    if not found:
        raise UserError(
            f"{base}: the songs have {held(names)}, but none of {', '.join(STEMS)}. Rename the "
            "files, and keep them as wav or flac."
        )
    return Folder(root, folders, found, tuple(unknown))


def _hint(base: Path, folders: Mapping[str, Path], songs: Collection[str]) -> str:
    """What a user may have meant by a folder without a song."""
    for folder in folders.values():
        if any(path.name in songs for path in entries(folder)):
            return f"Give {folder}."
    first = min(songs)
    if any(is_part(path.name, *STEMS) for path in entries(base)):
        return "It holds stems itself: give the folder above it, with a folder for each song."
    return f"Expected {base}/{first}/vocals.wav. Its folders: {held(folders)}."
