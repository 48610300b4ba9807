"""Drive a training loop: resume it, log it, save it whole and show what it makes on the way."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from bundled.base_loops import Step

__all__ = ["drive", "read_state", "write_whole"]


def drive(
    path: Path,
    parts: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    ema: EMAModel,
    loop: Callable[[int], Iterator[Step]],
    show: Callable[[], dict],
    every: int,
    *,
    start_from: Path | None = None,
    facts: dict | None = None,
) -> None:
    """Run `loop(start)` to its end.

    Resumes from `path`, or from the state of another run in `start_from` where `path` is not there
    yet. Logs every 25 steps to `path` with the ending `.jsonl`; every `every` steps and at the end
    it saves and, with the running averages in place of the weights, logs what `show()` returns.

    Args:
        facts: kept in the state beside the weights.
    """
    start = 0
    if state := read_state(path, start_from):
        for name, part in parts.items():
            part.load_state_dict(state[name])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        start = state["step"]
    log = path.with_suffix(".jsonl")
    began, losses, last = time.time(), [], start

    def save() -> None:
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"optimizer": optimizer.state_dict(), "ema": ema.state_dict(), "step": last}
        write_whole(path, state | (facts or {}))
        parameters = [p for part in parts.values() for p in part.parameters()]
        ema.store(parameters)
        ema.copy_to(parameters)
        write_row(log, {"step": last, **show()})
        ema.restore(parameters)

    for step in loop(start):
        last = step.step
        losses.append(step.loss)
        if last % 25 == 0:
            rate = (last - start) / (time.time() - began)
            loss = sum(losses) / len(losses)
            write_row(log, {"step": last, "loss": loss, "lr": step.lr, "steps_per_s": rate})
            losses = []
        if last % every == 0:
            save()
    if last % every or last == start:
        save()


def read_state(*paths: Path | None) -> dict | None:
    """The training state in the first of these files that is there."""
    for path in paths:
        if path is not None and path.exists():
            return torch.load(path, weights_only=True)
    return None


def write_whole(path: Path, state: dict) -> None:
    """Save so that `path` holds the old state or the new one, never a part."""
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def write_row(path: Path, row: dict) -> None:
    """Print one line of a log and append it."""
    print(row, flush=True)
    with path.open("a") as log:
        log.write(json.dumps(row) + "\n")
