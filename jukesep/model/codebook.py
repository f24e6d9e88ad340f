"""The codebook: nearest-code quantising, and updates by exponential moving averages.

No gradient reaches the codebook. A training step quantises with the current codes and then calls
`update`. With several processes, counts and sums are summed over all of them, so that each has
the same codebook as one process with the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .. import kernels
from ..base.errors import UserError
from . import distributed

CHUNK = 2**26
"""Distances that `nearest` computes at a time."""
NO_LATENTS = 1e-30
"""A moving count this small is none: the sum that belongs to it has lost its precision."""


@dataclass(frozen=True)
class CodebookStats:
    """Statistics of one update."""

    usage: int
    """Codes whose moving count is at least the revival threshold."""
    perplexity: float
    """exp(entropy) of the batch's codes: the effective number of codes in the batch."""
    revived: int
    """Codes replaced by a random latent of the batch."""


class Codebook(nn.Module):
    """`codes` vectors of `dim` numbers, and the moving sums and counts they are computed from.

    Empty until `initialise` (from data), `restore` (from a file) or `load_state_dict`.
    """

    k: Tensor
    k_sum: Tensor
    k_elem: Tensor
    _initialised: Tensor

    def __init__(
        self, codes: int, dim: int, decay: float = 0.99, revival_threshold: float = 1.0
    ) -> None:
        super().__init__()
        self.decay = decay
        self.revival_threshold = revival_threshold
        self.register_buffer("k", torch.zeros(codes, dim))
        self.register_buffer("k_sum", torch.zeros(codes, dim))
        self.register_buffer("k_elem", torch.zeros(codes))
        self.register_buffer("_initialised", torch.tensor(False))

    @property
    def initialised(self) -> bool:
        """Whether the codebook holds codes; part of the state dict."""
        return bool(self._initialised)

    @torch.no_grad()
    def quantise(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest code of each latent, the first one on ties, always in float32.

        latents (B, dim, N) -> codes (B, N) int64, quantised (B, dim, N) float32: the rows k[codes].
        The distances take a fixed amount of memory for any N.
        """
        with _float32_arithmetic(latents.device):
            codes = kernels.nearest(latents.detach().float(), self.k, plain=nearest)
        return codes, self.lookup(codes)

    @torch.no_grad()
    def expected(self, latents: Tensor, temperature: float) -> Tensor:
        """The mean of the codes, weighted by softmax(-|latent - code|^2 / temperature) over codes.

        latents (B, dim, N) -> (B, dim, N) float32. As the temperature falls to 0, this becomes the
        nearest code. Computed in chunks, as `nearest`.
        """
        rows = _rows(latents)
        means = torch.empty_like(rows)
        chunk = max(1, CHUNK // len(self.k))
        norms = self.k.square().sum(1)
        with _float32_arithmetic(latents.device):
            for start in range(0, len(rows), chunk):
                part = slice(start, start + chunk)
                distances = torch.addmm(norms, rows[part], self.k.T, alpha=-2)
                means[part] = torch.softmax(distances / -temperature, 1) @ self.k
        return means.unflatten(0, (len(latents), -1)).transpose(1, 2)

    def lookup(self, codes: Tensor) -> Tensor:
        """codes (B, N) -> their vectors (B, dim, N), in memory channels last."""
        return self.k[codes].transpose(1, 2)

    @torch.no_grad()
    def initialise(self, latents: Tensor, generator: torch.Generator | None = None) -> None:
        """Start from data: random latents (B, dim, N) of the first batch, each counted once."""
        self.k.copy_(self._draw(_rows(latents), generator))
        self.k_sum.copy_(self.k)
        self.k_elem.fill_(1)
        self._initialised.fill_(True)

    @torch.no_grad()
    def restore(self, k: Tensor, usage: float) -> None:
        """Start from a file's codes `k` (codes, dim), which lack their moving averages.

        Each code is assumed to have won `usage` latents per step (`jukebox.restored_usage`).
        Without this weight the first update would replace them all.
        UserError if `k` has another shape.
        """
        if k.shape != self.k.shape:
            raise UserError(
                f"codebook: the codes have shape {tuple(k.shape)}, "
                f"but this model takes {tuple(self.k.shape)}."
            )
        self.k.copy_(k)
        self.k_sum.copy_(self.k * usage)
        self.k_elem.fill_(usage)
        self._initialised.fill_(True)

    @torch.no_grad()
    def update(
        self, latents: Tensor, codes: Tensor, generator: torch.Generator | None = None
    ) -> CodebookStats:
        """Move each code to the moving mean of its latents; replace codes with too few latents.

        `latents` (B, dim, N) and `codes` (B, N) come from the training step; all processes have
        equally many. Replaced ("revived") codes become random latents from any process. Every
        step draws from the generator, even if no code needs it.
        """
        rows = _rows(latents)
        flat = codes.reshape(-1)
        counts = torch.bincount(flat, minlength=len(self.k))
        sums = kernels.sums(rows, flat, counts, plain=sums_of_codes)
        counts = distributed.sum_(counts.to(rows.dtype))
        distributed.sum_(sums)
        substitutes = self._draw(rows, generator)

        self.k_sum.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self.k_elem.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        alive = self.k_elem >= self.revival_threshold
        # With a threshold of (almost) 0, a code may have no latents left: it stays where it is.
        means = torch.where(
            self.k_elem[:, None] > NO_LATENTS, self.k_sum / self.k_elem[:, None], self.k
        )
        # A revival sets only k: the code is drawn again in each step until its count recovers.
        self.k.copy_(torch.where(alive[:, None], means, substitutes))

        shares = counts / counts.sum()
        # One transfer from the device for both.
        usage, entropy = torch.stack([alive.sum(), torch.special.entr(shares).sum()]).tolist()
        return CodebookStats(
            usage=int(usage), perplexity=math.exp(entropy), revived=len(self.k) - int(usage)
        )

    def _draw(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        """One random row per code, all different if there are enough rows.

        Draws from the rows of all processes in the order of their ranks, and so the same rows as
        one process with the whole batch.
        """
        total = len(rows) * distributed.world_size()
        order = _different(len(self.k), total, generator).to(rows.device)
        if total == len(rows):
            return rows[order]
        order = distributed.first_(order) - distributed.rank() * len(rows)
        here = (order >= 0) & (order < len(rows))
        drawn = torch.zeros_like(self.k)
        drawn[here] = rows[order[here]]
        return distributed.sum_(drawn)


def _different(count: int, total: int, generator: torch.Generator | None) -> Tensor:
    """`count` random integers below `total`, all different if `total` allows it."""
    device = generator.device if generator is not None else torch.device("cpu")
    draw = partial(torch.randint, total, (count,), generator=generator, device=device)
    if total < 32 * count:
        order = torch.randperm(total, generator=generator, device=device)
        return order.repeat(math.ceil(count / total))[:count]
    # Shuffling all of them would take milliseconds, and a GPU would wait.
    found: dict[int, None] = {}
    while len(found) < count:
        found |= dict.fromkeys(draw().tolist())
    return torch.tensor(list(found)[:count])


def straight_through(latents: Tensor, quantised: Tensor) -> Tensor:
    """The quantised latents; their gradient passes to `latents` unchanged."""
    return latents + (quantised - latents).detach()


def nearest(latents: Tensor, k: Tensor) -> Tensor:
    """The nearest code of each latent, first on ties: (B, dim, N), (codes, dim) -> (B, N) int64."""
    rows = _rows(latents)
    codes = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    chunk = max(1, CHUNK // len(k))
    norms = k.square().sum(1)
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        # |x - k|^2 without |x|^2, which is the same for all codes.
        distances = torch.addmm(norms, part, k.T, alpha=-2)
        codes[start : start + chunk] = distances.argmin(1)
    return codes.view(len(latents), -1)


def sums_of_codes(rows: Tensor, codes: Tensor, counts: Tensor) -> Tensor:
    """The sum of the rows of each code: (N, dim), (N,), (codes,) -> (codes, dim)."""
    return rows.new_zeros(len(counts), rows.shape[1]).index_add_(0, codes, rows)


def _rows(latents: Tensor) -> Tensor:
    """(B, dim, N) -> (B * N, dim), float32, without gradient."""
    # Contiguous also for a batch of one: rows are read one at a time.
    return latents.detach().float().transpose(1, 2).flatten(0, 1).contiguous()


@contextmanager
def _float32_arithmetic(device: torch.device) -> Iterator[None]:
    """Full float32 matrix products even under autocast or TF32, which would change near ties."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
