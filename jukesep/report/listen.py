"""The listening page: a folder that opens from disk, without a server and without a network.

    listen/
      index.html            the page, with the names of its songs and sounds
      audio/<number>.js     the sounds of one stem of a song and their peaks, loaded on demand
      wavesurfer.min.js     draws waveforms (BSD-3-Clause; the licence is in the same folder)

A page that is opened from disk may not fetch files, but it may run scripts. So each sound is a
script that contains mp3 in base64. The same songs give the same files. This module does not
import torch.
"""

from __future__ import annotations

import base64
import csv
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .. import audio
from ..audio import Audio
from ..base import paths
from ..base.errors import UserError
from ..base.files import atomic_folder
from ..base.parallel import cores
from ..base.progress import bar, note
from ..songs.manifest import GROUPS, MIXTURE, STEMS, Manifest
from ..systems import equaliser
from .others import LABELS, REFINED, others, refined_init

HERE = Path(__file__).with_name("listening")
PEAKS = 600  # points in a waveform
LONGEST = 20 * 60  # seconds; a browser keeps all sounds decoded, here about 2 GB
LIMIT = 30_000_000  # bytes of an experiment's page, which leaves out songs to keep to it
TOLERANCE = 0.1  # seconds; some formats add samples at the ends
FILES = {"index.html", "audio", "wavesurfer.min.js", "wavesurfer.licence.txt"}
KINDS = (
    *("mixture", "truth", "pretrained", "scratch", "refined", "peer", "equaliser", "ceiling"),
    *(*STEMS, "stem"),
)
Scores = dict[tuple[str, str, str, str, str], float]
"""(song, stem, system, init, step) -> dB."""


@dataclass(frozen=True)
class Sound:
    """One row of the page: its label, its score in dB and a function that reads its samples."""

    label: str
    kind: str
    """One of KINDS; it sets the colour."""
    read: Callable[[], tuple[Audio, int]]
    """Returns the samples, (channels, samples), and the sample rate in Hz."""
    score: float | None = None
    hint: str = ""


@dataclass(frozen=True)
class Clip:
    """An encoded sound in the form that `page.js` reads, its length, and its rate in Hz."""

    content: dict[str, Any]
    seconds: float
    rate: int


@dataclass(frozen=True)
class Entry:
    """A song on the page. The sounds of each part, such as a stem, are compared with each other."""

    name: str
    note: str
    parts: Mapping[str, Sequence[Sound]]


@dataclass(frozen=True)
class Pick:
    """A sound that the page names at its top; the page opens with the first of them."""

    name: str
    text: str
    song: int
    part: int
    sound: int
    """The numbers of the song, of the part in it, and of the sound in that."""


def write_page(
    folder: Path,
    title: str,
    about: str,
    entries: Sequence[Entry],
    picks: Sequence[Pick] = (),
    limit: float = math.inf,
) -> None:
    """Write the page and its sounds to `folder`, atomically; an existing page is replaced.

    With a `limit` in bytes, the last songs are left out until the folder is within it, and the
    page names them. Songs up to the last of `picks` stay in any case. UserError if a sound cannot
    be read, or if `folder` contains anything but a listening page.
    """
    total = sum(len(entry.parts) for entry in entries)
    least = max((pick.song + 1 for pick in picks), default=0)
    with (
        _folder(folder) as new,
        bar(total=total, desc="listen", unit="part") as line,
        ThreadPoolExecutor(cores()) as pool,
    ):
        songs: list[dict[str, Any]] = []
        number, rates = 0, {8000}
        (new / "audio").mkdir()
        for name in ("wavesurfer.min.js", "wavesurfer.licence.txt"):
            shutil.copyfile(HERE / name, new / name)
        for entry in entries:
            if len(songs) >= least and _size(new) > limit:
                break
            encoded = cache(partial(_encoded, entry.name))  # the mixture is in each of its parts
            parts = []
            for part, sounds in entry.parts.items():
                clips = list(pool.map(encoded, sounds))
                name = f"audio/{number:04}.js"
                contents = [clip.content for clip in clips]
                call = f"jukesep.sounds({json.dumps(name)},{_json(contents)});\n"
                (new / name).write_text(call, encoding="utf-8")
                seconds = max((clip.seconds for clip in clips), default=0.0)
                rows = [_row(sound) for sound in sounds]
                parts.append({"name": part, "file": name, "seconds": seconds, "sounds": rows})
                rates |= {clip.rate for clip in clips}
                number += 1
                line.update()
            songs.append({"name": entry.name, "note": entry.note, "parts": parts})
        while True:
            left = ""
            if gone := [entry.name for entry in entries[len(songs) :]]:
                left = (
                    f" Left out, because the page takes at most {limit / 1e6:g} MB: "
                    f"{', '.join(gone)}."
                )
            content = {
                "title": title,
                "about": about + left,
                "rate": min(max(rates), 96_000),  # browsers support from 8,000 to 96,000 Hz
                "picks": [asdict(pick) for pick in picks],
                "songs": songs,
            }
            text = _page(content)
            if len(songs) <= least or _size(new) + len(text.encode()) <= limit:
                break
            for part in songs.pop()["parts"]:
                (new / part["file"]).unlink()
        (new / "index.html").write_text(text, encoding="utf-8")
        if left:
            note(f"{folder}:{left}")


