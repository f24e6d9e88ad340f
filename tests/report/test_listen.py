"""The listening page: what is in it, and what it does in a browser."""

import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from browser import opened, wait
from commands import run_jukesep
from matplotlib.image import imread
from programs import needs

from jukesep.base import params
from jukesep.base.errors import UserError
from jukesep.report import listen
from jukesep.songs.manifest import STEMS, Manifest, Song
from studies import listen_picture

ROOT = Path(__file__).parents[2]
RATE = 8000
SECONDS = 3
NAMES = ("<script>alert(1)</script>", "/*SCRIPT*/ </script> & é")


def _tone(frequency, seconds=SECONDS, channels=1):
    time = np.arange(int(seconds * RATE)) / RATE
    return np.tile(0.3 * np.sin(2 * np.pi * frequency * time), (channels, 1)).T


TONE = _tone(300).T.astype(np.float32)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """An experiment's songs, sounds and scores, of two stems, as `evaluate` leaves them."""
    root = tmp_path_factory.mktemp("project")
    songs = []
    for number, name in enumerate(NAMES):
        folder = root / f"data/prepared/songs/test/{number}"
        folder.mkdir(parents=True)
        for part, frequency in zip(("mixture", *STEMS), (200, 300, 400, 500, 600), strict=True):
            soundfile.write(folder / f"{part}.wav", _tone(frequency, channels=2), RATE)
        # A name that no file system would bear is a song's all the same.
        songs.append(Song(name.replace("/", "_"), "test", "seen", folder, RATE * SECONDS))
    Manifest(RATE, tuple(songs)).save(root / "data/prepared/manifest.json")
    for stem in STEMS:
        for init in ("pretrained", "scratch"):
            rows = []
            for song in songs:
                for step in ("4", "6", "ceiling"):
                    _keep(root, f"{stem}_{init}", song, step, 700 + len(step))
                rows += [(song, stem, "separation", init, step, f"{step}.25") for step in (4, 6)]
                rows.append((song, stem, "ceiling", init, "", "9.5"))
            _scores(root / f"results/scores/{stem}_{init}.csv", rows)
    for file, systems in OTHERS.items():
        rows = []
        for song in songs:
            for stem in STEMS:
                for system, (step, prefix, value) in systems.items():
                    folder = "static_equaliser" if file == "baselines" else file
                    _keep(root, folder, song, f"{prefix}{stem}", 900)
                    rows.append((song, stem, system, "", step, value))
        _scores(root / f"results/systems/{file}.csv", rows)
    return root


# File of results/systems -> its systems: last step, prefix of its sounds, score.
OTHERS = {
    "refined": {"refined": (6, "", "3.5")},
    "open_unmix": {
        "open_unmix": (40, "", "4.5"),
        "open_unmix_wiener": (40, "open_unmix_wiener_", "5.5"),
    },
    "baselines": {"static_equaliser": ("", "", "1.5")},
}


def _keep(root, folder, song, name, frequency):
    path = root / "results/audio" / folder / song.name / f"{name}.flac"
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, _tone(frequency), RATE)


def _scores(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["song", "group", "stem", "system", "init", "step", "metric", "value"])
        for song, stem, system, init, step, value in rows:
            for metric, number in (("sdr_mdx", 77), ("sdr", value)):
                writer.writerow([song.name, "seen", stem, system, init, step, metric, number])


def _params(**changes):
    found = {
        "scale": "tiny", "stems": ["drums", "vocals"], "inits": ["pretrained", "scratch"],
        "evaluate": {"split": "test", "audio": True},
        "stage2": {"checkpoints": [4, 6], "steps": 6},
        "peers": {"open_unmix": {"steps": 40}, "control": None},
    }  # fmt: skip
    return found | changes


@pytest.fixture(scope="module")
def page(project):
    listen.of_experiment(_params(), project)
    return project / "listen"


def _content(page):
    text = (page / "index.html").read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="content">(.*)</script>', text)
    return json.loads(found)


