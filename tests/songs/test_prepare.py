"""Songs of each source become a manifest: in place or resampled, split, checked."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from folders import RATE, write_musdb18hq, write_song

from jukesep import audio
from jukesep.base import params
from jukesep.base.errors import UserError
from jukesep.songs import band, musdb
from jukesep.songs.manifest import MIXTURE, STEMS, Manifest
from jukesep.songs.prepare import longest_segment, prepare
from jukesep.training.segments import Segments

ROOT = Path(__file__).parents[2]
PARTS = (MIXTURE, *STEMS)


def _params(tmp_path, *overrides):
    path = tmp_path / "params.yaml"
    path.write_text(params.compose(["scale=tiny", *overrides], ROOT / "conf"))
    return params.load(path)


def _in_place(tmp_path, source, root, *overrides):
    """Parameters under which the songs at 44.1 kHz stay where they are."""
    given = [f"data={source}", f"data.root={root}", f"model.sample_rate={RATE}"]
    return _params(tmp_path, *given, *overrides)


def _names(manifest, split):
    return [song.name for song in manifest.split(split)]


def test_musdb18hq_is_read_where_it_lies(tmp_path, capsys):
    root = write_musdb18hq(tmp_path / "musdb18hq", samples=5000)
    before = sorted(root.rglob("*"))
    prepared = tmp_path / "data/prepared"
    prepare(_in_place(tmp_path, "musdb18hq", root), prepared)
    assert sorted(root.rglob("*")) == before
    assert {path.name for path in prepared.iterdir()} == {"manifest.json", "checks.json"}

    manifest = Manifest.load(prepared / "manifest.json")
    assert manifest.sample_rate == RATE
    counts = {split: len(manifest.split(split)) for split in ("train", "valid", "test")}
    assert counts == {"train": 86, "valid": 14, "test": 50}
    assert set(_names(manifest, "valid")) == musdb.validation_songs()
    assert not set(_names(manifest, "train")) & musdb.validation_songs()
    assert {song.folder.parent for song in manifest.songs} == {root / "train", root / "test"}
    assert {song.samples for song in manifest.songs} == {5000}
    assert {song.group for song in manifest.split("test")} == {"test"}
    assert "86 train, 14 valid, 50 test, 86 pretrain songs" in capsys.readouterr().out

    # What changes in the songs changes what the trainings depend on, though no song is copied.
    checks = json.loads((prepared / "checks.json").read_text())
    assert checks["warnings"] == []
    assert len(checks["samples"]) == 150
    assert set(checks["samples"]["test/Other 07 - Song"]) == set(PARTS)


def test_preparing_again_gives_the_same_bytes(tmp_path):
    root = tmp_path / "songs"
    for number in range(9):
        write_song(root / f"train/{number}", samples=5000, seed=number)
        write_song(root / f"test/t{number}", samples=5000, seed=number)
    settings = _in_place(tmp_path, "folder", root)
    written = []
    for name in ("one", "two"):
        prepare(settings, tmp_path / name)
        files = sorted((tmp_path / name).iterdir())
        written.append({path.name: path.read_bytes() for path in files})
    assert written[0] == written[1]


def test_train_on_validation_trains_on_all_and_keeps_the_validation_songs(tmp_path):
    root = tmp_path / "songs"
    held = ["ANiMAL - Rockshow", "Leaf - Summerghost"]
    for name in (*held, "B", "C"):
        write_song(root / "train" / name, samples=5000)
    write_song(root / "test/t", samples=5000)
    on = "data.train_on_validation=true"
    manifest = prepare(_in_place(tmp_path, "folder", root, on), tmp_path / "prepared")
    assert _names(manifest, "train") == [held[0], "B", "C", held[1]]
    assert _names(manifest, "valid") == held
    assert _names(manifest, "test") == ["t"]
    with pytest.raises(UserError, match=r"evaluate\.split=valid .* songs that were trained on"):
        _params(tmp_path, on, "evaluate.split=valid")


def test_at_another_rate_the_songs_are_resampled_copies(tmp_path):
    root = tmp_path / "songs"
    for split, count in (("train", 3), ("test", 1)):
        for number in range(count):
            write_song(root / split / f"{split} {number}", samples=2 * RATE, seed=number)
    settings = _params(tmp_path, "data=folder", f"data.root={root}", "data.valid_songs=1")
    prepare(settings, tmp_path / "prepared")
    manifest = Manifest.load(tmp_path / "prepared/manifest.json")
    assert manifest.sample_rate == settings.model.sample_rate == 11025
    assert _names(manifest, "valid") == ["train 2"]
    for song in manifest.songs:
        assert song.folder.is_relative_to(tmp_path / "prepared/songs")
        assert audio.info(song.file("bass")) == audio.AudioInfo(11025, 2, song.samples, "FLOAT")
    # Pretraining shares the copies of the training songs.
    train, pretrain = manifest.split("train"), manifest.split("pretrain")
    assert [song.folder for song in train] == [song.folder for song in pretrain]
    song = manifest.split("test")[0]
    total = sum(audio.read(song.file(stem)) for stem in STEMS)
    np.testing.assert_allclose(total, audio.read(song.file(MIXTURE)), atol=1e-5)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_wav_files_keep_their_precision(tmp_path, subtype):
    root = tmp_path / "songs"
    for name in ("train/a", "train/b", "test/c"):
        parts = write_song(root / name, samples=6000)
    # Values between two steps of 16 bit; and beyond full scale, which float alone can hold.
    bits = {"PCM_16": 15, "PCM_24": 23}.get(subtype)
    steps = np.random.default_rng(1).integers(-(2**23), 2**23, (6000, 2))
    fine = np.round(steps / 2.0 ** (23 - bits)) / 2.0**bits if bits else 3 * steps / 2.0**23
    fine = np.clip(fine, -1, 1 - 2.0**-bits) if bits else fine
    for part in parts:
        soundfile.write(root / f"test/c/{part}.wav", fine, RATE, subtype=subtype)
    settings = _in_place(tmp_path, "folder", root, "data.valid_songs=1")
    manifest = prepare(settings, tmp_path / "prepared")
    (song,) = manifest.split("test")
    np.testing.assert_array_equal(audio.read(song.file("drums")), fine.T.astype(np.float32))


def test_validation_songs_of_a_folder(tmp_path):
    """Its own valid/, else those of musdb's list, else the last ones."""
    root = tmp_path / "songs"
    for number in range(4):
        write_song(root / f"train/{number}", samples=5000, seed=number)
    write_song(root / "test/t", samples=5000)
    settings = _in_place(tmp_path, "folder", root, "data.valid_songs=2")
    prepared = tmp_path / "prepared"
    assert _names(prepare(settings, prepared), "valid") == ["2", "3"]
    write_song(root / "train/ANiMAL - Rockshow", samples=5000)
    assert _names(prepare(settings, prepared), "valid") == ["ANiMAL - Rockshow"]
    write_song(root / "valid/v", samples=5000)
    manifest = prepare(settings, prepared)
    assert _names(manifest, "valid") == ["v"]
    assert len(manifest.split("train")) == 5


