"""Bounds: on waiting, which only a hang reaches, and on memory and disk, which a test means."""

import resource
import threading
import time
from contextlib import contextmanager

HANG = 1200
"""Seconds after which whatever a test waits for will never come, however busy the machine is."""

WAIT = 1000 * HANG
"""The same in ms, as pages count."""


def wait_for(condition, seconds=HANG):
    """Ask until the condition holds; returns what it returned."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        pause.wait(0.1)
    return found


@contextmanager
def limit(kind, size):
    """Hold one resource of this process to `size`."""
    kept = resource.getrlimit(kind)
    resource.setrlimit(kind, (size, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, kept)


def little_room(size):
    """No file of this process may grow past `size` bytes: the next write meets a full disk."""
    return limit(resource.RLIMIT_FSIZE, size)


def little_memory(extra):
    """The process may take at most `extra` bytes more than it has."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    return limit(resource.RLIMIT_AS, now + extra)
