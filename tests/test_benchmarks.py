"""The pages that benchmarks write."""

from pathlib import Path

import pytest

from benchmarks import reading, seeds


def _reader(shift):
    """Metrics files whose numbers tell system and seed apart."""
    base = {"scaled_mixture": 1.0, "scratch_3": 1.5, "scratch_6": 2.0}
    base |= {"pretrained_3": 2.5, "pretrained_6": 3.0}

    def read(path):
        value = base[path.rsplit("/", 1)[-1].removesuffix(".json")]
        total = value if value == 1.0 else value + shift
        return dict.fromkeys(("drums", "bass", "other", "vocals", "total"), total)

    return read


def test_the_seeds_page_gives_means_and_spreads():
    readers = {0: _reader(0.0), 1: _reader(0.3), 2: _reader(-0.3)}
    page = seeds.page(readers, "tiny", [3, 6])
    assert "| scaled mixture | 1.00 | 1.00 | 1.00 | 1.00 | 0.00 |" in page
    assert "| pretrained, step 6 | 3.00 | 3.30 | 2.70 | 3.00 | 0.60 |" in page
    assert "| pretrained over scaled mixture, late | 2.00 | 2.30 | 1.70 | 2.00 | 0.60 |" in page
    assert "| pretrained over scratch, late | 1.00 | 1.00 | 1.00 | 1.00 | 0.00 |" in page
    assert "| pretrained over its early checkpoint, late | 0.50 | 0.50 | 0.50 |" in page
    assert "| scratch, step 3 | 1.50 (0.60) | 1.50 (0.60) | 1.50 (0.60) | 1.50 (0.60) |" in page


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures through /proc")
def test_reading_is_measured_and_leaves_no_file_open(tmp_path):
    reading.make(tmp_path, songs=2, seconds=1.0, subtype="PCM_16")
    cost = reading.measure(tmp_path, segment=8192, reads=20)
    assert len(cost.milliseconds) == len(cost.processor) == 20
    assert min(cost.milliseconds) > 0
    assert cost.megabytes < 10
    assert cost.open_files == 0
