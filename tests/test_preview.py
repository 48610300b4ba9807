"""Latents to colours, and the clean latent a sampler heads for."""

import numpy as np
import pytest
import torch
from tiny_base import save_tiny_base

from sdatoms.pipeline import SCHEDULERS, load_base, paint
from sdatoms.preview import Previewer, fit_colours


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


def test_the_fit_inverts_a_linear_coder():
    coder = LinearCoder()
    factors, bias = fit_colours(coder)
    colours = torch.tensor([[1.0, -0.5, 0.2], [0.0, 0.3, -1.0]])
    latents = colours @ coder.weight.T * coder.config.scaling_factor
    torch.testing.assert_close(latents @ factors + bias, colours, atol=2e-2, rtol=0)


@pytest.mark.parametrize("scheduler", ["DDIM", "Euler", "DPM++ 2M", "UniPC"])
def test_the_guess_is_the_clean_latent_when_the_noise_is_known(scheduler, tmp_path):
    """With a UNet that knows x₀, every step's guess is x₀; the last latents are x₀ as well."""
    pipe = load_base(str(save_tiny_base(tmp_path / "tiny")))
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    guesses = []

    def know(sample, t, **_):
        kept = pipe.scheduler.alphas_cumprod[int(t)]
        return ((sample - kept**0.5 * clean) / (1 - kept) ** 0.5,)

    class Watcher(Previewer):
        def see(self, latents, remaining):
            super().see(latents, remaining)
            guesses.append(self._clean)

    pipe.unet.forward = know
    paint(
        pipe,
        ["a"],
        [0],
        num_inference_steps=6,
        guidance_scale=1.0,
        scheduler=scheduler,
        previewer=Watcher(pipe),
    )
    assert len(guesses) == 6
    for guess in guesses[1:-1]:
        torch.testing.assert_close(guess, clean, atol=0.05, rtol=0)


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_previews_are_drawn_with_every_scheduler_and_change_no_pixel(scheduler, tmp_path):
    pipe = load_base(str(save_tiny_base(tmp_path / "tiny")))
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