def test_no_songs_left_to_train_on_is_said(tmp_path):
    for split in ("train", "test"):
        write_song(tmp_path / "songs" / split / split, samples=5000)
    settings = _in_place(tmp_path, "folder", tmp_path / "songs")
    with pytest.raises(UserError, match="none are left to train on"):
        prepare(settings, tmp_path / "prepared")


def test_a_song_must_be_as_long_as_the_longest_segment_that_is_used(tmp_path):
    for name, samples in (("train/a", 8191), ("train/b", 9000), ("test/c", 4000)):
        write_song(tmp_path / "songs" / name, samples=samples)
    given = ["data.valid_songs=1", "pretrain.segment=8192", "stage1.segment=4096"]
    settings = _in_place(tmp_path, "folder", tmp_path / "songs", *given)
    assert longest_segment(settings) == 8192
    with pytest.raises(UserError, match=r"train/a: 0\.19 s long, shorter than a training segment"):
        prepare(settings, tmp_path / "prepared")
    # Without pretraining its segments do not count; nor does the length of a test song.
    settings = _in_place(tmp_path, "folder", tmp_path / "songs", *given, "inits=[scratch]")
    assert longest_segment(settings) == 4096
    prepare(settings, tmp_path / "prepared")


def test_warnings_are_printed_and_kept(tmp_path, capsys):
    root = tmp_path / "songs"
    for name in ("train/a", "train/b", "test/c"):
        write_song(root / name, samples=5000)
        soundfile.write(root / name / "vocals.wav", np.zeros((5000, 2)), RATE)
    settings = _in_place(tmp_path, "folder", root, "data.valid_songs=1", "stem=bass")
    prepare(settings, tmp_path / "prepared")
    kept = json.loads((tmp_path / "prepared/checks.json").read_text())["warnings"]
    assert len(kept) == 6
    assert sum("vocals.wav: silent throughout" in line for line in kept) == 3
    printed = capsys.readouterr().err
    assert all(f"warning: {line}" in printed for line in kept)


