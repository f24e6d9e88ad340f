"""The published numbers that the report and `jukesep evaluate` print beside ours.

SDR in dB by stem, with the digits as published. A row has one metric. The paper's Table 1 mixes
metrics: its Wave-U-Net row is a museval median, and two rows state neither metric nor songs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..songs.manifest import STEMS

TOTAL = "total"
MUSDB_HQ = "MUSDB18-HQ, 50 test songs"
MUSDB = "MUSDB18, 50 test songs"
NOT_STATED = "not stated"
"""The metric, or the songs, of a row whose publication does not say."""
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


def _stems(values: str) -> dict[str, str]:
    return dict(zip(STEMS, values.split(), strict=True))


# Zai El Amri, Tautz, Ritter, Melnik, "Transfer Learning with Jukebox for Music Source Separation",
# arXiv 2111.14200: Table 1 and Figure 2, means over songs. Figure 2 is a line plot with points at
# step 1 (about 0 dB), 20K, 40K, 60K and 80K, read off to +-0.03 dB; its totals are the means of the
# values read off.
PAPER = (
    Published(
        "the paper, best checkpoint of each stem (chosen on the test songs)",
        "Table 1",
        "sdr",
        _row("4.925 4.073 2.695 5.060 4.188"),
    ),
    *(
        Published(f"the paper, pretrained, step {step}", "Figure 2", "sdr", _row(values))
        for step, values in {
            "20K": "4.89 4.07 2.56 4.35 3.97",
            "40K": "4.93 4.07 2.65 4.70 4.09",
            "60K": "4.88 4.02 2.69 4.94 4.13",
            "80K": "4.83 4.00 2.70 5.06 4.15",
        }.items()
    ),
    Published(
        "the paper, from scratch", "its text", "sdr", dict.fromkeys((*STEMS, TOTAL), "about 0")
    ),
)
DEMUCS = Published(
    "Demucs",
    "the paper, Table 1",
    NOT_STATED,
    _row("6.509 6.470 4.018 6.496 5.873"),
    NOT_STATED,
)
# Named after a class of the challenge's starter kit, so the songs may be the challenge's own.
SCALED_MIXTURE = Published(
    "mixture / 4",
    "the paper, Table 1",
    NOT_STATED,
    _row("0.578 0.745 1.136 1.090 0.887"),
    NOT_STATED,
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

# Others ran the authors' checkpoints again, in hard chunks. With 147,456 samples the input was the
# sum of the four stems, with 196,608 samples the mixture. docs/reproduction.md has the steps.
_RERUN = "the authors' checkpoints, run by others in chunks of"
RERUN = tuple(
    Published(
        f"{_RERUN} {chunk} samples, {average}",
        "unmix_analysis",
        "sdr",
        values,
        "MUSDB18-HQ, 49 test songs",
    )
    for chunk, average, values in (
        ("147,456", "mean", _stems("4.737 3.910 2.688 5.298")),
        ("147,456", "median", _stems("4.657 4.057 3.016 5.597")),
        ("196,608", "mean", {"vocals": "5.32"}),
        ("196,608", "median", {"vocals": "5.60"}),
    )
)
