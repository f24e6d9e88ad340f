"""Chunked separation equals whole-song separation."""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jukesep.audio import Resampler
from jukesep.base.errors import UserError
from jukesep.model.checkpoints import load_model
from jukesep.model.jukebox import save_encoder, save_jukebox
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.separation import chunked as separation
from jukesep.separation.chunked import apply_chunked, published_chunks, windows
from jukesep.separation.separator import PIECE, Separator, load_separator
from jukesep.songs.manifest import STEMS


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


RATES = [8000, 11025, 44100]
# Chunk and rate: some chunks begin early (as the paper's, of 3 * 2^17 samples); all are too short.
EARLY, SHORT = (96, 44100), (60, 44100)


def _seconds_added_up(samples, chunk, rate):
    """First sample of each whole chunk and of the rest, by numpy: seconds added up, cut to samples.

    The published code does the same with Python's floats, and librosa with the sum.
    """
    durations = np.full(samples // chunk, chunk / rate)
    return (np.cumsum([0.0, *durations]) * rate).astype(int)


def test_published_chunks_begin_early_where_float_seconds_do():
    chunk, rate = 393_216, 44_100
    samples = 80 * chunk + 9
    spans = list(published_chunks(samples, chunk, rate))
    starts = [span.start for span in spans]
    assert starts == _seconds_added_up(samples, chunk, rate).tolist()
    early = {number: number * chunk - start for number, start in enumerate(starts)}
    assert [number for number, by in early.items() if by][:7] == [5, 7, 10, 13, 14, 15, 70]
    assert set(early.values()) == {0, 1}
    assert {span.stop - span.start for span in spans[:-1]} == {chunk}
    assert spans[-1].stop == samples


@pytest.mark.parametrize("whole", [5, 6, 7])
def test_an_early_last_chunk_has_a_sample_more(whole):
    chunk, rest = 393_216, 1000
    *_, last = published_chunks(whole * chunk + rest, chunk, 44_100)
    assert last.stop - last.start == rest + (whole in (5, 7))


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 1500), chunk=st.integers(5, 250), rate=st.sampled_from(RATES))
@example(samples=1000, chunk=EARLY[0], rate=EARLY[1])
@example(samples=1000, chunk=SHORT[0], rate=SHORT[1])
def test_published_chunks_are_each_separated_alone_and_follow_one_another(samples, chunk, rate):
    song = torch.rand(2, samples, generator=torch.Generator().manual_seed(samples)) * 2 - 1
    output = apply_chunked(MODEL, song, chunk, chunking="published", sample_rate=rate)

    chunk -= chunk % MODEL.architecture.hop
    *whole, rest = _seconds_added_up(samples, chunk, rate)
    parts = [song[:, first : first + int(chunk / rate * rate)] for first in whole]
    parts += [song[:, rest:]] if rest < samples else []
    joined = torch.cat([apply_chunked(MODEL, part) for part in parts], dim=1)[:, :samples]
    torch.testing.assert_close(output[:, : joined.shape[1]], joined, atol=1e-5, rtol=0)
    assert output.shape == song.shape
    assert not output[:, joined.shape[1] :].any()


def test_published_chunks_differ_from_hard_ones_where_they_begin_early():
    chunk, rate = EARLY
    song = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    hard = apply_chunked(MODEL, song, chunk, chunking="hard")
    published = apply_chunked(MODEL, song, chunk, chunking="published", sample_rate=rate)
    starts = _seconds_added_up(1000, chunk, rate)
    early = int(np.flatnonzero(starts != np.arange(len(starts)) * chunk)[0])
    assert torch.equal(published[:, : early * chunk], hard[:, : early * chunk])
    within = slice(early * chunk, (early + 1) * chunk)
    assert (published[:, within] - hard[:, within]).abs().max() > 1e-3


def test_published_chunks_without_a_sample_rate_are_refused():
    with pytest.raises(ValueError, match="sample_rate"):
        apply_chunked(MODEL, torch.zeros(1, 9), chunking="published")


def test_a_bypassed_bottleneck_decodes_the_latents_themselves():
    song = torch.rand(1, 704) * 2 - 1
    with torch.inference_mode():
        expected = MODEL.decode(MODEL.encode(song[None]))[0]
    output = apply_chunked(MODEL, song, chunk=64, bottleneck="bypass")
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    assert (output - apply_chunked(MODEL, song)).abs().max() > 1e-3


