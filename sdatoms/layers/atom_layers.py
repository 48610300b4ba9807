"""Atom layers: the base layer itself, plus its deltas, with one convolution or product.

An atom layer shares the base layer's `weight` and `bias` Parameter objects under the same
state-dict keys, and all its other attributes. Built with the base constructor, it has no deltas and
*is* that layer. Block atoms in product form (`sdatoms.atoms.products`) mix the layer's input and
output instead of its weight, shared atoms (`sdatoms.atoms.shared`) its input; with coefficients of
the layer's own they are a small layer beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.atoms.block_deltas import OwnDelta, ProductDelta, SharedDelta
from sdatoms.atoms.columns import (
    convolve_columns,
    count_positions,
    keep_bits,
    multiply_columns,
    pick_columns,
)
from sdatoms.atoms.deltas import Delta
from sdatoms.atoms.products import run_factors
from sdatoms.atoms.shared import run_own, run_shared
from sdatoms.atoms.sums import add_maps, pays_in_tiles
from sdatoms.errors import AtomError
from sdatoms.layers.merged import remember_wrapper, take_off_merged
from sdatoms.layers.weights import LayerWeight

__all__ = [
    "AtomConv1d",
    "AtomConv2d",
    "AtomConv3d",
    "AtomLayer",
    "AtomLinear",
    "OneWeightLayer",
    "TunedWeight",
    "add_deltas",
    "replace_modules",
    "sum_deltas",
]


def sum_deltas(weight: Tensor, deltas: nn.ModuleDict) -> Tensor | None:
    """`ΔW` in float32, the sum of the deltas of all views; None without deltas."""
    total = None
    for delta in deltas.values():
        part = delta(weight)
        total = part if total is None else total + part
    return total


def add_deltas(weight: Tensor, deltas: nn.ModuleDict, read: Tensor | None = None) -> Tensor:
    """`W + ΔW`, summed in float32 (or what is wider) and cast once to the dtype of `W`.

    Maps of a large weight are added tile by tile, unless a gradient reaches it, or `torch.compile`
    or `torch.func` takes the layer apart.

    Args:
        read: what the deltas are maps of, where it is not the weight.
    """
    plain = [d for d in deltas.values() if isinstance(d, Delta) and not d.sparse and not d.form]
    alone = len(plain) == len(deltas) > 0 and (read is None or read is weight)
    apart = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    trains = weight.requires_grad and torch.is_grad_enabled()
    if alone and pays_in_tiles(weight) and not (apart or trains):
        return add_maps(weight, [d.view for d in plain], [d.transform() for d in plain])
    delta = sum_deltas(weight if read is None else read, deltas)
    return weight if delta is None else (weight + delta).to(weight.dtype)


@dataclass(frozen=True)
class TunedWeight:
    """One weight of an injected model and the deltas it carries."""

    base: LayerWeight
    deltas: nn.ModuleDict

    @property
    def views(self) -> dict[str, Delta]:
        """View (`spatial` or `block`) → `Delta`."""
        return {view: delta for view, delta in self.deltas.items() if isinstance(delta, Delta)}


class AtomLayer(nn.Module):
    """What every atom layer adds to its base."""

    deltas: nn.ModuleDict
    """View (`spatial` or `block`) → `Delta`; in attention, projection → such a table."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> AtomLayer:
        """Move or cast the layer with its atoms, as `to` and diffusers' layerwise casting do.

        Raises:
            AtomError: the cast is to 8-bit floating-point numbers; nothing is changed.
        """
        if len(self.deltas):
            cast = fn(torch.empty(0))
            if cast.dtype.itemsize == 1:
                raise AtomError(
                    f"atoms cannot be cast to {cast.dtype}, whose rounding is larger than what "
                    "they change; eject them, or leave out enable_layerwise_casting"
                )
        return super()._apply(fn, recurse)

    def carry(self, name: str, deltas: Mapping[str, nn.Module]) -> nn.ModuleDict:
        """Take up deltas for the weight `name` (empty where there is one); return their table."""
        self.deltas.update(deltas)
        return self.deltas


