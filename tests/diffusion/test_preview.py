"""Latents to colours, and the clean latent a sampler heads for."""

import numpy as np
import pytest
import torch
from tiny.pictures import draw_noise
from tiny.samplers import need_packages

from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.preview import Previewer, fit_colours
from sdatoms.diffusion.samplers import SAMPLERS


class LinearCoder(torch.nn.Module):
    """An autoencoder whose latents are a known linear map of 8×8 block means."""

    def __init__(self):
        super().__init__()
        self.config = type("Config", (), {"block_out_channels": (1,) * 4, "scaling_factor": 0.5})()
        self.weight = torch.nn.Parameter(
            torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
        )
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def encode(self, x):
        means = torch.nn.functional.avg_pool2d(x, 8)
        latents = torch.einsum("bchw,lc->blhw", means, self.weight)
        mean = type("Posterior", (), {"mean": latents})()
        return type("Encoded", (), {"latent_dist": mean})()


@pytest.mark.parametrize("number", [0, 9])
def test_the_fit_inverts_a_linear_coder(number):
    coder = LinearCoder()
    factors, bias = fit_colours(coder, draw_noise(((8, 8),) * number))
    colours = torch.tensor([[1.0, -0.5, 0.2], [0.0, 0.3, -1.0]])
    latents = colours @ coder.weight.T * coder.config.scaling_factor
    torch.testing.assert_close(latents @ factors + bias, colours, atol=2e-2, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", list(SAMPLERS))
def test_a_unet_that_knows_the_clean_latent_is_believed_at_every_step(
    scheduler, prediction, tiny_base
):
    need_packages(scheduler)
    pipe = load_base(str(tiny_base))
    pipe.scheduler.register_to_config(prediction_type=prediction)
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    guesses = []

    def know(sample, t, **_):
        kept = pipe.scheduler.alphas_cumprod[round(float(t))]
        noise = (sample - kept**0.5 * clean) / (1 - kept) ** 0.5
        if prediction == "epsilon":
            return (noise,)
        return (kept**0.5 * noise - (1 - kept) ** 0.5 * clean,)

    pipe.unet.forward = know
    previewer = Previewer(pipe)
    paint(
        pipe,
        ["a"],
        [0],
        num_inference_steps=5,
        guidance_scale=1.0,
        scheduler=scheduler,
        previewer=previewer,
        callback=lambda done, total: guesses.append(previewer._clean),
    )
    asked = 9 if scheduler == "DPM++ SDE" else 5  # twice a step, but the last
    assert len(guesses) == asked and "step" not in vars(pipe.scheduler)
    for guess in guesses:
        torch.testing.assert_close(guess, clean, atol=0.02, rtol=0)


@pytest.mark.parametrize("scheduler", list(SAMPLERS))
def test_previews_are_drawn_with_every_scheduler_and_change_no_pixel(scheduler, tiny_base):
    need_packages(scheduler)
    pipe = load_base(str(tiny_base))
    previewer = Previewer(pipe)
    assert previewer.draw() is None
    settings = {"num_inference_steps": 3, "scheduler": scheduler}
    seen = paint(pipe, ["a"], [0], previewer=previewer, **settings)[0]
    unseen = paint(pipe, ["a"], [0], **settings)[0]
    assert np.array_equal(seen, unseen)
    assert previewer.draw(512).size == (512, 512)
    over = paint(
        pipe, ["a"], [0], init_picture=seen, previewer=previewer, denoising_strength=0.5, **settings
    )[0]
    assert not np.array_equal(over, seen) and previewer.draw(64).size == (64, 64)
