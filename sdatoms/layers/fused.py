"""Layers whose parent computes with a joined copy of their weights, and so passes them by.

diffusers' `fuse_qkv_projections` copies the weights of an attention's projections into one larger
layer and calls that; what is changed in the projections afterwards reaches no picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NoReturn

from torch import nn

from sdatoms.errors import AtomError, clip

__all__ = ["check_read", "find_fused", "forbid_joining"]

JOINED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
"""Layer of an attention → those whose weights were joined into it."""


def find_fused(model: nn.Module) -> dict[str, str]:
    """Module path of a layer that is passed by → name of the layer that is called in its place."""
    found: dict[str, str] = {}
    for path, parent in model.named_modules():
        if calls_joined(parent):
            for joined, parts in JOINED.items():
                if joined in parent._modules:
                    paths = [f"{path}.{part}" if path else part for part in parts]
                    found |= dict.fromkeys(paths, joined)
    return found


def calls_joined(parent: nn.Module) -> bool:
    """Whether an attention of diffusers calls its joined layers.

    Older classes keep them, and the flag, when they are unfused; there the processor tells.
    """
    if not getattr(parent, "fused_projections", False):
        return False
    processor = type(getattr(parent, "processor", None)).__name__
    return hasattr(parent, "unfuse_projections") or "Fused" in processor


def check_read(model: nn.Module, paths: Iterable[str], when: str) -> None:
    """Refuse layers that are passed by.

    Args:
        when: ends the sentence, such as "before loading a file".

    Raises:
        AtomError: a layer at one of the paths is passed by.
    """
    fused = find_fused(model)
    passed = [path for path in paths if path in fused] if fused else []
    if passed:
        raise AtomError(
            f"the layer {clip(passed[0])!r}, one of {len(passed)}, is passed by: the model "
            f"computes with a copy of it in {fused[passed[0]]!r}, made by fuse_qkv_projections; "
            f"call unfuse_qkv_projections() {when}, and fuse again after that"
        )


def forbid_joining(model: nn.Module, paths: Iterable[str]) -> Callable[[], None]:
    """Let `fuse_qkv_projections` raise an AtomError where it would copy the weights of layers whose
    atoms train. Returns what allows it again.

    Args:
        paths: of the layers that carry atoms.
    """
    held: list[nn.Module] = []
    for path in paths:
        place, _, name = path.rpartition(".")
        parent = model.get_submodule(place)
        joins = any(name in parts for parts in JOINED.values())
        if joins and parent not in held and hasattr(parent, "fuse_projections"):
            # A plain attribute of the instance, beside the method of its class.
            object.__setattr__(parent, "fuse_projections", partial(refuse_joining, path))
            held.append(parent)

    def allow() -> None:
        for parent in held:
            parent.__dict__.pop("fuse_projections", None)

    return allow


def refuse_joining(path: str, *_: Any, **__: Any) -> NoReturn:
    raise AtomError(
        f"the layer {clip(path)!r} carries atoms that train, and fuse_qkv_projections would pass "
        "them by; call eject() before it, or fuse a pipeline that has the saved file baked in"
    )
