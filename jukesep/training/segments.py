"""Training segments, drawn from (seed, index) alone."""

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
    """Segments of songs, mono, several parts (mixture, stems) of a song cut at the same place.

    An epoch visits every song in steps of `segment` samples, in random order, each visit
    shifted at random within the song. Segment `index` depends on (seed, purpose, index) only:
    workers, batches and restarts do not change it. All parts of an item share one blend m of
    the channels, m L + (1 - m) R with m uniform in [0, 1); with `augment` off m is 0.5. With
    blend "independent" each part draws its own, as the paper's published code does, so that mixture
    and stem disagree.
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
                    f"({segment}). Take the song out or lower the segment."
                )
            self.places += [(song, start) for start in range(0, song.samples, segment)]
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def __len__(self) -> int:
        """Segments of one epoch; higher indices go on with the next."""
        return len(self.places)

    def stereo(self, index: int) -> list[audio.Audio]:
        """Segment `index` with the channels of its files: (channels, segment) a part."""
        song, start = self._place(index)
        return [audio.read(song.file(part), start, self.segment) for part in self.parts]

    def __getitem__(self, index: int) -> torch.Tensor:
        """Segment `index`: (parts, segment)."""
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
        """The middle of the first song, not augmented, to listen to: (parts, samples).

        About so many samples: whole segments, at least one.
        """
        song = self.places[0][0]
        whole = min(max(samples // self.segment, 1), song.samples // self.segment)
        length = whole * self.segment
        start = (song.samples - length) // 2
        mono = [audio.to_mono(audio.read(song.file(p), start, length))[0] for p in self.parts]
        return torch.from_numpy(np.stack(mono))

    def describe(self, index: int) -> dict[str, object]:
        """Where segment `index` comes from: files, first sample and samples."""
        song, start = self._place(index)
        files = [str(song.file(part)) for part in self.parts]
        return {"files": files, "start": start, "samples": self.segment}

    def _blends(self, index: int) -> list[float]:
        """The share m of the left channel, for each part."""
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
