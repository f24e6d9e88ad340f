"""The VQ-VAE, its losses and its training step against numbers measured on the published code.

golden/*.npz hold what the reference implementation computed (CPU, float32) for weights and
audio made by the integer hash below, at two sizes: `small`, and `paper1`, the paper's own.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from jukesep import audio as files
from jukesep import kernels
from jukesep.base.params import CodebookParams, Losses, Recipe
from jukesep.model.codebook import CodebookStats, straight_through
from jukesep.model.jukebox import encoder_names, jukebox_names, load_jukebox
from jukesep.model.vqvae import VQVAE, Architecture, Encoder
from jukesep.resume.folder import About, Training
from jukesep.songs.manifest import Song
from jukesep.training import losses
from jukesep.training.loop import train
from jukesep.training.losses import Bandwidths
from jukesep.training.optimiser import Adam
from jukesep.training.segments import Segments
from jukesep.training.tasks import Reconstruction

GOLDEN = Path(__file__).parent / "golden"
BANDWIDTHS = Bandwidths(l2=0.02, spec=30.0)
SIZES = {
    "small": SimpleNamespace(
        architecture=Architecture(width=8, depth=4, downs=(2,), latent_dim=8, codes=16),
        linf_k=256,
        shape=(2, 4096),
        later=0.02,
        steps=SimpleNamespace(latents=1, audio=1, codes=1),
    ),
    "paper1": SimpleNamespace(
        architecture=Architecture(),
        linf_k=2048,
        shape=(1, 20480),
        later=0.1,
        steps=SimpleNamespace(latents=20, audio=5, codes=16),
    ),
}


def hashed(n: np.ndarray, seed: int) -> np.ndarray:
    """Numbers in [-1, 1) that any language reproduces: arithmetic mod 2^32."""
    h = (n.astype(np.uint64) + np.uint64((1 + seed * 1000003) % 2**32)) % 2**32
    for multiplier, shift in ((2654435761, 16), (2246822519, 13), (3266489917, 16)):
        h = h * np.uint64(multiplier) % 2**32
        h ^= h >> np.uint64(shift)
    return h / 2.0**31 - 1


def tensors(vqvae: VQVAE, offset: int = 0) -> dict[str, torch.Tensor]:
    """Hashed values for every tensor, under Jukebox's names."""
    state, names = vqvae.state_dict(), jukebox_names(vqvae.architecture)
    shapes = {theirs: state[ours].shape for ours, theirs in names.items()}
    made = {}
    for index, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        values = hashed(np.arange(shape.numel()), index + offset)
        if name.endswith(".k"):
            scale = 0.3
        elif len(shape) == 1:
            scale = 0.05
        else:
            scale = 1.7 / np.sqrt(shape.numel() / shape[0])
        made[name] = torch.from_numpy((scale * values).astype(np.float32).reshape(shape))
    return made


def renamed(state: dict[str, torch.Tensor], architecture: Architecture) -> dict[str, torch.Tensor]:
    """The tensors of Jukebox's names under ours."""
    return {name: state[theirs] for name, theirs in jukebox_names(architecture).items()}


def audio(shape: tuple[int, int], which: int = 0) -> torch.Tensor:
    """Two sines and noise, (B, 1, T)."""
    items, t = [], np.arange(shape[1])
    for b in range(shape[0]):
        sines = 0.3 * np.sin(2 * np.pi * 220 * (b + 1 + which) * t / 44100)
        sines += 0.2 * np.sin(2 * np.pi * 3300 * t / 44100 + b)
        items.append(sines + 0.1 * hashed(t, 7000 + 100 * which + b))
    return torch.from_numpy(np.stack(items).astype(np.float32))[:, None]


class Case:
    """One size: its golden numbers, its audio, and models at the rule-made start."""

    def __init__(self, name: str) -> None:
        self.__dict__.update(vars(SIZES[name]))
        self.golden = dict(np.load(GOLDEN / f"{name}.npz"))
        self.audio = audio(self.shape)

    def model(self) -> VQVAE:
        """The codebook's counts as if restored from a file, and no revival: nothing is random."""
        vqvae = VQVAE(self.architecture)
        state = renamed(tensors(vqvae), self.architecture)
        codes = state.pop("codebook.k")
        vqvae.load_state_dict(state, strict=False)
        latents_each = self.shape[1] / self.architecture.hop / self.architecture.codes
        vqvae.codebook.restore(codes, latents_each)
        vqvae.codebook.revival_threshold = 0.0
        return vqvae

    def student(self) -> Encoder:
        encoder = Encoder(self.architecture)
        state = renamed(tensors(VQVAE(self.architecture), 100000), self.architecture)
        encoder.load_state_dict({n: state[f"encoder.{n}"] for n in encoder.state_dict()})
        return encoder

    def step(self, vqvae: VQVAE) -> tuple[torch.Tensor, dict[str, torch.Tensor], CodebookStats]:
        """The forward pass of a training step, the codebook's update included."""
        latents = vqvae.encode(self.audio)
        codes, quantised = vqvae.quantise(latents)
        reconstruction = vqvae.decode(straight_through(latents, quantised))
        total, terms = losses.stage1_loss(
            self.audio, reconstruction, latents, quantised, BANDWIDTHS, linf_k=self.linf_k
        )
        return total, terms, vqvae.codebook.update(latents, codes)

    def parameters(self, vqvae: VQVAE) -> list[nn.Parameter]:
        """In the order of grad_norm_keys."""
        ours = {theirs: name for name, theirs in jukebox_names(self.architecture).items()}
        return [vqvae.get_parameter(ours[name]) for name in self.golden["grad_norm_keys"]]


