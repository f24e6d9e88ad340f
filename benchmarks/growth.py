"""How cost grows: a step with segment and batch, separation with the song, evaluation with cores.

Each point is measured in a process of its own, which runs one side alone on one core; its time is
that of the processor. The evaluation's is the clock's.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks import speed, timing
from benchmarks.row import Options, Result, Row
from benchmarks.scoring import on_cores

SEGMENTS = (8192, 16_384, 32_768, 65_536)
BATCHES = (1, 2, 4)
BATCH_SEGMENT = 8192
SONG_SECONDS = (2, 6, 12)
EVALUATED = 4  # songs

Points = dict[str, list[list[float]]]
"""Of each side, [size, seconds, MB] for every size."""


def segments(options: Options, sizes: tuple[int, ...] = SEGMENTS) -> Result:
    """A step of stage 1, of the paper's model, against the samples of its segment."""
    return _steps([(size, 1, size) for size in sizes])


def batches(
    options: Options, sizes: tuple[int, ...] = BATCHES, segment: int = BATCH_SEGMENT
) -> Result:
    """A step of stage 1, of the paper's model, against the segments of its batch."""
    return _steps([(size, size, segment) for size in sizes])


def _steps(sizes: list[tuple[int, int, int]]) -> Result:
    points: Points = {"textbook": [], "jukesep": []}
    for size, batch, samples in sizes:
        make = partial(speed.stage1, speed.PAPER, batch, samples)
        for side, line in points.items():
            seconds, megabytes = timing.fresh(1, speed.alone, make, side)
            line.append([size, seconds, megabytes])
    return Result(details={"points": points})


def songs(options: Options, lengths: tuple[int, ...] = SONG_SECONDS) -> Result:
    """Separation of a mono song, one stem, by the paper's model, against the song's seconds.

    The textbook form takes the song as one piece, jukesep in its chunks.
    """
    points: Points = {"textbook": [], "jukesep": []}
    for length in lengths:
        for side, line in points.items():
            if side == "textbook" and length > 10:
                continue  # its memory grows with the song
            make = partial(_song, length)
            seconds, megabytes = timing.fresh(1, speed.alone, make, side)
            line.append([length, seconds, megabytes])
    return Result(details={"points": points})


def _song(seconds: int) -> dict[str, timing.Step]:
    from benchmarks import textbook
    from jukesep.separation.chunked import apply_chunked

    vqvae, _ = speed.model(speed.PAPER, 1, 4096)
    mixture = 0.1 * torch.randn(1, 1, seconds * speed.PAPER_RATE // 8 * 8)
    return {
        "textbook": lambda: textbook.separate(vqvae, mixture, speed.BANDWIDTHS, speed.LINF_K),
        "jukesep": lambda: apply_chunked(vqvae, mixture[:, 0]),
    }


def cores(options: Options, songs: int = EVALUATED) -> Result:
    """The evaluation of a stem, of the demo's model, against cores: 1, 2, 4 ... all of them."""
    counts = [2**n for n in range(10) if 2**n < timing.cores()] + [timing.cores()]
    line = [[float(count), timing.fresh(count, on_cores, songs), 0.0] for count in counts]
    return Result(details={"points": {"jukesep": line}})


ROWS = {
    "growth-segment": Row("cost of a step against its segment", segments, module="growth"),
    "growth-batch": Row("cost of a step against its batch", batches, module="growth"),
    "growth-song": Row("cost of separation against the song", songs, module="growth"),
    "growth-cores": Row("time of evaluation against cores", cores, module="growth"),
}
