"""Pictures to train on, and waiting for what other processes do."""

import threading
import time

import numpy as np
from PIL import Image

WAIT = 60_000
"""ms that a sign on a page may take; nothing sleeps."""


def draw(path, size=(96, 80), seed=0, **options):
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize(size, Image.Resampling.NEAREST)
    picture.save(path, **options)
    return path


def wait_for(condition, seconds=90.0):
    """Poll until the condition holds; returns what it returned."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        pause.wait(0.1)
    return found
