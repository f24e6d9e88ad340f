"""MUSDB18's own matters: the archive, the validation songs, .stem.mp4 files."""

import hashlib
import shutil
import subprocess
import zipfile

import numpy as np
import pytest
import soundfile
from folders import RATE, write_song
from programs import needs
from web import nobody

from jukesep import audio
from jukesep.base import download
from jukesep.base.errors import UserError
from jukesep.base.packages import package_folder
from jukesep.songs import musdb
from jukesep.songs.manifest import MIXTURE, STEMS, Song

PARTS = (MIXTURE, *STEMS)


@pytest.fixture
def ffmpeg():
    needs("ffmpeg")
    needs("ffprobe")


def test_address_sum_and_validation_songs_are_those_of_torchaudio_and_musdb():
    from torchaudio.datasets import musdb_hq

    assert musdb.archive_source() == (musdb_hq._URL, musdb_hq._CHECKSUM)
    assert musdb.validation_songs() == set(musdb_hq._VALIDATION_SET)
    assert len(musdb.validation_songs()) == 14


# Fetching.


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive as MUSDB18-HQ's is laid out, with what others put into zip files too."""
    monkeypatch.setattr(musdb, "SONGS", {"train": 1, "test": 1})
    songs = tmp_path / "made"
    for split in ("train", "test"):
        write_song(songs / split / f"{split} song", samples=500)
    path = tmp_path / "made.zip"
    with zipfile.ZipFile(path, "w") as file:
        for wav in sorted(songs.rglob("*.wav")):
            file.write(wav, wav.relative_to(songs))
        file.writestr("__MACOSX/train/._x", "")
        file.writestr("train/train song/notes.txt", "no part of a song")
        file.writestr("../outside.wav", "escapes")
        file.writestr("train/../../outside.wav", "escapes")
        file.writestr("train/../mixture.wav", "escapes")
        file.writestr("/train/outside/mixture.wav", "escapes")
    return path


@pytest.fixture
def server(archive, monkeypatch):
    """In place of the download: copies the archive, and notes what it was asked for."""
    asked = []

    def download(url, target, *, sha256, title):
        asked.append((url, sha256, title))
        shutil.copy(archive, target)

    monkeypatch.setattr(musdb, "download", download)
    return asked


def test_an_empty_folder_is_filled_once_the_licence_is_accepted(tmp_path, server):
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(UserError, match=r"research only.*data\.accept_licence=true"):
        musdb.fetch(root, accepted=False)
    assert not list(root.iterdir())
    assert not server
    musdb.fetch(root, accepted=True)
    assert server == [(*musdb.archive_source(), "MUSDB18-HQ")]
    files = {path.relative_to(root).as_posix() for path in root.rglob("*.*") if path.is_file()}
    files -= {".musdb18hq.zip.lock"}
    assert files == {f"{s}/{s} song/{part}.wav" for s in ("train", "test") for part in PARTS}
    assert not list(tmp_path.rglob("outside.wav"))
    musdb.fetch(root, accepted=True)
    assert len(server) == 1


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path, server):
    root = tmp_path / "root"
    (root / "holiday").mkdir(parents=True)
    musdb.fetch(root, accepted=True)
    assert not server
    assert [path.name for path in root.iterdir()] == ["holiday"]


@pytest.mark.parametrize("left", ["part", "archive", "half unpacked", "one split"])
def test_an_interrupted_fetch_goes_on(tmp_path, archive, server, left):
    root = tmp_path / "root"
    root.mkdir()
    if left == "part":
        for name in ("part", "lock"):  # as a download that was killed leaves them
            (root / f".musdb18hq.zip.{name}").write_bytes(b"PK")
    else:
        shutil.copy(archive, root / "musdb18hq.zip")
    if left == "half unpacked":
        (root / ".unfinished-1/train/half a song").mkdir(parents=True)
    if left == "one split":
        write_song(root / "train/train song", samples=500)
    musdb.fetch(root, accepted=True)
    assert len(server) == (left == "part")
    # Only what this run downloaded is deleted.
    kept = {"musdb18hq.zip"} if left != "part" else set()
    assert {path.name for path in root.iterdir() if path.name[0] != "."} == {
        "train",
        "test",
        *kept,
    }
    assert [path.name for path in (root / "train").iterdir()] == ["train song"]


