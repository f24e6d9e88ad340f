"""Chunked separation equals whole-song separation."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jukesep.audio import AudioInfo, info, read, write
from jukesep.errors import UserError
from jukesep.jukebox import save_encoder, save_jukebox
from jukesep.separation import Separator, apply_chunked, load_model, load_separator, windows
from jukesep.vqvae import VQVAE, Architecture


def _model(seed=0):
    torch.manual_seed(seed)
    model = VQVAE(Architecture(width=4, depth=2, downs=(2,), latent_dim=4, codes=16)).eval()
    # Louder weights, so that a wrong border shows.
    for parameter in model.parameters():
        parameter.data *= 2
    model.codebook.restore(torch.randn(16, 4), 1.0)
    return model


MODEL = _model()


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 700), chunk=st.integers(1, 800), rows=st.integers(1, 3))
def test_every_chunk_size_and_length_equals_the_whole(samples, chunk, rows):
    generator = torch.Generator().manual_seed(samples)
    song = torch.rand(rows, samples, generator=generator) * 2 - 1
    whole = apply_chunked(MODEL, song, chunk=10_000)
    chunked = apply_chunked(MODEL, song, chunk=chunk)
    assert chunked.shape == song.shape
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=0)


def test_less_context_would_show(monkeypatch):
    song = torch.rand(1, 700) * 2 - 1
    whole = apply_chunked(MODEL, song, chunk=10_000)
    monkeypatch.setattr(VQVAE, "context", lambda self: 0)
    assert (apply_chunked(MODEL, song, chunk=64) - whole).abs().max() > 1e-3


def test_hard_chunks_are_each_separated_alone():
    song = torch.rand(2, 700) * 2 - 1
    output = apply_chunked(MODEL, song, chunk=64, chunking="hard")
    parts = [apply_chunked(MODEL, part, chunk=64) for part in song.split(64, dim=1)]
    torch.testing.assert_close(output, torch.cat(parts, dim=1))
    assert (output - apply_chunked(MODEL, song, chunk=64)).abs().max() > 1e-3


def test_a_bypassed_bottleneck_decodes_the_latents_themselves():
    song = torch.rand(1, 704) * 2 - 1
    with torch.inference_mode():
        expected = MODEL.decode(MODEL.encode(song[None]))[0]
    output = apply_chunked(MODEL, song, chunk=64, bottleneck="bypass")
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    assert (output - apply_chunked(MODEL, song)).abs().max() > 1e-3


def test_a_model_is_stage_1s_with_the_encoder_of_stage_2(tmp_path):
    stage1, encoder = _model(), _model(1).encoder
    save_jukebox(stage1, tmp_path / "1.pt", 1)
    save_encoder(encoder, tmp_path / "2.pt", 1)
    song = torch.rand(1, 1, 800) * 2 - 1
    with torch.inference_mode():
        expected = stage1.decode(stage1.quantise(encoder(song))[1])
        assert torch.equal(load_model(tmp_path / "1.pt", tmp_path / "2.pt")(song), expected)
        assert not torch.allclose(stage1(song), expected)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("rate", [8000, 11025, 44100])
def test_a_separator_keeps_rate_channels_and_length(channels, rate):
    separator = Separator({"drums": MODEL, "vocals": _model(1)}, sample_rate=8000)
    mixture = np.random.default_rng(0).uniform(-1, 1, (channels, 2345)).astype(np.float32)
    told = []
    stems = separator(mixture, rate, chunk=500, progress=lambda stem, n: told.append((stem, n)))
    assert set(stems) == {"drums", "vocals"}
    for audio in stems.values():
        assert audio.shape == mixture.shape
        assert np.isfinite(audio).all()
    assert {stem for stem, _ in told} == {"drums", "vocals"}


def test_channels_do_not_hear_each_other():
    separator = Separator({"drums": MODEL}, sample_rate=8000)
    mixture = np.random.default_rng(1).uniform(-1, 1, (2, 900)).astype(np.float32)
    both = separator(mixture, 8000)["drums"]
    for channel in range(2):
        alone = separator(mixture[channel : channel + 1], 8000)["drums"]
        np.testing.assert_allclose(both[channel], alone[0], atol=1e-5)


def test_no_models_is_an_error_that_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro"):
        load_separator(tmp_path)


# --- from file to files -----------------------------------------------------------------------


def _write(path, channels, samples, rate, subtype="FLOAT"):
    audio = np.random.default_rng(samples).uniform(-0.5, 0.5, (channels, samples))
    write(path, audio.astype(np.float32), rate, subtype)
    return read(path)


@settings(max_examples=15, deadline=None)
@given(
    samples=st.integers(1, 100_000),
    channels=st.integers(1, 2),
    rate=st.sampled_from([8000, 11025, 44100]),
    chunk=st.integers(2000, 30_000),
    block=st.integers(500, 40_000),
)
def test_a_file_becomes_what_its_samples_become(samples, channels, rate, chunk, block):
    separator = Separator({"drums": MODEL, "vocals": _model(1)}, sample_rate=8000)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("jukesep.audio.BLOCK", block)
        song = Path(folder) / "song.wav"
        mixture = _write(song, channels, samples, rate)
        targets = {stem: Path(folder) / "stems" / f"{stem}.wav" for stem in separator.stems}
        told = []
        separator.separate_file(song, targets, chunk, told.append)
        expected = separator(mixture, rate, chunk)
        for stem, path in targets.items():
            assert info(path) == AudioInfo(rate, channels, samples, "FLOAT")
            np.testing.assert_array_equal(read(path), expected[stem])
    assert sum(told) == pytest.approx(-(-samples * 8000 // rate) / 8000)


def test_a_song_that_ends_in_a_fault_leaves_no_stem(tmp_path, monkeypatch):
    song = tmp_path / "song.wav"
    mixture = _write(song, 1, 3000, 8000)
    mixture[0, 2900] = np.nan
    write(song, mixture, 8000, "FLOAT")
    separator = Separator({"drums": MODEL}, sample_rate=8000)
    told = []
    monkeypatch.setattr("jukesep.audio.BLOCK", 500)
    with pytest.raises(UserError, match="NaN"):
        separator.separate_file(song, {"drums": tmp_path / "drums.wav"}, 400, told.append)
    assert told
    assert [path.name for path in tmp_path.iterdir()] == ["song.wav"]


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=12),
    chunk=st.integers(1, 50),
    context=st.integers(0, 60),
)
def test_windows_are_chunks_with_what_is_around_them(lengths, chunk, context):
    song = torch.arange(sum(lengths)).expand(2, -1)
    starts = np.cumsum([0, *lengths])[:-1]
    blocks = [song[:, a : a + n] for a, n in zip(starts, lengths, strict=True)]
    for start, (window, kept) in zip(
        range(0, song.shape[1], chunk), windows(blocks, chunk, context), strict=True
    ):
        stop = min(start + chunk, song.shape[1])
        assert torch.equal(window[:, kept], song[:, start:stop])
        assert torch.equal(window, song[:, max(start - context, 0) : start + chunk + context])
