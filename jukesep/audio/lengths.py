"""How many samples a file holds, whatever its header says.

libsndfile reads what the header promises. Here the promise is compared with the file:

- Fewer samples than promised: the file is truncated or damaged, which is an error.
- No promise, as in a wav file from a pipe or from a recorder that crashed: the samples go up to
  the end of the file.
- More samples, as in files that were joined: an error. `decode` tries ffmpeg where that helps.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import soundfile

from ..base.errors import UserError

UNKNOWN = 1 << 62  # samples or bytes; a header with at least so many does not know the length
TAIL = 4096  # bytes after the samples that may be padding
ZEROS = 1 << 20  # as many may be, if all are zero
TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")
TRIMMED = 8190  # samples that the header of an mp3 file can remove, at both ends together
WIDTHS = {  # bytes of a sample, by libsndfile's subtype
    **{"PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2},
    **{"PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8},
}
FFMPEG = "Convert the file with ffmpeg. `jukesep separate` does so itself if ffmpeg is installed."
_STDERR = Lock()


class Incomplete(UserError):
    """Samples are missing from a file, or lie where no program looks for them."""


class Longer(UserError):
    """A file holds more samples than its header says, if it says so. ffmpeg reads all of them."""


@contextmanager
def opened(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """Open a file to read its samples, also if its header does not know how many there are.

    Incomplete if it has samples after those that its header describes.
    """
    with ExitStack() as stack:
        with Path(path).open("rb") as raw:
            if not raw.seek(0, io.SEEK_END):  # libsndfile opens some, by their suffix
                raise UserError(f"{path}: the file is empty.")
            found = _samples_in(raw)
            if found:
                _check_rest(path, raw, found)
            mpeg = not found and _at(raw, 0, 4) not in (b"fLaC", b"OggS")
        source: Any = str(path)
        if found and found.promised != found.held:
            source = stack.enter_context(_Patched(path, found))
        with quiet(mpeg):
            file = stack.enter_context(soundfile.SoundFile(source))
        yield file


def count(path: str | Path, file: soundfile.SoundFile) -> int:
    """The samples per channel of an opened file.

    Incomplete if the file has fewer than it promises. Longer if it has more than libsndfile reads,
    or does not say how many it has.
    """
    with Path(path).open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if found := _samples_in(raw):
            _check_chunks(path, file, found)
        if is_mpeg(file):
            return _count_mpeg(path, file.frames, data)
        if file.format == "OGG":
            _check_ogg(path, data)
        if file.frames >= UNKNOWN:
            raise Longer(f"{path}: its header lacks the length, as in streamed audio. {FFMPEG}")
        if file.format == "FLAC":
            _check_flac(path, file, data)
    return int(file.frames)


def is_mpeg(file: soundfile.SoundFile) -> bool:
    """Whether an opened file is mp3, or another layer of MPEG audio."""
    return str(file.subtype).startswith("MPEG")


def incomplete(path: str | Path, held: int, promised: int) -> Incomplete:
    """The error for a file with fewer samples than it promises."""
    return Incomplete(
        f"{path}: ends at sample {held}, expected {promised}. The file is truncated or damaged; "
        "copy it again."
    )


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Keep libmpg123's messages from standard error: libsndfile has no switch for them."""
    if not on:
        yield
        return
    with _STDERR, ExitStack() as stack:
        with suppress(OSError):  # standard error may be closed
            kept = os.dup(2)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), 2)
        yield


