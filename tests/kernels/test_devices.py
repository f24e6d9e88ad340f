"""Devices and precisions. On a GPU, where there is one: `uv run pytest -k cuda`."""

import pytest
import torch
import torch.nn.functional as F
from tiny import make_recipe, make_run, matching, reconstruction, run_training

from jukesep.base import progress
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
        exact = vqvae.double().encoder.layers(audio.double())
        decoded = vqvae.decoder.layers(exact)
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
    with pytest.raises(UserError, match="device=cuda is not available here"):
        devices.choose("cuda")


@pytest.fixture
def said(capsys, monkeypatch):
    """What the user was told since the last call. What is set comes back."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [backend.fp32_precision for backend in backends]
    threads = torch.get_num_threads()
    progress.note.cache_clear()
    yield lambda: capsys.readouterr().err
    progress.note.cache_clear()
    torch.set_num_threads(threads)
    for backend, value in zip(backends, before, strict=True):
        backend.fp32_precision = value


AMX = "on a processor with AMX the kernels are slower in bf16"
NO_BF16 = "this processor has no AVX-512 BF16"


@pytest.mark.parametrize(
    ("able", "kernels", "machine", "why"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "auto", "x86_64", None),
        ({"avx512_bf16": True, "amx_bf16": True}, "auto", "x86_64", AMX),
        ({"avx512_bf16": False, "amx_bf16": False}, "auto", "x86_64", NO_BF16),
        ({}, "auto", "aarch64", NO_BF16),
        ({"avx512_bf16": True, "amx_bf16": False}, "off", "x86_64", None),
        ({"avx512_bf16": True, "amx_bf16": True}, "off", "x86_64", None),
        ({"avx512_bf16": False, "amx_bf16": False}, "off", "AMD64", NO_BF16),
        ({}, "off", "aarch64", None),  # not known
    ],
)
def test_bf16_on_a_cpu_that_gains_nothing_is_told_once(
    able, kernels, machine, why, said, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(devices.platform, "machine", lambda: machine)
    monkeypatch.setenv("JUKESEP_KERNELS", kernels)
    devices.set_precision("fp32", torch.device("cpu"))
    assert said() == ""
    for _ in range(2):
        devices.set_precision("bf16", torch.device("cpu"))
    line = f"jukesep: precision=bf16 is not faster than fp32 here: {why}. Use fp32.\n"
    assert said() == (line if why else "")


def test_pytorch_names_what_a_processor_can_do():
    """`get_capabilities` has the names that are looked for, and numba's compiler agrees."""
    llvm = pytest.importorskip("llvmlite.binding").get_host_cpu_features()
    able = torch.cpu.get_capabilities()
    if able["architecture"] == "x86_64":
        for ours, theirs in (("avx512_bf16", "avx512bf16"), ("amx_bf16", "amx-bf16")):
            assert able[ours] == llvm.get(theirs, False)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_a_gpu_that_gains_nothing_is_told(precision, capability, said, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    devices.set_precision(precision, torch.device("cuda"))
    line = (
        f"jukesep: precision={precision} is not faster than fp32 here: Tesla T4 is older than "
        "NVIDIA's Ampere. Use fp32.\n"
    )
    assert said() == (line if capability < (8, 0) else "")


def test_more_threads_than_cores_are_told(said, monkeypatch):
    monkeypatch.setattr(devices, "cores", lambda: 2)
    devices.choose("cpu", 2)
    assert said() == ""
    devices.choose("cpu", 3)
    assert said() == "jukesep: threads=3 gains nothing on 2 cores. Use at most 2.\n"
    assert torch.get_num_threads() == 2  # as many as make sense: huge numbers end the process


def test_kernels_that_are_off_are_told(said, monkeypatch):
    devices.choose("cpu")
    assert said() == ""
    monkeypatch.setenv("JUKESEP_KERNELS", "off")
    devices.choose("cpu")
    line = "jukesep: JUKESEP_KERNELS=off: plain PyTorch computes, slower than the kernels.\n"
    assert said() == line


@pytest.mark.parametrize("env", [{}, {"TORCHELASTIC_RUN_ID": "1", "RANK": "0"}, {"RANK": "1"}])
def test_the_first_process_speaks(env, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert progress.speaks()


def test_other_ranks_and_child_processes_stay_quiet(monkeypatch):
    monkeypatch.setattr(progress.multiprocessing, "parent_process", lambda: "parent")
    assert not progress.speaks()
    monkeypatch.undo()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", "1")
    assert not progress.speaks()
