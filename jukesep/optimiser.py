"""Adam as Jukebox computes it.

torch.optim.Adam adds eps after the second moment's bias correction, Jukebox before: the same but
for parameters with vanishing gradients. (torch's also imports its compiler, seconds a process.)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class Adam:
    """m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2, p -= rate sqrt(1-b2^t)/(1-b1^t) m/(sqrt(v)+eps).

    Kingma and Ba, "Adam", section 2, last paragraph: the efficient order of the computation.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters = list(parameters)
        self.betas = betas
        self.eps = eps
        self.steps = 0
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step at a learning rate; a parameter without gradient stays."""
        self.steps += 1
        first, second = self.betas
        moved = [
            state
            for state in zip(self.parameters, self.means, self.squares, strict=True)
            if state[0].grad is not None
        ]
        parameters, means, squares = (list(column) for column in zip(*moved, strict=True))
        gradients = [parameter.grad for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_add_(denominators, self.eps)
        size = rate * (1 - second**self.steps) ** 0.5 / (1 - first**self.steps)
        torch._foreach_addcdiv_(parameters, means, denominators, -size)
