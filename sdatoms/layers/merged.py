"""What PEFT has merged into a weight that linear atoms read.

`merge` writes W + L where atoms expect W. The change of linear atoms is a map of W, so L is taken
off before they read it: `W + L + Δ(W)`, the same sum as unmerged. Layers learn of their wrappers
where torch registers one module in another. (`nn.MultiheadAttention`, into which PEFT merges on
every call, keeps the weights from before instead: `sdatoms.layers.attention`.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from sdatoms.errors import AtomError

__all__ = [
    "WRAPPED",
    "list_merged",
    "remember_wrapper",
    "take_off_merged",
    "watch_wrappers",
]

WATCHING: list[Any] = []
"""The handle of the hook, once it is there."""
WRAPPED = "_sdatoms_wrappers"
"""Name of a layer's list of wrappers, each with what was merged before the layer had atoms."""


def watch_wrappers() -> None:
    """From now on, atom layers remember the modules that wrap them."""
    if not WATCHING:
        WATCHING.append(register_module_module_registration_hook(remember_wrapper))


def remember_wrapper(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """Note in an atom layer that `parent` is a wrapper around it, as PEFT's are."""
    known = None if child is None else child.__dict__.get(WRAPPED)
    if known is not None and name == "base_layer" and all(w is not parent for w, _ in known):
        known.append((parent, tuple(getattr(parent, "merged_adapters", ()))))


def take_off_merged(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight without the LoRA that wrappers have merged into it since it has atoms.

    Raises:
        AtomError: something else than a plain LoRA is merged, which cannot be taken off.
    """
    for wrapper, name in list_merged(layer):
        plain = type(wrapper).__module__.startswith("peft.tuners.lora")
        if not plain or name in getattr(wrapper, "lora_variant", {}):
            raise AtomError(
                f"the adapter {name!r} ({type(wrapper).__name__}) is merged into a weight that "
                "linear atoms read, and only a plain LoRA can be told apart from it; call "
                "unmerge_adapter(), or save the atoms and load the file after merging"
            )
        with torch.no_grad():
            weight = weight.float() - wrapper.get_delta_weight(name).float()
    return weight


def list_merged(layer: nn.Module) -> list[tuple[Any, str]]:
    """Wrapper and adapter of everything that was merged into the layer since it has atoms."""
    return [
        (wrapper, name)
        for wrapper, before in layer.__dict__.get(WRAPPED, ())
        for name in getattr(wrapper, "merged_adapters", ())
        if name not in before
    ]
