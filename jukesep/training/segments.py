"""Training segments, which depend on the seed and their index only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from .. import audio
from ..base.errors import UserError
from ..base.seeds import numpy_generator
from ..songs.manifest import Song


class Segments(Dataset[torch.Tensor]):
    """Mono segments of songs: `parts` (mixture, stems) of a song, cut at the same place.

    An epoch visits every song in steps of `segment` samples, in random order; each visit is shifted
    at random within the song. Segment `index` depends on (seed, purpose, index) only: workers,
    batches and restarts do not change it. The channels are mixed down as m L + (1 - m) R, with m
    uniform in [0, 1), or 0.5 if `augment` is False. With blend "shared" all parts of a segment have
    the same m. With blend "independent", as in the paper's published code, each part has its own,
    so that mixture and stem do not match. UserError if a song is shorter than a segment.
    """

    def __init__(
        self,
        songs: Sequence[Song],
        parts: Sequence[str],
        segment: int,
        seed: int,
        purpose: str,
        augment: bool = True,
        blend: Literal["shared", "independent"] = "shared",
    ) -> None:
        self.parts = tuple(parts)
        self.segment = segment
        self.seed = seed
        self.purpose = purpose
        self.augment = augment
        self.blend = blend
        self.places: list[tuple[Song, int]] = []
        for song in songs:
            if song.samples < segment:
                raise UserError(
                    f"{song.folder}: {song.samples} samples long, shorter than a segment "
                    f"({segment}). Remove the song or lower the segment."
                )
            self.places += [(song, start) for start in range(0, song.samples, segment)]
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def __len__(self) -> int:
        """The number of segments in an epoch. Higher indices continue with the next epoch."""
        return len(self.places)

    def stereo(self, index: int) -> list[audio.Audio]:
        """Return segment `index` without mixing it down: (channels, segment) for each part."""
        song, start = self._place(index)
        return [audio.read(song.file(part), start, self.segment) for part in self.parts]

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return segment `index`: (parts, segment)."""
        song, start = self._place(index)
        mono = np.empty((len(self.parts), self.segment), np.float32)
        for row, part, blend in zip(mono, self.parts, self._blends(index), strict=True):
            done = 0
            for block in audio.blocks(song.file(part), start, self.segment):
                stop = done + block.shape[1]
                row[done:stop] = audio.to_mono(block, blend)
                done = stop
        return torch.from_numpy(mono)

    def excerpt(self, samples: int) -> torch.Tensor:
        """Return the middle of the first song to listen to, not augmented: (parts, samples).

        The length is a whole number of segments, at least one, and about `samples`.
        """
        song = self.places[0][0]
        whole = min(max(samples // self.segment, 1), song.samples // self.segment)
        length = whole * self.segment
        start = (song.samples - length) // 2
        mono = [audio.to_mono(audio.read(song.file(p), start, length))[0] for p in self.parts]
        return torch.from_numpy(np.stack(mono))

    def describe(self, index: int) -> dict[str, object]:
        """Return where segment `index` comes from: files, first sample and number of samples."""
        song, start = self._place(index)
        files = [str(song.file(part)) for part in self.parts]
        return {"files": files, "start": start, "samples": self.segment}

    def _blends(self, index: int) -> list[float]:
        """Return the share m of the left channel for each part."""
        if not self.augment:
            return [0.5] * len(self.parts)
        generator = numpy_generator(self.seed, self.purpose + "/blend", index)
        if self.blend == "shared":
            return [generator.random()] * len(self.parts)
        return list(generator.random(len(self.parts)))

    def _place(self, index: int) -> tuple[Song, int]:
        epoch, turn = divmod(index, len(self))
        if self._order[0] != epoch:
            generator = numpy_generator(self.seed, self.purpose + "/order", epoch)
            self._order = (epoch, generator.permutation(len(self)))
        song, start = self.places[self._order[1][turn]]
        shift = numpy_generator(self.seed, self.purpose + "/shift", index)
        start += int(shift.integers(-self.segment // 2, self.segment // 2 + 1))
        return song, min(max(start, 0), song.samples - self.segment)
