"""The files of a song before their samples are read: their names, their formats, their headers.

This module does not import torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from .. import audio
from ..audio import AudioInfo
from ..base.errors import UserError
from .manifest import STEMS, part_file, part_files


def read_headers(
    folder: Path, parts: Iterable[str]
) -> tuple[dict[str, AudioInfo], list[tuple[str, str]]]:
    """The headers of a song's files, and (part, fault) for each file without a usable one."""
    headers, faults = {}, []
    for part in parts:
        path = part_file(folder, part)
        try:
            if fault := _name_fault(folder, part) or _format_fault(path):
                faults.append((part, fault))
                continue
            header = audio.info(path)
        except UserError as error:
            remedied = isinstance(error, audio.lengths.Incomplete | audio.lengths.Longer)
            faults.append((part, without_path(error, path) + " Copy it again." * (not remedied)))
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
    """(part, fault) for each file that differs from the others, or from `channels` and `rate`."""
    channels = channels or usual(header.channels for header in headers.values())
    rate = rate or usual(header.sample_rate for header in headers.values())
    samples = usual(header.samples for header in headers.values())
    faults = []
    for part, header in headers.items():
        if header.channels != channels:
            kind = {1: "mono", 2: "stereo"}.get(header.channels, f"{header.channels} channels")
            wanted = {1: "mono", 2: "stereo"}.get(channels, f"{channels} channels")
            faults.append((part, f"{kind}, but the song is {wanted}. Export it as {wanted}."))
        if header.sample_rate != rate:
            faults.append(
                (part, f"sample rate {header.sample_rate} Hz, expected {rate} Hz. Resample it.")
            )
        elif header.samples != samples:
            faults.append(
                (
                    part,
                    f"{header.samples} samples long, but the song's other files have {samples}. "
                    "Export all files of the song with the same start and end.",
                )
            )
    return faults


def entries(folder: Path) -> list[Path]:
    """The entries of a folder sorted by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.name[0] != ".")


def held(names: Iterable[str]) -> str:
    """Names in words: up to six, or the first five and the number of the others."""
    first = sorted(names)
    if len(first) > 6:
        first = [*first[:5], f"{len(first) - 5} more"]
    return ", ".join(first) or "nothing"


def usual(values: Iterable[int]) -> int:
    """The most frequent value, the first on a tie; 0 if there are no values."""
    return next((value for value, _ in Counter(values).most_common(1)), 0)


def without_path(error: UserError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _name_fault(folder: Path, part: str) -> str | None:
    """The fault in the names of a song's files: none for a part, two, or another format."""
    found = part_files(folder, part)
    if len(found) > 1:
        others = (path.name for path in found if path != part_file(folder, part))
        return f"also there as {held(others)}. Remove all but one."
    if not found and folder.is_dir():
        near = [path.name for path in entries(folder) if path.stem.lower() == part]
        if near:
            return f"no such file, but {held(near)}. Convert it to wav or flac."
        if part in STEMS:
            return "no such file. Copy it again, or add a silent one if the song lacks this stem."
    return None


def _format_fault(path: Path) -> str | None:
    """The fault of a file of another format than its name says, which `audio` would read."""
    if not path.is_file():
        return None  # audio.info reports it
    with path.open("rb") as file:
        head = file.read(12)
    if path.suffix.lower() == ".flac":
        right, kind = head[:4] == b"fLaC", "flac"
    else:
        right, kind = head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE", "wav"
    if head and not right:
        return f"not a {kind} file (it begins with {head[:4]!r}). Convert it to {kind}."
    return None
