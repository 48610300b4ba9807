"""Sums of maps baked into plain weights: `W' = W + Σ_k s_k ΔW_k`, always from the pristine weight.

Maps of one view (deltas of one code book) are summed first, in float64 and in the order of the
files' hashes, so the order of loading changes no bit and K adapters cost what one costs; the sum is
formed in float32 and cast once, a few output channels at a time, so that nothing weight-sized is
held beside the pristine weights (sparse codes are: those of one weight at a time). What is baked
lives on the root module, as `BakedModule`: whoever shares the module shares it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from sdatoms.atom_file import LayerMap, clip, group_tensors, list_maps
from sdatoms.attach import AttachedLayer, list_map_deltas
from sdatoms.checkpoint import describe_layout
from sdatoms.errors import AtomError
from sdatoms.fingerprint import checksum
from sdatoms.inject import Injection
from sdatoms.layers import TunedWeight
from sdatoms.summed_maps import list_pairs, sum_transforms
from sdatoms.weights import LayerWeight, list_weights, unwrap

__all__ = [
    "Adapter",
    "BakedLayer",
    "BakedModule",
    "Strength",
    "all_or_nothing",
    "bake_injection",
    "check_untouched",
    "find_layer",
    "rebake",
    "sum_maps",
]

Strength = float | Mapping[str, float]
"""One number, or numbers for the UNet's `down`, `mid` and `up` blocks (1 where not given)."""
BLOCKS = {
    "down_blocks": "down",
    "conv_in": "down",
    "mid_block": "mid",
    "up_blocks": "up",
    "conv_out": "up",
}
"""First part of a module path → the block whose strength counts."""
CHUNK = 1 << 18
"""Weights whose change is formed at once: small enough for a processor's own cache."""
SIDE_BY_SIDE = 1 << 22
"""Weights from which on several threads are worth starting."""


@dataclass(frozen=True)
class Adapter:
    """One loaded file on one module."""

    hash: str
    """The file's; sums are taken in the order of the hashes."""
    maps: dict[str, list[LayerMap]]
    """Module path → maps at strength 1."""
    strength: Strength
    differing: tuple[str, ...] = ()
    """Layers whose pristine weight is not the one the file was trained on."""

    def strength_at(self, path: str) -> float:
        """The strength for the layer at `path`."""
        if isinstance(self.strength, Mapping):
            return float(self.strength.get(BLOCKS.get(path.split(".")[0], ""), 1.0))
        return float(self.strength)


@dataclass
class BakedLayer:
    """A layer some adapter changes now."""

    base: LayerWeight
    pristine: Tensor
    """Its weight without adapters."""
    current: int
    """Checksum of the weight as last written."""

    @property
    def weight(self) -> Tensor:
        return self.base.weight


@dataclass
class BakedModule:
    """All adapters of one root module; kept in its `__dict__` as `_sdatoms_baked`."""

    component: str
    """What the module is called in keys, such as `unet`."""
    adapters: dict[str, Adapter] = field(default_factory=dict)
    layers: dict[str, BakedLayer | AttachedLayer] = field(default_factory=dict)
    origins: dict[str, int] = field(default_factory=dict)
    """Checksums of the pristine weights since the first load; they outlive the last adapter."""

    def __bool__(self) -> bool:
        """Whether any adapter is loaded."""
        return bool(self.adapters)


def find_layer(module: nn.Module, path: str) -> LayerWeight:
    """The weight at `path`, seen through wrappers that hold a layer as their `base_layer`.

    Raises:
        AtomError: there is no convolution, linear layer or attention projection with a weight of
            its own.
    """
    layer: nn.Module | None = module
    found: LayerWeight | None = None
    *parents, last = path.split(".")
    for part in parents:
        layer = layer._modules.get(part) if layer is not None else None
        layer = unwrap(layer) if layer is not None else None
    if isinstance(layer, nn.MultiheadAttention):
        found = list_weights(layer).get(last)
    elif layer is not None and (child := layer._modules.get(last)) is not None:
        layer = unwrap(child)
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            found = LayerWeight(layer)
    if found is None or found.held is None:
        raise AtomError(
            f"this {type(module).__name__} has no layer {clip(path)!r} that the file's atoms "
            "could fit"
        )
    return found


def rebake(root: nn.Module, state: BakedModule, paths: Iterable[str]) -> float:
    """Write the weights at `paths` anew from their pristine copies and the present strengths.

    Returns:
        The share of the change that rounding to 16-bit weights loses, over these layers.
    """
    jobs: list[tuple[BakedLayer, list[tuple[float, LayerMap]]]] = []
    order = sorted(state.adapters.values(), key=lambda a: (a.hash, str(a.strength)))
    for path in list(paths):
        terms = [(a.strength_at(path), m) for a in order for m in a.maps.get(path, [])]
        terms = [(strength, m) for strength, m in terms if strength != 0]
        layer = state.layers.get(path)
        if layer is None:
            if not terms:
                continue
            base = find_layer(root, path)
            if base.quantized:
                layer = AttachedLayer(base)
            else:
                layer = BakedLayer(base, copy_weight(base.weight), 0)
            state.layers[path] = layer
        if isinstance(layer, AttachedLayer):
            if terms:
                layer.attach(root, list_pairs(layer.pristine, terms))
            else:
                layer.detach(root)
                del state.layers[path]
            continue
        weight = layer.weight
        layer.pristine = layer.pristine.to(weight.device)
        if terms:
            jobs.append((layer, terms))
        else:
            with torch.no_grad():
                weight.copy_(layer.pristine)
            del state.layers[path]
    written = write_sums([(layer.weight, layer.pristine, terms) for layer, terms in jobs])
    for (layer, _), (_, _, found) in zip(jobs, written, strict=True):
        layer.current = found
    lost, whole = (sum(row[part] for row in written) for part in (0, 1))
    return (lost / whole) ** 0.5 if whole else 0.0


