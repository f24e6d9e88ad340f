"""The published numbers that the report and `jukesep evaluate` print beside ours.

SDR in dB by stem, with the digits as published. A row has one metric; rows of `sdr` are means over
songs unless they say median, rows of `sdr_v4` are medians. The paper's Table 1 mixes metrics: its
Wave-U-Net row is a museval median, and two rows state neither metric nor songs.
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
ABOUT_0 = "about 0"
NONE = "-"
"""The value of a stem that a row does not have."""
PAPER_URL = "https://arxiv.org/abs/2111.14200"


@dataclass(frozen=True)
class Published:
    """A published row: system, source, metric, SDR in dB by stem, and the songs."""

    system: str
    source: str
    metric: str
    values: Mapping[str, str]
    data: str = MUSDB_HQ

    @property
    def stated(self) -> bool:
        """Whether metric and songs are known. If not, the row fits in no column of other rows."""
        return NOT_STATED not in (self.metric, self.data)


def _row(values: str) -> dict[str, str]:
    """One value for all columns, or one for each, `NONE` where a row has none."""
    columns = (*STEMS, TOTAL)
    found = [values] * len(columns) if values == ABOUT_0 else values.split()
    return dict(zip(columns, found, strict=True))


# Zai El Amri, Tautz, Ritter, Melnik, "Transfer Learning with Jukebox for Music Source Separation",
# arXiv 2111.14200: Table 1 and Figure 2, means over songs. Figure 2 is a line plot, read off to
# +-0.03 dB; its totals are the means of the values read off. The authors' code cuts songs into
# chunks of 393,216 samples as `separation.chunking=published` does.
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
            "1": ABOUT_0,
            "20K": "4.89 4.07 2.56 4.35 3.97",
            "40K": "4.93 4.07 2.65 4.70 4.09",
            "60K": "4.88 4.02 2.69 4.94 4.13",
            "80K": "4.83 4.00 2.70 5.06 4.15",
        }.items()
    ),
    Published("the paper, from scratch", "its text", "sdr", _row(ABOUT_0)),
)

# Others ran the authors' checkpoints again, in chunks as `separation.chunking=hard` cuts them. With
# 147,456 samples the input was the sum of the four stems; the other rows separate vocals from the
# mixture. docs/reproduction.md has the steps of the checkpoints.
RERUN = tuple(
    Published(
        f"the authors' checkpoints, run again in chunks of {chunk} samples, {average}",
        "unmix_analysis",
        "sdr",
        _row(values),
        f"MUSDB18-HQ, {songs} test songs",
    )
    for songs, chunk, average, values in (
        (49, "147,456", "mean", "4.737 3.910 2.688 5.298 -"),
        (49, "147,456", "median", "4.657 4.057 3.016 5.597 -"),
        (49, "196,608", "mean", "- - - 5.32 -"),
        (49, "196,608", "median", "- - - 5.60 -"),
        (40, "10,000", "mean", "- - - 4.83 -"),
        (40, "20,000", "mean", "- - - 5.16 -"),
        (40, "40,000", "mean", "- - - 5.34 -"),
        (40, "98,304", "mean", "- - - 5.41 -"),
        (40, "196,608", "mean", "- - - 5.45 -"),
    )
)

TABLE_1 = "the paper, Table 1"
OTHERS = (
    Published(
        "Demucs", TABLE_1, NOT_STATED, _row("6.509 6.470 4.018 6.496 5.873"), data=NOT_STATED
    ),
    # Named after a class of the challenge's starter kit, so the songs may be the challenge's own.
    Published(
        "mixture / 4", TABLE_1, NOT_STATED, _row("0.578 0.745 1.136 1.090 0.887"), data=NOT_STATED
    ),
    Published("Wave-U-Net", TABLE_1, "sdr_v4", _row("4.22 3.21 2.25 3.25 3.23"), MUSDB),
    # These two were published without a mean over the stems.
    Published("Open-Unmix HQ", "its authors", "sdr_v4", _row("6.04 5.07 4.28 6.25 -")),
    Published(
        "ideal ratio mask (oracle)", "SiSEC 2018", "sdr_v4", _row("8.45 7.12 7.85 9.43 -"), MUSDB
    ),
)

PUBLISHED = (*PAPER, *RERUN, *OTHERS)
"""All rows."""