@pytest.fixture(scope="module", params=["auto", "off"], autouse=True)
def switch(request: pytest.FixtureRequest) -> Iterator[str]:
    """Once with the kernels, once with PyTorch's definitions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(kernels.VARIABLE, request.param)
        yield request.param


@pytest.fixture(scope="module", params=list(SIZES))
def case(request: pytest.FixtureRequest, switch: str) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
def codec(case: Case) -> SimpleNamespace:
    """The codec's output for the golden audio."""
    vqvae = case.model()
    with torch.no_grad():
        latents = vqvae.encode(case.audio)
        codes, quantised = vqvae.quantise(latents)
        return SimpleNamespace(latents=latents, codes=codes, audio=vqvae.decode(quantised))


@pytest.fixture(scope="module")
def stepped(case: Case) -> SimpleNamespace:
    """After the first training step's gradients and update of the codebook."""
    vqvae = case.model()
    total, terms, stats = case.step(vqvae)
    total.backward()
    return SimpleNamespace(vqvae=vqvae, total=total.detach(), terms=terms, stats=stats)


def close(ours: torch.Tensor | float, golden: np.ndarray, rtol: float, atol: float = 0.0) -> None:
    np.testing.assert_allclose(np.asarray(ours, np.float64), golden, rtol=rtol, atol=atol)


def mean_std_norm(tensor: torch.Tensor) -> list[float]:
    return [float(tensor.mean()), float(tensor.std()), float(tensor.double().norm())]


def test_the_audio_is_the_reference_s(case: Case) -> None:
    np.testing.assert_array_equal(case.audio[:, 0, :8], case.golden["input_head"])
    close(case.audio.double().sum(), case.golden["input_sum"], rtol=1e-9)


def test_latents(case: Case, codec: SimpleNamespace) -> None:
    golden = case.golden["z0"]
    close(codec.latents[..., :: case.steps.latents], golden, 0, atol=1e-5 * np.abs(golden).max())
    close(mean_std_norm(codec.latents), case.golden["z0_mean_std_norm"], rtol=1e-5, atol=1e-6)


def test_codes(case: Case, codec: SimpleNamespace) -> None:
    np.testing.assert_array_equal(codec.codes, case.golden["codes0"])
    assert len(codec.codes.unique()) == case.golden["codes0_used"]


def test_decoder(case: Case, codec: SimpleNamespace) -> None:
    close(codec.audio[:, 0, :: case.steps.audio], case.golden["dec0"], 0, atol=1e-4)
    close(mean_std_norm(codec.audio), case.golden["dec0_mean_std_norm"], rtol=1e-5, atol=1e-5)


def test_losses(case: Case, codec: SimpleNamespace) -> None:
    none = torch.empty(0)
    total, terms = losses.stage1_loss(
        *(case.audio, codec.audio, none, none, BANDWIDTHS),
        commit=0,
        multispectral=0,
        linf_k=case.linf_k,
    )
    close(terms["l2"], case.golden["loss0_l2"], rtol=1e-5)
    close(terms["linf"], case.golden["loss0_linf"], rtol=1e-5)
    close(total, case.golden["loss0_lmix"], rtol=1e-5)


def test_spectral_losses(case: Case, codec: SimpleNamespace) -> None:
    per_item = losses.multispectral_loss(case.audio, codec.audio) / BANDWIDTHS.spec
    close(per_item, case.golden["loss0_multispectral_per_item"], rtol=1e-5)

    wanted, found = (
        losses.stft_magnitude(x[:, 0], *losses.BANDWIDTH_STFT) for x in (case.audio, codec.audio)
    )
    norms = wanted.norm(dim=(1, 2))
    errors = (found - wanted).norm(dim=(1, 2))
    close(norms, case.golden["x0_specnorm_2048_256_1536"], rtol=1e-5)
    close(errors / BANDWIDTHS.spec, case.golden["loss0_spectral_per_item"], rtol=1e-5)
    close((errors / norms).mean(), case.golden["loss0_spectral_convergence"], rtol=1e-5)


