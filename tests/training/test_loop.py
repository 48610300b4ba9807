"""Laws of a training run: what it writes, what decides its bits, what it costs beforehand."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny.runs import assert_same_atoms, read_metrics, read_tensors

import sdatoms
from sdatoms.training.estimate import estimate
from sdatoms.training.loop import Run, train
from sdatoms.training.trainer import Trainer


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


def test_the_seed_decides_every_bit(train_config, tmp_path):
    prior = {"with_prior_preservation": True, "class_prompt": "cat", "num_class_images": 2}
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        torch.manual_seed(len(name))  # what was drawn before does not count
        list(train(train_config(output_dir=str(tmp_path / name), seed=seed, **prior)))
    assert_same_atoms(tmp_path / "one", tmp_path / "again")
    one, other = read_tensors(tmp_path / "one"), read_tensors(tmp_path / "other")
    assert any(not torch.equal(one[key], other[key]) for key in one)


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
    run.close("done")
    list(train(replace(config, ema_output=False)))
    assert torch.equal(read_tensors(config.output_dir)[key], live)


def test_dry_run_measures_and_writes_nothing(train_config):
    config = train_config(validation_steps=2, num_validation_images=4)
    facts = estimate(config)
    assert facts["steps"] == 4 and facts["bytes"] > 4 * facts["parameters"] > 0
    assert not Path(config.output_dir).exists()
