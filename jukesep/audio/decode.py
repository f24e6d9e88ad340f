"""Songs that libsndfile cannot read: other formats, through ffmpeg, and standard input."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .. import audio
from ..base.errors import UserError
from ..base.files import FULL
from .lengths import Incomplete, Longer

# Suffixes to search a folder for. A file given by name is tried whatever its suffix.
READ = frozenset(
    (
        *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus"),
        *(".aif", ".aiff", ".aifc", ".au", ".caf", ".w64"),
    )
)
DECODED = frozenset(
    (
        *(".m4a", ".mp4", ".m4b", ".aac", ".wma", ".webm"),
        *(".mkv", ".mka", ".mov", ".ac3", ".ape", ".wv"),
    )
)
BLOCK = 1 << 20  # bytes
FIRST_ONLY = (
    rb"....ftyp|\x1a\x45\xdf\xa3|\x30\x26\xb2\x75"  # how mp4, mkv, webm and wma files begin
)
# Errors of ffmpeg's that say nothing about the sound: in a cover, or about chapters that are gone.
BESIDE = (
    r"\[(mjpeg|png|bmp|gif|webp)\b|.*Referenced QT chapter track not found|Last message repeated"
)


@contextmanager
def readable(song: str | Path) -> Iterator[Path]:
    """Yield a file with the song's audio that `audio` can read: the song itself, or a decoded copy.

    The copy is a temporary 32-bit float wav file. UserError if neither libsndfile nor ffmpeg can
    read the song, if samples of it are missing, or if it is not a file.
    """
    path = Path(song)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: not a regular file. Pass - to read standard input.")
    try:
        audio.info(path)
    except Incomplete:
        raise
    except UserError as error:
        if not path.is_file() or path.stat().st_size == 0:
            raise
        program = shutil.which("ffmpeg")
        if program is None:
            if path.suffix.lower() not in DECODED:
                raise
            raise UserError(
                f"{path}: reading {path.suffix} files needs ffmpeg, which is not installed. "
                f"Install ffmpeg, or convert the song: {audio.READABLE} need no ffmpeg."
            ) from error
        with _temporary() as folder:
            decoded = folder / "song.wav"
            _decode(program, path, decoded, error)
            yield decoded
        return
    yield path


def _decode(program: str, song: Path, target: Path, error: UserError) -> None:
    with song.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        head = content[:12]
        if re.match(FIRST_ONLY, head, re.DOTALL) and content.find(head, len(head)) >= 0:
            raise Incomplete(
                f"{song}: holds several files one after the other, of which only the first would "
                "be read. Join the songs with an audio editor."
            )
    # Keep ffmpeg from reading anything else that a playlist or address in the file names.
    source = ["-protocol_whitelist", "file", "-i", f"file:{song}"]
    form = ["-map", "0:a:0", "-c:a", "pcm_f32le", "-rf64", "auto", "-f", "wav"]
    try:
        done = subprocess.run(
            [program, "-nostdin", "-v", "error", *source, *form, f"file:{target}"],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as failure:
        raise UserError(f"{program}: cannot be run ({failure}). Install ffmpeg.") from failure
    said = [re.sub(" @ 0x[0-9a-f]+", "", line).strip() for line in done.stderr.splitlines()]
    if any(os.strerror(number) in done.stderr for number in FULL):
        raise _unusable(target.parent.parent, "is full")
    if "matches no streams" in done.stderr:
        raise UserError(f"{song}: not readable as audio: it has no sound. Pass another file.")
    if done.returncode:
        raise UserError(
            f"{song}: not readable as audio, even by ffmpeg ({said[0] if said else error})."
        )
    # ffmpeg leaves out what it cannot decode, such as the end of a truncated file, and succeeds.
    # It also complains about the borders of joined files, which it reads in full.
    faults = [line for line in said if not re.match(BESIDE, line)]
    if faults and not isinstance(error, Longer):
        raise Incomplete(
            f"{song}: ffmpeg cannot decode all of it ({faults[0]}). The file is truncated or "
            "damaged; copy it again."
        )


@contextmanager
def spooled(stream: BinaryIO | None = None) -> Iterator[Path]:
    """Yield a temporary file with the content of standard input or `stream`, since readers seek.

    UserError if it is closed or empty, if it cannot be read, or if the temporary folder is full.
    """
    if stream is None and sys.stdin is None:
        raise UserError("standard input: is closed. Pass a file, or pipe the song to this command.")
    with _temporary() as folder:
        path = folder / "stdin"
        try:
            with path.open("wb") as file:
                shutil.copyfileobj(stream or sys.stdin.buffer, file, BLOCK)
        except OSError as error:
            if error.errno in FULL:
                raise _unusable(folder.parent, "is full") from error
            raise UserError(f"standard input: cannot be read ({error.strerror}).") from error
        if not path.stat().st_size:
            raise UserError("standard input: is empty.")
        yield path


@contextmanager
def _temporary() -> Iterator[Path]:
    """Yield a temporary folder; delete it afterwards. UserError if it cannot be made."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="jukesep-")
    except OSError as error:
        if error.filename is None:  # none of the usual folders can be used; the reason names them
            raise UserError(f"{error.strerror}. Set TMPDIR to a folder with space.") from error
        raise _unusable(
            Path(error.filename).parent, f"cannot be used ({error.strerror})"
        ) from error
    with folder as name:
        yield Path(name)


def _unusable(folder: Path, why: str) -> UserError:
    return UserError(f"{folder}: the temporary folder {why}. Set TMPDIR to another one.")
