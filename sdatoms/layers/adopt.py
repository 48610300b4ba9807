"""From a base layer to the atom layer that stands in for it."""

from __future__ import annotations

import functools
import types
from typing import Any

from torch import nn

from sdatoms.errors import AtomError
from sdatoms.layers.atom_layers import AtomConv1d, AtomConv2d, AtomConv3d, AtomLayer, AtomLinear
from sdatoms.layers.attention import AtomMultiheadAttention
from sdatoms.layers.merged import WRAPPED, watch_wrappers
from sdatoms.layers.weights import is_quantized

__all__ = [
    "adopt",
    "find_kind",
]

KINDS: dict[type[nn.Module], type[AtomLayer]] = {
    nn.Conv1d: AtomConv1d,
    nn.Conv2d: AtomConv2d,
    nn.Conv3d: AtomConv3d,
    nn.Linear: AtomLinear,
    nn.MultiheadAttention: AtomMultiheadAttention,
}


def find_kind(module: nn.Module) -> type[AtomLayer] | None:
    """The atom layer for a base of exactly this class; None where there is none."""
    if is_quantized(module):
        # Imported here: it needs bitsandbytes, which whoever made the layer has imported.
        from sdatoms.layers.quantized import KINDS as QUANTIZED

        return QUANTIZED.get(type(module))
    return KINDS.get(type(module))


def adopt(base: nn.Module) -> AtomLayer:
    """An atom layer sharing parameters, buffers, hooks and attributes with `base`, without deltas.

    Raises:
        AtomError: `base` is of another class, or another library has replaced its `forward`.
    """
    kind = find_kind(base)
    if kind is None:
        raise AtomError(
            f"filter atoms fit convolutions, linear layers and nn.MultiheadAttention, not "
            f"{type(base).__name__}"
        )
    layer = kind.__new__(kind)
    # `_parameters` and `_buffers` are shared tables, one truth for both layers; `_modules` is not,
    # since only the atom layer has deltas.
    layer.__dict__.update(base.__dict__)
    layer.__dict__["_modules"] = dict(base._modules)
    watch_wrappers()
    layer.__dict__[WRAPPED] = []
    layer.deltas = nn.ModuleDict()
    layer.deltas.train(base.training)
    move_forward(base, layer)
    return layer


def move_forward(base: nn.Module, layer: AtomLayer) -> None:
    """Let a `forward` that was set on the instance call the atom layer instead of its base.

    accelerate's hooks do so: `forward` is a partial of the module that calls `_old_forward`, and
    what they leave behind when removed is the plain bound method.

    Raises:
        AtomError: the function is of another library, which knows nothing of atoms.
    """
    own = layer.__dict__
    forward = own.pop("forward", None)
    if forward is None or is_plain(forward, base):
        return
    hooked = isinstance(forward, functools.partial) and forward.args[:1] == (base,)
    if not (hooked and "_hf_hook" in own and is_plain(own.get("_old_forward"), base)):
        raise AtomError(
            f"the forward of this {type(base).__name__} was replaced by another library, which "
            "would pass the atoms by; undo that before injecting atoms"
        )
    plain = types.MethodType(type(layer).forward, layer)
    moved = functools.partial(forward.func, layer, *forward.args[1:], **forward.keywords)
    own["_old_forward"] = plain
    own["forward"] = functools.update_wrapper(moved, plain)


def is_plain(method: Any, base: nn.Module) -> bool:
    """Whether `method` is the bound `forward` of the layer's own class."""
    return (
        isinstance(method, types.MethodType)
        and method.__self__ is base
        and method.__func__ is type(base).forward
    )
