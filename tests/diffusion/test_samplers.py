"""Samplers, schedules, CLIP skip and guidance rescale mean what their names mean elsewhere."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from PIL import Image
from tiny.pipelines import build_pipeline
from tiny.samplers import PAIRS, need_packages

from sdatoms import AtomError
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.diffusion.prompts import encode_prompts
from sdatoms.diffusion.recipe import Recipe, format_parameters, parse_parameters
from sdatoms.diffusion.samplers import (
    SAMPLERS,
    SCHEDULES,
    build_scheduler,
    check_sampler,
    name_scheduler,
    read_sampler,
)


@pytest.fixture(scope="module")
def pipe():
    pipe = build_pipeline(size=64, text_layers=3)
    config = pipe.scheduler.config
    pipe.scheduler = DDIMScheduler.from_config(config, timestep_spacing="leading")
    return pipe


def find_noise(scheduler, steps):
    """σ at every step, whichever way the scheduler keeps its latents."""
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.double().numpy()
        return sigmas[:1].tolist() + sigmas[1:-1][:: scheduler.order].tolist()
    kept = scheduler.alphas_cumprod[scheduler.timesteps].double()
    return ((1 - kept) / kept).sqrt().tolist()


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_a_schedule_is_the_same_noise_with_every_sampler(sampler, schedule, pipe):
    need_packages(sampler, schedule)
    kept = pipe.scheduler.alphas_cumprod.double()
    table = ((1 - kept) / kept).sqrt().numpy()
    high, low, steps = table[-1], table[0], 6
    found = find_noise(build_scheduler(pipe.scheduler, sampler, schedule), steps)
    ramp = np.linspace(0, 1, steps)
    if schedule == "karras":
        wanted = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    elif schedule == "exponential":
        wanted = np.exp(np.log(high) + ramp * np.log(low / high))
    elif schedule == "beta":
        from scipy.stats import beta

        wanted = low + beta.ppf(1 - ramp, 0.6, 0.6) * (high - low)
    elif schedule == "sgm_uniform":
        wanted = table[np.round(np.arange(1000, 0, -1000 / steps)).astype(int) - 1]
    elif sampler == "LCM":
        wanted = table[[999, 839, 679, 499, 339, 179]]
    elif SAMPLERS[sampler].scheduler.startswith(("DPMSolverMultistep", "UniPC")):
        return  # their own rounding of the base's spacing
    else:
        wanted = table[np.arange(steps)[::-1] * (1000 // steps) + 1]
    np.testing.assert_allclose(found[:steps], wanted, rtol=2e-3)


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_the_same_recipe_is_the_same_picture(sampler, schedule, pipe):
    """Whatever is painted beside it and whatever was drawn from torch's own generator."""
    need_packages(sampler, schedule)
    own = pipe.scheduler
    settings = {"num_inference_steps": 3, "scheduler": sampler, "schedule": schedule}
    torch.manual_seed(1)
    one, two = paint(pipe, ["a", "b"], [1, 2**64 - 1], **settings)
    torch.manual_seed(2)
    again = paint(pipe, ["b"], [-1], **settings)[0]
    assert np.array_equal(two, again) and not np.array_equal(one, two)
    assert np.asarray(two).std() > 0
    assert pipe.scheduler is own


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_a_base_keeps_its_noise_and_what_it_predicts(sampler, schedule, prediction):
    need_packages(sampler, schedule)
    own = build_pipeline(prediction_type=prediction).scheduler
    found = build_scheduler(own, sampler, schedule)
    assert found.config["prediction_type"] == prediction
    assert torch.equal(found.betas, own.betas)
    wanted = "normal" if schedule == "sgm_uniform" else schedule
    assert name_scheduler(found) == (sampler, wanted)


def test_no_sampler_is_left_behind(pipe):
    """Not even where painting fails, and what one sampler sets does not reach the next."""
    own = pipe.scheduler

    def fail(*_):
        raise AtomError("stop")

    with pytest.raises(AtomError, match="stop"):
        paint(pipe, ["a"], [0], scheduler="DPM++ 2M SDE", schedule="karras", callback=fail)
    assert pipe.scheduler is own
    plain = build_scheduler(own, "DPM++ 2M").config
    swapped = build_scheduler(build_scheduler(own, "DPM++ 2M SDE", "karras"), "DPM++ 2M").config
    assert not plain["use_karras_sigmas"] and not swapped["use_karras_sigmas"]
    assert plain["algorithm_type"] == swapped["algorithm_type"] == "dpmsolver++"


