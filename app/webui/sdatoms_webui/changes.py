"""What the atoms of a prompt change: the model's weight by name → what is added to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdatoms_webui.atoms import ENCODERS, Views, compute_delta, find_keys
from sdatoms_webui.library import read_file

__all__ = ["Change", "Wanted", "find_changes", "read_wanted", "sum_changes"]

BLOCKS = ("down", "mid", "up")


class Wanted(NamedTuple):
    """A file that the prompt names, and how strongly."""

    name: str
    text: float
    """For text encoders."""
    unet: float
    blocks: tuple[tuple[str, float], ...] = ()
    """Of the UNet's blocks that have a strength of their own: down, mid or up → strength."""

    def choose_strength(self, component: str, layer: str) -> float:
        if component in ENCODERS:
            return self.text
        return dict(self.blocks).get(layer.split("_block", 1)[0], self.unet)


class Change(NamedTuple):
    """What one file adds to one weight."""

    strength: float
    layout: Mapping[str, Any]
    views: Views


def read_wanted(positional: Sequence[str], named: Mapping[str, str]) -> Wanted:
    """`<atoms:name>`, `<atoms:name:0.8>`, `<atoms:name:0.5:0.8>` (text encoder, UNet), or by name:
    `te=`, `unet=`, `down=`, `mid=`, `up=`.

    Raises:
        ValueError: there is no name, too much, or a strength that is no finite number.
    """
    name, *numbers = positional or ("",)
    known = ("te", "unet", *BLOCKS)
    if not name or len(numbers) > 2 or set(named) - set(known):
        raise ValueError(
            f"<atoms:{':'.join([*positional, *named])}> is not understood; it takes a name, one or "
            f"two strengths, and {', '.join(known)}"
        )
    told = dict(zip(("te", "unet"), numbers, strict=False)) | dict(named)
    strengths = {}
    for key, value in told.items():
        try:
            strengths[key] = float(value)
        except ValueError:
            strengths[key] = math.nan
        if not math.isfinite(strengths[key]):
            raise ValueError(f"the strength {value!r} of <atoms:{name}> is no number")
    text = strengths.get("te", 1.0)
    blocks = tuple((block, strengths[block]) for block in BLOCKS if block in strengths)
    return Wanted(name, text, strengths.get("unet", text), blocks)


def find_changes(path: Path, wanted: Wanted, shapes: Mapping[str, torch.Size]) -> dict[str, Change]:
    """The model's key → what the file adds there.

    Args:
        shapes: key, in the names that ComfyUI gives a model's weights, → the weight's shape.

    Raises:
        ValueError: the file cannot be read, or does not fit the model.
    """
    layers, layouts = read_file(path)
    found = {}
    for component in sorted({layer.split(".", 1)[0] for layer in layers}):
        start = f"{component}."
        own = [layer[len(start) :] for layer in layers if layer.startswith(start)]
        try:
            places = find_keys(component, own, shapes)
        except ValueError as error:
            raise ValueError(f"{path.name!r} does not fit: {error}") from None
        for layer, key in places.items():
            whole = start + layer
            strength = wanted.choose_strength(component, layer)
            change = Change(strength, layouts.get(whole, {}), layers[whole])
            check_fit(path, whole, change, shapes[key])
            if strength:
                found[key] = change
    return found


def check_fit(path: Path, layer: str, change: Change, shape: torch.Size) -> None:
    """Compute the change of a weight without numbers, which finds everything that does not fit."""
    try:
        compute_delta(torch.empty(shape, device="meta"), change.layout, change.views)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path.name!r} does not fit at {layer}: {reason}") from None


def sum_changes(weight: Tensor, changes: Iterable[Change]) -> Tensor:
    """What files add to a weight together, from its pristine value; float32, on its device."""
    plain = weight.detach().to(torch.float32)
    total = torch.zeros_like(plain)
    for change in changes:
        views = {
            view: {name: tensor.to(plain.device) for name, tensor in tensors.items()}
            for view, tensors in change.views.items()
        }
        total += change.strength * compute_delta(plain, change.layout, views)
    return total
