"""How a run ends before its last step: interrupted, killed, diverged, out of memory or disk."""

import json
import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from tiny.limits import little_room, wait_for
from tiny.runs import make_config, read_metrics

import sdatoms
from sdatoms.cli.main import main
from sdatoms.training.failures import advise_on_memory
from sdatoms.training.loop import train
from sdatoms.training.run_folder import RunDirectory
from sdatoms.training.trainer import Trainer

CLASSES = {"with_prior_preservation": True, "class_prompt": "x"}


def list_flags(config, **changes):
    """A run that saves every step, as words of the command line."""
    flags = {"train_batch_size": 1, "checkpointing_steps": 1, "checkpoints_total_limit": 3}
    for name in ("instance_data_dir", "output_dir", "pretrained_model_name_or_path"):
        flags[name] = getattr(config, name)
    flags |= {"instance_prompt": "x", "validation_steps": 0, **changes}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def test_a_killed_save_leaves_the_last_checkpoint(train_config):
    config = train_config()
    list(train(config))
    run = RunDirectory(Path(config.output_dir))
    half = run.checkpoints / ".step-000006.tmp"
    half.mkdir()
    (half / "atoms.safetensors").write_bytes(b"half")
    (run.checkpoints / "step-000004").rename(run.checkpoints / ".step-000004.old")
    again = replace(config, max_train_steps=5, resume_from_checkpoint="latest")
    assert [s.step for s in train(again)] == [5]
    assert not [p.name for p in run.checkpoints.iterdir() if p.name.startswith(".")]


def test_loss_that_is_not_finite_stops_by_name(train_config):
    config = train_config(checkpointing_steps=1, learning_rate=1e30)
    words = r"the loss became .* at step \d on \d.png at timestep \d+.*; lower --learning_rate"
    with pytest.raises(sdatoms.AtomError, match=words):
        list(train(config))
    run = RunDirectory(Path(config.output_dir))
    assert run.list_checkpoints()
    assert json.loads((run.path / "status.json").read_text())["phase"] == "failed"


def test_a_gradient_that_is_not_finite_leaves_the_atoms_alone(train_config):
    trainer = Trainer(train_config())
    trainer.take_step()
    before = {key: tensor.clone() for key, tensor in trainer.live().items()}
    trainer.parameters[0].register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(sdatoms.AtomError, match=r"a gradient became (nan|inf) at step 2"):
        trainer.take_step()
    for key, tensor in trainer.live().items():
        assert torch.equal(tensor, before[key]), key


