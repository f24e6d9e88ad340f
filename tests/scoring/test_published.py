"""The published rows: complete, of one metric each, and with totals that are their means."""

import pytest

from jukesep.scoring import published
from jukesep.scoring.metrics import METRICS
from jukesep.songs.manifest import STEMS

ROWS = {f"{row.system}, {row.data}": row for row in published.PUBLISHED}


def test_no_row_is_there_twice():
    assert len(ROWS) == len(published.PUBLISHED)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_row_has_a_metric_and_every_column(row):
    assert list(row.values) == [*STEMS, published.TOTAL]
    assert row.metric in (*METRICS, published.NOT_STATED)
    assert row.stated == (row.metric in METRICS and row.data.endswith(" test songs"))


TOTALS = {
    name: row
    for name, row in ROWS.items()
    if row.values[published.TOTAL] not in (published.NONE, published.ABOUT_0)
}


@pytest.mark.parametrize("row", TOTALS.values(), ids=TOTALS)
def test_a_total_is_the_mean_of_the_stems(row):
    mean = sum(float(row.values[stem]) for stem in STEMS) / len(STEMS)
    total = row.values[published.TOTAL]
    digits = len(total.partition(".")[2])
    assert float(total) == pytest.approx(mean, abs=0.51 * 10**-digits)


def test_the_points_of_figure_2_are_those_of_its_plot():
    steps = [row.system.split()[-1] for row in published.PAPER if row.source == "Figure 2"]
    assert steps == ["1", "20K", "40K", "60K", "80K"]
