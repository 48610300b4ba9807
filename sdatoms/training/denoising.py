r"""The denoising objective: noise in, what the UNet should predict, and how errors are weighed.

With `x_t = √ᾱ_t x + √(1−ᾱ_t) ε` the target is ε, `v = √ᾱ_t ε − √(1−ᾱ_t) x`, or x, as the base's
scheduler says. Definitions are diffusers' (examples/text_to_image, examples/dreambooth) and
kohya-ss's, under the same flag names.

References: Ho et al., "DDPM", 2020, equation 14; Salimans, Ho, "Progressive distillation", 2022,
appendix D (v); Hang et al., "Min-SNR weighting", ICCV 2023, https://arxiv.org/abs/2303.09556,
equation 5 and section 3.4; Guttenberg, "Diffusion with offset noise", 2023; Lin et al., "Common
diffusion noise schedules and sample steps are flawed", WACV 2024, algorithm 1; Khrapov et al.,
"Improving diffusion models's data-corruption resistance using scheduled pseudo-Huber loss", 2024,
https://arxiv.org/abs/2403.16728.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from sdatoms.errors import AtomError

__all__ = [
    "Denoising",
]

PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Denoising:
    """The noise schedule of one base and the loss over it; holds no trained state.

    Args:
        scheduler_config: of the base's scheduler.
        further: the trainer's flags of the same names.

    Raises:
        AtomError: the base predicts something else, or a flag does not fit its prediction.
    """

    def __init__(
        self,
        scheduler_config: Any,
        *,
        loss_type: str = "l2",
        huber_c: float = 0.1,
        huber_schedule: str = "snr",
        snr_gamma: float | None = None,
        noise_offset: float = 0.0,
        input_perturbation: float = 0.0,
        unmasked_weight: float = 0.0,
        normalize_masked_area_loss: bool = False,
        rescale_betas_zero_snr: bool = False,
        timestep_bias_strategy: str = "none",
        timestep_bias_multiplier: float = 1.0,
        timestep_bias_portion: float = 0.25,
        timestep_bias_begin: int = 0,
        timestep_bias_end: int = 1000,
    ) -> None:
        kind = scheduler_config.get("prediction_type", "epsilon")
        if kind not in PREDICTIONS:
            raise AtomError(
                f"the base predicts {kind!r}; the trainer knows {', '.join(PREDICTIONS)}"
            )
        zero_snr = scheduler_config.get("rescale_betas_zero_snr", False)
        if rescale_betas_zero_snr and kind == "epsilon":
            raise AtomError(
                "--rescale_betas_zero_snr needs a base that predicts v or the sample: at a "
                "signal-to-noise ratio of 0 the noise is the input itself, and nothing is learnt"
            )
        self.loss_type = loss_type
        self.least_huber_c, self.huber_schedule = huber_c, huber_schedule
        self.noise_offset, self.input_perturbation = noise_offset, input_perturbation
        self.unmasked_weight = unmasked_weight
        self.normalize_masked_area_loss = normalize_masked_area_loss
        self.prediction_type = kind
        # The class computes ᾱ from betas in float32 on the CPU: the same numbers on every device.
        self.scheduler: Any = DDPMScheduler.from_config(
            scheduler_config, rescale_betas_zero_snr=zero_snr or rescale_betas_zero_snr
        )
        self.num_timesteps: int = self.scheduler.config["num_train_timesteps"]
        self.chances = bias_timesteps(
            self.num_timesteps,
            timestep_bias_strategy,
            multiplier=timestep_bias_multiplier,
            portion=timestep_bias_portion,
            begin=timestep_bias_begin,
            end=timestep_bias_end,
        )
        self.weights = self.weigh_timesteps(snr_gamma)

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """`(count,)` timesteps in [0, num_timesteps), by `--timestep_bias_strategy`."""
        if self.chances is None:
            return torch.randint(self.num_timesteps, (count,), generator=generator)
        return torch.multinomial(self.chances, count, replacement=True, generator=generator)

    def draw_noise(
        self, shape: tuple[int, ...], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """`(noise, input_noise)`, both `(B, c, h, w)`: what is predicted and what is mixed in.

        Offset noise moves whole channels and is predicted; input perturbation is not predicted.
        """
        noise = torch.randn(shape, generator=generator)
        if self.noise_offset:
            shift = torch.randn(*shape[:2], 1, 1, generator=generator)
            noise = noise + self.noise_offset * shift
        if not self.input_perturbation:
            return noise, noise
        extra = torch.randn(shape, generator=generator)
        return noise, noise + self.input_perturbation * extra

    def mix(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`x_t`, in the shape of `latents`."""
        return self.scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet should predict, in the shape of `latents`."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(latents, noise, timesteps)
        return latents

    def error(
        self, predicted: Tensor, target: Tensor, timesteps: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Loss of every row `(B,)`, float32, weighed by timestep.

        Args:
            mask: `(B, 1, h, w)` in [0, 1]; errors outside it count `--unmasked_weight`.
        """
        error = self.penalize(predicted.float() - target.float(), timesteps)
        if mask is not None:
            # Both definitions are OneTrainer's: the mask has a floor, and its area may be divided
            # out so that a small subject weighs as much as a large one.
            mask = mask.clamp(min=self.unmasked_weight)
            if self.normalize_masked_area_loss:
                mask = mask / mask.mean((1, 2, 3), keepdim=True).clamp(min=1e-6)
            error = error * mask
        return error.mean((1, 2, 3)) * self.weights.to(error.device)[timesteps]

    def penalize(self, difference: Tensor, timesteps: Tensor) -> Tensor:
        """`--loss_type` of every number, in the shape of `difference`."""
        kind = self.loss_type
        if kind == "l2":
            return difference.square()
        if kind == "l1":
            return difference.abs()
        c = self.huber_c(timesteps.cpu()).to(difference)[:, None, None, None]
        # 2 (√(d² + c²) − c) without its cancellation at small d.
        square = difference.square()
        bowl = 2 * square / ((square + c.square()).sqrt() + c)
        return c * bowl if kind == "huber" else bowl

    def huber_c(self, timesteps: Tensor) -> Tensor:
        """The point where pseudo-Huber turns from square to straight, `(B,)`, by schedule."""
        least = self.least_huber_c
        if self.huber_schedule == "constant":
            return torch.full(timesteps.shape, least)
        if self.huber_schedule == "exponential":
            return torch.exp(math.log(least) / self.num_timesteps * timesteps)
        kept = self.scheduler.alphas_cumprod[timesteps].clamp(min=1e-12)
        sigmas = ((1 - kept) / kept).sqrt()
        return (1 - least) / (1 + sigmas).square() + least

    def weigh_timesteps(self, gamma: float | None) -> Tensor:
        """min-SNR-γ weight of every timestep, `(num_timesteps,)`; ones without γ.

        min(SNR, γ) times the weight that the prediction's plain loss has in terms of x: /SNR for
        ε, /(SNR + 1) for v, none for x. Where SNR is 0, ε has weight 1 and v has 0's limit.
        """
        if gamma is None:
            return torch.ones(self.num_timesteps)
        snr = compute_snr(self.scheduler, torch.arange(self.num_timesteps))
        capped = snr.clamp(max=gamma)
        if self.prediction_type == "epsilon":
            return torch.where(snr > 0, capped / snr.clamp(min=1e-12), 1.0)
        return capped / (snr + 1) if self.prediction_type == "v_prediction" else capped


def bias_timesteps(
    count: int, strategy: str, *, multiplier: float, portion: float, begin: int, end: int
) -> Tensor | None:
    """Chance of every timestep, `(count,)`, as diffusers' `generate_timestep_weights`; None where
    all are alike.

    Raises:
        AtomError: the range does not lie within the base's timesteps.
    """
    if strategy == "none":
        return None
    part = int(portion * count)
    if strategy == "range" and not 0 <= begin < end <= count:
        raise AtomError(
            f"--timestep_bias_begin {begin} and --timestep_bias_end {end} are no range within the "
            f"base's {count} timesteps"
        )
    places = {
        "later": slice(count - part, count),
        "earlier": slice(0, part),
        "range": slice(begin, end),
    }[strategy]
    weights = torch.ones(count)
    weights[places] *= multiplier
    return weights / weights.sum()