def _silence(path, step=0.0):
    soundfile.write(path, np.full((5000, 2), step), RATE)


def test_what_will_be_scored_is_said(tmp_path, capsys):
    root = tmp_path / "songs"
    for number, name in enumerate(("train/a", "train/b", "test/c", "test/d", "test/e")):
        write_song(root / name, samples=5000, seed=number)
    settings = _in_place(tmp_path, "folder", root, "data.valid_songs=1")
    manifest = prepare(settings, tmp_path / "prepared")
    assert "silent" not in (tmp_path / "prepared/manifest.json").read_text()
    assert "Songs scored" not in capsys.readouterr().out
    _silence(root / "test/c/vocals.wav")
    _silence(root / "test/e/vocals.wav")
    _silence(root / "test/e/bass.wav")
    _silence(root / "test/d/bass.wav", step=2.0**-15)
    prepare(settings, tmp_path / "prepared")
    said = capsys.readouterr()
    assert (
        "prepare: of 3 test songs, some have silent stems. Songs scored: drums 3, bass 2, other 3, "
        "vocals 1; by sdr_v4, which needs all stems, 1. Silent: 'c' (vocals), 'e' (bass and vocals)"
    ) in said.out
    assert "test/d/bass.wav: no sample is above one step of 16 bit, but it is not" in said.err
    manifest = Manifest.load(tmp_path / "prepared/manifest.json")
    assert [song.silent for song in manifest.split("test")] == [
        ("vocals",),
        (),
        ("bass", "vocals"),
    ]


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_stem_that_no_song_has_is_said_before_any_work(tmp_path, monkeypatch, split):
    root = tmp_path / "songs"
    for name in ("train/a", "train/b", "test/c"):
        write_song(root / name, samples=20_000)
        if name.startswith(split):
            soundfile.write(root / name / "vocals.wav", np.zeros((20_000, 2)), RATE)
    given = ("data=folder", f"data.root={root}", "data.valid_songs=1")
    monkeypatch.setattr("jukesep.songs.prepare._resampled", None)
    with pytest.raises(UserError, match=rf"vocals is silent in all songs of split '{split}'"):
        prepare(_params(tmp_path, *given), tmp_path / "prepared")
    prepare(_in_place(tmp_path, "folder", root, given[2], "stem=bass"), tmp_path / "prepared")


@pytest.mark.parametrize("root", [None, "songs"])
def test_a_root_that_is_not_set_or_not_absolute_is_said(tmp_path, root):
    given = ["data=musdb18hq"] + ([f"data.root={root}"] if root else [])
    with pytest.raises(UserError, match=r"absolute path"):
        _params(tmp_path, *given)


def test_a_root_that_is_not_there_is_said(tmp_path):
    settings = _in_place(tmp_path, "musdb18hq", tmp_path / "nowhere")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        prepare(settings, tmp_path / "prepared")


@pytest.mark.parametrize("place", ["prepared", "prepared/songs", "cache/songs"])
def test_songs_where_the_stage_deletes_its_own_are_refused(tmp_path, place):
    root = tmp_path / "data" / place
    parts = write_song(root / "train/a")
    link = tmp_path / "link"
    link.symlink_to(root)
    for given in (root, link):
        with pytest.raises(UserError, match=r"is in .*data/\w+, whose files this stage deletes"):
            prepare(_in_place(tmp_path, "folder", given), tmp_path / "data/prepared")
    assert {path.stem for path in (root / "train/a").iterdir()} == set(parts)


def _as_flac(path):
    samples, rate = soundfile.read(path, dtype="int16")
    soundfile.write(path.with_suffix(".flac"), samples, rate)
    path.unlink()


