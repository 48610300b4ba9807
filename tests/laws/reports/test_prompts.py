"""D. A prompt means the same in training and in painting."""

import pytest
import torch
from tiny.pipelines import build_pipeline

from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.prompts import embed_prompt, encode_prompts
from sdatoms.training.conditions import TextStack
from sdatoms.training.loop import train


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize(
    "text", ["a cat", "a sks (cat)", "tag (series), red", "a cat, " * 9, "[x] (y:1.4)", ""]
)
def test_training_reads_prompts_as_painting_does(tiny_pipeline, kind, text):
    pipe = load_base(str(tiny_pipeline(kind)), device="cpu")
    given = encode_prompts(pipe, [text])
    trained = TextStack(pipe).encode([text])
    if "prompt" in given:
        painted = pipe.encode_prompt(
            text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        context, pooled = painted[0], painted[2] if kind == "sdxl" else None
    else:
        context, pooled = given["prompt_embeds"], given.get("pooled_prompt_embeds")
    assert torch.equal(trained.context, context)
    assert pooled is None or torch.equal(trained.pooled, pooled)


@pytest.mark.parametrize(("kind", "clip_skip"), [("sd", 1), ("sd", 2), ("sdxl", 1), ("sdxl", 3)])
def test_the_reader_reads_the_layer_the_pipeline_reads(kind, clip_skip):
    pipe = build_pipeline(kind, text_layers=3)
    read = embed_prompt(pipe, "a cat", clip_skip=clip_skip)
    if kind == "sd" and clip_skip > 1:  # diffusers looks for the last norm where it was
        pipe.text_encoder.__dict__["text_model"] = pipe.text_encoder
    own = pipe.encode_prompt(
        "a cat",
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        clip_skip={1: None, 2: 1, 3: 1}[clip_skip],
    )
    assert torch.equal(read.context, own[0])
    assert kind == "sd" or torch.equal(read.pooled, own[2])
    given = encode_prompts(pipe, ["a (cat:1.0) "], clip_skip=clip_skip)
    assert torch.equal(given["prompt_embeds"], own[0])


def test_prompts_of_other_lengths_in_a_batch_change_nothing(tiny_pipeline):
    pipe = load_base(str(tiny_pipeline()), device="cpu")
    text, long = "a cat", "a cat and a dog " * 3
    alone, both = TextStack(pipe).encode([text]), TextStack(pipe).encode([text, long])
    assert alone.mask is None and both.mask is not None
    side = pipe.unet.config.sample_size
    noisy = torch.randn(2, pipe.unet.config.in_channels, side, side)
    with torch.no_grad():
        one = pipe.unet(noisy[:1], 10, alone.context)[0]
        two = pipe.unet(noisy, 10, both.context, encoder_attention_mask=both.mask)[0]
    torch.testing.assert_close(two[:1], one)


def test_a_prompt_that_is_cut_is_said(train_config, make_pictures):
    folder = make_pictures("long", ((20, 20),))
    (folder / "0.txt").write_text("abcdefghij " * 150)
    lines = []
    next(train(train_config(instance_data_dir=str(folder)), notify=lines.append))
    assert [line for line in lines if "a prompt is cut: of" in line]
