"""Stable Diffusion pipelines of a few thousand weights, built from configs: no network."""

import json

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

WIDTH = 16
TOKENS = 12


def make_tokenizer(folder):
    """A byte-level CLIP tokenizer: one token a letter, the last letter of a word its own."""
    letters = [chr(c) for c in range(33, 127)]
    words = letters + [c + "</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def make_text_encoder(tokenizer, cls=CLIPTextModel):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return cls(config)


def save_pipeline(folder, kind="sd", prediction_type="epsilon"):
    """Write a pipeline directory of 16 px pictures; `kind` is sd, sd2 or sdxl."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder / "vocabulary")
    xl = kind == "sdxl"
    extra = {}
    if xl:
        extra = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + WIDTH,
        }
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=2 * WIDTH if xl else WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=kind != "sd",
        **extra,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        sample_size=16,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    parts = {
        "vae": vae,
        "unet": unet,
        "scheduler": scheduler,
        "tokenizer": tokenizer,
        "text_encoder": make_text_encoder(tokenizer),
    }
    if xl:
        parts |= {
            "tokenizer_2": tokenizer,
            "text_encoder_2": make_text_encoder(tokenizer, CLIPTextModelWithProjection),
        }
        pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.save_pretrained(folder / "pipe")
    return folder / "pipe"
