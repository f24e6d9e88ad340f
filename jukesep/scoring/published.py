"""The published numbers that the report and `jukesep evaluate` print beside ours.

SDR in dB by stem, with the digits as published. A row holds one metric, unlike the paper's
Table 1, whose Wave-U-Net row is a museval median.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..songs.manifest import STEMS

TOTAL = "total"
MUSDB_HQ = "MUSDB18-HQ, 50 test songs"
MUSDB = "MUSDB18, 50 test songs"
PAPER_URL = "https://arxiv.org/abs/2111.14200"


@dataclass(frozen=True)
class Published:
    """A published row: system, source, metric, and SDR in dB by stem."""

    system: str
    source: str
    metric: str
    values: Mapping[str, str]
    data: str = MUSDB_HQ


def _row(values: str) -> dict[str, str]:
    return dict(zip((*STEMS, TOTAL), values.split(), strict=True))


# Zai El Amri, Tautz, Ritter, Melnik, "Transfer Learning with Jukebox for Music Source Separation",
# arXiv 2111.14200: Table 1, and Figure 2, whose bars were read off to +-0.03 dB. Means over songs.
PAPER = (
    Published(
        "the paper, best checkpoint of each stem (chosen on the test songs)",
        "Table 1",
        "sdr",
        _row("4.925 4.073 2.695 5.060 4.188"),
    ),
    Published(
        "the paper, pretrained, step 20K", "Figure 2", "sdr", _row("4.89 4.07 2.56 4.35 3.97")
    ),
    Published(
        "the paper, pretrained, step 80K", "Figure 2", "sdr", _row("4.83 4.00 2.70 5.06 4.15")
    ),
    Published(
        "the paper, from scratch", "its text", "sdr", dict.fromkeys((*STEMS, TOTAL), "about 0")
    ),
)
DEMUCS = Published("Demucs", "the paper, Table 1", "sdr", _row("6.509 6.470 4.018 6.496 5.873"))
SCALED_MIXTURE = Published(
    "mixture / 4", "the paper, Table 1", "sdr", _row("0.578 0.745 1.136 1.090 0.887")
)
# The rows of the results page.
PUBLISHED = (
    *PAPER,
    DEMUCS,
    SCALED_MIXTURE,
    Published(
        "Wave-U-Net", "the paper, Table 1", "sdr_v4", _row("4.22 3.21 2.25 3.25 3.23"), MUSDB
    ),
    # These two were published without a mean over the stems.
    Published("Open-Unmix HQ", "its authors", "sdr_v4", _row("6.04 5.07 4.28 6.25 -")),
    Published(
        "ideal ratio mask (oracle)", "SiSEC 2018", "sdr_v4", _row("8.45 7.12 7.85 9.43 -"), MUSDB
    ),
)

# Others reran the authors' vocals checkpoints, in hard chunks of 196,608 samples.
_RERUN = "the authors' checkpoints, run by others"
_RERUN_SONGS = "MUSDB18-HQ, 49 test songs"
RERUN_MEAN = Published(f"{_RERUN}, mean", "unmix_analysis", "sdr", {"vocals": "5.32"}, _RERUN_SONGS)
RERUN_MEDIAN = Published(
    f"{_RERUN}, median", "unmix_analysis", "sdr", {"vocals": "5.60"}, _RERUN_SONGS
)
