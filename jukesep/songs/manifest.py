"""The layout of a folder of songs, as in MUSDB18-HQ, and the manifest that `prepare` writes.

    ROOT/train/<song>/{mixture,drums,bass,other,vocals}.wav
    ROOT/test/<song>/{mixture,drums,bass,other,vocals}.wav
    ROOT/pretrain/<song>/mixture.wav                        (the band only)

Files may also be flac, and their names may have upper-case letters: mixture.WAV, Vocals.flac. This
module does not import torch.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath

from ..base.errors import UserError
from ..base.files import write_text

STEMS = ("drums", "bass", "other", "vocals")
MIXTURE = "mixture"
PARTS = (MIXTURE, *STEMS)
SPLITS = ("train", "valid", "test", "pretrain")
SUFFIXES = (".wav", ".flac")
# Groups of test songs that are scored apart, where the data has them.
GROUPS = {
    "seen": "instruments heard in training",
    "held_out": "instruments never heard in training",
}


@dataclass(frozen=True)
class Song:
    """One song of a split. In the file, `folder` is relative to the manifest's, or absolute.

    `group` divides the test songs in the report: for the band by instruments, "seen" and
    "held_out"; for other data it is the name of the song's split folder, such as "test".
    `samples` is the length of each of its files. `silent` names the stems that the song lacks.
    """

    name: str
    split: str
    group: str
    folder: Path
    samples: int
    silent: tuple[str, ...] = ()

    def file(self, part: str) -> Path:
        """Path of the mixture or of a stem."""
        return part_file(self.folder, part)


def part_file(folder: Path, part: str) -> Path:
    """The file of a song's mixture or stem; <part>.wav if there is none."""
    usual = folder / f"{part}.wav"
    return usual if usual.exists() else next(iter(part_files(folder, part)), usual)


def part_files(folder: Path, part: str) -> list[Path]:
    """The files in a folder named as a mixture or stem, whatever the case: at most one is right."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in entries if is_part(path.name, part)]


def is_part(name: str, *parts: str) -> bool:
    """Whether a file has the name of one of the parts of a song."""
    path = PurePath(name)
    return path.stem.lower() in parts and path.suffix.lower() in SUFFIXES


@dataclass(frozen=True)
class Manifest:
    """The songs of an experiment: one sample rate, four splits."""

    sample_rate: int
    songs: tuple[Song, ...]

    def split(self, name: str) -> list[Song]:
        """The songs of a split in the manifest's order. UserError if there are none."""
        found = [song for song in self.songs if song.split == name]
        if not found:
            raise UserError(
                f"the manifest has no songs in split '{name}'. Run `dvc repro prepare`."
            )
        return found

    def require(self, split: str, stem: str) -> None:
        """UserError unless a song of the split has the stem."""
        if all(stem in song.silent for song in self.split(split)):
            raise UserError(
                f"{stem} is silent in all songs of split '{split}': nothing to train or to score. "
                f"Add songs with {stem}, or choose another stem (-S stem=...)."
            )

    def save(self, path: Path) -> None:
        """Write as JSON. Song folders below the manifest's folder are saved relative to it."""
        base = path.parent.resolve()

        def entry(song: Song) -> dict[str, object]:
            folder = song.folder.resolve()
            if folder.is_relative_to(base):
                folder = folder.relative_to(base)
            fields = {**asdict(song), "folder": folder.as_posix()}
            return fields if song.silent else {k: v for k, v in fields.items() if k != "silent"}

        content = {"sample_rate": self.sample_rate, "songs": [entry(s) for s in self.songs]}
        write_text(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read a manifest that `save` wrote. UserError if it is missing or not a manifest."""
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            songs = tuple(
                Song(
                    **{
                        **entry,
                        "folder": path.parent / entry["folder"],
                        "silent": tuple(entry.get("silent", ())),
                    }
                )
                for entry in content["songs"]
            )
            for song in songs:  # names become names of files
                if song.name in ("", "..") or PurePath(song.name).name != song.name:
                    raise ValueError(f"{song.name!r} is not a song's name")
            return cls(content["sample_rate"], songs)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file. Run `dvc repro prepare` first.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not a manifest ({error}). Run `dvc repro prepare`."
            ) from error
