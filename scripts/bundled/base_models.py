"""The bundled base's networks: a factor-8 autoencoder, a text encoder and a UNet.

Sizes are chosen so that all files together stay under 60 MB in float16.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

__all__ = [
    "LATENT_CHANNELS",
    "MAX_TOKENS",
    "build_autoencoder",
    "build_scheduler",
    "build_text_encoder",
    "build_unet",
    "configure_text",
    "standardize_latents",
]

MAX_TOKENS = 32
LATENT_CHANNELS = 24


def build_autoencoder() -> AutoencoderKL:
    channels = (32, 64, 96, 128)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=64,
        scaling_factor=1.0,
    )
    with torch.no_grad():
        # A posterior as wide as its prior carries nothing, and the decoder learns to ignore it.
        model.quant_conv.bias[LATENT_CHANNELS:] = -6.0
    return model


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 160, 256),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,  # the number of heads: diffusers keeps the name for SD 1.x configs
        norm_num_groups=32,
    )


def configure_text(vocab_size: int) -> CLIPTextConfig:
    """The text encoder of the base, and of the evaluator's CLIP."""
    return CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )


def build_text_encoder(vocab_size: int) -> CLIPTextModel:
    return CLIPTextModel(configure_text(vocab_size))


def build_scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )


@torch.no_grad()
def standardize_latents(model: AutoencoderKL, latents: Tensor) -> None:
    """Fold the per-channel mean and deviation of `latents (n, c, h, w)` into the two 1×1 convs
    around them.

    Afterwards the encoder's means have mean 0 and deviation 1 per channel and the decoder undoes
    it, exactly: diffusion starts from unit noise, and Stable Diffusion pipelines know no
    per-channel shift.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    quant, post = model.quant_conv, model.post_quant_conv
    c = len(mean)
    quant.weight[:c] /= std[:, None, None, None]
    quant.bias[:c] = (quant.bias[:c] - mean) / std
    quant.bias[c:] -= 2 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]
