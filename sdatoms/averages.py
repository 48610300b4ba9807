r"""Running averages of the atoms, `a ← d a + (1 − d) p` after every optimizer step.

The decay warms up, `d = min(ema_decay, (1 + k) / (10 + k))` at step k, so that the start does not
linger; this is diffusers' `EMAModel` without its inverse-gamma option.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["Averages"]


class Averages:
    """Averages of named parameters, float32, on the parameters' device."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.parameters = dict(parameters)
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters' present values in."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, value in self.values.items():
            value.lerp_(self.parameters[name], 1 - decay)

    def state(self) -> dict[str, Tensor | int]:
        return {**self.values, "steps": self.steps}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor | int]) -> None:
        """The inverse of `state`."""
        self.steps = int(state["steps"])
        for name, value in self.values.items():
            kept = state[name]
            assert isinstance(kept, Tensor)
            value.copy_(kept)
