"""A LoRA's change of one weight, `ΔW = B A`, beside the maps that atoms are.

`A (r, i·h·w)` and `B (o, r)` with `alpha / r` multiplied into B; a convolution's kernel lies in A.

Reference: Hu, Shen, Wallis et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
https://arxiv.org/abs/2106.09685, equation 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sdatoms.atoms.decompose import View

__all__ = [
    "LoraMap",
    "SummedLora",
]


@dataclass(frozen=True, eq=False)
class LoraMap:
    """One layer's unit-strength delta as the product of two thin matrices."""

    down: Tensor
    """A `(r, n)`, float32."""
    up: Tensor
    """B `(o, r)`, float32, its scale included."""

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What was trained, by name."""
        return {"lora_down": self.down, "lora_up": self.up}


class SummedLora:
    """What one LoRA adds to a weight at a strength: `s B A`."""

    whole = False

    def __init__(self, weight: Tensor, map: LoraMap, strength: float) -> None:
        self.view = View("spatial", tuple(weight.shape))
        self.down, self.up = map.down.to(weight.device), map.up.to(weight.device)
        self.strength = strength

    def apply(self, part: Tensor, start: int) -> Tensor:
        """The change of some output channels of the weight, from the channel `start` on."""
        rows = self.up[start : start + len(part)] @ self.down
        return (self.strength * rows).view(part.shape)
