"""The state of a training: everything that its next step depends on."""

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
    """Means over the steps since the last row of the log."""

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
    """The model, its optimiser, its averaged weights (also as one vector) and the log's block."""

    model: nn.Module
    averaged: nn.Module
    average: torch.Tensor
    optimiser: Adam
    block: Block = field(default_factory=Block)
    step: int = 0

    @classmethod
    def initial(cls, model: nn.Module) -> State:
        """Return the state before the first step. The average starts at the initial weights."""
        averaged = copy.deepcopy(model).requires_grad_(False)
        return cls(model, averaged, as_one(averaged.parameters()), Adam(model.parameters()))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that a step changes, including the codebook's sums and counts."""
        return {
            **{f"model.{name}": value for name, value in self.model.state_dict().items()},
            "average": self.average,
            "means": self.optimiser.means,
            "squares": self.optimiser.squares,
        }

    def save(self) -> dict[str, Any]:
        """Return the state in the form that `load` takes, on the CPU."""
        return {
            "step": self.step,
            "tensors": {name: value.cpu() for name, value in self.tensors().items()},
            "optimiser_steps": self.optimiser.steps,
            "block": {"sums": self.block.sums, "count": self.block.count},
            # Nothing uses it: every random number depends on (seed, purpose, index) only.
            "random": torch.get_rng_state(),
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Resume from what `save` returned. If it does not fit, UserError and no change."""
        ours, theirs = self.tensors(), saved["tensors"]
        forms = [
            {name: (value.shape, value.dtype) for name, value in tensors.items()}
            for tensors in (ours, theirs)
        ]
        if forms[0] != forms[1]:
            raise UserError("it belongs to another model")
        step, steps, block = saved["step"], saved["optimiser_steps"], saved["block"]
        torch.set_rng_state(saved["random"])
        self.block.sums, self.block.count = dict(block["sums"]), block["count"]
        self.step, self.optimiser.steps = step, steps
        with torch.no_grad():
            for name, value in ours.items():
                value.copy_(theirs[name])
