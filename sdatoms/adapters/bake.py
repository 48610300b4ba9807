"""Sums of maps baked into plain weights: `W' = W + Σ_k s_k ΔW_k`, always from the pristine weight.

Maps of one view (deltas of one code book) are summed first, in float64 and in the order of the
files' hashes, so the order of loading changes no bit and K adapters cost what one costs; the sum is
formed in float32 and cast once, a few output channels at a time, so that nothing weight-sized is
held beside the pristine weights (sparse codes are: those of one weight at a time).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from sdatoms.adapters.keep import can_attach
from sdatoms.adapters.state import AttachedLayer, BakedLayer, BakedModule, work_side_by_side
from sdatoms.atoms.decompose import walk_channels
from sdatoms.atoms.keys import group_tensors
from sdatoms.atoms.lora import LoraMap
from sdatoms.atoms.maps import LayerMap, form_deltas, sum_transforms
from sdatoms.errors import AtomError, clip
from sdatoms.files.atom_file import list_maps
from sdatoms.files.writer import describe_layout
from sdatoms.fingerprint import checksum
from sdatoms.layers.atom_layers import TunedWeight
from sdatoms.layers.attention import is_passed_by
from sdatoms.layers.inject import Injection
from sdatoms.layers.weights import LayerWeight, find_weight

__all__ = [
    "all_or_nothing",
    "bake_injection",
    "copy_weight",
    "rebake",
    "sum_maps",
    "write_sum",
]

CHUNK = 1 << 18
"""Weights whose change is formed at once: small enough for a processor's own cache."""


def rebake(root: nn.Module, state: BakedModule, paths: Iterable[str]) -> float:
    """Write the weights at `paths` anew from their pristine copies and the present strengths.

    Returns:
        The share of the change that rounding to 16-bit weights loses, over these layers.

    Raises:
        AtomError: a sum is not finite in the weights' dtype; see `all_or_nothing`.
    """
    jobs: list[tuple[str, BakedLayer, list[tuple[float, LayerMap | LoraMap]]]] = []
    for path in list(paths):
        order = sorted(
            (a.hash, a.strength_at(path), name)
            for name, a in state.adapters.items()
            if path in a.maps
        )
        terms = [
            (strength, m)
            for _, strength, name in order
            if strength != 0
            for m in state.adapters[name].maps[path]
        ]
        layer = state.layers.get(path)
        if layer is None:
            if not terms:
                continue
            base = find_weight(root, path)
            layer = state.layers[path] = make_layer(root, state, path, base, terms)
        if isinstance(layer, AttachedLayer):
            if terms:
                layer.attach(root, form_deltas(layer.pristine, terms))
            else:
                layer.detach(root)
                del state.layers[path]
            continue
        if terms:
            jobs.append((path, layer, terms))
        else:
            with torch.no_grad():
                layer.weight.copy_(layer.pristine)
            del state.layers[path]
    written = write_sums([(layer.weight, layer, terms) for _, layer, terms in jobs])
    for (path, layer, _), (lost, _, found) in zip(jobs, written, strict=True):
        layer.current = found
        if not math.isfinite(lost):
            raise AtomError(
                f"the change leaves {path!r} no finite weights in {layer.dtype}; lower "
                "the strength, or load the base in torch.float32"
            )
    lost, whole = (sum(row[part] for row in written) for part in (0, 1))
    return (lost / whole) ** 0.5 if whole else 0.0


def make_layer(
    root: nn.Module,
    state: BakedModule,
    path: str,
    base: LayerWeight,
    terms: Sequence[tuple[float, LayerMap | LoraMap]],
) -> BakedLayer | AttachedLayer:
    """A layer that some adapter changes from now on, its pristine weight kept as the module says;
    in memory where that cannot be: sparse codes, LoRAs, and what torch's fused path reads, are
    always baked."""
    linear = all(isinstance(m, LayerMap) and m.book is None for _, m in terms)
    wished = state.keep == "attach" and linear and can_attach(base)
    if base.quantized or (wished and not is_passed_by(root, path)):
        return AttachedLayer(base)
    if state.keep == "file" and path in state.stored:
        return BakedLayer(base, state.stored[path], 0)
    return BakedLayer(base, copy_weight(base.weight), 0)


WeightSum = tuple[Tensor, Tensor | BakedLayer, Iterable[tuple[float, LayerMap | LoraMap]]]
"""Where to write, the pristine weight or the layer that knows it, and the maps to add."""


def write_sums(sums: Sequence[WeightSum]) -> list[tuple[float, float, int]]:
    """`write_sum` for every weight, and the checksum of what was written; layers side by side."""

    def write(one: WeightSum) -> tuple[float, float, int]:
        weight, source, terms = one
        pristine = source if isinstance(source, Tensor) else source.pristine
        return (*write_sum(weight, pristine, terms), checksum(weight))

    return work_side_by_side(write, sums, (weight for weight, _, _ in sums))


