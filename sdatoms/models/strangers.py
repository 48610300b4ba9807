"""What a file is that is no base: adapters, lone parts and other families, by its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sdatoms.errors import clip
from sdatoms.models.header import Header, TensorEntry

__all__ = [
    "name_stranger",
    "name_unet",
]

STRANGERS = (
    ("lora", r"(^|\.|_)(lora_(up|down|A|B|unet|te\d?)|hada_w1_a|lokr_w1|oft_blocks)(\.|_|$)"),
    ("a ControlNet", r"^(control_model\.|controlnet_|input_hint_block\.)"),
    ("a motion module", r"motion_modules\."),
    ("Stable Diffusion 3", r"joint_blocks\.\d+\."),
    ("Flux or a relative of it", r"(double_blocks|double_stream_blocks)\.\d+\."),
    ("Wan, Hunyuan or another video model", r"(patch_embedding\.weight|txt_in\.individual_token)"),
    ("an IP-Adapter", r"^(image_proj|ip_adapter)\."),
    (
        "a lone UNet in diffusers' names; put it into a pipeline's folder",
        r"^(unet\.)?down_blocks\.0\.(resnets|attentions)\.",
    ),
    (
        "a lone autoencoder; give it as --vae beside a base",
        r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.conv_in\.weight$",
    ),
    ("a CLIP vision model", r"^(vision_model|visual)\."),
    (
        "a lone text encoder",
        r"(^|\.)(text_model\.|transformer\.resblocks\.|token_embedding\.weight|encoder\.block\.)",
    ),
    ("a textual inversion", r"^(emb_params|string_to_param|clip_[gl])$|^<.*>$"),
)
"""What a file is → names that tell it."""
SDXL_DEPTHS = [2, 10]
"""Transformer blocks of an attention layer of SDXL, at each of its two depths."""


def name_stranger(header: Header) -> str:
    """What a file is that holds no UNet in the original layout."""
    if header.metadata.get("format", "").startswith("sdatoms/"):
        return "filter atoms; give it as --atoms, beside a base"
    names = list(header.tensors)
    for what, pattern in STRANGERS:
        if any(re.search(pattern, name) for name in names):
            return "a LoRA or the like, which changes a base" if what == "lora" else what
    if not names:
        return "no tensor"
    return f"{len(names)} tensors of no known model, first {clip(sorted(names)[0], 60)!r}"


def name_unet(
    tensors: Mapping[str, TensorEntry], prefix: str, channels: int, width: int
) -> str | None:
    """What a UNet in the original layout is that belongs to a known model other than a base.

    Args:
        prefix: how the UNet's names begin.
        channels: those that it takes.
        width: of the texts it looks at.
    """
    sizes = f"{prefix}label_emb.0.0.weight" in tensors
    if sizes and width == 1280:
        return "the refiner of Stable Diffusion XL, which only finishes another base's pictures"
    if prefix + "edm_mean" in tensors or "edm_mean" in tensors:
        return "Playground 2.5, whose noise is of another kind"
    if any("time_stack" in name or "time_mixer" in name for name in tensors):
        return "a video model"
    if channels == 8:
        return "an InstructPix2Pix or Zero123 model, whose UNet takes a picture beside the noise"
    if channels == 7 or prefix + "label_emb.weight" in tensors:
        return "an upscaler"
    if sizes and width == 1024:
        return "an unCLIP model, which generates from pictures"
    depths = [count_depth(tensors, f"{prefix}input_blocks.{n}.1.") for n in (4, 7)]
    if sizes and width == 2048 and depths != SDXL_DEPTHS:
        return "a shortened Stable Diffusion XL (SSD-1B, Segmind Vega, KOALA or the like)"
    return None


def count_depth(tensors: Mapping[str, TensorEntry], prefix: str) -> int:
    """Transformer blocks of one attention layer."""
    start = prefix + "transformer_blocks."
    return len({name[len(start) :].split(".")[0] for name in tensors if name.startswith(start)})
