"""Devices and precisions. On a GPU, where there is one: `uv run pytest -k cuda`."""

import pytest
import torch
import torch.nn.functional as F
from tiny import make_recipe, make_run, matching, reconstruction, run_training

from jukesep.base.errors import UserError
from jukesep.kernels import devices
from jukesep.model import jukebox
from jukesep.model.codebook import Codebook
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.resume.folder import Training
from jukesep.training import loop

pytestmark = pytest.mark.usefixtures("entered")

THERE = {
    "cpu": True,
    "cuda": torch.cuda.is_available(),
    "mps": torch.backends.mps.is_available(),
}
MADE = Architecture(width=16, depth=3, downs=(3,), latent_dim=16, codes=64)
# Of the largest value; tf32 rounds factors to 10 bits, bf16 to 8, and many layers add up.
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 6e-2}


def _cases():
    for device, there in THERE.items():
        for precision in TOLERANCE:
            if precision == "tf32" and device != "cuda":
                continue
            skip = pytest.mark.skipif(not there, reason=f"no {device} here")
            yield pytest.param((device, precision), id=f"{device}-{precision}", marks=skip)


@pytest.fixture(params=_cases())
def computed(request):
    """A device and a precision, set; what was set before comes back."""
    name, precision = request.param
    device = torch.device(name)
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [backend.fp32_precision for backend in backends]
    devices.set_precision(precision, device)
    yield device, precision
    for backend, value in zip(backends, before, strict=True):
        backend.fp32_precision = value


def _run(out, computed):
    device, precision = computed
    return Training(make_run(out).about, device, precision)


def _task(make, device):
    task = make()
    if hasattr(task, "stage1"):
        task.stage1.to(device)
    return task


def test_a_model_computes_what_its_definition_does(computed):
    device, precision = computed
    torch.manual_seed(0)
    vqvae, audio = VQVAE(MADE), 0.3 * torch.randn(2, 1, 512)
    with torch.no_grad():  # its plain layers, in float64
        exact = vqvae.double().encoder.blocks(audio.double())
        decoded = vqvae.decoder.out(vqvae.decoder.blocks(exact))
    vqvae.float().to(device)
    with devices.autocast(precision, device)():
        latents = vqvae.encode(audio.to(device))
        output = vqvae.decode(latents)
        loss = F.mse_loss(output.float(), torch.zeros_like(output, dtype=torch.float32))
    loss.backward()
    for found, wanted in ((latents, exact), (output, decoded)):
        error = (found.detach().cpu().double() - wanted).abs().max()
        assert error < TOLERANCE[precision] * wanted.abs().max()
    if precision == "bf16" and device.type == "cuda":  # on a CPU activations stay float32
        assert latents.dtype == torch.bfloat16
    for weight in vqvae.parameters():
        assert weight.dtype == torch.float32
        if weight.grad is not None:
            assert weight.grad.dtype == torch.float32
            assert weight.grad.isfinite().all()


def test_codes_are_found_in_float32(computed):
    """Latents that lie nearly as near to another code, nearer than the precision can tell."""
    device, precision = computed
    torch.manual_seed(0)
    k = torch.randn(64, 16)
    k[32:] = k[:32] * (1 + 1e-2)
    codebook = Codebook(64, 16)
    codebook.restore(k, 1.0)
    latents = (k[torch.arange(64)] * (1 + 1e-3)).T[None].contiguous()
    wanted = ((latents[0].T.double()[:, None] - k.double()[None]) ** 2).sum(2).argmin(1)
    codebook.to(device)
    with devices.autocast(precision, device)():
        codes, quantised = codebook.quantise(latents.to(device))
    assert quantised.dtype == torch.float32
    assert torch.equal(codes[0].cpu(), wanted)


@pytest.mark.parametrize("make", [reconstruction, matching])
def test_a_training_learns(songs, computed, make):
    recipe = make_recipe(steps=60, log_every=10, valid_every=30, weight_ema=0.9, workers=1)
    log = run_training(
        _task(make, computed[0]), songs, recipe=recipe, checkpoints=[60], run=_run("run", computed)
    )
    assert float(log[-1]["loss"]) < 0.7 * float(log[0]["loss"])
    load = jukebox.load_jukebox if make is reconstruction else jukebox.load_encoder
    assert all(weight.device.type == "cpu" for weight in load("run/checkpoints/60.pt").parameters())


@pytest.mark.parametrize("make", [reconstruction, matching])
def test_an_interrupted_training_goes_on(songs, computed, make, monkeypatch):
    whole = run_training(
        _task(make, computed[0]), songs, run=_run("whole", computed), folder="whole"
    )
    task = _task(make, computed[0])
    plain = loop.State.save

    class Cut(Exception):
        pass

    def cut(state):
        if state.step == 6:
            raise Cut
        return plain(state)

    monkeypatch.setattr(loop.State, "save", cut)
    run = _run("cut", computed)
    monkeypatch.setattr(Training, "save_due", lambda self: True)
    with pytest.raises(Cut):
        run_training(task, songs, run=run, folder="cut")
    monkeypatch.setattr(loop.State, "save", plain)
    log = run_training(_task(make, computed[0]), songs, run=_run("cut", computed), folder="cut")
    for row, wanted in zip(log, whole, strict=True):
        assert float(row["loss"]) == pytest.approx(float(wanted["loss"]), rel=0.05)


def test_tf32_is_refused_where_there_is_none():
    with pytest.raises(UserError, match="precision=tf32 is for NVIDIA GPUs, and the device is cpu"):
        devices.set_precision("tf32", torch.device("cpu"))


def test_auto_takes_what_there_is():
    wanted = "cuda" if THERE["cuda"] else "mps" if THERE["mps"] else "cpu"
    assert devices.choose("auto").type == wanted


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"device=cuda is not available here\. Choose cpu"):
        devices.choose("cuda")
