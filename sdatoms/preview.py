"""See a picture while it is being painted, without decoding it: one linear map from latents to RGB.

The map `rgb = latents · F + b` is fitted by least squares on smooth colour fields that the base's
own autoencoder encodes; Stable Diffusion 1.x and 2.x share one autoencoder, whose map is known.

What is shown is not the noisy latent but the clean one it heads for. In the coordinates
`y = x/√ᾱ`, `σ = √((1-ᾱ)/ᾱ)` a deterministic sampler walks along `dy/dσ`, so two consecutive latents
give `x₀ ≈ y' + σ' (y' - y)/(σ - σ')`, whatever the sampler's order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

__all__ = ["Previewer", "fit_colours"]

SD_FACTORS = (
    (0.3512, 0.2297, 0.3227),
    (0.3250, 0.4974, 0.2350),
    (-0.2829, 0.1762, 0.2721),
    (-0.2120, -0.2616, -0.7177),
)
"""Latents → RGB in [-1, 1] of the autoencoder of Stable Diffusion 1.x and 2.x: the measured values
that its tools share."""
SD_SCALING = 0.18215
NUM_FIELDS = 24


class Previewer:
    """Draws the latents of one painting after another; fitted to a pipeline once."""

    def __init__(self, pipe: Any) -> None:
        self.scheduler: Any = None
        vae = pipe.vae
        if vae.config.latent_channels == 4 and abs(vae.config.scaling_factor - SD_SCALING) < 1e-6:
            self.factors, self.bias = torch.tensor(SD_FACTORS), torch.zeros(3)
        else:
            self.factors, self.bias = fit_colours(vae)
        self._before: tuple[Tensor, float] | None = None
        self._clean: Tensor | None = None

    def start(self, scheduler: Any) -> None:
        """Forget the last painting; `scheduler` walks the next."""
        self.scheduler, self._before, self._clean = scheduler, None, None

    def see(self, latents: Tensor, remaining: int) -> None:
        """Take the latents `(B, c, h, w)` before the last `remaining` steps; costs next to
        nothing."""
        sigma, scale = find_noise(self.scheduler, remaining)
        y = latents[:1].detach().float() * scale
        clean = y / (1 + sigma**2) ** 0.5 if self._before is None else y
        if self._before is not None and sigma > 0 and self._before[1] > sigma:
            before, above = self._before
            clean = y + sigma * (y - before) / (above - sigma)
        self._before, self._clean = (y, sigma), clean

    def draw(self, size: int = 512) -> Image.Image | None:
        """The first picture of the batch, its longer side `size` px or a little less; None before
        the first step."""
        if self._clean is None:
            return None
        latents = self._clean[0].cpu()
        rgb = torch.einsum("chw,cr->hwr", latents, self.factors) + self.bias
        pixels = ((rgb.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        factor = max(1, size // max(picture.size))
        wide = (picture.width * factor, picture.height * factor)
        return picture.resize(wide, Image.Resampling.BILINEAR)


def find_noise(scheduler: Any, remaining: int) -> tuple[float, float]:
    """`σ` before the last `remaining` steps, and the factor from the sampler's latents to `y`."""
    if not remaining:
        return 0.0, 1.0
    if type(scheduler).__name__.startswith("Euler"):  # walks in y, with sigmas of its own
        return float(scheduler.sigmas[-1 - remaining]), 1.0
    kept = float(scheduler.alphas_cumprod[int(scheduler.timesteps[-remaining])])
    return ((1 - kept) / kept) ** 0.5, kept**-0.5


@torch.no_grad()
def fit_colours(vae: Any, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Least-squares factors `(c, 3)` and bias `(3,)` from latents to RGB in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    ratio = 2 ** (len(vae.config.block_out_channels) - 1)
    size = 8 * ratio
    coarse = torch.rand(NUM_FIELDS, 3, 3, 3, generator=generator) * 2 - 1
    fields = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)
    fields = fields.to(vae.device, vae.dtype)
    latents = vae.encode(fields).latent_dist.mean.float().cpu() * vae.config.scaling_factor
    colours = F.adaptive_avg_pool2d(fields.float().cpu(), tuple(latents.shape[2:]))
    x = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    y = colours.permute(0, 2, 3, 1).reshape(-1, 3).double()
    ridge = 1e-4 * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    ridge[-1, -1] = 0
    solution = torch.linalg.solve(x.T @ x + ridge, x.T @ y).float()
    return solution[:-1], solution[-1]
