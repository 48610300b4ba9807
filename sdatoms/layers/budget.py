"""The views and atoms one layer gets: what a config asks, cut by the weight's rank and a budget.

A delta may not hold more than a quarter of its layer's weights: the block side or the inner atoms,
then the atoms, are lowered until it fits, and a view where nothing fits is left out. Numbers the
caller gave stand; whoever gave the number that would be lowered first, the block side or the inner
atoms, is taken at their word, and complete atoms stay complete. All of it is noted for the report.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdatoms.atoms.block_deltas import OwnDelta, ProductDelta, SharedDelta, SharingDelta
from sdatoms.atoms.codes import OVERCOMPLETE, Codes, fit_codes
from sdatoms.atoms.config import BLOCK_VARIANTS, AtomConfig
from sdatoms.atoms.decompose import (
    MAX_WIDTH,
    Kind,
    View,
    fit_encoder,
    measure_gram,
    relative_error,
    split_side,
)
from sdatoms.atoms.deltas import AtomDelta, Delta, OvercompleteDelta
from sdatoms.atoms.products import factor_shapes
from sdatoms.atoms.shared import draw_atoms
from sdatoms.errors import AtomError
from sdatoms.layers.targets import is_spatial
from sdatoms.layers.weights import LayerWeight

__all__ = [
    "BUDGET",
    "build_deltas",
]

SHARED_ATOMS = 4
"""Atoms that layers share, where no number of `block_atoms` was given."""
BUDGET = 4
"""A delta may hold at most one `BUDGET`-th of its layer's weights."""


def build_deltas(
    path: str,
    source: LayerWeight,
    config: AtomConfig,
    named: bool,
    shared: dict[int, SharedDelta | OwnDelta],
) -> tuple[dict[str, Delta], str, float]:
    """The deltas of one layer by view, what was cut, and the worst relative reconstruction error.

    Args:
        path: seeds inner coefficients and sparse atoms together with `config.seed`.
        named: a pattern of the caller's chose this layer, so that a layer without spatial filters
            takes block atoms in every variant.
        shared: input width → the layer whose atoms others share; grows by this layer's own.
    """
    weight, groups, shape = source.weight, source.groups, source.shape
    if config.decomposition == "sparse" and source.quantized:
        # Files of sparse atoms load only by baking.
        return {}, "left out: sparse atoms do not fit quantized weights; linear ones do", 0.0
    spatial = is_spatial(source.module)
    wants_spatial = spatial and config.variant != "coefficients"
    wants_block = config.variant in BLOCK_VARIANTS or (named and not spatial)
    overcomplete = config.variant in ("overcomplete", "full")
    notes: list[str] = []
    if spatial and groups > 1 and shape[1] == 1:
        # Depthwise: per-channel atoms would outweigh the layer, and 1×1 blocks are its filters.
        wants_spatial, wants_block = True, False
        overcomplete = overcomplete and not config.may_lower("num_inner_atoms")
        if config.variant != ("overcomplete" if overcomplete else "atoms"):
            notes.append(f"depthwise: spatial {'overcomplete ' * overcomplete}atoms only")
    deltas: dict[str, Delta] = {}
    errors = [0.0]
    limit = weight.numel() // BUDGET
    seed = seed_layer(config.seed, path)
    if wants_spatial:
        view = View("spatial", shape, groups)
        m, m1 = fit_spatial(view, config, overcomplete, limit)
        if fitted := encode(weight, view, config, config.num_atoms, m, seed, notes):
            error, basis = fitted
            errors.append(error)
            if overcomplete:
                if m1 < config.num_inner_atoms:
                    notes.append(f"budget: inner atoms {config.num_inner_atoms} → {m1}")
                deltas["spatial"] = OvercompleteDelta(view, basis, m1, seed)
            else:
                deltas["spatial"] = AtomDelta(view, basis)
    if wants_block and config.block_form == "product":
        if delta := fit_product(weight, shape, groups, config, limit, notes):
            deltas["block"] = delta
    elif wants_block and config.block_form == "shared":
        if delta := fit_shared(path, source, config, shared, notes):
            deltas["block"] = delta
    elif wants_block:
        view, m = fit_block(shape, groups, config, limit, notes)
        if fitted := encode(weight, view, config, config.block_atoms, m, seed, notes):
            error, basis = fitted
            errors.append(error)
            deltas["block"] = AtomDelta(view, basis)
    return deltas, "; ".join(dict.fromkeys(notes)), max(errors)


