"""The codebook against a naive one, and what its rules promise."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from jukesep.base.errors import UserError
from jukesep.model import codebook as module
from jukesep.model.codebook import Codebook, straight_through

SEED = st.integers(0, 2**32 - 1)


def filled(codes: int, dim: int, seed: int = 0, usage: float = 5.0) -> Codebook:
    codebook = Codebook(codes, dim)
    codebook.restore(torch.randn(codes, dim, generator=generator(seed)), usage)
    return codebook


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(latents: torch.Tensor) -> np.ndarray:
    return latents.transpose(1, 2).reshape(-1, latents.shape[1]).numpy()


def whole_numbers(batch, length, codes, dim, seed) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and codes for which float32 is exact, and ties are common."""
    k = torch.randint(-2, 3, (codes, dim), generator=generator(seed)).float()
    return torch.randint(-2, 3, (batch, dim, length), generator=generator(seed + 1)).float(), k


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    codes=st.integers(1, 70),
    dim=st.integers(1, 5),
    seed=SEED,
)
def test_quantise_finds_what_a_naive_search_finds(batch, length, codes, dim, seed) -> None:
    latents, k = whole_numbers(batch, length, codes, dim, seed)
    codebook = Codebook(codes, dim)
    codebook.restore(k, 1.0)

    found, quantised = codebook.quantise(latents)

    k = codebook.k.numpy()
    distances = ((rows_of(latents)[:, None] - k[None]) ** 2).sum(2)
    expected = distances.argmin(1).reshape(batch, length)  # numpy: the first on ties
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(quantised, k[expected].transpose(0, 2, 1))


@settings(deadline=None, max_examples=60)
@given(
    codes=st.integers(1, 20),
    length=st.integers(1, 60),
    threshold=st.floats(0.01, 3.0),
    usage=st.floats(0.1, 4.0),
    seed=SEED,
)
def test_update_is_the_naive_moving_average(codes, length, threshold, usage, seed) -> None:
    codebook = filled(codes, 3, seed, usage)
    codebook.revival_threshold = threshold
    k, k_sum, k_elem = (t.double().numpy() for t in (codebook.k, codebook.k_sum, codebook.k_elem))
    latents = torch.randn(2, 3, length, generator=generator(seed + 1))
    found, _ = codebook.quantise(latents)

    stats = codebook.update(latents, found, generator(seed + 2))

    rows, won = rows_of(latents), found.flatten().numpy()
    k_sum, k_elem, expected = 0.99 * k_sum, 0.99 * k_elem, np.full_like(k, np.nan)
    for row, code in zip(rows, won, strict=True):
        k_sum[code] += 0.01 * row
        k_elem[code] += 0.01
    np.testing.assert_allclose(codebook.k_sum, k_sum, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(codebook.k_elem, k_elem, rtol=1e-5)
    alive = (codebook.k_elem >= threshold).numpy()
    expected[alive] = (k_sum / k_elem[:, None])[alive]
    np.testing.assert_allclose(codebook.k[alive], expected[alive], rtol=1e-4, atol=1e-5)
    for revived in codebook.k[~alive].numpy():
        assert (rows == revived).all(1).any()

    shares = np.bincount(won, minlength=codes) / len(won)
    entropy = -sum(p * np.log(p) for p in shares if p)
    assert (stats.usage, stats.revived) == (alive.sum(), codes - alive.sum())
    assert stats.perplexity == pytest.approx(np.exp(entropy), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 3.0, 50.0])
