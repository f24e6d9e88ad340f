"""Folders of songs are checked strictly, and a manifest is read as it was written."""

import json

import numpy as np
import pytest

from jukesep import audio
from jukesep.base.errors import UserError
from jukesep.songs.find import find_songs
from jukesep.songs.manifest import MIXTURE, STEMS, Manifest, Song


def _song(folder, samples=100, rate=8000, channels=2):
    for part in (MIXTURE, *STEMS):
        audio.write(folder / f"{part}.wav", np.zeros((channels, samples)), rate)


def test_a_good_folder_is_read_in_order(tmp_path):
    for name in ("b", "a"):
        _song(tmp_path / name)
    found = [(one.song.name, one.header.samples) for one in find_songs(tmp_path, "test", ("bass",))]
    assert found == [("a", 100), ("b", 100)]


def test_every_fault_is_named_at_once(tmp_path):
    for name in ("short", "mono", "rate", "missing", "text"):
        _song(tmp_path / name)
    audio.write(tmp_path / "short/bass.wav", np.zeros((2, 99)), 8000)
    audio.write(tmp_path / "mono/drums.wav", np.zeros((1, 100)), 8000)
    audio.write(tmp_path / "rate/other.wav", np.zeros((2, 100)), 16000)
    (tmp_path / "missing/vocals.wav").unlink()
    (tmp_path / "text/vocals.wav").write_text("no samples here")
    with pytest.raises(UserError) as caught:
        find_songs(tmp_path, "test", ("vocals",))
    for expected in (
        "short/bass.wav: 99 samples long, but the song's other files have 100",
        "mono/drums.wav: mono, but the song is stereo",
        "rate/other.wav: sample rate 16000 Hz, expected 8000 Hz",
        "missing/vocals.wav: no such file",
        "text/vocals.wav: not a wav file",
    ):
        assert expected in str(caught.value)


def test_a_missing_or_empty_root_is_named(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=str(root)):
            find_songs(root, "test", ("bass",))


def test_a_manifest_moves_with_its_folder(tmp_path):
    songs = (
        Song("a", "train", "seen", tmp_path / "here/songs/a", 100),
        Song("b", "test", "held_out", tmp_path / "elsewhere/b", 200),
    )
    Manifest(8000, songs).save(tmp_path / "here/manifest.json")
    (tmp_path / "here").rename(tmp_path / "there")
    found = Manifest.load(tmp_path / "there/manifest.json")
    assert found.sample_rate == 8000
    assert found.split("train")[0].file("bass") == tmp_path / "there/songs/a/bass.wav"
    assert found.split("test")[0].folder == tmp_path / "elsewhere/b"
    with pytest.raises(UserError, match="valid"):
        found.split("valid")


def test_a_broken_manifest_is_named(tmp_path):
    path = tmp_path / "manifest.json"
    with pytest.raises(UserError, match="no such file"):
        Manifest.load(path)
    path.write_text('{"songs": 3}')
    with pytest.raises(UserError, match=r"manifest\.json"):
        Manifest.load(path)


@pytest.mark.parametrize("name", ["../a", "a/b", "..", ".", "", "/a", 5])
def test_the_name_of_a_song_names_no_other_file(tmp_path, name):
    Manifest(8000, (Song("a", "test", "seen", tmp_path / "a", 100),)).save(tmp_path / "m.json")
    content = json.loads((tmp_path / "m.json").read_text())
    content["songs"][0]["name"] = name
    (tmp_path / "m.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"m\.json: not a manifest"):
        Manifest.load(tmp_path / "m.json")
