"""Find the songs to score in a folder with MUSDB18-HQ's layout.

    ROOT/test/<song>/{mixture,drums,bass,other,vocals}.wav      or ROOT/<song>/...
    ROOT/train/<song>/...                                       with musdb's validation songs

The files may also be flac, and their names may have upper-case letters.
This module does not import torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .. import audio
from ..base.errors import UserError
from .headers import compare_headers, entries, held, read_headers
from .manifest import MIXTURE, STEMS, Song, part_file
from .musdb import validation_songs


@dataclass(frozen=True)
class Found:
    """A song to score, and the header that all its files share."""

    song: Song
    header: audio.AudioInfo


def find_songs(
    root: Path, split: str, stem: str, names: Collection[str] = (), first: int | None = None
) -> list[Found]:
    """The songs of a split, sorted by name: all, those in `names`, or the `first` of them.

    A song needs its mixture and `stem`; other stems are checked if they exist.
    UserError that names every fault found in the files' headers.
    """
    if stem not in STEMS:
        raise UserError(f"--stem {stem}: no such stem. Choose one of {', '.join(STEMS)}.")
    folders = {folder.name: folder for folder in _song_folders(root, split)}
    if unknown := sorted(set(names) - set(folders)):
        near = difflib.get_close_matches(unknown[0], folders, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{root}: no song named {unknown[0]!r} in split {split}.{hint}")
    chosen = sorted(set(names) or folders)[:first]
    found, faults = [], []
    for name in chosen:
        folder = folders[name]
        there = [part for part in STEMS if part == stem or part_file(folder, part).exists()]
        headers, wrong = read_headers(folder, (MIXTURE, *there))
        wrong += compare_headers(headers)
        faults += [f"{part_file(folder, part)}: {text}" for part, text in wrong]
        if not wrong:
            song = Song(name, split, split, folder, headers[MIXTURE].samples)
            found.append(Found(song, headers[MIXTURE]))
    if faults:
        several = f"{root}: {len(faults)} faults\n  " if len(faults) > 1 else ""
        raise UserError(several + "\n  ".join(faults))
    return found


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
