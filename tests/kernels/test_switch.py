"""Which implementation computes: the kernels, or the definitions in PyTorch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jukesep import kernels
from jukesep.base.errors import UserError, reported
from jukesep.kernels import devices
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.training import losses

ROOT = Path(__file__).parents[2]
ARCHITECTURE = Architecture(width=8, depth=2, downs=(2,), latent_dim=8, codes=16)


def step():
    """Everything that a training step of a small model computes, by name."""
    torch.manual_seed(0)
    vqvae, audio = VQVAE(ARCHITECTURE), 0.3 * torch.randn(2, 1, 2048)
    vqvae.codebook.restore(torch.randn(16, 8), 1.0)
    latents = vqvae.encode(audio)
    codes, quantised = vqvae.quantise(latents)
    sound = vqvae.decode(latents)
    bandwidths = losses.Bandwidths(l2=0.02, spec=30.0)
    total, _ = losses.stage1_loss(audio, sound, latents, quantised, bandwidths)
    total.backward()
    vqvae.codebook.update(latents, codes, torch.Generator().manual_seed(1))
    found = {"latents": latents, "codes": codes, "sound": sound, "total": total}
    found |= {name: weight.grad for name, weight in vqvae.named_parameters()}
    return {name: one.detach() for name, one in (found | vqvae.codebook.state_dict()).items()}


def test_off_computes_the_same_and_imports_no_numba(tmp_path, monkeypatch):
    code = f"""
import sys
sys.path[:0] = ["tests/kernels", "tests"]
import torch
from test_switch import step
torch.save(step(), {str(tmp_path / "off.pt")!r})
compilers = {{"numba", "llvmlite", "triton"}} & set(sys.modules)
assert not compilers, compilers
"""
    env = os.environ | {kernels.VARIABLE: "off"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)
    monkeypatch.setenv(kernels.VARIABLE, "auto")
    # Sums of thousands of numbers near 1 that cancel: their order depends on the processor.
    torch.testing.assert_close(torch.load(tmp_path / "off.pt"), step(), rtol=1e-4, atol=5e-5)


def calls(dtype):
    """The functions of `kernels`, called with their definition replaced by one that returns 0."""
    plain = lambda *_: 0  # noqa: E731
    network = VQVAE(ARCHITECTURE).to(dtype).encoder._network
    signals = torch.randn(2, 1, 100, dtype=dtype)
    yield "run", kernels.run(network, torch.zeros(1, 1, 8, dtype=dtype), plain)
    latents = torch.zeros(1, 8, 5, dtype=dtype)
    yield "nearest", kernels.nearest(latents, torch.ones(4, 8, dtype=dtype), plain)
    yield "spectral_distance", kernels.spectral_distance(*signals, [(32, 8, 16)], plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_compute_on_a_cpu(dtype):
    assert all(isinstance(found, torch.Tensor) for _, found in calls(dtype))


@pytest.mark.parametrize(("value", "dtype"), [("off", torch.float32), ("auto", torch.bfloat16)])
def test_the_definition_computes_when_off_and_for_other_types(value, dtype, monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, value)
    assert {name: found for name, found in calls(dtype)} == {
        "run": 0, "nearest": 0, "spectral_distance": 0,
    }  # fmt: skip


def test_sums_on_a_cpu_are_the_definition():
    assert kernels.sums(torch.ones(2, 3), torch.tensor([0, 1]), torch.ones(2), lambda *_: 0) == 0


@pytest.mark.parametrize("value", ["on", "", "OFF"])
def test_another_value_ends_in_one_line(value, monkeypatch, capsys):
    monkeypatch.setenv(kernels.VARIABLE, value)
    with pytest.raises(SystemExit), reported():
        devices.choose("cpu")
    assert capsys.readouterr().err == (
        f"error: JUKESEP_KERNELS={value}: no such value; set it to auto or off.\n"
    )
    with pytest.raises(UserError):
        VQVAE(ARCHITECTURE).encode(torch.zeros(1, 1, 8))


@pytest.mark.parametrize(
    ("part", "shape", "model", "given"),
    [
        ("encoder", (1, 1, 4096), torch.float32, torch.float64),
        ("encoder", (1, 1, 4096), torch.float64, torch.float32),
        ("decoder", (1, 8, 512), torch.float32, torch.float64),
        ("decoder", (1, 4, 512), torch.float32, torch.float32),
        ("decoder", (8, 512), torch.float32, torch.float64),
    ],
)
def test_what_does_not_fit_the_network_is_pytorch_s_error(part, shape, model, given):
    """The kernels would read memory that is not theirs."""
    network = getattr(VQVAE(ARCHITECTURE).to(model), part)
    x = torch.randn(shape, dtype=given)
    with pytest.raises(RuntimeError) as plain:
        network.layers(x)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError) as found:
            network(x)
        assert str(found.value) == str(plain.value)
