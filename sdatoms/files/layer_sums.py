r"""One layer's sum of maps from several atom files, in the smallest form that holds it exactly.

With one encoder E, `Σ s_k E ΔD_k = E (Σ s_k ΔD_k)`: the atoms are summed. Different encoders stand
side by side, `[E_1 E_2] [s_1 ΔD_1; s_2 ΔD_2]`, while they have fewer than p columns together; from
there on one identity encoder holds any number of maps, `T = Σ s_k E_k ΔD_k`. `overcomplete` atoms
of one encoder are concatenated along m1 (β as they are, D1 scaled) while that is smaller than one
ΔD_c a channel, which holds any number of them. Block views of another kind or size stay side by
side, and so do products of two factors, each with its strength, until one full map of their block
side holds fewer numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from sdatoms.atoms.codes import CodeBook
from sdatoms.atoms.decompose import MAX_WIDTH
from sdatoms.atoms.keys import find_blocks, join_key, split_key
from sdatoms.atoms.maps import LayerMap
from sdatoms.atoms.products import FACTORS, fold_factors
from sdatoms.atoms.shared import OWN, SHARED
from sdatoms.errors import AtomError, clip
from sdatoms.files.atom_file import describe_books

__all__ = [
    "SharedSums",
    "Term",
    "share_equal",
    "sum_layer",
]

SharedSums = dict[tuple[tuple[int, float], ...], dict[str, Tensor]]
"""Which tensors at which strengths → what several layers have of their sum."""
PLACES = {OWN[0]: -3, SHARED[0]: -2}
"""Where shared atoms with own coefficients, or with an encoder, stand among the views of a sum:
before plain maps of the same block, which are at -1."""
Term = tuple[float, LayerMap]


def sum_layer(
    path: str, terms: Sequence[Term], sums: SharedSums
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One layer's summed tensors as `<view>.<tensor>`, and its layout.

    Args:
        sums: of shared atoms that other layers had; grows by this layer's.
    """
    first = terms[0][1]
    layout: dict[str, Any] = {"kernel": list(first.kernel), "groups": first.groups}
    slots: dict[tuple[str, tuple[int, int], int], list[Term]] = {}
    for strength, m in fold_products(terms):
        if (m.kernel, m.groups) != (first.kernel, first.groups):
            raise AtomError(
                f"two files hold the layer {clip(path)!r} with kernels {first.kernel} and "
                f"{m.kernel} in {first.groups} and {m.groups} groups; they fit no common base"
            )
        # Products stand side by side; maps of shared atoms make one of more atoms.
        alone = next((PLACES[name] for name in PLACES if name in m.tensors), -1)
        place = len(slots) if m.factors else alone
        slots.setdefault((m.kind, m.block, place), []).append((strength, m))
    channels = {m.channels for _, m in terms if m.channels is not None}
    if len(channels) > 1:
        raise AtomError(
            f"two files hold the layer {clip(path)!r} with {min(channels)} and {max(channels)} "
            "input channels; they fit no common base"
        )
    rows = {len(m.tensors[OWN[0]]) for _, m in terms if OWN[0] in m.tensors}
    if len(rows) > 1:
        raise AtomError(
            f"two files hold the layer {clip(path)!r} with {min(rows)} and {max(rows)} rows; they "
            "fit no common base"
        )
    stored: dict[str, Tensor] = {}
    books: dict[str, CodeBook] = {}
    blocks = 0
    for (kind, block, place), group in sorted(slots.items(), key=lambda slot: slot[0]):
        name = "spatial"
        if kind != "spatial":
            blocks += 1
            name = "block" if blocks == 1 else f"block_{blocks}"
            facts = {"view": kind, "block": list(block)}
            layout |= facts if blocks == 1 else {name: facts}
        if place == PLACES[OWN[0]]:
            summed = sum_own(group, sums)
        elif place == PLACES[SHARED[0]]:
            summed = sum_shared(group, sums)
        else:
            summed = sum_view(group)
        if book := group[0][1].book:
            books[name] = book
            summed["base_atoms"] = summed.pop("encoder").T.contiguous()
        stored |= {join_key(name, key): tensor for key, tensor in summed.items()}
    return stored, layout | describe_books(books)


