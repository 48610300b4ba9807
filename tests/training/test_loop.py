"""Laws of a training run: what it writes, resuming, samples, stopping. On a tiny base."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sdatoms
from sdatoms.diffusion.pipeline import load_base, paint
from sdatoms.diffusion.prompts import UNRELATED_PROMPTS
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.scores import measure_samples
from sdatoms.training.estimate import estimate
from sdatoms.training.loop import Run, train
from sdatoms.training.run_folder import RunDirectory
from sdatoms.training.trainer import Trainer

WORD = {"train_text_encoder_ti": True, "instance_prompt": "a <new> cat"}


def read_metrics(folder):
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def read_tensors(folder):
    return sdatoms.read_atoms(Path(folder) / "atoms.safetensors").tensors


def assert_same_atoms(one, other):
    one, other = read_tensors(one), read_tensors(other)
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


def measure_brightness(pipe, pictures, prompts, instances, unrelated):
    assert len(pictures) == len(prompts) and len(instances) == 4
    return {"brightness": float(np.mean([np.asarray(p).mean() for p in pictures]))}


def test_run_directory_is_complete(train_config):
    config = train_config(validation_steps=4)
    steps = list(train(config))
    run = Path(config.output_dir)
    assert [s.step for s in steps] == [1, 2, 3, 4]
    assert sorted(p.name for p in run.iterdir()) == [
        "README.md",
        "atoms.safetensors",
        "checkpoints",
        "config.toml",
        "log.txt",
        "metrics.jsonl",
        "report.json",
        "samples",
        "samples.png",
        "status.json",
    ]
    status = json.loads((run / "status.json").read_text())
    assert (status["phase"], status["step"], status["total"]) == ("done", 4, 4)
    assert status["pid"] == os.getpid() and status["heartbeat"] > 0
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4]
    report = json.loads((run / "report.json").read_text())
    file = sdatoms.read_atoms(run / "atoms.safetensors")
    assert report["parameters"] == file.num_parameters
    assert report["bytes"] == (run / "atoms.safetensors").stat().st_size
    assert report["seconds"] > 0 and report["peak_memory_bytes"] > 0
    assert (file.trigger, file.metadata["step"]) == ("sks cat", "4")
    assert file.metadata["modelspec.thumbnail"].startswith("data:image/jpeg")


@pytest.mark.parametrize("variant", ["atoms", "overcomplete", "coefficients", "full"])
def test_training_lowers_the_loss_on_a_fixed_batch(train_config, variant):
    trainer = Trainer(train_config(atom_variant=variant, learning_rate=1e-2))
    losses = []
    for _ in range(8):
        trainer.step = 0  # the same batch every time
        losses.append(trainer.take_step().instance_loss)
    assert losses[-1] < 0.99 * losses[0]


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
    "bf16": {"mixed_precision": "bf16", "gradient_checkpointing": True},
}


@pytest.mark.parametrize("name", RESUMED)
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
    assert json.loads((tmp_path / "parts" / "status.json").read_text())["phase"] == "interrupted"
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


def test_the_seed_decides_every_bit(train_config, tmp_path):
    prior = {"with_prior_preservation": True, "class_prompt": "cat", "num_class_images": 2}
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        torch.manual_seed(len(name))  # what was drawn before does not count
        list(train(train_config(output_dir=str(tmp_path / name), seed=seed, **prior)))
    assert_same_atoms(tmp_path / "one", tmp_path / "again")
    one, other = read_tensors(tmp_path / "one"), read_tensors(tmp_path / "other")
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_resume_latest_in_an_empty_directory_starts_afresh(train_config):
    steps = list(train(train_config(max_train_steps=1, resume_from_checkpoint="latest")))
    assert [s.step for s in steps] == [1]


def test_resuming_with_another_optimizer_or_averages_is_refused(train_config):
    config = train_config(max_train_steps=2)
    list(train(config))
    again = replace(config, max_train_steps=3, resume_from_checkpoint="latest")
    with pytest.raises(sdatoms.AtomError, match="was made with AdamW, not SGD"):
        next(train(replace(again, optimizer="torch.optim.SGD")))
    with pytest.raises(sdatoms.AtomError, match="another --use_ema"):
        next(train(replace(again, use_ema=True)))
    with pytest.raises(sdatoms.AtomError, match="step 2, past --max_train_steps 1"):
        next(train(replace(again, max_train_steps=1)))


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


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("changes", [{}, {"train_text_encoder": True}, {"use_ema": True, **WORD}])
def test_sample_in_training_equals_the_picture_from_the_saved_file(train_config, kind, changes):
    config = train_config(
        kind,
        learning_rate=5e-2,
        validation_steps=4,
        validation_prompts=("a <new> cat", "a dog"),
        seed=5,
        **changes,
    )
    list(train(config))
    run = Path(config.output_dir)
    jobs = ["a <new> cat", "a dog"], [5, 5]
    pipe = load_base(config.pretrained_model_name_or_path)
    base = paint(pipe, *jobs)
    adapters = sdatoms.load_atoms(pipe, run / "atoms.safetensors")
    again = paint(pipe, *jobs)
    adapters.clear()
    for before, after in zip(base, paint(pipe, *jobs), strict=True):
        assert np.array_equal(before, after)
    for k in range(2):
        picture = np.array(Image.open(run / "samples" / f"step-000004-{k}.png"))
        assert np.array_equal(picture, np.array(again[k]))
        if k == 1 or "train_text_encoder_ti" not in changes:  # the base's <new> is another word
            assert np.array_equal(Image.open(run / "samples" / f"base-{k}.png"), base[k])
        assert not np.array_equal(picture, np.array(base[k]))


def test_sampling_and_measuring_do_not_change_the_training(train_config, tmp_path):
    list(train(train_config()))
    painted = train_config(output_dir=str(tmp_path / "painted"), validation_steps=2)
    list(train(painted, evaluate=measure_brightness))
    assert_same_atoms(tmp_path / "run", tmp_path / "painted")


def test_averages_are_what_samples_and_the_file_hold(train_config):
    config = train_config(use_ema=True, learning_rate=1e-2)
    run = Run(config, None)
    run.prepare()
    values = [run.trainer.live()]
    for _ in run.walk():
        values.append({key: tensor.clone() for key, tensor in run.trainer.live().items()})
    key = next(k for k in values[0] if k.endswith("inner_atoms"))
    expected = torch.zeros_like(values[1][key])  # inner atoms start at zero
    for k, value in enumerate(values[1:]):
        decay = min(0.99, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * value[key]
    torch.testing.assert_close(read_tensors(config.output_dir)[key], expected)
    folder = Path(config.output_dir) / "checkpoints" / "step-000004"
    kept = sdatoms.read_atoms(folder / "atoms-ema.safetensors").tensors[key]
    assert torch.equal(kept, read_tensors(config.output_dir)[key])
    live = sdatoms.read_atoms(folder / "atoms.safetensors").tensors[key]
    assert torch.equal(live, values[-1][key])
    list(train(replace(config, ema_output=False)))
    assert torch.equal(read_tensors(config.output_dir)[key], live)


def test_best_step_is_kept_and_training_stops_when_it_does_not_improve(train_config, tmp_path):
    curve = iter([0.0, 0.3, 0.5, 0.4, 0.45, 0.9])  # the base first

    def evaluate(pipe, pictures, prompts, instances, unrelated):
        return {"fidelity": next(curve)}

    config = train_config(
        max_train_steps=10,
        validation_steps=1,
        checkpointing_steps=1,
        best_metric="fidelity",
        early_stopping_patience=2,
    )
    steps = list(train(config, evaluate=evaluate))
    assert [s.step for s in steps] == [1, 2, 3, 4]  # best at 2, then two that are no better
    file = sdatoms.read_atoms(Path(config.output_dir) / "atoms.safetensors")
    second = Path(config.output_dir) / "checkpoints" / "step-000002" / "atoms.safetensors"
    assert file.metadata["step"] == "2"
    for key, tensor in sdatoms.read_atoms(second).tensors.items():
        assert torch.equal(tensor, file.tensors[key])
    report = json.loads((Path(config.output_dir) / "report.json").read_text())
    assert report["chosen_step"] == 2 and report["metrics"]["base"] == {"fidelity": 0.0}
    assert [row["fidelity"] for row in read_metrics(config.output_dir)] == [0.3, 0.5, 0.4, 0.45]
    # What the patience has counted and which step was best outlive an interruption.
    curve = iter([0.45])
    again = replace(config, resume_from_checkpoint="step-000003")
    assert [s.step for s in train(again, evaluate=evaluate)] == [4]
    again = sdatoms.read_atoms(Path(config.output_dir) / "atoms.safetensors")
    assert again.metadata["step"] == "2"


def test_drift_is_how_far_unrelated_pictures_moved_from_the_base(
    train_config, evaluator_folder, tmp_path
):
    evaluate = measure_samples(load_evaluator(str(evaluator_folder)))
    config = train_config(
        output_dir=str(tmp_path / "whole"),
        learning_rate=5e-2,
        validation_steps=2,
        num_validation_images=2,
        num_drift_images=3,
        best_metric="auto",
    )
    list(train(config, evaluate=evaluate))
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    base, second, last = report["metrics"].values()
    assert base["drift"] == pytest.approx(0, abs=1e-6)
    assert second["drift"] > 1e-4 and last["drift"] > 1e-4
    assert all(found["diversity"] > 0 for found in (base, second, last))
    best = max(("step-000002", "step-000004"), key=lambda name: report["metrics"][name]["fidelity"])
    assert report["chosen_step"] == int(best[-6:])
    adapters = sdatoms.load_atoms(
        pipe := load_base(config.pretrained_model_name_or_path),
        tmp_path / "whole" / "checkpoints" / "step-000002" / "atoms.safetensors",
    )
    again = paint(pipe, UNRELATED_PROMPTS[:3], range(3), batch_size=config.train_batch_size)
    adapters.clear()
    for k, picture in enumerate(again):
        kept = tmp_path / "whole" / "samples" / "unrelated" / f"step-000002-{k}.png"
        assert np.array_equal(Image.open(kept), picture)
    # A resumed run measures against the same pictures of the base.
    parts = replace(config, output_dir=str(tmp_path / "parts"))
    steps = train(parts, evaluate=evaluate)
    next(steps), next(steps), next(steps)
    steps.close()
    list(train(replace(parts, resume_from_checkpoint="step-000002"), evaluate=evaluate))
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")


def test_samples_hold_no_more_pictures_at_once_than_a_training_batch(train_config):
    config = train_config(
        max_train_steps=1,
        validation_steps=1,
        num_validation_images=3,
        num_drift_images=6,
        sample_batch_size=8,
    )
    run = Run(config, lambda *_: {"bright": 1.0})
    run.prepare()
    seen = {"unet": set(), "decoder": set()}
    pipe = run.trainer.pipe
    for name, module in (("unet", pipe.unet), ("decoder", pipe.vae.decoder)):
        module.register_forward_pre_hook(lambda _, args, name=name: seen[name].add(len(args[0])))
    list(run.walk())
    # Guidance doubles a batch of 2, without gradients; the autoencoder decodes one by one.
    assert seen == {"unet": {2, 4}, "decoder": {1}}


def test_without_an_evaluator_auto_keeps_the_last_step(train_config):
    config = train_config(validation_steps=2, best_metric="auto", early_stopping_patience=1)
    assert len(list(train(config))) == 4
    file = sdatoms.read_atoms(Path(config.output_dir) / "atoms.safetensors")
    assert file.metadata["step"] == "4"
    log = (Path(config.output_dir) / "log.txt").read_text()
    assert "nothing measures the samples: --best_metric auto keeps the last step" in log


def test_a_best_metric_that_nothing_measures_is_refused(train_config):
    config = train_config(validation_steps=1, best_metric="fidelity")
    with pytest.raises(sdatoms.AtomError, match="needs something that measures"):
        next(train(config))
    with pytest.raises(sdatoms.AtomError, match="fidelity is not measured; measured are bright"):
        list(train(config, evaluate=measure_brightness))


def test_class_pictures_are_painted_once(train_config):
    config = train_config(
        with_prior_preservation=True, class_prompt="cat", num_class_images=3, max_train_steps=1
    )
    steps = list(train(config))
    folder = Path(config.output_dir) / "class_images"
    painted = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert len(painted) == 3 and steps[0].prior_loss is not None
    list(train(config))
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == painted


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


def test_dry_run_measures_and_writes_nothing(train_config):
    config = train_config(validation_steps=2, num_validation_images=4)
    facts = estimate(config)
    assert facts["steps"] == 4 and facts["bytes"] > 4 * facts["parameters"] > 0
    assert not Path(config.output_dir).exists()
