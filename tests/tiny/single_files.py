"""Narrow pipelines with the structure of their families, as directories and as single files.

Every level, attention layer and text width is there; channels and depths of encoders are few. The
vocabulary is CLIP's own.
"""

import json
import struct
from functools import cache

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdatoms.models.open import fill_weights
from sdatoms.models.original_layout import join, lay_out
from sdatoms.models.single_file import CONFIGS

WIDTH = 64
"""Channels of every level: one head of SD 2.x and XL."""
BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def read_config(family, part):
    return json.loads((CONFIGS / family / part / "config.json").read_text())


def build_empty_parts(family="sd1", *, channels=4, narrow=True):
    """Component → module without weights, narrow or as published."""
    unet = read_config(family, "unet") | {"in_channels": channels}
    vae = read_config(family, "vae")
    text = read_config(family, "text_encoder")
    if narrow:
        levels = len(unet["block_out_channels"])
        unet["block_out_channels"] = [WIDTH] * levels
        if family != "sd1":
            unet["attention_head_dim"] = [1] * levels
        vae["block_out_channels"] = [32] * 4
        text |= NARROW_TEXT
    if family == "sd2":
        unet["sample_size"] = 64
    with init_empty_weights(include_buffers=False):
        parts = {
            "unet": UNet2DConditionModel.from_config(unet),
            "vae": AutoencoderKL.from_config(vae),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        }
        if family == "sdxl":
            text = read_config(family, "text_encoder_2") | (NARROW_TEXT if narrow else {})
            parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**text))
    return parts


NARROW_TEXT = {"num_hidden_layers": 2, "intermediate_size": 160}


def build_parts(family="sd1", *, channels=4, seed=0, dtype=torch.float32):
    """Component → a narrow module of it; every gain and bias is a number of its own."""
    parts = build_empty_parts(family, channels=channels)
    generator = torch.Generator().manual_seed(seed)
    for part in parts.values():
        fill_weights(part, torch.float32, seed).eval()
        for parameter in part.parameters():
            if parameter.dim() < 2:  # biases of zero and gains of one would hide a swap
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        part.to(dtype)
    return parts


def collect_tensors(family, parts):
    """The original layout's name → tensor, of all components."""
    tensors = {}
    for name, module in parts.items():
        held = module.state_dict()
        shapes = {key: tuple(tensor.shape) for key, tensor in held.items()}
        for entry in lay_out(family, name, shapes):
            tensors[entry.name] = join(entry, held).contiguous()
    return tensors


def save_single(path, family, parts, *, dtype=torch.float32, metadata=None, more=None, drop=()):
    """Write the single file; `drop` are beginnings of names to leave out."""
    tensors = {
        name: tensor.to(dtype)
        for name, tensor in collect_tensors(family, parts).items()
        if not name.startswith(tuple(drop) or ("\0",))
    }
    save_file({**tensors, **(more or {})}, path, metadata=metadata)
    return path


def save_sparse(path, family, *, dtype="F16", channels=4, changes=None, drop=(), metadata=None):
    """A file of full size whose weights are all zero, and take no room on the disk.

    `changes` maps names to other shapes; a name with None is left out.
    """
    shapes = {**list_full_shapes(family, channels), **(changes or {})}
    shapes = {
        name: shape
        for name, shape in shapes.items()
        if shape is not None and not name.startswith(tuple(drop) or ("\0",))
    }
    return write_zeros(path, shapes, dtype, metadata)


@cache
def list_full_shapes(family, channels):
    """Name → shape of every tensor of a single file of full size."""
    shapes = {}
    for part, module in build_empty_parts(family, channels=channels, narrow=False).items():
        own = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        shapes |= {entry.name: entry.shape for entry in lay_out(family, part, own)}
    return shapes


def write_zeros(path, shapes, dtype="F16", metadata=None):
    """A safetensors file of zeros, sparse on the disk."""
    table, place = {"__metadata__": metadata or {}}, 0
    for name, shape in shapes.items():
        size = BYTES[dtype] * int(torch.Size(shape).numel())
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(table).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    return path
