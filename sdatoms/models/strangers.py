"""What a safetensors file is that is no base: adapters, lone parts and other families, by names."""

from __future__ import annotations

import re

from sdatoms.errors import clip
from sdatoms.models.header import Header

__all__ = [
    "name_stranger",
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
