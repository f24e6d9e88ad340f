"""MUSDB18-HQ and MUSDB18: the archive and its licence, the validation songs, `.stem.mp4` files.

    MUSDB18-HQ   ROOT/{train,test}/<song>/{mixture,drums,bass,other,vocals}.wav
                 or ROOT/musdb18hq.zip, which holds the same, also in a folder of its own
    MUSDB18      ROOT/{train,test}/<song>.stem.mp4   five AAC streams in that order

The files of the packages musdb and torchaudio are read, not imported: importing musdb needs
ffmpeg, importing torchaudio needs torch.
"""

from __future__ import annotations

import ast
import lzma
import os
import shutil
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
import yaml

from .. import audio
from ..base.download import alone, download
from ..base.errors import UserError
from ..base.files import sweep, temporary
from ..base.packages import package_folder
from ..base.parallel import at_once
from ..base.progress import bar
from ..base.unchanged import Known, code, file_digest, marks
from .checks import Finding, Layout, raise_errors, wrong_root
from .headers import held
from .manifest import MIXTURE, PARTS, is_part, part_file

SPLITS = ("train", "test")
SONGS = {"train": 100, "test": 50}
ARCHIVE = "musdb18hq.zip"
STEM_FILE = ".stem.mp4"
DECODED = 20  # times the size of such a file: the memory that decoding it takes


def layout(shortest: float) -> Layout:
    """The layout of MUSDB18-HQ."""
    return Layout(
        parts=dict.fromkeys(SPLITS, PARTS),
        songs=SONGS,
        names={"train": validation_songs()},
        sample_rate=44_100,
        channels=2,
        shortest=shortest,
        beside=frozenset([ARCHIVE]),
    )


def validation_songs() -> frozenset[str]:
    """The 14 training songs that musdb sets aside for validation, by name."""
    path = package_folder("musdb") / "configs" / "mus.yaml"
    return frozenset(yaml.safe_load(path.read_text(encoding="utf-8"))["validation_tracks"])