@pytest.mark.parametrize(
    ("sampler", "schedule", "steps", "said"),
    [
        ("PLMS", "normal", 5, "the sampler 'PLMS' is unknown; known are DDIM, Euler"),
        ("Euler", "kl", 5, "the schedule 'kl' is unknown; known are normal, karras"),
        ("Euler a", "karras", 5, "Euler a has no schedule 'karras'; it takes normal, sgm_uniform"),
        ("DPM++ 2M", "beta", 5, "'beta' goes with Euler, DPM\\+\\+ SDE"),
        ("LCM", "normal", 51, "LCM takes at most 50 steps; 51 were asked for"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(sampler, schedule, steps, said, pipe):
    with pytest.raises(AtomError, match=said):
        check_sampler(sampler, schedule, steps)
    with pytest.raises(AtomError, match=said):
        paint(pipe, ["a"], [0], scheduler=sampler, schedule=schedule, num_inference_steps=steps)


@pytest.mark.parametrize(
    ("sampler", "schedule", "package"),
    [("DPM++ SDE", "beta", "torchsde"), ("DPM++ SDE", "beta", "scipy"), ("Euler", "beta", "scipy")],
)
def test_a_package_that_is_missing_is_named(sampler, schedule, package, monkeypatch):
    for name in ("torchsde", "scipy"):
        there = None if name == package else sys
        monkeypatch.setitem(sys.modules, name, there)
    words = f"needs the package {package}; install it with: pip install .sdatoms.samplers."
    with pytest.raises(AtomError, match=words):
        check_sampler(sampler, schedule)


def test_samplers_refuse_bases_that_they_do_not_go_with(pipe):
    sample = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="sample")
    with pytest.raises(AtomError, match="predicts the clean sample"):
        build_scheduler(sample, "Euler")
    zero = DDIMScheduler.from_config(pipe.scheduler.config, rescale_betas_zero_snr=True)
    need_packages("DPM++ SDE")
    with pytest.raises(AtomError, match="zero terminal SNR"):
        build_scheduler(zero, "DPM++ SDE")
    other = build_pipeline()
    other.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    assert name_scheduler(other.scheduler) == ("PNDMScheduler", "normal")
    with pytest.raises(AtomError, match="own sampler is PNDMScheduler, which takes no schedule"):
        paint(other, ["a"], [0], schedule="karras")


@pytest.mark.parametrize(
    ("sampler", "schedule", "found"),
    [
        ("DPM++ 2M", "Karras", ("DPM++ 2M", "karras")),
        ("DPM++ 2M Karras", None, ("DPM++ 2M", "karras")),
        ("DPM++ 2M SDE Exponential", None, ("DPM++ 2M SDE", "exponential")),
        ("DPM++ SDE Karras", None, ("DPM++ SDE", "karras")),
        ("DPM++ 2M", None, ("DPM++ 2M", "normal")),
        ("DPM++ 2M", "Automatic", ("DPM++ 2M", "karras")),
        ("DPM++ 2M SDE", "Automatic", ("DPM++ 2M SDE", "exponential")),
        ("Euler a", "Automatic", ("Euler a", "normal")),
        ("Euler", "SGM Uniform", ("Euler", "sgm_uniform")),
        ("Euler", "SGMUniform", ("Euler", "sgm_uniform")),
        ("Euler", "Uniform", ("Euler", "normal")),
        ("dpmpp_2m", "karras", ("DPM++ 2M", "karras")),
        ("euler_ancestral", "normal", ("Euler a", "normal")),
        ("dpm++ 2m sde karras", None, ("DPM++ 2M SDE", "karras")),
        ("DPMSolverMultistepScheduler", None, ("DPM++ 2M", "normal")),
        ("Heun", "Automatic", ("Heun", "normal")),
        ("Heun", "KL Optimal", ("Heun", "KL Optimal")),
        ("Restart Karras", None, ("Restart Karras", "normal")),
    ],
)
def test_names_of_other_programs_are_read(sampler, schedule, found):
    assert read_sampler(sampler, schedule) == found


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_recipes_are_read_back_from_a1111s_text(sampler, schedule):
    recipe = Recipe(
        "a", seed=3, scheduler=sampler, schedule=schedule, clip_skip=2, guidance_rescale=0.7
    )
    text = format_parameters(recipe)
    assert f"Sampler: {sampler}, Schedule type: {SCHEDULES[schedule].label}, CFG scale" in text
    assert ", Clip skip: 2, CFG Rescale: 0.7" in text
    assert parse_parameters(text).settings == recipe.settings
    plain = format_parameters(replace(recipe, clip_skip=1, guidance_rescale=0.0))
    assert "Clip skip" not in plain and "Rescale" not in plain
    old = f"a\nSteps: 25, Sampler: {sampler} {SCHEDULES[schedule].label}, CFG scale: 5, Seed: 3"
    back = parse_parameters(old)
    assert (back.scheduler, back.schedule) == (sampler, schedule)


def read_layer(pipe, text, clip_skip):
    """As diffusers' pipeline reads it, whose own code takes the encoder of transformers 4."""
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    length = tokenizer.model_max_length
    tokens = tokenizer(text, padding="max_length", max_length=length, return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = encoder(tokens, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
        return encoder.final_layer_norm(hidden)


@pytest.mark.parametrize("text", ["a cat", "(a:1.2) cat"])
def test_clip_skip_reads_the_layer_that_diffusers_reads(text, pipe):
    plain = encode_prompts(pipe, ["(a cat:1.0)"])["prompt_embeds"]
    for layer in (1, 2, 3):
        given = encode_prompts(pipe, [text], "bad", clip_skip=layer)
        if layer > 1 and text == "a cat":
            for name, words in (("prompt_embeds", text), ("negative_prompt_embeds", "bad")):
                own = read_layer(pipe, words, layer - 1)
                torch.testing.assert_close(given[name], own, rtol=0, atol=0)
            assert not torch.equal(given["prompt_embeds"], plain)
    with pytest.raises(AtomError, match="clip_skip is 4; this base's text encoder has the layers"):
        encode_prompts(pipe, [text], clip_skip=4)
    settings = {"num_inference_steps": 1}
    one, two = (paint(pipe, [text], [0], clip_skip=n, **settings)[0] for n in (1, 2))
    assert not np.array_equal(one, two)
    assert np.array_equal(one, paint(pipe, [text], [0], **settings)[0])


def test_two_text_encoders_read_the_layer_before_the_last_for_1_and_2():
    pipe = build_pipeline("sdxl", text_layers=4)
    one = encode_prompts(pipe, ["(a cat:1.0)"], clip_skip=1)
    two = encode_prompts(pipe, ["a cat"], clip_skip=2)
    three = encode_prompts(pipe, ["a cat"], clip_skip=3)
    deep = pipe.encode_prompt("a cat", device="cpu", do_classifier_free_guidance=False, clip_skip=1)
    torch.testing.assert_close(one["prompt_embeds"], two["prompt_embeds"], rtol=0, atol=0)
    torch.testing.assert_close(three["prompt_embeds"], deep[0], rtol=0, atol=0)
    torch.testing.assert_close(three["pooled_prompt_embeds"], deep[2], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_guidance_is_rescaled_as_diffusers_does(kind):
    pipe = build_pipeline(kind)
    settings = {"num_inference_steps": 2, "guidance_scale": 6.0}
    found = paint(pipe, ["a"], [0], guidance_rescale=0.7, **settings)[0]
    generator = torch.Generator().manual_seed(0)
    own = pipe("a", generator=generator, guidance_rescale=0.7, **settings).images[0]
    assert np.array_equal(found, own)
    assert not np.array_equal(found, paint(pipe, ["a"], [0], **settings)[0])
    with pytest.raises(AtomError, match=r"guidance_rescale is 1\.5; it goes from 0 to 1"):
        paint(pipe, ["a"], [0], guidance_rescale=1.5)
    start = {"init_picture": Image.new("RGB", (16, 16), "red"), "guidance_rescale": 0.7}
    if kind == "sdxl":
        assert paint(pipe, ["a"], [0], **settings, **start)
    else:
        with pytest.raises(AtomError, match="a StableDiffusionImg2ImgPipeline takes 0"):
            paint(pipe, ["a"], [0], **settings, **start)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "schedule"), PAIRS)
def test_the_bundled_base_paints_its_picture_with_every_sampler(sampler, schedule, bundled):
    """Eight steps of each come near the picture that 30 steps of DDIM end in."""
    need_packages(sampler, schedule)
    pipe, wanted = bundled
    settings = {"num_inference_steps": 8, "scheduler": sampler, "schedule": schedule}
    found = paint(pipe, ["red apple"], [2], **settings)[0]
    difference = np.abs(np.asarray(found, float) - np.asarray(wanted, float)).mean()
    assert difference < 40, difference


@pytest.fixture(scope="module")
def bundled():
    pipe = load_base()
    return pipe, paint(pipe, ["red apple"], [2], num_inference_steps=30)[0]
