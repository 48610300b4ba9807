"""One weight under a name of its own: what atoms tune, bakes write and files key.

The weight of a convolution or a linear layer goes by the layer's module path. nn.MultiheadAttention
holds four: `<path>.q_proj`, `.k_proj` and `.v_proj`, which are thirds of its `in_proj_weight` or
parameters of their own, and `<path>.out_proj`; no filter crosses from one into another. A layer
that another library wraps goes by the wrapper's path, without `base_layer` or `_orig_mod`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sdatoms.errors import AtomError, clip

__all__ = [
    "BAKED",
    "LayerWeight",
    "find_weight",
    "is_quantized",
    "list_above",
    "list_layers",
    "list_weights",
    "unwrap",
]


BAKED = "_sdatoms_baked"
"""Key of a module's `__dict__` under which `adapters.state` keeps what is baked into the module's
weights; what is kept there is true while any adapter is."""


@dataclass(frozen=True)
class LayerWeight:
    """A parameter of a module, or some rows of one."""

    module: nn.Module
    parameter: str = "weight"
    rows: tuple[int, int] | None = None
    """First row and the row after the last; None for all."""

    @property
    def held(self) -> Tensor | None:
        """The whole parameter, also where accelerate keeps it off the device and in its stead
        leaves a meta tensor; None where the module has none of that name."""
        found = self.module._parameters.get(self.parameter)
        if found is not None and found.is_meta:
            return find_offloaded(self.module, self.parameter, found)
        return found

    @property
    def offloaded(self) -> bool:
        """Whether accelerate fetches the weight only while the layer runs."""
        found = self.module._parameters.get(self.parameter)
        return found is not None and found.is_meta and self.held is not found

    @property
    def weight(self) -> Tensor:
        """The weight, detached: the live memory, or a float copy of what is stored quantized."""
        if self.quantized:
            # Imported here: it needs bitsandbytes, which whoever made the layer has imported.
            from sdatoms.layers.bits import dequantize

            return dequantize(self.module)
        held = self.held
        assert held is not None
        return held.detach() if self.rows is None else held.detach()[slice(*self.rows)]

    @property
    def bits(self) -> Tensor:
        """What a checksum tells a write by: the weight, or the stored bytes of a quantized one."""
        if self.quantized:
            from sdatoms.layers.bits import read_bits

            return read_bits(self.module)
        return self.weight

    @property
    def shape(self) -> tuple[int, ...]:
        """`(g·o, i)` or `(g·o, i, *kernel)`; empty where there is no weight."""
        if self.quantized and isinstance(self.module, nn.Linear):
            return self.module.out_features, self.module.in_features
        held = self.held
        if held is None:
            return ()
        rows = held.shape[:1] if self.rows is None else (self.rows[1] - self.rows[0],)
        return *rows, *held.shape[1:]

    @property
    def groups(self) -> int:
        return self.module.groups if isinstance(self.module, _ConvNd) else 1

    @property
    def quantized(self) -> bool:
        """Whether bitsandbytes stores the weight in fewer bits, so that none can be baked in."""
        return is_quantized(self.module)

    @property
    def coarse(self) -> bool:
        """Whether the weight is stored as 8-bit floating-point numbers, as by diffusers'
        `enable_layerwise_casting`: what atoms change is less than their rounding."""
        held = self.held
        return held is not None and held.is_floating_point() and held.dtype.itemsize == 1

    @property
    def place(self) -> tuple[int, tuple[int, int] | None]:
        """Equal for two names of one weight."""
        return id(self.held), self.rows


def find_offloaded(module: nn.Module, name: str, meta: Tensor) -> Tensor:
    """The tensor that `AlignDevicesHook` copies from whenever the module runs; `meta` where there
    is none."""
    hook = module.__dict__.get("_hf_hook")
    for inner in getattr(hook, "hooks", (hook,)):
        table = getattr(inner, "weights_map", None) if getattr(inner, "offload", False) else None
        if table is not None:
            try:
                found = table[name]
            except (KeyError, AttributeError):
                continue
            if isinstance(found, Tensor) and found.device.type == "cpu":
                return found
    return meta


def is_quantized(module: nn.Module) -> bool:
    """Whether `module` is a `Linear4bit` or `Linear8bitLt` of bitsandbytes, or a subclass."""
    return any(
        kind.__name__ in ("Linear4bit", "Linear8bitLt")
        and kind.__module__.partition(".")[0] == "bitsandbytes"
        for kind in type(module).__mro__
    )


def list_weights(module: nn.Module) -> dict[str, LayerWeight]:
    """Name within the layer → weight; the name is empty where there is only one."""
    if not isinstance(module, nn.MultiheadAttention):
        return {"": LayerWeight(module)}
    e = module.embed_dim
    names = ("q_proj", "k_proj", "v_proj")
    if module.in_proj_weight is not None:
        found = {
            name: LayerWeight(module, "in_proj_weight", (n * e, (n + 1) * e))
            for n, name in enumerate(names)
        }
    else:
        found = {name: LayerWeight(module, f"{name}_weight") for name in names}
    return found | {"out_proj": LayerWeight(unwrap(module.out_proj))}


def list_layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield `(path, module)` in the order of `named_modules`, wrappers seen through.

    A module under two names comes once, by its first. The inside of nn.MultiheadAttention belongs
    to it and does not come.
    """
    return walk_layers(unwrap(model), prefix, {model})


def walk_layers(
    parent: nn.Module, prefix: str, seen: set[nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in parent._modules.items():
        if child is None or (module := unwrap(child)) in seen:
            continue
        seen.add(module)
        yield f"{prefix}{name}", module
        if not isinstance(module, nn.MultiheadAttention):
            yield from walk_layers(module, f"{prefix}{name}.", seen)


def unwrap(module: nn.Module) -> nn.Module:
    """The module itself where PEFT holds it as its wrapper's `base_layer`, or torch.compile as
    `_orig_mod`."""
    held = module._modules
    while (inner := held.get("base_layer", held.get("_orig_mod"))) is not None:
        module, held = inner, inner._modules
    return module


def list_above(module: nn.Module, path: str) -> list[nn.Module | None]:
    """The module itself and all that hold what lies at `path`, seen through wrappers; None from
    where there is nothing."""
    above: list[nn.Module | None] = [unwrap(module)]
    for part in path.split(".")[:-1]:
        layer = above[-1]._modules.get(part) if above[-1] is not None else None
        above.append(unwrap(layer) if layer is not None else None)
    return above


def find_weight(module: nn.Module, path: str) -> LayerWeight:
    """The weight at `path`, seen through wrappers that hold a layer as their `base_layer`.

    Raises:
        AtomError: there is no convolution, linear layer or attention projection with a weight of
            its own.
    """
    found: LayerWeight | None = None
    layer, last = list_above(module, path)[-1], path.split(".")[-1]
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
