r"""How alike atom files are: cosines of the changes they make, from the files alone.

Where two files have one encoder, the columns of `A = X E` are orthogonal and of one length,
`‖X‖/√(m·p)`, so inner products of `ΔD` are those of `ΔX = A ΔD` up to that factor, and the cosine
is that of the weights' changes (exactly, for one complete spatial or block view a layer shared by
its channels). Where encoders differ, the maps `T = E ΔD` are compared, as if all entries of a
filter were uncorrelated and alike in size; so are products of two factors, and shared atoms. Layers
count by the norms of their weights, which the fingerprints hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdatoms.atoms.maps import LayerMap
from sdatoms.atoms.products import compare_factors
from sdatoms.atoms.shared import compare_shared
from sdatoms.files.atom_file import AtomFile
from sdatoms.fingerprint import matches

__all__ = [
    "Likeness",
    "compare_files",
]


@dataclass(frozen=True)
class Likeness:
    """How alike two files are."""

    cosine: float
    """Of their changes, between −1 and 1; 0 where they share no layer."""
    common: int
    """Views of layers both files change."""
    exact: int
    """Those of them where both have one encoder, so that the deltas themselves are compared."""
    same_base: bool
    """Whether the fingerprints of the common layers agree; without it a cosine says little."""


def compare_files(files: Sequence[AtomFile]) -> list[list[Likeness]]:
    """The likeness of every file to every file; symmetric."""
    return [[compare_pair(a, b) for b in files] for a in files]


def compare_pair(first: AtomFile, second: AtomFile) -> Likeness:
    parts = [walk_maps(file) for file in (first, second)]
    common = [key for key in parts[0] if key in parts[1] and fits(parts[0][key], parts[1][key])]
    exact = [key for key in common if same_encoder(parts[0][key], parts[1][key])]
    product, squares = 0.0, [0.0, 0.0]
    for side, part in enumerate(parts):
        for key, found in part.items():
            own = read_numbers(found, key not in common or key in exact)
            weight = weigh(first if side == 0 else second, key, found)
            squares[side] += weight * float(own.square().sum()) / spread(own)
    for key in common:
        a, b = (read_numbers(part[key], key in exact) for part in parts)
        a, b = torch.broadcast_tensors(a, b)
        weights = [weigh(file, key, p[key]) for file, p in zip((first, second), parts, strict=True)]
        scale = (weights[0] * weights[1]) ** 0.5
        product += scale * float((a * b).sum()) / spread(a)
    crossed, own_squares, shared = compare_products(first, second)
    product += crossed
    squares = [square + own for square, own in zip(squares, own_squares, strict=True)]
    prints = [file.fingerprints for file in (first, second)]
    places = [*((c, p) for c, p, _ in common), *shared]
    pairs = [(prints[0].get(c, {}).get(p), prints[1].get(c, {}).get(p)) for c, p in places]
    same = all(matches(a, b) for a, b in pairs if a and b)
    norm = (squares[0] * squares[1]) ** 0.5
    cosine = max(-1.0, min(1.0, product / norm)) if norm else 0.0
    return Likeness(cosine, len(places), len(exact), same)


def walk_maps(file: AtomFile) -> dict[tuple[str, str, str], LayerMap]:
    """(component, path, kind and block of the view) → map; a view's number does not matter.

    Products and shared atoms are left to `compare_products`: several products of one block side may
    stand in one layer, and maps of shared atoms are too wide to form.
    """
    found = {}
    for component in file.components:
        for path, maps in file.maps(component).items():
            for m in maps:
                if m.factors or m.shared or m.own:
                    continue
                found[component, path, f"{m.kind} {m.block[0]}x{m.block[1]}"] = m
    return found


def compare_products(
    first: AtomFile, second: AtomFile
) -> tuple[float, tuple[float, float], list[tuple[str, str]]]:
    """What products and shared atoms add to the inner product and to both squared norms, and the
    layers where both files have some of one block side and form."""
    parts = [group_products(file) for file in (first, second)]
    shared = [key for key in parts[0] if key in parts[1]]
    crossed = sum(multiply_products(first, second, key, *(p[key] for p in parts)) for key in shared)
    own = tuple(
        sum(multiply_products(file, file, key, maps, maps) for key, maps in part.items())
        for file, part in zip((first, second), parts, strict=True)
    )
    return crossed, (own[0], own[1]), [(key[0], key[1]) for key in shared]


def group_products(file: AtomFile) -> dict[tuple[str, str, str], list[LayerMap]]:
    """(component, path, shapes of the factors, or form and block of shared atoms) → those there."""
    found: dict[tuple[str, str, str], list[LayerMap]] = {}
    for component in file.components:
        for path, maps in file.maps(component).items():
            for m in maps:
                if m.factors:
                    shapes = " ".join(str(tuple(factor.shape)) for factor in m.factors)
                    found.setdefault((component, path, shapes), []).append(m)
                elif m.shared:
                    found.setdefault((component, path, f"shared {m.block}"), []).append(m)
                elif m.own:
                    rows = f"own {m.block} {m.kernel} {len(m.own[0])}"
                    found.setdefault((component, path, rows), []).append(m)
    return found


def multiply_products(
    first: AtomFile,
    second: AtomFile,
    key: tuple[str, str, str],
    ours: Sequence[LayerMap],
    theirs: Sequence[LayerMap],
) -> float:
    """The inner product of two sums of products, or of shared atoms, in one layer."""
    norms = [file.fingerprints.get(key[0], {}).get(key[1]) for file in (first, second)]
    scale = math.prod(stored[0] if stored else 1.0 for stored in norms)
    total = 0.0
    for a in ours:
        for b in theirs:  # coefficients of a layer's own say the change itself
            total += multiply_pair(a, b) * (1 if a.own else scale / math.prod(a.block))
    return total


def multiply_pair(a: LayerMap, b: LayerMap) -> float:
    """`⟨T_a, T_b⟩` of two products or two maps of shared atoms; `⟨ΔX_a, ΔX_b⟩` where their
    coefficients are a layer's own."""
    if a.shared and b.shared:
        return compare_shared(a.shared, b.shared)
    if a.own and b.own:
        return compare_shared(a.own, b.own)
    assert a.factors and b.factors
    return a.own_strength * b.own_strength * compare_factors(a.factors, b.factors)


