"""What a checkpoint holds comes back to the bit, without a pickle."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny.runs import assert_same_atoms, read_metrics, read_tensors

import sdatoms
from sdatoms.training.checkpoints import pack_state, unpack_state
from sdatoms.training.loop import train
from sdatoms.training.run_folder import RunDirectory


def test_nested_states_come_back_as_they_were():
    state = {
        "state": {0: {"step": torch.tensor(3.0), "exp": torch.randn(2, 3)}, 1: {}},
        "groups": [{"betas": (0.9, 0.99), "lr": 1e-3 / 3, "name": "x", "params": [0, 1]}],
        "rest": [None, True, 7, math.inf, -0.0],
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": {},
        "tensor": {"tensor": "t00000"},
    }
    tensors, text = pack_state(state)
    json.loads(text)
    back = unpack_state(tensors, text)
    assert torch.equal(back["state"][0].pop("exp"), state["state"][0].pop("exp"))
    assert torch.equal(back["bytes"], state["bytes"]) and back["bytes"].dtype == torch.uint8
    back["bytes"] = state["bytes"] = None
    assert repr(back) == repr(state)


def test_what_is_no_state_is_refused():
    with pytest.raises(TypeError, match="cannot hold a function"):
        pack_state({"f": repr and (lambda: None)})


RESUMED = {
    "plain": {},
    "accumulated": {
        "atom_variant": "full",
        "gradient_accumulation_steps": 2,
        "lr_scheduler": "cosine_with_restarts",
        "lr_num_cycles": 2,
    },
    "prior": {
        "with_prior_preservation": True,
        "class_prompt": "cat",
        "num_class_images": 2,
        "snr_gamma": 5.0,
        "proportion_empty_prompts": 0.3,
        "random_flip": True,
        "color_jitter": 0.2,
    },
    "prediction": {
        "with_prior_preservation": True,
        "prior_preservation_mode": "prediction",
        "class_prompt": "cat",
        "loss_type": "huber",
        "noise_offset": 0.1,
        "input_perturbation": 0.1,
        "timestep_bias_strategy": "later",
        "timestep_bias_multiplier": 2.0,
    },
    "averaged": {
        "use_ema": True,
        "lr_scheduler": "piecewise_constant",
        "lr_step_rules": "1:2,0.1:3,0.01",
        "aspect_ratio_buckets": "auto",
    },
    "adafactor": {"optimizer": "adafactor", "atom_variant": "coefficients"},
    "sgd": {"optimizer": "torch.optim.SGD", "optimizer_args": ("momentum=0.9",)},
    "prodigy": {"optimizer": "prodigy"},
    "8-bit": {"use_8bit_adam": True, "atom_variant": "full"},
    "text": {"train_text_encoder": True, "text_encoder_lr": 1e-3, "lr_scheduler": "polynomial"},
    "fp16": {"mixed_precision": "fp16"},
    "word": {
        "train_text_encoder_ti": True,
        "instance_prompt": "a <new> cat",
        "train_text_encoder": True,
        "use_ema": True,
    },
    "shared": {
        "atom_variant": "full",
        "block_form": "shared",
        "train_text_encoder": True,
        "use_ema": True,
    },
    "reading": {
        "atom_variant": "coefficients",
        "block_form": "shared",
        "block_factors": "each",
        "atom_layers": "text",
        "shared_atoms": "captions",
        "use_ema": True,
    },
    "word decay": {
        "atom_variant": "coefficients",
        "block_form": "shared",
        "block_factors": "each",
        "atom_layers": "text",
        "word_decay": 10.0,
        "use_ema": True,
    },
    "bf16": {"mixed_precision": "bf16", "gradient_checkpointing": True},
    "16-bit base": {
        "base_dtype": "bfloat16",
        "gradient_checkpointing": True,
        "train_text_encoder": True,
        "with_prior_preservation": True,
        "prior_preservation_mode": "prediction",
        "class_prompt": "cat",
    },
}
LONG = ("accumulated", "prediction", "adafactor", "8-bit", "word", "shared", "reading", "bf16")
"""Whose parts the others have too, for the slow tests."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in RESUMED],
)
def test_resumed_run_equals_the_uninterrupted_one_to_the_bit(train_config, tmp_path, name):
    package = {"prodigy": "prodigyopt", "8-bit": "bitsandbytes"}.get(name)
    if package:
        pytest.importorskip(package, reason=f"{package} is not installed")
    whole = train_config(output_dir=str(tmp_path / "whole"), learning_rate=1e-2, **RESUMED[name])
    list(train(whole))
    parts = replace(whole, output_dir=str(tmp_path / "parts"))
    steps = train(parts)
    for step in steps:
        if step.step == 3:  # one step past the checkpoint at 2
            steps.close()
    assert json.loads((tmp_path / "parts" / "status.json").read_text())["phase"] == "stopped"
    assert RunDirectory(tmp_path / "parts").list_checkpoints() == [2, 3]
    torch.manual_seed(99)  # whatever happened in between must not matter
    list(train(replace(parts, resume_from_checkpoint="step-000002")))
    assert_same_atoms(tmp_path / "whole", tmp_path / "parts")
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "parts")
    start = sdatoms.read_atoms(tmp_path / "whole" / "checkpoints" / "step-000002/atoms.safetensors")
    moved = [
        not torch.equal(start.tensors[key], tensor)
        for key, tensor in read_tensors(tmp_path / "whole").items()
        if not key.endswith("encoder")
    ]
    assert any(moved)