def archive_source() -> tuple[str, str]:
    """Address and sha256 of MUSDB18-HQ's archive, from torchaudio's dataset module."""
    path = package_folder("torchaudio") / "datasets" / "musdb_hq.py"
    constants = {
        target.id: node.value
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return ast.literal_eval(constants["_URL"]), ast.literal_eval(constants["_CHECKSUM"])


def fetch(root: Path, accepted: bool) -> None:
    """Unpack MUSDB18-HQ's archive in `root`, or download it into an empty folder and unpack it.

    Does nothing if both splits are there, or if there is no archive but something else. Only an
    archive that this call downloaded is deleted afterwards. UserError if the licence of a download
    is not accepted, if the download fails, if the archive is not MUSDB18-HQ's, or if the disk is
    too small.
    """
    archive = root / ARCHIVE
    others = [path for path in root.iterdir() if path.name[0] != "."]
    if _complete(root) or (others and not archive.is_file()):
        return
    url, sha256 = archive_source()
    if not others and not accepted:
        raise UserError(
            f"{root}: holds no songs. Copy MUSDB18-HQ there, or let this stage download it from "
            f"{url} (tens of GB). It is for research only, not commercial use: read the licence at "
            "https://sigsep.github.io/datasets/musdb.html, and accept it with "
            "-S data.accept_licence=true."
        )
    with alone(archive, "MUSDB18-HQ"):
        if _complete(root):  # by another process
            return
        if archive.is_file():
            _say_sum(archive, sha256)
            unpack(archive, root)
        else:
            download(url, archive, sha256=sha256, title="MUSDB18-HQ")
            unpack(archive, root)
            archive.unlink()


def _complete(root: Path) -> bool:
    return all((root / split).exists() for split in SPLITS)


def _say_sum(archive: Path, sha256: str) -> None:
    """Say whether an archive of the user's is the published one: others may be right, too."""
    print(f"{archive}: will be unpacked and kept; checking its sha256", file=sys.stderr)
    try:
        found = file_digest(archive)
    except OSError as error:
        raise UserError(f"{archive}: cannot be read ({error.strerror}).") from error
    if found != sha256:
        print(
            f"warning: {archive}: sha256 is {found}, that of the published archive is {sha256}. "
            "That is right for another packaging of the same songs. The checksums of the files in "
            "it are checked as well.",
            file=sys.stderr,
        )


def unpack(archive: Path, root: Path) -> None:
    """Unpack the splits that `root` lacks from MUSDB18-HQ's archive; each appears when complete.

    UserError, before anything is written, if the archive is not one of all songs of these splits.
    """
    sweep(root)
    again = "Download it again."
    try:
        with zipfile.ZipFile(archive) as file:
            entries = _entries(archive, file, [s for s in SPLITS if not (root / s).exists()])
            size, free = sum(entry.file_size for entry in entries), shutil.disk_usage(root).free
            if size > free:
                raise UserError(
                    f"{root}: {free / 1e9:.1f} GB are free, but unpacking {archive.name} takes "
                    f"{size / 1e9:.1f} GB. Free some space, or give a folder on another disk."
                )
            title = f"unpack {archive.name}"
            with (
                temporary(root / SPLITS[0], folder=True) as unfinished,
                bar(total=size, desc=title, unit="B", unit_scale=True) as line,
            ):
                for entry in entries:
                    file.extract(entry, unfinished)
                    line.update(entry.file_size)
                for path in unfinished.iterdir():
                    os.replace(path, root / path.name)
    except (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{archive}: not a complete zip archive ({error}). {again}") from error
    except RuntimeError as error:  # a password, or a method that zipfile lacks
        raise UserError(
            f"{archive}: cannot be unpacked here ({error}). Unpack it into {root} with another "
            "program."
        ) from error
    except OSError as error:
        path = error.filename or root
        raise UserError(f"{path}: {error.strerror or error}, while unpacking {archive}.") from error


def _entries(
    archive: Path, file: zipfile.ZipFile, splits: Collection[str]
) -> list[zipfile.ZipInfo]:
    """The entries of an archive that are parts of songs of these splits, named <split>/<song>/...

    UserError if a song is there twice, or if the splits do not have as many songs as MUSDB18-HQ.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in file.infolist():
        place = _place(entry.filename)
        if place is None or place.parts[0] not in splits:
            continue
        if (name := str(place)) in found:
            raise UserError(
                f"{archive}: holds {name!r} twice, as {found[name].orig_filename!r} and "
                f"{entry.orig_filename!r}. Unpack it yourself, and keep one of the two."
            )
        entry.filename, found[name] = name, entry
    parts = Counter(PurePosixPath(name).parent for name in found)
    whole = Counter(song.parts[0] for song, count in parts.items() if count == len(PARTS))
    if any(whole[split] != SONGS[split] for split in splits):
        counts, wanted = (
            " and ".join(f"{numbers[split]} {split} songs" for split in splits)
            for numbers in (whole, SONGS)
        )
        names = held(repr(e.orig_filename) for e in file.infolist() if not e.is_dir())
        raise UserError(
            f"{archive}: has {counts} with all parts, MUSDB18-HQ has {wanted}. Expected: "
            f"{{train,test}}/<song>/{{{','.join(PARTS)}}}.wav, also in folders. Found: {names}. "
            "Replace it by MUSDB18-HQ's archive, or unpack it elsewhere and use data=folder."
        )
    return list(found.values())


def _place(name: str) -> PurePosixPath | None:
    """Where an entry of an archive belongs, <split>/<song>/<file>; None if not to a song's parts.

    The splits may be inside folders, and archives made on Windows can have backslashes. Nothing
    else is unpacked: no hidden entries, no copies by macOS, and nothing that leaves the folder.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    *_, split, song, file = path.parts if len(path.parts) >= 3 else ("", "", "")
    bad = {"/", "__MACOSX"}
    if any(part in bad or part[0] == "." for part in path.parts) or not is_part(file, *PARTS):
        return None
    return PurePosixPath(split, song, file) if split in SPLITS else None


def decode(root: Path, target: Path, sample_rate: int, known: Known | None = None) -> None:
    """Decode MUSDB18's .stem.mp4 files below `root` to wav files in MUSDB18-HQ's layout.

    stempeg decodes to 16 bits, as musdb does. Files at `sample_rate` Hz stay 16-bit, others are
    resampled to float. Songs that are `known` from an earlier run and unchanged are kept.
    UserError that names every file that cannot be decoded.
    """
    stempeg = decoder()
    files = [path for split in SPLITS for path in sorted((root / split).glob(f"*{STEM_FILE}"))]
    if not files:
        folders = [path for split in SPLITS for path in (root / split).glob("*/")]
        whole = any(part_file(path, MIXTURE).exists() for path in folders)
        hint = "Its songs are wav or flac: use data=musdb18hq or data=folder." if whole else ""
        raise UserError(
            f"{root}: no songs. MUSDB18's are expected as {root}/train/<song>{STEM_FILE}. "
            f"{hint or wrong_root(root)}"
        )

    how: dict[str, Any] = {
        "rate": sample_rate,
        "code": code(__file__, audio.samples.__file__, audio.lengths.__file__),
    }
    how |= {name: version(name) for name in ("stempeg", "torch", "torchaudio")}

    def one(path: Path) -> Finding | None:
        folder = target / path.parent.name / path.name.removesuffix(STEM_FILE)
        files = [path, *(folder / f"{part}.wav" for part in PARTS)]
        name, before = f"decoded {folder}", marks([path])
        if known and known.get(name, files, how) is not None:
            return None
        try:
            _decode_song(stempeg, path, folder, sample_rate)
        except UserError as error:
            return Finding(f"{path.parent.name}/{path.name}", str(error))
        if known and before:
            known.put(name, files, {}, how, before)
        return None

    size = max(path.stat().st_size for path in files)
    with ThreadPoolExecutor(at_once(len(files), DECODED * size)) as pool:
        done = bar(pool.map(one, files), total=len(files), desc="prepare: decode", unit="song")
        raise_errors(root, [finding for finding in done if finding])


def decoder() -> ModuleType:
    """The package stempeg, musdb's decoder. UserError if ffmpeg is not installed."""
    missing = [program for program in ("ffmpeg", "ffprobe") if not shutil.which(program)]
    if missing:
        raise UserError(
            f"data=musdb18 needs {' and '.join(missing)} to decode {STEM_FILE} files: install "
            "ffmpeg (`apt-get install ffmpeg`, `brew install ffmpeg`, `conda install ffmpeg`), or "
            "use MUSDB18-HQ, whose wav files need no decoder (data=musdb18hq)."
        )
    import stempeg

    return stempeg


def _decode_song(stempeg: ModuleType, path: Path, folder: Path, sample_rate: int) -> None:
    again = "Copy the file again."
    try:
        info = stempeg.Info(str(path))
        streams = info.audio_stream_idx()
        if len(streams) != len(PARTS):
            raise UserError(
                f"{len(streams)} audio stream(s), expected {len(PARTS)}: {', '.join(PARTS)}. "
                "Remove the file, or replace it by MUSDB18's."
            )
        for number, part in enumerate(PARTS):
            # One stream at a time limits memory, and stempeg fails on streams of unequal length.
            read, rate = stempeg.read_stems(
                str(path), stem_id=streams[number], info=info, dtype=np.int16,
                ffmpeg_format="s16le", always_3d=True,
            )  # fmt: skip
            samples = read[0].T
            promised = info.duration(number)
            if samples.shape[1] < (promised - 0.1) * rate:
                found = samples.shape[1] / rate
                raise UserError(f"ends after {found:.1f} of {promised:.1f} s ({part}). {again}")
            if rate == sample_rate:
                audio.write(folder / f"{part}.wav", samples, rate, "PCM_16")
            else:
                floats = np.ascontiguousarray(samples, np.float32) / np.float32(32768)
                resampled = audio.resample(floats, rate, sample_rate)
                audio.write(folder / f"{part}.wav", resampled, sample_rate, "FLOAT")
    # stempeg raises `Warning` for files it cannot read; read.ffmpeg is its ffmpeg module.
    except (stempeg.read.ffmpeg.Error, Warning, RuntimeError, ValueError, KeyError) as error:
        detail = getattr(error, "stderr", None) or str(error).encode()
        last = detail.decode(errors="replace").strip().splitlines()[-1:]
        raise UserError(f"cannot be decoded ({' '.join(last)}). {again}") from error