def test_training_step(case: Case, stepped: SimpleNamespace) -> None:
    vqvae, terms, stats = stepped.vqvae, stepped.terms, stepped.stats
    golden = case.golden
    close(stepped.total, golden["total_loss"], rtol=1e-5)
    close(terms["l2"], golden["metric_l2_loss"], rtol=1e-5)
    close(terms["linf"], golden["metric_linf_loss"], rtol=1e-5)
    close(terms["multispectral"], golden["metric_multispectral_loss"], rtol=1e-5)
    close(terms["commit"], golden["metric_commit_loss"], rtol=1e-5)

    norms = torch.stack([p.grad.norm() for p in case.parameters(vqvae)])
    close(norms, golden["grad_norms"], rtol=1e-3)
    close(norms.norm(), golden["grad_norm_total"], rtol=1e-3)
    for ours, theirs in ((vqvae.encoder, "encoders.0"), (vqvae.decoder, "decoders.0")):
        norm = torch.stack([p.grad.norm() for p in ours.parameters()]).norm()
        close(norm, golden[f"grad_group_{theirs}"], rtol=1e-3)

    # The reference smooths the shares by 1e-8 inside the logarithm.
    close(math.log(stats.perplexity), golden["metric_entropy"], rtol=1e-5)
    assert stats.usage == golden["metric_usage"]
    assert stats.revived == 0


def test_codebook_after_a_step(case: Case, stepped: SimpleNamespace) -> None:
    codebook, golden = stepped.vqvae.codebook, case.golden
    close(codebook.k[:: case.steps.codes], golden["ema0_k"], rtol=0, atol=1e-5)
    close(codebook.k.double().norm(), golden["ema0_k_norm"], rtol=1e-5)
    close(codebook.k_elem, golden["ema0_k_elem"], rtol=1e-5)
    np.testing.assert_array_equal(codebook.k_elem < 1, golden["ema0_dead_mask_thr1"])


def test_dead_codes_are_those_revived_at_the_default_threshold(
    case: Case, codec: SimpleNamespace
) -> None:
    codebook = case.model().codebook
    codebook.revival_threshold = 1.0
    stats = codebook.update(codec.latents, codec.codes)
    assert stats.revived == case.golden["ema0_dead_mask_thr1"].sum()


def test_trajectory(case: Case) -> None:
    """Four steps of Adam on one batch; once a code flips, rounding decides."""
    vqvae, golden = case.model(), case.golden
    parameters = case.parameters(vqvae)
    start = [p.detach().clone() for p in parameters]
    averages, library = ([s.clone() for s in start] for _ in range(2))
    adam = Adam(parameters)
    for step in range(4):
        rate = 3e-4 * min(1.0, step / 100)
        close(rate, golden["traj_lr"][step], rtol=1e-12)
        total, _, _ = case.step(vqvae)
        adam.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        rtol = 1e-5 if step < 2 else case.later
        close(total.detach(), golden["traj_loss"][step], rtol=rtol)
        close(norm, golden["traj_grad_norm"][step], rtol=max(rtol, 1e-3))
        adam.step(rate)
        with torch.no_grad():
            get_ema_multi_avg_fn(0.9995)(library, parameters, step)
            for average, parameter in zip(averages, parameters, strict=True):
                average.mul_(0.9995).add_(parameter, alpha=0.0005)

    moved = [float((p.detach() - s).norm()) for p, s in zip(parameters, start, strict=True)]
    close(np.array(moved), golden["traj_param_delta_norms"], rtol=case.later)
    first = str(golden["traj_first_param_name"])
    first_after = parameters[list(golden["grad_norm_keys"]).index(first)].detach()
    close(first_after, golden["traj_first_param_after"], rtol=0, atol=1e-5)

    # So early the drift of the averages is mostly the rounding of float32 in the reference's order
    # of operations; PyTorch's average is the same but for that.
    drift = [(a - s).norm() for a, s in zip(averages, start, strict=True)]
    close(torch.stack(drift).norm(), golden["traj_ema_delta_norm"], rtol=0.02)
    for average, other in zip(averages, library, strict=True):
        torch.testing.assert_close(other, average, rtol=0, atol=5e-7)


def _paper_s_recipe(case: Case) -> Recipe:
    """With a row of the log every step, and as many steps as the reference took."""
    return Recipe(
        steps=4, batch=case.shape[0], segment=case.shape[1], learning_rate=3e-4, warmup=100,
        final_rate=1.0, clip=1.0, weight_ema=0.9995, log_every=1, valid_every=4,
        valid_segments=1, workers=0,
    )  # fmt: skip


