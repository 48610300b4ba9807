"""Forge: full differences among the patches of its UNet and its text encoders.

Forge restores and patches weights itself, whenever the list of patches has changed. Ours are told
from others by their name; they are put anew each time, so that none outlasts the prompt it was for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sdatoms_webui.changes import Change, sum_changes

__all__ = ["apply_to_forge", "list_forge_shapes"]

MARK = "sdatoms "
"""What our patches are called begins with this."""
PACKED = ("bnb_quantized", "gguf_cls")
"""Attributes of weights that are no plain numbers."""


def list_forge_shapes(sd_model: Any) -> dict[str, torch.Size]:
    """Key → shape of the weights of the UNet and of the text encoders."""
    return {
        key: weight.shape
        for patcher in list_patchers(sd_model.forge_objects)
        for key, weight in list_weights(patcher).items()
    }


def apply_to_forge(sd_model: Any, name: str, changes: Mapping[str, Sequence[Change]]) -> None:
    """Put these changes, and no others of ours, into what the next picture is made with.

    Args:
        name: what the changes depend on, in words; Forge patches anew where it differs.

    Raises:
        ValueError: the checkpoint's weights are packed (4 bits, GGUF).
    """
    kept = sd_model.__dict__.get("_sdatoms_patches", ("", []))
    if kept[0] != name:
        patches = [
            compute_patches(patcher, changes) for patcher in list_patchers(sd_model.forge_objects)
        ]
        kept = (name, patches)
        sd_model.__dict__["_sdatoms_patches"] = kept
    for objects in (sd_model.forge_objects, sd_model.forge_objects_after_applying_lora):
        unet, clip = (own if own else None for own in kept[1])
        objects.unet = replace_ours(objects.unet, lambda new: new, name, unet)
        objects.clip = replace_ours(objects.clip, lambda new: new.patcher, name, clip)


def list_patchers(objects: Any) -> list[Any]:
    return [objects.unet, objects.clip.patcher]


def list_weights(patcher: Any) -> dict[str, torch.Tensor]:
    return {k: w for k, w in patcher.model.named_parameters() if k.endswith(".weight")}


def compute_patches(patcher: Any, changes: Mapping[str, Sequence[Change]]) -> dict[str, Any]:
    """Key → full difference, from weights as they were before any patch."""
    patches = {}
    for key, weight in list_weights(patcher).items():
        if key not in changes:
            continue
        if any(hasattr(weight, name) for name in PACKED):
            raise ValueError("atoms need a checkpoint in 8 bits or more; this one is packed")
        pristine = patcher.lora_loader.backup.get(key, weight)
        delta = sum_changes(pristine, changes[key]).cpu()
        narrow = weight.dtype in (torch.float16, torch.bfloat16)
        patches[key] = ("diff", (delta.to(weight.dtype) if narrow else delta,))
    return patches


def replace_ours(
    old: Any, find_patcher: Callable[[Any], Any], name: str, patches: dict[str, Any] | None
) -> Any:
    """A clone with this in place of what we patched before; the thing itself without either."""
    ours = [key for key in find_patcher(old).lora_patches if key[0].startswith(MARK)]
    if not ours and not patches:
        return old
    new = old.clone()
    patcher = find_patcher(new)
    for key in ours:
        del patcher.lora_patches[key]
    if patches:
        patcher.add_patches(filename=MARK + name, patches=patches)
    return new
