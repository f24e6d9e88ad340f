"""Adam as in Jukebox, on all parameters at once.

Jukebox adds eps before the bias correction of the second moment, torch.optim.Adam after it: they
only differ for parameters with vanishing gradients. torch.optim.Adam also imports PyTorch's
compiler, which takes seconds in each process.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

BETAS = 0.9, 0.999
EPS = 1e-8


def as_one(parameters: Iterable[Tensor]) -> Tensor:
    """Move parameters into one vector and return it; each parameter becomes a view of it.

    One operation on the vector is faster than one on each of a hundred small tensors.
    """
    parameters = list(parameters)
    values = torch.cat([parameter.detach().flatten() for parameter in parameters])
    for parameter, part in _parts(parameters, values):
        parameter.data = part
    return values


class Adam:
    """m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, p -= rate sqrt(1-b2^t)/(1-b1^t) m/(sqrt(v)+eps).

    Kingma and Ba, "Adam", section 2, last paragraph: the efficient order of the computation.
    `values` and `gradients` are vectors of all parameters, in their order. A parameter without a
    gradient counts as one with gradient zero.

    The gradients are concatenated after each backward pass: on a GPU that is faster than to
    accumulate each of a hundred gradients into a vector.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.steps = 0
        self.parameters = list(parameters)
        self.values = as_one(self.parameters)
        self.means, self.squares = (torch.zeros_like(self.values) for _ in range(2))
        self._gradients: Tensor | None = None

    @property
    def gradients(self) -> Tensor:
        """All gradients as one vector. After its first use, the parameters' are views of it."""
        if self._gradients is None:
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
            self._gradients = torch.cat([grad.flatten() for grad in grads])
            for parameter, part in _parts(self.parameters, self._gradients):
                parameter.grad = part
        return self._gradients

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._gradients = None
        for parameter in self.parameters:
            parameter.grad = None

    def clip(self, largest: float) -> Tensor:
        """Scale the gradients down to a norm of at most `largest`; return their norm before.

        As torch.nn.utils.clip_grad_norm_.
        """
        norm = torch.linalg.vector_norm(self.gradients)
        self.gradients.mul_(torch.clamp(largest / (norm + 1e-6), max=1.0))
        return norm

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Take one step with learning rate `rate`."""
        self.steps += 1
        first, second = BETAS
        self.means.lerp_(self.gradients, 1 - first)
        self.squares.mul_(second).addcmul_(self.gradients, self.gradients, value=1 - second)
        denominators = self.squares.sqrt().add_(EPS)
        size = rate * (1 - second**self.steps) ** 0.5 / (1 - first**self.steps)
        self.values.addcdiv_(self.means, denominators, value=-size)


def _parts(parameters: list[Tensor], vector: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Pair each parameter with its part of a vector, in the parameter's shape."""
    sizes = [parameter.numel() for parameter in parameters]
    parts = vector.split(sizes)
    return ((p, part.view_as(p)) for p, part in zip(parameters, parts, strict=True))