def test_flac_and_upper_case_are_the_same_songs(tmp_path):
    """In place and resampled: other names, the same samples and digests."""
    for name in ("plain", "other"):
        for number, song in enumerate(("train/a", "train/b", "test/c")):
            write_song(tmp_path / name / song, samples=RATE, seed=number)
    root = tmp_path / "other"
    for song in root.glob("*/*"):
        _as_flac(song / "bass.wav")
        (song / "mixture.wav").rename(song / "mixture.WAV")
        (song / "vocals.wav").rename(song / "Vocals.wav")
    for rate in (RATE, 11025):
        found = []
        for name in ("plain", "other"):
            given = ["data=folder", f"data.root={tmp_path / name}", "data.valid_songs=1"]
            settings = _params(tmp_path, *given, f"model.sample_rate={rate}")
            manifest = prepare(settings, tmp_path / f"{name}-{rate}/prepared")
            heard = {
                (song.split, song.name, part): audio.read(song.file(part)).tobytes()
                for song in manifest.songs
                for part in PARTS
            }
            checks = (tmp_path / f"{name}-{rate}/prepared/checks.json").read_text()
            found.append((heard, checks, [song.samples for song in manifest.songs]))
        assert found[0] == found[1]
    segments = [
        Segments(Manifest.load(tmp_path / f"{name}-{RATE}/prepared/manifest.json").split("train"),
                 ("mixture", "bass"), 4096, 0, "test")[1]
        for name in ("plain", "other")
    ]  # fmt: skip
    assert segments[0].equal(segments[1])


def test_the_papers_command_composes(tmp_path):
    given = ["scale=paper", "data=musdb18hq", "data.root=/abs/path"]
    path = tmp_path / "params.yaml"
    path.write_text(params.compose(given, ROOT / "conf"))
    data = params.load(path).data
    assert (data.source, data.root, data.depends_on) == ("musdb18hq", "/abs/path", "/abs/path")
    assert yaml.safe_load(path.read_text())["scale"] == "paper"


# --- once more --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Songs at another rate than the model's, and the parameters to prepare them."""
    root = tmp_path / "songs"
    for number, name in enumerate(("train/a", "train/b", "test/c")):
        write_song(root / name, samples=RATE, seed=number)
    return root, _params(tmp_path, "data=folder", f"data.root={root}", "data.valid_songs=1")


def _content(prepared):
    return {
        path.relative_to(prepared): path.read_bytes()
        for path in prepared.rglob("*")
        if path.is_file()
    }


def _work(monkeypatch):
    """What is read for its samples, and what is resampled, from now on."""
    read, resampled = [], []
    blocks, resample = audio.raw_blocks, audio.resample

    def reading(path, *given, **named):
        read.append(str(path))
        return blocks(path, *given, **named)

    def resampling(*given):
        resampled.append(given)
        return resample(*given)

    monkeypatch.setattr(audio, "raw_blocks", reading)
    monkeypatch.setattr(audio.samples, "raw_blocks", reading)
    monkeypatch.setattr(audio, "resample", resampling)
    return read, resampled


def test_songs_that_have_not_changed_are_not_read_again(tmp_path, folder, monkeypatch):
    _, settings = folder
    prepared = tmp_path / "data/prepared"
    prepare(settings, prepared)
    first = _content(prepared)
    read, resampled = _work(monkeypatch)
    prepare(settings, prepared)
    assert not read
    assert not resampled
    assert _content(prepared) == first
    # DVC deletes the output, and may have made the files of its own.
    for path in prepared.rglob("*.wav"):
        path.write_bytes(path.read_bytes())
    prepare(settings, prepared)
    assert _content(prepared) == first


