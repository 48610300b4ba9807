"""`W + ΔW` of maps on the weight's own filters, formed tile by tile, and the maps' gradient.

Written as tensors, `W + fold(rows(W) T)` keeps a float32 copy of the weight until the backward
pass, where the weight's gradient is copied twice more. Nothing of that is needed: the filters are
the weight itself, which lies there anyway. Here a few output channels at a time are read, changed,
added and rounded, and the backward pass reads them again:

    W'[t] = W[t] + fold(rows(W[t]) T),   dT = Σ_t rows(W[t])ᵀ rows(G[t]),

G the gradient of W'. What is kept is the sum alone, in the weight's own dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sdatoms.atoms.decompose import View, walk_channels
from sdatoms.atoms.deltas import map_rows, split_rows

__all__ = ["add_maps", "pays_in_tiles"]

TILE = 1 << 20
"""Weights that are in float32 at once, but for grouped filters with maps of their own."""


def pays_in_tiles(weight: Tensor) -> bool:
    """Whether a weight is larger than a tile: smaller ones are changed faster by the plain sum, and
    their copies are small."""
    return weight.numel() > TILE


def add_maps(weight: Tensor, views: Sequence[View], transforms: Sequence[Tensor]) -> Tensor:
    """`W + Σ ΔW` in the dtype and layout of `weight`, which no gradient reaches.

    The changes are summed in the maps' dtype (float32), and with the weight once.

    Args:
        weight: `(g·o, i, *kernel)`.
        views: how each map reads it.
        transforms: T, `(p, p)`, or in the spatial view `(g·i, p, p)`, one each, of one dtype.
    """
    with torch.autocast(weight.device.type, enabled=False):
        return MapSum.apply(weight, tuple(views), *transforms)


class MapSum(torch.autograd.Function):
    """The sum; gradients reach the maps alone."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, views: tuple[View, ...], *transforms: Tensor) -> Tensor:
        ctx.views = views
        ctx.save_for_backward(weight, *transforms)
        total = torch.empty_like(weight)
        for span, cut in walk_tiles(weight, views, transforms):
            part = weight[span]
            wide = part.to(transforms[0].dtype)
            changes = [
                map_rows(view.rows(wide), view, transform)
                for view, transform in zip(cut, transforms, strict=True)
            ]
            torch.add(part, sum(changes[1:], changes[0]), out=total[span])
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, *transforms = ctx.saved_tensors
        gathered: list[Tensor | None] = [
            torch.zeros_like(transform) if needed else None
            for transform, needed in zip(transforms, ctx.needs_input_grad[2:], strict=True)
        ]
        with torch.autocast(weight.device.type, enabled=False):
            for span, cut in walk_tiles(weight, ctx.views, transforms):
                parts = [t[span].to(transforms[0].dtype) for t in (weight, grad)]
                for view, into in zip(cut, gathered, strict=True):
                    if into is not None:
                        filters, change = (split_rows(view.rows(t), view, into) for t in parts)
                        into += filters.mT @ change
        return None, None, *gathered


def walk_tiles(
    weight: Tensor, views: Sequence[View], transforms: Sequence[Tensor]
) -> Iterator[tuple[slice, list[View]]]:
    """Output channels, and each view of them."""
    whole = any(v.groups > 1 and t.dim() == 3 for v, t in zip(views, transforms, strict=True))
    for span in walk_channels(weight, views, weight.numel() if whole else TILE):
        yield span, [view.cut(span.stop - span.start) for view in views]