Job = tuple[Tensor, Tensor, Iterable[tuple[float, LayerMap]]]
"""Where to write, the pristine weight, and the maps to add."""


def write_sums(jobs: Sequence[Job]) -> list[tuple[float, float, int]]:
    """`write_sum` for every job, and the checksum of what was written.

    Layers are worked on side by side, each by one thread: no thread waits for another, and no bit
    depends on how many there are.
    """
    threads, mode = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def work(job: Job) -> tuple[float, float, int]:
        with torch.inference_mode(mode):  # a thread of its own knows nothing of the caller's
            return *write_sum(*job), checksum(job[0])

    large = sum(weight.numel() for weight, _, _ in jobs) >= SIDE_BY_SIDE
    try:
        if threads > 1 and large and all(w.device.type == "cpu" for w, _, _ in jobs):
            with ThreadPoolExecutor(threads, "bake", torch.set_num_threads, (1,)) as pool:
                return list(pool.map(work, jobs))
        torch.set_num_threads(1)
        return [work(job) for job in jobs]
    finally:
        torch.set_num_threads(threads)


def copy_weight(weight: Tensor) -> Tensor:
    """A copy on the weight's device, `contiguous` in memory."""
    if weight.device.type != "cpu":
        return weight.detach().clone(memory_format=torch.contiguous_format)
    # numpy's allocator asks for huge pages: half the time where gigabytes are touched first.
    raw = torch.from_numpy(np.empty(weight.numel() * weight.element_size(), np.uint8))
    return raw.view(weight.dtype).view(weight.shape).copy_(weight.detach())


@torch.no_grad()
def write_sum(
    weight: Tensor, pristine: Tensor, terms: Iterable[tuple[float, LayerMap]]
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
def sum_maps(weight: Tensor, terms: Iterable[tuple[float, LayerMap]]) -> Tensor:
    """`Σ s ΔW` in float32."""
    total = torch.empty(weight.shape, device=weight.device)
    for rows, delta in walk_sum(weight, terms):
        total[rows] = delta
    return total


def walk_sum(
    weight: Tensor, terms: Iterable[tuple[float, LayerMap]]
) -> Iterator[tuple[slice, Tensor]]:
    """Yield output channels and `Σ s ΔW` for them, in float32."""
    maps = sum_transforms(weight, terms)
    step = len(weight)
    if all(m.view.groups == 1 or m.transform.dim() == 2 for m in maps):
        # Blocks cross no group, so a single map does not care where groups begin.
        side = math.lcm(*(m.view.block[0] for m in maps))
        step = max(1, CHUNK // max(1, weight.shape[1:].numel()) // side) * side
    for start in range(0, len(weight), step):
        part = weight[start : start + step]
        total = None
        with torch.autocast(weight.device.type, enabled=False):
            for m in maps:
                delta = m.apply(part, start)
                total = delta if total is None else total + delta
        if total is None:
            total = torch.zeros(part.shape, device=weight.device)
        yield slice(start, start + step), total


def check_untouched(root: nn.Module, state: BakedModule) -> None:
    """Raise when somebody else changed a baked weight: a restore would then be wrong."""
    for path, layer in state.layers.items():
        try:
            found = find_layer(root, path)
        except AtomError:
            found = None
        stands = layer.layer if isinstance(layer, AttachedLayer) else layer.base.module
        if found is None or found.module is not stands:
            raise AtomError(
                f"the layer {path!r} was replaced by something else while adapters are baked in; "
                "put it back, or reload the base model, before changing adapters"
            )
        if found.held is None or found.held.is_meta:
            raise AtomError(
                f"the weight of {path!r} moved to the meta device (offload?); bring it back before "
                "changing adapters"
            )
        if isinstance(layer, AttachedLayer):
            continue
        weight = layer.weight
        if weight.dtype != layer.pristine.dtype:
            raise AtomError(
                f"the weight of {path!r} was cast from {layer.pristine.dtype} to {weight.dtype} "
                "while adapters are baked in; cast it back (or reload the base model, if that lost "
                "bits), call clear(), then cast and load again"
            )
        if checksum(weight) != layer.current:
            raise AtomError(
                f"the weight of {path!r} was written to by something else (fuse_lora, "
                "load_state_dict?) while adapters are baked in; undo that (unfuse_lora), or reload "
                "the base model, before changing adapters"
            )


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
        jobs: list[Job] = []
        for path, maps in list_maps(grouped, layouts).items():
            tuned = injection.weights[path]
            terms = [(1.0, lend_codes(m, tuned)) for m in maps]
            live, deltas = tuned.base.weight, dict(tuned.deltas.items())
            if tuned.base.quantized:
                kept.append((tuned, deltas, None))
                tuned.deltas.clear()
                tuned.deltas.update(list_map_deltas(list_pairs(live, terms)))
            else:
                pristine = copy_weight(live)
                kept.append((tuned, deltas, pristine))
                jobs.append((live, pristine, terms))
                tuned.deltas.clear()
        write_sums(jobs)
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
