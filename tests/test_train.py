"""Laws of the trainer, on the bundled base and a bundled subject."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sdatoms
from sdatoms.pipeline import find_assets, load_base, paint
from sdatoms.run_directory import RunDirectory
from sdatoms.train import Trainer, estimate, train
from sdatoms.train_config import TrainConfig

INK = find_assets() / "subjects" / "ink"


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        instance_data_dir=str(INK),
        instance_prompt="an emoji in sks style",
        output_dir=str(tmp_path / "run"),
        max_train_steps=6,
        train_batch_size=2,
        lr_warmup_steps=0,
        checkpointing_steps=3,
        validation_steps=0,
        checkpoints_total_limit=None,
    )


def read_metrics(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def test_run_directory_is_complete(config):
    steps = list(train(replace(config, validation_steps=6, num_validation_images=1)))
    run = Path(config.output_dir)
    assert [s.step for s in steps] == [1, 2, 3, 4, 5, 6]
    assert sorted(p.name for p in run.iterdir()) == [
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
    assert (status["phase"], status["step"], status["total"]) == ("done", 6, 6)
    assert status["pid"] == os.getpid() and status["heartbeat"] > 0
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4, 5, 6]
    report = json.loads((run / "report.json").read_text())
    file = sdatoms.read_atoms(run / "atoms.safetensors")
    assert report["parameters"] == file.num_parameters
    assert report["bytes"] == (run / "atoms.safetensors").stat().st_size
    assert report["seconds"] > 0 and report["peak_memory_bytes"] > 0
    assert file.trigger == "an emoji in sks style"
    assert file.metadata["step"] == "6"
    assert file.metadata["modelspec.thumbnail"].startswith("data:image/jpeg")
    log = (run / "log.txt").read_text()
    assert "ignored 2 files that are no pictures in ink: LICENSE, subject.json" in log


@pytest.mark.parametrize("variant", ["atoms", "overcomplete", "coefficients", "full"])
def test_training_lowers_the_loss_on_a_fixed_batch(config, variant):
    trainer = Trainer(replace(config, atom_variant=variant, learning_rate=1e-2))
    losses = []
    for _ in range(8):
        trainer.step = 0  # the same batch every time
        losses.append(trainer.take_step().instance_loss)
    assert losses[-1] < 0.99 * losses[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"atom_variant": "full", "gradient_accumulation_steps": 2, "lr_scheduler": "cosine"},
        {
            "with_prior_preservation": True,
            "class_prompt": "an emoji",
            "class_data_dir": str(INK),
            "num_class_images": 8,
            "snr_gamma": 5.0,
        },
    ],
    ids=["plain", "accumulated", "prior"],
)
def test_resumed_run_equals_the_uninterrupted_one_to_the_bit(config, tmp_path, changes):
    whole = replace(config, output_dir=str(tmp_path / "whole"), **changes)
    list(train(whole))
    parts = replace(config, output_dir=str(tmp_path / "parts"), **changes)
    steps = train(parts)
    for step in steps:
        if step.step == 4:  # one step past the checkpoint at 3
            steps.close()
    assert json.loads((tmp_path / "parts" / "status.json").read_text())["phase"] == "interrupted"
    assert RunDirectory(tmp_path / "parts").list_checkpoints() == [3, 4]
    torch.manual_seed(99)  # whatever happened in between must not matter
    list(train(replace(parts, resume_from_checkpoint="step-000003")))
    a = sdatoms.read_atoms(tmp_path / "whole" / "atoms.safetensors")
    b = sdatoms.read_atoms(tmp_path / "parts" / "atoms.safetensors")
    assert a.tensors.keys() == b.tensors.keys()
    for key, tensor in a.tensors.items():
        assert torch.equal(tensor, b.tensors[key]), key
    first, second = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(tmp_path / name)]
        for name in ("whole", "parts")
    )
    assert first == second


def test_resume_latest_in_an_empty_directory_starts_afresh(config):
    steps = list(train(replace(config, max_train_steps=1, resume_from_checkpoint="latest")))
    assert [s.step for s in steps] == [1]


def test_sample_in_training_equals_the_picture_from_the_saved_file(config):
    prompt = "dog face in sks style"
    sampled = replace(
        config,
        max_train_steps=4,
        learning_rate=1e-2,
        validation_steps=4,
        validation_prompt=prompt,
        num_validation_images=2,
        seed=5,
    )
    list(train(sampled))
    run = Path(config.output_dir)
    pipe = load_base()
    base = paint(pipe, [prompt] * 2, [5, 6])
    sdatoms.load_atoms(pipe, run / "atoms.safetensors")
    again = paint(pipe, [prompt] * 2, [5, 6])
    for k in range(2):
        picture = np.array(Image.open(run / "samples" / f"step-000004-{k}.png"))
        assert np.array_equal(picture, np.array(again[k]))
        assert np.array_equal(Image.open(run / "samples" / f"base-{k}.png"), base[k])
        assert not np.array_equal(picture, np.array(base[k]))


def test_sampling_does_not_change_the_training(config, tmp_path):
    list(train(config))
    painted = replace(
        config, output_dir=str(tmp_path / "painted"), validation_steps=2, num_validation_images=1
    )
    list(train(painted))
    a = sdatoms.read_atoms(Path(config.output_dir) / "atoms.safetensors").tensors
    b = sdatoms.read_atoms(tmp_path / "painted" / "atoms.safetensors").tensors
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_class_pictures_are_painted_once(config):
    prior = replace(
        config,
        with_prior_preservation=True,
        class_prompt="an emoji",
        num_class_images=3,
        max_train_steps=1,
    )
    steps = list(train(prior))
    folder = Path(config.output_dir) / "class_images"
    painted = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert len(painted) == 3 and steps[0].prior_loss is not None
    list(train(prior))
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == painted


def test_prior_weight_weighs_the_class_rows(config):
    prior = replace(
        config,
        with_prior_preservation=True,
        class_prompt="an emoji",
        class_data_dir=str(INK),
        num_class_images=8,
        prior_loss_weight=0.25,
    )
    step = Trainer(prior).take_step()
    assert step.prior_loss is not None
    assert step.loss == pytest.approx(step.instance_loss + 0.25 * step.prior_loss, rel=1e-5)


def test_captions_beside_pictures_are_the_prompts(config, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (80, 60), "red").save(folder / "a.png")
    Image.new("RGB", (60, 80), "blue").save(folder / "b.png")
    (folder / "b.txt").write_text("a blue wall")
    trainer = Trainer(replace(config, instance_data_dir=str(folder), instance_prompt="a red wall"))
    ids = trainer.pipe.tokenizer(
        ["a red wall", "a blue wall"],
        padding="max_length",
        return_tensors="pt",
        max_length=trainer.pipe.tokenizer.model_max_length,
    ).input_ids
    with torch.no_grad():
        expected = trainer.pipe.text_encoder(ids)[0]
    torch.testing.assert_close(trainer.instances.context, expected)


def test_atoms_stay_in_float32_under_autocast(config):
    trainer = Trainer(replace(config, mixed_precision="bf16"))
    trainer.take_step()
    assert {p.dtype for p in trainer.injection.parameters()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in trainer.injection.parameters())


def test_checkpoints_are_limited_in_number(config):
    list(train(replace(config, checkpointing_steps=1, checkpoints_total_limit=2)))
    assert RunDirectory(Path(config.output_dir)).list_checkpoints() == [5, 6]


def test_loss_that_is_not_finite_stops_by_name_and_leaves_the_last_checkpoint(config):
    steps = train(replace(config, checkpointing_steps=1, learning_rate=1e30, max_train_steps=5))
    with pytest.raises(sdatoms.AtomError, match=r"the loss became .* at step \d; lower --learning"):
        list(steps)
    run = RunDirectory(Path(config.output_dir))
    assert run.list_checkpoints()
    assert json.loads((run.path / "status.json").read_text())["phase"] == "failed"


def test_dry_run_measures_and_writes_nothing(config):
    facts = estimate(config)
    assert facts["steps"] == 6 and facts["bytes"] > 4 * facts["parameters"] > 0
    assert not Path(config.output_dir).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_130(config, number):
    command = [
        sys.executable,
        "-m",
        "sdatoms",
        "train",
        "--instance_data_dir",
        str(INK),
        "--instance_prompt",
        "x",
        "--output_dir",
        config.output_dir,
        "--max_train_steps",
        "5000",
        "--train_batch_size",
        "1",
        "--validation_steps",
        "0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        seen = b""
        while b"| 2/5000" not in seen:
            byte = process.stderr.read(1)
            assert byte, seen.decode()
            seen += byte
        process.send_signal(number)
        rest = process.stderr.read().decode()
    assert process.returncode == 130
    assert "continue with --resume_from_checkpoint latest" in rest and "Traceback" not in rest
    run = RunDirectory(Path(config.output_dir))
    assert len(run.list_checkpoints()) == 1
    assert json.loads((run.path / "status.json").read_text())["phase"] == "interrupted"
