"""Rows on whole commands: `prepare`, `jukesep separate`, `jukesep --help`, the demo's `dvc repro`.

Each command is run as a user runs it, in a temporary folder.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from benchmarks.measuring import ROOT, timed
from benchmarks.row import Goal, Result, Row
from jukesep import audio
from jukesep.base import params, paths
from jukesep.base.errors import UserError
from jukesep.base.files import write_text
from jukesep.songs.manifest import MIXTURE, STEMS, Song

Lines = list[tuple[float, str]]
"""Of a program's output, each with the second at which it came."""

RATE = 44_100
TRAININGS = ("pretrain ", "stage1 ", "stage2 ", "peer ")  # titles of their progress bars
TRAINING = ("weights", "stage1", "stage2", "peer")  # the stages that have them
OUTSIDE = "time outside of training loops"
STAGE = re.compile(r"Running stage '([a-z0-9]+)")
BAR = re.compile(r"^([^|]+?): +\d+%\|.*\[(?:(\d+):)?(\d+):(\d+)<")
PREPARE = ("jukesep/audio", "jukesep/base/unchanged.py", "jukesep/songs", "stages/prepare.py")
HELP = ("jukesep/__init__.py", "jukesep/cli.py", "jukesep/commands", "jukesep/base")
SEPARATE = ("jukesep/audio", "jukesep/kernels", "jukesep/model", "jukesep/separation")


def prepare(songs: int = 4, seconds: float = 240) -> Result:
    """The stage on a folder of songs at the model's rate, the first and the second time.

    The yardstick is reading the same files on all cores and doing nothing with them. The files are
    dropped from the system's cache before each first time, where that can be done.
    """
    size = songs * 5 * 4 * seconds * RATE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_songs(folder / "songs", songs, seconds)
        settings = ["scale=paper", "data=folder", f"data.root={folder / 'songs'}"]
        settings += ["inits=[scratch]", "data.valid_songs=1"]
        write_text(folder / "params.yaml", params.compose(settings, ROOT / "conf"))
        files = sorted((folder / "songs").rglob("*.wav"))
        cold = _forget(files)
        reading, _ = timed(lambda: _read(files))
        _forget(files)
        stage = partial(python, folder, "-m", "stages.prepare")
        first, second = timed(stage)[0], timed(stage)[0]
        start, _ = timed(partial(python, folder, "-c", "import jukesep.songs.prepare"))
    return Result(
        {"files read": {"seconds": reading}, "first time": {"seconds": first}},
        {"second time": second, "first time over reading": (first - start) / reading},
        note=f"{songs} songs of {seconds / 60:g} minutes, {size / 1e9:.1f} GB, "
        + ("not in memory" if cold else "in memory")
        + f"; the process itself takes {start:.1f} s of each time",
    )


def make_songs(root: Path, songs: int, seconds: float) -> None:
    """ROOT/{train,test}/<song>/*.wav: stems of noise, and their sum. One song is for the test."""
    noise = np.random.default_rng(0)
    for number in range(songs):
        folder = root / ("test" if number == 0 else "train") / f"song {number}"
        total = np.zeros((2, round(seconds * RATE)), np.int16)
        for stem in STEMS:
            samples = noise.integers(-4000, 4000, total.shape, np.int16)
            audio.write(folder / f"{stem}.wav", samples, RATE, "PCM_16")
            total += samples
        audio.write(folder / f"{MIXTURE}.wav", total, RATE, "PCM_16")


def noise_songs(root: Path, songs: int, seconds: float) -> list[Song]:
    """The training songs of `make_songs`."""
    make_songs(root, songs, seconds)
    folders = sorted((root / "train").iterdir())
    return [Song(one.name, "train", "seen", one, round(seconds * RATE)) for one in folders]


