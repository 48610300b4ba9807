"""Configs of known models, as published, from which they are built with random weights.

Each entry names the class, the config's numbers and where they were published. Widths are never
changed; `cut` lowers the depth of the transformers that would not fit an ordinary machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = [
    "BLOCKS",
    "BLOCK_NAMES",
    "FAMILY_EXCLUDES",
    "FAMILY_TARGETS",
    "MODELS",
    "Blueprint",
]


class Blueprint(NamedTuple):
    """A model's class and config."""

    component: str
    """What atom files call it, as diffusers does: `unet`, `text_encoder`, …, else `model`."""
    source: str
    """The hub id, and the folder in it, that published the config."""
    library: str
    kind: str
    """Class name in `library`."""
    config: Mapping[str, Any]
    cut: Mapping[str, int] = {}
    """Depths that `build_model` lowers to."""


UNET = {
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "out_channels": 4,
}
FOUR_LEVELS = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
}
CLIP_TEXT = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "pad_token_id": 1,
    "vocab_size": 49408,
}
IMAGE = {"num_channels": 3, "num_labels": 1000}


MODELS = {
    "sd15-unet": Blueprint(
        "unet",
        "stable-diffusion-v1-5/stable-diffusion-v1-5 unet",
        "diffusers",
        "UNet2DConditionModel",
        UNET
        | FOUR_LEVELS
        | {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
    ),
    "sd21-unet": Blueprint(
        "unet",
        "stabilityai/stable-diffusion-2-1 unet",
        "diffusers",
        "UNet2DConditionModel",
        UNET
        | FOUR_LEVELS
        | {
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "sample_size": 96,
            "upcast_attention": True,
            "use_linear_projection": True,
        },
    ),
    "sdxl-unet": Blueprint(
        "unet",
        "stabilityai/stable-diffusion-xl-base-1.0 unet",
        "diffusers",
        "UNet2DConditionModel",
        UNET
        | {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": (5, 10, 20),
            "block_out_channels": (320, 640, 1280),
            "cross_attention_dim": 2048,
            "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
            "transformer_layers_per_block": (1, 2, 10),
            "up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
            "use_linear_projection": True,
        },
    ),
    "clip-l": Blueprint(
        "text_encoder",
        "stable-diffusion-v1-5/stable-diffusion-v1-5 text_encoder",
        "transformers",
        "CLIPTextModel",
        CLIP_TEXT
        | {
            "hidden_act": "quick_gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "projection_dim": 768,
        },
    ),
    "clip-h": Blueprint(
        "text_encoder",
        "stabilityai/stable-diffusion-2-1 text_encoder",
        "transformers",
        "CLIPTextModel",
        CLIP_TEXT
        | {
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 23,
            "projection_dim": 512,
        },
    ),
    "clip-bigg": Blueprint(
        "text_encoder_2",
        "stabilityai/stable-diffusion-xl-base-1.0 text_encoder_2",
        "transformers",
        "CLIPTextModelWithProjection",
        CLIP_TEXT
        | {
            "hidden_act": "gelu",
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_attention_heads": 20,
            "num_hidden_layers": 32,
            "projection_dim": 1280,
        },
    ),
    "sd3-transformer": Blueprint(
        "transformer",
        "stabilityai/stable-diffusion-3-medium-diffusers transformer",
        "diffusers",
        "SD3Transformer2DModel",
        {
            "attention_head_dim": 64,
            "caption_projection_dim": 1536,
            "in_channels": 16,
            "joint_attention_dim": 4096,
            "num_attention_heads": 24,
            "num_layers": 24,
            "out_channels": 16,
            "patch_size": 2,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
            "sample_size": 128,
        },
        cut={"num_layers": 2},
    ),
    "flux-transformer": Blueprint(
        "transformer",
        "black-forest-labs/FLUX.1-dev transformer",
        "diffusers",
        "FluxTransformer2DModel",
        {
            "attention_head_dim": 128,
            "axes_dims_rope": (16, 56, 56),
            "guidance_embeds": True,
            "in_channels": 64,
            "joint_attention_dim": 4096,
            "num_attention_heads": 24,
            "num_layers": 19,
            "num_single_layers": 38,
            "patch_size": 1,
            "pooled_projection_dim": 768,
        },
        cut={"num_layers": 1, "num_single_layers": 1},
    ),
    "convnext-base": Blueprint(
        "model",
        "facebook/convnext-base-224",
        "transformers",
        "ConvNextForImageClassification",
        IMAGE
        | {
            "depths": (3, 3, 27, 3),
            "drop_path_rate": 0.0,
            "hidden_act": "gelu",
            "hidden_sizes": (128, 256, 512, 1024),
            "image_size": 224,
            "layer_norm_eps": 1e-12,
            "layer_scale_init_value": 1e-6,
            "num_stages": 4,
            "patch_size": 4,
        },
    ),
    "vit-base": Blueprint(
        "model",
        "google/vit-base-patch16-224",
        "transformers",
        "ViTForImageClassification",
        IMAGE
        | {
            "hidden_act": "gelu",
            "hidden_size": 768,
            "image_size": 224,
            "intermediate_size": 3072,
            "layer_norm_eps": 1e-12,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "patch_size": 16,
            "qkv_bias": True,
        },
    ),
    "resnet-50": Blueprint(
        "model",
        "microsoft/resnet-50",
        "transformers",
        "ResNetForImageClassification",
        IMAGE
        | {
            "depths": (3, 4, 6, 3),
            "downsample_in_first_stage": False,
            "embedding_size": 64,
            "hidden_act": "relu",
            "hidden_sizes": (256, 512, 1024, 2048),
            "layer_type": "bottleneck",
        },
    ),
    "swin-tiny": Blueprint(
        "model",
        "microsoft/swin-tiny-patch4-window7-224",
        "transformers",
        "SwinForImageClassification",
        IMAGE
        | {
            "depths": (2, 2, 6, 2),
            "drop_path_rate": 0.1,
            "embed_dim": 96,
            "hidden_act": "gelu",
            "image_size": 224,
            "layer_norm_eps": 1e-5,
            "mlp_ratio": 4.0,
            "num_heads": (3, 6, 12, 24),
            "patch_size": 4,
            "qkv_bias": True,
            "window_size": 7,
        },
    ),
}
"""Name → blueprint."""


FAMILY_TARGETS = {
    "CLIPTextModel": ("*.self_attn.*", "*.mlp.*"),
    "CLIPTextModelWithProjection": ("*.self_attn.*", "*.mlp.*"),
    "T5EncoderModel": ("*.SelfAttention.*", "*.DenseReluDense.*"),
    "SD3Transformer2DModel": ("transformer_blocks.*.attn*", "transformer_blocks.*.ff*"),
    "FluxTransformer2DModel": (
        "transformer_blocks.*.attn.*",
        "transformer_blocks.*.ff*",
        "single_transformer_blocks.*.attn.*",
        "single_transformer_blocks.*.proj_*",
    ),
}
"""Layers a model family without spatial filters tunes while `target_modules` is None: attention and
feed-forward, with block atoms in every variant; no embedder, modulation or output layer."""


FAMILY_EXCLUDES = {
    "UNet2DConditionModel": (
        "time_embedding.*",
        "*.time_emb_proj",
        "add_embedding.*",
        "class_embedding.*",
    ),
    "UNet2DModel": ("time_embedding.*", "*.time_emb_proj"),
    "ConvNextForImageClassification": ("classifier",),
    "ViTForImageClassification": ("classifier",),
    "ViTModel": ("pooler.*",),
    "ResNetForImageClassification": ("classifier.*",),
    "SwinForImageClassification": ("classifier",),
    "CifarResNet": ("linear",),
    "EfficientNetLite": ("_fc",),
    # The same class names in timm and torchvision, whose heads are called differently.
    "ConvNeXt": ("head.*", "classifier.*"),
    "VisionTransformer": ("head", "heads.*"),
    "ResNet": ("fc",),
    "SwinTransformer": ("head", "head.*"),
}
"""Layers a model family leaves out while `target_modules` and `exclude_modules` are None: the time
embeddings of UNets, which hold no pictures, and the heads of classifiers, which are trained whole.
"""

BLOCK_NAMES = ("down", "mid", "up")
"""The blocks of a UNet that have strengths of their own, in the order of its layers."""
BLOCKS = {
    "down_blocks": "down",
    "conv_in": "down",
    "mid_block": "mid",
    "up_blocks": "up",
    "conv_out": "up",
}
"""First part of a module path → the block whose strength counts."""