def fit_spatial(view: View, config: AtomConfig, overcomplete: bool, limit: int) -> tuple[int, int]:
    """Atoms m and inner atoms m1 of the spatial view; m is 0 where nothing fits."""
    m, m1 = count_atoms(view, config, config.num_atoms), config.num_inner_atoms
    if overcomplete and not config.may_lower("num_inner_atoms"):
        return m, m1
    each = view.channels + view.width if overcomplete else view.width
    if overcomplete:
        m1 = max(1, min(m1, limit // (each * m)))
        each *= m1
    return m if config.num_atoms else min(m, limit // each), m1


def fit_block(
    shape: tuple[int, ...], groups: int, config: AtomConfig, limit: int, notes: list[str]
) -> tuple[View, int]:
    """The block view and its atoms m; the side is lowered until complete atoms fit, then m is."""
    kind: Kind = config.block_view if torch.Size(shape[2:]).numel() > 1 else "channel"
    views = []
    for b in range(config.block_size, 0, -1):
        sides = (split_side(shape[0] // groups, b), split_side(shape[1], b))
        view = View(kind, shape, groups, sides)
        m = count_blocks(view, config)
        views.append(view)
        if not config.may_lower("block_size"):
            return view, m
        if view.width <= MAX_WIDTH and m * view.width <= limit:
            break
    first, last = views[0], views[-1]
    if first.block != last.block:
        before, after = (f"{view.block[0]}x{view.block[1]}" for view in (first, last))
        notes.append(f"budget: block {before} → {after}")
    m = count_blocks(last, config)
    return last, m if config.block_atoms else min(m, limit // last.width)


def fit_product(
    weight: Tensor,
    shape: tuple[int, ...],
    groups: int,
    config: AtomConfig,
    limit: int,
    notes: list[str],
) -> ProductDelta | None:
    """Two factors of the largest block side that fits; None, noted, where none does.

    Sides given stand; a side is at least 2, since factors of 1×1 would scale channels alone.
    """
    given = not config.may_lower("block_size")
    asked = config.block_size
    each = config.block_factors == "each"
    for b in range(asked, 1, -1):
        sides = (split_side(shape[0] // groups, b), split_side(shape[1], b))
        view = View("channel", shape, groups, sides)
        if given or sum(map(math.prod, factor_shapes(view, each))) <= limit:
            if b < asked:
                notes.append(f"budget: factors {asked}x{asked} → {sides[0]}x{sides[1]}")
            return ProductDelta(view, each, weight)
    notes.append("product left out: no factors fit a quarter of its weights")
    return None


def fit_shared(
    path: str,
    source: LayerWeight,
    config: AtomConfig,
    shared: dict[int, SharedDelta | OwnDelta],
    notes: list[str],
) -> SharedDelta | OwnDelta | None:
    """The atoms of all layers with this one's input width; None, noted, where rows are too short
    to have any or too long. What they share is no part of one layer's budget; coefficients of a
    layer's own are, where no number of atoms was given."""
    width = source.shape[1]
    if not 2 <= width <= MAX_WIDTH:
        notes.append(f"shared left out: rows of {width} where 2 to {MAX_WIDTH} fit")
        return None
    view = View("channel", source.shape, source.groups, (1, width))
    if keeper := shared.get(width):
        notes.append(f"shared with {keeper.owner}")
        if isinstance(keeper, OwnDelta):
            return OwnDelta(view, keeper, source.weight, keeper.owner)
        return SharingDelta(view, keeper)
    each = config.block_factors == "each"
    most = max(1, width // BUDGET) if each else width
    count = min(config.block_atoms, width) if config.block_atoms else min(SHARED_ATOMS, most)
    seed = seed_layer(config.seed, path)
    if each:
        shared[width] = OwnDelta(view, draw_atoms(count, width, seed), source.weight, path)
    else:
        shared[width] = SharedDelta(view, count, seed, source.weight, path)
    return shared[width]


def count_blocks(view: View, config: AtomConfig) -> int:
    """Block atoms as `count_atoms`, or the share of the rows: as many hold that of the weights."""
    m = count_atoms(view, config, config.block_atoms)
    return min(m, max(1, int(config.block_share * view.height))) if config.block_share else m


def count_atoms(view: View, config: AtomConfig, asked: int | None) -> int:
    """The atoms asked for, as far as the view can have them; complete ones when None."""
    complete = min(view.width, view.height)
    if asked is None or config.decomposition == "linear":
        return min(asked or complete, complete)
    return min(asked, view.height, OVERCOMPLETE * view.width)


def encode(
    weight: Tensor,
    view: View,
    config: AtomConfig,
    asked: int | None,
    m: int,
    seed: int,
    notes: list[str],
) -> tuple[float, Tensor | Codes] | None:
    """Relative error, and the encoder `(p, at most m)` or codes `(n, at most m)`; None, noted,
    where the view has no atoms.

    Args:
        asked: the atoms the config asks for, None for all.
        m: what the budget leaves of them.
    """
    if view.width > MAX_WIDTH:
        notes.append(
            f"{view.kind} left out: its {view.width} columns are more than the {MAX_WIDTH} that fit"
        )
        return None
    if m < 1:
        notes.append(f"{view.kind} left out: no atoms fit a quarter of its weights")
        return None
    try:
        if config.decomposition == "sparse":
            basis, error = fit_codes(weight, view, m, config.sparsity, seed)
            found = len(basis.book.atoms)
        else:
            gram = measure_gram(weight, view)
            basis = fit_encoder(gram, m)
            error, found = relative_error(gram, basis), basis.shape[1]
            basis = basis.to(weight.device)
    except AtomError as problem:
        notes.append(f"left out: {problem}")
        return None
    complete = min(view.width, view.height)
    if m < count_atoms(view, config, asked):
        shared = view.kind != "spatial" and m == count_blocks(view, config)
        cause = "share" if shared else "budget"
        notes.append(f"{cause}: {view.kind} atoms {asked or complete} → {m}")
        asked = m
    if found < (asked or complete):
        cause = "rank" if config.decomposition == "linear" else "filters"
        notes.append(f"{cause}: {view.kind} atoms {asked or complete} → {found}")
    return error, basis


def seed_layer(seed: int, path: str) -> int:
    """A seed for one layer's inner coefficients: layers of equal shape should not start alike."""
    spread = sum(ord(c) * 31**i for i, c in enumerate(path)) % 2**31
    return (seed * 1_000_003 + spread) % 2**63