def test_a_soft_bottleneck_decodes_the_expected_codes():
    song = torch.rand(1, 704) * 2 - 1
    with torch.inference_mode():
        latents = MODEL.encode(song[None])
        expected = MODEL.decode(MODEL.codebook.expected(latents, 0.7))[0]
    output = apply_chunked(MODEL, song, chunk=64, bottleneck="soft", temperature=0.7)
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
    stems = separator(mixture, rate, chunk=500, progress=told.append)
    assert set(stems) == {"drums", "vocals"}
    for audio in stems.values():
        assert audio.shape == mixture.shape
        assert np.isfinite(audio).all()
    assert sum(told) == pytest.approx(-(-2345 * 8000 // rate) / 8000)


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


# --- block by block ---------------------------------------------------------------------------

STEMS_MODELS = {stem: _model(seed) for seed, stem in enumerate(STEMS)}


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(1, 90_000),
    channels=st.integers(1, 6),
    rate=st.sampled_from([8000, 11025, 44100]),
    chunk=st.integers(500, 30_000),
    cuts=st.lists(st.integers(0, 90_000), max_size=6),
    refinement=st.sampled_from(["none", "masks", None]),
)
def test_a_song_in_blocks_becomes_what_the_whole_becomes(
    samples, channels, rate, chunk, cuts, refinement
):
    separator = Separator(STEMS_MODELS, 8000, refinement)
    generator = np.random.default_rng(samples)
    mixture = generator.uniform(-0.5, 0.5, (channels, samples)).astype(np.float32)
    blocks = np.split(mixture, sorted(min(cut, samples) for cut in cuts), axis=1)
    told, came, given = [], 0, 0
    parts = []

    def fed():
        nonlocal given
        for block in blocks:
            given += block.shape[1]
            yield block

    for part in separator.stream(fed(), rate, chunk, told.append, stems=("vocals", "bass")):
        assert list(part) == ["vocals", "bass"]
        came += part["bass"].shape[1]
        if given < samples:
            waiting = max(block.shape[1] for block in blocks)
            assert given - came <= separator.latency(rate, chunk) * rate + waiting
        parts.append(part)
    whole = separator(mixture, rate, 10_000)
    assert set(whole) == set(STEMS)
    for stem in ("vocals", "bass"):
        found = np.concatenate([part[stem] for part in parts], axis=1)
        assert found.shape == whole[stem].shape == mixture.shape
        np.testing.assert_allclose(found, whole[stem], atol=1e-5)
    assert sum(told) == pytest.approx(-(-samples * 8000 // rate) / 8000)


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(1, 3000), chunk=st.integers(1, 4000), shifts=st.integers(2, 4))
def test_shifts_are_the_mean_over_delays_whatever_the_chunks(samples, chunk, shifts):
    mixture = np.random.default_rng(samples).uniform(-1, 1, (2, samples)).astype(np.float32)
    found = Separator({"drums": MODEL}, 8000, shifts=shifts)(mixture, 8000, chunk)["drums"]
    rows, runs = torch.from_numpy(mixture), []
    with torch.inference_mode():
        for delay in [0, 3, 2, 1][:shifts]:  # the hop is 4
            late = torch.nn.functional.pad(rows, (delay, 0))
            runs.append(separation.apply(MODEL, late)[:, delay:])
    np.testing.assert_allclose(found, torch.stack(runs).mean(0).numpy(), atol=1e-5)


@pytest.mark.parametrize("shifts", [0, -1, 5])
def test_shifts_beyond_a_hop_are_refused(shifts):
    """More would repeat some; none would divide by zero."""
    with pytest.raises(UserError, match=f"{shifts} shifts: choose 1 to 4"):
        Separator({"drums": MODEL}, 8000, shifts=shifts)
    separator = Separator({"drums": MODEL}, 8000)
    with pytest.raises(UserError, match=f"{shifts} shifts: choose 1 to 4"):
        separator.shifts = shifts


@pytest.mark.parametrize("refinement", ["none", "wiener"])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_parts_of_a_stream_keep_no_more_than_themselves_in_memory(rate, refinement):
    separator, mixture = Separator(STEMS_MODELS, 8000, refinement), _noise(200_000)
    parts = [part["bass"] for part in separator.stream([mixture], rate, 1024, stems=["bass"])]
    assert len(parts) > 20
    kept = sum(part.nbytes if part.flags.owndata else part.base.nbytes for part in parts)
    assert kept <= mixture.nbytes + 100


def test_a_call_holds_one_part_at_a_time(monkeypatch):
    stream, held = Separator.stream, []

    def watched(*given, **more):
        for part in stream(*given, **more):
            held.extend(weakref.ref(audio) for audio in part.values())
            assert sum(ref() is not None for ref in held) <= 2 * len(part)
            yield part

    monkeypatch.setattr(Separator, "stream", watched)
    mixture = _noise(100_000)
    assert Separator(STEMS_MODELS, 8000)(mixture, 8000, 1024)["bass"].shape == mixture.shape
    assert len(held) > 100


def test_a_whole_song_is_resampled_piece_by_piece(monkeypatch):
    fed, feed = [], Resampler.feed

    def counting(resampler, block):
        fed.append(block.shape[1])
        return feed(resampler, block)

    monkeypatch.setattr(Resampler, "feed", counting)
    Separator({"drums": MODEL}, 8000)(_noise(300_000), 44100, 1000)
    assert max(fed) <= PIECE < 300_000


@pytest.mark.parametrize("rate", [8000, 11025])
def test_a_block_may_be_overwritten_once_the_next_is_asked_for(rate):
    separator, mixture = Separator(STEMS_MODELS, 8000), _noise(50_000)
    block = np.empty((2, 1000), np.float32)

    def refilled():
        for start in range(0, 50_000, 1000):
            block[:] = mixture[:, start : start + 1000]
            yield block

    parts = list(separator.stream(refilled(), rate, 8000))
    for stem, whole in separator(mixture, rate, 8000).items():
        found = np.concatenate([part[stem] for part in parts], axis=1)
        np.testing.assert_array_equal(found, whole)


def _noise(samples):
    return np.random.default_rng(0).uniform(-0.5, 0.5, (2, samples)).astype(np.float32)


def test_tensors_are_taken_too():
    separator = Separator({"drums": MODEL}, 8000)
    mixture = torch.rand(2, 999) - 0.5
    np.testing.assert_array_equal(
        separator(mixture, 8000)["drums"], separator(mixture.numpy(), 8000)["drums"]
    )


@settings(max_examples=40, deadline=None)
@given(
    sounds=st.lists(st.integers(0, 2999), max_size=3),
    chunk=st.integers(100, 3000),
    refinement=st.sampled_from(["none", "wiener", "masks", "consistency"]),
)
def test_silence_in_is_silence_out(sounds, chunk, refinement):
    """Exactly where the models hear nothing else, whatever the chunks."""
    mixture = np.zeros((2, 3000), np.float32)
    mixture[1, sounds] = 0.5
    stems = Separator(STEMS_MODELS, 8000, refinement)(mixture, 8000, chunk)
    reach = MODEL.context() + (2048 if refinement != "none" else 0)
    near = np.zeros(3000, bool)
    for sound in sounds:
        near[max(sound - reach, 0) : sound + reach + 1] = True
    for audio in stems.values():
        assert not audio[:, ~near].any()
    if sounds:
        assert any(audio.any() for audio in stems.values())


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "no audio"),
        ([np.zeros(5)], r"\(channels, samples\), found \(5,\)"),
        ([np.zeros((0, 5))], r"found \(0, 5\)"),
        ([np.zeros((1, 5)), np.zeros((2, 5))], r"found \(2, 5\) after 1 channels"),
        ([np.full((1, 5), np.nan)], "NaN"),
        ([np.zeros((44_100, 2))], r"\(channels, samples\), found \(44100, 2\)"),
        ([np.zeros((2, 5), np.int16)], "floats with full scale at 1, found int16"),
        ([torch.zeros(2, 5, dtype=torch.int16)], "found int16"),
    ],
)
def test_what_is_no_audio_is_refused(blocks, message):
    with pytest.raises(ValueError, match=message):
        list(Separator({"drums": MODEL}, 8000).stream(blocks, 8000))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (("cpu", "bf17"), "precision=bf17: no such value; choose fp32, tf32, bf16"),
        (("cpu", "tf32"), "tf32 is for NVIDIA GPUs"),
        (("xla",), "device=xla is not available here"),
    ],
)
def test_a_separator_goes_only_where_it_can_run(where, message):
    with pytest.raises(UserError, match=message):
        Separator({"drums": MODEL}, 8000).to(*where)


def test_a_song_of_no_samples_has_stems_of_none():
    stems = Separator({"drums": MODEL}, 8000)(np.zeros((2, 0)), 44100)
    assert stems["drums"].shape == (2, 0)


def test_a_stem_without_a_model_and_a_refinement_of_too_few_are_refused():
    separator = Separator({"drums": MODEL}, 8000)
    mixture = np.zeros((1, 5), np.float32)
    with pytest.raises(UserError, match="stem 'bass': no model for it"):
        separator(mixture, 8000, stems=("bass",))
    with pytest.raises(UserError, match="needs models for drums, bass, other, vocals"):
        Separator({"drums": MODEL}, 8000, "masks")(mixture, 8000)


def test_many_channels_take_no_more_memory_at_a_time(monkeypatch):
    widest = []
    separator = Separator({"drums": MODEL}, 8000)
    apply = separation.apply
    monkeypatch.setattr(
        "jukesep.separation.separator.apply",
        lambda m, x, *how: widest.append(x.numel()) or apply(m, x, *how),
    )
    separator(np.random.default_rng(0).uniform(-1, 1, (16, 9000)), 8000, 4000)
    assert max(widest) <= 2 * 4000 + 16 * 2 * MODEL.context() + 16


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
