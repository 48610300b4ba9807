"""Adapters on layers whose weight is stored quantized: attached beside it, never baked in.

Baking would have to quantize `W + ΔW` anew and lose most of the change. Instead an atom layer with
the sum of the adapters' maps stands in the base layer's place until the last of them is taken off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from sdatoms.adopt import adopt
from sdatoms.decompose import View
from sdatoms.deltas import Delta
from sdatoms.layers import AtomLayer, replace_modules
from sdatoms.weights import LayerWeight

__all__ = ["AttachedLayer", "MapDelta", "list_map_deltas"]


class MapDelta(Delta):
    """A fixed map `T (p, p)`, which no gradient reaches and no state dict holds."""

    def __init__(self, view: View, transform: Tensor) -> None:
        super().__init__(view, transform)
        self._non_persistent_buffers_set.add("encoder")

    def transform(self) -> Tensor:
        return self.encoder


def list_map_deltas(maps: Iterable[tuple[View, Tensor]]) -> dict[str, MapDelta]:
    """Deltas for summed maps, by names that say no more than their order."""
    return {f"map_{n}": MapDelta(view, transform) for n, (view, transform) in enumerate(maps, 1)}


@dataclass
class AttachedLayer:
    """A quantized layer some adapter changes now, and the atom layer that stands in its place."""

    base: LayerWeight
    layer: AtomLayer = field(init=False)

    def __post_init__(self) -> None:
        self.layer = adopt(self.base.module)

    @property
    def pristine(self) -> Tensor:
        """The base's weight as floating-point numbers."""
        return self.base.weight

    def attach(self, root: nn.Module, maps: Iterable[tuple[View, Tensor]]) -> None:
        """Let the layer carry these maps and no others."""
        self.layer.deltas = nn.ModuleDict(list_map_deltas(maps))
        replace_modules(root, {self.base.module: self.layer})

    def detach(self, root: nn.Module) -> None:
        """Put the base layer back."""
        replace_modules(root, {self.layer: self.base.module})
