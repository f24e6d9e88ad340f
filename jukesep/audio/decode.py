"""Songs that are no files for libsndfile: other formats, through ffmpeg, and standard input."""

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

# What a folder is searched for; a file that is named is tried whatever its suffix.
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
UNKNOWN = 1 << 62  # samples; libsndfile's number for a length that the header does not say


@contextmanager
def readable(song: str | Path) -> Iterator[Path]:
    """Yield a file that `audio` reads and that holds what `song` does: itself, or a decoded one.

    The decoded file is 32-bit float, in the folder for temporary files. UserError if neither
    libsndfile nor ffmpeg reads the song, or if it is no file.
    """
    path = Path(song)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: is no file. Pass - to read standard input.")
    try:
        if audio.info(path).samples >= UNKNOWN:
            raise UserError(
                f"{path}: does not say how long it is, as what was streamed, and is read through "
                "ffmpeg, which is not installed. Install it, or convert the song."
            )
    except UserError as error:
        if not path.is_file() or path.stat().st_size == 0:
            raise
        program = shutil.which("ffmpeg")
        if program is None:
            if path.suffix.lower() not in DECODED:
                raise
            raise UserError(
                f"{path}: {path.suffix} files are read through ffmpeg, which is not installed. "
                f"Install it, or convert the song: {audio.READABLE} are read without."
            ) from error
        with tempfile.TemporaryDirectory(prefix="jukesep-") as folder:
            decoded = Path(folder) / "song.wav"
            _decode(program, path, decoded, error)
            yield decoded
        return
    yield path


def _decode(program: str, song: Path, target: Path, error: UserError) -> None:
    # No playlist or address in the file may make ffmpeg read anything else.
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
        raise UserError(f"{program}: does not run ({failure}).") from failure
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [str(error)]
        raise UserError(f"{song}: not readable as audio, nor by ffmpeg ({said[0].strip()}).")


@contextmanager
def spooled(stream: BinaryIO | None = None) -> Iterator[Path]:
    """Yield a temporary file of what standard input, or another stream, holds: formats need seeks.

    UserError if it holds nothing.
    """
    with tempfile.TemporaryDirectory(prefix="jukesep-") as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as file:
            shutil.copyfileobj(stream or sys.stdin.buffer, file, BLOCK)
        if not path.stat().st_size:
            raise UserError("standard input: is empty.")
        yield path
