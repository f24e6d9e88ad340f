"""Random weights in the published formats, against the packages' own inference."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from commands import run_jukesep
from safetensors.torch import save_file

from jukesep.audio import write
from jukesep.systems.published import hdemucs, htdemucs, open_unmix
from jukesep.systems.system import NOT_STATED

RATE = 44_100
SMALL = {
    "sources": ["drums", "bass", "other", "vocals"],
    "channels": 8,
    "nfft": 1024,
    "t_layers": 1,
    "t_heads": 2,
    "segment": Fraction(3, 2),
}


@pytest.fixture
def song():
    """Stereo noise that is not centred, (2, samples), longer than the filter's 300 frames (7 s)."""
    numbers = np.random.default_rng(0)
    return (0.05 + numbers.normal(0, 0.1, (2, 330_000))).astype(np.float32)


def largest(found, expected):
    """The largest difference of two sets of stems."""
    assert found.keys() == expected.keys()
    return max(float(np.abs(found[stem] - expected[stem].numpy()).max()) for stem in found)


# --- Open-Unmix -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unmix(tmp_path_factory):
    """The package's own separator, of random weights, and its files as published."""
    import openunmix

    torch.manual_seed(0)
    separator = openunmix.umxhq(pretrained=False).eval()
    folder = tmp_path_factory.mktemp("umxhq")
    for stem, network in separator.target_models.items():
        for name in ("bn1", "bn2", "bn3"):  # as after a training
            getattr(network, name).running_mean.normal_(0, 0.1)
        # The files of 2019 hold the window and the sample rate too, and are no zip archives.
        older = {"sample_rate": torch.tensor(44_100.0), "stft.window": torch.hann_window(4096)}
        older["transform.0.window"] = older["stft.window"]
        torch.save(
            {**network.state_dict(), **older},
            folder / f"{stem}.pth",
            _use_new_zipfile_serialization=False,
        )
    return separator, folder


def test_open_unmix_equals_the_package(unmix, song):
    separator, folder = unmix
    system = open_unmix.load(folder)
    with torch.inference_mode():
        expected = separator.to_dict(separator(torch.from_numpy(song)[None]))
    found = system(song, RATE)
    assert largest(found, {stem: part[0] for stem, part in expected.items()}) <= 1e-5
    assert np.abs(found["vocals"]).max() > 1e-3
    assert (system.trained_on, system.licence) == (NOT_STATED, NOT_STATED)


def test_one_stem_of_open_unmix_has_no_filter(unmix, song):
    import openunmix

    separator, folder = unmix
    alone = openunmix.umxhq(["bass"], niter=0, pretrained=False).eval()
    alone.target_models["bass"].load_state_dict(separator.target_models["bass"].state_dict())
    with torch.inference_mode():
        expected = alone(torch.from_numpy(song)[None])[0]
    found = open_unmix.load(folder / "bass.pth")(song, RATE)
    assert largest(found, {"bass": expected[0]}) <= 1e-5


# --- Hybrid Demucs ----------------------------------------------------------------------------


def test_hdemucs_equals_the_package(tmp_path):
    """A song in one chunk: the network at its full size, and the level of the song."""
    from torchaudio.models import hdemucs_high

    torch.manual_seed(0)
    model = hdemucs_high(list(hdemucs.SOURCES)).eval()
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    song = torch.randn(2, 20_000) * 0.1 + 0.05
    mono = song.mean(0)
    with torch.inference_mode():
        expected = model(((song - mono.mean()) / mono.std())[None])[0] * mono.std() + mono.mean()
    found = hdemucs.load(tmp_path)(song.numpy(), RATE)
    assert largest(found, dict(zip(hdemucs.SOURCES, expected, strict=True))) <= 1e-5


