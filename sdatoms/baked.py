"""What is baked into a module: its adapters, the pristine weights, and who else wrote to them.

It lives on the root module, as `BakedModule`: whoever shares the module shares it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from sdatoms.atom_file import LayerMap, clip
from sdatoms.attach import AttachedLayer
from sdatoms.errors import AtomError
from sdatoms.fingerprint import checksum
from sdatoms.side_by_side import work_side_by_side
from sdatoms.weights import LayerWeight, list_weights, unwrap

__all__ = [
    "BLOCKS",
    "Adapter",
    "BakedLayer",
    "BakedModule",
    "Strength",
    "check_untouched",
    "find_layer",
    "list_held",
    "read_pristine",
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
    layer: nn.Module | None = unwrap(module)
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


def read_pristine(root: nn.Module, path: str) -> Tensor:
    """The weight at `path` without the adapters that are baked into it now."""
    state = unwrap(root).__dict__.get("_sdatoms_baked")
    baked = state.layers.get(path) if isinstance(state, BakedModule) else None
    return baked.pristine if baked else find_layer(root, path).weight


def list_held(root: nn.Module, paths: Iterable[str]) -> list[Tensor]:
    """The parameters at `paths` as they are stored."""
    held = (find_layer(root, path).held for path in paths)
    return [parameter for parameter in held if parameter is not None]


def check_untouched(root: nn.Module, state: BakedModule) -> None:
    """Raise when somebody else changed a baked weight: a restore would then be wrong."""
    baked: dict[str, BakedLayer] = {}
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
        baked[path] = layer
    weights = [layer.weight for layer in baked.values()]
    for (path, layer), found in zip(
        baked.items(), work_side_by_side(checksum, weights, weights), strict=True
    ):
        if found != layer.current:
            raise AtomError(
                f"the weight of {path!r} was written to by something else (fuse_lora, "
                "load_state_dict?) while adapters are baked in; undo that (unfuse_lora), or reload "
                "the base model, before changing adapters"
            )