def _forget(files: Sequence[Path]) -> bool:
    """Ask the system to keep nothing of the files in memory; whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _read(files: Sequence[Path]) -> None:
    def one(path: Path) -> None:
        block = bytearray(1 << 20)
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass

    with ThreadPoolExecutor(measuring.cores()) as pool:
        list(pool.map(one, files))


def reading(songs: int = 4, seconds: float = 120, segment: int = 393_216) -> Result:
    """The mixture and a stem of random segments, read as the trainings read them.

    The files lie in the folder of temporary files: TMPDIR chooses the disk.
    """
    from jukesep.training.segments import Segments

    with tempfile.TemporaryDirectory() as name:
        found, parts = noise_songs(Path(name), songs, seconds), (MIXTURE, STEMS[0])
        Segments(found, parts, 2048, seed=0, purpose="reading")[0]  # loads code on its first use
        cold = _forget(sorted(Path(name).rglob("*.wav")))
        segments = Segments(found, parts, segment, seed=0, purpose="reading")
        times = [timed(partial(segments.__getitem__, i))[0] / len(parts) for i in range(200)]
    return Result(
        {"jukesep": {"seconds": statistics.median(times)}},
        {"95 % take at most": 1e3 * statistics.quantiles(times, n=20)[-1]},
        note=f"{len(found)} songs of {seconds:g} s, {'not ' if cold else ''}in memory at first",
    )


def hour(rate: int = 11_025, lengths: tuple[int, int] = (60, 3600)) -> Result:
    """Peaks of memory of `jukesep separate` on a short song and on a long one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measuring.fresh(0, make_models, folder, STEMS[0], "pretrained", rate)
        sides = {
            f"{seconds / 60:g} minute{'s' if seconds != 60 else ''}": _separated(
                folder, seconds, 1, rate
            )
            for seconds in lengths
        }
    short, long = (side["megabytes"] for side in sides.values())
    return Result(
        sides,
        {"growth": long - short},
        note=f"`jukesep separate`, demo model, one stem, mono at {rate:,} Hz",
    )


def small_chunks(rate: int = 44_100, seconds: int = 30, chunk: int = 1024) -> Result:
    """Peaks of memory of `jukesep separate` with the default chunk and with a small one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stem in STEMS:
            measuring.fresh(0, make_models, folder, stem, "pretrained", rate // 4)
        sides = {
            "default chunk": _separated(folder, seconds, 2, rate),
            f"{chunk:,} samples": _separated(folder, seconds, 2, rate, "--chunk", str(chunk)),
        }
    default, small = (side["megabytes"] for side in sides.values())
    return Result(
        sides,
        {"memory": small / default},
        note=f"`jukesep separate`, demo models, four stems, {seconds} s of stereo at {rate:,} Hz",
    )


def _separated(
    folder: Path, seconds: int, channels: int, rate: int, *options: str
) -> dict[str, float]:
    """Seconds and MB of `jukesep separate` on noise, in a process of its own."""
    song, stems = folder / f"{seconds}.wav", folder / f"stems {' '.join(options)}"
    noise = np.random.default_rng(0).integers(-4000, 4000, (channels, seconds * rate), np.int16)
    audio.write(song, noise, rate, "PCM_16")
    arguments = ["separate", str(song), "-o", str(stems), "--models", str(folder / "runs")]
    taken, peak = measuring.fresh(0, _command, [*arguments, "--device", "cpu", *options])
    return {"seconds": taken, "megabytes": peak / 1e6}


def make_models(
    folder: Path, stem: str, init: str, rate: int, step1: int = 1, steps2: Sequence[int] = (1,)
) -> None:
    """Checkpoints of one stem as `dvc repro` leaves them: the demo's model, random weights."""
    from benchmarks.sides import DEMO, model
    from jukesep.model import jukebox

    vqvae, _ = model(DEMO, 1, 4096)
    hps = {"sample_rate": rate}
    first = folder / paths.checkpoint("stage1", stem, init, step1)
    jukebox.save_jukebox(vqvae, first, step1, hps)
    for step in steps2:
        second = folder / paths.checkpoint("stage2", stem, init, step)
        jukebox.save_encoder(vqvae.encoder, second, step, hps)


def _command(arguments: list[str]) -> tuple[float, int]:
    """Seconds of a command of jukesep, and the peak of memory of this process, in bytes."""
    from jukesep import cli

    taken, _ = timed(lambda: cli.app(arguments, standalone_mode=False))
    return taken, measuring.highest()


def start(seconds: float = 4.0) -> Result:
    """`jukesep --help`, and what Python alone takes to start."""
    command = Path(sys.executable).with_name("jukesep")
    run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL, env=_environment())
    commands = {"python": [sys.executable, "-c", ""], "jukesep": [str(command), "--help"]}
    steps = {side: partial(run, command) for side, command in commands.items()}
    runs = measuring.interleaved(steps, seconds)
    medians = {side: statistics.median(values) for side, values in runs.items()}
    return Result(
        {side: {"seconds": value} for side, value in medians.items()},
        {"seconds": medians["jukesep"]},
    )


