"""Segments come from (seed, index) alone, and mixture and stem stay a pair."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from jukesep import audio
from jukesep.base.errors import UserError
from jukesep.songs.manifest import STEMS, Song
from jukesep.training.segments import Segments

LENGTHS = (700, 1000, 256)
SEGMENT = 256


def _songs(root, scales):
    """Songs whose samples tell where they come from: left = place, right = -2 * place.

    `scales` multiplies them in each part.
    """
    found = []
    for number, length in enumerate(LENGTHS):
        place = (number * 2000 + np.arange(length)).astype(np.float32)
        for part, scale in scales.items():
            stereo = np.stack([place, -2 * place]) * scale
            audio.write(root / str(number) / f"{part}.wav", stereo, 8000, "FLOAT")
        found.append(Song(str(number), "train", "seen", root / str(number), length))
    return found


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """With a mixture and one stem."""
    return _songs(tmp_path_factory.mktemp("songs"), {"mixture": 1, "vocals": 10})


@pytest.fixture(scope="module")
def stems(tmp_path_factory):
    """With all four stems."""
    scales = {"mixture": 10, **{stem: number for number, stem in enumerate(STEMS, 1)}}
    return _songs(tmp_path_factory.mktemp("stems"), scales)


def _segments(songs, seed=3, **options):
    return Segments(songs, ("mixture", "vocals"), SEGMENT, seed, "stage2", **options)


def test_an_item_depends_on_its_index_alone(songs):
    forwards, backwards = _segments(songs), _segments(songs)
    items = [forwards[i] for i in range(30)]
    for index in reversed(range(30)):
        assert torch.equal(items[index], backwards[index])
    assert not torch.equal(items[0], _segments(songs, seed=4)[0])


def test_workers_do_not_change_the_order(songs):
    segments = _segments(songs)
    loader = DataLoader(Subset(segments, range(12)), batch_size=3, num_workers=2)
    for number, batch in enumerate(loader):
        for item in range(3):
            assert torch.equal(batch[item], segments[number * 3 + item])


def test_an_epoch_visits_every_place_once(songs):
    segments = _segments(songs)
    assert len(segments) == sum(-(-length // SEGMENT) for length in LENGTHS)
    for epoch in range(3):
        names = [segments._place(epoch * len(segments) + i)[0].name for i in range(len(segments))]
        assert sorted(names) == ["0"] * 3 + ["1"] * 4 + ["2"]


def test_segments_lie_within_their_song_and_shift(songs):
    segments = _segments(songs)
    starts = {}
    for index in range(4000):
        song, start = segments._place(index)
        assert 0 <= start <= song.samples - SEGMENT
        starts.setdefault(song.name, set()).add(start)
    # The shift is as large as half a segment on either side: no place is left out.
    assert np.diff(sorted(starts["1"])).max() < 20


def test_mixture_and_stem_share_place_and_blend(songs):
    segments = _segments(songs)
    blends = []
    for index in range(50):
        mixture, stem = segments[index]
        torch.testing.assert_close(stem, 10 * mixture, rtol=1e-5, atol=0.01)
        song, start = segments._place(index)
        place = int(song.name) * 2000 + start + SEGMENT - 1
        # mono = m * place - 2 (1 - m) * place
        blends.append((float(mixture[-1]) / place + 2) / 3)
    assert min(blends) >= 0
    assert max(blends) < 1
    assert np.std(blends) > 0.2


def test_independent_blends_part_mixture_and_stem(songs):
    shared, independent = _segments(songs), _segments(songs, blend="independent")
    differences = []
    for index in range(50):
        (mixture, stem), place = independent[index], shared._place(index)
        assert independent._place(index) == place
        last = int(place[0].name) * 2000 + place[1] + SEGMENT - 1
        blends = [(float(part[-1]) / last + 2) / 3 for part in (mixture, stem / 10)]
        assert all(0 <= blend < 1 for blend in blends)
        differences.append(blends[0] - blends[1])
    assert np.std(differences) > 0.2
    assert torch.equal(independent[7], _segments(songs, blend="independent")[7])


def test_remixed_segments_keep_the_stem_and_take_the_others_from_anywhere(stems):
    parts = ("mixture", "vocals")
    own = Segments(stems, parts, SEGMENT, 3, "stage2")
    remixed = Segments(stems, parts, SEGMENT, 3, "stage2", mixtures="remixed")
    names, blends = {stem: set() for stem in STEMS}, set()
    for index in range(60):
        assert torch.equal(remixed[index][1], own[index][1])
        cuts = {cut.part: cut for cut in remixed._cuts(index)}
        assert set(cuts) == set(STEMS)
        expected = np.zeros(SEGMENT)
        for stem, cut in cuts.items():
            assert 0 <= cut.start <= cut.song.samples - SEGMENT
            left, right = audio.read(cut.song.file(stem), cut.start, SEGMENT)
            expected += cut.blend * left + (1 - cut.blend) * right
            names[stem].add(cut.song.name)
            blends.add(cut.blend)
        np.testing.assert_allclose(remixed[index][0], expected, rtol=1e-4, atol=0.01)
        said = remixed.describe(index)["files"]
        assert said == {str(c.song.file(c.part)): c.start for c in cuts.values()}
    assert all(found == {song.name for song in stems} for found in names.values())
    assert len(blends) == 4 * 60
    again = Segments(stems, parts, SEGMENT, 3, "stage2", mixtures="remixed")
    assert torch.equal(again[17], remixed[17])


def test_a_peers_segments_can_be_remixed(stems):
    segments = Segments(stems, ("mixture", *STEMS), SEGMENT, 3, "peer", mixtures="remixed")
    mixture, *rest = segments[5]
    torch.testing.assert_close(mixture, sum(rest), rtol=1e-5, atol=0.1)


def test_without_augmentation_the_blend_is_the_mean(songs):
    segments = _segments(songs, augment=False)
    left, right = segments.stereo(5)[0]
    torch.testing.assert_close(segments[5][0], torch.from_numpy((left + right) / 2))


def test_a_song_shorter_than_a_segment_is_named(songs):
    with pytest.raises(UserError, match="shorter than a segment"):
        Segments(songs, ("mixture",), 257, 0, "stage2")
