"""Check a folder of songs: report every fault at once, each with its file and a remedy.

First the headers of all files, then all samples, read once and block by block, except those that
an earlier run has checked. Errors stop the stage `prepare`; warnings are printed and saved. This
module does not import torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import audio
from ..audio import AudioInfo
from ..base.errors import UserError
from ..base.parallel import cores
from ..base.progress import bar
from ..base.unchanged import Known, code, marks
from .headers import compare_headers, entries, held, read_headers, usual, without_path
from .manifest import MIXTURE, part_file

SILENCE = 2.0**-15  # one step of 16-bit audio
RESIDUAL = -50.0  # dB relative to the mixture; rounding to 16 bits stays far below it
_CODE = code(__file__, audio.samples.__file__, audio.lengths.__file__)


@dataclass(frozen=True)
class Finding:
    """A fault of a file or folder (relative to the root), with its remedy."""

    file: str
    text: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"


@dataclass(frozen=True)
class Layout:
    """The required content of a folder of songs: ROOT/<split>/<song>/<part>.wav, or .flac.

    parts: files of a song by split: the mixture first, then its stems.
    beside: other names that the folder may hold.
    optional: splits that may be missing.
    songs: number of songs by split; splits not named are not checked. names: required songs.
    sample_rate (Hz), channels: of every file; None takes what most files have.
    shortest: minimum length of a song in seconds, in the training splits (all but "test").
    """

    parts: Mapping[str, tuple[str, ...]]
    optional: frozenset[str] = frozenset()
    songs: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, frozenset[str]] = field(default_factory=dict)
    sample_rate: int | None = None
    channels: int | None = None
    shortest: float = 0.0
    beside: frozenset[str] = frozenset()


@dataclass
class Checked:
    """A song: its folder, its files' headers, and a digest of each file's samples."""

    split: str
    folder: Path
    parts: tuple[str, ...]
    headers: dict[str, AudioInfo] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    """The parts that are silent in mono, which have no SDR."""

    @property
    def name(self) -> str:
        return self.folder.name

    def file(self, part: str = "") -> str:
        """The song's folder, or a file in it, relative to the root."""
        return f"{self.split}/{self.name}" + (f"/{self.path(part).name}" if part else "")

    def path(self, part: str) -> Path:
        """Path of the mixture or of a stem."""
        return part_file(self.folder, part)


@dataclass(frozen=True)
class Samples:
    """Facts about a song's samples: digest and peak (full scale 1) of each part, the parts whose
    channels sum to zero at every sample, and the residual: the level of mixture minus stems, in dB
    relative to the mixture (None if zero or unknown)."""

    digests: dict[str, str]
    peaks: dict[str, float]
    silent: list[str]
    residual: float | None


def check_root(
    root: Path, layout: Layout, known: Known | None = None
) -> tuple[list[Checked], list[Finding]]:
    """Check the songs below `root`; return them in order of split and name, and the warnings.

    Reads every sample, except of songs that are `known` from an earlier run and unchanged.
    UserError that names every fault, if there is any error.
    """
    songs, findings = _find_songs(root, layout)
    for song in songs:
        song.headers, faults = read_headers(song.folder, song.parts)
        findings += [Finding(song.file(part), text) for part, text in faults]
    rate = layout.sample_rate or usual(h.sample_rate for s in songs for h in s.headers.values())
    for song in songs:
        findings += _compare(song, layout, rate)
    # Threads are enough: reading, hashing and numpy release the GIL.
    with ThreadPoolExecutor(cores()) as pool:
        reads = pool.map(partial(_check_samples, known=known), songs)
        for found in bar(reads, total=len(songs), desc="prepare: check", unit="song"):
            findings += found
    raise_errors(root, findings)
    return songs, [finding for finding in findings if finding.warning]


def raise_errors(root: Path, findings: list[Finding]) -> None:
    """UserError with all findings, errors first, if any of them is an error."""
    errors = [str(finding) for finding in findings if not finding.warning]
    warnings = [f"(warning) {finding}" for finding in findings if finding.warning]
    if errors:
        count = f"{len(errors)} fault(s)" + (f", {len(warnings)} warning(s)" if warnings else "")
        raise UserError(f"{root}: {count}\n  " + "\n  ".join(sorted(errors) + sorted(warnings)))


