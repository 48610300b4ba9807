r"""Sum atom files into one: exact, and of bounded size however many are summed.

Deltas add, view by view. With one encoder E, `Σ s_k E ΔD_k = E (Σ s_k ΔD_k)`: the atoms are summed.
Different encoders stand side by side, `[E_1 E_2] [s_1 ΔD_1; s_2 ΔD_2]`, while they have fewer than
p columns together; from there on one identity encoder holds any number of maps,
`T = Σ s_k E_k ΔD_k`. `overcomplete` atoms of one encoder are concatenated along m1 (β as they are,
D1 scaled) while that is smaller than one ΔD_c a channel, which holds any number of them. Block
views of another kind or size stay side by side, and so do products of two factors, each with its
strength, until one full map of their block side holds fewer numbers. Sparse files add the same way
where their codes are the same: with identical base atoms, λ and solver. Others are refused, as is a
sparse file beside a linear one.

Sums are taken in float64 in the order of the files' hashes, so the order of the arguments changes
no bit.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdatoms.atoms.codes import CodeBook
from sdatoms.atoms.config import AtomConfig
from sdatoms.atoms.decompose import MAX_WIDTH
from sdatoms.atoms.keys import find_blocks, join_key, split_key
from sdatoms.atoms.maps import LayerMap
from sdatoms.atoms.products import FACTORS, fold_factors
from sdatoms.atoms.shared import OWN, SHARED
from sdatoms.atoms.strengths import check_number
from sdatoms.errors import AtomError, clip
from sdatoms.files.atom_file import FORMAT, AtomFile, describe_books, hash_content
from sdatoms.files.reader import check_file
from sdatoms.fingerprint import matches
from sdatoms.version import __version__

__all__ = [
    "compose",
]

SharedSums = dict[tuple[tuple[int, float], ...], dict[str, Tensor]]
"""Which tensors at which strengths → what several layers have of their sum."""
PLACES = {OWN[0]: -3, SHARED[0]: -2}
"""Where shared atoms with own coefficients, or with an encoder, stand among the views of a sum:
before plain maps of the same block, which are at -1."""
Term = tuple[float, LayerMap]
Part = tuple[AtomFile, float]
KEPT = (
    "base_model",
    "base_revision",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.prediction_type",
    "modelspec.resolution",
)
"""Header entries taken from the first file that has them."""


def compose(
    files: Sequence[AtomFile], strengths: Sequence[float] | None = None, *, title: str | None = None
) -> AtomFile:
    """One atom file whose delta is the sum of the files' deltas at the given strengths.

    Any mix of variants, targets and components goes together; a composed file may be composed
    again.

    Args:
        strengths: one finite number a file; None takes 1 for each.
        title: of the new file; the triggers by default.

    Raises:
        AtomError: no files, another number of strengths, a strength that is no finite number or
            too large, or files whose common layers were trained on different base weights, or are
            sparse with other atoms, λ or solver, or beside linear ones.
    """
    strengths = [1.0] * len(files) if strengths is None else list(strengths)
    if not files:
        raise AtomError("there is nothing to compose: no atom file was given")
    if len(strengths) != len(files):
        raise AtomError(f"{len(files)} files came with {len(strengths)} strengths; each takes one")
    strengths = [check_number(number, "a strength") for number in strengths]
    for place, file in enumerate(files, 1):
        check_file(file, f"file {place}")
        if file.embeddings:
            raise AtomError(
                f"file {place} brings the word {file.metadata['tokens']!r}, whose embedding no "
                "sum can hold; load the files side by side instead"
            )
    parts = list(zip(files, strengths, strict=True))
    parts.sort(key=lambda part: (part[0].sha256, part[1], name_file(part[0])))
    prints = merge_fingerprints([file for file, _ in parts])
    check_books([file for file, _ in parts])
    tensors: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Any]] = {}
    for component in sorted({c for file, _ in parts for c in file.components}):
        terms: dict[str, list[Term]] = {}
        sums: SharedSums = {}
        for file, strength in parts:
            for path, maps in file.maps(component).items():
                terms.setdefault(path, []).extend((strength, m) for m in maps)
        for path, found in sorted(terms.items()):
            stored, layers[f"{component}.{path}"] = sum_layer(path, found, sums)
            tensors |= {f"{component}.{path}.{name}": tensor for name, tensor in stored.items()}
    share_equal(tensors, layers)
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AtomError(f"strengths this large leave {key!r} no finite sum in float32")
    config = merge_configs([file.config for file, _ in parts])
    header = {
        "format": FORMAT,
        "config": json.dumps(config.to_dict()),
        "layers": json.dumps(layers, separators=(",", ":")),
        "base_fingerprints": json.dumps(prints, separators=(",", ":")),
        "modelspec.hash_sha256": hash_content(tensors),
    }
    return AtomFile(config, describe_sum(parts, title) | header, tensors)


def describe_sum(parts: Sequence[Part], title: str | None) -> dict[str, str]:
    """The header's words on where the sum comes from."""
    triggers = ", ".join(dict.fromkeys(f.trigger for f, _ in parts if f.trigger))
    names = [(name_file(file), strength) for file, strength in parts]
    sources = [{"sha256": f.sha256, "strength": s, "trigger": f.trigger} for f, s in parts]
    header = {
        "composed_from": json.dumps(sources),
        "sdatoms_version": __version__,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": title or " + ".join(name for name, _ in names),
        "modelspec.description": "Sum of " + ", ".join(f"{n!r} at {s:g}" for n, s in names),
        "modelspec.merged_from": ", ".join(name for name, _ in names),
        "modelspec.date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if triggers:
        header |= {"trigger": triggers, "modelspec.trigger_phrase": triggers}
    for key in KEPT:
        held = [file.metadata[key] for file, _ in parts if key in file.metadata]
        header |= {key: held[0]} if held else {}
    return header


def name_file(file: AtomFile) -> str:
    """What people would call the file: its trigger, its title, or the start of its hash."""
    title = file.metadata.get("modelspec.title")
    return clip(file.trigger or title or file.sha256[:8], 60)


def merge_configs(configs: Sequence[AtomConfig]) -> AtomConfig:
    """The first config, under the narrowest variant that has every kind of atoms in the sum."""
    variants = {config.variant for config in configs}
    if len(variants) == 1:
        return configs[0]
    wide = "overcomplete" if variants == {"atoms", "overcomplete"} else "full"
    return replace(configs[0], variant=wide)


def merge_fingerprints(files: Sequence[AtomFile]) -> dict[str, dict[str, list[float]]]:
    """All files' fingerprints.

    Raises:
        AtomError: a layer that two files know is another weight in each.
    """
    merged: dict[str, dict[str, list[float]]] = {}
    owners: dict[tuple[str, str], AtomFile] = {}
    for file in files:
        for component, prints in file.fingerprints.items():
            known = merged.setdefault(component, {})
            common = [path for path in prints if path in known]
            differing = [path for path in common if not matches(known[path], prints[path])]
            if differing:
                pair = (owners[component, differing[0]], file)
                one, other = (
                    f"{name_file(f)!r} ({clip(f.metadata.get('base_model', 'unknown base'))})"
                    for f in pair
                )
                raise AtomError(
                    f"{one} and {other} were trained on different bases: the weights of "
                    f"{len(differing)} of {len(common)} common layers differ, first "
                    f"{clip(differing[0])!r}"
                )
            for path, numbers in prints.items():
                owners.setdefault((component, path), file)
                known.setdefault(path, numbers)
    return merged


def check_books(files: Sequence[AtomFile]) -> None:
    """Refuse sparse files whose codes differ, and sparse beside linear ones."""
    first = files[0]
    known: dict[tuple[str, ...], tuple[str, AtomFile]] = {}
    for file in files:
        one, other = f"{name_file(first)!r}", f"{name_file(file)!r}"
        kinds = first.config.decomposition, file.config.decomposition
        if kinds[0] != kinds[1]:
            raise AtomError(
                f"{one} is {kinds[0]} and {other} {kinds[1]}; sparse files compose only with "
                "sparse ones, load these side by side"
            )
        if kinds[0] == "linear":
            continue
        if file.config.sparsity != first.config.sparsity:
            raise AtomError(
                f"{one} has a sparsity of {first.config.sparsity} and {other} of "
                f"{file.config.sparsity}; sparse files compose only with the same codes"
            )
        for component in file.components:
            for path, maps in file.maps(component).items():
                for m in maps:
                    assert m.book
                    place = (component, path, "spatial" if m.kind == "spatial" else "block")
                    before, owner = known.setdefault(place, (m.book.hash, file))
                    if before != m.book.hash:
                        raise AtomError(
                            f"{name_file(owner)!r} and {other} have different sparse atoms, λ or "
                            f"solvers in {clip('.'.join(place))!r}; sparse files compose only with "
                            "the same codes"
                        )


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
    for strength, m in terms:
        if not m.factors:
            continue
        strength *= m.own_strength
        alike = [
            k
            for k, (_, other) in enumerate(products)
            if other.block == m.block
            and all(torch.equal(other.tensors[n].float(), m.tensors[n].float()) for n in FACTORS)
        ]
        if alike:
            products[alike[0]] = (products[alike[0]][0] + strength, products[alike[0]][1])
        else:
            bare = {name: m.tensors[name] for name in FACTORS}
            products.append((strength, replace(m, tensors=bare)))
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
    kept: list[tuple[float, tuple[Tensor, Tensor]]] = []
    for strength, m in terms:
        assert m.shared
        own = (m.shared[0].double(), m.shared[1].double())
        same = [k for k, (_, other) in enumerate(kept) if all(map(torch.equal, own, other))]
        if same:
            kept[same[0]] = (kept[same[0]][0] + strength, own)
        else:
            kept.append((strength, own))
    encoder = torch.cat([strength * e for strength, (e, _) in kept], 1)
    atoms = torch.cat([d for _, (_, d) in kept])
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
    kept: list[tuple[Tensor, Tensor]] = []
    for strength, m in terms:
        own, atoms = strength * m.tensors[OWN[0]].double(), m.tensors[OWN[1]]
        for place, (other, known) in enumerate(kept):
            if torch.equal(known.float(), atoms.float()):
                kept[place] = (other + own, known)
                break
        else:
            kept.append((own, atoms))
    p = kept[0][1].shape[1]
    if sum(len(atoms) for _, atoms in kept) > p:
        total = torch.stack([own @ atoms.double() for own, atoms in kept]).sum(0)
        shared = sums.setdefault(((p, 0.0),), {OWN[1]: torch.eye(p, dtype=torch.float32)})
        return {OWN[0]: total.float(), **shared}
    key = tuple((id(atoms), 1.0) for _, atoms in kept)
    if key not in sums:
        sums[key] = {OWN[1]: torch.cat([atoms.float() for _, atoms in kept])}
    return {OWN[0]: torch.cat([own for own, _ in kept], 1).float(), **sums[key]}


def sum_view(terms: Sequence[Term]) -> dict[str, Tensor]:
    """The tensors of one view's sum, in the smallest form that holds it exactly, float32."""
    if terms[0][1].factors:
        ((strength, m),) = terms
        kept = {name: m.tensors[name].float() for name in FACTORS}
        return kept | {"strength": torch.tensor([strength * m.own_strength])}
    encoders: list[Tensor] = []
    places: list[int] = []
    """Of each term, which of the distinct encoders is its own."""
    for _, m in terms:
        # Sparse terms have one code book (`check_books` saw to it): they sum like one encoder's.
        encoder = m.book.atoms.float().T if m.book else m.encoder.float()
        same = [k for k, known in enumerate(encoders) if torch.equal(known, encoder)]
        places.append(same[0] if same else len(encoders))
        encoders += [] if same else [encoder]
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
        slots = [slice(ends[k] - encoders[k].shape[1], ends[k]) for k in places]
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
