"""The Triton kernels against PyTorch's layers, in values and gradients.

On a CPU Triton's interpreter runs them, in float32 only, and in a process of its own, since the
variable that turns it on is read when triton is imported. On a GPU: `uv run pytest -k cuda`.
"""

import contextlib
import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jukesep.base import progress
from jukesep.kernels.gpu import launch
from jukesep.model.codebook import Codebook
from jukesep.model.vqvae import VQVAE, Architecture

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
# Of the norm; gradients pass more layers, and a ReLU near its threshold lets through or not.
PRECISIONS = {"fp32": (1e-5, 1e-4), "tf32": (1e-2, 0.3), "bf16": (3e-2, 0.6)}

on_gpu = pytest.mark.skipif(not GPU, reason="no cuda here")
both = [
    pytest.param("cuda", marks=on_gpu),
    pytest.param(
        "interpreter", marks=pytest.mark.skipif(not INTERPRETED, reason="in a process of its own")
    ),
]


@pytest.fixture(params=both)
def where(request):
    return request.param


@pytest.fixture
def precisions():
    """All are put back after a test."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [backend.fp32_precision for backend in backends]
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.fp32_precision = value


@pytest.mark.skipif(GPU or INTERPRETED, reason="where there is a GPU, it runs them")
def test_in_the_interpreter():
    pytest.importorskip("triton", reason="triton is not made for this system")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__]
    command += ["-k", "interpreter and not test_in_the_interpreter"]
    env = os.environ | {"TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[1-9]\d* passed", done.stdout)
    assert "in a process of its own" not in done.stdout  # the reason that leaves them out


def _compared(architecture, length, precision="fp32", batch=2):
    """Relative errors of latents and sound, and of each gradient, by name."""
    if GPU:
        from jukesep.kernels import devices

        devices.set_precision(precision, DEVICE)
    from jukesep.kernels.gpu import networks

    bf16 = precision == "bf16"
    context = torch.autocast("cuda", torch.bfloat16) if bf16 else contextlib.nullcontext()
    torch.manual_seed(length)
    vqvae = VQVAE(architecture).to(DEVICE)
    exact = copy.deepcopy(vqvae).double()
    audio = torch.randn(batch, 1, length * architecture.hop, device=DEVICE)
    weights = torch.randn_like(audio)
    with context:
        latents = networks.run(vqvae.encoder._network, audio)
        sound = networks.run(vqvae.decoder._network, latents)
    (sound.float() * weights).mean().backward()
    wanted = exact.encoder.layers(audio.double())
    decoded = exact.decoder.layers(wanted)
    (decoded * weights).mean().backward()
    assert latents.dtype == (torch.bfloat16 if bf16 else torch.float32)
    assert sound.dtype == torch.float32
    pairs = {"latents": (latents, wanted), "sound": (sound, decoded)}
    values = {name: _error(*pair) for name, pair in pairs.items()}
    found = zip(vqvae.named_parameters(), exact.parameters(), strict=True)
    return values, {name: _error(p.grad, q.grad) for (name, p), q in found}


def _error(found, wanted):
    assert found.shape == wanted.shape
    error = (found.detach().double() - wanted).norm() / wanted.norm()
    return float(error)


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(width=16, depth=8, downs=(1,), latent_dim=16, codes=32),
        Architecture(width=32, depth=2, downs=(1, 2), latent_dim=16, codes=32, dilation_growth=2),
    ],
    ids=["every dilation", "two blocks"],
)
def test_values_and_gradients_are_the_definitions(where, architecture, precisions):
    values, gradients = _compared(architecture, 101 if GPU else 41)  # the interpreter is slow
    assert max(values.values()) < 1e-5
    assert max(gradients.values()) < 1e-4, gradients


@settings(max_examples=4, deadline=None, derandomize=True)
@given(length=st.integers(1, 150), batch=st.integers(1, 3))
def _any_length(length, batch):
    architecture = Architecture(width=16, depth=2, downs=(1,), latent_dim=16, codes=32)
    values, gradients = _compared(architecture, length, batch=batch)
    assert max(values.values()) < 1e-5
    assert max(gradients.values()) < 1e-4, gradients


def test_any_length_will_do(where, precisions):
    _any_length()


def test_without_gradients_nothing_is_kept(where, monkeypatch):
    from jukesep.kernels.gpu import blocks, networks

    kept = []
    forward = blocks.forward
    monkeypatch.setattr(blocks, "forward", lambda *a: kept.append(a[-1]) or forward(*a))
    architecture = Architecture(width=16, depth=1, downs=(1,), latent_dim=16, codes=32)
    encoder, audio = VQVAE(architecture).to(DEVICE).encoder, torch.zeros(1, 1, 8)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            latents = networks.run(encoder._network, audio.to(DEVICE))
        assert latents.requires_grad == gradients
    assert kept[0] is not None
    assert kept[1] is None


@on_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", [16, 64])
def test_every_precision_on_cuda(precision, width, precisions):
    architecture = Architecture(width=width, depth=4, downs=(2,), latent_dim=width, codes=32)
    values, gradients = _compared(architecture, 1001, precision)
    value, gradient = PRECISIONS[precision]
    assert max(values.values()) < value
    assert max(gradients.values()) < gradient, gradients


@on_gpu
def test_the_same_bits_each_time_on_cuda():
    torch.manual_seed(0)
    vqvae = VQVAE(Architecture(depth=3)).cuda()
    vqvae.codebook.restore(torch.randn(2048, 64), 1.0)
    audio = torch.randn(2, 1, 80_000, device="cuda")

    def once():
        model = copy.deepcopy(vqvae)
        latents = model.encode(audio)
        codes, _ = model.quantise(latents)
        model.decode(latents).square().mean().backward()
        model.codebook.update(latents.detach(), codes, torch.Generator().manual_seed(0))
        return [codes, model.codebook.k_sum, *(p.grad for p in model.encoder.parameters())]

    assert all(torch.equal(one, other) for one, other in zip(once(), once(), strict=True))


@on_gpu
def test_a_network_on_cuda_is_computed_here(monkeypatch):
    from jukesep.kernels.gpu import networks

    asked = []
    run = networks.run
    monkeypatch.setattr(networks, "run", lambda *a: asked.append(a[0]) or run(*a))
    for width, taken in ((64, 2), (24, 0)):
        vqvae = VQVAE(Architecture(width=width, depth=1, codes=32)).cuda()
        vqvae.decode(vqvae.encode(torch.zeros(1, 1, 64, device="cuda")))
        assert len(asked) == taken
        asked.clear()


@pytest.fixture
def told(capsys):
    """What the user was told; what was found before is asked again."""
    for each in (launch.usable, progress.note):
        each.cache_clear()
    yield lambda: capsys.readouterr().err
    launch.usable.cache_clear()


@pytest.mark.parametrize(
    ("installed", "capability", "why"),
    [
        (True, (8, 0), None),
        (True, (7, 5), "Tesla T4 is older than NVIDIA's Ampere"),
        (False, (9, 0), "Triton is not installed"),
    ],
)
def test_where_triton_does_not_run_pytorch_computes_and_a_line_says_so(
    installed, capability, why, told, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(launch, "find_spec", lambda _: "found" if installed else None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    for _ in range(2):
        assert launch.usable(torch.device("cuda")) == (why is None)
    line = f"jukesep: the kernels for GPUs are not used: {why}. Plain PyTorch computes instead.\n"
    assert told() == (line if why else "")


def test_triton_keeps_its_code_in_a_temporary_folder_if_its_own_is_read_only(
    told, tmp_path, monkeypatch
):
    monkeypatch.setattr(launch, "find_spec", lambda _: "found")
    monkeypatch.setattr(launch, "_temporary", [])
    (tmp_path / "file").touch()
    wanted = str(tmp_path / "file" / "cache")
    monkeypatch.setenv("TRITON_CACHE_DIR", wanted)
    assert launch.usable(torch.device("cpu"))
    assert Path(os.environ["TRITON_CACHE_DIR"]).is_dir()
    assert told().startswith(f"jukesep: compiled code cannot be kept ({wanted}: Not a directory). ")

    def full(*_, **__):
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setenv("TRITON_CACHE_DIR", wanted)
    monkeypatch.setattr(launch.tempfile, "TemporaryDirectory", full)
    launch.usable.cache_clear()
    assert not launch.usable(torch.device("cpu"))
    assert "Triton has no folder to write to; set TRITON_CACHE_DIR to one." in told()


def test_triton_asks_for_its_folder_when_it_compiles(monkeypatch):
    knobs = pytest.importorskip("triton.knobs", reason="triton is not made for this system")
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    assert knobs.cache.dir == "elsewhere"


@pytest.mark.parametrize(
    ("width", "latent_dim", "taken"),
    [(64, 64, True), (16, 32, True), (24, 64, 0), (64, 1, 0)],
)
def test_networks_whose_widths_the_kernels_do_not_take_are_refused(
    width, latent_dim, taken, monkeypatch
):
    monkeypatch.setattr(launch, "usable", lambda _: True)
    vqvae = VQVAE(Architecture(width=width, depth=1, latent_dim=latent_dim, codes=32))
    for network in (vqvae.encoder._network, vqvae.decoder._network):
        assert launch.fits(torch.zeros(1), network.widths) == taken
    assert not launch.fits(torch.zeros(1, dtype=torch.float64), {64})


@pytest.mark.parametrize("count", [1, 300])
def test_the_first_nearest_code_is_found(where, count):
    torch.manual_seed(0)
    k = torch.randn(70, 16)
    k[50] = k[3]
    k[69] = k[0]
    rows = torch.randn(count, 16)
    rows[:1] = k[3]
    wanted = (rows.double()[:, None] - k.double()[None]).square().sum(2).argmin(1)
    from jukesep.kernels.gpu import codebook

    (found,) = codebook.nearest(rows.T[None].to(DEVICE), k.to(DEVICE), "tf32x3" if GPU else "ieee")
    assert torch.equal(found.cpu(), wanted)
    assert found[0] == 3


def test_the_rows_of_each_code_are_summed(where):
    torch.manual_seed(0)
    rows, codes = torch.randn(700, 16, device=DEVICE), torch.randint(0, 6, (700,), device=DEVICE)
    codes[codes == 3] = 2
    counts = torch.bincount(codes, minlength=9)
    wanted = torch.zeros(9, 16, device=DEVICE).double().index_add_(0, codes, rows.double())
    from jukesep.kernels.gpu import codebook

    found = codebook.sums(rows, codes, counts)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@on_gpu
def test_a_codebook_on_cuda_is_that_of_a_cpu():
    torch.manual_seed(0)
    latents = torch.randn(2, 16, 500)
    books = []
    for device in ("cpu", "cuda"):
        codebook = Codebook(32, 16)
        codebook.initialise(latents, torch.Generator().manual_seed(1))
        codebook.to(device)
        codes, _ = codebook.quantise(latents.to(device))
        codebook.update(latents.to(device), codes, torch.Generator().manual_seed(2))
        books.append(codebook.cpu())
    torch.testing.assert_close(books[1].state_dict(), books[0].state_dict())
