r"""A loader node for ComfyUI: filter-atom files (`sdatoms/1`) as a patch of the model.

Copy this one file into `ComfyUI/custom_nodes/` and atom files into `ComfyUI/models/loras/`. It
needs torch and safetensors, which ComfyUI has, and nothing else. Patches are full differences,
computed in float32 from the model's unpatched weights, so that other LoRAs and atom files stack on
top in any order. They take as much memory as the weights they change.

For every layer `ΔX = X E ΔD`, with X the weight read as a matrix of filters and E and ΔD its own or
shared with other layers, or `ΔW = (I + L̂) W (I + R̂) − W` of two factors; see `docs/format.md`.
UNets of Stable Diffusion 1.x, 2.x and XL and their CLIP text encoders are known by name; ComfyUI
keeps them under other names than diffusers does.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

FORMAT = "sdatoms/1"
UNET = "diffusion_model."
RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
"""Layers of a residual block: diffusers' name → ComfyUI's; attention blocks agree on theirs."""
FIXED = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
WORD = ".tokens.embeddings"
"""What the key of a new word's embedding ends in, after the text encoder's name."""
ENCODERS = {"text_encoder": ("clip_l", "clip_h", "clip_g"), "text_encoder_2": ("clip_g",)}

Views = dict[str, dict[str, Tensor]]
"""View → tensor name → tensor, for one layer."""


def read_atoms(path: str) -> tuple[dict[str, Views], dict[str, Any]]:
    """Layer (`<component>.<module path>`) → its tensors by view, and layer → its layout.

    A new word is left out: its embedding belongs to no layer.

    Raises:
        ValueError: the file is no atom file of this format, or holds sparse codes' atoms.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path!r} is no atom file of format {FORMAT}")
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    layers: dict[str, Views] = {}
    for key, tensor in tensors.items():
        layer, view, name = key.rsplit(".", 2)
        if key.endswith(WORD):
            continue
        if view != "spatial" and not view.startswith("block"):
            raise ValueError(f"{path!r} holds {view!r} tensors, which this node does not apply")
        layers.setdefault(layer, {}).setdefault(view, {})[name] = tensor
    layouts = json.loads(metadata["layers"])
    for layer, layout in layouts.items():
        component = layer.partition(".")[0]
        for view, blocks in [("block", layout), *layout.items()]:
            if isinstance(blocks, dict) and "shared_with" in blocks:
                owner = f"{component}.{blocks['shared_with']}"
                own = layers.setdefault(layer, {}).get(view, {})
                layers[layer][view] = {**layers[owner][view], **own}
    return layers, layouts


def name_left_out(path: str) -> str:
    """A sentence about what this node does not load of a file; empty where it loads all."""
    with safe_open(path, framework="pt") as file:
        held = any(key.endswith(WORD) for key in file.keys())
        word = (file.metadata() or {}).get("tokens", "")
    if not held:
        return ""
    return (
        f"{path!r} brings the new word {word[:80]!r}, which is left out: the prompt reads it as "
        "letters, and the rest of the file is applied; a pipeline that sdatoms exports knows it"
    )


