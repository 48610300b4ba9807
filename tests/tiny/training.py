"""Pictures to train on, processes that train together, and waiting for what others do."""

import os
import threading
import time

import numpy as np
import torch
from PIL import Image

HANG = 600.0
"""Seconds that only something that hangs takes: others' work is waited for, never timed."""


def draw(path, size=(96, 80), seed=0, **options):
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(size, Image.Resampling.NEAREST)
    picture.save(path, **options)
    return path


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


def wait_for(condition):
    """Poll until the condition holds; returns what it returned."""
    end = time.monotonic() + HANG
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        pause.wait(0.1)
    return found