def test_what_the_download_leaves_when_it_is_killed_is_no_other_content(tmp_path, monkeypatch):
    """The lock stays beside the part: the next run resumes."""
    monkeypatch.setattr(musdb, "archive_source", lambda: (nobody(), "0" * 64))
    monkeypatch.setattr(download, "BACK_OFF", 0.0)
    for _ in range(2):
        with pytest.raises(UserError, match="Connection refused"):
            musdb.fetch(tmp_path, accepted=True)
    assert list(tmp_path.iterdir())


def _packed(path, made, name=lambda file: file):
    """An archive of the songs below `made` under other names."""
    with zipfile.ZipFile(path, "w") as file:
        for wav in sorted(made.rglob("*.wav")):
            file.write(wav, name(wav.relative_to(made).as_posix()))
    return path


@pytest.mark.parametrize(
    "name",
    [
        lambda file: f"musdb18hq/{file}",
        lambda file: f"a/b/{file}",
        lambda file: f"musdb18hq/{file}".replace("/", "\\"),
        lambda file: file.replace(".wav", ".WAV"),
        lambda file: file.replace("mixture", "Mixture"),
    ],
    ids=["top folder", "two folders", "backslashes", "upper case", "capitals"],
)
def test_a_user_s_archive_of_another_form_is_unpacked_and_kept(tmp_path, archive, capsys, name):
    root = tmp_path / "root"
    root.mkdir()
    given = _packed(root / "musdb18hq.zip", tmp_path / "made", name).read_bytes()
    musdb.fetch(root, accepted=False)  # nothing is downloaded
    assert (root / "musdb18hq.zip").read_bytes() == given
    for split in ("train", "test"):
        song = Song("a", split, split, root / split / f"{split} song", 500)
        for part in PARTS:
            made = tmp_path / "made" / split / f"{split} song/{part}.wav"
            assert song.file(part).read_bytes() == made.read_bytes()
    said = capsys.readouterr().err
    assert (
        f"warning: {root / 'musdb18hq.zip'}: sha256 is {hashlib.sha256(given).hexdigest()}" in said
    )
    assert musdb.archive_source()[1] in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (lambda file: f"Album/{file.split('/', 2)[2]}", r"has 0 train songs and 0 test songs with "
         r"all parts, MUSDB18-HQ has 1 train songs and 1 test songs.*Found: 'Album/bass\.wav'"),
        (lambda file: file.replace("train/", "other/"), "has 0 train songs and 1 test songs"),
        (lambda file: file.replace("bass.wav", "bass.mp3"), "has 0 train songs and 0 test songs"),
        (lambda file: f"{'ab'['bass' in file]}/train/x/{file.rsplit('/', 1)[1]}", "twice"),
    ],
    ids=["no song", "one split", "a stem less", "twice"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_without_the_songs_is_said_and_kept(tmp_path, archive, name, said):
    root = tmp_path / "root"
    root.mkdir()
    given = _packed(root / "musdb18hq.zip", tmp_path / "made", name).read_bytes()
    with pytest.raises(UserError, match=said):
        musdb.fetch(root, accepted=True)
    assert (root / "musdb18hq.zip").read_bytes() == given
    assert [path.name for path in root.iterdir() if path.name[0] != "."] == ["musdb18hq.zip"]


def test_an_archive_put_there_during_the_download_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_receive_all", lambda url, part, *_: part.write_bytes(b"ours"))
    monkeypatch.setattr(download, "_sum", lambda *_: mine.write_text("mine") and "right")
    mine = tmp_path / "musdb18hq.zip"
    with pytest.raises(UserError, match="was put there during the download"):
        download.download("http://nowhere", mine, sha256="right", title="MUSDB18-HQ")
    assert mine.read_text() == "mine"


def test_a_method_that_zipfile_lacks_is_said(tmp_path, archive):
    """As in archives of more than 2 GB made on Windows."""
    content = archive.read_bytes()
    place = content.index(b"PK\x01\x02") + 10
    archive.write_bytes(content[:place] + b"\x09" + content[place + 1 :])
    with pytest.raises(UserError, match=r"cannot be unpacked here.*Unpack it into"):
        musdb.unpack(archive, tmp_path)


def test_a_damaged_archive_and_a_full_disk_are_said(tmp_path, archive, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    content = bytearray(archive.read_bytes())
    content[1000] ^= 1
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.zip: not a complete zip archive"):
        musdb.unpack(damaged, root)
    damaged.write_bytes(content[:5000])
    with pytest.raises(UserError, match=r"damaged\.zip: not a complete zip archive"):
        musdb.unpack(damaged, root)
    usage = shutil.disk_usage(root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="Free some space"):
        musdb.unpack(archive, root)
    assert not (root / "train").exists()


# .stem.mp4 files.


def test_without_ffmpeg_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs ffmpeg and ffprobe .* install ffmpeg"):
        musdb.decode(tmp_path, tmp_path / "out", RATE)


@pytest.fixture
def stems(tmp_path):
    """MUSDB18's layout with the one real song that stempeg carries, twice."""
    (song,) = package_folder("stempeg").glob("data/*.stem.mp4")
    root = tmp_path / "musdb18"
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        shutil.copy(song, root / split / f"Band - {split}.stem.mp4")
    return root


@pytest.mark.usefixtures("ffmpeg")
def test_stem_files_are_decoded_as_musdb_does_it(tmp_path, stems):
    import musdb as package

    musdb.decode(stems, tmp_path / "out", RATE)
    for track in package.DB(root=str(stems)):
        folder = tmp_path / "out" / track.subset / track.name
        for part, expected in zip(PARTS, track.stems, strict=True):
            assert audio.info(folder / f"{part}.wav").subtype == "PCM_16"
            np.testing.assert_array_equal(audio.read(folder / f"{part}.wav"), expected.T)
    shutil.rmtree(stems / "train")
    musdb.decode(stems, tmp_path / "low", 11025)
    header = audio.info(tmp_path / "low/test/Band - test/bass.wav")
    assert (header.sample_rate, header.subtype) == (11025, "FLOAT")
    assert header.samples == -(-len(expected) // 4)


@pytest.mark.usefixtures("ffmpeg")
def test_all_stem_files_that_cannot_be_decoded_are_named(tmp_path, stems):
    shutil.copy(stems / "test/Band - test.stem.mp4", stems / "test/Whole.stem.mp4")
    content = (stems / "train/Band - train.stem.mp4").read_bytes()
    (stems / "train/Band - train.stem.mp4").write_bytes(content[: len(content) // 2])
    (stems / "test/Band - test.stem.mp4").write_text("no mp4")
    soundfile.write(tmp_path / "one.wav", np.zeros((RATE, 2)), RATE)
    one = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "one.wav"), "-f", "mp4"]
    subprocess.run([*one, str(stems / "train/One.stem.mp4")], check=True)
    with pytest.raises(UserError) as caught:
        musdb.decode(stems, tmp_path / "out", RATE)
    report = str(caught.value)
    assert report.startswith(f"{stems}: 3 fault(s)")
    assert "train/Band - train.stem.mp4: " in report
    assert "test/Band - test.stem.mp4: cannot be decoded" in report
    assert "train/One.stem.mp4: 1 audio stream(s), expected 5" in report


@pytest.mark.usefixtures("ffmpeg")
def test_a_folder_of_wav_files_is_no_musdb18(tmp_path):
    write_song(tmp_path / "train/a")
    with pytest.raises(UserError, match="use data=musdb18hq"):
        musdb.decode(tmp_path, tmp_path / "out", RATE)


@pytest.mark.usefixtures("ffmpeg")
def test_wav_songs_are_read_as_musdb_reads_them(tmp_path):
    """The same samples at the same places; musdb rounds to 16 bit, so the files are 16 bit."""
    import musdb as package

    write_song(tmp_path / "test/Band - Song", samples=RATE)
    (track,) = package.DB(root=str(tmp_path), is_wav=True, subsets="test")
    folder = tmp_path / "test/Band - Song"
    np.testing.assert_array_equal(audio.read(folder / "mixture.wav"), track.audio.T)
    for stem in STEMS:
        np.testing.assert_array_equal(
            audio.read(folder / f"{stem}.wav"), track.targets[stem].audio.T
        )
    track.chunk_start, track.chunk_duration = 0.25, 0.5
    found = audio.read(folder / "mixture.wav", RATE // 4, RATE // 2)
    np.testing.assert_array_equal(found, track.audio.T)
