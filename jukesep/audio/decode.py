"""Songs that libsndfile cannot read: other formats, through ffmpeg, and standard input."""

from __future__ import annotations

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

# Suffixes to search a folder for. A file given by name is tried whatever its suffix.
READ = frozenset(
    (
        *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus"),
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".caf",
        ".w64",
    )
)
DECODED = frozenset(
    (
        *(".m4a", ".mp4", ".m4b", ".aac", ".wma", ".webm"),
        ".mkv",
        ".mka",
        ".mov",
        ".ac3",
        ".ape",
        ".wv",
    )
)
BLOCK = 1 << 20  # bytes
UNKNOWN = 1 << 62  # samples; reported by libsndfile if the header lacks the length


@contextmanager
def readable(song: str | Path) -> Iterator[Path]:
    """Yield a file with the song's audio that `audio` can read: the song itself, or a decoded copy.

    The copy is a temporary 32-bit float wav file. UserError if neither libsndfile nor ffmpeg can
    read the song, or if it is not a file.
    """
    path = Path(song)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: not a regular file. Pass - to read standard input.")
    try:
        if audio.info(path).samples >= UNKNOWN:
            raise UserError(
                f"{path}: its header lacks the length, as in streamed audio. Reading it needs "
                "ffmpeg, which is not installed. Install ffmpeg, or convert the song."
            )
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
        with tempfile.TemporaryDirectory(prefix="jukesep-") as folder:
            decoded = Path(folder) / "song.wav"
            _decode(program, path, decoded, error)
            yield decoded
        return
    yield path


def _decode(program: str, song: Path, target: Path, error: UserError) -> None:
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
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [str(error)]
        raise UserError(f"{song}: not readable as audio, even by ffmpeg ({said[0].strip()}).")


@contextmanager
def spooled(stream: BinaryIO | None = None) -> Iterator[Path]:
    """Yield a temporary file with the content of standard input or `stream`, since readers seek.

    UserError if it is empty.
    """
    with tempfile.TemporaryDirectory(prefix="jukesep-") as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(stream or sys.stdin.buffer, file, BLOCK)
        if not path.stat().st_size:
            raise UserError("standard input: is empty.")
        yield path
