"""What several adapters add to one weight, view by view: sums of maps, or of deltas of one code
book."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdatoms.atom_file import LayerMap
from sdatoms.code_cache import fetch_codes
from sdatoms.decompose import View
from sdatoms.deltas import apply_map, map_rows
from sdatoms.errors import AtomError

__all__ = ["SummedMap", "list_pairs", "sum_transforms"]


@dataclass(frozen=True, eq=False)
class SummedMap:
    """What one view of a weight adds to it: `X T`, or `A ΔD` with the codes A."""

    view: View
    transform: Tensor
    """T or ΔD, float32."""
    codes: Tensor | None

    def apply(self, part: Tensor, start: int) -> Tensor:
        """The change of some output channels of the weight, from the channel `start` on."""
        whole, held = self.view.shape[0], len(part)
        groups = self.view.groups if held == whole else 1
        view = View(self.view.kind, part.shape, groups, self.view.block)
        if self.codes is None:
            return apply_map(part, view, self.transform)
        n = len(self.codes)
        rows = self.codes[start * n // whole : (start + held) * n // whole]
        return map_rows(rows, view, self.transform)


def sum_transforms(weight: Tensor, terms: Iterable[tuple[float, LayerMap]]) -> list[SummedMap]:
    """The maps of one weight, those of one view (deltas of one code book) summed in float64 in the
    order given.

    Raises:
        AtomError: a sum is not finite in float32.
    """
    sums: dict[tuple[View, str, int], Tensor] = {}
    codes: dict[tuple[View, str], Tensor] = {}
    for strength, m in terms:
        view, part, book = m.view(weight), strength * m.transform, m.book.hash if m.book else ""
        key = (view, book, part.dim())
        sums[key] = sums[key] + part if key in sums else part
        if m.book and (view, book) not in codes:
            found = fetch_codes(weight, view, m.book) if m.codes is None else m.codes
            codes[view, book] = found
    if not all(torch.isfinite(total.float()).all() for total in sums.values()):
        raise AtomError("strengths this large leave the sum of the atoms no finite float32 numbers")
    order = sorted(sums, key=lambda key: (key[0].kind, key[0].block, *key[1:]))
    return [
        SummedMap(key[0], sums[key].float().to(weight.device), codes.get(key[:2])) for key in order
    ]


def list_pairs(
    weight: Tensor, terms: Iterable[tuple[float, LayerMap]]
) -> list[tuple[View, Tensor]]:
    """Views and maps of terms that are all linear, as are all that fit quantized weights."""
    maps = sum_transforms(weight, terms)
    assert all(m.codes is None for m in maps)
    return [(m.view, m.transform) for m in maps]