def _sounds(page, name):
    text = (page / name).read_text(encoding="utf-8")
    start = f'jukesep.sounds("{name}",'
    assert text.startswith(start)
    return json.loads(text[len(start) : -len(");\n")])


def test_every_system_of_every_song_is_there(page):
    content = _content(page)
    assert [song["name"] for song in content["songs"]] == [n.replace("/", "_") for n in NAMES]
    assert content["rate"] == RATE
    for song in content["songs"]:
        assert song["note"] == "instruments heard in training"
        assert [part["name"] for part in song["parts"]] == ["drums", "vocals"]
        for part in song["parts"]:
            found = [(one["label"], one["kind"], one["score"]) for one in part["sounds"]]
            assert found == [
                ("mixture", "mixture", None),
                (f"true {part['name']}", "truth", None),
                ("pretrained, 6 steps", "pretrained", 6.25),
                ("pretrained, 4 steps", "pretrained", 4.25),
                ("scratch, 6 steps", "scratch", 6.25),
                ("scratch, 4 steps", "scratch", 4.25),
                ("Open-Unmix", "peer", 4.5),
                ("Open-Unmix, Wiener filter", "peer", 5.5),
                ("static equaliser", "equaliser", 1.5),
                ("ceiling, pretrained", "ceiling", 9.5),
                ("ceiling, scratch", "ceiling", 9.5),
            ]
            assert part["seconds"] == SECONDS


def test_refined_stems_of_all_four_models_stand_beside_the_plain_ones(project, tmp_path):
    shutil.copytree(project, tmp_path / "again")
    listen.of_experiment(
        _params(stems=list(STEMS), inits=["scratch"], peers={}), tmp_path / "again"
    )
    for part in _content(tmp_path / "again/listen")["songs"][0]["parts"]:
        found = [(one["label"], one["kind"], one["score"]) for one in part["sounds"]]
        assert found[2:] == [
            ("scratch, 6 steps", "scratch", 6.25),
            ("scratch, 4 steps", "scratch", 4.25),
            ("scratch, refined", "refined", 3.5),
            ("static equaliser", "equaliser", 1.5),
            ("ceiling, scratch", "ceiling", 9.5),
        ]


# (song, stem) -> SDR of ours and of the equaliser. The best score is not the largest gain.
UNEVEN = {(0, "drums"): (0.5, 2.0), (0, "vocals"): (9.0, 8.0), (1, "vocals"): (4.004, 0.746)}
FIRST = [
    "vocals of {1}: 4.00 dB, +3.25 over the static equaliser",
    "drums of {0}: 0.50 dB, -1.50 over the static equaliser",
]


@pytest.fixture
def uneven(project, tmp_path):
    """The project where some stems are separated better than others, and its songs' names."""
    root = shutil.copytree(project, tmp_path / "uneven")
    songs = Manifest.load(root / "data/prepared/manifest.json").split("test")
    places = [(song, stem) for song in range(len(songs)) for stem in STEMS]
    ours, base = ({p: UNEVEN.get(p, (2.0, 1.0))[n] for p in places} for n in (0, 1))
    for file, system, step, values in (
        ("refined", "refined", 6, ours),
        ("baselines", "static_equaliser", "", base),
    ):
        rows = [(songs[n], stem, system, "", step, db) for (n, stem), db in values.items()]
        _scores(root / f"results/systems/{file}.csv", rows)
    for stem in STEMS:
        own = [(songs[n], ours[n, stem]) for n in range(len(songs))]
        rows = [(song, stem, "separation", "pretrained", 6, db) for song, db in own]
        # Another checkpoint gains in another order.
        rows += [(song, stem, "separation", "pretrained", 4, 9 - db) for song, db in own]
        _scores(root / f"results/scores/{stem}_pretrained.csv", rows)
    return root, [song.name for song in songs]


