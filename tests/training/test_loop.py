"""The one loop, on both of its tasks."""

import math
from pathlib import Path

import pytest
import torch
from tiny import (
    ARCHITECTURE,
    make_recipe,
    matching,
    reconstruction,
    run_training,
)

from jukesep.base.errors import UserError
from jukesep.model import jukebox
from jukesep.model.vqvae import Encoder
from jukesep.training.loop import learning_rate
from jukesep.training.optimiser import Adam
from jukesep.training.segments import Segments

pytestmark = pytest.mark.usefixtures("entered")


@pytest.mark.parametrize("task", [reconstruction, matching])
def test_the_same_seed_gives_the_same_bits(songs, tmp_path, task):
    logs = [run_training(task(), songs, Path(name)) for name in "ab"]
    assert logs[0] == logs[1]
    files = sorted((tmp_path / "a").rglob("*.*"))
    assert [f.name for f in files] == ["3.pt", "6.pt", "log.csv"]
    for file in files:
        other = tmp_path / "b" / file.relative_to(tmp_path / "a")
        assert file.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("task", [reconstruction, matching])
def test_the_loss_falls(songs, task):
    recipe = make_recipe(steps=60, log_every=10, valid_every=30, weight_ema=0.9)
    log = run_training(task(), songs, Path("run"), recipe, [])
    assert float(log[-1]["loss"]) < 0.7 * float(log[0]["loss"])
    assert float(log[-1]["valid_loss"]) < 1.2 * float(log[-1]["loss"])


def test_the_log_has_every_column_at_its_interval(songs, tmp_path):
    log = run_training(reconstruction(), songs, Path("run"), make_recipe(steps=7))
    assert list(log[0]) == [
        "step", "loss", "l2", "linf", "multispectral", "commit",
        "usage", "perplexity", "revived", "grad_norm", "lr", "valid_loss",
    ]  # fmt: skip
    assert [row["step"] for row in log] == ["2", "3", "4", "6", "7"]
    assert [bool(row["valid_loss"]) for row in log] == [False, True, False, True, True]
    for row in log:
        terms = {name: float(row[name]) for name in ("l2", "linf", "multispectral", "commit")}
        total = terms["l2"] + 0.02 * terms["linf"] + terms["multispectral"] + 0.02 * terms["commit"]
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)
    (timing,) = (path.read_text() for path in Path("trainings").glob("*/timing.csv"))
    assert timing.startswith("step,seconds,steps_per_second\n2,")


def test_checkpoints_hold_averaged_weights_and_the_live_codebook(songs, tmp_path):
    task = reconstruction()
    start = {name: value.clone() for name, value in task.model.named_parameters()}
    # One step with full rate, averaged half and half with the start.
    recipe = make_recipe(steps=2, warmup=0, weight_ema=0.5)
    run_training(task, songs, Path("run"), recipe, [1, 2])
    first = dict(jukebox.load_jukebox("run/checkpoints/1.pt").named_parameters())
    second = jukebox.load_jukebox("run/checkpoints/2.pt")
    last = dict(task.model.named_parameters())
    for name, value in second.named_parameters():
        torch.testing.assert_close(value, (first[name] + last[name]) / 2)
        assert not torch.equal(start[name], first[name])
    torch.testing.assert_close(second.codebook.k, task.model.codebook.k)
    assert jukebox.read_hps("run/checkpoints/2.pt")["seed"] == 0


def test_stage_2_trains_the_new_encoder_alone(songs, tmp_path):
    task = matching()
    before = {name: value.clone() for name, value in task.stage1.state_dict().items()}
    encoder = {name: value.clone() for name, value in task.model.encoder.state_dict().items()}
    run_training(task, songs)
    for name, value in task.stage1.state_dict().items():
        assert torch.equal(value, before[name])
    after = task.model.encoder.state_dict()
    assert not any(torch.equal(after[name], value) for name, value in encoder.items())


def test_the_published_codes_loss_of_stage_2_weighs_the_largest_errors(songs):
    plain, both = matching(), matching(loss="mse_linf")
    batch = torch.stack([Segments(songs, ("mixture", "vocals"), 2048, 0, "x")[0]])
    target = both.stage1.encode(batch[:, 1:])
    errors = (both.model(batch[:, :1]) - target).square().flatten()
    assert len(errors) > 2048
    mean, largest = errors.mean(), errors.sort(descending=True).values[:2048].mean()
    torch.testing.assert_close(plain.loss(plain.prepare(batch), 0)[0], mean)
    torch.testing.assert_close(both.loss(both.prepare(batch), 0)[0], mean + 0.02 * largest)
    with torch.no_grad():
        assert both.validation_loss(both.model, both.prepare(batch)) > float(mean)

    log = run_training(both, songs)
    for row in log:
        total = float(row["l2"]) + 0.02 * float(row["linf"])
        assert float(row["loss"]) == pytest.approx(total, rel=1e-5)
    assert "linf" not in run_training(plain, songs, Path("plain"))[0]


