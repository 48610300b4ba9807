"""What pipelines of full size take, through the commands a user types, and on which card they fit.

Every command runs in a process of its own, whose wall-clock seconds and peak memory are kept.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sdatoms.bench.full_size import FULL_SIZES, list_shapes
from sdatoms.diffusion.placement import OFFLOADS, PipelineSize, choose_placement, estimate_peak

__all__ = [
    "measure_command",
    "measure_commands",
    "size_of",
    "tabulate_placements",
]

CARDS = (8, 12, 24)
"""GB of memory; what a desktop takes of it is not counted."""


def size_of(name: str, dtype: torch.dtype = torch.float16) -> PipelineSize:
    """Sizes of a pipeline's parts, from its published shapes."""
    made = FULL_SIZES[name]
    parts = {
        part: dtype.itemsize * sum(math.prod(shape) for shape in shapes.values())
        for part, shapes in list_shapes(made.family).items()
    }
    largest = max(
        dtype.itemsize * math.prod(shape)
        for shapes in list_shapes(made.family).values()
        for shape in shapes.values()
    )
    # SDXL's own autoencoder overflows in float16, so diffusers lets it work in float32.
    wide = made.family == "sdxl" and dtype == torch.float16
    return PipelineSize(parts, largest, made.side, 4 if wide else dtype.itemsize)


def tabulate_placements(name: str) -> dict[str, Any]:
    """GB at the peak of each mode, with and without tiles, and what auto takes on each card."""
    size = size_of(name)
    peaks = {
        mode: {
            "whole": round(estimate_peak(size, mode) / 1e9, 1),
            "tiles": round(estimate_peak(size, mode, tiling=True) / 1e9, 1),
        }
        for mode in OFFLOADS[1:]
    }
    chosen = {f"{card} GB": choose_placement(size, card * 10**9) for card in CARDS}
    auto = {
        card: found.offload + (" in tiles" if found.tiling else "")
        for card, found in chosen.items()
    }
    parts = {part: round(count / 1e9, 2) for part, count in size.parts.items()}
    return {"weights_gb": parts, "peak_gb": peaks, "auto": auto}


def measure_command(words: list[str]) -> dict[str, float]:
    """Run `sdatoms WORDS`; its seconds, CPU seconds and peak memory in GB.

    Raises:
        RuntimeError: it fails; its last line is the message.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "sdatoms", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.stderr.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(said.strip().splitlines()[-1] if said.strip() else f"{words[0]} failed")
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss / 1e6, 2),
    }


def measure_commands(base: Path, pictures: Path, work: Path, side: int) -> dict[str, Any]:
    """Opening and counting, a training step, and a picture of two steps with the file loaded."""
    run, given = work / "run", ["--pretrained_model_name_or_path", str(base)]
    train = (
        "train --instance_prompt sks --max_train_steps 1 --validation_steps 0 --train_batch_size 1 "
        f"--gradient_checkpointing --resolution {side} --instance_data_dir"
    )
    paint = "generate sks --num_inference_steps 2 --atoms"
    atoms, out = str(run / "atoms.safetensors"), ["--output_dir", str(work / "pictures")]
    return {
        "inject": measure_command(["inject", str(base), "--json"]),
        "train": measure_command([*train.split(), str(pictures), "--output_dir", str(run), *given]),
        "generate": measure_command([*paint.split(), atoms, *out, *given]),
    }
