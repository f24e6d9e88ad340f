"""Chunks that overlap: what does not depend on the chunk's ends is not changed."""

import pytest
import torch

from jukesep.peers.common.overlap import overlapped


def double(part):
    return torch.stack([part, 2 * part], dim=1)


@pytest.mark.parametrize("samples", [1, 99, 100, 101, 175, 176, 1000])
def test_a_map_of_samples_is_the_same_in_chunks(samples):
    mixture = torch.randn(2, samples, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(overlapped(double, mixture, 100), double(mixture))


def test_the_ends_of_chunks_count_less_than_their_middle():
    """A run that marks its chunk's first sample: it stays visible at the song's start alone."""
    found = overlapped(lambda part: (torch.arange(part.shape[1]) == 0)[None, None].float(),
                       torch.zeros(1, 400), 100)  # fmt: skip
    assert found[0, 0, 0] == 1
    assert 0 < found[0, 0, 75] < 0.05


def test_a_short_song_runs_whole():
    seen = []
    overlapped(lambda part: seen.append(part.shape[1]) or double(part), torch.zeros(1, 100), 100)
    assert seen == [100]
    overlapped(lambda part: seen.append(part.shape[1]) or double(part), torch.zeros(1, 101), 100)
    assert seen == [100, 100, 26]


def test_no_chunk_is_shorter_than_what_two_share():
    """A network may need more samples than a few."""
    for samples in range(101, 400):
        seen = []
        overlapped(
            lambda part, seen=seen: seen.append(part.shape[1]) or double(part),
            torch.zeros(1, samples),
            100,
        )
        assert min(seen) > 25
