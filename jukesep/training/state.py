"""All that the next step of a training depends on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..base.errors import UserError
from .optimiser import Adam, as_one


class Block:
    """Means over the steps between two rows of the log."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        return {name: total / self.count for name, total in self.sums.items()}


@dataclass
class State:
    """The model and its optimiser, its average (also as one vector), the block of the log."""

    model: nn.Module
    averaged: nn.Module
    average: torch.Tensor
    optimiser: Adam
    block: Block = field(default_factory=Block)
    step: int = 0

    @classmethod
    def initial(cls, model: nn.Module) -> State:
        """The state before the first step: the average starts from the initial weights."""
        averaged = copy.deepcopy(model).requires_grad_(False)
        return cls(model, averaged, as_one(averaged.parameters()), Adam(model.parameters()))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those that a step changes, the codebook's sums and counts among the model's."""
        return {
            **{f"model.{name}": value for name, value in self.model.state_dict().items()},
            "average": self.average,
            "means": self.optimiser.means,
            "squares": self.optimiser.squares,
        }

    def save(self) -> dict[str, Any]:
        """The state as `load` takes it, on the CPU."""
        return {
            "step": self.step,
            "tensors": {name: value.cpu() for name, value in self.tensors().items()},
            "optimiser_steps": self.optimiser.steps,
            "block": {"sums": self.block.sums, "count": self.block.count},
            # Nothing draws from it: every draw is of (seed, purpose, index).
            "random": torch.get_rng_state(),
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Resume from what `save` returned. UserError, and nothing changed, if it does not fit."""
        ours, theirs = self.tensors(), saved["tensors"]
        forms = [
            {name: (value.shape, value.dtype) for name, value in tensors.items()}
            for tensors in (ours, theirs)
        ]
        if forms[0] != forms[1]:
            raise UserError("it is of another model")
        step, steps, block = saved["step"], saved["optimiser_steps"], saved["block"]
        torch.set_rng_state(saved["random"])
        self.block.sums, self.block.count = dict(block["sums"]), block["count"]
        self.step, self.optimiser.steps = step, steps
        with torch.no_grad():
            for name, value in ours.items():
                value.copy_(theirs[name])