def _spoil(path):
    """Another sample, in place."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    with path.open("r+b") as file:
        file.write(content)


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("songs/train/a/bass.wav", _spoil),
        ("songs/train/a", lambda path: write_song(path, samples=RATE + 9, seed=5)),
        ("data/cache/songs/train/a/bass.wav", _spoil),
        ("data/cache/songs/train/a/bass.wav", lambda path: path.write_bytes(b"")),
        ("data/cache/songs/train/a/bass.wav", lambda path: path.unlink()),
        ("data/prepared/songs/train/a/bass.wav", _spoil),
        ("data/cache/known.json", lambda path: path.write_text("{")),
    ],
)
def test_what_has_changed_is_made_again(tmp_path, folder, where, change):
    _, settings = folder
    prepare(settings, tmp_path / "data/prepared")
    change(tmp_path / where)
    prepare(settings, tmp_path / "data/prepared")
    prepare(settings, tmp_path / "afresh/prepared")
    assert _content(tmp_path / "data/prepared") == _content(tmp_path / "afresh/prepared")


def test_only_what_has_changed_is_made_again(tmp_path, folder, monkeypatch):
    root, settings = folder
    prepare(settings, tmp_path / "data/prepared")
    _spoil(root / "train/b/bass.wav")
    read, resampled = _work(monkeypatch)
    prepare(settings, tmp_path / "data/prepared")
    # For its digest and for its copy.
    assert sorted(read) == sorted(2 * [str(root / f"train/b/{part}.wav") for part in PARTS])
    assert len(resampled) == len(PARTS)


def test_copies_stay_when_other_songs_are_set_apart(tmp_path, folder, monkeypatch):
    root, settings = folder
    prepare(settings, tmp_path / "data/prepared")
    write_song(root / "valid/d", samples=RATE)
    _, resampled = _work(monkeypatch)
    manifest = prepare(settings, tmp_path / "data/prepared")
    assert _names(manifest, "train") == ["a", "b"]
    assert len(resampled) == len(PARTS)


def test_what_no_run_needs_any_more_is_deleted(tmp_path, folder):
    root, settings = folder
    prepare(settings, tmp_path / "data/prepared")
    shutil.move(root / "train/b", root / "train/d")
    prepare(settings, tmp_path / "data/prepared")
    found = {path.name for path in (tmp_path / "data/cache/songs").glob("*/*")}
    assert found == {"a", "c", "d"}


def test_a_file_of_the_user_s_beside_what_is_kept_stays(tmp_path, folder):
    mine = tmp_path / "data/cache/mine/notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    prepare(folder[1], tmp_path / "data/prepared")
    assert mine.read_text() == "mine"


def test_a_fault_does_not_cost_what_was_read_before(tmp_path, folder, monkeypatch):
    root, settings = folder
    content = (root / "train/b/bass.wav").read_bytes()
    (root / "train/b/bass.wav").write_bytes(content[:1000])
    with pytest.raises(UserError, match="truncated"):
        prepare(settings, tmp_path / "data/prepared")
    (root / "train/b/bass.wav").write_bytes(content)
    read, _ = _work(monkeypatch)
    prepare(settings, tmp_path / "data/prepared")
    checked = [path for path in read if "/train/a/" in path]
    assert len(checked) == len(PARTS)  # for its copies alone


@pytest.mark.parametrize("rate", [11025, 44100])
def test_the_band_is_rendered_once(tmp_path, monkeypatch, rate):
    monkeypatch.setattr("jukesep.base.parallel.cores", lambda: 1)
    counts = ["band.seconds=2"]
    counts += [f"band.{name}=1" for name in ("train", "valid", "test", "pretrain")]
    settings = _params(tmp_path, *counts, f"model.sample_rate={rate}")
    rendered, render = [], band.render_song

    def rendering(task):
        rendered.append(task.folder.name)
        return render(task)

    monkeypatch.setattr(band, "render_song", rendering)
    prepared = tmp_path / "data/prepared"
    prepare(settings, prepared)
    first = _content(prepared)
    assert len(rendered) == 4
    assert (prepared / "band").exists() == (rate == 44100)
    prepare(settings, prepared)
    assert len(rendered) == 4
    song = next((tmp_path / "data/cache/band/test").iterdir())
    _spoil(song / "bass.wav")
    prepare(settings, prepared)
    assert rendered[4:] == [song.name]
    assert _content(prepared) == first
    # Other songs: nothing is left of these.
    other = _params(tmp_path, *counts, f"model.sample_rate={rate}", "band.seed=7")
    prepare(other, prepared)
    found = {path.name for path in (tmp_path / "data/cache/band").glob("*/*")}
    assert found == set(rendered[5:])
    assert len(Manifest.load(prepared / "manifest.json").songs) == 4
