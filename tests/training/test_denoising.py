"""Noise, targets and weights are the published definitions."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

from sdatoms import AtomError
from sdatoms.training.denoising import Denoising

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture
def denoise():
    def make(prediction_type="epsilon", **flags):
        return Denoising({**SCHEDULE, "prediction_type": prediction_type}, **flags)

    return make


@pytest.fixture
def row(rng):
    x, noise = torch.randn(2, 3, 4, 5, 5, generator=rng)
    return x, noise, torch.tensor([10, 500, 990])


def test_targets_rebuild_the_picture(denoise, row):
    x, noise, t = row
    kept = DDPMScheduler(**SCHEDULE).alphas_cumprod[t][:, None, None, None]
    a, s = kept.sqrt(), (1 - kept).sqrt()
    for kind, rebuild in (
        ("epsilon", lambda noisy, target: (noisy - s * target) / a),
        ("v_prediction", lambda noisy, target: a * noisy - s * target),
        ("sample", lambda noisy, target: target),
    ):
        objective = denoise(kind)
        noisy = objective.mix(x, noise, t)
        torch.testing.assert_close(noisy, a * x + s * noise)
        found = rebuild(noisy, objective.target(x, noise, t))
        torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_every_prediction_alike_in_terms_of_the_picture(denoise, kind):
    # Equation 5: whatever is predicted, the loss in terms of x is min(SNR, γ) |x − x̂|².
    gamma, objective = 5.0, denoise(kind, snr_gamma=5.0)
    kept = objective.scheduler.alphas_cumprod
    snr = kept / (1 - kept)
    # A change of x̂ by 1 changes ε̂ by √SNR and v̂ by 1/√(1 − ᾱ) = √(SNR + 1).
    change = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(1000)}[kind]
    torch.testing.assert_close(objective.weights * change, snr.clamp(max=gamma))


def test_without_min_snr_all_timesteps_weigh_the_same(denoise):
    assert torch.equal(denoise().weights, torch.ones(1000))


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_start(denoise):
    plain, rescaled = denoise("v_prediction"), denoise("v_prediction", rescale_betas_zero_snr=True)
    a, b = plain.scheduler.alphas_cumprod.sqrt(), rescaled.scheduler.alphas_cumprod.sqrt()
    assert b[-1] == 0
    torch.testing.assert_close(b[0], a[0])
    # Algorithm 1: √ᾱ is shifted and scaled as a whole.
    expected = (a - a[-1]) * a[0] / (a[0] - a[-1])
    torch.testing.assert_close(b, expected, rtol=1e-3, atol=1e-4)


def test_zero_terminal_snr_needs_another_prediction_than_noise(denoise):
    with pytest.raises(AtomError, match="--rescale_betas_zero_snr needs a base that predicts v"):
        denoise("epsilon", rescale_betas_zero_snr=True)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_weights_are_finite_at_zero_snr(kind):
    objective = Denoising(
        {**SCHEDULE, "prediction_type": kind, "rescale_betas_zero_snr": True},
        snr_gamma=5.0,
    )
    assert torch.isfinite(objective.weights).all()


def test_unknown_predictions_are_refused(denoise):
    with pytest.raises(AtomError, match="predicts 'flow'; the trainer knows epsilon"):
        denoise("flow")


def test_offset_noise_moves_whole_channels(denoise):
    shape = (4, 3, 16, 16)
    plain, _ = denoise().draw_noise(shape, torch.Generator().manual_seed(0))
    noise, mixed = denoise(noise_offset=0.5).draw_noise(shape, torch.Generator().manual_seed(0))
    difference = noise - plain
    assert torch.equal(noise, mixed)
    torch.testing.assert_close(difference, difference[..., :1, :1].expand(shape))
    assert 0.25 < float(difference[..., 0, 0].std()) < 1


def test_input_perturbation_is_mixed_in_but_not_predicted(denoise):
    shape = (4, 3, 16, 16)
    noise, mixed = denoise(input_perturbation=0.1).draw_noise(
        shape, torch.Generator().manual_seed(0)
    )
    assert torch.equal(noise, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    assert float((mixed - noise).std()) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
def test_huber_is_square_for_small_errors_and_straight_for_large(denoise, schedule):
    t = torch.tensor([0, 500, 999])
    objective = denoise(loss_type="huber", huber_c=0.1, huber_schedule=schedule)
    c = objective.huber_c(t)
    small, large = (objective.penalize(torch.full((3, 1, 1, 1), d), t) for d in (1e-3, 1e3))
    torch.testing.assert_close(small.flatten(), torch.full((3,), 1e-6), rtol=2e-2, atol=1e-8)
    torch.testing.assert_close(large.flatten(), 2 * c * (1e3 - c), rtol=1e-4, atol=0)
    smooth = denoise(loss_type="smooth_l1", huber_c=0.1, huber_schedule=schedule)
    torch.testing.assert_close(
        smooth.penalize(torch.full((3, 1, 1, 1), 1e3), t).flatten() * c, large.flatten()
    )


def test_huber_schedules_fall_from_one_to_huber_c(denoise):
    t = torch.tensor([0, 999])
    for schedule, start, end in (
        ("constant", 0.1, 0.1),
        ("exponential", 1.0, 0.1),
        ("snr", 1.0, 0.1),
    ):
        c = denoise(loss_type="huber", huber_schedule=schedule).huber_c(t)
        assert float(c[0]) == pytest.approx(start, rel=0.1)
        assert float(c[1]) == pytest.approx(end, rel=0.1)


def test_l1_and_l2_are_absolute_and_square(denoise, row):
    x, noise, t = row
    assert torch.equal(
        denoise(loss_type="l1").error(x, noise, t), (x - noise).abs().mean((1, 2, 3))
    )
    assert torch.equal(denoise().error(x, noise, t), (x - noise).square().mean((1, 2, 3)))


def test_masks_leave_out_what_is_black(denoise, row):
    x, noise, t = row
    mask = torch.zeros(3, 1, 5, 5)
    mask[..., :2] = 1
    outside = x.clone()
    outside[..., 2:] += 100
    assert torch.equal(denoise().error(x, noise, t, mask), denoise().error(outside, noise, t, mask))
    half = denoise(unmasked_weight=0.5).error(x, noise, t, mask)
    full = denoise().error(x, noise, t)
    inside = denoise().error(x, noise, t, mask)
    torch.testing.assert_close(half, 0.5 * (full + inside))
    normal = denoise(normalize_masked_area_loss=True).error(x, noise, t, mask)
    torch.testing.assert_close(normal, (x - noise)[..., :2].square().mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [
        ({"timestep_bias_strategy": "later"}, range(750, 1000)),
        ({"timestep_bias_strategy": "earlier", "timestep_bias_portion": 0.1}, range(100)),
        (
            {
                "timestep_bias_strategy": "range",
                "timestep_bias_begin": 200,
                "timestep_bias_end": 300,
            },
            range(200, 300),
        ),
    ],
)
def test_bias_draws_chosen_timesteps_more_often(denoise, flags, chosen):
    objective = denoise(timestep_bias_multiplier=3.0, **flags)
    drawn = objective.draw_timesteps(20_000, torch.Generator().manual_seed(0))
    share = len(chosen) / 1000
    expected = 3 * share / (3 * share + 1 - share)
    hits = ((drawn >= chosen.start) & (drawn < chosen.stop)).float().mean()
    assert float(hits) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 20_000))
    assert 0 <= int(drawn.min()) and int(drawn.max()) < 1000


def test_a_range_outside_the_timesteps_is_refused(denoise):
    with pytest.raises(AtomError, match="--timestep_bias_end 2000 are no range"):
        denoise(timestep_bias_strategy="range", timestep_bias_end=2000)
