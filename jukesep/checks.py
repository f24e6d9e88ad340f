"""What is wrong with a folder of songs: every fault at once, each with its file and a remedy.

Headers first, of all files; then all samples, once, a block at a time. Errors stop the stage
`prepare`; warnings are printed and kept. This module does not import torch.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import audio
from .audio import Audio, AudioInfo
from .errors import UserError
from .progress import bar

BLOCK = 1 << 17  # samples read at a time: the five stereo files of a song are 5 MB
SILENCE = 2.0**-15  # one step of 16 bit
RESIDUAL = -50.0  # dB of the mixture: 16-bit files of a plain sum stay far below it
UNKNOWN_LENGTH = 0xFFFFFFFF  # what a writer into a pipe puts, and the mark of a 64-bit length


@dataclass(frozen=True)
class Finding:
    """What was found in a file or folder (below the root), and what to do about it."""

    file: str
    text: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"


@dataclass(frozen=True)
class Layout:
    """What a folder of songs has to hold: ROOT/<split>/<song>/<part>.wav.

    parts: of each split; the first is the mixture, the others are its stems.
    optional: splits that may be missing.
    songs: how many songs a split has; none named, none checked. names: songs it must have.
    sample_rate, channels: of every file; None takes what most files have.
    shortest: seconds that a song must last, in the splits that are trained on (all but "test").
    """

    parts: Mapping[str, tuple[str, ...]]
    optional: frozenset[str] = frozenset()
    songs: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, frozenset[str]] = field(default_factory=dict)
    sample_rate: int | None = None
    channels: int | None = None
    shortest: float = 0.0


@dataclass
class Checked:
    """A song: its folder, its files' headers, and a digest of each file's samples."""

    split: str
    folder: Path
    parts: tuple[str, ...]
    headers: dict[str, AudioInfo] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.name

    def file(self, part: str = "") -> str:
        """The song's folder, or a file in it, as findings name it."""
        return f"{self.split}/{self.name}" + (f"/{part}.wav" if part else "")


def check_root(root: Path, layout: Layout) -> tuple[list[Checked], list[Finding]]:
    """The songs below `root`, in order of split and name, and the warnings.

    Reads every sample. UserError naming every fault if there is one.
    """
    songs, findings = _find_songs(root, layout)
    for song in songs:
        song.headers, faults = read_headers(song.folder, song.parts)
        findings += [Finding(song.file(part), text) for part, text in faults]
    rate = layout.sample_rate or _usual(h.sample_rate for s in songs for h in s.headers.values())
    for song in songs:
        findings += _compare(song, layout, rate)
    # Threads are enough: reading, hashing and numpy all leave Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reads = pool.map(_check_samples, songs)
        for found in bar(reads, total=len(songs), desc="prepare: check", unit="song"):
            findings += found
    raise_errors(root, findings)
    return songs, [finding for finding in findings if finding.warning]


def raise_errors(root: Path, findings: list[Finding]) -> None:
    """UserError with all findings, errors first, if one of them is an error."""
    errors = [str(finding) for finding in findings if not finding.warning]
    warnings = [f"(warning) {finding}" for finding in findings if finding.warning]
    if errors:
        count = f"{len(errors)} fault(s)" + (f", {len(warnings)} warning(s)" if warnings else "")
        raise UserError(f"{root}: {count}\n  " + "\n  ".join(sorted(errors) + sorted(warnings)))


def read_headers(
    folder: Path, parts: Iterable[str]
) -> tuple[dict[str, AudioInfo], list[tuple[str, str]]]:
    """The headers of a song's files, and (part, fault) for each that has no usable one."""
    headers, faults = {}, []
    for part in parts:
        path = folder / f"{part}.wav"
        try:
            if fault := _wav_fault(path):
                faults.append((part, fault))
                continue
            header = audio.info(path)
        except UserError as error:
            faults.append((part, f"{_without_path(error, path)} Copy it again."))
            continue
        except OSError as error:
            faults.append((part, f"cannot be opened ({error.strerror}). Make it readable."))
            continue
        if header.samples:
            headers[part] = header
        else:
            faults.append((part, "holds no samples. Export it again."))
    return headers, faults


