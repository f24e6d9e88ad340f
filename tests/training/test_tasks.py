"""What a step draws depends on the seed and the step."""

import torch
from tiny import reconstruction

from jukesep.model.codebook import Codebook


def _codes(seed, step):
    """The codebook after one loss: latents of the batch, in the order in which they are drawn."""
    task = reconstruction(seed=0)
    task.seed = seed
    task.model.codebook = Codebook(16, 8, revival_threshold=1e9)
    batch = torch.randn(2, 1, 2048, generator=torch.Generator().manual_seed(1))
    task.loss(task.prepare(batch), step)
    return task.model.codebook.k


def test_each_step_of_each_seed_draws_other_latents():
    names = [(0, 0), (0, 1), (0, 2), (1, 1)]
    found = [_codes(*name) for name in names]
    for number, one in enumerate(found):
        assert torch.equal(one, _codes(*names[number]))
        assert not any(torch.equal(one, other) for other in found[:number])