def _find_songs(root: Path, layout: Layout) -> tuple[list[Checked], list[Finding]]:
    """The song folders of each split, and the faults that show without opening a file."""
    splits = [split for split in layout.parts if (root / split).is_dir()]
    needed = [split for split in layout.parts if split not in layout.optional]
    if not set(splits) & set(needed):
        raise UserError(
            f"{root}: {wrong_root(root)} Songs are folders of wav or flac files, "
            f"{needed[0]}/<song>/*.wav."
        )
    findings = [
        Finding(f"{split}/", "no such folder. Copy the songs again, with all their folders.")
        for split in needed
        if split not in splits
    ]
    findings += [
        Finding(path.name, "not part of the layout; ignored.", warning=True)
        for path in entries(root)
        if path.name not in {*splits, *layout.beside}
    ]
    songs = []
    for split in splits:
        parts = layout.parts[split]
        for path in entries(root / split):
            if not path.is_dir():
                text = "a file beside the song folders; ignored."
                findings.append(Finding(f"{split}/{path.name}", text, warning=True))
            elif not any(part_file(path, part).exists() for part in parts):
                text = (
                    f"a folder with none of {', '.join(parts)} as .wav or .flac: it holds "
                    f"{held(path.name for path in entries(path))}. Rename or convert its files, "
                    "or move it elsewhere."
                )
                findings.append(Finding(f"{split}/{path.name}", text))
            else:
                songs.append(Checked(split, path, parts))
        findings += _count(split, {s.name for s in songs if s.split == split}, layout)
    if not songs and any(any((root / split).glob("*.stem.mp4")) for split in splits):
        raise UserError(f"{root}: holds .stem.mp4 files, not wav files. Use data=musdb18.")
    seen: dict[str, str] = {}
    for song in songs:
        first = seen.setdefault(song.name, song.split)
        if first != song.split and song.split != "pretrain":
            text = f"also in {first}/: test songs must not be trained on. Remove one of the two."
            findings.append(Finding(song.file(), text))
    return songs, findings


def wrong_root(root: Path) -> str:
    """Explain why `root` may hold no songs where they are expected, in a sentence or two."""
    if not root.is_dir():
        return "no such folder."
    folders = [path for path in entries(root) if path.is_dir()]
    if root.name in ("train", "test") or any(part_file(f, MIXTURE).exists() for f in folders):
        return f"contains songs, not train/ and test/. Give the folder above, {root.parent}."
    for path in folders:
        if path.name.lower() in ("train", "test"):
            return f"contains {path.name}/. Rename it to {path.name.lower()}/."
        if (path / "train").is_dir() or (path / "test").is_dir():
            return f"contains no train/ and test/. Did you mean {path}?"
    return "contains neither train/ nor test/. Give the folder that holds them."


def _count(split: str, found: set[str], layout: Layout) -> list[Finding]:
    findings = []
    wanted = layout.songs.get(split)
    if not found:
        findings.append(Finding(f"{split}/", "contains no songs. Copy them again."))
    elif wanted is not None and len(found) != wanted:
        remedy = "Copy the others" if len(found) < wanted else "Move the others away"
        text = f"{len(found)} songs, the data set has {wanted}. {remedy}, or use data=folder."
        findings.append(Finding(f"{split}/", text))
    for name in sorted(layout.names.get(split, frozenset()) - found):
        text = "missing, but on musdb's list of validation songs. Copy it again."
        findings.append(Finding(f"{split}/{name}", text))
    return findings


def _compare(song: Checked, layout: Layout, rate: int) -> list[Finding]:
    """The faults that comparing a song's headers shows."""
    faults = compare_headers(song.headers, layout.channels, rate)
    findings = [Finding(song.file(part), text) for part, text in faults]
    if song.headers and not faults and song.split != "test":
        header = next(iter(song.headers.values()))
        seconds = header.samples / header.sample_rate
        if seconds < layout.shortest:
            text = (
                f"{seconds:.2f} s long, shorter than a training segment ({layout.shortest:.2f} s). "
                "Remove the song, or lower pretrain.segment, stage1.segment and stage2.segment."
            )
            findings.append(Finding(song.file(), text))
    return findings


