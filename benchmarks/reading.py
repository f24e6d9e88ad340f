"""What reading random segments costs: time, memory and open files.

    uv run python -m benchmarks.reading             # makes songs of noise, and removes them
    uv run python -m benchmarks.reading --root /data/musdb18hq/train

Reads mixture and stem of random segments as the trainings do, in a fresh process like a worker of
theirs. Linux only. Songs made here lie in the system's cache when they are read; for the speed of
a disk give a folder that has not been read lately.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jukesep import audio
from jukesep.base.errors import reported
from jukesep.songs.find import read_folder
from jukesep.songs.manifest import MIXTURE, STEMS, Song

PARTS = (MIXTURE, STEMS[0])


@dataclass(frozen=True)
class Cost:
    """Milliseconds of each stem's read, of the clock and of the processor; MB that the process
    grew by; song files left open."""

    milliseconds: list[float]
    processor: list[float]
    megabytes: float
    open_files: int


def make(root: Path, songs: int, seconds: float, subtype: str) -> None:
    """Songs of noise, stereo at 44.1 kHz."""
    noise = np.random.default_rng(0)
    for number in range(songs):
        for part in (MIXTURE, *STEMS):
            samples = noise.uniform(-0.2, 0.2, (2, round(seconds * 44_100))).astype(np.float32)
            audio.write(root / f"song {number}" / f"{part}.wav", samples, 44_100, subtype)


def measure(root: Path, segment: int, reads: int) -> Cost:
    """The cost of `reads` segments, measured in a process of its own."""
    # spawn: a forked process would share this one's memory, and hide what it costs.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (root, segment, reads))


def _measure(root: Path, segment: int, reads: int) -> Cost:
    from jukesep.training.segments import Segments

    songs = [Song(name, "", "", root / name, h.samples) for name, h in read_folder(root)]
    segments = Segments(songs, PARTS, segment, seed=0, purpose="reading")
    Segments(songs, PARTS, 2048, seed=0, purpose="reading")[0]  # loads code on its first use
    milliseconds, processor = [], []
    start = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    for index in range(reads):
        before = time.perf_counter(), time.process_time()
        segments[index]
        milliseconds.append((time.perf_counter() - before[0]) * 1000 / len(PARTS))
        processor.append((time.process_time() - before[1]) * 1000 / len(PARTS))
    grown = _memory("VmHWM") - start
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    opened = sum(link.is_relative_to(root) for link in links)
    return Cost(milliseconds, processor, grown / 1024, opened)


def _memory(name: str) -> int:
    """A line of this process's status, in kB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(name)))


def main() -> None:
    """Make songs if none are given, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="a folder of song folders")
    parser.add_argument("--songs", type=int, default=8, help="songs to make")
    parser.add_argument("--seconds", type=float, default=240, help="their length")
    parser.add_argument("--subtype", default="PCM_16", help="PCM_16, PCM_24 or FLOAT")
    parser.add_argument("--segment", type=int, default=393_216, help="samples of a segment")
    parser.add_argument("--reads", type=int, default=300, help="segments to read")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        root = options.root
        if root is None:
            root = Path(made)
            make(root, options.songs, options.seconds, options.subtype)
        cost = measure(root.resolve(), options.segment, options.reads)
    slow = statistics.quantiles(cost.milliseconds, n=20)[-1]
    print(f"{options.reads} segments of {options.segment} samples, {' and '.join(PARTS)}")
    median, processor = map(statistics.median, (cost.milliseconds, cost.processor))
    print(f"a stem's segment: median {median:.2f} ms, 95 % below {slow:.2f} ms")
    print(f"  of the processor's time: median {processor:.2f} ms")
    print(f"memory of a worker, at most: {cost.megabytes:.1f} MB")
    print(f"song files left open: {cost.open_files}")


if __name__ == "__main__":
    with reported():
        main()