def compare_headers(
    headers: Mapping[str, AudioInfo], channels: int | None = None, rate: int | None = None
) -> list[tuple[str, str]]:
    """(part, fault) for each file of a song that differs from the others, or from what is given."""
    channels = channels or _usual(header.channels for header in headers.values())
    rate = rate or _usual(header.sample_rate for header in headers.values())
    samples = _usual(header.samples for header in headers.values())
    faults = []
    for part, header in headers.items():
        if header.channels != channels:
            kind = {1: "mono", 2: "stereo"}.get(header.channels, f"{header.channels} channels")
            wanted = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
            faults.append((part, f"{kind} in a song that is {wanted}. Export it as {wanted}."))
        if header.sample_rate != rate:
            faults.append(
                (part, f"sample rate {header.sample_rate} Hz, expected {rate} Hz. Resample it.")
            )
        elif header.samples != samples:
            faults.append(
                (
                    part,
                    f"{header.samples} samples long, the song's other files {samples}. Export "
                    "all files of a song from the same start to the same end.",
                )
            )
    return faults


def _find_songs(root: Path, layout: Layout) -> tuple[list[Checked], list[Finding]]:
    """The song folders of each split, and what the folders show without opening a file."""
    splits = [split for split in layout.parts if (root / split).is_dir()]
    needed = [split for split in layout.parts if split not in layout.optional]
    if not set(splits) & set(needed):
        raise UserError(
            f"{root}: {wrong_root(root)} Songs are folders of wav files, {needed[0]}/<song>/*.wav."
        )
    findings = [
        Finding(f"{split}/", "no such folder. Copy the songs again, with all their folders.")
        for split in needed
        if split not in splits
    ]
    findings += [
        Finding(path.name, "not part of the layout, ignored.", warning=True)
        for path in _entries(root)
        if path.name not in splits
    ]
    songs = []
    for split in splits:
        parts = layout.parts[split]
        for path in _entries(root / split):
            if not path.is_dir():
                text = "a file beside the song folders, ignored."
                findings.append(Finding(f"{split}/{path.name}", text, warning=True))
            elif not any((path / f"{part}.wav").exists() for part in parts):
                text = f"a folder without any of {', '.join(parts)} as .wav. Move it elsewhere."
                findings.append(Finding(f"{split}/{path.name}", text))
            else:
                songs.append(Checked(split, path, parts))
        findings += _count(split, {s.name for s in songs if s.split == split}, layout)
    if not songs and any(any((root / split).glob("*.stem.mp4")) for split in splits):
        raise UserError(f"{root}: holds .stem.mp4 files, no wav files. Use data=musdb18.")
    seen: dict[str, str] = {}
    for song in songs:
        first = seen.setdefault(song.name, song.split)
        if first != song.split and song.split != "pretrain":
            text = f"also in {first}/: a song trained on is no test. Take it out of one of them."
            findings.append(Finding(song.file(), text))
    return songs, findings