def test_the_training_loop_goes_the_trajectory(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train` itself, on files of the golden audio: each song is one segment, an epoch a batch."""
    monkeypatch.chdir(tmp_path)
    songs = []
    for name, samples in zip("ab", case.audio.numpy(), strict=False):
        files.write(tmp_path / name / "mixture.wav", samples, 44100, "FLOAT")
        songs.append(Song(name, "train", "seen", tmp_path / name, case.shape[1]))
    segments = Segments(songs, ("mixture",), case.shape[1], 0, "golden")

    task = Reconstruction(
        case.model(),
        BANDWIDTHS,
        Losses(linf=0.02, linf_k=case.linf_k, multispectral=1.0, commit=0.02),
        CodebookParams(decay=0.99, revival_threshold=0.0),
        seed=0,
        hps={},
    )
    parameters = case.parameters(task.model)
    passed = [[p.detach().clone() for p in parameters]]
    step = Adam.step

    def spy(adam: Adam, rate: float) -> None:
        step(adam, rate)
        passed.append([p.detach().clone() for p in parameters])

    monkeypatch.setattr(Adam, "step", spy)
    folder = Path("run")
    run = Training(About("golden", "stage1", folder))
    train(task, _paper_s_recipe(case), segments, segments, [4], run)

    golden = case.golden
    with (folder / "log.csv").open() as file:
        log = list(csv.DictReader(file))
    assert [row["step"] for row in log] == ["1", "2", "3", "4"]
    close([float(row["lr"]) for row in log], golden["traj_lr"], rtol=1e-6)
    for row, loss, norm in zip(log, golden["traj_loss"], golden["traj_grad_norm"], strict=True):
        rtol = 1e-5 if int(row["step"]) <= 2 else case.later
        close(float(row["loss"]), loss, rtol=rtol)
        close(float(row["grad_norm"]), norm, rtol=max(rtol, 1e-3))

    start, *_, end = passed
    moved = [float((p - s).norm()) for p, s in zip(end, start, strict=True)]
    close(moved, golden["traj_param_delta_norms"], rtol=case.later)

    # The golden drift of the averages is mostly rounding in the reference's order of operations:
    # along the loop's own weights that order gives the golden norm, exact arithmetic the drift.
    rounded, exact = [s.clone() for s in start], [s.double() for s in start]
    for weights in passed[1:]:
        for average, other, weight in zip(rounded, exact, weights, strict=True):
            average.mul_(0.9995).add_(weight, alpha=0.0005)
            other.add_(weight.double() - other, alpha=0.0005)
    drift = [(a - s).norm() for a, s in zip(rounded, start, strict=True)]
    close(torch.stack(drift).norm(), golden["traj_ema_delta_norm"], rtol=0.02)

    def flat(tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensor.detach().double().flatten() for tensor in tensors])

    begun, expected = flat(start), flat(exact)
    averaged = flat(case.parameters(load_jukebox(folder / "checkpoints/4.pt")))
    torch.testing.assert_close(averaged, flat(rounded), rtol=0, atol=5e-7)
    # In small weights float32 keeps the drift: it is the recipe's, not another average's.
    small = begun.abs() < 0.01
    assert (expected - begun)[small].abs().median() > 1e-8
    torch.testing.assert_close(averaged[small], expected[small], rtol=0, atol=2.5e-9)


def test_stage_2(case: Case) -> None:
    vqvae, student = case.model(), case.student()
    with torch.no_grad():
        target = vqvae.encode(case.audio)
    latents = student(audio(case.shape, which=1))
    total, terms = losses.stage2_loss(target, latents, kind="mse_linf", linf_k=case.linf_k)
    total.backward()

    golden = case.golden
    close(total.detach(), golden["stage2_loss"], rtol=1e-5)
    close(terms["l2"], golden["stage2_l2"], rtol=1e-5)
    close(terms["linf"], golden["stage2_linf"], rtol=1e-5)
    close((latents.detach() - target).abs().mean(), golden["stage2_l1"], rtol=1e-5)
    theirs = encoder_names(case.architecture)
    names = sorted(theirs, key=theirs.__getitem__)
    norms = torch.stack([student.get_parameter(name).grad.norm() for name in names])
    close(norms, golden["stage2_grad_norms"], rtol=1e-3)
    close(norms.norm(), golden["stage2_grad_norm_total"], rtol=1e-3)

    alone, _ = losses.stage2_loss(target, latents.detach())
    close(alone, golden["stage2_l2"], rtol=1e-5)
