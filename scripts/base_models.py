"""The bundled base's networks and their training loops: a factor-8 autoencoder, then text encoder
and UNet.

Both loops are generators: they yield after every step and the caller logs, samples, saves or stops.
Sizes are chosen so that all files together stay under 40 MB in float16.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel, compute_snr
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel

__all__ = [
    "MAX_TOKENS",
    "Step",
    "build_autoencoder",
    "build_scheduler",
    "build_text_encoder",
    "build_unet",
    "scale_lr",
    "set_rate",
    "standardize_latents",
    "train_autoencoder",
    "train_denoiser",
]

MAX_TOKENS = 32
LATENT_CHANNELS = 16


class Step(NamedTuple):
    """What one step of either loop reports."""

    step: int
    loss: float
    lr: float


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


def build_text_encoder(vocab_size: int) -> CLIPTextModel:
    config = CLIPTextConfig(
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
    return CLIPTextModel(config)


def build_scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )


def scale_lr(step: int, steps: int, warmup: int = 200) -> float:
    """Linear warm-up, flat, then a linear fall to 2 % over the last 30 % of `steps`."""
    fall = max(0.02, min(1.0, (steps - step) / (0.3 * steps)))
    return min(1.0, (step + 1) / warmup) * fall


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Give every group of parameters this learning rate, and return it."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def train_autoencoder(
    model: AutoencoderKL,
    optimizer: torch.optim.Optimizer,
    ema: EMAModel,
    pictures: Tensor,
    *,
    steps: int,
    start: int = 0,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    kl_weight: float = 1e-4,
    seed: int = 0,
) -> Iterator[Step]:
    """Fit the autoencoder to uint8 pictures `(n, 3, 64, 64)`.

    Loss: L1 + 4 × squared error + 0.5 × L1 of the picture's gradients + 0.05 × the logarithm of
    each picture's squared error, which is what PSNR averages, + `kl_weight` × mean KL, on [-1, 1].
    """
    model.train()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        pick = torch.randint(len(pictures), (batch_size,), generator=generator)
        x = augment(pictures[pick].float() / 127.5 - 1, generator)
        lr = set_rate(optimizer, learning_rate * scale_lr(step, steps))
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            posterior = model.encode(x).latent_dist
            restored = model.decode(posterior.sample(generator)).sample.float()
        error = restored - x
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        each = error.square().mean((1, 2, 3))
        loss = (
            error.abs().mean() + 4 * each.mean() + 0.5 * edges + 0.05 * (each + 1e-4).log().mean()
        )
        (loss + kl_weight * posterior.kl().mean() / (LATENT_CHANNELS * 64)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(model.parameters())
        yield Step(step + 1, float(error.detach().square().mean()), lr)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Flip half of the pictures, shift all by up to 3 px, swap the colour channels of a quarter."""
    flip = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    dx, dy = torch.randint(0, 7, (2,), generator=generator).tolist()
    x = F.pad(x, (3, 3, 3, 3), value=1.0)[..., dy : dy + 64, dx : dx + 64]
    swap = torch.rand(len(x), generator=generator) < 0.25
    return torch.where(swap[:, None, None, None], x[:, torch.randperm(3, generator=generator)], x)


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


def train_denoiser(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    optimizer: torch.optim.Optimizer,
    ema: EMAModel,
    latents: Tensor,
    write_tokens,
    *,
    steps: int,
    start: int = 0,
    batch_size: int = 96,
    learning_rate: float = 8e-4,
    snr_gamma: float = 5.0,
    drop_caption: float = 0.1,
    seed: int = 0,
) -> Iterator[Step]:
    """Fit UNet and text encoder to `latents (n, 16, 8, 8)`; `write_tokens(indices, rng)` gives ids
    `(B, 32)`.

    ε-prediction with min-SNR weights (Hang et al. 2023, https://arxiv.org/abs/2303.09556, γ = 5).
    """
    scheduler = build_scheduler()
    snr = compute_snr(scheduler, torch.arange(1000))
    weights = snr.clamp(max=snr_gamma) / snr
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    unet.train(), text_encoder.train()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rng = random.Random(seed * 1_000_003 + step)
        pick = torch.randint(len(latents), (batch_size,), generator=generator)
        x = latents[pick]
        tokens = write_tokens(pick.tolist(), rng, drop_caption)
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(1000, (batch_size,), generator=generator)
        lr = set_rate(optimizer, learning_rate * scale_lr(step, steps))
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            context = text_encoder(tokens)[0]
            predicted = unet(scheduler.add_noise(x, noise, t), t, context, return_dict=False)[0]
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        (weights[t] * error).mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)
        yield Step(step + 1, float(error.detach().mean()), lr)