def fold_products(terms: Sequence[Term]) -> list[Term]:
    """The terms, products with equal factors taken together, and those of one block side as one
    full map where that holds fewer numbers: the file stays bounded however many are summed."""
    rest = [(strength, m) for strength, m in terms if not m.factors]
    products: list[Term] = []
    named = [(strength * m.own_strength, m) for strength, m in terms if m.factors]
    for alike in group_equal(named, FACTORS):
        m = alike[0][1]
        bare = {name: m.tensors[name] for name in FACTORS}
        products.append((sum(strength for strength, _ in alike), replace(m, tensors=bare)))
    for block in sorted({m.block for _, m in products}):
        shared = [term for term in products if term[1].tensors[FACTORS[0]].dim() == 2]
        group = [term for term in shared if term[1].block == block]
        held, p = sum(t.numel() for _, m in group for t in m.tensors.values()), block[0] * block[1]
        if p > MAX_WIDTH or held < 2 * p * p:
            continue
        products = [term for term in products if not any(term is other for other in group)]
        total = torch.zeros(p, p, dtype=torch.float64)
        for strength, m in group:
            total += strength * fold_factors(*(m.tensors[name].double() for name in FACTORS))
        tensors = {"encoder": torch.eye(p, dtype=torch.float32), "atoms": total.float()}
        rest.append((1.0, replace(group[0][1], tensors=tensors)))
    return rest + products


def group_equal(terms: Sequence[Term], names: Sequence[str]) -> list[list[Term]]:
    """The terms whose tensors of these names are equal, together; in the order of the first."""
    groups: dict[int, list[Term]] = {}
    held = [tuple(m.tensors[name].float() for name in names) for _, m in terms]
    for place, term in zip(find_first_equal(held), terms, strict=True):
        groups.setdefault(place, []).append(term)
    return list(groups.values())


def find_first_equal(items: Sequence[tuple[Tensor, ...]]) -> list[int]:
    """Of each item, the place of the first whose tensors equal its own."""
    equal = lambda one, other: one is other or all(map(torch.equal, one, other))
    return [next(k for k, first in enumerate(items) if equal(first, item)) for item in items]


def share_equal(tensors: dict[str, Tensor], layers: Mapping[str, dict[str, Any]]) -> None:
    """Keep sums of shared atoms that several layers have, and their encoder where they have one,
    with the first of them alone."""
    owners: dict[tuple[str, str, int], str] = {}
    held = {name: tensor for name, tensor in tensors.items() if name.endswith(f".{SHARED[1]}")}
    for name, tensor in held.items():
        component, path, view, _ = split_key(name)
        owner = owners.setdefault((component, view, id(tensor)), path)
        if owner != path:
            for kind in SHARED:
                tensors.pop(f"{component}.{path}.{view}.{kind}", None)
            find_blocks(layers[f"{component}.{path}"], view)["shared_with"] = owner
        else:  # under another view's name the same sum is another tensor of the file
            for kind in SHARED:
                if (key := f"{component}.{path}.{view}.{kind}") in tensors:
                    tensors[key] = tensors[key].clone()


def sum_shared(terms: Sequence[Term], sums: SharedSums) -> dict[str, Tensor]:
    """Maps of shared atoms as one with all their atoms, or with as many as rows are long where that
    is fewer; equal ones are taken together. Layers with the same terms get the very same tensors.

    Args:
        sums: those formed before; grows by this one.
    """
    key = tuple((id(m.tensors[SHARED[0]]), strength) for strength, m in terms)
    if key in sums:
        return sums[key]
    groups = group_equal(terms, SHARED)
    pairs = [(sum(strength for strength, _ in alike), alike[0][1].tensors) for alike in groups]
    encoder = torch.cat([strength * held[SHARED[0]].double() for strength, held in pairs], 1)
    atoms = torch.cat([held[SHARED[1]].double() for _, held in pairs])
    if len(atoms) > atoms.shape[1]:
        encoder, atoms = torch.eye(len(encoder), dtype=torch.float64), encoder @ atoms
    sums[key] = dict(zip(SHARED, (encoder.float(), atoms.float()), strict=True))
    return sums[key]


