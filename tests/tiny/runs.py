"""Trainings of a few steps, processes that train together, and what a run left behind."""

import json
import os
from pathlib import Path

import torch

from sdatoms import read_atoms
from sdatoms.training.config import TrainConfig


def make_config(**settings):
    """Four steps of two pictures with a checkpoint every second one; settings change it."""
    given = {
        "instance_prompt": "sks cat",
        "max_train_steps": 4,
        "train_batch_size": 2,
        "lr_warmup_steps": 0,
        "checkpointing_steps": 2,
        "checkpoints_total_limit": None,
        "validation_steps": 0,
        "num_inference_steps": 4,
        "num_validation_images": 1,
    }
    return TrainConfig(**given | settings)


def join_two_processes(rank, port):
    """Make this process one of two that accelerate joins over gloo, on the CPU."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    torch.set_num_threads(1)


def read_metrics(folder):
    """The rows of `metrics.jsonl`, without what depends on the machine."""
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def read_bytes(folder):
    """What every file in a folder and below holds, by its name."""
    return {p.name: p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def read_tensors(folder):
    """The tensors of a run's atom file."""
    return read_atoms(Path(folder) / "atoms.safetensors").tensors


def assert_same_atoms(one, other):
    """Two runs ended in the same bits."""
    one, other = read_tensors(one), read_tensors(other)
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key
