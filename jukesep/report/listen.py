"""The listening page: a folder that opens from disk, without a server and without a network.

    listen/
      index.html            the page; what there is to hear, by name
      audio/<number>.js     the sounds of a song's stem, and their peaks, loaded when wanted
      wavesurfer.min.js     draws waveforms (BSD-3-Clause, beside it)

A page that is opened from disk may not fetch files, but may run scripts: so sounds are scripts, of
FLAC or MP3 in base64. The same songs give the same files. No torch here.
"""

from __future__ import annotations

import base64
import csv
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import audio
from ..audio import Audio
from ..base import paths
from ..base.errors import UserError
from ..base.files import atomic_folder
from ..base.progress import bar
from ..songs.manifest import GROUPS, MIXTURE, STEMS, Manifest

HERE = Path(__file__).with_name("listening")
PEAKS = 600  # points of a waveform
LONGEST = 20 * 60  # seconds of a song: two GB in a browser, which holds all sounds decoded
TOLERANCE = 0.1  # seconds; formats differ in what they add at the ends
FILES = {"index.html", "audio", "wavesurfer.min.js", "wavesurfer.licence.txt"}
KINDS = ("mixture", "truth", "pretrained", "scratch", "ceiling", *STEMS, "stem")
Container = Literal["flac", "mp3"]


@dataclass(frozen=True)
class Sound:
    """One line of the page: what it is, its score in dB, and how its samples are read."""

    label: str
    kind: str
    """One of KINDS: its colour."""
    read: Callable[[], tuple[Audio, int]]
    """(channels, samples) and Hz."""
    score: float | None = None
    hint: str = ""


@dataclass(frozen=True)
class Entry:
    """A song of the page: sounds by what they are of, compared with each other."""

    name: str
    note: str
    parts: Mapping[str, Sequence[Sound]]


def write_page(
    folder: Path, title: str, about: str, entries: Sequence[Entry], container: Container
) -> None:
    """Write the page and its sounds to a folder, which appears whole; an older one is replaced.

    UserError if a sound cannot be read.
    """
    total = sum(len(entry.parts) for entry in entries)
    with _folder(folder) as new, bar(total=total, desc="listen", unit="part") as line:
        songs, number, rates = [], 0, {8000}
        (new / "audio").mkdir()
        for entry in entries:
            parts = []
            for part, sounds in entry.parts.items():
                length, clips, rows = 0.0, [], []
                for sound in sounds:
                    samples, rate = sound.read()
                    if not samples.size:
                        raise UserError(f"{entry.name}: {sound.label} is empty, 0 samples long.")
                    length = max(length, samples.shape[1] / rate)
                    clip, rate = _encoded(samples, rate, container)
                    clips.append(clip | {"peaks": _peaks(samples)})
                    rates.add(rate)
                    score = None if sound.score is None else round(sound.score, 2)
                    row = {"label": sound.label, "kind": sound.kind, "score": score}
                    rows.append(row | ({"hint": sound.hint} if sound.hint else {}))
                name = f"audio/{number:04}.js"
                call = f"jukesep.sounds({json.dumps(name)},{_json(clips)});\n"
                (new / name).write_text(call, encoding="utf-8")
                parts.append({"name": part, "file": name, "seconds": length, "sounds": rows})
                number += 1
                line.update()
            songs.append({"name": entry.name, "note": entry.note, "parts": parts})
        for name in ("wavesurfer.min.js", "wavesurfer.licence.txt"):
            shutil.copyfile(HERE / name, new / name)
        page = (HERE / "page.html").read_text(encoding="utf-8")
        # Browsers take these rates.
        rate = min(max(rates), 96_000)
        content = {"title": title, "about": about, "rate": rate, "songs": songs}
        for place, text in (
            ("/*STYLE*/", (HERE / "page.css").read_text(encoding="utf-8")),
            ("/*SCRIPT*/", (HERE / "page.js").read_text(encoding="utf-8")),
            ("/*CONTENT*/", _json(content)),  # the last: names in it are replaced by nothing
        ):
            page = page.replace(place, text)
        (new / "index.html").write_text(page, encoding="utf-8")


