"""The songs of a folder in MUSDB18-HQ's layout, to be scored where they lie.

    ROOT/test/<song>/{mixture,drums,bass,other,vocals}.wav      or ROOT/<song>/...
    ROOT/train/<song>/...                                       with musdb's validation songs

This module does not import torch.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import yaml

from . import audio
from .errors import UserError
from .songs import MIXTURE, STEMS, Song


@dataclass(frozen=True)
class Found:
    """A song to score, and the header that all of its files have."""

    song: Song
    header: audio.AudioInfo


def find_songs(
    root: Path, split: str, stem: str, names: Collection[str] = (), first: int | None = None
) -> list[Found]:
    """The songs of a split: all, those of `names`, or the `first`; sorted by name.

    A song needs its mixture and the wanted stem; other stems are checked where they are.
    UserError naming every fault that the headers of the files show.
    """
    if stem not in STEMS:
        raise UserError(f"--stem {stem}: there is no such stem; there are {', '.join(STEMS)}.")
    folders = {folder.name: folder for folder in _song_folders(root, split)}
    if unknown := sorted(set(names) - set(folders)):
        near = difflib.get_close_matches(unknown[0], folders, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{root}: no song named {unknown[0]!r} in the split {split}.{hint}")
    chosen = sorted(set(names) or folders)[:first]
    found, faults = [], []
    for name in chosen:
        headers, more = _headers(folders[name], stem)
        faults += more
        if not more:
            header = headers[MIXTURE]
            song = Song(name, split, split, folders[name], header.samples)
            found.append(Found(song, header))
    if faults:
        also = "".join(f"\n  {fault}" for fault in faults[1:])
        raise UserError(faults[0] + also)
    return found


def _song_folders(root: Path, split: str) -> list[Path]:
    """ROOT/<split>/*, else by musdb's list of validation songs from ROOT/train, else ROOT/*."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder. Songs are expected as {root}/{split}/<song>/.")
    inside = root / split
    if split != "test" and (root / "train").is_dir() and not (root / "valid").is_dir():
        validation = _validation_names()
        found = [
            path
            for path in _folders(root / "train")
            if (path.name in validation) == (split == "valid")
        ]
    elif inside.is_dir():
        found = _folders(inside)
    else:
        found = [path for path in _folders(root) if (path / f"{MIXTURE}.wav").is_file()]
    if not found:
        raise UserError(
            f"{root}: no songs of the split {split}. They are expected as "
            f"{inside}/<song>/{MIXTURE}.wav, or as {root}/<song>/{MIXTURE}.wav."
        )
    return found


def _folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir() and path.name[0] != "."]


def _validation_names() -> set[str]:
    """MUSDB18's 14 validation songs, as the package musdb lists them; it is not imported."""
    package = importlib.util.find_spec("musdb")
    if package is None or package.origin is None:
        raise UserError("the package musdb is not installed; install jukesep's dependencies")
    listed = Path(package.origin).parent / "configs" / "mus.yaml"
    return set(yaml.safe_load(listed.read_text(encoding="utf-8"))["validation_tracks"])


def _headers(folder: Path, stem: str) -> tuple[dict[str, audio.AudioInfo], list[str]]:
    """The headers of a song's files, and every fault in them."""
    needed = {MIXTURE, stem}
    headers, faults = {}, []
    for part in (MIXTURE, *STEMS):
        path = folder / f"{part}.wav"
        if part in needed or path.exists():
            try:
                headers[part] = audio.info(path)
            except UserError as error:
                faults.append(str(error))
    for part, header in headers.items():
        for field in ("sample_rate", "channels", "samples"):
            value = getattr(header, field)
            if MIXTURE in headers and value != (wanted := getattr(headers[MIXTURE], field)):
                faults.append(f"{folder / part}.wav: {field} is {value}, the mixture has {wanted}.")
        if not header.samples:
            faults.append(f"{folder / part}.wav: holds no samples.")
    return headers, faults
