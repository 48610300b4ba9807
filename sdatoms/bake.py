"""Sums of maps baked into plain weights: `W' = W + Σ_k s_k ΔW_k`, always from the pristine weight.

Maps of one view are summed first, in float64 and in the order of the files' hashes, so the order of
loading changes no bit and K adapters cost what one costs; the sum is formed in float32 and cast
once. What is baked lives on the root module, as `BakedModule`: whoever shares the module shares it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

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
    lost, whole = 0.0, 0.0
    order = sorted(state.adapters.values(), key=lambda a: (a.hash, str(a.strength)))
    for path in list(paths):
        terms = [(a.strength_at(path), m) for a in order for m in a.maps.get(path, [])]
        terms = [(strength, m) for strength, m in terms if strength != 0]
        layer = state.layers.get(path)
        if layer is None:
            if not terms:
                continue
            base = find_layer(root, path)
            pristine = base.weight.detach().clone()
            layer = state.layers[path] = BakedLayer(base, pristine, checksum(pristine))
        weight = layer.weight
        layer.pristine = layer.pristine.to(weight.device)
        with torch.no_grad():
            if terms:
                delta = sum_maps(layer.pristine, terms)
                exact = layer.pristine + delta
                baked = exact.to(weight.dtype)
                if baked.element_size() < 4:
                    lost += float((baked - exact).norm()) ** 2
                    whole += float(delta.norm()) ** 2
                weight.copy_(baked)
                layer.current = checksum(baked)
            else:
                weight.copy_(layer.pristine)
                del state.layers[path]
    return (lost / whole) ** 0.5 if whole else 0.0


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


def sum_maps(weight: Tensor, terms: Iterable[tuple[float, LayerMap]]) -> Tensor:
    """`Σ s ΔW` in float32. Maps of one view are summed in float64 first, in the order given."""
    sums: dict[tuple[View, int], Tensor] = {}
    for strength, m in terms:
        part = strength * m.transform
        key = (m.view(weight), part.dim())
        sums[key] = sums[key] + part if key in sums else part
    total = torch.zeros(weight.shape, device=weight.device)
    with torch.autocast(weight.device.type, enabled=False):
        for key in sorted(sums, key=lambda key: (key[0].kind, key[0].block, key[1])):
            total = total + apply_map(weight, key[0], sums[key].float().to(weight.device))
    return total


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
        with torch.no_grad():
            for path, maps in list_maps(grouped, layouts).items():
                layer = injection.layers[path]
                pristine = layer.weight.detach().clone()
                kept.append((layer, layer.weight, layer.deltas, pristine))
                delta = sum_maps(pristine, [(1.0, m) for m in maps])
                layer.weight.copy_((pristine + delta).to(pristine.dtype))
                layer.deltas = nn.ModuleDict()
        yield
    finally:
        with torch.no_grad():
            for layer, weight, deltas, pristine in kept:
                layer._modules["deltas"] = deltas
                weight.copy_(pristine)
