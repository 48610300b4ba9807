"""What the denoiser is told: prompts as the pipeline encodes them."""

import pytest
import torch

from sdatoms.diffusion.open import load_base
from sdatoms.training.conditions import TextStack
from sdatoms.training.trainer import Trainer


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_prompts_are_encoded_as_the_pipeline_does(tiny_pipeline, kind):
    pipe = load_base(str(tiny_pipeline(kind)), device="cpu")
    prompts = ["a cat", "a dog", "a cat"]
    found = TextStack(pipe).encode(prompts)
    expected = pipe.encode_prompt(
        prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    torch.testing.assert_close(found.context, expected[0])
    assert (found.pooled is None) == (kind == "sd")
    if found.pooled is not None:
        torch.testing.assert_close(found.pooled, expected[2])


def test_sdxl_is_told_the_sizes_as_by_its_pipeline(train_config, make_pictures):
    folder = make_pictures("wide", ((64, 32),))
    trainer = Trainer(train_config("sdxl", instance_data_dir=str(folder)))
    (row,) = trainer.data.instances
    # 32×64 px are scaled to 16×32, and the middle 16×16 is cut out.
    assert row.time_ids == (32, 64, 0, 8, 16, 16)


def test_captions_beside_pictures_are_the_prompts(train_config, make_pictures):
    folder = make_pictures("captioned", ((20, 20), (20, 20)))
    (folder / "1.txt").write_text("blue")
    trainer = Trainer(train_config(instance_data_dir=str(folder), instance_prompt="red"))
    assert [row.prompt for row in trainer.data.instances] == ["red", "blue"]
    base = load_base(trainer.config.pretrained_model_name_or_path, device="cpu")
    expected = TextStack(base).encode(["red", "blue"]).context
    torch.testing.assert_close(trainer.data.prompts.encode(["red", "blue"]).context, expected)