def _page(content: Mapping[str, Any]) -> str:
    """Return index.html."""
    page = (HERE / "page.html").read_text(encoding="utf-8")
    for place, text in (
        ("/*STYLE*/", (HERE / "page.css").read_text(encoding="utf-8")),
        ("/*SCRIPT*/", (HERE / "page.js").read_text(encoding="utf-8")),
        # Last, so that a placeholder in a name of a song is not replaced.
        ("/*CONTENT*/", _json(content)),
    ):
        page = page.replace(place, text)
    return page


def _size(folder: Path) -> int:
    """Return the bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def of_experiment(params: Mapping[str, Any], root: Path = Path()) -> None:
    """Write listen/ from the audio that was scored; `params` is params.yaml as a dictionary.

    The page opens with the stem that gains most; LIMIT is its size. If no audio was kept, the page
    says why. UserError if a file is missing.
    """
    manifest = Manifest.load(root / paths.MANIFEST)
    entries = []
    if params["evaluate"]["audio"]:
        scores = _scores(params, root)
        for song in manifest.split(params["evaluate"]["split"]):
            mixture = Sound("mixture", "mixture", _mono(song.file(MIXTURE)), hint="all stems")
            parts = {}
            for stem in (stem for stem in STEMS if stem in params["stems"]):
                true = Sound(f"true {stem}", "truth", _mono(song.file(stem)))
                systems = _systems(params, root, scores, song.name, stem)
                parts[stem] = [mixture, true, *systems]
            entries.append(Entry(song.name, GROUPS.get(song.group, song.group), parts))
    about = (
        f"Songs of the split “{params['evaluate']['split']}”, mono at {manifest.sample_rate:,} Hz, "
        "as they were scored, in mp3. Scores are the paper's SDR in dB: higher is better, silence "
        "has 0."
        if entries
        else "Nothing was kept to listen to: set evaluate.audio=true and run `dvc repro`."
    )
    entries, picks = _picked(params, entries)
    if len(picks) > 1:
        ours = list(entries[0].parts.values())[picks[0].part][picks[0].sound].label
        about += (
            f" Best and worst are the stems where “{ours}” gains most and least over the static "
            "equaliser."
        )
    title = f"Listen: scale {params['scale']}"
    write_page(root / paths.LISTEN, title, about, entries, picks, LIMIT)


def _picked(params: Mapping[str, Any], entries: list[Entry]) -> tuple[list[Entry], list[Pick]]:
    """Where our stems gain most and least over the static equaliser, and the songs, these first.

    Ours are the refined stems; without them, those of the last checkpoint of the init that would
    be refined. Of equal gains, the first is the best. Nothing is picked if nothing has a score.
    """
    refined = any(other.name == REFINED for other in others(params))
    kind = "refined" if refined else refined_init(params["inits"])
    found = []
    for entry in entries:
        for part, (stem, sounds) in enumerate(entry.parts.items()):
            number = [sound.kind for sound in sounds].index(kind)  # the last checkpoint is first
            score = sounds[number].score
            base = next(sound.score for sound in sounds if sound.kind == "equaliser")
            if score is not None and base is not None:
                gain = round(score, 2) - round(base, 2)  # of the scores as the page shows them
                text = f"{stem} of {entry.name}: {score:.2f} dB, {gain:+.2f} over the "
                found.append((gain, entry, part, number, text + "static equaliser"))
    found.sort(key=lambda one: one[0], reverse=True)
    ends = [*found[:1], *found[1:][-1:]]
    names = list(dict.fromkeys(entry.name for entry in [*(one[1] for one in ends), *entries]))
    picks = [
        Pick(name, text, names.index(entry.name), part, number)
        for name, (_, entry, part, number, text) in zip(("Best", "Worst"), ends, strict=False)
    ]
    return sorted(entries, key=lambda entry: names.index(entry.name)), picks


def _systems(
    params: Mapping[str, Any], root: Path, scores: Scores, song: str, stem: str
) -> Iterator[Sound]:
    """What separated a stem of a song: ours, the refined stem, peers, the equaliser, ceilings."""
    inits = params["inits"]
    for init in inits:
        for step in sorted(params["stage2"]["checkpoints"], reverse=True):
            yield Sound(
                f"{init}, {step:,} steps",
                init,
                _mono(root / paths.sounds(stem, init) / song / f"{step}.flac"),
                scores.get((song, stem, "separation", init, str(step))),
                "separated from the mixture",
            )
    for other in others(params):
        refined = other.name == REFINED
        yield Sound(
            f"{refined_init(inits)}, refined" if refined else LABELS.get(other.name, other.name),
            "refined" if refined else "peer",
            _mono(root / other.sound(song, stem)),
            scores.get((song, stem, other.name, "", str(other.step))),
            "all models, Wiener filters" if refined else "trained on the same songs",
        )
    yield Sound(
        LABELS[equaliser.NAME],
        "equaliser",
        _mono(root / paths.system_sounds(equaliser.NAME) / song / f"{stem}.flac"),
        scores.get((song, stem, equaliser.NAME, "", "")),
        "one gain per frequency",
    )
    for init in inits:
        yield Sound(
            f"ceiling, {init}",
            "ceiling",
            _mono(root / paths.sounds(stem, init) / song / "ceiling.flac"),
            scores.get((song, stem, "ceiling", init, "")),
            "true stem through the codec",
        )


def of_stems(folder: Path, output: Path, mixture: Path | None = None) -> None:
    """Write a page for the output of `jukesep separate`: folder/<song>/<stem>.wav.

    `folder` may also be the folder of a single song; only then `mixture` may give its audio file.
    UserError if there are no stems, or if files of one song differ in length.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder. Pass the folder that `jukesep separate -o` wrote."
        )
    found = {}
    for inside in _folders(folder):
        if stems := _stems(inside):
            name = inside.relative_to(folder).as_posix()
            found[folder.resolve().name if name == "." else name] = stems
    if not found:
        raise UserError(f"{folder}: contains no stems. Expected {folder}/<song>/<stem>.wav.")
    if mixture is not None and len(found) > 1:
        raise UserError(
            f"--mixture {mixture}: is one song, but {folder} has {len(found)}. Pass the folder of "
            "that song."
        )
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
    write_page(output, f"Listen: {folder.resolve().name}", "", entries)