def sum_own(terms: Sequence[Term], sums: SharedSums) -> dict[str, Tensor]:
    """A layer's coefficients of all atoms of the terms, those of equal atoms added up; of more
    atoms than rows are long, the change itself with the identity for atoms. Layers with the same
    atoms get the very same tensor of them.

    Args:
        sums: as in `sum_shared`.
    """
    groups = group_equal(terms, OWN[1:])
    owns = [
        reduce(torch.add, (strength * m.tensors[OWN[0]].double() for strength, m in alike))
        for alike in groups
    ]
    atoms = [alike[0][1].tensors[OWN[1]] for alike in groups]
    p = atoms[0].shape[1]
    if sum(map(len, atoms)) > p:
        total = torch.stack([own @ d.double() for own, d in zip(owns, atoms, strict=True)]).sum(0)
        shared = sums.setdefault(((p, 0.0),), {OWN[1]: torch.eye(p, dtype=torch.float32)})
        return {OWN[0]: total.float(), **shared}
    key = tuple((id(one), 1.0) for one in atoms)
    if key not in sums:
        sums[key] = {OWN[1]: torch.cat([one.float() for one in atoms])}
    return {OWN[0]: torch.cat(owns, 1).float(), **sums[key]}


def sum_view(terms: Sequence[Term]) -> dict[str, Tensor]:
    """The tensors of one view's sum, in the smallest form that holds it exactly, float32."""
    if terms[0][1].factors:
        ((strength, m),) = terms
        kept = {name: m.tensors[name].float() for name in FACTORS}
        return kept | {"strength": torch.tensor([strength * m.own_strength])}
    # Sparse terms have one code book (`check_books` saw to it): they sum like one encoder's.
    own = [m.book.atoms.float().T if m.book else m.encoder.float() for _, m in terms]
    places = find_first_equal([(encoder,) for encoder in own])
    distinct = sorted(set(places))
    encoders = [own[k] for k in distinct]
    channels = next((m.channels for _, m in terms if m.channels is not None), None)
    p = len(encoders[0])
    wide = sum(encoder.shape[1] for encoder in encoders)
    if len(encoders) == 1 and channels is not None:
        inner = concatenate_inner(terms, channels)
        if inner and sum(t.numel() for t in inner.values()) < channels * wide * p:
            return {"encoder": encoders[0], **inner}
    if len(encoders) > 1 and wide >= p:
        encoders, slots = [torch.eye(p, dtype=torch.float32)], [slice(0, p)] * len(terms)
        deltas = (strength * m.transform for strength, m in terms)
    else:
        ends = torch.tensor([e.shape[1] for e in encoders]).cumsum(0).tolist()
        slots = [
            slice(ends[k] - encoders[k].shape[1], ends[k]) for k in map(distinct.index, places)
        ]
        deltas = (strength * m.delta for strength, m in terms)
    shape = () if channels is None else (channels,)
    total = torch.zeros(*shape, sum(e.shape[1] for e in encoders), p, dtype=torch.float64)
    for slot, delta in zip(slots, deltas, strict=True):
        total[..., slot, :] += delta
    name = "atoms" if channels is None else "channel_atoms"
    return {"encoder": torch.cat(encoders, 1), name: total.float()}


def concatenate_inner(terms: Sequence[Term], channels: int) -> dict[str, Tensor] | None:
    """β and D1 of all terms along m1, in float32; None where a term holds ΔD_c outright.

    Plain atoms are one inner atom whose β is 1 in every channel.
    """
    betas, atoms = [], []
    for strength, m in terms:
        t: Mapping[str, Tensor] = m.tensors
        if "channel_atoms" in t:
            return None
        if "atoms" in t:
            betas.append(torch.ones(channels, len(t["atoms"]), 1))
            atoms.append(strength * t["atoms"].double()[:, None])
        else:
            betas.append(t["inner_coefficients"].float())
            atoms.append(strength * t["inner_atoms"].double())
    return {
        "inner_coefficients": torch.cat(betas, 2),
        "inner_atoms": torch.cat(atoms, 1).float(),
    }
