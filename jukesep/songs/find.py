"""Find the songs to score in a folder with MUSDB18-HQ's layout.

    ROOT/test/<song>/{mixture,drums,bass,other,vocals}.wav      or ROOT/<song>/...
    ROOT/train/<song>/...                                       with musdb's validation songs

The files may also be flac, and their names may have upper-case letters. In a folder that `prepare`
wrote, such as data/prepared, its manifest names the songs and their groups.
This module does not import torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .. import audio
from ..base import paths
from ..base.errors import UserError
from .headers import compare_headers, entries, held, read_headers
from .manifest import MIXTURE, STEMS, Manifest, Song, part_file
from .musdb import validation_songs


@dataclass(frozen=True)
class Found:
    """A song to score, and the header that all its files share."""

    song: Song
    header: audio.AudioInfo


def find_songs(
    root: Path,
    split: str,
    stems: Collection[str],
    names: Collection[str] = (),
    first: int | None = None,
) -> list[Found]:
    """The songs of a split, sorted by name: all, those in `names`, or the `first` of them.

    A song needs its mixture and `stems`; other stems are checked if they exist.
    UserError that names every fault found in the files' headers.
    """
    found, faults = [], []
    for name, (folder, group) in choose(root, split, names, first).items():
        there = [part for part in STEMS if part in stems or part_file(folder, part).exists()]
        headers, wrong = read_headers(folder, (MIXTURE, *there))
        wrong += compare_headers(headers)
        faults += [f"{part_file(folder, part)}: {text}" for part, text in wrong]
        if not wrong:
            song = Song(name, split, group, folder, headers[MIXTURE].samples)
            found.append(Found(song, headers[MIXTURE]))
    if faults:
        several = f"{root}: {len(faults)} faults\n  " if len(faults) > 1 else ""
        raise UserError(several + "\n  ".join(faults))
    return found


def training_songs(root: Path) -> list[Found]:
    """The songs of split train with all stems; none if the folder does not divide its songs.

    UserError as for `find_songs`.
    """
    divided = (root / "train").is_dir() or (root / paths.MANIFEST.name).is_file()
    return find_songs(root, "train", STEMS) if divided else []


def choose(
    root: Path, split: str, names: Collection[str] = (), first: int | None = None
) -> dict[str, tuple[Path, str]]:
    """Folder and group of the songs that `find_songs` finds, by name. Their files are not read."""
    manifest = root / paths.MANIFEST.name
    if manifest.is_file() and not (root / split).is_dir():
        songs = Manifest.load(manifest).split(split)
        folders = {song.name: (song.folder, song.group) for song in songs}
    else:
        folders = {folder.name: (folder, split) for folder in _song_folders(root, split)}
    if unknown := sorted(set(names) - set(folders)):
        near = difflib.get_close_matches(unknown[0], folders, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{root}: no song named {unknown[0]!r} in split {split}.{hint}")
    return {name: folders[name] for name in sorted(set(names) or folders)[:first]}


def _song_folders(root: Path, split: str) -> list[Path]:
    """ROOT/<split>/*, ROOT/train/* divided by musdb's list of validation songs, or ROOT/*."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder. Songs are expected as {root}/{split}/<song>/.")
    inside = root / split
    if split != "test" and (root / "train").is_dir() and not (root / "valid").is_dir():
        validation = validation_songs()
        found = [
            path
            for path in _folders(root / "train")
            if (path.name in validation) == (split == "valid")
        ]
    elif inside.is_dir():
        found = _folders(inside)
    else:
        found = [path for path in _folders(root) if part_file(path, MIXTURE).is_file()]
    if not found:
        raise UserError(
            f"{root}: no songs in split {split}. They are expected as "
            f"{inside}/<song>/{MIXTURE}.wav (or .flac) or {root}/<song>/{MIXTURE}.wav. The folder "
            f"holds {held(path.name for path in entries(root))}."
        )
    return found


def _folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir() and path.name[0] != "."]
