"""Training the base: a run that was stopped and resumed is the uninterrupted run, to the bit."""

import random

import pytest
import torch
from bundled.base_diet import TURNED_SHARE, Diet, read_diet, write_shard, write_turned
from bundled.base_export import load_ema, train_tokenizer
from bundled.base_loops import choose_precision, scale_lr, train_denoiser
from bundled.base_training import drive
from bundled.modifiers import Scene
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from transformers import CLIPTextConfig, CLIPTextModel


@pytest.fixture(scope="module")
def tokenizer(gallery, tmp_path_factory):
    return train_tokenizer(list(gallery.concepts), tmp_path_factory.mktemp("tokens"), 600)


@pytest.fixture
def tiny_autoencoder():
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=24,
        norm_num_groups=2,
        sample_size=64,
    )


@pytest.fixture
def diet(gallery, tokenizer, tmp_path, tiny_autoencoder):
    torch.save(torch.randn(3, 24, 8, 8).half(), tmp_path / "plain.pt")
    for number in (0, 1):
        write_shard(tmp_path, tiny_autoencoder, gallery, number, 12)
    return read_diet(tmp_path, gallery, tokenizer, batch_size=6)


def build_parts(tokenizer):
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=24,
        out_channels=24,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
    )
    return {"unet": unet, "text_encoder": text_encoder}


def train_to(path, steps, diet, fall=0, start_from=None):
    parts = build_parts(diet.tokenizer)
    parameters = [p for part in parts.values() for p in part.parameters()]
    ema = EMAModel(parameters, decay=0.9)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    loop = lambda start: train_denoiser(
        parts["unet"],
        parts["text_encoder"],
        optimizer,
        ema,
        diet.draw_batch,
        steps=steps,
        start=start,
        fall=fall,
        precision=torch.float32,
    )
    drive(path, parts, optimizer, ema, loop, dict, 100, start_from=start_from)
    return torch.load(path, weights_only=True)


def flatten(state):
    return torch.cat(
        [t.flatten() for part in ("unet", "text_encoder") for t in state[part].values()]
    )


def test_a_resumed_training_is_the_uninterrupted_one(diet, tmp_path, one_thread):
    whole = train_to(tmp_path / "whole.pt", 4, diet)
    train_to(tmp_path / "halves.pt", 2, diet)
    halves = train_to(tmp_path / "halves.pt", 4, diet)
    assert halves["step"] == whole["step"] == 4
    assert torch.equal(flatten(halves), flatten(whole))
    for a, b in zip(halves["ema"]["shadow_params"], whole["ema"]["shadow_params"], strict=True):
        assert torch.equal(a, b)


def test_a_tail_starts_from_another_state_and_leaves_it_alone(diet, tmp_path, one_thread):
    main = train_to(tmp_path / "denoiser.pt", 2, diet)
    tail = train_to(tmp_path / "tail.pt", 4, diet, fall=2, start_from=tmp_path / "denoiser.pt")
    assert tail["step"] == 4
    assert not torch.equal(flatten(tail), flatten(main))
    again = torch.load(tmp_path / "denoiser.pt", weights_only=True)
    assert torch.equal(flatten(again), flatten(main)) and again["step"] == 2


def test_the_rate_warms_up_stays_and_falls():
    assert scale_lr(0, 1000) == pytest.approx(1 / 200)
    assert scale_lr(500, 1000) == 1 and scale_lr(999, 1000, fall=0) == 1
    assert scale_lr(850, 1000) == pytest.approx(0.5)
    assert scale_lr(950, 1000, fall=100) == pytest.approx(0.5)
    assert scale_lr(1000, 1000) == pytest.approx(0.02)


def test_a_batch_is_one_third_plain_with_words_for_every_latent(diet):
    latents, tokens = diet.draw_batch(torch.Generator().manual_seed(0), random.Random(0))
    assert latents.shape == (6, 24, 8, 8) and latents.dtype == torch.float32
    assert tokens.shape == (6, 32)
    plain = diet.plain.float()
    assert all(any(torch.equal(x, p) for p in plain) for x in latents[:2])
    assert not any(torch.equal(x, p) for x in latents[2:] for p in plain)


def test_a_shard_is_written_once_and_read_as_drawn(diet, gallery, tmp_path, tiny_autoencoder):
    assert len(diet.examples) == len(diet.scenes) == 24
    before = (tmp_path / "scenes-000.pt").read_bytes()
    write_shard(tmp_path, tiny_autoencoder, gallery, 0, 99)
    assert (tmp_path / "scenes-000.pt").read_bytes() == before
    rng = random.Random("shard 0")
    for example in diet.examples[:12]:
        drawn = gallery.draw_example(rng)
        assert (drawn.scene, drawn.concept, drawn.seed) == (
            example.scene,
            example.concept,
            example.seed,
        )


def test_everything_that_can_be_turned_is_a_fifth_of_the_scenes(
    diet, gallery, tokenizer, tmp_path, tiny_autoencoder
):
    write_shard(tmp_path, tiny_autoencoder, gallery, 2, 400)
    write_turned(tmp_path, tiny_autoencoder, gallery)
    scenes = read_diet(tmp_path, gallery, tokenizer).examples[424:]
    assert {e.scene for e in scenes} == {Scene(turned="upside down")}
    assert {e.concept for e in scenes} == {
        i for i in gallery.subjects if "turned" in gallery.open_to[i]
    }
    share = len(scenes) / (424 + len(scenes))
    assert share == pytest.approx(TURNED_SHARE, abs=0.02)


def test_averages_are_loaded_in_the_order_of_the_parameters(diet, tmp_path, one_thread):
    state = train_to(tmp_path / "run.pt", 2, diet)
    parts = torch.nn.ModuleList(build_parts(diet.tokenizer).values())
    load_ema(parts, tmp_path / "run.pt")
    for parameter, shadow in zip(parts.parameters(), state["ema"]["shadow_params"], strict=True):
        assert torch.equal(parameter.data, shadow)


def test_the_faster_precision_is_chosen(monkeypatch):
    weight = torch.ones(4, 4, requires_grad=True)
    clock = iter([0.0, 5.0, 10.0, 11.0])
    monkeypatch.setattr("bundled.base_loops.time.perf_counter", lambda: next(clock))
    assert choose_precision(lambda: (weight @ weight).sum()) == torch.float32


def test_a_diet_without_scenes_is_all_plain(gallery, tokenizer):
    plain = torch.randn(3, 24, 8, 8).half()
    diet = Diet(gallery, tokenizer, plain, plain[:0], [], batch_size=4)
    latents, _ = diet.draw_batch(torch.Generator().manual_seed(0), random.Random(0))
    assert len(latents) == 4