# --- samples in a chunk: wav, RF64, W64, AIFF, CAF, AU ------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """A format of chunks: where the first one starts, the form of a chunk's name and size, to what
    its end is padded, the name of the chunk of samples, and the bytes in it before the samples."""

    first: int
    form: str
    padding: int
    samples: bytes = b"data"
    before: int = 0
    counted: int = 0  # bytes of the name and the size, if the size includes them


_KINDS = {  # by a file's first four bytes
    b"RIFF": _Kind(12, "<4sI", 2),
    b"RF64": _Kind(12, "<4sI", 2),
    b"RIFX": _Kind(12, ">4sI", 2),
    b"FORM": _Kind(12, ">4sI", 2, b"SSND", 8),
    b"caff": _Kind(8, ">4sQ", 1, before=4),
    b"riff": _Kind(40, "<16sQ", 8, counted=24),
    b".snd": _Kind(4, ">4sI", 1, b""),  # no chunks, but one header
}


@dataclass(frozen=True)
class _Data:
    """The samples of a file, in bytes: how many the header promises (None if it does not know), how
    many there are, and where the bytes begin that belong to no chunk.

    The header says `held + more`, or should, at `field` as a number of the form `form`.
    """

    promised: int | None
    held: int
    rest: int
    field: int
    form: str
    more: int


def _samples_in(file: BinaryIO) -> _Data | None:
    """Find the samples in a file of chunks; None if they are not there, or in other files."""
    kind = _KINDS.get(_at(file, 0, 4))
    if kind is None:
        return None
    end = file.seek(0, io.SEEK_END)
    long = 0
    for name, field, start, size in _chunks(file, kind, kind.first):
        form = kind.form[0] + kind.form[-1]
        if name == b"ds64":
            long = start + 8
        if name[:4] != kind.samples and kind.samples:
            continue
        if not kind.samples:  # the name is where the samples start
            start = int.from_bytes(name, "big")
        if long and size == 0xFFFFFFFF:
            field, form = long, "<Q"
            size = int.from_bytes(_at(file, long, 8), "little")
        start, more = start + kind.before, kind.before + kind.counted
        promised, there = size - more, max(end - start, 0)
        if _no_promise(size, form):
            rest = _rest(file, kind, start + max(promised, 0)) if promised <= there else 0
            if there and rest < end:  # not only chunks follow, so the bytes are samples
                most = min(there, (1 << 8 * struct.calcsize(form)) - 1 - more)
                return _Data(None, most, start + most, field, form, more)
        held = min(max(promised, 0), there)
        return _Data(promised, held, _rest(file, kind, start + held), field, form, more)
    return None


def _chunks(file: BinaryIO, kind: _Kind, at: int) -> Iterator[tuple[bytes, int, int, int]]:
    """Each chunk from `at`: its name, where its size stands, where its content starts, its size."""
    while len(head := _at(file, at, width := struct.calcsize(kind.form))) == width:
        name, size = struct.unpack(kind.form, head)
        yield name, at + len(name), at + width, size
        at += width + max(size - kind.counted, 0)
        at += -at % kind.padding


def _rest(file: BinaryIO, kind: _Kind, at: int) -> int:
    """Where the chunks end that follow the samples; `at` is the end of the samples."""
    end = file.seek(0, io.SEEK_END)
    padded = min(at + -at % kind.padding, end)
    if not kind.samples or padded == end:
        return padded
    for begin in (padded, at):  # some programs leave out the padding
        at = begin
        for name, _, start, size in _chunks(file, kind, begin):
            stop = start + max(size - kind.counted, 0)
            if stop > end or name[:4] in _KINDS or not re.fullmatch(b"[ -~]{4}", name[:4]):
                break
            at = min(stop + -stop % kind.padding, end)
        if at > begin:
            break
    return at


def _no_promise(size: int, form: str) -> bool:
    """Whether the size in a header stands for an unknown one."""
    if form[-1] == "Q":
        return size == 0 or size >= UNKNOWN
    # Programs that write into pipes choose different large numbers.
    return size <= 8 or 0x7FFF0000 <= size <= 0x80000000 or size >= 0xFFFF0000


def _check_chunks(path: str | Path, file: soundfile.SoundFile, found: _Data) -> None:
    """Refuse a file that ends before its last sample."""
    if found.promised is not None and found.held < found.promised:
        frame = WIDTHS.get(file.subtype, 0) * file.channels or found.held / max(file.frames, 1)
        promised = int(found.promised / frame) if frame else 0
        if promised > file.frames or not frame:  # else a part of a sample is missing
            raise incomplete(path, file.frames, promised)


def _check_rest(path: str | Path, file: BinaryIO, found: _Data) -> None:
    """Refuse a file in which more follows than the chunks that its header describes."""
    tail = _at(file, found.rest, 11)
    after = file.seek(0, io.SEEK_END) - found.rest
    zeros = after <= ZEROS and not _at(file, found.rest, ZEROS).strip(b"\0")
    if tail[:4] in _KINDS or not (after <= TAIL or zeros or tail.startswith(TAGS)):
        raise Incomplete(
            f"{path}: {after} bytes follow the samples that its header describes, as in joined "
            "files. They would be lost. Export the song as one file."
        )


def _at(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)


class _Patched(io.FileIO):
    """A file of chunks that is read as if its header said how many samples it has."""

    def __init__(self, path: str | Path, found: _Data) -> None:
        super().__init__(path)
        self._field = found.field
        self._bytes = struct.pack(found.form, found.held + found.more)

    def readinto(self, buffer: Any) -> int:
        start = self.tell()
        size = super().readinto(buffer)
        for at, byte in enumerate(self._bytes, self._field - start):
            if 0 <= at < size:
                buffer[at : at + 1] = bytes([byte])
        return size


# --- compressed ---------------------------------------------------------------------------------


def _check_ogg(path: str | Path, data: mmap.mmap) -> None:
    """Refuse an Ogg file with a page cut or missing, or in which one stream follows another."""
    at, begun = data.find(b"OggS"), False
    numbers: dict[bytes, int] = {}  # the last page of each stream
    while at >= 0:
        head = data[at : at + 27 + 255].ljust(27, b"\xff")
        first = bool(head[5] & 2)
        if first and begun:
            raise Longer(f"{path}: holds several songs, as joined files do. {FFMPEG}")
        stream, number = head[14:18], int.from_bytes(head[18:22], "little")
        end = at + 27 + head[26] + sum(head[27 : 27 + head[26]])
        if end > len(data) or numbers.setdefault(stream, number - 1) != number - 1:
            raise Incomplete(
                f"{path}: a page of Ogg is cut or missing. The file is truncated or damaged; copy "
                "it again."
            )
        numbers[stream] = number
        begun, at = begun or not first, data.find(b"OggS", end)


def _check_flac(path: str | Path, file: soundfile.SoundFile, data: mmap.mmap) -> None:
    """Refuse a FLAC file without its last sample, or with another file after it."""
    if len(re.findall(rb"fLaC[\0\x80]\0\0\x22", data)) > 1:
        raise Incomplete(
            f"{path}: holds FLAC files one after the other; only the first would be read. Join "
            "the songs with an audio editor."
        )
    if not file.frames:
        return
    try:
        file.seek(file.frames - 1)
        held = len(file.read(1))
        file.seek(0)
    except soundfile.LibsndfileError:
        held = 0
    if not held:
        raise incomplete(path, _decoded(path), file.frames)


def _decoded(path: str | Path) -> int:
    """The samples of a file that libsndfile can decode."""
    done = 0
    with opened(path) as file, suppress(soundfile.LibsndfileError):
        while read := len(file.read(1 << 10, dtype="int16")):
            done += read
    return done


# kbit/s by a frame's number for it, for MPEG 1 and others by layer (ISO 11172-3, ISO 13818-3).
_RATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_HZ = (44100, 48000, 32000)


def _frame(data: mmap.mmap, at: int) -> tuple[int, int, int] | None:
    """The bytes, samples and rate (Hz) of the MPEG audio frame at `at`; None if there is none."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] < 0xE0:
        return None
    version, layer = data[at + 1] >> 3 & 3, 4 - (data[at + 1] >> 1 & 3)
    rate, hz, padded = data[at + 2] >> 4, data[at + 2] >> 2 & 3, data[at + 2] >> 1 & 1
    if version == 1 or layer == 4 or not 0 < rate < 15 or hz == 3:
        return None
    kbps = _RATES[1 if version == 3 else 2, layer][rate - 1]
    hertz = _HZ[hz] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    slot = 4 if layer == 1 else 1  # bytes
    return (samples // 8 * 1000 * kbps // hertz // slot + padded) * slot, samples, hertz


def _count_mpeg(path: str | Path, header: int, data: mmap.mmap) -> int:
    """The samples in MPEG audio, of which libsndfile reads `header`."""
    at, frames, total, promised, tagged, cut = _next_frame(data, 0), 0, 0, None, False, False
    rates = Counter[int]()
    while at is not None and (found := _frame(data, at)):
        size, length, hertz = found
        cut = at + size > len(data)
        tag = re.search(rb"Xing|Info|VBRI", data[at : at + 40]) if not frames else None
        if tag:  # this frame has no samples, but says how many have
            tagged, start = True, at + tag.start()
            vbri = tag[0] == b"VBRI"
            flags, counted = data[start + 4 : start + 8], start + (14 if vbri else 8)
            if vbri or (flags and flags[-1] & 1):
                promised = int.from_bytes(data[counted : counted + 4], "big")
        elif not cut:
            frames, total = frames + 1, total + length
            rates[hertz] += 1
        at = _next_frame(data, at + size)
    steady = [str(hertz) for hertz, times in rates.items() if times > 9]
    if len(steady) > 1:
        raise Incomplete(
            f"{path}: its sample rate changes from {steady[0]} to {steady[1]} Hz, as in joined "
            "files. Convert the songs to one rate before they are joined."
        )
    if promised is not None and (frames < promised - 1 or (cut and frames < promised)):
        raise incomplete(path, min(total, header * frames // max(promised, 1)), header)
    if header + (TRIMMED if tagged else 0) < total or (promised and frames > promised):
        raise Longer(
            f"{path}: holds {total} samples, but its header says {header}, as in joined or "
            f"streamed files. {FFMPEG}"
        )
    return min(header, total) if total else header


def _next_frame(data: mmap.mmap, at: int) -> int | None:
    """Where the next frame of MPEG audio begins, at `at` or after what is none; None at the end."""
    while data[at : at + 3] == b"ID3":
        sizes = data[at + 6 : at + 10]  # four times 7 bits
        at += 10 + sum(size << shift for size, shift in zip(sizes, (21, 14, 7, 0), strict=False))
    if data[at : at + 8] == b"APETAGEX":
        at += 32 + int.from_bytes(data[at + 12 : at + 16], "little")
    if _frame(data, at):
        return at
    while (at := data.find(b"\xff", at + 1)) >= 0:
        there, following = at, 0
        while following < 3 and there < len(data) and (found := _frame(data, there)):
            there, following = there + found[0], following + 1
        if following == 3 or (following and there == len(data)):
            return at
    return None
