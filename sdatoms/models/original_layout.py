"""Names of Stable Diffusion's tensors in the original layout, from those of diffusers.

`lay_out` says which tensors a single file of a model has, what each is made of, and its shape. It
is the inverse of what diffusers' converter does on opening, written from the two layouts: the
original UNet counts its blocks through all levels, OpenCLIP's attention holds query, key and value
in one tensor, the autoencoder's decoder counts its levels from the last.

Reference: https://github.com/Stability-AI/generative-models, `sgm/modules/diffusionmodules`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdatoms.models.recognize import TEXT_PREFIXES, UNET, VAE_PREFIXES

__all__ = [
    "FileNames",
    "OriginalTensor",
    "find_file_names",
    "join",
    "lay_out",
    "remember_file",
]

Shape = tuple[int, ...]


class OriginalTensor(NamedTuple):
    """One tensor of the single file."""

    name: str
    sources: tuple[str, ...]
    """What diffusers or transformers call it; three where they are stacked."""
    shape: Shape
    transposed: bool = False


TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP_TOP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def lay_out(family: str, part: str, shapes: Mapping[str, Shape]) -> list[OriginalTensor]:
    """The single file's tensors of one component, in the order of `shapes`.

    Args:
        family: a key of `FAMILIES`.
        part: unet, vae, text_encoder or text_encoder_2.
        shapes: name → shape of the component's tensors in diffusers or transformers.
    """
    if part == "unet":
        levels = count_levels(shapes)
        return [OriginalTensor(UNET + rename_unet(n, levels), (n,), s) for n, s in shapes.items()]
    if part == "vae":
        return list(lay_out_vae(shapes))
    prefix = TEXT_PREFIXES[family, part][0]
    own = {name: shape for name, shape in shapes.items() if not name.endswith("position_ids")}
    if ".model." in prefix:
        return list(lay_out_open_clip(prefix, own))
    return [
        OriginalTensor(f"{prefix}text_model.{n.removeprefix('text_model.')}", (n,), s)
        for n, s in own.items()
    ]


class FileNames(NamedTuple):
    """Where a model's tensors lie in the single file that it was opened from."""

    path: Path
    keys: dict[str, str]
    """The model's name of a tensor → the file's, for tensors that are one in both."""


OPENED_FROM = "_sdatoms_opened_from"
"""Key of a model's `__dict__` under which `remember_file` keeps its `FileNames`."""


def remember_file(
    model: nn.Module, path: Path, family: str, part: str, names: Mapping[str, str]
) -> None:
    """Note in a model which file its tensors came from.

    Args:
        names: name in the file → name in the original layout.
    """
    own = {new: old for old, new in names.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    keys = {
        tensor.sources[0]: own[tensor.name]
        for tensor in lay_out(family, part, shapes)
        if tensor.name in own and len(tensor.sources) == 1 and not tensor.transposed
    }
    model.__dict__[OPENED_FROM] = FileNames(path.absolute(), keys)


def find_file_names(model: nn.Module) -> FileNames | None:
    """What `remember_file` noted; None for models that are of no single file."""
    found = model.__dict__.get(OPENED_FROM)
    return found if isinstance(found, FileNames) else None


def join(tensor: OriginalTensor, held: Mapping[str, Tensor]) -> Tensor:
    """The single file's tensor, made of those of diffusers or transformers."""
    parts = [held[name] for name in tensor.sources]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return (whole.T if tensor.transposed else whole).reshape(tensor.shape)


class Levels(NamedTuple):
    """What numbers a UNet's blocks in the original layout."""

    layers: Mapping[str, int]
    """down or up → residual blocks of a level."""
    attending: frozenset[int]
    """Levels on the way up that attend."""


def count_levels(names: Iterable[str]) -> Levels:
    """Read the numbers off the names of a UNet's tensors."""
    held: dict[str, set[str]] = {"down": set(), "up": set()}
    attending = set()
    for name in names:
        if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.", name):
            if found[3] == "resnets" and found[2] == "0":
                held[found[1]].add(found[4])
            if found[3] == "attentions" and found[1] == "up":
                attending.add(int(found[2]))
    return Levels({way: len(own) for way, own in held.items()}, frozenset(attending))


def rename_unet(name: str, levels: Levels) -> str:
    for old, new in TOP.items():
        if name.startswith(old + "."):
            return rename_resnet(new + name.removeprefix(old))
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    assert found, f"{name} is no tensor of a UNet2DConditionModel"
    way, level, kind, place, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    layers = levels.layers[way]
    if way == "down":
        block = 1 + level * (layers + 1) + place
        if kind == "downsamplers":
            return f"input_blocks.{block + layers}.0.op.{rest.removeprefix('conv.')}"
        return rename_resnet(f"input_blocks.{block}.{int(kind == 'attentions')}.{rest}")
    block = level * layers + place
    if kind == "upsamplers":
        attends = level in levels.attending
        return f"output_blocks.{block + layers - 1}.{1 + attends}.{rest}"
    return rename_resnet(f"output_blocks.{block}.{int(kind == 'attentions')}.{rest}")


def rename_resnet(name: str) -> str:
    head, last, tensor = name.rsplit(".", 2)
    attends = ".transformer_blocks." in name or re.match(r"(in|out)put_blocks\.\d+\.1$", head)
    return name if attends or last not in RESNET else f"{head}.{RESNET[last]}.{tensor}"


def lay_out_vae(shapes: Mapping[str, Shape]) -> Iterator[OriginalTensor]:
    ups = [int(m[1]) for name in shapes if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", name))]
    last = max(ups, default=0)
    for name, shape in shapes.items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        new = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{last - int(m[1])}.block.", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", new)
        new = re.sub(
            r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{last - int(m[1])}.upsample.", new
        )
        new = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", new)
        new = new.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        attention = "mid_block.attentions.0."
        if attention in new:
            head, rest = new.split(attention)
            layer, tensor = rest.rsplit(".", 1)
            new = f"{head}mid.attn_1.{VAE_ATTENTION[layer]}.{tensor}"
            shape = (*shape, 1, 1) if len(shape) == 2 else shape
        yield OriginalTensor(VAE_PREFIXES[0] + new, (name,), shape)


def lay_out_open_clip(prefix: str, shapes: Mapping[str, Shape]) -> Iterator[OriginalTensor]:
    for name, shape in shapes.items():
        own = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            yield OriginalTensor(f"{prefix}text_projection", (name,), shape[::-1], True)
        elif own in OPEN_CLIP_TOP:
            yield OriginalTensor(prefix + OPEN_CLIP_TOP[own], (name,), shape)
        else:
            number, rest = own.removeprefix("encoder.layers.").split(".", 1)
            block = f"{prefix}transformer.resblocks.{number}."
            layer, tensor = rest.rsplit(".", 1)
            if layer in OPEN_CLIP:
                yield OriginalTensor(f"{block}{OPEN_CLIP[layer]}.{tensor}", (name,), shape)
            elif layer == "self_attn.q_proj":
                parts = tuple(name.replace("q_proj", f"{letter}_proj") for letter in "qkv")
                stacked = (3 * shape[0], *shape[1:])
                yield OriginalTensor(f"{block}attn.in_proj_{tensor}", parts, stacked)