def test_the_expected_code_is_the_naive_mean(monkeypatch, temperature) -> None:
    codebook, latents = filled(96, 4), torch.randn(2, 4, 333, generator=generator(1))
    monkeypatch.setattr(module, "CHUNK", 96 * 50)  # several chunks

    found = codebook.expected(latents, temperature)

    rows, k = rows_of(latents).astype(float), codebook.k.double().numpy()
    weights = np.exp(-((rows[:, None] - k[None]) ** 2).sum(2) / temperature)
    expected = weights @ k / weights.sum(1, keepdims=True)
    expected = expected.reshape(2, 333, 4).transpose(0, 2, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_cold_the_expected_code_is_the_nearest() -> None:
    codebook, latents = filled(96, 4), torch.randn(2, 4, 50, generator=generator(1))
    torch.testing.assert_close(codebook.expected(latents, 1e-6), codebook.quantise(latents)[1])


def test_the_first_of_equal_codes_wins() -> None:
    codebook = filled(64, 4)
    codebook.k[40] = codebook.k[7]
    codebook.k[8] = codebook.k[7]
    found, _ = codebook.quantise(codebook.k[[40, 8, 7]].T[None])
    assert found.tolist() == [[7, 7, 7]]


def test_memory_is_bounded_by_the_chunk(monkeypatch) -> None:
    codebook, latents = filled(96, 4), torch.randn(2, 4, 333, generator=generator(1))
    whole = module.nearest(latents, codebook.k)
    sizes = []
    found = torch.addmm

    def spy(*factors, alpha):
        distances = found(*factors, alpha=alpha)
        sizes.append(distances.numel())
        return distances

    monkeypatch.setattr(torch, "addmm", spy)
    monkeypatch.setattr(module, "CHUNK", 1000)
    assert torch.equal(module.nearest(latents, codebook.k), whole)
    assert max(sizes) <= 1000
    assert sum(sizes) == 96 * 2 * 333


def test_the_search_finds_the_same_for_any_number_of_threads() -> None:
    codebook, latents = filled(512, 64), torch.randn(2, 64, 2000, generator=generator(1))
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(codebook.quantise(latents)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_quantise_stays_float32_under_autocast_and_reduced_precision() -> None:
    codebook, latents = filled(256, 16), torch.randn(1, 16, 500, generator=generator(1))
    expected, _ = codebook.quantise(latents)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, quantised = codebook.quantise(latents)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found, expected)
    assert quantised.dtype == torch.float32


def test_quantising_leaves_the_codebook_and_the_gradient_alone() -> None:
    codebook, latents = filled(8, 3), torch.randn(2, 3, 10, requires_grad=True)
    before = codebook.k.clone()
    _, quantised = codebook.quantise(latents)
    assert not quantised.requires_grad
    assert torch.equal(codebook.k, before)

    passed = straight_through(latents, quantised)
    torch.testing.assert_close(passed, quantised)
    gradient = torch.randn(passed.shape)
    passed.backward(gradient)
    assert torch.equal(latents.grad, gradient)


def test_initialise_takes_different_latents_of_the_batch() -> None:
    codebook, latents = Codebook(12, 3), torch.randn(2, 3, 10, generator=generator(1))
    assert not codebook.initialised
    codebook.initialise(latents, generator(2))
    assert codebook.initialised
    rows = {tuple(row) for row in rows_of(latents)}
    drawn = {tuple(row) for row in codebook.k.numpy()}
    assert drawn < rows
    assert len(drawn) == 12
    assert torch.equal(codebook.k_sum, codebook.k)
    assert torch.equal(codebook.k_elem, torch.ones(12))

    again = Codebook(12, 3)
    again.initialise(latents, generator(2))
    assert torch.equal(again.k, codebook.k)


def test_a_batch_smaller_than_the_codebook_is_used_several_times() -> None:
    codebook, latents = Codebook(10, 3), torch.randn(1, 3, 4, generator=generator(1))
    codebook.initialise(latents, generator(2))
    assert {tuple(row) for row in codebook.k.numpy()} == {tuple(row) for row in rows_of(latents)}


def test_a_revived_code_is_drawn_again_until_its_count_recovers() -> None:
    codebook, latents = filled(4, 2, usage=2.0), torch.randn(1, 2, 400, generator=generator(1))
    codebook.k[3], codebook.k_sum[3], codebook.k_elem[3] = 1e3, 0.0, 0.0  # far from all
    found, _ = codebook.quantise(latents)
    codebook.update(latents, found, generator(2))
    first = codebook.k[3].clone()
    assert codebook.k_elem[3] == 0
    assert codebook.k_sum[3].eq(0).all()
    codebook.update(latents, torch.zeros_like(found), generator(3))
    assert not torch.equal(codebook.k[3], first)

    for seed in range(4, 30):
        found, _ = codebook.quantise(latents)
        revived = codebook.update(latents, found, generator(seed)).revived
    assert revived == 0


def test_state_dict_carries_the_whole_codebook() -> None:
    codebook, latents = filled(6, 2), torch.randn(1, 2, 30, generator=generator(1))
    codebook.update(latents, codebook.quantise(latents)[0], generator(2))
    other = Codebook(6, 2)
    other.load_state_dict(codebook.state_dict())
    assert other.initialised
    for name, buffer in codebook.named_buffers():
        assert torch.equal(other.get_buffer(name), buffer)


def test_restore_names_both_shapes() -> None:
    with pytest.raises(UserError, match=r"\(4, 2\).*\(6, 2\)"):
        Codebook(6, 2).restore(torch.zeros(4, 2), 1.0)


def update_in_process(rank: int, folder: Path, latents: torch.Tensor) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=len(latents))
    mine = latents[rank : rank + 1]

    averaged = filled(24, 3, usage=2.0)
    averaged.update(mine, averaged.quantise(mine)[0], generator(rank))

    revived = Codebook(24, 3)
    revived.initialise(mine, generator(rank))
    for step in range(3):
        revived.update(mine, revived.quantise(mine)[0], generator(10 * step + rank))

    torch.save([averaged.state_dict(), revived.state_dict()], folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_processes_hold_the_codebook_of_the_whole_batch(tmp_path: Path) -> None:
    latents = torch.randn(2, 3, 50, generator=generator(1))
    # Forked where that is the system's way: a process that is spawned imports torch first.
    start = "fork" if sys.platform == "linux" else "spawn"
    torch.multiprocessing.start_processes(
        update_in_process, (tmp_path, latents), nprocs=2, start_method=start
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for ours, theirs in zip(first, second, strict=True):
        for name in ours:
            assert torch.equal(ours[name], theirs[name])

    whole = filled(24, 3, usage=2.0)
    whole.update(latents, whole.quantise(latents)[0])
    for name, buffer in whole.state_dict().items():
        torch.testing.assert_close(first[0][name], buffer)


@pytest.mark.parametrize(("count", "total"), [(5, 3), (5, 159), (5, 160), (64, 10_000)])
def test_rows_drawn_are_all_different_while_there_are_enough(count, total):
    drawn = module._different(count, total, torch.Generator().manual_seed(0))
    again = module._different(count, total, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    assert len(drawn) == count
    assert len(set(drawn.tolist())) == min(count, total)
    assert 0 <= drawn.min() <= drawn.max() < total


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_without_revival_a_code_that_lost_all_latents_stays_where_it_is(decay):
    """Its count falls below the smallest number: it has no mean."""
    codebook = Codebook(2, 3, decay, revival_threshold=0.0)
    far = torch.full((3,), 9.0)
    codebook.restore(torch.stack([torch.zeros(3), far]), 1.0)
    latents = 0.1 * torch.randn(1, 3, 8)
    for _ in range(300):
        stats = codebook.update(latents, codebook.quantise(latents)[0])
        torch.testing.assert_close(codebook.k[1], far)
    assert (stats.usage, stats.revived) == (2, 0)
    torch.testing.assert_close(codebook.k[0], latents[0].mean(1))