def test_full_memory_saves_the_last_whole_step(train_config):
    config = train_config(checkpointing_steps=100)
    steps = train(config)
    next(steps)
    trainer = steps.gi_frame.f_locals["run"].trainer

    def fill(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = trainer.pipe.unet.conv_in.register_forward_hook(fill)
    with pytest.raises(sdatoms.AtomError, match="out of memory at step 2; the state of step 1"):
        next(steps)
    handle.remove()
    assert [s.step for s in train(replace(config, resume_from_checkpoint="latest"))] == [2, 3, 4]


@pytest.mark.parametrize("training", [True, False])
def test_what_to_try_when_memory_is_full_are_flags_that_are_not_given_yet(training):
    """Who follows the advice to its end is told each flag once, and the flag is the trainer's."""
    config, taken = make_config(**CLASSES, offload="none"), []
    while True:
        hints = re.findall(r"--(\w+)(?: (\w+))?", advise_on_memory(config, training=training))
        changes = {
            name: int(value) if value.isdigit() else value or True
            for name, value in hints
            if name != "resolution"
        }
        if not changes:
            break
        assert all(getattr(config, name) != value for name, value in changes.items())
        config = replace(config, **changes)
        taken += changes
    steps = ("gradient_checkpointing", "train_batch_size", "gradient_accumulation_steps", "load_in")
    wanted = {"base_dtype", "offload", *(steps if training else ["sample_batch_size"])}
    assert sorted(taken) == sorted(wanted)
    assert config.train_batch_size == 1 or not training
    assert advise_on_memory(config, training=training) == "a smaller --resolution"


def test_a_full_disk_is_one_sentence_and_keeps_the_last_checkpoint(train_config):
    config = train_config()
    steps = train(config)
    next(steps), next(steps), next(steps)
    words = r"cannot be written at step 4: .*too large; the last whole checkpoint is step-000002"
    with little_room(4096), pytest.raises(sdatoms.AtomError, match=words):
        list(steps)
    assert RunDirectory(Path(config.output_dir)).list_checkpoints() == [2]
    assert [s.step for s in train(replace(config, resume_from_checkpoint="latest"))] == [3, 4]


def test_a_disk_that_is_full_before_the_first_step_is_one_sentence(train_config):
    config = train_config()
    words = "the run directory '.*run' cannot be written: .*too large"
    with little_room(1500), pytest.raises(sdatoms.AtomError, match=words):
        next(train(config))
    assert not list(Path(config.output_dir).glob("*.toml"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB; `grow()` makes it larger."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a file system")
    grow = ["mount", "-o", "remount,size=64M", str(folder)]
    yield folder, lambda: subprocess.run(grow, check=True)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_small_disk_fills_up_and_the_run_goes_on_when_there_is_room(
    train_config, small_disk, capsys
):
    folder, grow = small_disk
    config = train_config(output_dir=str(folder / "run"))
    words = list_flags(config, max_train_steps=40)
    with pytest.raises(SystemExit) as stop:
        main(["train", *words])
    assert stop.value.code == 2
    last = RunDirectory(folder / "run").list_checkpoints()[-1]
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device" in error
    assert error.endswith(f"the last whole checkpoint is step-{last:06d}")
    grow()
    main(["train", *words, "--resume_from_checkpoint", "latest"])
    assert [row["step"] for row in read_metrics(folder / "run")] == list(range(1, 41))


def test_full_memory_before_the_first_step_is_one_sentence(train_config, forge, tmp_path):
    config = train_config()
    code = (
        "import resource\n"
        "import sdatoms.training.loop\n"
        "used = 1024 * int(open('/proc/self/statm').read().split()[5]) * 4\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 28),) * 2)\n"
    )
    words = ["train", *list_flags(config, resolution=8000)]
    ended, _, said = forge.run(tmp_path, words, code=code)
    assert ended == 2, said
    assert b"out of memory before the first step; try --base_dtype bfloat16" in said
    assert b"Traceback" not in said


@pytest.fixture
def signal_training(forge, tmp_path):
    """A function that starts `sdatoms train` in a process of its own, with many more steps than it
    will get to take, and sends a signal after the third; returns its exit code and what it said."""

    def run(config, number):
        words = list_flags(config, max_train_steps=50000)
        process = forge.start(tmp_path, ["train", *words])
        said, ended = tmp_path / "err", lambda: psutil.Process(process).status() == "zombie"
        wait_for(lambda: ended() or (said.is_file() and b"| 3/50000" in said.read_bytes()))
        assert not ended(), said.read_text()
        os.kill(process, number)
        return forge.ask(process), said.read_text()

    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_130(train_config, signal_training, number):
    config = train_config()
    ended, rest = signal_training(config, number)
    assert ended == 130
    assert "continue with --resume_from_checkpoint latest" in rest and "Traceback" not in rest
    run = RunDirectory(Path(config.output_dir))
    status = json.loads((run.path / "status.json").read_text())
    assert (status["phase"], status["step"]) == ("stopped", run.list_checkpoints()[-1])


def test_a_kill_loses_at_most_the_steps_since_the_last_checkpoint(train_config, signal_training):
    config = train_config()
    assert signal_training(config, signal.SIGKILL)[0] == -signal.SIGKILL
    run = RunDirectory(Path(config.output_dir))
    last = run.list_checkpoints()[-1]
    assert last >= 2  # three steps were seen, and each is saved before it is shown
    again = replace(
        config,
        instance_prompt="x",
        max_train_steps=last + 1,
        train_batch_size=1,
        resume_from_checkpoint="latest",
    )
    assert [s.step for s in train(again)] == [last + 1]
    assert [row["step"] for row in read_metrics(run.path)] == list(range(1, last + 2))


def test_a_second_ctrl_c_while_saving_leaves_the_last_checkpoint(train_config, monkeypatch, capsys):
    """A signal comes while a step is told of, the next inside the save that it asks for."""
    config = train_config()
    run = RunDirectory(Path(config.output_dir))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    write, seen = os.fsync, []

    def interrupt(handle):
        write(handle)
        path = os.readlink(f"/proc/self/fd/{handle}")
        if run.list_checkpoints() and (".tmp/" if seen else "status") in path:
            seen.append(path)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "fsync", interrupt)
    words = list_flags(config, max_train_steps=50000, checkpointing_steps=2)
    try:
        with pytest.raises(SystemExit) as stop:
            main(["train", *words])
    finally:
        monkeypatch.undo()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert stop.value.code == 130 and len(seen) == 2 and ".tmp/" in seen[1]
    assert "Traceback" not in capsys.readouterr().err
    assert json.loads((run.path / "status.json").read_text())["phase"] == "stopped"
    last = run.list_checkpoints()[-1]
    again = list_flags(config, max_train_steps=last + 1)
    main(["train", *again, "--resume_from_checkpoint", "latest"])
    assert [row["step"] for row in read_metrics(run.path)] == list(range(1, last + 2))
    assert not list(run.checkpoints.glob(".*"))