def copy_weight(weight: Tensor) -> Tensor:
    """A copy on the weight's device, `contiguous` in memory."""
    if weight.device.type != "cpu":
        return weight.detach().clone(memory_format=torch.contiguous_format)
    # numpy's allocator asks for huge pages: half the time where gigabytes are touched first.
    raw = torch.from_numpy(np.empty(weight.numel() * weight.element_size(), np.uint8))
    return raw.view(weight.dtype).view(weight.shape).copy_(weight.detach())


@torch.no_grad()
def write_sum(
    weight: Tensor, pristine: Tensor, terms: Iterable[tuple[float, LayerMap | LoraMap]]
) -> tuple[float, float]:
    """Write `pristine + Σ s ΔW` into `weight`, summed in float32 (or what is wider), cast once.

    Returns:
        For 16-bit weights the squared norms of what the cast lost and of the change, else zeros.
    """
    lost, whole = 0.0, 0.0
    for rows, delta in walk_sum(pristine, terms):
        if weight.element_size() >= 4:
            torch.add(pristine[rows], delta, out=weight[rows])
            continue
        exact = pristine[rows] + delta
        weight[rows] = exact
        lost += float((weight[rows] - exact).norm()) ** 2
        whole += float(delta.norm()) ** 2
    return lost, whole


@contextmanager
def all_or_nothing(states: Iterable[tuple[nn.Module, BakedModule]]) -> Iterator[None]:
    """Run a change of adapters; when it fails, put their tables and the weights back."""
    before = [(root, state, dict(state.adapters)) for root, state in states]
    try:
        yield
    except BaseException:
        for root, state, adapters in before:
            either = [*state.adapters.values(), *adapters.values()]
            state.adapters = adapters
            rebake(root, state, dict.fromkeys(path for a in either for path in a.maps))
        raise


@torch.no_grad()
def sum_maps(weight: Tensor, terms: Iterable[tuple[float, LayerMap | LoraMap]]) -> Tensor:
    """`Σ s ΔW` in float32."""
    total = torch.empty(weight.shape, device=weight.device)
    for rows, delta in walk_sum(weight, terms):
        total[rows] = delta
    return total


def walk_sum(
    weight: Tensor, terms: Iterable[tuple[float, LayerMap | LoraMap]]
) -> Iterator[tuple[slice, Tensor]]:
    """Yield output channels and `Σ s ΔW` for them, in float32."""
    maps = sum_transforms(weight, terms)
    most = weight.numel() if any(m.whole for m in maps) else CHUNK
    for span in walk_channels(weight, (m.view for m in maps), most):
        part = weight[span]
        total = None
        with torch.autocast(weight.device.type, enabled=False):
            for m in maps:
                delta = m.apply(part, span.start)
                total = delta if total is None else total + delta
        if total is None:
            total = torch.zeros(part.shape, device=weight.device)
        yield span, total


@contextmanager
def bake_injection(
    injection: Injection, tensors: Mapping[str, Tensor], component: str = "unet"
) -> Iterator[None]:
    """Bake `tensors` (as in an atom file) into an injected model for the time of a `with` block.

    What is computed inside equals, to the bit, what a fresh base computes with the saved file
    loaded at strength 1.

    Raises:
        AtomError: a tensor fits no injected layer; nothing is changed.
    """
    layouts = {path: describe_layout(weight) for path, weight in injection.weights.items()}
    grouped = group_tensors(tensors).get(component, {})
    for path in grouped:
        if path not in layouts:
            raise AtomError(f"there is no injected layer {clip(path)!r} for the given tensors")
    kept: list[tuple[TunedWeight, dict[str, nn.Module], Tensor | None]] = []
    try:
        sums: list[WeightSum] = []
        for path, maps in list_maps(grouped, layouts).items():
            tuned = injection.weights[path]
            terms = [(1.0, lend_codes(m, tuned)) for m in maps]
            live, deltas = tuned.base.weight, dict(tuned.deltas.items())
            if tuned.base.quantized:
                kept.append((tuned, deltas, None))
                tuned.deltas.clear()
                tuned.deltas.update(form_deltas(live, terms))
            else:
                pristine = copy_weight(live)
                kept.append((tuned, deltas, pristine))
                sums.append((live, pristine, terms))
                tuned.deltas.clear()
        write_sums(sums)
        yield
    finally:
        with torch.no_grad():
            for tuned, deltas, pristine in kept:
                tuned.deltas.clear()
                tuned.deltas.update(deltas)
                if pristine is not None:
                    tuned.base.weight.copy_(pristine)


def lend_codes(map: LayerMap, tuned: TunedWeight) -> LayerMap:
    """The map with the weight's own codes, where its base atoms are the weight's."""
    delta = tuned.views.get("spatial" if map.kind == "spatial" else "block")
    if not map.book or not delta or not delta.book or delta.book.hash != map.book.hash:
        return map
    return replace(map, codes=delta.codes)
