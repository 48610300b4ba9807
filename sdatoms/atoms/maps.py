"""One view's delta of one weight, and what several of them add to it.

ΔD of a stored adapter is formed here (`LayerMap.delta`); while it trains, in `deltas.py`. Sums are
maps, deltas of one code book, or products and shared atoms one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from sdatoms.atoms.block_deltas import FixedOwnDelta, FixedProductDelta, FixedSharedDelta
from sdatoms.atoms.codes import CodeBook, fetch_codes
from sdatoms.atoms.decompose import Kind, View
from sdatoms.atoms.deltas import Delta, MapDelta, apply_map, combine_inner, map_rows
from sdatoms.atoms.lora import LoraMap, SummedLora
from sdatoms.atoms.products import FACTORS, apply_factors
from sdatoms.atoms.shared import OWN, SHARED, apply_shared
from sdatoms.errors import AtomError

__all__ = [
    "LayerMap",
    "SummedMap",
    "SummedProduct",
    "SummedShared",
    "form_deltas",
    "sum_transforms",
]


TOO_LARGE = "strengths this large leave the sum of the atoms no finite float32 numbers"


@dataclass(frozen=True, eq=False)
class SummedMap:
    """What one view of a weight adds to it: `X T`, or `A ΔD` with codes or own coefficients A."""

    view: View
    transform: Tensor
    """T or ΔD, float32."""
    codes: Tensor | None

    @property
    def whole(self) -> bool:
        """Whether the weight must be changed in one piece: its groups have maps of their own."""
        return self.view.groups > 1 and self.transform.dim() == 3

    def apply(self, part: Tensor, start: int) -> Tensor:
        """The change of some output channels of the weight, from the channel `start` on."""
        whole, held = self.view.shape[0], len(part)
        view = self.view.cut(held)
        if self.codes is None:
            return apply_map(part, view, self.transform)
        n = len(self.codes)
        rows = self.codes[start * n // whole : (start + held) * n // whole]
        return map_rows(rows, view, self.transform)


@dataclass(frozen=True, eq=False)
class SummedProduct:
    """What one adapter in product form adds to a weight: `s (L̂ W + W R̂ + L̂ W R̂)`."""

    view: View
    factors: tuple[Tensor, Tensor]
    strength: float

    @property
    def whole(self) -> bool:
        """As in `SummedMap`."""
        return self.view.groups > 1 and self.factors[0].dim() == 3

    def apply(self, part: Tensor, start: int) -> Tensor:
        """As in `SummedMap`."""
        return self.strength * apply_factors(part, self.view, *self.factors, start)


@dataclass(frozen=True, eq=False)
class SummedShared:
    """What one adapter of shared atoms adds to a weight: `X (E D)`, its strength in E."""

    view: View
    encoder: Tensor
    atoms: Tensor
    whole = False

    def apply(self, part: Tensor, start: int) -> Tensor:
        """As in `SummedMap`; every row is changed by itself."""
        return apply_shared(part, self.view.cut(len(part)), self.encoder, self.atoms)


Summed: TypeAlias = SummedMap | SummedProduct | SummedShared | SummedLora


def sum_transforms(
    weight: Tensor, terms: Iterable[tuple[float, LayerMap | LoraMap]]
) -> list[Summed]:
    """The maps of one weight, those of one view (deltas of one code book) summed in float64 in the
    order given; products, shared atoms and LoRAs follow one by one.

    Raises:
        AtomError: a sum is not finite in float32.
    """
    sums: dict[tuple[View, str, int], Tensor] = {}
    codes: dict[tuple[View, str], Tensor] = {}
    products: list[Summed] = []
    for strength, m in terms:
        if isinstance(m, LoraMap):
            products.append(SummedLora(weight, m, strength))
            continue
        if m.factors:
            own = (m.factors[0].to(weight.device), m.factors[1].to(weight.device))
            check_bound(strength * m.own_strength, *(1 + f.double().norm() for f in own))
            products.append(SummedProduct(m.view(weight), own, strength * m.own_strength))
            continue
        if m.shared:
            encoder, atoms = (t.to(weight.device) for t in m.shared)
            check_bound(strength, encoder.double().norm(), atoms.double().norm())
            products.append(SummedShared(m.view(weight), scale(encoder, strength), atoms))
            continue
        if m.own:
            own = (m.own[0].to(weight.device), m.own[1].to(weight.device))
            check_bound(strength, *(t.double().norm() for t in own))
            products.append(SummedMap(m.view(weight), own[1], scale(own[0], strength)))
            continue
        view, part, book = m.view(weight), strength * m.transform, m.book.hash if m.book else ""
        key = (view, book, part.dim())
        sums[key] = sums[key] + part if key in sums else part
        if m.book and (view, book) not in codes:
            found = fetch_codes(weight, view, m.book) if m.codes is None else m.codes
            codes[view, book] = found
    if not all(torch.isfinite(total.float()).all() for total in sums.values()):
        raise AtomError(TOO_LARGE)
    order = sorted(sums, key=lambda key: (key[0].kind, key[0].block, *key[1:]))
    summed = [
        SummedMap(key[0], sums[key].float().to(weight.device), codes.get(key[:2])) for key in order
    ]
    return [*summed, *products]


def scale(tensor: Tensor, strength: float) -> Tensor:
    """A tensor at a strength, float32, by way of float64.

    Raises:
        AtomError: it leaves float32.
    """
    scaled = (strength * tensor.double()).float()
    if not bool(torch.isfinite(scaled).all()):
        raise AtomError(TOO_LARGE)
    return scaled


def check_bound(strength: float, first: Tensor, second: Tensor) -> None:
    """Refuse a product of two factors whose entries may leave float32, by the factors' norms.

    Raises:
        AtomError: they may.
    """
    if not abs(strength) * float(first * second) < torch.finfo(torch.float32).max:
        raise AtomError(TOO_LARGE)


def form_deltas(
    weight: Tensor, terms: Iterable[tuple[float, LayerMap | LoraMap]]
) -> dict[str, Delta]:
    """Fixed deltas of terms that are all linear, as are all that fit quantized weights, by names
    that say no more than their order."""
    deltas: dict[str, Delta] = {}
    for n, m in enumerate(sum_transforms(weight, terms), 1):
        if isinstance(m, SummedProduct):
            deltas[f"map_{n}"] = FixedProductDelta(m.view, m.factors, m.strength)
        elif isinstance(m, SummedShared):
            deltas[f"map_{n}"] = FixedSharedDelta(m.view, m.encoder, m.atoms)
        elif isinstance(m, SummedMap) and m.codes is not None:
            deltas[f"map_{n}"] = FixedOwnDelta(m.view, m.codes, m.transform)
        else:
            assert isinstance(m, SummedMap)
            deltas[f"map_{n}"] = MapDelta(m.view, m.transform)
    return deltas


@dataclass(frozen=True, eq=False)
class LayerMap:
    """One view's unit-strength delta of one layer: `ΔX = X T`, `ΔX = A ΔD` of sparse codes, the
    product of two factors, or atoms that layers share, `ΔX = X E D` or `C D`."""

    kind: Kind
    block: tuple[int, int]
    groups: int
    kernel: tuple[int, ...]
    tensors: Mapping[str, Tensor]
    """The encoder, or the base atoms, and the trained tensors of the view; two factors; or the
    atoms that layers share, with their encoder or this layer's coefficients."""
    book: CodeBook | None = None
    """What decides the codes A; None with the linear decomposition."""
    codes: Tensor | None = None
    """A, where it is known already."""
    owner: str | None = None
    """Path of the layer that keeps the shared atoms, and their encoder; None: this one."""

    @property
    def shared(self) -> tuple[Tensor, Tensor] | None:
        """E `(p, r)` and D `(r, p)` of shared atoms, float32; else None."""
        return self._read_pair(SHARED)

    @property
    def own(self) -> tuple[Tensor, Tensor] | None:
        """C `(n, r)` and D `(r, p)` of coefficients of the layer's own, float32; else None."""
        return self._read_pair(OWN)

    @property
    def held(self) -> dict[str, Tensor]:
        """The tensors that this layer keeps itself."""
        return {n: t for n, t in self.tensors.items() if not self.owner or n == OWN[0]}

    def _read_pair(self, names: tuple[str, str]) -> tuple[Tensor, Tensor] | None:
        """Two trained tensors that come together, float32; None where the view has others."""
        if names[0] not in self.tensors:
            return None
        first, second = (self.tensors[name].detach().float() for name in names)
        return first, second

    @property
    def encoder(self) -> Tensor:
        """E `(p, m)`, frozen or trained, as stored; with the linear decomposition only, and not
        where coefficients are the layer's own."""
        return self.tensors["encoder" if "encoder" in self.tensors else SHARED[0]]

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """L and R of the product form, `(b, b)` or `(blocks, b, b)`, float32; else None."""
        return self._read_pair(FACTORS)

    @property
    def own_strength(self) -> float:
        """What a sum multiplies a product by; 1 but in composed files."""
        return float(self.tensors["strength"]) if "strength" in self.tensors else 1.0

    @property
    def channels(self) -> int | None:
        """g·i where every absolute input channel has a map of its own, else None."""
        names = [n for n in ("inner_coefficients", "channel_atoms") if n in self.tensors]
        return len(self.tensors[names[0]]) if names else None

    @property
    def delta(self) -> Tensor:
        """ΔD `(m, p)`, or ΔD_c `(g·i, m, p)` where every channel has its own; float64 on the CPU.

        Formed anew each time, as `transform` is: both may be a thousand times larger than the
        tensors they come from, and a file is checked against the model before it may ask for them.
        """
        t = {n: v.detach().to("cpu", torch.float64) for n, v in self.tensors.items()}
        if "inner_atoms" in t:
            return combine_inner(t["inner_coefficients"], t["inner_atoms"])
        return next(t[name] for name in ("atoms", "channel_atoms", SHARED[1]) if name in t)

    @property
    def transform(self) -> Tensor:
        """What filters or codes are multiplied by, float64 on the CPU: `T = E ΔD (p, p)` or
        `(g·i, p, p)`, with sparse codes ΔD itself."""
        if self.book:
            return self.delta
        return self.encoder.detach().to("cpu", torch.float64) @ self.delta

    def view(self, weight: Tensor) -> View:
        return View(self.kind, tuple(weight.shape), self.groups, self.block)
