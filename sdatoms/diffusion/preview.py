"""See a picture while it is being painted, without decoding it: one linear map from latents to RGB.

The map `rgb = latents · F + b` is fitted by least squares on pictures that the base's own
autoencoder encodes; Stable Diffusion 1.x and 2.x share one autoencoder, whose map is known.

What is shown is not the noisy latent but the clean one the UNet believes in at that step,
`x₀ = (x - √(1-ᾱ) ε)/√ᾱ`, or `√ᾱ x - √(1-ᾱ) v`, the same for every sampler.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from sdatoms.pictures import to_tensor

__all__ = [
    "Previewer",
    "fit_colours",
]

SD_FACTORS = (
    (0.3512, 0.2297, 0.3227),
    (0.3250, 0.4974, 0.2350),
    (-0.2829, 0.1762, 0.2721),
    (-0.2120, -0.2616, -0.7177),
)
"""Latents → RGB in [-1, 1] of the autoencoder of Stable Diffusion 1.x and 2.x, as ComfyUI publishes
them (`SD15.latent_rgb_factors`):
https://github.com/comfyanonymous/ComfyUI/blob/master/comfy/latent_formats.py"""
SD_SCALING = 0.18215
NUM_FIELDS = 24
DIVIDED = ("Euler", "DPMSolverSDE")
"""How the names of diffusers' schedulers begin that keep latents divided by √ᾱ."""


class Previewer:
    """Draws the latents of one painting after another; fitted to a pipeline once.

    Args:
        pictures: examples of what the base paints, to fit the colours on; smooth colour fields
            where there are none.
    """

    def __init__(self, pipe: Any, pictures: Sequence[Image.Image] = ()) -> None:
        vae = pipe.vae
        if vae.config.latent_channels == 4 and abs(vae.config.scaling_factor - SD_SCALING) < 1e-6:
            self.factors, self.bias = torch.tensor(SD_FACTORS), torch.zeros(3)
        else:
            self.factors, self.bias = fit_colours(vae, pictures)
        self._clean: Tensor | None = None

    @contextmanager
    def watch(self, scheduler: Any) -> Iterator[None]:
        """Look on while `scheduler` walks in a `with` block; changes nothing of what it does."""
        self._clean, step = None, scheduler.step

        @wraps(step)  # pipelines look at its signature before they hand it a generator
        def see(output: Tensor, time: Any, sample: Tensor, *rest: Any, **named: Any) -> Any:
            self._clean = guess_clean(scheduler, output[:1], time, sample[:1])
            return step(output, time, sample, *rest, **named)

        scheduler.step = see
        try:
            yield
        finally:
            del scheduler.step

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


def guess_clean(scheduler: Any, output: Tensor, time: Any, sample: Tensor) -> Tensor:
    """`x₀` from what the UNet said of `sample` at `time`."""
    output, sample = output.detach().float(), sample.detach().float()
    kept = float(scheduler.alphas_cumprod[round(float(time))])
    if type(scheduler).__name__.startswith(DIVIDED):
        sample = sample * kept**0.5
    if scheduler.config.prediction_type == "v_prediction":
        return kept**0.5 * sample - (1 - kept) ** 0.5 * output
    if scheduler.config.prediction_type == "sample":
        return output
    return (sample - (1 - kept) ** 0.5 * output) / kept**0.5


@torch.no_grad()
def fit_colours(
    vae: Any, pictures: Sequence[Image.Image] = (), seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Least-squares factors `(c, 3)` and bias `(3,)` from latents to RGB in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    size = 8 * 2 ** (len(vae.config.block_out_channels) - 1)
    if pictures:
        fields = torch.stack(
            [to_tensor(ImageOps.fit(p, (size, size))) for p in pictures[:NUM_FIELDS]]
        )
    else:
        coarse = torch.rand(NUM_FIELDS, 3, 3, 3, generator=generator) * 2 - 1
        fields = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=True)
    # Layers that are fetched one by one are nowhere meanwhile, and fetch their inputs themselves.
    fields = fields.to("cpu" if vae.device.type == "meta" else vae.device, vae.dtype)
    latents = vae.encode(fields).latent_dist.mean.float().cpu() * vae.config.scaling_factor
    colours = F.adaptive_avg_pool2d(fields.float().cpu(), tuple(latents.shape[2:]))
    x = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    y = colours.permute(0, 2, 3, 1).reshape(-1, 3).double()
    ridge = 1e-4 * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    ridge[-1, -1] = 0
    solution = torch.linalg.solve(x.T @ x + ridge, x.T @ y).float()
    return solution[:-1], solution[-1]