def test_without_weight_average_checkpoints_hold_the_last_weights(songs):
    task = matching()
    run_training(task, songs, recipe=make_recipe(weight_ema=0.0))
    saved = dict(jukebox.load_encoder("run/checkpoints/6.pt").named_parameters())
    for name, value in task.model.encoder.named_parameters():
        assert torch.equal(saved[name], value)


def test_the_gradient_is_clipped_to_the_norm_of_the_recipe(songs, monkeypatch):
    task, norms = reconstruction(), []
    step = Adam.step

    def spy(adam, rate):
        norms.append(float(torch.stack([p.grad.norm() for p in task.model.parameters()]).norm()))
        step(adam, rate)

    monkeypatch.setattr(Adam, "step", spy)
    log = run_training(task, songs, recipe=make_recipe(clip=0.01))
    assert all(float(row["grad_norm"]) > 0.1 for row in log)
    assert norms == pytest.approx([0.01] * 6, rel=1e-3)


def test_validating_changes_nothing(songs, tmp_path):
    plain = run_training(reconstruction(), songs, Path("a"), make_recipe(valid_every=100))
    often = run_training(reconstruction(), songs, Path("b"), make_recipe(valid_every=1))
    assert len(often) == 6
    assert len(plain) == 3
    a = jukebox.load_jukebox(tmp_path / "a/checkpoints/6.pt").state_dict()
    b = jukebox.load_jukebox(tmp_path / "b/checkpoints/6.pt").state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("where", ["encoder", "decoder"])
def test_a_loss_that_is_not_finite_stops_and_names_step_and_term(songs, tmp_path, where):
    task = reconstruction()
    clean = task.loss

    def poisoned(batch, step):
        if step == 2:
            part = getattr(task.model, where)
            next(part.parameters()).data.fill_(math.nan)
        return clean(batch, step)

    task.loss = poisoned
    with pytest.raises(UserError, match=r"test run: 'l2' is nan at step 2"):
        run_training(task, songs)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_gradient_that_is_not_finite_stops_too(songs, tmp_path):
    task = matching()
    clean = task.loss

    def steep(batch, step):
        total, terms = clean(batch, step)
        weight = next(task.model.parameters())
        # Finite value, infinite slope: sqrt at zero.
        return total + (weight.sum() - weight.sum().detach()).abs().sqrt() * (step == 1), terms

    task.loss = steep
    with pytest.raises(UserError, match="gradient norm"):
        run_training(task, songs)


def test_the_rate_warms_up_from_zero_and_then_stays_or_decays():
    paper = make_recipe(steps=1000, learning_rate=3e-4, warmup=100)
    assert [learning_rate(paper, s) for s in (0, 1, 50, 100, 999)] == pytest.approx(
        [0, 3e-6, 1.5e-4, 3e-4, 3e-4]
    )
    cosine = make_recipe(steps=1000, learning_rate=1.0, warmup=0, final_rate=0.1)
    assert [learning_rate(cosine, s) for s in (0, 500, 1000)] == pytest.approx([1, 0.55, 0.1])


def test_an_empty_codebook_starts_from_the_first_batch(songs, tmp_path):
    task = reconstruction()
    assert not task.model.codebook.initialised
    batch = torch.stack([Segments(songs, ("vocals",), 2048, 0, "x")[0]])
    task.loss(task.prepare(batch), 0)
    latents = task.model.encode(batch)[0].T
    assert task.model.codebook.initialised
    distance = torch.cdist(task.model.codebook.k, latents).amin(1)
    assert distance.max() < 1.0


def test_parameters_become_one_vector_and_stay_themselves(songs):
    module = Encoder(ARCHITECTURE)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    adam = Adam(module.parameters())
    assert sum(value.numel() for value in before.values()) == len(adam.values)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    module(torch.randn(1, 1, 64)).square().sum().backward()
    assert adam.gradients.abs().sum() > 0
    adam.values.zero_()
    assert not any(parameter.any() for parameter in module.parameters())


def test_a_parameter_without_gradient_stays():
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    adam = Adam([used, unused])
    for _ in range(3):
        adam.zero_grad()
        used.sum().backward()
        adam.step(0.1)
    assert torch.equal(unused, torch.ones(2))
    torch.testing.assert_close(used, torch.full((3,), 0.7))


def test_clipping_is_pytorchs():
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (5,))]
    copies = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    adam = Adam(weights)
    for parameters in (weights, copies):
        sum((parameter**3).sum() for parameter in parameters).backward()
    norm = adam.clip(0.5)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(copies, 0.5))
    for weight, copy in zip(weights, copies, strict=True):
        torch.testing.assert_close(weight.grad, copy.grad)