def compute_delta(weight: Tensor, layout: Mapping[str, Any], views: Views) -> Tensor:
    """Unit-strength `ΔW` in float32, in the shape of `weight` `(g·o, i, …)`.

    Raises:
        ValueError: the layout does not fit the weight.
    """
    groups, taps = layout["groups"], math.prod(weight.shape[2:])
    rows, columns = weight.shape[:2]
    w = weight.float().reshape(rows, columns, taps)
    total = torch.zeros_like(w)
    for view, t in views.items():
        if "output_factor" in t:
            total += multiply_factors(w, groups, t)
            continue
        if "shared_atoms" in t:
            total += mix_rows(w, layout["kernel"], t)
            continue
        change = t["atoms"] if "atoms" in t else t.get("channel_atoms")
        if change is None:
            beta, inner = t["inner_coefficients"].double(), t["inner_atoms"].double()
            change = torch.einsum("caj,ajp->cap", beta, inner)
        transform = (t["encoder"].double() @ change.double()).float().to(w.device)
        p = transform.shape[-1]
        blocks = layout if view == "block" else layout.get(view, {})
        (bo, bi), kind = blocks.get("block", (1, 1)), blocks.get("view", "joint")
        block = (bo, bi) if view != "spatial" else (1, 1)
        width = math.prod(block) * (1 if view != "spatial" and kind == "channel" else taps)
        fits = taps == math.prod(layout["kernel"]) and width == p and rows % groups == 0
        if not fits or rows // groups % block[0] or columns % block[1]:
            raise ValueError(f"a weight of shape {tuple(weight.shape)} does not fit the atoms")
        if transform.dim() == 3:
            if len(transform) != groups * columns:
                raise ValueError(f"{len(transform)} channels of atoms do not fit {columns}")
            x = w.reshape(groups, rows // groups, columns, p)
            maps = transform.reshape(groups, columns, p, p)
            total += torch.einsum("goip,gipq->goiq", x, maps).reshape(w.shape)
            continue
        channelwise = view != "spatial" and kind == "channel"
        order = (0, 2, 4, 1, 3) if channelwise else (0, 2, 1, 3, 4)
        back = (0, 3, 1, 4, 2) if channelwise else (0, 2, 1, 3, 4)
        x = w.reshape(rows // block[0], block[0], columns // block[1], block[1], taps)
        x = x.permute(order)
        total += (x.reshape(-1, p) @ transform).reshape(x.shape).permute(back).reshape(w.shape)
    return total.reshape(weight.shape)


def mix_rows(w: Tensor, kernel: list[int], t: Mapping[str, Tensor]) -> Tensor:
    """`X E D` of a weight `(g·o, i, taps)`, whose filters X are rows over its input channels, with
    the atoms D and the encoder E that layers share; `C D` with coefficients of its own.

    Raises:
        ValueError: the rows are of another length than the atoms.
    """
    atoms = t["shared_atoms"].float().to(w.device)
    if w.shape[1] != atoms.shape[1] or w.shape[2] != math.prod(kernel):
        raise ValueError(
            f"rows of {w.shape[1]} do not fit shared atoms of {atoms.shape[1]} numbers"
        )
    if "coefficients" not in t:
        return ((w.mT @ t["shared_encoder"].float().to(w.device)) @ atoms).mT
    own = t["coefficients"].float().to(w.device)
    if len(own) != w.shape[0] * w.shape[2]:
        raise ValueError(f"a weight of shape {tuple(w.shape)} does not fit the atoms")
    return (own @ atoms).reshape(w.mT.shape).mT


def multiply_factors(w: Tensor, groups: int, t: Mapping[str, Tensor]) -> Tensor:
    """`s ((I + L̂) W (I + R̂) − W)` of a weight `(g·o, i, taps)`, the product form of block atoms.

    Raises:
        ValueError: the factors do not divide the weight's channels.
    """
    left, right = (t[name].float().to(w.device) for name in ("output_factor", "input_factor"))
    rows, columns, taps = w.shape
    bo, bi = left.shape[-1], right.shape[-1]
    counts = (rows // bo, groups * columns // bi)
    sizes = tuple(len(f) if f.dim() == 3 else n for f, n in zip((left, right), counts, strict=True))
    if rows // groups % bo or columns % bi or sizes != counts:
        raise ValueError(f"a weight of shape {tuple(w.shape)} does not fit the atoms")
    left = left.expand(counts[0], bo, bo)
    right = right.expand(counts[1], bi, bi).reshape(groups, -1, bi, bi)
    x = w.reshape(groups, rows // groups, columns // bi, bi, taps)
    turned = torch.einsum("gokit,gkij->gokjt", x, right).reshape(w.shape)
    mixed = torch.einsum("nab,nbx->nax", left, (w + turned).reshape(counts[0], bo, -1))
    strength = float(t["strength"]) if "strength" in t else 1.0
    return strength * (turned + mixed.reshape(w.shape))


def map_unet(keys: Iterable[str]) -> dict[str, str]:
    """diffusers' names of a UNet's blocks → ComfyUI's, found by walking the blocks that exist."""
    inner = {key[len(UNET) :].rsplit(".", 1)[0] for key in keys if key.startswith(UNET)}
    found = dict(FIXED)
    for side, new in (("input_blocks", "down_blocks"), ("output_blocks", "up_blocks")):
        stage = number = 0
        for n in count(1 if side == "input_blocks" else 0):
            here = f"{side}.{n}."
            if not any(path.startswith(here) for path in inner):
                break
            if f"{here}0.op" in inner:
                found[f"{new}.{stage}.downsamplers.0.conv"] = f"{here}0.op"
                stage, number = stage + 1, 0
                continue
            found[f"{new}.{stage}.resnets.{number}"] = f"{here}0"
            found[f"{new}.{stage}.attentions.{number}"] = f"{here}1"
            number += 1
            for last in ("1", "2"):
                if f"{here}{last}.conv" in inner:
                    found[f"{new}.{stage}.upsamplers.0.conv"] = f"{here}{last}.conv"
                    stage, number = stage + 1, 0
    return found


def find_keys(component: str, paths: Iterable[str], keys: Iterable[str]) -> dict[str, str]:
    """diffusers' module paths of one component → keys of ComfyUI's weights.

    Raises:
        ValueError: some layers have no place in the model; the first is named.
    """
    known = set(keys)
    blocks = map_unet(known) if component == "unet" else {}
    found, missing = {}, []
    for path in paths:
        if component == "unet":
            head, rest = path, ""
            while head not in blocks and "." in head:
                head, _, part = head.rpartition(".")
                rest = f"{part}.{rest}" if rest else part
            rest = RESNET.get(rest, rest) if ".resnets." in path else rest
            tail = f".{rest}" if rest else ""
            places = [f"{UNET}{blocks.get(head, head)}{tail}.weight"]
        else:
            plain = path.removeprefix("text_model.")
            places = [
                f"{encoder}.transformer.text_model.{plain}.weight"
                for encoder in ENCODERS.get(component, ())
            ]
        held = [place for place in places if place in known]
        found[path] = held[0] if held else ""
        missing += [] if held else [path]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(found)} layers of {component} have no place in this model, "
            f"first {missing[0]!r}; the atoms belong to another base"
        )
    return found


def patch_model(patcher: Any, component: str, path: str, strength: float) -> Any:
    """A clone of ComfyUI's MODEL or CLIP with one component of the file as full differences."""
    layers, layouts = read_atoms(path)
    prefix = f"{component}."
    wanted = {k[len(prefix) :]: views for k, views in layers.items() if k.startswith(prefix)}
    # Every key's first entry is its pristine weight, also while the model stays loaded with patches
    # of an earlier run, and what turns it into plain numbers.
    held = {key: entries[0] for key, entries in patcher.get_key_patches().items()}
    patches = {}
    for layer, key in find_keys(component, wanted, held).items():
        weight, convert = held[key]
        plain = convert(weight.to(torch.float32))
        delta = compute_delta(plain, layouts[prefix + layer], wanted[layer]).cpu()
        narrow = weight.dtype in (torch.float16, torch.bfloat16)
        patches[key] = ("diff", (delta.to(weight.dtype) if narrow else delta,))
    patched = patcher.clone()
    patched.add_patches(patches, strength)
    return patched


class LoadFilterAtoms:
    """Node "Load Filter Atoms": MODEL and CLIP in, patched MODEL and CLIP out."""

    RETURN_TYPES = ("MODEL", "CLIP")
    FUNCTION = "load"
    CATEGORY = "loaders"
    DESCRIPTION = "Adds an sdatoms file to a model at a strength; 0 leaves the model as it is."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        import folder_paths  # ComfyUI's own  # pyright: ignore[reportMissingImports]

        number = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}
        files = folder_paths.get_filename_list("loras")
        return {
            "required": {"model": ("MODEL",), "file": (files,), "strength": ("FLOAT", number)},
            "optional": {"clip": ("CLIP",)},
        }

    def load(self, model: Any, file: str, strength: float, clip: Any = None) -> tuple[Any, Any]:
        """Patch the components the file holds.

        Raises:
            ValueError: the file fits neither, or holds a text encoder's atoms without a `clip`.
        """
        import folder_paths  # pyright: ignore[reportMissingImports]

        if strength == 0:
            return model, clip
        path = folder_paths.get_full_path("loras", file)
        if left_out := name_left_out(path):
            logging.warning("%s", left_out)
        for component in sorted({layer.split(".", 1)[0] for layer in read_atoms(path)[0]}):
            if component in ENCODERS:
                if clip is None:
                    raise ValueError(f"{file!r} has atoms for {component}; connect a CLIP too")
                clip = patch_model(clip, component, path, strength)
            else:
                model = patch_model(model, component, path, strength)
        return model, clip


NODE_CLASS_MAPPINGS = {"SdatomsLoadFilterAtoms": LoadFilterAtoms}
NODE_DISPLAY_NAME_MAPPINGS = {"SdatomsLoadFilterAtoms": "Load Filter Atoms"}
