"""F. A run directory has one owner, and no folder is two things."""

import json
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny.runs import read_bytes

import sdatoms
from sdatoms.training.inputs import check_inputs
from sdatoms.training.lock import LOCK, RunLock
from sdatoms.training.loop import train


def test_a_run_directory_has_one_owner(train_config):
    config = train_config(checkpointing_steps=1)
    first = train(config)
    next(first)
    held = read_bytes(config.output_dir)
    for again in (config, replace(config, resume_from_checkpoint="latest")):
        with pytest.raises(sdatoms.AtomError, match="belongs to another training"):
            next(train(again))
        assert read_bytes(config.output_dir) == held
    assert [step.step for step in first] == [2, 3, 4]
    assert not (Path(config.output_dir) / LOCK).exists()


@pytest.mark.parametrize("host", [socket.gethostname(), "another"])
@pytest.mark.parametrize("age", [0, 1e6])
def test_locks_of_dead_processes_are_taken_over(tmp_path, host, age):
    (tmp_path / LOCK).write_text(json.dumps({"pid": 1 << 30, "host": host}))
    status = {"phase": "training", "heartbeat": time.time() - age}
    (tmp_path / "status.json").write_text(json.dumps(status))
    lock = RunLock(tmp_path)
    if host == "another" and not age:
        with pytest.raises(sdatoms.AtomError, match="belongs to another training, process"):
            lock.acquire()
    else:
        lock.acquire()
        lock.release()
        assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    ("output", "classes", "fits"),
    [
        ("run", None, True),
        ("run", "class", True),
        ("run", "run/class", True),
        ("pictures", None, False),
        ("pictures/run", None, False),
        ("run", "pictures", False),
        ("run", "pictures/class", False),
        ("run", ".", False),
        ("run", "run", False),
    ],
)
def test_folders_that_would_become_each_others_pictures_are_refused(
    train_config, tmp_path, output, classes, fits
):
    config = train_config(
        output_dir=str(tmp_path / output),
        class_data_dir=classes and str(tmp_path / classes),
        with_prior_preservation=True,
        class_prompt="cat",
    )
    if fits:
        check_inputs(config)
        return
    with pytest.raises(sdatoms.AtomError, match=r"lies? in"):
        check_inputs(config)
