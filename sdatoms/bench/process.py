"""A figure in a process of its own, and what a process has taken: memory, processor."""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "call_apart",
    "forget_peak",
    "limit_memory",
    "read_children_seconds",
    "read_held",
    "read_memory",
    "read_peak",
    "wait_for",
]


def call_apart(
    function: Callable[..., Any],
    *arguments: Any,
    threads: int | None = None,
    seconds: float | None = None,
) -> Any:
    """`function(*arguments)` in a process of its own, so that the peak of its memory is its own.

    Args:
        function: one of a module; it prints nothing on standard output.
        arguments: what JSON holds; so is the result.
        threads: of torch in that process; None for as many as torch takes.
        seconds: that it may take; then it is ended, with all that it started.

    Raises:
        RuntimeError: it failed, with the last line of what it said, or took too long.
    """
    call = {"module": function.__module__, "name": function.__name__}
    call |= {"arguments": arguments, "threads": threads}
    command = [sys.executable, "-m", "sdatoms.bench.process", json.dumps(call)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, said = process.communicate(timeout=seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise RuntimeError(f"it took longer than {seconds:.0f} s") from None
        raise
    if process.returncode:
        ended = f"it ended with code {process.returncode}"
        raise RuntimeError((said.strip().splitlines() or [ended])[-1])
    return json.loads(out.splitlines()[-1])


def answer(text: str) -> None:
    """What the process of its own does: the call in, the result out, both JSON."""
    call = json.loads(text)
    if call["threads"]:
        torch.set_num_threads(call["threads"])
    function = getattr(importlib.import_module(call["module"]), call["name"])
    print(json.dumps(function(*call["arguments"])))


def read_memory(entry: str) -> int:
    """A line of /proc/self/status, such as VmRSS or VmHWM, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def limit_memory() -> None:
    """Fail where more is asked for than the machine has free, before it ends something else."""
    free = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    if free:
        most = int(0.95 * 1024 * int(free[1]))
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def forget_peak(device: torch.device) -> None:
    """Loading may take more than training does; only the latter counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def read_peak(device: torch.device) -> int:
    """Most bytes held since `forget_peak`: of the device, or resident ones."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else read_memory("VmHWM")


def read_held(device: torch.device) -> int:
    """Bytes held now: of the device, or resident ones."""
    return torch.cuda.memory_allocated() if device.type == "cuda" else read_memory("VmRSS")


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_children_seconds() -> float:
    """Processor seconds of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    answer(sys.argv[1])