def fits(a: LayerMap, b: LayerMap) -> bool:
    """Whether two maps can be compared: same kernel, groups and, if both have them, channels.

    Deltas of sparse codes say nothing without their base atoms, which must then be the same.
    """
    channels = {m.channels for m in (a, b)} - {None}
    alike = (a.kernel, a.groups) == (b.kernel, b.groups) and len(channels) < 2
    sparse = any("base_atoms" in m.tensors for m in (a, b))
    return alike and (not sparse or same_encoder(a, b))


def same_encoder(a: LayerMap, b: LayerMap) -> bool:
    first, second = (find_frame(m) for m in (a, b))
    return torch.equal(first.float(), second.float())


def find_frame(found: LayerMap) -> Tensor:
    """What the atoms are relative to: the encoder `(p, m)`, or base atoms as `(p, m)`."""
    if "base_atoms" in found.tensors:
        return found.tensors["base_atoms"].T
    return found.encoder


def read_numbers(found: LayerMap, deltas: bool) -> Tensor:
    """ΔD, or T times √m, so that both weigh alike; a leading axis where channels have their own."""
    if deltas:
        return found.delta
    return found.transform * find_frame(found).shape[1] ** 0.5


def spread(numbers: Tensor) -> int:
    """Channels that share the layer's norm."""
    return len(numbers) if numbers.dim() == 3 else 1


def weigh(file: AtomFile, key: tuple[str, str, str], found: LayerMap) -> float:
    """‖W‖² / (m·p): what one unit of ΔD² is in ‖ΔW‖²."""
    stored = file.fingerprints.get(key[0], {}).get(key[1])
    p, m = find_frame(found).shape
    return (stored[0] if stored else 1.0) ** 2 / (m * p)
