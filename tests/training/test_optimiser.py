"""Adam and its clipping, against PyTorch's; tests/model/test_golden.py has Jukebox's eps."""

import pytest
import torch

from jukesep.training.optimiser import Adam


@pytest.mark.parametrize("size", [0.01, 0.5, 2.0, 100.0])
def test_gradients_are_scaled_down_and_never_up(size):
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.zeros(3, 4)) for _ in range(2)] for _ in range(2))
    for one, other in zip(ours, theirs, strict=True):
        one.grad = torch.randn(3, 4)
        one.grad *= size / one.grad.norm() / 2**0.5
        other.grad = one.grad.clone()
    norm = Adam(ours).clip(1.0)
    torch.testing.assert_close(norm, torch.tensor(size))
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    total = torch.cat([one.grad.flatten() for one in ours]).norm()
    assert float(total) == pytest.approx(min(size, 1.0), rel=1e-4)


def test_steps_are_those_of_pytorch_with_the_usual_decays():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(50)) for _ in range(2))
    adam, library = Adam([ours]), torch.optim.Adam([theirs], lr=0.01)
    for step in range(20):
        # Of changing size, so that the decay of the squares shows.
        gradient = torch.randn(50) * (1 + step % 5)
        adam.zero_grad()
        ours.grad, theirs.grad = gradient.clone(), gradient
        adam.step(0.01)
        library.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (ours - 1).abs().min() > 1e-4