def of_experiment(params: Mapping[str, Any], root: Path = Path()) -> None:
    """listen/ from what `evaluate` kept of an experiment; `params` is its params.yaml.

    A page that says why there is nothing to hear, if nothing was kept.
    """
    manifest = Manifest.load(root / paths.MANIFEST)
    entries = []
    scores = _scores(root / paths.SCORES)
    if params["evaluate"]["audio"]:
        for song in manifest.split(params["evaluate"]["split"]):
            mixture = Sound("mixture", "mixture", _mono(song.file(MIXTURE)), hint="all stems")
            parts = {}
            for stem in (stem for stem in STEMS if stem in params["stems"]):
                sounds = [mixture, Sound(f"true {stem}", "truth", _mono(song.file(stem)))]
                for init in params["inits"]:
                    kept = root / paths.sounds(stem, init) / song.name
                    for step in sorted(params["stage2"]["checkpoints"], reverse=True):
                        sounds.append(
                            Sound(
                                f"{init}, {step:,} steps",
                                init,
                                _mono(kept / f"{step}.flac"),
                                scores.get((song.name, stem, "separation", init, str(step))),
                                "separated from the mixture",
                            )
                        )
                sounds += [
                    Sound(
                        f"ceiling, {init}",
                        "ceiling",
                        _mono(root / paths.sounds(stem, init) / song.name / "ceiling.flac"),
                        scores.get((song.name, stem, "ceiling", init, "")),
                        "true stem through the codec",
                    )
                    for init in params["inits"]
                ]
                parts[stem] = sounds
            entries.append(Entry(song.name, GROUPS.get(song.group, song.group), parts))
    about = (
        f"Songs of the split “{params['evaluate']['split']}”, mono at {manifest.sample_rate:,} Hz, "
        "as they were scored. Scores are the paper's SDR in dB: higher is better, silence has 0."
        if entries
        else "Nothing was kept to listen to: set evaluate.audio=true and run `dvc repro`."
    )
    write_page(root / paths.LISTEN, f"Listen: scale {params['scale']}", about, entries, "flac")