def repro() -> Result:
    """`dvc repro` in a fresh clone of what is committed; its scores against the committed ones.

    And the seconds of its stages by kind, and of those the seconds under a progress bar.
    """
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        committed = totals(clone)
        taken, lines = timed(lambda: python(clone, "-m", "dvc", "repro", "--force", show=True))
        found = totals(clone)
    worst = min(found[key] - committed[key] for key in committed)
    stages = _stages(lines, taken)
    outside = taken - sum(stages[kind]["progress"] for kind in TRAINING if kind in stages)
    return Result(
        {"jukesep": {"seconds": taken}},
        {"minutes": taken / 60, OUTSIDE: outside, "change of the lowest score": worst},
        note="in a fresh clone, all stages run",
        details={"stages": stages},
    )


def _stages(lines: Lines, end: float) -> dict[str, dict[str, float]]:
    """Kind of stage -> how many ran, their seconds, and those that their progress bars took."""
    found: dict[str, dict[str, float]] = {}
    begun = [(at, match[1]) for at, line in lines if (match := STAGE.search(line))]
    for (start, kind), stop in zip(begun, [*(at for at, _ in begun[1:]), end], strict=True):
        stage = found.setdefault(kind, {"runs": 0, "seconds": 0.0, "progress": 0.0})
        stage["runs"] += 1
        stage["seconds"] += stop - start
        bars: dict[str, float] = {}  # the last time that each shows
        for at, line in lines:
            if start <= at < stop and (match := BAR.search(line)):
                title, *parts = match.groups()
                hours, minutes, seconds = (int(part or 0) for part in parts)
                bars[title] = 3600 * hours + 60 * minutes + seconds
        # Trainings run side by side: the longest one counts. Other bars come one after the other.
        trainings = [seconds for title, seconds in bars.items() if title.startswith(TRAININGS)]
        others = sum(bars.values()) - sum(trainings)
        stage["progress"] += others + max(trainings, default=0.0)
    return found


def totals(root: Path) -> dict[str, float]:
    """The mean SDR of every system that was trained."""
    files = sorted((root / paths.METRICS / "sdr").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8"))["total"] for path in files}


def _environment() -> dict[str, str]:
    """This environment's programs are found first, and Python keeps what it compiles."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    return environment


def python(folder: Path, *arguments: str, show: bool = False) -> Lines:
    """Run Python with these arguments in a folder; the lines of its output.

    With `-m`, a clone runs its own code. UserError with the output if it fails.
    """
    start, lines = time.perf_counter(), []
    environment = {**_environment(), "PYTHONUNBUFFERED": "1"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = [sys.executable, *arguments]
    # In a text a carriage return ends a line too.
    with subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.perf_counter() - start, line))
            if show:
                sys.stderr.write(line)
    if process.returncode:
        said = "".join(line for _, line in lines)
        raise UserError(f"`python {' '.join(arguments)}` failed:\n{said}")
    return lines


AT_MOST = partial(Goal, at_least=False)
ROWS = {
    "prepare": Row(
        "`prepare` on songs of 4 minutes", prepare, PREPARE, (AT_MOST("second time", 2),)
    ),
    "reading": Row(
        "read a stem's segment of 393,216 samples at random from 16-bit files",
        reading,
        ("jukesep/audio", "jukesep/training/segments.py"),
    ),
    "hour": Row(
        "memory of separating a song of an hour against one of a minute",
        hour,
        SEPARATE,
        (AT_MOST("growth", 50),),
    ),
    "chunks": Row(
        "memory of separating a song in chunks of 1,024 samples against the default",
        small_chunks,
        SEPARATE,
        (AT_MOST("memory", 1),),
    ),
    "help": Row("`jukesep --help`", start, HELP, (AT_MOST("seconds", 0.5),)),
    "repro": Row(
        "the demo's `dvc repro`",
        repro,
        ("jukesep", "stages"),
        (AT_MOST("minutes", 6), AT_MOST(OUTSIDE, 130), Goal("change of the lowest score", 0)),
        in_suite=False,
    ),
}
