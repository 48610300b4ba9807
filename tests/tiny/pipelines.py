"""Stable Diffusion pipelines of a few thousand weights, from configs: no network."""

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

KINDS = ("sd", "sd2", "sdxl")


def build_unet(width=12, kind="sd", seed=0):
    """A UNet of two levels, with cross-attention in the first and the middle; latents of 8×8.

    Args:
        width: of a text encoder's rows.
        seed: of its weights; None draws them from torch's own generator as it stands.
    """
    if seed is not None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build_unet(width, kind, None)
    xl = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + width,
    }
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=2 * width if kind == "sdxl" else width,
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=kind != "sd",
        **(xl if kind == "sdxl" else {}),
    ).eval()


def build_tokenizer(tokens=8):
    """A CLIP tokenizer: one token a letter, the last letter of a word its own; at most `tokens`."""
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=tokens)


def describe_text(tokenizer, width, layers=2):
    """The config of a text encoder for that tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def build_vae(size):
    """An autoencoder of `size` px pictures, whose latents are 8×8: 8, 16, 32 or 64."""
    levels = (size // 8).bit_length()
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=4,
        sample_size=size,
    ).eval()


def build_pipeline(
    kind="sd",
    prediction_type="epsilon",
    size=16,
    dtype=torch.float32,
    *,
    width=16,
    tokens=12,
    text_layers=2,
    seed=0,
):
    """A pipeline in memory, in evaluation mode and without a progress bar.

    Args:
        kind: sd, sd2 (linear projections around attention) or sdxl (two text encoders).
        prediction_type: what the UNet predicts: epsilon, v_prediction or sample.
        size: px of its pictures: 8, 16, 32 or 64.
        width: of the text encoders' rows; the UNet is then `build_unet(width, kind, seed)`.
        tokens: that its tokenizer takes, start and end among them.
    """
    tokenizer = build_tokenizer(tokens)
    text = describe_text(tokenizer, width, text_layers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = {
            "unet": build_unet(width, kind, None),
            "vae": build_vae(size),
            "text_encoder": CLIPTextModel(text).eval(),
            "tokenizer": tokenizer,
        }
        if kind == "sdxl":
            second = CLIPTextModelWithProjection(text).eval()
            parts |= {"text_encoder_2": second, "tokenizer_2": tokenizer}
    parts["scheduler"] = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    if kind == "sdxl":
        pipe = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe if dtype == torch.float32 else pipe.to(dtype)


def build_inpainting(kind="sd", **settings):
    """`build_pipeline` in the form that is shown a mask: its UNet takes nine channels."""
    pipe = build_pipeline(kind, **settings)
    wide = build_unet(pipe.text_encoder.config.hidden_size, kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wide.conv_in = torch.nn.Conv2d(9, wide.conv_in.out_channels, 3, padding=1)
    wide.register_to_config(in_channels=9)
    wide.to(pipe.unet.dtype)
    name = type(pipe).__name__.replace("Pipeline", "InpaintPipeline")
    extra = {"requires_safety_checker": False} if kind != "sdxl" else {"add_watermarker": False}
    made = getattr(diffusers, name)(**pipe.components | {"unet": wide}, **extra)
    made.set_progress_bar_config(disable=True)
    return made


def save_pipeline(folder, kind="sd", prediction_type="epsilon", **settings):
    """Write `build_pipeline` as a directory; returns it."""
    build_pipeline(kind, prediction_type, **settings).save_pretrained(folder)
    return folder


def save_base(folder, seed=7):
    """Write a base of 64 px, as the bundled one is, with prompts of 16 tokens; returns it."""
    return save_pipeline(folder, size=64, width=12, tokens=16, text_layers=1, seed=seed)