def wrong_root(root: Path) -> str:
    """Why there may be no songs where they are expected: a sentence or two."""
    if not root.is_dir():
        return "no such folder."
    if root.name in ("train", "test") or any(root.glob("*/mixture.wav")):
        return f"no train/ and test/ in it, but songs. Give the folder above, {root.parent}."
    for path in _entries(root):
        if (path / "train").is_dir() or (path / "test").is_dir():
            return f"no train/ and test/ in it. Did you mean {path}?"
    return "neither train/ nor test/ in it. Give the folder that holds them."


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name, without hidden files."""
    return sorted(path for path in folder.iterdir() if path.name[0] != ".")


def _count(split: str, found: set[str], layout: Layout) -> list[Finding]:
    findings = []
    wanted = layout.songs.get(split)
    if not found:
        findings.append(Finding(f"{split}/", "no songs in it. Copy them again."))
    elif wanted is not None and len(found) != wanted:
        remedy = "Copy the others" if len(found) < wanted else "Move what is no part of it"
        text = f"{len(found)} songs, the data set has {wanted}. {remedy}, or use data=folder."
        findings.append(Finding(f"{split}/", text))
    for name in sorted(layout.names.get(split, frozenset()) - found):
        text = "not there; it is on musdb's list of validation songs. Copy it again."
        findings.append(Finding(f"{split}/{name}", text))
    return findings


def _usual(values: Iterable[int]) -> int:
    """The most frequent value, the first one on a tie; 0 of none."""
    return next((value for value, _ in Counter(values).most_common(1)), 0)


def _compare(song: Checked, layout: Layout, rate: int) -> list[Finding]:
    """What the headers of a song show beside each other."""
    faults = compare_headers(song.headers, layout.channels, rate)
    findings = [Finding(song.file(part), text) for part, text in faults]
    if song.headers and not faults and song.split != "test":
        header = next(iter(song.headers.values()))
        seconds = header.samples / header.sample_rate
        if seconds < layout.shortest:
            text = (
                f"{seconds:.2f} s long, shorter than a training segment ({layout.shortest:.2f} s). "
                "Take the song out, or lower pretrain.segment, stage1.segment and stage2.segment."
            )
            findings.append(Finding(song.file(), text))
    return findings


def _wav_fault(path: Path) -> str | None:
    """What libsndfile lets pass: a file of another format, and one that ends too early."""
    if not path.is_file():
        return None  # audio.info says it
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if size and (head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE"):
            return f"not a wav file (it begins with {head[:4]!r}). Convert it to wav."
        long = UNKNOWN_LENGTH
        while len(chunk := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            start = file.tell()
            if name == b"ds64":
                long = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
            if name == b"data":
                promised, held = long if length == UNKNOWN_LENGTH else length, size - start
                if promised != UNKNOWN_LENGTH and promised > held:
                    return (
                        f"truncated: its header promises {promised} bytes of samples, it holds "
                        f"{held}. Copy it again."
                    )
                return None
            file.seek(start + length + length % 2)
    return "truncated or corrupt: it ends before any samples. Copy it again." if size else None


def _check_samples(song: Checked) -> list[Finding]:
    """Read all samples of a song once, and set its digests."""
    headers = song.headers
    findings = []
    hashes = {part: hashlib.blake2b(digest_size=16) for part in headers}
    peaks = dict.fromkeys(headers, 0.0)
    shapes = {(h.channels, h.samples, h.sample_rate) for h in headers.values()}
    summed = len(song.parts) > 1 and set(headers) == set(song.parts) and len(shapes) == 1
    energy = residual = 0.0
    for start in range(0, max((h.samples for h in headers.values()), default=0), BLOCK):
        blocks: dict[str, Audio] = {}
        for part in [part for part in hashes if headers[part].samples > start]:
            path = song.folder / f"{part}.wav"
            try:
                block = audio.read(path, start, min(BLOCK, headers[part].samples - start))
            except UserError as error:
                findings.append(Finding(song.file(part), _without_path(error, path)))
                del hashes[part]
                summed = False
                continue
            hashes[part].update(np.ascontiguousarray(block.T).data)
            peaks[part] = max(peaks[part], float(np.abs(block).max()))
            blocks[part] = block
        if summed:
            mixture = blocks[song.parts[0]]
            rest = mixture - np.sum([blocks[stem] for stem in song.parts[1:]], axis=0)
            energy += float(np.square(mixture, dtype=np.float64).sum())
            residual += float(np.square(rest, dtype=np.float64).sum())
    song.digests = {part: found.hexdigest() for part, found in hashes.items()}
    for part in hashes:
        if peaks[part] <= SILENCE:
            findings.append(_silent(song, part))
    if summed and energy and residual:
        level = 10 * np.log10(residual / energy)
        if level > RESIDUAL:
            text = (
                f"not the sum of its stems: the residual is {level:.1f} dB of the mixture. Mix "
                "without mastering if you can; scores suffer from what no stem holds."
            )
            findings.append(Finding(song.file(song.parts[0]), text, warning=True))
    return findings


def _silent(song: Checked, part: str) -> Finding:
    if part == song.parts[0]:
        return Finding(song.file(part), "silent throughout. Export it again.")
    text = "silent throughout. Right if the song lacks that stem; else export it again."
    return Finding(song.file(part), text, warning=True)


def _without_path(error: UserError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")