def _check_samples(song: Checked, known: Known | None) -> list[Finding]:
    """Set a song's digests; return the faults of its samples. Reads them unless `known`."""
    files = [song.path(part) for part in song.headers]
    name, given = f"samples {song.folder}", [_CODE, song.parts]
    if known and (facts := known.get(name, files, given)):
        found, findings = Samples(**facts), list[Finding]()
    else:
        before = marks(files)
        found, findings = _read_samples(song)
        if known and before and not findings:
            known.put(name, files, asdict(found), given, before)
    song.digests, song.silent = found.digests, tuple(found.silent)
    findings += [
        _silent(song, part, peak)
        for part, peak in found.peaks.items()
        if peak <= SILENCE or part in found.silent
    ]
    if found.residual is not None and found.residual > RESIDUAL:
        level = f"{found.residual:.1f} dB"
        text = (
            f"not the sum of its stems: the residual is {level} relative to the mixture. Use an "
            "unmastered mix if you can; sound that is in no stem lowers the scores."
        )
        findings.append(Finding(song.file(song.parts[0]), text, warning=True))
    return findings


def _read_samples(song: Checked) -> tuple[Samples, list[Finding]]:
    """Measure a song's samples in one pass over its files; return also the faults found."""
    headers, findings = song.headers, list[Finding]()
    shapes = {(h.channels, h.samples, h.sample_rate) for h in headers.values()}
    summed = len(song.parts) > 1 and set(headers) == set(song.parts) and len(shapes) == 1
    hashes = {part: hashlib.blake2b(digest_size=16) for part in headers}
    peaks = dict.fromkeys(headers, 0.0)
    sounding = set()
    energy = residual = 0.0
    reads = {
        part: audio.raw_blocks(song.path(part), samples=header.samples)
        for part, header in headers.items()
    }
    while reads:
        blocks = {}
        for part, read in list(reads.items()):
            try:
                block = next(read, None)
            except UserError as error:
                findings.append(Finding(song.file(part), without_path(error, song.path(part))))
                del hashes[part], peaks[part]
                block, summed = None, False
            if block is None:
                del reads[part]
                continue
            blocks[part] = block
            step = audio.STEP if block.dtype == np.int16 else np.float32(1)
            hashes[part].update(np.multiply(block, step, dtype=np.float32).data)
            highest = max(float(block.max()), -float(block.min()))
            peaks[part] = max(peaks[part], highest * float(step))
            if part not in sounding and block.sum(axis=1).any():
                sounding.add(part)
        if summed and blocks:
            mixture, *stems = (blocks[part] for part in song.parts)
            of_mixture, of_rest = _energies(mixture, stems)
            energy, residual = energy + of_mixture, residual + of_rest
    digests = {part: found.hexdigest() for part, found in hashes.items()}
    level = 10 * math.log10(residual / energy) if summed and energy and residual else None
    return Samples(digests, peaks, sorted(set(peaks) - sounding), level), findings


def _energies(mixture: NDArray[Any], stems: list[NDArray[Any]]) -> tuple[float, float]:
    """The energies of a mixture, and of the mixture minus its stems."""
    if all(block.dtype == np.int16 for block in (mixture, *stems)):
        # Exact, as in float32: sums of five 16-bit numbers fit into 24 bits.
        rest, step = mixture.astype(np.int32), float(audio.STEP)
        for stem in stems:
            rest -= stem
    else:
        mixture, *stems = (
            block * audio.STEP if block.dtype == np.int16 else block for block in (mixture, *stems)
        )
        rest, step = mixture - np.sum(stems, axis=0), 1.0
    of_rest = float(np.square(rest, dtype=np.float64).sum()) if rest.any() else 0.0
    return float(np.square(mixture, dtype=np.float64).sum()) * step**2, of_rest * step**2


def _silent(song: Checked, part: str, peak: float) -> Finding:
    if part == song.parts[0] and peak <= SILENCE:
        return Finding(song.file(part), "silent throughout. Export it again.")
    if peak > SILENCE:
        text = "silent in mono: its channels cancel out. Export it again."
    elif part in song.silent:
        text = "silent throughout. Export it again, unless the song lacks this stem."
    else:
        text = (
            "no sample is above one step of 16 bit, but it is not silent: its scores are far below "
            "0 dB. Export it again, as digital silence if the song lacks this stem."
        )
    return Finding(song.file(part), text, warning=True)