@pytest.mark.parametrize(
    ("stems", "ours"),
    [(STEMS, "pretrained, refined"), (("drums", "vocals"), "pretrained, 6 steps")],
)
def test_the_page_begins_where_the_method_gains_most_and_least(uneven, stems, ours):
    root, names = uneven
    listen.of_experiment(_params(stems=list(stems), peers={}), root)
    content = _content(root / "listen")
    assert [song["name"] for song in content["songs"]] == names[::-1]
    assert [(one["name"], one["text"].format(*names)) for one in content["picks"]] == [
        (name, text.format(*names)) for name, text in zip(("Best", "Worst"), FIRST, strict=True)
    ]
    for pick, stem in zip(content["picks"], ("vocals", "drums"), strict=True):
        part = content["songs"][pick["song"]]["parts"][pick["part"]]
        assert (part["name"], part["sounds"][pick["sound"]]["label"]) == (stem, ours)
    assert [pick["song"] for pick in content["picks"]] == [0, 1]
    assert (
        f"are the stems where “{ours}” gains most and least over the static equaliser"
        in content["about"]
    )


def test_songs_beyond_the_limit_are_left_out_and_named(tmp_path, capsys):
    entries = [
        listen.Entry(f"song {n}", "", {"stems": [listen.Sound("a", "stem", lambda: (TONE, RATE))]})
        for n in range(4)
    ]

    def written(*rest):
        listen.write_page(tmp_path / "page", "Listen", "About.", entries, *rest)
        size = sum(p.stat().st_size for p in (tmp_path / "page").rglob("*") if p.is_file())
        content = _content(tmp_path / "page")
        files = len(list((tmp_path / "page/audio").iterdir()))
        assert files == len(content["songs"])
        return size, files, content["about"]

    size, *rest = written()
    assert rest == [4, "About."]
    assert written((), size) == (size, 4, "About.")
    less, files, about = written((), size - 1)
    assert less < size
    left = "Left out, because the page takes at most {:g} MB: song 3."
    assert (files, about) == (3, f"About. {left.format((size - 1) / 1e6)}")
    assert f"page: {left.format((size - 1) / 1e6)}" in capsys.readouterr().err
    assert written((), less) == (less, 3, f"About. {left.format(less / 1e6)}")
    picks = [listen.Pick("Best", "", 0, 0, 0), listen.Pick("Worst", "", 1, 0, 0)]
    assert written(picks, 1)[1] == 2


def test_the_experiments_page_has_a_limit_but_for_the_best_and_the_worst(uneven, monkeypatch):
    root, names = uneven
    songs = Manifest.load(root / "data/prepared/manifest.json").songs
    more = Song("more", "test", "seen", songs[0].folder, RATE * SECONDS)  # without sounds to read
    Manifest(RATE, (more, *songs)).save(root / "data/prepared/manifest.json")
    monkeypatch.setattr(listen, "LIMIT", 10_000)
    listen.of_experiment(_params(), root)
    content = _content(root / "listen")
    assert [song["name"] for song in content["songs"]] == names[::-1]
    assert content["about"].endswith(" Left out, because the page takes at most 0.01 MB: more.")


def test_every_kind_of_sound_has_its_colour():
    script, style = ((listen.HERE / name).read_text() for name in ("page.js", "page.css"))
    (kinds,) = re.findall(r"KINDS = \[(.*?)\]", script, re.DOTALL)
    assert set(re.findall(r'"(\w+)"', kinds)) == set(listen.KINDS)
    assert all(style.count(f"--{kind}: #") == 2 for kind in listen.KINDS)  # light and dark


def test_sounds_are_the_files_and_peaks_their_loudest(page, project, tmp_path):
    part = _content(page)["songs"][0]["parts"][1]
    clips = _sounds(page, part["file"])
    assert len(clips) == len(part["sounds"])
    for clip, name in ((clips[0], "mixture"), (clips[1], "vocals")):
        assert clip["type"] == "audio/mp3"
        (tmp_path / "a.mp3").write_bytes(base64.b64decode(clip["data"]))
        found, rate = soundfile.read(tmp_path / "a.mp3")
        wanted = soundfile.read(project / f"data/prepared/songs/test/0/{name}.wav")[0].mean(1)
        assert rate == RATE
        assert found.shape == wanted.shape
        assert np.sum((found - wanted) ** 2) < 0.01 * np.sum(wanted**2)
        assert len(clip["peaks"]) == listen.PEAKS
        assert max(clip["peaks"]) == pytest.approx(300, abs=1)


