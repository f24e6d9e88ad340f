"""The compiled search against its definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jukesep.kernels.cpu import codebook as kernel
from jukesep.model.codebook import nearest


def test_memory_is_bounded_by_the_chunk(monkeypatch):
    k, latents = torch.randn(96, 4), torch.randn(2, 4, 333)
    whole = kernel.nearest(latents, k)
    sizes = []
    search = kernel._first_smallest

    def spy(products, *rest):
        sizes.append(products.size)
        return search(products, *rest)

    monkeypatch.setattr(kernel, "_first_smallest", spy)
    monkeypatch.setattr(kernel, "CHUNK", 1000)
    assert torch.equal(kernel.nearest(latents, k), whole)
    assert max(sizes) <= 1000
    assert sum(sizes) == 96 * 2 * 333


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 200),
    codes=st.integers(1, 70),
    dim=st.integers(1, 5),
    chunk=st.sampled_from([1, 500, 2**18]),
    broken=st.sampled_from([None, math.nan, math.inf, -math.inf]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_compiled_search_is_the_definition(batch, length, codes, dim, chunk, broken, seed):
    """Of whole numbers, for which float32 is exact and ties are common."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.randint(-2, 3, (codes, dim), generator=generator).float()
    latents = torch.randint(-2, 3, (batch, dim, length), generator=generator).float()
    if broken is not None:
        latents[-1, -1, length // 2] = broken
        k[codes // 2, 0] = broken
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "CHUNK", chunk)
        found = kernel.nearest(latents, k)
    assert torch.equal(found, nearest(latents, k))
