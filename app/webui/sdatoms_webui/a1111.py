"""AUTOMATIC1111's web UI: the changes as one network of its built-in extension Lora.

That extension keeps every weight's backup, restores it when the networks of a prompt differ from
those before, and adds what each network computes; so LoRAs and atoms mix, and both come off
exactly. Ours computes from the backup: from the weight as the checkpoint has it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdatoms_webui.changes import Change, sum_changes

__all__ = ["apply_to_a1111", "list_a1111_shapes"]

OPEN_CLIP = {
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
"""Layers of a block of OpenCLIP's: its name → that of transformers."""
STACKED = ("q_proj", "k_proj", "v_proj")
"""Rows of an attention's one weight, a third each."""


class Place(NamedTuple):
    """Where a weight lies in the model."""

    name: str
    """What the extension Lora calls it."""
    module: nn.Module
    """What holds the weight, and its backup."""
    part: int | None = None
    """Of an attention as a whole: the third of its stacked weight; 3 is what it ends with."""

    def read_weight(self) -> Tensor:
        """The weight as the checkpoint has it."""
        backup = self.module.__dict__.get("network_weights_backup")
        if self.part is not None:
            attention: Any = self.module
            stacked, last = backup or (attention.in_proj_weight, attention.out_proj.weight)
            return last if self.part == 3 else stacked.chunk(3)[self.part]
        full = getattr(self.module, "fp16_weight", None)  # of a checkpoint kept in 8 bits
        kept = full if full is not None else backup
        weight = kept if kept is not None else self.module.weight
        assert isinstance(weight, Tensor)
        return weight


def list_a1111_shapes(sd_model: Any) -> dict[str, torch.Size]:
    """Key, in ComfyUI's names → shape of the weights of the UNet and of the text encoders."""
    return {key: place.read_weight().shape for key, place in find_places(sd_model).items()}


def find_places(sd_model: Any) -> dict[str, Place]:
    """Key, in ComfyUI's names → where the weight lies."""
    found = {
        f"{name}.weight": Place(name.replace(".", "_"), module)
        for name, module in sd_model.model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor)
    }
    if getattr(sd_model, "is_sdxl", False):
        encoders = [(f"{i}_", e) for i, e in enumerate(sd_model.conditioner.embedders)]
    else:
        encoders = [("", sd_model.cond_stage_model)]
    for prefix, encoder in encoders:
        wrapped = getattr(encoder, "wrapped", encoder)
        if hasattr(wrapped, "transformer"):
            found |= find_clip(prefix, wrapped)
        elif hasattr(getattr(wrapped, "model", None), "transformer"):
            found |= find_open_clip(prefix, wrapped, "clip_g" if prefix else "clip_h")
    return found


def find_clip(prefix: str, wrapped: Any) -> dict[str, Place]:
    """Layers of transformers' CLIP."""
    found = {}
    for name, module in wrapped.named_modules():
        if name.startswith("transformer.") and isinstance(getattr(module, "weight", None), Tensor):
            plain = name.removeprefix("transformer.").removeprefix("text_model.")
            key = f"clip_l.transformer.text_model.{plain}.weight"
            found[key] = Place(prefix + name.replace(".", "_"), module)
    return found


def find_open_clip(prefix: str, wrapped: Any, encoder: str) -> dict[str, Place]:
    """Layers of OpenCLIP's blocks, under the names of transformers."""
    found, start = {}, "model.transformer.resblocks."
    for name, module in wrapped.named_modules():
        number, _, rest = name.removeprefix(start).partition(".")
        head = f"{encoder}.transformer.text_model.encoder.layers.{number}."
        lora = prefix + name.replace(".", "_")
        if not name.startswith(start):
            continue
        if isinstance(module, nn.MultiheadAttention):
            for part, last in enumerate((*STACKED, "out_proj")):
                found[f"{head}self_attn.{last}.weight"] = Place(f"{lora}_{last}", module, part)
        elif rest in OPEN_CLIP and rest != "attn.out_proj":
            found[f"{head}{OPEN_CLIP[rest]}.weight"] = Place(lora, module)
    return found


def apply_to_a1111(sd_model: Any, name: str, changes: Mapping[str, Sequence[Change]]) -> None:
    """Add the changes to the networks of this picture, behind those of the prompt's LoRAs.

    Args:
        name: what the changes depend on, in words; weights are computed anew where it differs.

    Raises:
        ValueError: the built-in extension Lora is switched off, or would misread the changes.
    """
    networks, network = sys.modules.get("networks"), sys.modules.get("network")
    if networks is None or network is None:
        if changes:
            raise ValueError("atoms need the built-in extension Lora, which is switched off")
        return
    networks.loaded_networks[:] = [n for n in networks.loaded_networks if not is_ours(n)]
    places = find_places(sd_model) if changes else {}
    if any(is_inpainting(places[key].read_weight()) for key in changes):
        raise ValueError("the web UI cannot patch the first layer of an inpainting checkpoint")
    if changes:
        networks.loaded_networks.append(build_network(network, places, name, changes))


def is_inpainting(weight: Tensor) -> bool:
    """Whether the extension Lora takes what is added to a weight for one of four channels."""
    return weight.dim() == 4 and weight.shape[1] == 9


def is_ours(net: Any) -> bool:
    return bool(getattr(net, "is_sdatoms", False))


def build_network(
    network: Any, places: Mapping[str, Place], name: str, changes: Mapping[str, Sequence[Change]]
) -> Any:
    """A network of the extension Lora with a module for every weight that changes."""

    class AtomModule(network.NetworkModule):
        """Its strength is in the changes; the network's multipliers stay 1."""

        def __init__(self, net: Any, place: Place, own: Sequence[Change]) -> None:
            weights = SimpleNamespace(
                network_key=place.name, sd_key=place.name, w={}, sd_module=place.module
            )
            super().__init__(net, weights)
            self.place, self.changes = place, own
            if isinstance(place.module, nn.Conv2d):
                self.extra_kwargs |= {
                    "dilation": place.module.dilation,
                    "groups": place.module.groups,
                }

        def calc_updown(self, orig_weight: Tensor) -> tuple[Tensor, None]:
            pristine = self.place.read_weight().to(orig_weight.device)
            return sum_changes(pristine, self.changes), None

    disk = SimpleNamespace(name=name, filename=name, shorthash="", alias=name, metadata={})
    net = network.Network(name, disk)
    net.is_sdatoms = True
    net.mentioned_name = ""
    whole = {
        place.module for key, place in places.items() if key in changes and place.part is not None
    }
    for key, place in places.items():
        # An attention takes changes of all its four weights, or none.
        if key in changes or (place.part is not None and place.module in whole):
            net.modules[place.name] = AtomModule(net, place, changes.get(key, ()))
    return net