class OneWeightLayer(AtomLayer):
    """An atom layer over one `weight`."""

    weight: Tensor
    bias: Tensor | None

    def mixture(self) -> ProductDelta | SharedDelta | OwnDelta | None:
        """The delta of a layer that carries one product, or shared atoms, and nothing else: they
        meet the activations, and no weight-sized change is formed."""
        deltas = list(self.deltas.values())
        if len(deltas) != 1:
            return None
        (delta,) = deltas
        if isinstance(delta, ProductDelta):
            return delta if delta.strength == 1.0 else None
        return delta if isinstance(delta, SharedDelta | OwnDelta) else None

    def run_mixture(self, x: Tensor, run: Callable[[Tensor], Tensor], axes: int) -> Tensor | None:
        """The layer's output by its mixture; None where it carries none, or where float64 asks for
        the weight's own sum, which is formed in float32, or something is merged into the weight.

        Args:
            run: the base layer's own forward pass.
            axes: how many come after the channels, 0 with channels last.
        """
        delta = self.mixture()
        if delta is None or x.dtype == torch.float64 or self.merged():
            return None
        if axes and x.dim() == axes + 1:  # an unbatched input
            y = self.run_mixture(x[None], run, axes)
            return None if y is None else y[0]
        groups = delta.view.groups if axes else 0
        if isinstance(delta, OwnDelta):
            conv: Any = self
            branch = lambda z, w: (
                conv._conv_forward(z, w, None) if axes else nn.functional.linear(z, w)
            )
            own = (delta.coefficients, delta.shared_atoms)
            return run_own(x, *own, run, branch, delta.view, groups)
        if isinstance(delta, SharedDelta):
            return run_shared(x, delta.shared_encoder, delta.shared_atoms, run, groups)
        factors = (delta.output_factor, delta.input_factor)
        return run_factors(x, *factors, self.bias, run, 1 if axes else -1)

    def views(self) -> dict[str, Delta]:
        """`deltas` as a plain table."""
        return {view: delta for view, delta in self.deltas.items() if isinstance(delta, Delta)}

    def delta_weight(self) -> Tensor | None:
        """`ΔW` in float32, the sum of this layer's deltas; None without deltas."""
        if not self.deltas:
            return None
        return sum_deltas(self.read_weight(), self.deltas)

    def read_weight(self) -> Tensor:
        """What the deltas are maps of: the weight without what wrappers have merged into it."""
        sparse = all(delta.sparse for delta in self.views().values())
        return self.weight if sparse else take_off_merged(self, self.weight)

    def tuned_weight(self) -> Tensor:
        """`W + ΔW`, summed in float32 (or what is wider) and cast once to the dtype of `W`."""
        return add_deltas(self.weight, self.deltas, self.read_weight())

    def pick_columns(self, positions: int) -> dict[str, Delta] | None:
        """As `sdatoms.atoms.columns.pick_columns`; None while something is merged into the
        weight, which the input's columns would meet too."""
        deltas = pick_columns(self, positions)
        return None if deltas and self.merged() else deltas

    def merged(self) -> bool:
        """Whether a wrapper has merged something into the weight since it has atoms."""
        return take_off_merged(self, self.weight) is not self.weight


class AtomConv1d(OneWeightLayer, nn.Conv1d):
    """`nn.Conv1d` with `y = conv(x, W + ΔW)` in one convolution."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deltas = nn.ModuleDict()

    def forward(self, input: Tensor) -> Tensor:
        y = self.run_mixture(input, super().forward, 1)
        return self._conv_forward(input, self.tuned_weight(), self.bias) if y is None else y


class AtomConv2d(OneWeightLayer, nn.Conv2d):
    """`nn.Conv2d` with `y = conv(x, W + ΔW)` in one convolution, or in one product with W where
    that trains faster (`sdatoms.atoms.columns`)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deltas = nn.ModuleDict()

    def forward(self, input: Tensor) -> Tensor:
        y = self.run_mixture(input, super().forward, 2)
        if y is not None:
            return y
        deltas = self.pick_columns(count_positions(self, input)) if input.dim() == 4 else None
        if deltas:
            base = lambda: self._conv_forward(input, self.weight, self.bias)
            return keep_bits(convolve_columns(self, input, deltas), deltas, base)
        return self._conv_forward(input, self.tuned_weight(), self.bias)


class AtomConv3d(OneWeightLayer, nn.Conv3d):
    """`nn.Conv3d` with `y = conv(x, W + ΔW)` in one convolution."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deltas = nn.ModuleDict()

    def forward(self, input: Tensor) -> Tensor:
        y = self.run_mixture(input, super().forward, 3)
        return self._conv_forward(input, self.tuned_weight(), self.bias) if y is None else y


class AtomLinear(OneWeightLayer, nn.Linear):
    """`nn.Linear` with `y = x (W + ΔW)ᵀ + bias` in one product."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deltas = nn.ModuleDict()

    def forward(self, input: Tensor) -> Tensor:
        y = self.run_mixture(input, super().forward, 0)
        if y is not None:
            return y
        deltas = self.pick_columns(input.numel() // max(1, self.in_features))
        if deltas and input.dim() > 1:
            base = lambda: nn.functional.linear(input, self.weight, self.bias)
            return keep_bits(multiply_columns(self, input, deltas), deltas, base)
        return nn.functional.linear(input, self.tuned_weight(), self.bias)


def replace_modules(model: nn.Module, table: Mapping[Any, nn.Module]) -> None:
    """Put other modules in the places of those in `table`, under every name, wrappers' included."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in table:
                parent._modules[name] = table[child]
                remember_wrapper(parent, name, table[child])