def test_the_same_songs_are_the_same_files(page, project, tmp_path):
    shutil.copytree(project, tmp_path / "again")
    listen.of_experiment(_params(), tmp_path / "again")
    files = sorted(p.relative_to(page) for p in page.rglob("*") if p.is_file())
    assert len(files) == 4 + 3
    for path in files:
        assert (page / path).read_bytes() == (tmp_path / "again/listen" / path).read_bytes()


def test_names_cannot_leave_their_place(page):
    text = (page / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert text.count("</script>") == 3
    for place in ("/*STYLE*/", "/*CONTENT*/"):
        assert place not in text


def test_nothing_is_asked_of_a_network(page):
    text = (page / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"""(?:src|href)=["']([^"']*)""", text) == ["wavesurfer.min.js"]
    assert "default-src 'none'" in text
    assert "BSD 3-Clause" in (page / "wavesurfer.licence.txt").read_text()


def test_an_experiment_that_kept_nothing_says_so(project, tmp_path):
    shutil.copytree(project / "data", tmp_path / "data")
    listen.of_experiment(_params(evaluate={"split": "test", "audio": False}), tmp_path)
    content = _content(tmp_path / "listen")
    assert content["songs"] == content["picks"] == []
    assert "set evaluate.audio=true" in content["about"]


def test_the_stage_needs_no_torch(project, tmp_path):
    shutil.copytree(project, tmp_path / "again")
    changes = ["scale=tiny", "stem=drums", "stage2.checkpoints=[4,6]", "stage2.steps=6"]
    text = params.compose([*changes, "peers=none"], ROOT / "conf")
    (tmp_path / "again/params.yaml").write_text(text)
    code = (
        "import runpy, sys; runpy.run_module('stages.listen', run_name='__main__'); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "again",
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (part,) = _content(tmp_path / "again/listen")["songs"][0]["parts"]
    assert part["name"] == "drums"
    assert any(one["kind"] == "equaliser" for one in part["sounds"])


# --- one's own songs --------------------------------------------------------------------------


@pytest.fixture
def stems(tmp_path, monkeypatch):
    """stems/<song>/<stem>.wav of two songs, stereo."""
    for song in ("one", "two"):
        folder = tmp_path / "stems" / song
        folder.mkdir(parents=True)
        for number, stem in enumerate(("vocals", "drums", "no_vocals")):
            soundfile.write(folder / f"{stem}.wav", _tone(300 + 100 * number, 1, 2), RATE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_separated_songs_have_a_page(stems, capsys, monkeypatch):
    monkeypatch.setattr(listen, "LIMIT", 1)  # of an experiment's page alone
    assert run_jukesep("listen", "stems") == 0
    assert capsys.readouterr().out == f"{stems.resolve()}/stems-listen/index.html\n"
    content = _content(Path("stems-listen"))
    assert [song["name"] for song in content["songs"]] == ["one", "two"]
    assert content["picks"] == []
    (part,) = content["songs"][0]["parts"]
    labels = [one["label"] for one in part["sounds"]]
    assert labels == ["all stems", "drums", "vocals", "no_vocals"]
    assert _sounds(Path("stems-listen"), part["file"])[0]["type"] == "audio/mp3"
    (Path("stems") / "song.wav").mkdir()  # as `separate` names it beside song.flac
    os.mkfifo(Path("stems") / "pipe.wav")
    assert run_jukesep("listen", "stems") == 0  # a page is replaced


def test_songs_in_folders_below_are_found_and_long_ones_refused(stems, capsys, monkeypatch):
    Path("stems/album").mkdir()
    Path("stems/one").rename("stems/album/one")
    assert run_jukesep("listen", "stems") == 0
    names = [song["name"] for song in _content(Path("stems-listen"))["songs"]]
    assert names == ["album/one", "two"]
    monkeypatch.setattr(listen, "LONGEST", 0.5)
    assert run_jukesep("listen", "stems") == 1
    assert "album/one: is 0 minutes long. A browser has memory for" in capsys.readouterr().err


def test_one_song_and_its_mixture(stems):
    soundfile.write("song.wav", np.repeat(_tone(200, 1, 3), 12, axis=0), 96_000)
    assert run_jukesep("listen", "stems/one", "-o", "page", "--mixture", "song.wav") == 0
    (song,) = _content(Path("page"))["songs"]
    assert song["name"] == "one"
    assert song["parts"][0]["sounds"][0]["label"] == "mixture"


def test_what_is_above_full_scale_keeps_its_proportion(stems):
    for name, factor in (("bass", 8), ("drums", 1)):
        path = stems / "stems/one" / f"{name}.wav"
        soundfile.write(path, factor * _tone(300, 1, 2), RATE, subtype="FLOAT")
    soundfile.write("song.wav", np.repeat(_tone(200, 1), 24, axis=0), 192_000)
    assert run_jukesep("listen", "stems/one", "-o", "page", "--mixture", "song.wav") == 0
    content = _content(Path("page"))
    assert content["rate"] == 44_100  # of the sounds as they are kept
    (part,) = content["songs"][0]["parts"]
    clips = dict(
        zip(
            [one["label"] for one in part["sounds"]],
            _sounds(Path("page"), part["file"]),
            strict=True,
        )
    )
    assert clips["bass"]["gain"] == pytest.approx(2.4, abs=0.01)
    assert max(clips["bass"]["peaks"]) == pytest.approx(2400, abs=10)
    assert clips["drums"]["gain"] == 1


def test_a_page_needs_no_temporary_folder(stems, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "missing")
    assert run_jukesep("listen", "stems/one", "-o", "page") == 0
    assert Path("page/index.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "nowhere: no such folder"),
        (("empty",), "empty: contains no stems"),
        (("stems", "--mixture", "song.wav"), "is one song, but stems has 2"),
        (("stems", "-o", "full"), "full: already exists and is not a listening page"),
        (("stems", "-o", "full/file"), "full/file: already exists and is not a listening page"),
        (("stems", "-o", "full/file/page"), "cannot be written"),
        (("stems", "-o", "site"), "site: already exists and is not a listening page"),
        (("silent",), "silent: all stems is empty (0 samples)"),
        (("stems/one", "--mixture", "nowhere.wav"), "nowhere.wav: no such file"),
        (("uneven",), "Pass files of the same song"),
        (("stems/one", "--mixture", "long.wav"), "Pass files of the same song"),
    ],
)
def test_what_cannot_be_is_named_and_leaves_nothing(stems, capsys, words, message):
    for folder in ("empty", "full", "site", "silent", "uneven"):
        Path(folder).mkdir()
    Path("site/index.html").write_text("mine")  # a page, but none of jukesep's
    soundfile.write("silent/bass.wav", _tone(200, 0), RATE)
    Path("full/file").write_text("mine")
    soundfile.write("uneven/bass.wav", _tone(200), RATE)
    soundfile.write("uneven/drums.wav", _tone(200, 1), RATE)
    soundfile.write("long.wav", _tone(200, 2), RATE)
    before = sorted(stems.rglob("*"))
    assert run_jukesep("listen", *words) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(stems.rglob("*")) == before


@pytest.mark.parametrize(
    "name",
    [
        "results/audio/drums_scratch/*/4.flac",
        "results/audio/open_unmix/*/open_unmix_wiener_drums.flac",
        "results/audio/static_equaliser/*/vocals.flac",
        "results/systems/open_unmix.csv",
        "results/scores/drums_scratch.csv",
    ],
)
def test_a_file_that_is_gone_is_named(project, tmp_path, name):
    shutil.copytree(project, tmp_path / "again")
    next((tmp_path / "again").glob(name)).unlink()
    shutil.rmtree(tmp_path / "again/listen", ignore_errors=True)
    with pytest.raises(UserError, match=f"{Path(name).name}: no such file"):
        listen.of_experiment(_params(), tmp_path / "again")
    assert not (tmp_path / "again/listen").exists()


# --- in a browser -----------------------------------------------------------------------------


READY = "window.jukesep?.state.ready"
# The browser's advice on how a test reads pictures is no fault of the page.
ADVICE = "willReadFrequently"


@pytest.fixture
def tab(page):
    with opened(page / "index.html", ADVICE, viewport={"width": 1200, "height": 900}) as tab:
        wait(tab, READY)
        yield tab


def test_it_opens_with_the_best_and_leads_to_the_worst(uneven):
    root, names = uneven
    listen.of_experiment(_params(), root)
    place = "[jukesep.state.song, jukesep.state.part, jukesep.state.sound]"
    with opened(root / "listen/index.html", ADVICE) as tab:
        wait(tab, READY)
        assert tab.evaluate(place) == [0, 1, 2]
        assert tab.locator("#picks button").all_inner_texts() == [
            f"{name} {text.format(*names)}"
            for name, text in zip(("Best", "Worst"), FIRST, strict=True)
        ]
        tab.keyboard.press(" ")
        tab.click("#picks button:nth-child(2)")
        wait(tab, f"{READY} && jukesep.state.playing")
        assert tab.evaluate(place) == [1, 0, 2]
        tab.keyboard.press("1")
        tab.click("#picks button:nth-child(1)")
        assert tab.evaluate(place) == [0, 1, 2]


def test_the_readmes_picture_is_the_page_as_it_opens(page, tmp_path):
    needs("chromium", "chromium-browser", "google-chrome")
    listen_picture.take(page / "index.html", tmp_path / "listen.png")
    picture = 255 * imread(tmp_path / "listen.png")[..., :3]
    assert picture.shape[1] == listen_picture.WIDTH
    # Waveforms of the two checkpoints of pretrained, one of them chosen, between their borders.
    blue = np.abs(picture - (0x00, 0x72, 0xB2)).sum(2) < 12
    assert blue[:, 600:1000].any(1).sum() > 12
    with pytest.raises(UserError, match="no such file; run `dvc repro`"):
        listen_picture.take(tmp_path / "index.html", tmp_path / "none.png")


STATE = "[jukesep.state.sound, jukesep.state.playing, jukesep.state.position]"


def test_it_plays_and_switching_keeps_the_position(tab):
    assert tab.evaluate("document.querySelectorAll('.sound').length") == 11
    assert tab.evaluate("document.querySelector('.sound .score').textContent") == ""
    assert tab.evaluate("document.querySelectorAll('.sound .score')[2].textContent") == "6.25 dB"
    assert tab.evaluate("document.querySelectorAll('.sound .score')[7].textContent") == "5.50 dB"
    tab.keyboard.press(" ")
    wait(tab, "jukesep.state.position > 0.3")
    started = tab.evaluate("performance.now()")
    before = tab.evaluate("jukesep.state.position")
    for key in ("3", "2", "8"):
        tab.keyboard.press(key)
    wait(tab, "jukesep.state.level()[7] > 0.99")
    assert tab.evaluate(STATE)[:2] == [7, True]
    assert tab.evaluate("jukesep.state.level().filter((gain) => gain > 0.01).length") == 1
    went, took = tab.evaluate(
        f"[jukesep.state.position - {before}, (performance.now() - {started}) / 1000]"
    )
    assert went == pytest.approx(took, abs=0.15)
    tab.keyboard.press(" ")
    stopped = tab.evaluate(STATE)
    assert stopped[1] is False
    assert tab.evaluate(STATE) == stopped
    # It sounds: what the chosen buffer holds there is not silent.
    assert tab.evaluate("jukesep.state.context.state") == "running"


def test_keys_and_clicks_go_where_they_should(tab):
    tab.click(".sound:nth-child(4) .wave")  # in its middle
    assert tab.evaluate("jukesep.state.sound") == 3
    assert tab.evaluate("jukesep.state.position") == pytest.approx(SECONDS / 2, abs=0.05)
    tab.keyboard.press("ArrowDown")
    assert tab.evaluate("jukesep.state.sound") == 4
    tab.keyboard.press("ArrowLeft")
    assert tab.evaluate("jukesep.state.position") == 0
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("jukesep.state.position") == pytest.approx(2, abs=0.01)
    tab.keyboard.press(".")
    wait(tab, "jukesep.state.ready && jukesep.state.part === 1")
    # The same place and system of another stem.
    assert tab.evaluate("jukesep.state.position") == pytest.approx(2, abs=0.01)
    assert tab.evaluate("jukesep.state.sound") == 4
    tab.keyboard.press("]")
    wait(tab, "jukesep.state.ready && jukesep.state.song === 1")
    assert tab.evaluate("jukesep.state.position") == 0
    assert tab.evaluate("document.querySelector('#song option:checked').textContent") == (
        NAMES[1].replace("/", "_")
    )
    tab.click("#play")
    assert tab.evaluate("jukesep.state.playing") is True
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    wait(tab, "!jukesep.state.playing")  # at the end
    assert tab.evaluate("jukesep.state.position") == pytest.approx(SECONDS, abs=0.01)


def test_playing_survives_haste(tab):
    """Paused before the first sample has sounded; another stem before the last one has loaded."""
    tab.keyboard.press(" ")
    wait(tab, "jukesep.state.position > 0.1")
    at_once = tab.evaluate("""(() => {
      const press = (key) =>
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      press(" "); press("0"); press(" "); press(" ");
      const paused = [jukesep.state.playing, jukesep.state.position];
      press(" ");
      return [...paused, jukesep.state.playing];
    })()""")
    assert at_once == [False, 0, True]
    wait(tab, "jukesep.state.position > 0.1")
    assert re.fullmatch(r"0:0\d\.\d", tab.evaluate("document.getElementById('time').textContent"))
    tab.evaluate("""["." , "."].forEach((key) =>
      document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true })))""")
    wait(tab, "jukesep.state.ready && jukesep.state.playing")


def test_keys_are_the_pages_after_a_choice(tab):
    tab.evaluate("""(() => {
      const song = document.getElementById("song");
      song.focus();
      song.value = 1;
      song.dispatchEvent(new Event("change"));
    })()""")
    wait(tab, "jukesep.state.ready && jukesep.state.song === 1")
    tab.keyboard.press("3")
    assert tab.evaluate("[jukesep.state.song, jukesep.state.sound]") == [1, 2]
    tab.evaluate("document.querySelectorAll('.sound')[4].focus()")
    tab.keyboard.press("Enter")
    assert tab.evaluate("jukesep.state.sound") == 4


def test_the_spectrum_shows_the_tone_that_is_heard(tab):
    """Each sound is one tone: the brightest line lies at its frequency."""
    brightest = """(() => {
      const canvas = document.getElementById("spectrum");
      const column = canvas.getContext("2d").getImageData(600, 0, 1, canvas.height).data;
      let best = 0;
      for (let y = 0; y < canvas.height; y++) if (column[4 * y] > column[4 * best]) best = y;
      return (canvas.height - 0.5 - best) / canvas.height;
    })()"""
    for key, frequency in (("1", 200), ("2", 300), ("3", 701)):
        tab.keyboard.press(key)
        assert RATE / 2 * tab.evaluate(brightest) == pytest.approx(frequency, abs=25)


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone(page, dark):
    screen = {"width": 375, "height": 900}
    scheme = "dark" if dark else "light"
    with opened(page / "index.html", viewport=screen, color_scheme=scheme) as tab:
        wait(tab, READY)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth") is True
        back, front = (
            tab.evaluate(f"getComputedStyle(document.body).{name}")
            for name in ("backgroundColor", "color")
        )
        lightness = [sum(map(int, re.findall(r"\d+", colour))) for colour in (back, front)]
        assert (lightness[0] < lightness[1]) is dark
        assert tab.evaluate("document.querySelectorAll('.wave').length") == 11