def test_resume_latest_in_an_empty_directory_starts_afresh(train_config):
    steps = list(train(train_config(max_train_steps=1, resume_from_checkpoint="latest")))
    assert [s.step for s in steps] == [1]


def test_resuming_with_another_optimizer_or_averages_is_refused(train_config):
    config = train_config(max_train_steps=2)
    list(train(config))
    again = replace(config, max_train_steps=3, resume_from_checkpoint="latest")
    with pytest.raises(sdatoms.AtomError, match=r"--optimizer was 'adamw' and is"):
        next(train(replace(again, optimizer="torch.optim.SGD")))
    with pytest.raises(sdatoms.AtomError, match="--use_ema was False and is True"):
        next(train(replace(again, use_ema=True)))
    with pytest.raises(sdatoms.AtomError, match="step 2, past --max_train_steps 1"):
        next(train(replace(again, max_train_steps=1)))


def test_resuming_with_the_base_in_another_dtype_is_refused(train_config):
    list(train(train_config(max_train_steps=2)))
    again = train_config(max_train_steps=3, resume_from_checkpoint="latest", base_dtype="bfloat16")
    with pytest.raises(sdatoms.AtomError, match="--base_dtype was 'float32' and is 'bfloat16'"):
        next(train(again))


def test_a_fresh_start_forgets_old_checkpoints_only_when_it_has_its_own(train_config):
    config = train_config()
    list(train(replace(config, validation_steps=4)))
    run = RunDirectory(Path(config.output_dir))
    own = run.samples / "holiday-1.png"
    own.write_bytes(b"kept")
    steps = train(replace(config, max_train_steps=3, checkpointing_steps=3))
    next(steps)
    assert run.list_checkpoints() == [2, 4]
    assert list(run.samples.iterdir()) == [own]
    list(steps)
    assert run.list_checkpoints() == [3]


def test_checkpoints_are_limited_in_number(train_config):
    list(train(train_config(checkpointing_steps=1, checkpoints_total_limit=2)))
    run = RunDirectory(Path(train_config().output_dir))
    assert run.list_checkpoints() == [3, 4]
    # A smaller limit later takes away several at once, as in diffusers' own test.
    list(
        train(
            train_config(
                max_train_steps=5,
                checkpointing_steps=1,
                checkpoints_total_limit=1,
                resume_from_checkpoint="latest",
            )
        )
    )
    assert run.list_checkpoints() == [5]
