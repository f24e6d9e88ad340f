"""docs/stems.md: written from its scores; the default and docs/separation.md are as they say."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from jukesep import audio
from jukesep.model.jukebox import save_encoder, save_jukebox
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.scoring import metrics
from jukesep.separation.refine import DEFAULT, REFINEMENTS
from jukesep.separation.separator import load_separator
from jukesep.songs.manifest import MIXTURE, STEMS, Manifest, Song
from studies import records, stems, stems_page
from studies.stems_page import SONGS, Score, Summary

ROOT = Path(__file__).parents[2]
COMMITTED = records.load(Score, ROOT / stems_page.SCORES)
VALID, SEEN, HELD_OUT = SONGS
RATE = 8000


def test_the_page_is_made_of_the_scores():
    page = (ROOT / stems_page.PAGE).read_text(encoding="utf-8")
    assert page == stems_page.page(COMMITTED)


def test_the_default_is_the_best_on_the_validation_songs():
    found = Summary(COMMITTED, "pretrained", VALID, "sdr_mdx")
    once = [o for o in found.options if "/" not in o and "shifts" not in o]
    assert max(once, key=found.mean) == DEFAULT
    assert found.gain(DEFAULT) > 0.3


@pytest.mark.parametrize("name", REFINEMENTS)
def test_parameters_are_the_best_of_those_tried_on_the_validation_songs(name):
    """Or within 0.02 dB of it. All refinements have the frames of the default one."""
    found = Summary(COMMITTED, "pretrained", VALID, "sdr_mdx")
    tried = [o for o in found.options if o.startswith(f"{name}/") and "/run=" not in o]
    if name != DEFAULT:
        tried = [o for o in tried if "/n_fft=" not in o or "/n_fft=2048/" in o]
    assert len(tried) >= 5
    assert found.mean(name) >= max(map(found.mean, tried)) - 0.02


def test_the_page_of_separation_has_its_figures():
    text = " ".join((ROOT / "docs/separation.md").read_text(encoding="utf-8").split())
    one, two, three, four = (
        f"{Summary(COMMITTED, 'pretrained', songs, metric).gain(DEFAULT):+.2f} dB"
        for songs in (SEEN, HELD_OUT)
        for metric in ("sdr", "sdr_mdx")
    )
    assert f"gain {one} in mono and {two} in stereo for instruments heard in training" in text
    assert f"and {three} and {four} for held-out instruments" in text
    valid = Summary(COMMITTED, "pretrained", next(iter(SONGS)), "sdr_mdx")
    two, eight = (f"{valid.gain(f'{shifts} shifts'):+.2f} dB" for shifts in (2, 8))
    assert f"2 shifts gain {two} and 8 gain {eight}, in stereo" in text


def _scores(gains):
    """Scores of songs A and B: plain 1, 2, 3, 4 dB, an option that much more, a grid's 9 dB."""
    for songs in SONGS:
        for init in ("pretrained", "scratch"):
            for metric in stems_page.METRICS:
                for song, gain in zip("AB", gains, strict=True):
                    about = init, *songs, song
                    yield Score(*about, "plain", metric, 1, 2, 3, 4, 10)
                    yield Score(*about, "masks", metric, *(k + gain for k in (1, 2, 3, 4)), 12)
                    yield Score(*about, "masks/n_fft=64/power=2", metric, 9, 9, 9, 9, 1)


def test_a_table_gives_means_gains_songs_and_time():
    summary = Summary(list(_scores([0.5, 0.0])), "pretrained", SEEN, "sdr")
    head, _, plain, masks = summary.table().splitlines()
    assert head == "|  | drums | bass | other | vocals | mean | gain | songs that gain | time |"
    assert plain == "| plain | 1.00 | 2.00 | 3.00 | 4.00 | 2.50 | +0.00 | 0 of 2 | 1.00 x |"
    assert masks == "| masks | 1.25 | 2.25 | 3.25 | 4.25 | 2.75 | +0.25 | 1 of 2 | 1.20 x |"
    assert summary.grid("masks", "n_fft").splitlines()[0] == "| n_fft | power 2 |"
    assert summary.grid("masks", "n_fft").splitlines()[2:] == ["| 64 | 9.000 |"]


def _songs(folder):
    """A song of each kind, of noise, and a manifest."""
    rng, listed = np.random.default_rng(0), []
    for number, (split, group) in enumerate(SONGS):
        parts = dict(zip(STEMS, rng.uniform(-0.2, 0.2, (4, 2, 3001)), strict=True))
        root = folder / "data/prepared/songs" / f"{number}"
        for part, sound in {**parts, MIXTURE: sum(parts.values())}.items():
            audio.write(root / f"{part}.wav", sound.astype(np.float32), RATE, "FLOAT")
        listed.append(Song(f"song {number}", split, group, root, 3001))
    Manifest(RATE, tuple(listed)).save(folder / "data/prepared/manifest.json")
    return listed


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An entered folder with songs and runs/ of small models, both inits."""
    for seed, stem in enumerate(STEMS):
        for init in ("pretrained", "scratch"):
            torch.manual_seed(seed)
            model = VQVAE(Architecture(width=4, depth=1, latent_dim=4, codes=8))
            model.codebook.restore(torch.randn(8, 4), 1.0)
            run, hps = f"{stem}_{init}/checkpoints", {"sample_rate": RATE}
            save_jukebox(model, tmp_path / f"runs/stage1/{run}/4.pt", 4, hps)
            save_encoder(model.encoder, tmp_path / f"runs/stage2/{run}/3.pt", 3, hps)
    _songs(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_plain_scores_are_those_of_the_models(project):
    separator = load_separator("runs", refinement="none")
    song = Manifest.load(Path("data/prepared/manifest.json")).split("valid")[0]
    plain = stems.Option("plain", lambda _, estimates: estimates)
    shifted = plain._replace(name="shifted", shifts=2)
    mono, both, *other = stems.score_song(song, "pretrained", separator, [plain, shifted], 2)
    mixture = audio.read(song.file(MIXTURE))
    for stem in STEMS:
        reference = audio.read(song.file(stem))
        estimate = separator(audio.to_mono(mixture), RATE)[stem]
        expected = metrics.sdr(audio.to_mono(reference), estimate)
        assert getattr(mono, stem) == pytest.approx(expected, abs=1e-4)
        expected = metrics.sdr_mdx(reference, separator(mixture, RATE)[stem])
        assert getattr(both, stem) == pytest.approx(expected, abs=1e-4)
    assert (mono.metric, both.metric) == ("sdr", "sdr_mdx")
    assert all(a.stems != b.stems for a, b in zip((mono, both), other, strict=True))


def test_the_command_measures_and_writes_the_page(project, monkeypatch, capsys):
    # The package itself is measured where it is installed.
    monkeypatch.setattr(stems, "norbert", lambda *_: lambda mixture, estimates: estimates)
    threads = torch.get_num_threads()
    try:
        stems.main([])
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out == "docs/stems.md\n"
    measured = records.load(Score, stems_page.SCORES)
    assert {(s.init, s.split, s.group) for s in measured} == {
        (init, *songs) for init in ("pretrained", "scratch") for songs in SONGS
    }
    tried = {(s.init, s.split) for s in measured if "/" in s.option}
    assert tried == {("pretrained", "valid")}
    page = stems_page.PAGE.read_text()
    stems_page.PAGE.unlink()
    stems.main(["--write"])
    assert stems_page.PAGE.read_text() == page
    assert len(re.findall(r"^\| \*\*wiener\*\* ", page, re.MULTILINE)) == 10