def tutorial(model, mix, rate, segment=10.0, overlap=0.1):
    """The stems of `mix` (1, channels, samples) as in torchaudio's tutorial on Hybrid Demucs.

    From its text: chunks of segment * (1 + overlap) seconds, each joined to the last by fades of
    `overlap` seconds, by `torchaudio.transforms.Fade`.
    """
    from torchaudio.transforms import Fade

    length, size, both = mix.shape[-1], int(rate * segment * (1 + overlap)), int(overlap * rate)
    stems = torch.zeros(len(model.sources), mix.shape[1], length)
    for start in range(0, length - both, size):
        begin, end = max(start - both, 0), start + size
        fade = Fade(both if start else 0, both if end < length else 0, "linear")
        stems[..., begin:end] += fade(model(mix[..., begin:end])[0])
    return stems


@pytest.mark.parametrize("samples", [5_500, 8_800, 9_000])
def test_a_long_song_is_separated_as_in_the_tutorial(samples):
    from torchaudio.models import HDemucs

    torch.manual_seed(0)
    model = HDemucs(["a", "b"], nfft=1024, depth=5, channels=4).eval()
    rate = 400  # Hz, so that a chunk has 4,400 samples
    song = torch.randn(2, samples) * 0.1 + 0.05
    mono = song.mean(0)
    given = (song - mono.mean()) / mono.std()
    with torch.inference_mode():
        expected = tutorial(model, given[None], rate) * mono.std() + mono.mean()
        found = hdemucs.separated(model, song, chunk=11 * rate, fade=rate // 10)
    assert (found - expected).abs().max() <= 1e-5


def test_a_chunk_has_11_seconds():
    assert (hdemucs.CHUNK, hdemucs.FADE) == (485_100, 4_410)


# --- Hybrid Transformer Demucs ----------------------------------------------------------------


@pytest.fixture
def transformer(tmp_path):
    """A small network's file as demucs 4.1 publishes it: float16, arguments in the metadata."""
    from demucs.htdemucs import HTDemucs

    torch.manual_seed(0)
    model = HTDemucs(**SMALL)
    kwargs = {
        **SMALL,
        "segment": {"_type": "fraction", "numerator": 3, "denominator": 2},
        "an_argument_of_another_version": 1,
    }
    about = {"klass": htdemucs.CLASS, "args": "[]", "kwargs": json.dumps(kwargs)}
    state = {name: value.half() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "mine.safetensors", about)
    return tmp_path / "mine.safetensors"


@pytest.mark.filterwarnings("ignore:Dropping inexistant parameter")
def test_htdemucs_equals_the_package(transformer, song):
    from demucs.api import Separator
    from demucs.hf import load_safetensors_model

    class Own(Separator):
        """The package's separator, with the model of the test's file."""

        def _load_model(self):
            self._model = load_safetensors_model(transformer)
            self._samplerate = self._model.samplerate
            self._audio_channels = self._model.audio_channels

    _, expected = Own(shifts=0, device="cpu").separate_tensor(torch.from_numpy(song[:, : 4 * RATE]))
    system = htdemucs.load(transformer)
    assert largest(system(song[:, : 4 * RATE], RATE), expected) <= 1e-5
    assert system.long_songs == "chunks of 1.5 s that overlap by a quarter"
    assert system(song[:1, :RATE], RATE)["vocals"].shape == (1, RATE)


def test_the_same_song_gives_the_same_stems(transformer, song):
    system = htdemucs.load(transformer)
    first, second = (system(song[:, : 2 * RATE], RATE) for _ in range(2))
    assert all(np.array_equal(first[stem], second[stem]) for stem in first)


def test_jukesep_score_runs_it(transformer, song, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    numbers = np.random.default_rng(1)
    parts = {stem: numbers.uniform(-0.2, 0.2, (2, RATE)) for stem in hdemucs.SOURCES}
    for part, audio in {**parts, "mixture": sum(parts.values())}.items():
        write(tmp_path / f"songs/test/one/{part}.wav", audio, RATE)
    words = ("score", "--system", "htdemucs", "--weights", str(transformer), "--data", "songs")
    assert run_jukesep(*words, "--device", "cpu") == 0
    rows = (tmp_path / "htdemucs-scores/scores.csv").read_text(encoding="utf-8")
    assert rows.count(",htdemucs,") == len(hdemucs.SOURCES) * 4
    assert run_jukesep("score", "--system", "htdemucs", "--data", "songs") == 1
    assert "with --weights" in capsys.readouterr().err