def of_stems(folder: Path, output: Path, mixture: Path | None = None) -> None:
    """A page of songs that `jukesep separate` has separated: folder/<song>/<stem>.wav.

    `folder` may also be that of one song. `mixture` is the song itself, of one song alone.
    UserError if there are no stems.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Pass the one that `jukesep separate -o` wrote.")
    found = {}
    for inside in _folders(folder):
        if stems := _stems(inside):
            name = inside.relative_to(folder).as_posix()
            found[folder.resolve().name if name == "." else name] = stems
    if not found:
        raise UserError(f"{folder}: holds no stems. Expected {folder}/<song>/<stem>.wav.")
    if mixture is not None and len(found) > 1:
        raise UserError(f"--mixture {mixture}: is of one song, {folder} holds {len(found)}.")
    entries = []
    for name, stems in found.items():
        _check_lengths(name, [*stems, *([mixture] if mixture else [])])
        sounds = [
            Sound(path.stem, path.stem if path.stem in STEMS else "stem", _whole(path))
            for path in stems
        ]
        first = Sound("mixture", "mixture", _whole(mixture)) if mixture else None
        first = first or Sound("all stems", "mixture", _sum(name, stems), hint="their sum")
        entries.append(Entry(name, "", {"stems": [first, *sounds]}))
    write_page(output, f"Listen: {folder.resolve().name}", "", entries, "mp3")


def _stems(folder: Path) -> list[Path]:
    suffixes = {".wav", ".flac", ".ogg", ".mp3"}
    found = [p for p in _listed(folder) if p.suffix.lower() in suffixes and p.name[0] != "."]
    order = {stem: number for number, stem in enumerate(STEMS)}
    return sorted(found, key=lambda path: (order.get(path.stem, len(order)), path.name))


def _folders(folder: Path) -> list[Path]:
    """The folder and those below it, but for hidden ones."""
    found = [folder]
    for path in _listed(folder):
        if path.is_dir() and not path.is_symlink() and path.name[0] != ".":
            found += _folders(path)
    return found


def _check_lengths(song: str, paths: Sequence[Path]) -> None:
    """UserError unless all are of one song, and short enough for a page that decodes it whole."""
    seconds = {}
    for path in paths:
        header = audio.info(path)
        seconds[path] = header.samples / header.sample_rate
    first, *others = seconds
    for path in others:
        if abs(seconds[path] - seconds[first]) > TOLERANCE:
            raise UserError(
                f"{song}: {path} is {seconds[path]:.2f} s long and {first} {seconds[first]:.2f} s. "
                "They are of different songs."
            )
    if seconds[first] > LONGEST:
        raise UserError(
            f"{song}: is {seconds[first] / 60:.0f} minutes long. A browser holds up to "
            f"{LONGEST / 60:.0f}: cut the stems first."
        )


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}).") from error


def _mono(path: Path) -> Callable[[], tuple[Audio, int]]:
    def read() -> tuple[Audio, int]:
        return audio.to_mono(audio.read(path)), audio.info(path).sample_rate

    return read


def _whole(path: Path) -> Callable[[], tuple[Audio, int]]:
    return lambda: (audio.read(path), audio.info(path).sample_rate)


def _sum(song: str, paths: Sequence[Path]) -> Callable[[], tuple[Audio, int]]:
    def read() -> tuple[Audio, int]:
        # What was left of the mixture, too, where it was asked for: together they are the mixture.
        parts = [audio.read(path) for path in paths]
        rate = audio.info(paths[0]).sample_rate
        if len({part.shape for part in parts}) > 1 or any(
            audio.info(path).sample_rate != rate for path in paths
        ):
            raise UserError(f"{song}: its stems differ in length, channels or sample rate.")
        return np.sum(parts, axis=0, dtype=np.float32), rate

    return read


def _scores(folder: Path) -> dict[tuple[str, str, str, str, str], float]:
    """(song, stem, system, init, step) -> the paper's SDR."""
    found = {}
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["metric"] == "sdr":
                    key = (row["song"], row["stem"], row["system"], row["init"], row["step"])
                    found[key] = float(row["value"])
    return found


def _encoded(samples: Audio, rate: int, container: Container) -> tuple[dict[str, Any], int]:
    """A sound as `page.js` decodes it, in base64, and its rate.

    What is above full scale is divided by its peak, `gain`, which the page makes good.
    More channels than two become their mean.
    """
    if len(samples) > 2:
        samples = audio.to_mono(samples)
    if container == "mp3" and rate not in (32000, 44100, 48000):
        samples, rate = audio.resample(np.ascontiguousarray(samples), rate, 44100), 44100
    gain = max(float(np.abs(samples).max(initial=0)), 1.0)
    if gain > 1:
        samples = samples / np.float32(gain)
    with tempfile.TemporaryDirectory(prefix="jukesep-") as folder:
        path = Path(folder) / f"sound.{container}"
        audio.write(path, samples, rate, "PCM_16" if container == "flac" else None)
        content = path.read_bytes()
    data = base64.b64encode(content).decode()
    return {"type": f"audio/{container}", "data": data, "gain": round(gain, 6)}, rate


def _peaks(samples: Audio) -> list[int]:
    """The loudest of each of PEAKS stretches, in thousandths of full scale."""
    loud = np.abs(samples).max(axis=0, initial=0)
    edges = np.linspace(0, len(loud), PEAKS + 1).astype(int)
    parts = (loud[a:b] for a, b in pairwise(edges))
    return [round(1000 * float(part.max(initial=0))) for part in parts]


def _json(content: object) -> str:
    """JSON that is safe within a script element, whatever the names of songs are."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


@contextmanager
def _folder(folder: Path) -> Iterator[Path]:
    """A folder that takes the place of `folder` once it is whole: of a page, or of nothing."""
    try:
        # Only what a page consists of is ever deleted: other people's pages have an index.html too.
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if (folder.exists() and not folder.is_dir()) or (there and there != FILES):
            raise UserError(f"{folder}: is there, and no listening page. Choose another --output.")
        with atomic_folder(folder) as new:
            yield new
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}).") from error
