"""Bases of published shapes with random weights, made on the device itself."""

from __future__ import annotations

from typing import Any

from sdatoms.bench.gpu_rows import Setting
from sdatoms.models.open import fill_weights
from sdatoms.models.recognize import FAMILIES
from sdatoms.models.single_file import CONFIGS, build
from sdatoms.models.vocabulary import build_tokenizer
from sdatoms.storage import read_table

__all__ = ["build_part", "build_pipeline"]

CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": 16,
}
LEVELS = {
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "block_out_channels": (16, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
VAE = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}
TINY: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {
        "unet": LEVELS | {"cross_attention_dim": 16, "attention_head_dim": 4},
        "vae": VAE,
        "text_encoder": CLIP,
    },
    "sdxl": {
        "unet": LEVELS
        | {
            "cross_attention_dim": 32,
            "attention_head_dim": (2, 2),
            "transformer_layers_per_block": 1,
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + 16,
        },
        "vae": VAE,
        "text_encoder": CLIP,
        "text_encoder_2": CLIP,
    },
}
"""Family → part → config entries that make it a few thousand numbers."""


def build_part(family: str, part: str, setting: Setting) -> Any:
    """A pipeline's part with random weights, on the device."""
    changes = TINY[family][part] if setting.tiny else None
    model = build(part, CONFIGS / family, changes)
    return fill_weights(model, setting.base_dtype, 0, setting.place).to(setting.place).eval()


def build_pipeline(family: str, setting: Setting) -> Any:
    """The family's pipeline, as published in shape."""
    import diffusers

    folder = CONFIGS / family
    index = read_table(folder / "model_index.json")
    parts = {part: build_part(family, part, setting) for part in FAMILIES[family].parts}
    for part in FAMILIES[family].text_encoders:
        tokenizer = part.replace("text_encoder", "tokenizer")
        table = read_table(folder / tokenizer / "tokenizer_config.json")
        parts[tokenizer] = build_tokenizer(table["pad_token"])
    scheduler = getattr(diffusers, index["scheduler"][1])
    parts["scheduler"] = scheduler.from_pretrained(folder, subfolder="scheduler")
    extras: dict[str, Any] = {"add_watermarker": False}
    if family != "sdxl":
        extras = {"safety_checker": None, "feature_extractor": None}
        extras |= {"requires_safety_checker": False}
    pipe = getattr(diffusers, index["_class_name"])(**parts, **extras)
    pipe.set_progress_bar_config(disable=True)
    return pipe
