"""Rows on whole commands: `prepare`, `jukesep separate`, `jukesep --help`, the demo's `dvc repro`.

Each command is run as a user runs it, in a temporary folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import timing
from benchmarks.machine import ROOT
from benchmarks.row import Goal, Options, Result, Row, Skipped
from jukesep import audio
from jukesep.base import params
from jukesep.base.errors import UserError
from jukesep.base.files import write_text
from jukesep.songs.manifest import MIXTURE, STEMS

RATE = 44_100
SONG_SECONDS = 240
MINUTE, HOUR = 60, 3600
STAGE = re.compile(r"Running stage '([a-z0-9]+)")
BAR = re.compile(r"^([^|]+?): +\d+%\|.*\[(?:(\d+):)?(\d+):(\d+)<")


def prepare(options: Options, seconds: float = SONG_SECONDS) -> Result:
    """The stage on a folder of songs at the model's rate, the first and the second time.

    The yardstick is reading the same files on all cores and doing nothing with them. What the
    system keeps of the files in memory is dropped before each first time, where it can be.
    """
    songs = max(options.songs, 3)
    size = songs * 5 * 4 * seconds * RATE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < 1.2 * size:
            raise Skipped(f"{songs} songs take {size / 1e9:.1f} GB, more than is free")
        _make_songs(folder / "songs", songs, seconds)
        settings = ["scale=paper", "data=folder", f"data.root={folder / 'songs'}"]
        settings += ["inits=[scratch]", "data.valid_songs=1"]
        if seconds < 10:
            settings += [f"{stage}.segment=4096" for stage in ("pretrain", "stage1", "stage2")]
        write_text(folder / "params.yaml", params.compose(settings, ROOT / "conf"))
        files = sorted((folder / "songs").rglob("*.wav"))
        cold = _forget(files)
        reading = _timed(lambda: _read(files))
        _forget(files)
        stage = partial(_run, ["-m", "stages.prepare"], folder)
        first, second = _timed(stage), _timed(stage)
        start = _timed(
            partial(_run, ["-c", "import jukesep.songs.prepare, jukesep.base.params"], folder)
        )
    return Result(
        {"files read": {"seconds": reading}, "first time": {"seconds": first}},
        {"second time": second, "first time over reading": (first - start) / reading},
        note=f"{songs} songs of {seconds / 60:g} minutes, {size / 1e9:.1f} GB, "
        + ("not in memory" if cold else "in memory")
        + f"; the process itself takes {start:.1f} s of each time",
    )


def _make_songs(root: Path, songs: int, seconds: float) -> None:
    """ROOT/{train,test}/<song>/*.wav of noise, one song of them for the test; the mixture is the
    sum of the stems."""
    noise = np.random.default_rng(0)
    for number in range(songs):
        folder = root / ("test" if number == 0 else "train") / f"song {number}"
        total = np.zeros((2, round(seconds * RATE)), np.int16)
        for stem in STEMS:
            samples = noise.integers(-4000, 4000, total.shape, np.int16)
            audio.write(folder / f"{stem}.wav", samples, RATE, "PCM_16")
            total += samples
        audio.write(folder / f"{MIXTURE}.wav", total, RATE, "PCM_16")


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
    from concurrent.futures import ThreadPoolExecutor

    def one(path: Path) -> None:
        block = bytearray(1 << 20)
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass

    with ThreadPoolExecutor(timing.cores()) as pool:
        list(pool.map(one, files))


def hour(options: Options, rate: int = 11_025, lengths: tuple[int, int] = (MINUTE, HOUR)) -> Result:
    """Peaks of memory of `jukesep separate` on a short song and on a long one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timing.fresh(0, _make_separator, folder, rate)
        sides, peaks = {}, []
        for seconds in lengths:
            song = folder / f"{seconds}.wav"
            _write_noise(song, seconds, rate)
            arguments = ["separate", str(song), "-o", str(folder / "stems")]
            arguments += ["--models", str(folder / "runs"), "--device", "cpu"]
            taken, peak = timing.fresh(0, _command, arguments)
            unit = f"{seconds / 60:g} minute{'s' if seconds != 60 else ''}"
            sides[unit] = {"seconds": taken, "megabytes": peak / 1e6}
            peaks.append(peak)
            song.unlink()
    return Result(
        sides,
        {"difference": (peaks[1] - peaks[0]) / 1e6},
        note=f"`jukesep separate`, demo model, one stem, mono at {rate:,} Hz",
    )


def _write_noise(path: Path, seconds: float, rate: int) -> None:
    """A mono song of noise, block by block."""
    import soundfile

    noise = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        for _ in range(round(seconds)):
            file.write(0.1 * noise.uniform(-1, 1, rate))


def _make_separator(folder: Path, rate: int) -> None:
    """Trainings of one stem as `dvc repro` leaves them, with random weights."""
    from benchmarks.speed import DEMO, model
    from jukesep.model import jukebox

    vqvae, _ = model(DEMO, 1, 4096)
    hps = {"sample_rate": rate}
    run = f"{STEMS[0]}_pretrained/checkpoints/1.pt"
    jukebox.save_jukebox(vqvae, folder / "runs/stage1" / run, 1, hps)
    jukebox.save_encoder(vqvae.encoder, folder / "runs/stage2" / run, 1, hps)


def _command(arguments: list[str]) -> tuple[float, int]:
    """Seconds of a command of jukesep, and the peak of memory of this process, in bytes."""
    from jukesep import cli

    start = time.perf_counter()
    cli.app(arguments, standalone_mode=False)
    return time.perf_counter() - start, timing.highest()


def start(options: Options) -> Result:
    """`jukesep --help`, and what Python alone takes to start."""
    command = Path(sys.executable).with_name("jukesep")
    if not command.exists():
        raise Skipped(
            f"there is no {command.name} beside this Python: the package is not installed"
        )
    run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL, env=_environment())
    runs = timing.interleaved(
        {
            "python": lambda: run([sys.executable, "-c", ""]),
            "jukesep": lambda: run([str(command), "--help"]),
        },
        options.seconds / 2,
    )
    seconds = {side: statistics.median(values) for side, values in runs.items()}
    return Result(
        {side: {"seconds": value} for side, value in seconds.items()},
        {"seconds": seconds["jukesep"]},
        rounds=len(runs["jukesep"]),
    )


def repro(options: Options) -> Result:
    """`dvc repro` in a fresh clone of what is committed; its scores against the committed ones.

    And how long its stages take, by kind, and for how much of it they show progress: the rest is
    Python and PyTorch starting, reading and writing, and DVC's own work.
    """
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "clone"
        try:
            subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Skipped("this is not a git repository, or git is not installed") from error
        committed = _totals(clone)
        lines: list[tuple[float, str]] = []
        taken = _timed(partial(_follow, ["-m", "dvc", "repro", "--force"], clone, lines))
        found = _totals(clone)
    worst = min(found[key] - committed[key] for key in committed)
    return Result(
        {"jukesep": {"seconds": taken}},
        {"minutes": taken / 60, "change of the lowest score": worst},
        note="in a fresh clone, all stages run",
        details={"stages": _stages(lines, taken)},
    )


def _follow(arguments: list[str], folder: Path, lines: list[tuple[float, str]]) -> None:
    """Python with these arguments, as `_run`; its lines, and the second at which each came."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**_environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,  # in which a carriage return ends a line too
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.perf_counter() - start, line))
            sys.stderr.write(line)
    if process.returncode:
        raise UserError(f"`python {' '.join(arguments)}` failed; above is why.")


def _stages(lines: Sequence[tuple[float, str]], end: float) -> dict[str, dict[str, float]]:
    """Kind of stage -> how many ran, their seconds, and those that their progress bars took."""
    found: dict[str, dict[str, float]] = {}
    begun = [(at, match[1]) for at, line in lines if (match := STAGE.search(line))]
    for (start, kind), stop in zip(begun, [*(at for at, _ in begun[1:]), end], strict=True):
        stage = found.setdefault(kind, {"runs": 0, "seconds": 0.0, "progress": 0.0})
        stage["runs"] += 1
        stage["seconds"] += stop - start
        bars: dict[str, float] = {}  # the last that each says
        for at, line in lines:
            if start <= at < stop and (match := BAR.search(line)):
                title, *parts = match.groups()
                hours, minutes, seconds = (int(part or 0) for part in parts)
                bars[title] = 3600 * hours + 60 * minutes + seconds
        stage["progress"] += sum(bars.values())
    return found


def _totals(root: Path) -> dict[str, float]:
    """The mean SDR of every system that was trained."""
    found = {}
    for path in sorted((root / "metrics").glob("*.json")):
        found[path.stem] = json.loads(path.read_text(encoding="utf-8"))["total"]
    return found


def _environment() -> dict[str, str]:
    """This environment's programs are found first, and Python keeps what it compiles."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    return environment


def _run(arguments: list[str], folder: Path) -> None:
    """Python with these arguments, in a folder.

    A clone finds its own code: what runs with `-m` looks in its folder first.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"`python {' '.join(arguments)}` failed:\n{done.stderr}")


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


ROWS = {
    "prepare": Row(
        "`prepare` on songs of 4 minutes",
        prepare,
        (Goal("second time", 2, " s", at_least=False),),
        module="commands",
    ),
    "hour": Row(
        "memory of separating a song of an hour against one of a minute",
        hour,
        (Goal("difference", 50, " MB", at_least=False, digits=0),),
        module="commands",
    ),
    "help": Row(
        "`jukesep --help`", start, (Goal("seconds", 0.5, " s", at_least=False),), module="commands"
    ),
    "repro": Row(
        "the demo's `dvc repro`",
        repro,
        (
            Goal("minutes", 6, " min", at_least=False, digits=1),
            Goal("change of the lowest score", 0, " dB"),
        ),
        in_suite=False,
        module="commands",
    ),
}
