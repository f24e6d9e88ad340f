"""MUSDB18-HQ and MUSDB18: the archive and its licence, the validation songs, `.stem.mp4` files.

    MUSDB18-HQ   ROOT/{train,test}/<song>/{mixture,drums,bass,other,vocals}.wav
    MUSDB18      ROOT/{train,test}/<song>.stem.mp4   five AAC streams in that order

The files of the packages musdb and torchaudio are read, not imported: importing musdb needs
ffmpeg, importing torchaudio needs torch.
"""

from __future__ import annotations

import ast
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
import yaml

from .. import audio
from ..base.download import download
from ..base.errors import UserError
from ..base.files import sweep, temporary
from ..base.packages import package_folder
from ..base.progress import bar
from ..base.unchanged import Known, code, marks
from .checks import Finding, Layout, raise_errors, wrong_root
from .manifest import MIXTURE, STEMS

PARTS = (MIXTURE, *STEMS)
SPLITS = ("train", "test")
SONGS = {"train": 100, "test": 50}
ARCHIVE = "musdb18hq.zip"
STEM_FILE = ".stem.mp4"


def layout(shortest: float) -> Layout:
    """The layout of MUSDB18-HQ."""
    return Layout(
        parts=dict.fromkeys(SPLITS, PARTS),
        songs=SONGS,
        names={"train": validation_songs()},
        sample_rate=44_100,
        channels=2,
        shortest=shortest,
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
    """Download MUSDB18-HQ into an empty folder, or resume that; leave any other folder alone.

    An archive already in the folder is unpacked. UserError if the licence is not accepted, if
    the download fails, or if the disk is too small.
    """
    path = root / ARCHIVE
    visible = [entry.name for entry in root.iterdir() if entry.name[0] != "."]
    if all((root / split).exists() for split in SPLITS):
        return
    if set(visible) - {ARCHIVE, f"{ARCHIVE}.part", *(SPLITS if path.exists() else ())}:
        return
    url, sha256 = archive_source()
    if not accepted:
        raise UserError(
            f"{root}: holds no songs. Copy MUSDB18-HQ there, or let this stage download it from "
            f"{url} (tens of GB). It is for research only, not commercial use: read the licence at "
            "https://sigsep.github.io/datasets/musdb.html, and accept it with "
            "-S data.accept_licence=true."
        )
    if not path.exists():
        download(url, path, sha256=sha256, title="MUSDB18-HQ")
    unpack(path, root)
    path.unlink()


def unpack(archive: Path, root: Path) -> None:
    """Unpack the songs in MUSDB18-HQ's archive to `root`; each split appears when complete."""
    sweep(root)
    try:
        with zipfile.ZipFile(archive) as file:
            songs = [entry for entry in file.infolist() if _is_part(entry.filename)]
            size, free = sum(entry.file_size for entry in songs), shutil.disk_usage(root).free
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
                for entry in songs:
                    file.extract(entry, unfinished)
                    line.update(entry.file_size)
                for split in SPLITS:
                    if (unfinished / split).is_dir() and not (root / split).exists():
                        os.replace(unfinished / split, root / split)
    except (zipfile.BadZipFile, EOFError) as error:
        raise UserError(
            f"{archive}: not a complete zip archive ({error}). Delete it and download it again."
        ) from error
    except OSError as error:
        raise UserError(f"{root}: cannot be written to ({error.strerror or error}).") from error


def _is_part(name: str) -> bool:
    """Whether an archive's entry is <split>/<song>/<part>.wav; others are not unpacked."""
    path = PurePosixPath(name)
    return (
        len(path.parts) == 3
        and path.parts[0] in SPLITS
        and path.parts[1][0] != "."
        and path.parts[2] in {f"{part}.wav" for part in PARTS}
    )


def decode(root: Path, target: Path, sample_rate: int, known: Known | None = None) -> None:
    """Decode MUSDB18's .stem.mp4 files below `root` to wav files in MUSDB18-HQ's layout.

    stempeg decodes to 16 bits, as musdb does. Files at `sample_rate` Hz stay 16-bit, others are
    resampled to float. Songs that are `known` from an earlier run and unchanged are kept.
    UserError that names every file that cannot be decoded.
    """
    stempeg = decoder()
    files = [path for split in SPLITS for path in sorted((root / split).glob(f"*{STEM_FILE}"))]
    if not files:
        wavs = any((root / split).glob("*/mixture.wav") for split in SPLITS)
        hint = "Its songs are wav files: use data=musdb18hq or data=folder." if wavs else ""
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

    with ThreadPoolExecutor(os.cpu_count()) as pool:
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
