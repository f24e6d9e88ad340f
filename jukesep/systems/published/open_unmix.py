"""Open-Unmix with published weights: `umxhq` of the package openunmix.

A network for each stem masks the magnitude spectrogram of the whole song, and one iteration of a
Wiener filter follows, in windows of 300 frames: `openunmix.model.Separator` as the package sets it.
Stöter et al., Open-Unmix, JOSS 2019.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...audio import Audio
from ...base.errors import UserError
from ...songs.manifest import STEMS
from ..system import System
from .catalogue import about
from .weights import fill, find, read

# The networks of 2019 held these as well; the package's Separator has them now.
ELSEWHERE = frozenset(("sample_rate", "stft.window", "transform.0.window"))


def load(weights: Path, device: str = "cpu") -> System:
    """Load a folder with a file for each stem, <stem>*.pth, or the file of one stem.

    A single stem is separated without the filter, as the package does. UserError if a file is not
    of such a network.
    """
    import openunmix

    found: dict[str, Path] = {}
    for path in find(weights):
        stem = next((stem for stem in STEMS if path.name.startswith(stem)), None)
        if stem is None or stem in found:
            raise UserError(
                f"{path}: {'a second file for ' + stem if stem else 'not named after a stem'}. "
                f"Each stem has one file: {', '.join(f'{stem}*.pth' for stem in STEMS)}."
            )
        found[stem] = path
    separator = openunmix.umxhq(list(found), niter=int(len(found) > 1), pretrained=False)
    sums = []
    for stem, path in found.items():
        state = read(path)
        fill(separator.target_models[stem], state, ELSEWHERE)
        sums.append(state.sha256)
    separator.to(device).eval()

    def separate(mixture: Audio, sample_rate: int) -> dict[str, Audio]:
        with torch.inference_mode():
            stems = separator(torch.from_numpy(mixture).to(device)[None])[0].cpu().numpy()
        return dict(zip(found, stems, strict=True))

    trained_on, licence = about("open-unmix", sums, [path.name for path in found.values()])
    return System(
        name="umxhq",
        separate=separate,
        trained_on=trained_on,
        licence=licence,
        sample_rate=44_100,
        channels=2,
        long_songs="the whole song at once; Wiener filter of 1 iteration in windows of 300 frames",
    )
