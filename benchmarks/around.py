"""What is around the trainings: scores, evaluation, `prepare`, separation of files, the start.

    uv run python -m benchmarks.around                # every row; some minutes
    uv run python -m benchmarks.around sdr_v4 start   # some

Each row is a function that measures both sides in turns and returns the medians and their ratio;
they are printed as JSON. Sizes are arguments, for shorter runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jukesep import audio, params, scores
from jukesep.songs import MIXTURE, STEMS, Song

ROOT = Path(__file__).parents[1]
RATE = 44_100


def sdr_v4(seconds: float = 30.0, rate: int = RATE, rounds: int = 5) -> dict[str, Any]:
    """BSSEval v4's SDR of a song of four stereo stems: museval, once, against ours; seconds.

    Both with as many threads as the environment allows; set OMP_NUM_THREADS=1 for one.
    """
    noise = np.random.default_rng(0).normal(0, 0.1, (3, 4, 2, round(seconds * rate)))
    references = noise[0]
    estimates = 0.9 * references + 0.3 * noise[1] + 0.05 * noise[2].sum(axis=0)
    museval = scores.museval_metrics()
    theirs: list[Any] = []

    def reference() -> None:
        moved = (np.moveaxis(x, 1, 2) for x in (references, estimates))
        theirs[:] = museval.bss_eval(*moved, window=rate, hop=rate)

    def ours() -> np.ndarray:
        return scores.framewise_sdr(references, estimates, rate)

    result = _compared({"museval": [_seconds(reference)], "jukesep": _rounds(ours, rounds)})
    return result | {"largest_difference_db": float(np.abs(theirs[0] - ours()).max())}


def evaluation(
    rounds: int = 3, songs: int | None = None, seconds: float | None = None
) -> dict[str, Any]:
    """A stem of the demo's evaluation against its models alone, on all cores; seconds.

    Songs of noise, by default as many and as long as params.yaml has test songs; random weights.
    """
    import torch

    from jukesep import evaluation
    from jukesep.separation import apply_chunked
    from jukesep.vqvae import VQVAE, Architecture

    p = params.load(ROOT / "params.yaml")
    torch.set_num_threads(p.threads or 1)
    torch.manual_seed(0)
    models = [VQVAE(Architecture(**p.model.model_dump(exclude={"sample_rate"}))) for _ in range(3)]
    for model in models:
        model.eval().codebook.restore(torch.randn_like(model.codebook.k), 1.0)
    stage1, *stage2 = models
    separation = p.separation.model_dump()

    def score() -> None:
        steps = dict(enumerate(stage2))
        evaluation.score_models(made, "bass", "scratch", stage1, steps, rate, p.separation)

    def run(rows: tuple[torch.Tensor, torch.Tensor]) -> None:
        apply_chunked(stage1, rows[0], **separation)
        for model in stage2:
            apply_chunked(model, rows[1], **separation)

    def alone() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, held))

    with tempfile.TemporaryDirectory() as folder:
        rate = p.model.sample_rate
        samples = round((seconds or p.band.seconds) * rate)
        made = []
        for number in range(songs or p.band.test):
            place = _song(Path(folder) / str(number), samples, rate, number)
            made.append(Song(str(number), "test", "seen", place, samples))
        held = []
        for song in made:
            stereo = audio.read(song.file(MIXTURE))
            mono = audio.to_mono(stereo)
            held.append((torch.from_numpy(mono), torch.from_numpy(np.concatenate([mono, stereo]))))
        sides = _in_turns({"evaluation": score, "models": alone}, rounds)
    return _compared(sides) | {"songs": len(made), "cores": os.cpu_count()}


def prepare(
    songs: int = 4, seconds: float = 240.0, again: int = 150, rounds: int = 3
) -> dict[str, Any]:
    """`prepare` on songs at the model's rate against reading their files; seconds.

    Both from the disk: the system is asked to forget the files each time (Linux; elsewhere they
    come from its cache). `again` is how many songs the second run of a whole `python -m
    stages.prepare` finds unchanged; as it reads none of them, these are short.
    """
    from jukesep import prepare

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = folder / "songs"
        for number in range(songs):
            split = "test" if number == songs - 1 else "train"
            _song(root / split / str(number), round(seconds * RATE), RATE, number, "PCM_16")
        files = sorted(root.rglob("*.wav"))
        p = _of_folder(root)

        def read(path: Path) -> None:
            with path.open("rb") as file:
                while file.read(1 << 20):
                    pass

        def read_all() -> None:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(read, files))

        def prepared() -> None:
            prepare.prepare(p, folder / "data/prepared")

        def forget() -> None:
            (folder / "data/cache/known.json").unlink(missing_ok=True)
            _forget(files)

        sides = _in_turns({"prepare": prepared, "reading": read_all}, rounds, forget)
        size = sum(path.stat().st_size for path in files)
        second = _prepared_again(folder / "again", again)
    result = _compared(sides)
    return result | {
        "megabytes_a_second": {k: size / 1e6 / s for k, s in result["seconds"].items()},
        "songs": again,
        "second_time_seconds": second,
    }


def _prepared_again(folder: Path, songs: int) -> float:
    first = _song(folder / "songs/train/0", RATE * 10, RATE, 0, "PCM_16")
    for number in range(1, songs):
        other = folder / "songs" / ("test" if number % 3 == 0 else "train") / str(number)
        other.mkdir(parents=True)
        for path in first.iterdir():
            os.link(path, other / path.name)
    text = json.dumps(_of_folder(folder / "songs").model_dump(mode="json"))
    (folder / "params.yaml").write_text(text, encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "stages.prepare"]
    return [_seconds(lambda: _run(command, folder)) for _ in range(2)][1]


def _of_folder(root: Path) -> params.Params:
    p = params.load(ROOT / "params.yaml")
    data = p.data.model_copy(update={"source": "folder", "root": str(root), "valid_songs": 1})
    model = p.model.model_copy(update={"sample_rate": RATE})
    return p.model_copy(update={"data": data, "model": model})


def memory(minutes: tuple[float, float] = (1.0, 60.0)) -> dict[str, Any]:
    """The peak memory of separating a short and a long file, MB above that after the imports.

    `Separator.separate_file`, one stem of a stereo file at twice the model's rate, in a process
    each. The model is narrow, so that a song held in memory would show beside its layers.
    """
    command = [sys.executable, "-m", "benchmarks.around", "--separate"]
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for length in minutes:
            done = _run([*command, folder, str(length)], ROOT)
            peaks[f"{length:g} min"] = float(done)
    short, long = peaks.values()
    return {"megabytes": peaks, "difference": long - short}


def _separate(folder: Path, minutes: float) -> float:
    import torch

    from jukesep.separation import CHUNK, Separator
    from jukesep.vqvae import VQVAE, Architecture

    torch.set_num_threads(1)
    model = VQVAE(Architecture(width=4, depth=2, codes=16))
    model.codebook.restore(torch.randn(16, 64), 1.0)
    separator = Separator({"vocals": model}, 11_025)
    song, stem = folder / "song.wav", folder / "vocals.wav"
    second = np.random.default_rng(0).normal(0, 0.1, (2, 22_050)).astype(np.float32)

    def write(seconds: int) -> None:
        with audio.writing(song, 22_050, 2, seconds * 22_050) as put:
            for _ in range(seconds):
                put(second)

    # Once, for what is loaded at its first use.
    write(1)
    separator.separate_file(song, {"vocals": stem})
    before = _highest()
    write(round(60 * minutes))
    # A quarter of the rate, a quarter of a chunk: as many to a minute as at 44.1 kHz.
    separator.separate_file(song, {"vocals": stem}, CHUNK // 4)
    song.unlink()
    stem.unlink()
    return (_highest() - before) / 1e6


def start(rounds: int = 9) -> dict[str, Any]:
    """Seconds from the start of a process to its end: `jukesep --help`; the imports of a training
    and its first layer, forward and backward, against those of PyTorch alone."""
    layer = (
        "import torch, jukesep.experiment\n"
        "from jukesep.vqvae import Architecture, Encoder\n"
        "Encoder(Architecture(width=4, depth=1))(torch.zeros(1, 1, 64)).sum().backward()\n"
    )
    python = [sys.executable, "-c"]
    commands = {
        "jukesep --help": [*python, "from jukesep.cli import main; main()", "--help"],
        "a training's start": [*python, layer],
        "import torch": [*python, "import torch"],
    }
    sides = {
        name: (lambda command=command: _run(command, ROOT)) for name, command in commands.items()
    }
    seconds = _in_turns(sides, rounds)
    return {"seconds": {name: statistics.median(found) for name, found in seconds.items()}}


ROWS: dict[str, Callable[[], dict[str, Any]]] = {
    "sdr_v4": sdr_v4,
    "evaluation": evaluation,
    "prepare": prepare,
    "memory": memory,
    "start": start,
}


def _song(folder: Path, samples: int, rate: int, seed: int, subtype: str = "FLOAT") -> Path:
    """A song of noise in `folder`, its mixture the sum of its stems, written as it is made."""
    rng = np.random.default_rng(seed)
    stems = rng.integers(-4000, 4000, (len(STEMS), 2, samples), dtype=np.int16)
    parts = dict(zip(STEMS, stems, strict=True)) | {MIXTURE: stems.sum(axis=0, dtype=np.int16)}
    for part, samples_ in parts.items():
        if subtype == "FLOAT":
            samples_ = samples_ * audio.STEP
        audio.write(folder / f"{part}.wav", samples_, rate, subtype)
    return folder


def _forget(files: list[Path]) -> None:
    """Have the system read the files from the disk the next time, where it can be told to."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)  # what is not on the disk yet stays in memory
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _highest() -> int:
    """The most memory that this process ever had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _run(command: list[str], folder: Path) -> str:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=env, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return done.stdout.decode()


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _rounds(work: Callable[[], object], rounds: int) -> list[float]:
    work()  # warms up
    return [_seconds(work) for _ in range(rounds)]


def _in_turns(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each side in each round; a round before warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, work in sides.items():
            before()
            seconds = _seconds(work)
            if turn:
                found[name].append(seconds)
    return found


def _compared(sides: Mapping[str, list[float]]) -> dict[str, Any]:
    """Medians, and how many times the second side's the first's is."""
    medians = {name: statistics.median(seconds) for name, seconds in sides.items()}
    first, second = medians.values()
    return {"seconds": medians, "ratio": first / second}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help=", ".join(ROWS))
    parser.add_argument("--separate", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.separate:
        print(_separate(Path(options.separate[0]), float(options.separate[1])))
        return
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {min(unknown)}. There are: {', '.join(ROWS)}")
    for name in options.rows or ROWS:
        print(json.dumps({name: ROWS[name]()}, indent=1), flush=True)


if __name__ == "__main__":
    main()
