"""What makes a run fail: a full memory, a closed disk, and gradients that reach no atoms."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from sdatoms.errors import AtomError, is_full_memory
from sdatoms.layers.inject import Injection
from sdatoms.training.config import TrainConfig
from sdatoms.training.run_folder import RunDirectory, name_step

__all__ = [
    "advise_on_memory",
    "check_gradients",
    "explain_failures",
    "explain_opening",
]


def is_closed_disk(error: BaseException) -> bool:
    """Whether a file could not be written for want of room, of a quota's share or of permission."""
    closed = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
    return isinstance(error, OSError) and error.errno in closed


def advise_on_memory(config: TrainConfig, *, training: bool = True) -> str:
    """What to try next where memory is full: flags that are not given yet, the cheapest two first.

    Args:
        training: whether steps fill it; else opening, encoding and painting before the first.
    """
    given = config.dtype if config.base_dtype == "auto" else config.base_dtype
    wide = given == "float32" or (given == "auto" and not torch.cuda.is_available())
    several, kept = config.train_batch_size, config.gradient_accumulation_steps
    paints_class = config.with_prior_preservation and config.prior_preservation_mode == "images"
    first = paints_class and config.sample_batch_size > 1 and not training
    folder = not (config.pretrained_model_name_or_path or "").endswith(".safetensors")
    tried = {
        "--sample_batch_size 1": first,
        "--gradient_checkpointing": training and not config.gradient_checkpointing,
        f"--train_batch_size 1 with --gradient_accumulation_steps {several * kept}": (
            training and several > 1
        ),
        "--base_dtype bfloat16": wide and not config.load_in,
        "--offload auto": config.offload == "none",
        "--load_in 4bit": training and folder and not (config.load_in or wide),
    }
    return ", or ".join(
        [*(hint for hint, fits in tried.items() if fits), "a smaller --resolution"][:2]
    )


@contextmanager
def explain_opening(run: Path, config: TrainConfig) -> Iterator[None]:
    """Turn a full memory or a file that cannot be opened, before the first step, into one sentence.

    Args:
        run: the run directory.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if is_full_memory(error):
            advice = advise_on_memory(config, training=False)
            raise AtomError(f"out of memory before the first step; try {advice}") from None
        if not is_closed_disk(error):
            raise
        assert isinstance(error, OSError)
        if isinstance(error.filename, str) and not Path(error.filename).is_relative_to(run):
            said = f"{error.filename!r} cannot be opened: {error.strerror}"
        else:
            said = f"the run directory {str(run)!r} cannot be written: {error}"
        raise AtomError(said) from None


@contextmanager
def explain_failures(
    directory: RunDirectory,
    config: TrainConfig,
    find_step: Callable[[], int],
    save: Callable[[], int],
) -> Iterator[None]:
    """Turn a full memory or disk into one sentence, with the last good state on disk.

    Args:
        config: of the run, which decides what to try next.
        find_step: the step that is done.
        save: keeps the state, and returns the step that is saved.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_full_memory(error):
            raise
        raise AtomError(
            f"out of memory at step {find_step() + 1}; the state of step {save()} is saved; "
            f"try {advise_on_memory(config)}"
        ) from None
    except OSError as error:
        if not is_closed_disk(error):
            raise
        steps = directory.list_checkpoints()
        kept = name_step(steps[-1]) if steps else "none"
        raise AtomError(
            f"the run directory {str(directory.path)!r} cannot be written at step "
            f"{find_step()}: {error.strerror}; the last whole checkpoint is {kept}"
        ) from None


WAITING = ("inner_coefficients", "shared_atoms")
"""Their gradient is zero as long as the tensors they multiply are, in the first step."""


def check_gradients(unet: Injection, held: list[nn.Parameter], compiled: str | None) -> list[str]:
    """Names of the UNet's trained tensors whose gradient is zero.

    Compiled kernels have been seen to lose gradients without a word, torch 2.13's inductor under
    autocast in bfloat16 on the CPU among them.

    Args:
        held: what the optimizer trains; others are not looked at.
        compiled: the backend of `torch.compile`, which must lose nothing that plain kernels have.

    Raises:
        AtomError: no tensor has a gradient, or one has none in a compiled UNet.
    """
    ids = {id(parameter) for parameter in held}
    looked = [
        (name, parameter)
        for name, parameter in unet.named_parameters()
        if id(parameter) in ids and not name.endswith(WAITING)
    ]
    silent = [name for name, p in looked if p.grad is None or not bool(p.grad.any())]
    if silent and (compiled or len(silent) == len(looked)):
        cure = (
            f"; --dynamo_backend {compiled} loses it: try --mixed_precision no, or "
            "--dynamo_backend no"
            if compiled
            else "; the base's output may not depend on them, or everything is masked"
        )
        raise AtomError(
            f"no gradient reaches {len(silent)} of {len(looked)} tensors of atoms in the first "
            f"step, first {silent[0]}{cure}"
        )
    return silent
