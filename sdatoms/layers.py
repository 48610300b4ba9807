"""`AtomConv2d` and `AtomLinear`: the base layer itself, plus its deltas, with one convolution.

An atom layer shares the base layer's `weight` and `bias` Parameter objects under the same
state-dict keys, and all its other attributes. Built with the base constructor, it has no deltas and
*is* that layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.deltas import Delta
from sdatoms.errors import AtomError

__all__ = ["AtomConv2d", "AtomLayer", "AtomLinear", "adopt"]


class AtomLayer(nn.Module):
    """What both atom layers add to their base: `deltas`, and the weight with them applied."""

    deltas: nn.ModuleDict
    """View (`spatial` or `block`) → `Delta`."""
    weight: Tensor

    def views(self) -> dict[str, Delta]:
        """`deltas` as a plain table."""
        return {view: delta for view, delta in self.deltas.items() if isinstance(delta, Delta)}

    def delta_weight(self) -> Tensor | None:
        """`ΔW` in float32, the sum of this layer's deltas; None without deltas."""
        total = None
        for delta in self.views().values():
            part = delta(self.weight)
            total = part if total is None else total + part
        return total

    def tuned_weight(self) -> Tensor:
        """`W + ΔW`, summed in float32 (or what is wider) and cast once to the dtype of `W`."""
        delta = self.delta_weight()
        return self.weight if delta is None else (self.weight + delta).to(self.weight.dtype)


class AtomConv2d(AtomLayer, nn.Conv2d):
    """`nn.Conv2d` with `y = conv(x, W + ΔW)` in one convolution."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deltas = nn.ModuleDict()

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.tuned_weight(), self.bias)


class AtomLinear(AtomLayer, nn.Linear):
    """`nn.Linear` with `y = x (W + ΔW)ᵀ + bias` in one product."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deltas = nn.ModuleDict()

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.tuned_weight(), self.bias)


def adopt(base: nn.Module) -> AtomConv2d | AtomLinear:
    """An atom layer sharing parameters, buffers, hooks and attributes with `base`, without deltas.

    Raises:
        AtomError: `base` is of another class, or another library has replaced its `forward`.
    """
    if type(base) is nn.Conv2d:
        layer = AtomConv2d.__new__(AtomConv2d)
    elif type(base) is nn.Linear:
        layer = AtomLinear.__new__(AtomLinear)
    else:
        raise AtomError(f"filter atoms fit nn.Conv2d and nn.Linear, not {type(base).__name__}")
    if "forward" in base.__dict__:
        # A copied bound method would go on calling the base layer, without the deltas.
        raise AtomError(
            f"the forward of this {type(base).__name__} was replaced by another library (an "
            "accelerate hook?); remove its hooks before injecting atoms"
        )
    # `_parameters` and `_buffers` are shared tables, one truth for both layers; `_modules` is not,
    # since only the atom layer has deltas.
    layer.__dict__.update(base.__dict__)
    layer.__dict__["_modules"] = dict(base._modules)
    layer.deltas = nn.ModuleDict()
    torch.nn.Module.train(layer, base.training)
    return layer
