"""Laws of one optimizer step, for every kind of base."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny.pipelines import build_pipeline

import sdatoms
from sdatoms.diffusion.open import load_base
from sdatoms.training.batches import draw_batches
from sdatoms.training.conditions import TextStack
from sdatoms.training.config import ATOM_LAYERS, TrainConfig
from sdatoms.training.inputs import check_inputs
from sdatoms.training.parts import inject_atoms
from sdatoms.training.trainer import Trainer

BASES = [("sd", "epsilon"), ("sd2", "v_prediction"), ("sdxl", "epsilon"), ("sd", "sample")]


@pytest.mark.parametrize(("kind", "prediction_type"), BASES)
@pytest.mark.parametrize("text", [False, True])
def test_every_trained_tensor_gets_a_gradient_and_nothing_else(
    train_config, kind, prediction_type, text
):
    config = train_config(kind, prediction_type, train_text_encoder=text, learning_rate=1e-2)
    trainer = Trainer(config)
    components = ["unet"] + text * ["text_encoder"] + (text and kind == "sdxl") * ["text_encoder_2"]
    assert list(trainer.injections) == components
    trainer.take_step(), trainer.take_step()  # inner coefficients wait for the inner atoms
    for component, injection in trainer.injections.items():
        # SDXL reads the layer before the last, so the first encoder's last one has no say.
        unread = "encoder.layers.1." if (kind, component) == ("sdxl", "text_encoder") else "none"
        for name, parameter in injection.named_parameters():
            state = trainer.optimizer.state[parameter]
            assert unread in name or float(state["exp_avg"].abs().max()) > 0, (component, name)
        ours = {id(p) for p in injection.parameters()}
        model = getattr(trainer.pipe, component)
        assert all(p.requires_grad == (id(p) in ours) for p in model.parameters())


def test_prior_weight_weighs_the_class_rows(train_config, make_pictures):
    config = train_config(
        with_prior_preservation=True,
        class_prompt="cat",
        class_data_dir=str(make_pictures("class")),
        num_class_images=4,
        prior_loss_weight=0.25,
    )
    step = Trainer(config).take_step()
    assert step.prior_loss is not None
    assert step.loss == pytest.approx(step.instance_loss + 0.25 * step.prior_loss, rel=1e-5)


@pytest.mark.parametrize("text", [False, True])
def test_prediction_of_the_base_is_kept_without_class_pictures(train_config, text):
    config = train_config(
        with_prior_preservation=True,
        prior_preservation_mode="prediction",
        class_prompt="cat",
        train_text_encoder=text,
        learning_rate=5e-2,
    )
    trainer = Trainer(config)
    first = trainer.take_step()
    # Atoms start at zero: the prediction is the base's own.
    assert first.prior_loss == pytest.approx(0, abs=1e-9)
    second = trainer.take_step()
    assert second.prior_loss is not None and second.prior_loss > 0
    assert not (Path(trainer.config.output_dir) / "class_images").exists()
    # The target is what a fresh base predicts for the same input.
    base = load_base(config.pretrained_model_name_or_path, device="cpu")
    _, batch = draw_batches(trainer.data.instances, None, 7, trainer.draw)
    assert batch.prompts == ("cat", "cat") and batch.mask is None
    noisy = trainer.denoising.mix(batch.latents, batch.input_noise, batch.timesteps)
    with torch.no_grad():
        condition = TextStack(base).encode(batch.prompts)
        target = trainer.predict(base.unet, noisy, batch, condition)
        tuned = trainer.predict(trainer.unet, noisy, batch, trainer.data.condition(batch))
        errors = trainer.measure(batch)
    expected = (tuned - target).square().mean((1, 2, 3))
    torch.testing.assert_close(errors, expected, rtol=1e-2, atol=1e-9)


def test_a_share_of_the_rows_keeps_the_class_and_the_others_teach(train_config):
    config = train_config(
        with_prior_preservation=True,
        prior_preservation_mode="prediction",
        class_prompt="cat",
        train_batch_size=4,
        prior_share=0.25,
    )
    trainer = Trainer(config)
    for process in range(2):
        draw = replace(trainer.draw, num_processes=2, process=process)
        own, kept = draw_batches(trainer.data.instances, None, 3, draw)
        all_rows, both = draw_batches(
            trainer.data.instances, None, 3, replace(draw, prior_share=0.0)
        )
        assert own.names == all_rows.names[1:] and kept.names == all_rows.names[:1]
        assert torch.equal(own.latents, all_rows.latents[1:])
        assert torch.equal(kept.noise, all_rows.noise[:1])
        assert kept.prompts == both.prompts[:1] == ("cat",) and kept.from_base and kept.prior
        assert not own.from_base and "cat" not in own.prompts
    first, second = trainer.take_step(), trainer.take_step()
    assert first.prior_loss == pytest.approx(0, abs=1e-9) and second.prior_loss
    assert second.loss == pytest.approx(second.instance_loss + second.prior_loss, rel=1e-5)


def test_tiny_pictures_are_measured_by_the_base_before_it_is_loaded(train_config, make_pictures):
    folder = make_pictures("small", ((7, 30), (8, 30)))
    found = check_inputs(train_config(instance_data_dir=str(folder)))  # the base paints 16 px
    assert [note for note in found.notes if "tiny" in note] == [
        "tiny pictures, scaled up a lot to be trained on: 0.png (7×30 px)"
    ]


def test_atoms_stay_in_float32_under_autocast(train_config):
    trainer = Trainer(train_config(mixed_precision="bf16"))
    trainer.take_step()
    assert {p.dtype for p in trainer.parameters} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in trainer.parameters)


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": True},
        pytest.param({"dynamo_backend": "eager"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_checkpointing_and_compiling_change_no_gradient(train_config, changes):
    text = {"train_text_encoder": True} if "gradient_checkpointing" in changes else {}
    plain, changed = Trainer(train_config(**text)), Trainer(train_config(**text, **changes))
    plain.take_step()
    seen = [], []
    for trainer, gradients in zip((plain, changed), seen, strict=True):
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_, found=gradients: found.extend(
                p.grad.clone() for group in optimizer.param_groups for p in group["params"]
            )
        )
    # The second step, when every atom has a gradient, from one state in both.
    changed.take_step()
    seen[1].clear()
    for own, other in zip(changed.parameters, plain.parameters, strict=True):
        own.data.copy_(other.data)
    plain.take_step(), changed.take_step()
    assert len(seen[0]) == len(seen[1]) > 0
    for expected, found in zip(*seen, strict=True):
        assert expected.any()
        assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache")  # diffusers'
@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_inductor_gives_the_plain_gradients_or_stops(train_config, precision):
    flags = {"mixed_precision": precision, "max_grad_norm": 1e9}
    plain = Trainer(train_config(**flags))
    compiled = Trainer(train_config(**flags, dynamo_backend="inductor"))
    seen = []
    for trainer in (plain, compiled):
        trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_: seen.append(
                [p.grad.clone() for group in optimizer.param_groups for p in group["params"]]
            )
        )
    plain.take_step()
    try:
        compiled.take_step()
    except sdatoms.AtomError as error:
        assert "--dynamo_backend inductor loses it" in str(error)
        return
    for expected, found in zip(*seen, strict=True):
        limit = 0.1 if precision == "bf16" else 1e-3
        assert (found - expected).norm() <= limit * expected.norm() + 1e-7


def change_base(config, folder, **scales):
    """The config on a copy of its base, some of whose convolutions are scaled."""
    base = load_base(config.pretrained_model_name_or_path, device="cpu")
    with torch.no_grad():
        for path, scale in scales.items():
            base.unet.get_submodule(path.replace("__", ".")).weight.mul_(scale)
    base.save_pretrained(folder)
    return replace(config, pretrained_model_name_or_path=str(folder))


def test_atoms_that_no_gradient_reaches_stop_the_first_step(train_config, tmp_path):
    trainer = Trainer(change_base(train_config(), tmp_path / "deaf", conv_out=0))
    before = {key: tensor.clone() for key, tensor in trainer.live().items()}
    words = r"no gradient reaches (\d+) of \1 tensors of atoms in the first step, first conv_in"
    with pytest.raises(sdatoms.AtomError, match=words):
        trainer.take_step()
    assert all(torch.equal(t, before[k]) for k, t in trainer.live().items())


def test_a_single_silent_layer_is_named_in_the_log(train_config, tmp_path):
    dead = "mid_block.resnets.0.conv2".replace(".", "__")
    lines = []
    trainer = Trainer(change_base(train_config(), tmp_path / "half", **{dead: 0}), log=lines.append)
    trainer.take_step()
    held, line = lines
    assert held == "the base is held in float32"
    assert "no gradient reaches 1 tensors of atoms, first mid_block.resnets.0.conv1" in line


@pytest.mark.parametrize("factors", ["shared", "each"])
def test_shared_atoms_wait_for_what_they_multiply(train_config, factors):
    """In the first step no gradient may reach them; compiled training refuses silent ones."""
    lines = []
    shared = {"atom_variant": "coefficients", "block_form": "shared", "block_factors": factors}
    trainer = Trainer(train_config(**shared), log=lines.append)
    trainer.take_step()
    assert not any("no gradient" in line for line in lines)
    before = {key: tensor.clone() for key, tensor in trainer.live().items()}
    trainer.take_step()
    assert all(not torch.equal(t, before[k]) for k, t in trainer.live().items())


def test_encoders_are_freed_when_nothing_is_painted(train_config):
    assert Trainer(train_config()).pipe.vae is None
    trainer = Trainer(train_config(train_text_encoder=True))
    assert trainer.pipe.vae is None and trainer.pipe.text_encoder is not None
    assert Trainer(train_config(validation_steps=1)).pipe.vae is not None


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
@pytest.mark.parametrize("variant", ["overcomplete", "full"])
def test_a_base_held_in_few_bits_trains_atoms_for_the_whole_one(
    train_config, tmp_path, bits, variant
):
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config = train_config(load_in=bits, atom_variant=variant, learning_rate=1e-2)
    trainer = Trainer(config)
    kind = bnb.nn.Linear8bitLt if bits == "8bit" else bnb.nn.Linear4bit
    held = [m for m in trainer.pipe.unet.modules() if isinstance(m, kind)]
    assert held and all(m.weight.dtype in (torch.int8, torch.uint8) for m in held)
    bytes_before = [m.weight.data.clone() for m in held]
    losses = []
    for _ in range(6):
        trainer.step = 0  # the same batch every time
        losses.append(trainer.take_step().loss)
    assert losses[-1] < 0.99 * losses[0]
    assert all(torch.equal(m.weight.data, b) for m, b in zip(held, bytes_before, strict=True))
    path = trainer.pack().save(tmp_path / "small.safetensors")
    base = load_base(config.pretrained_model_name_or_path, device="cpu")
    # Four bits are another base, and that is told; eight are the same within the tolerance.
    rounded = bits == "4bit" and variant == "full"
    words = "layers differ from the base"
    with pytest.warns(UserWarning, match=words) if rounded else nullcontext():
        adapters = sdatoms.load_atoms(base, path)
    before = trainer.unet.conv_in.weight
    assert adapters.delta("small", "conv_in").norm() > 1e-3 * before.norm()
    adapters.clear()


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("layers", list(ATOM_LAYERS))
def test_the_layers_named_get_atoms_and_no_others(kind, layers):
    pipe, every = build_pipeline(kind), build_pipeline(kind)
    asked = {"instance_prompt": "a", "atom_variant": "coefficients", "block_form": "product"}
    found = inject_atoms(pipe, TrainConfig(**asked, atom_layers=layers))["unet"].layers
    whole = inject_atoms(every, TrainConfig(**asked))["unet"].layers
    kinds = {
        "all": lambda path: True,
        "attention": lambda path: ".attn" in path,
        "cross-attention": lambda path: ".attn2." in path,
        "text": lambda path: path.endswith((".attn2.to_k", ".attn2.to_v")),
        "convolutions": lambda path: (
            isinstance(whole[path], torch.nn.Conv2d)
            and path not in ("conv_in", "conv_out")
            and not path.endswith(("proj_in", "proj_out"))
        ),
    }
    named = [kinds[kind] for kind in layers.split("+")]
    assert list(found) == [path for path in whole if any(is_one(path) for is_one in named)] != []