def _stems(folder: Path) -> list[Path]:
    suffixes = {".wav", ".flac", ".ogg", ".mp3"}
    there = [p for p in _listed(folder) if p.is_file() or p.is_symlink()]
    found = [p for p in there if p.suffix.lower() in suffixes and p.name[0] != "."]
    order = {stem: number for number, stem in enumerate(STEMS)}
    return sorted(found, key=lambda path: (order.get(path.stem, len(order)), path.name))


def _folders(folder: Path) -> list[Path]:
    """Return the folder and its subfolders, without hidden ones and links."""
    found = [folder]
    for path in _listed(folder):
        if path.is_dir() and not path.is_symlink() and path.name[0] != ".":
            found += _folders(path)
    return found


def _check_lengths(song: str, paths: Sequence[Path]) -> None:
    """Raise UserError if the files differ in length, or are too long for a browser."""
    seconds = {}
    for path in paths:
        header = audio.info(path)
        seconds[path] = header.samples / header.sample_rate
    first, *others = seconds
    for path in others:
        if abs(seconds[path] - seconds[first]) > TOLERANCE:
            raise UserError(
                f"{song}: {path} is {seconds[path]:.2f} s long, but {first} is "
                f"{seconds[first]:.2f} s long. Pass files of the same song."
            )
    if seconds[first] > LONGEST:
        raise UserError(
            f"{song}: is {seconds[first] / 60:.0f} minutes long. A browser has memory for "
            f"{LONGEST / 60:.0f}: cut the stems into shorter files."
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
        # With the residual, if there is one: then the sum is the mixture.
        parts = [audio.read(path) for path in paths]
        rate = audio.info(paths[0]).sample_rate
        if len({part.shape for part in parts}) > 1 or any(
            audio.info(path).sample_rate != rate for path in paths
        ):
            raise UserError(
                f"{song}: its stems differ in length, channels or sample rate. Pass --mixture."
            )
        return np.sum(parts, axis=0, dtype=np.float32), rate

    return read


def _scores(params: Mapping[str, Any], root: Path) -> Scores:
    """The paper's SDR in dB of what the parameters name."""
    files = [paths.scores(stem, init) for stem in params["stems"] for init in params["inits"]]
    files += [paths.BASELINES, *(paths.system_scores(other.peer) for other in others(params))]
    found = {}
    for path in dict.fromkeys(files):
        try:
            with (root / path).open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    # A song without the stem has sounds, but no score.
                    if row["metric"] == "sdr" and row["value"] != "nan":
                        key = (row["song"], row["stem"], row["system"], row["init"], row["step"])
                        found[key] = float(row["value"])
        except FileNotFoundError:
            raise UserError(f"{root / path}: no such file; run `dvc repro` to write it") from None
    return found


def _row(sound: Sound) -> dict[str, Any]:
    score = None if sound.score is None else round(sound.score, 2)
    row = {"label": sound.label, "kind": sound.kind, "score": score}
    return row | ({"hint": sound.hint} if sound.hint else {})


def _encoded(song: str, sound: Sound) -> Clip:
    """Read a sound and encode it as mp3.

    Samples beyond full scale are divided by their peak; the page multiplies by it again (`gain`).
    More than two channels become their mean.
    """
    samples, rate = sound.read()
    if not samples.size:
        raise UserError(f"{song}: {sound.label} is empty (0 samples).")
    seconds, peaks = samples.shape[1] / rate, _peaks(samples)
    if len(samples) > 2:
        samples = audio.to_mono(samples)
    if rate not in audio.MP3_RATES:
        samples, rate = audio.resample(np.ascontiguousarray(samples), rate, 44100), 44100
    gain = max(float(np.abs(samples).max(initial=0)), 1.0)
    if gain > 1:
        samples = samples / np.float32(gain)
    data = base64.b64encode(audio.in_memory(samples, rate)).decode()
    content = {"type": "audio/mp3", "data": data, "gain": round(gain, 6), "peaks": peaks}
    return Clip(content, seconds, rate)


def _peaks(samples: Audio) -> list[int]:
    """Split the samples into PEAKS parts; return the peak of each in 1/1000 of full scale."""
    loud = np.abs(samples).max(axis=0, initial=0)
    edges = np.linspace(0, len(loud), PEAKS + 1).astype(int)
    parts = (loud[a:b] for a, b in pairwise(edges))
    return [round(1000 * float(part.max(initial=0))) for part in parts]


def _json(content: object) -> str:
    """Return JSON that is safe inside a <script> element, whatever the songs are called."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


@contextmanager
def _folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `folder` at the end; UserError if that is not a page."""
    try:
        # Never delete anything but a listening page: other sites have an index.html too.
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if (folder.exists() and not folder.is_dir()) or (there and there != FILES):
            raise UserError(
                f"{folder}: already exists and is not a listening page. Choose another --output."
            )
        with atomic_folder(folder) as new:
            yield new
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}).") from error
