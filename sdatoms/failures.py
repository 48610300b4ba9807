"""Which errors are a full memory or a closed disk, and what a run that fails early leaves."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path

import torch

from sdatoms.run_directory import RunDirectory
from sdatoms.train_config import TrainConfig

__all__ = ["is_closed_disk", "is_full_memory", "mark_failed"]


def mark_failed(config: TrainConfig) -> None:
    """Say in status.json that this process's run did not come to its first step."""
    path = Path(config.output_dir) / "status.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        if json.loads(path.read_text())["pid"] == os.getpid():
            run = RunDirectory(path.parent)
            run.set_status("failed", 0, config.max_train_steps, None)


def is_full_memory(error: BaseException) -> bool:
    """Whether an accelerator's or the machine's memory was full; torch has no class for the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )


def is_closed_disk(error: BaseException) -> bool:
    """Whether a file could not be written for want of room, of a quota's share or of permission."""
    closed = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
    return isinstance(error, OSError) and error.errno in closed
