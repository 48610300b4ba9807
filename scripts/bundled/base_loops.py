"""The bundled base's training loops: the autoencoder's, then that of text encoder and UNet.

Both are generators: they yield after every step and the caller logs, samples, saves or stops. Each
step draws from generators of its own number, so that a resumed loop is the uninterrupted one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.training_utils import EMAModel, compute_snr
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel

from bundled.base_models import LATENT_CHANNELS, build_scheduler

__all__ = [
    "Step",
    "cast",
    "choose_precision",
    "scale_lr",
    "set_rate",
    "train_autoencoder",
    "train_denoiser",
]

Batch = Callable[[torch.Generator, random.Random], tuple[Tensor, Tensor]]
"""Draws latents `(B, 24, 8, 8)` in float32 and the ids `(B, 32)` of their captions."""


class Step(NamedTuple):
    """What one step of either loop reports."""

    step: int
    loss: float
    lr: float


def scale_lr(step: int, steps: int, warmup: int = 200, fall: int | None = None) -> float:
    """Linear warm-up, flat, then a linear fall to 2 % over the last `fall` of `steps`, 30 % of them
    by default, none with 0."""
    fall = round(0.3 * steps) if fall is None else fall
    down = max(0.02, min(1.0, (steps - step) / fall)) if fall else 1.0
    return min(1.0, (step + 1) / warmup) * down


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Give every group of parameters this learning rate, and return it."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def cast(precision: torch.dtype) -> AbstractContextManager:
    """Autocast to `precision` where it is not float32, with attention as plain products: at 64
    positions the fastest on a CPU."""
    stack = ExitStack()
    if precision != torch.float32:
        stack.enter_context(torch.autocast("cpu", dtype=precision))
    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    return stack


def choose_precision(work: Callable[[], Tensor], repeats: int = 3) -> torch.dtype:
    """Time forward and backward of `work`, a loss, in bfloat16 autocast and in float32; return the
    faster. Gradients are left behind."""
    seconds = {}
    for precision in (torch.bfloat16, torch.float32):
        for repeat in range(repeats + 1):
            if repeat == 1:
                began = time.perf_counter()
            with cast(precision):
                loss = work()
            loss.float().backward()
        seconds[precision] = time.perf_counter() - began
    return min(seconds, key=seconds.get)


def train_autoencoder(
    model: AutoencoderKL,
    optimizer: torch.optim.Optimizer,
    ema: EMAModel,
    pictures: Tensor,
    *,
    steps: int,
    start: int = 0,
    batch_size: int = 16,
    learning_rate: float = 5e-4,
    kl_weight: float = 1e-4,
    precision: torch.dtype = torch.bfloat16,
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
        with cast(precision):
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
    x = F.pad(x, (3, 3, 3, 3), mode="replicate")[..., dy : dy + 64, dx : dx + 64]
    swap = torch.rand(len(x), generator=generator) < 0.25
    return torch.where(swap[:, None, None, None], x[:, torch.randperm(3, generator=generator)], x)


def train_denoiser(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    optimizer: torch.optim.Optimizer,
    ema: EMAModel,
    draw_batch: Batch,
    *,
    steps: int,
    start: int = 0,
    learning_rate: float = 4e-4,
    fall: int | None = None,
    snr_gamma: float = 5.0,
    precision: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Iterator[Step]:
    """Fit UNet and text encoder to what `draw_batch` gives.

    ε-prediction with min-SNR weights (Hang et al. 2023, https://arxiv.org/abs/2303.09556, γ = 5).
    """
    scheduler = build_scheduler()
    snr = compute_snr(scheduler, torch.arange(1000))
    weights = snr.clamp(max=snr_gamma) / snr
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    unet.train(), text_encoder.train()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        x, tokens = draw_batch(generator, random.Random(seed * 1_000_003 + step))
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(1000, (len(x),), generator=generator)
        lr = set_rate(optimizer, learning_rate * scale_lr(step, steps, fall=fall))
        with cast(precision):
            context = text_encoder(tokens)[0]
            predicted = unet(scheduler.add_noise(x, noise, t), t, context, return_dict=False)[0]
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        (weights[t] * error).mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)
        yield Step(step + 1, float(error.detach().mean()), lr)
