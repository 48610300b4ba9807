"""Sums of maps baked into plain weights: `W' = W + Σ_k s_k ΔW_k`, always from the pristine weight.

Maps of one view are summed first, in float64 and in the order of the files' hashes, so the order of
loading changes no bit and K adapters cost what one costs; the sum is formed in float32 and cast
once, a few output channels at a time, so that nothing weight-sized is held beside the pristine
weights. What is baked lives on the root module, as `BakedModule`: whoever shares the module shares
it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from sdatoms.atom_file import LayerMap, clip, group_tensors, list_maps
from sdatoms.checkpoint import describe_layout
from sdatoms.decompose import View
from sdatoms.deltas import apply_map
from sdatoms.errors import AtomError
from sdatoms.fingerprint import checksum
from sdatoms.inject import Injection

__all__ = [
    "Adapter",
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

    module: nn.Module
    pristine: Tensor
    """Its weight without adapters."""
    current: int
    """Checksum of the weight as last written."""

    @property
    def weight(self) -> Tensor:
        return read_weight(self.module)


@dataclass
class BakedModule:
    """All adapters of one root module; kept in its `__dict__` as `_sdatoms_baked`."""

    component: str
    """What the module is called in keys, such as `unet`."""
    adapters: dict[str, Adapter] = field(default_factory=dict)
    layers: dict[str, BakedLayer] = field(default_factory=dict)
    origins: dict[str, int] = field(default_factory=dict)
    """Checksums of the pristine weights since the first load; they outlive the last adapter."""

    def __bool__(self) -> bool:
        """Whether any adapter is loaded."""
        return bool(self.adapters)


def find_layer(module: nn.Module, path: str) -> nn.Conv2d | nn.Linear:
    """The layer at `path`, seen through wrappers that hold it as their `base_layer`.

    Raises:
        AtomError: there is no convolution or linear layer with a weight of its own.
    """
    layer: nn.Module | None = module
    for part in path.split("."):
        layer = layer._modules.get(part) if layer is not None else None
        while layer is not None and layer._modules.get("base_layer") is not None:
            layer = layer._modules["base_layer"]
    if not isinstance(layer, nn.Conv2d | nn.Linear) or layer._parameters.get("weight") is None:
        raise AtomError(
            f"this {type(module).__name__} has no layer {clip(path)!r} that the file's atoms "
            "could fit"
        )
    return layer


def read_weight(layer: nn.Module) -> Tensor:
    weight = layer._parameters["weight"]
    assert weight is not None
    return weight


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
            layer = state.layers[path] = BakedLayer(base, copy_weight(base.weight), 0)
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
    """Yield output channels and `Σ s ΔW` for them, in float32.

    Maps of one view are summed in float64 first, in the order given.
    """
    sums: dict[tuple[View, int], Tensor] = {}
    for strength, m in terms:
        part = strength * m.transform
        key = (m.view(weight), part.dim())
        sums[key] = sums[key] + part if key in sums else part
    order = sorted(sums, key=lambda key: (key[0].kind, key[0].block, key[1]))
    maps = [(view, sums[view, dim].float().to(weight.device)) for view, dim in order]
    step = len(weight)
    if all(view.groups == 1 or transform.dim() == 2 for view, transform in maps):
        # Blocks cross no group, so a single map does not care where groups begin.
        side = math.lcm(*(view.block[0] for view, _ in maps))
        step = max(1, CHUNK // max(1, weight.shape[1:].numel()) // side) * side
    for start in range(0, len(weight), step):
        part = weight[start : start + step]
        total = None
        with torch.autocast(weight.device.type, enabled=False):
            for view, transform in maps:
                groups = view.groups if len(part) == len(weight) else 1
                delta = apply_map(part, View(view.kind, part.shape, groups, view.block), transform)
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
        if found is not layer.module:
            raise AtomError(
                f"the layer {path!r} was replaced by something else while adapters are baked in; "
                "put it back, or reload the base model, before changing adapters"
            )
        weight = layer.weight
        if weight.is_meta:
            raise AtomError(
                f"the weight of {path!r} moved to the meta device (offload?); bring it back before "
                "changing adapters"
            )
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
    layouts = {path: describe_layout(layer) for path, layer in injection.layers.items()}
    grouped = group_tensors(tensors).get(component, {})
    for path in grouped:
        if path not in layouts:
            raise AtomError(f"there is no injected layer {clip(path)!r} for the given tensors")
    kept: list[tuple[nn.Module, Tensor, nn.Module, Tensor]] = []
    try:
        jobs: list[Job] = []
        for path, maps in list_maps(grouped, layouts).items():
            layer = injection.layers[path]
            pristine = copy_weight(layer.weight)
            kept.append((layer, layer.weight, layer.deltas, pristine))
            jobs.append((layer.weight, pristine, [(1.0, m) for m in maps]))
            layer.deltas = nn.ModuleDict()
        write_sums(jobs)
        yield
    finally:
        with torch.no_grad():
            for layer, weight, deltas, pristine in kept:
                layer._modules["deltas"] = deltas
                weight.copy_(pristine)
