"""Training segments, which depend on the seed and their index only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from .. import audio
from ..base.errors import UserError
from ..base.seeds import numpy_generator
from ..songs.manifest import STEMS, Song


@dataclass(frozen=True)
class Cut:
    """What a segment takes from one file: `blend` is the share of the left channel."""

    part: str
    song: Song
    start: int
    blend: float


class Segments(Dataset[torch.Tensor]):
    """Mono segments of songs: `parts` (mixture, stems) of a song, cut at the same place.

    An epoch visits every song in steps of `segment` samples, in random order; each visit is shifted
    at random within the song. Segment `index` depends on (seed, purpose, index) only: workers,
    batches and restarts do not change it. The channels are mixed down as m L + (1 - m) R, with m
    uniform in [0, 1), or 0.5 if `augment` is False. With blend "shared" all parts of a segment have
    the same m. With blend "independent", as in the paper's published code, each part has its own,
    so that mixture and stem do not match.

    With mixtures "remixed", `parts` are the mixture and stems. The first of the stems is cut as
    above. Each other stem is cut at a random place of a random song, with an m of its own. The
    mixture is the sum of all stems.

    UserError if a song is shorter than a segment.
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
        mixtures: Literal["own", "remixed"] = "own",
    ) -> None:
        self.parts = tuple(parts)
        self.segment = segment
        self.seed = seed
        self.purpose = purpose
        self.augment = augment
        self.blend = blend
        self.mixtures = mixtures
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
        cuts = self._cuts(index)
        mono = {cut.part: self._mono(cut, index) for cut in cuts}
        if self.mixtures == "remixed":
            mono[self.parts[0]] = np.sum(list(mono.values()), 0)
        return torch.from_numpy(np.stack([mono[part] for part in self.parts]))

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
        """Return where segment `index` comes from: files, first sample of each, and length."""
        files = {str(cut.song.file(cut.part)): cut.start for cut in self._cuts(index)}
        return {"files": files, "samples": self.segment}

    def _cuts(self, index: int) -> list[Cut]:
        """Return what segment `index` is made of."""
        song, start = self._place(index)
        blends = self._blends(index)
        own = [Cut(part, song, start, m) for part, m in zip(self.parts, blends, strict=True)]
        if self.mixtures == "own":
            return own
        draws = numpy_generator(self.seed, self.purpose + "/remixed", index)
        cuts = own[1:2]
        for stem in STEMS:
            if stem != self.parts[1]:
                song, _ = self.places[draws.integers(len(self.places))]
                start = int(draws.integers(song.samples - self.segment + 1))
                cuts.append(Cut(stem, song, start, draws.random()))
        return cuts

    def _mono(self, cut: Cut, index: int) -> np.ndarray:
        """Return a cut of segment `index`, mixed down: (segment,)."""
        mono = np.empty(self.segment, np.float32)
        done = 0
        for block in audio.blocks(cut.song.file(cut.part), cut.start, self.segment):
            stop = done + block.shape[1]
            mono[done:stop] = audio.to_mono(block, cut.blend)
            done = stop
        return mono

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
