"""What pipelines of full size take, through the commands a user types, and on which card they fit.

Every command runs in a process of its own, whose wall-clock seconds and peak memory are kept.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from sdatoms.adapters.load import load_atoms
from sdatoms.bench.full_size import FULL_SIZES, list_shapes
from sdatoms.bench.process import call_apart, read_memory
from sdatoms.bench.step_memory import CARDS
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.placement import OFFLOADS, PipelineSize, choose_placement, estimate_peak

__all__ = [
    "measure_command",
    "measure_commands",
    "measure_life",
    "size_of",
    "tabulate_placements",
]


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
        RuntimeError: it fails; its last line is the message, or the signal that ended it.
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
    if process.returncode < 0:
        raise RuntimeError(f"{words[0]} was ended by signal {-process.returncode}")
    if process.returncode:
        raise RuntimeError(said.strip().splitlines()[-1] if said.strip() else f"{words[0]} failed")
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss / 1e6, 2),
    }


def measure_commands(
    base: Path, pictures: Path, work: Path, side: int, dtype: str = "auto"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each command takes, as soon as it is known: counting atoms, a training step, the life of
    adapters in Python, a picture of two steps, with the file loaded and let in after the first.

    Where `work` holds a run already, of the other file form, its file is taken: nothing is trained
    or painted again.

    Args:
        base: a pipeline's folder or a single file.
        pictures: the first of them is trained on.
        work: where runs and pictures go.
        side: of all pictures, in px.
        dtype: of the base in every command.
    """
    given = ["--pretrained_model_name_or_path", str(base), "--dtype", dtype]
    alone = work / "picture"
    alone.mkdir(exist_ok=True)
    shutil.copy(min(pictures.glob("*.png")), alone)
    train = (
        "train --instance_prompt sks --max_train_steps 1 --validation_steps 0 --train_batch_size 1 "
        f"--gradient_checkpointing --resolution {side} --instance_data_dir"
    )
    run, atoms = work / "run", work / "run" / "atoms.safetensors"
    paint = [
        *f"generate sks --num_inference_steps 2 --width {side} --height {side}".split(),
        *("--output_dir", str(work / "pictures"), *given),
    ]
    let_in = ["--strength_schedule", "0 until 0.5, then 1"]
    yield "inject", measure_command(["inject", str(base), "--json"])
    words = [*train.split(), str(alone), "--output_dir", str(run), *given]
    first = not atoms.exists()
    if first:
        yield "train", measure_command(words)
    yield "life", call_apart(measure_life, str(base), str(atoms), dtype)
    if first:
        yield "generate", measure_command([*paint, "--atoms", str(atoms), *let_in])


def measure_life(base: str, atoms: str, dtype: str = "auto") -> dict[str, Any]:
    """Processor seconds and peak memory in GB, so far, of a base that is opened, and of a file that
    is loaded, given another strength, and cleared to the bit."""
    found: dict[str, Any] = {}

    def note(name: str, call: Callable[[], Any]) -> Any:
        worked = time.process_time()
        result = call()
        seconds = round(time.process_time() - worked, 2)
        found[name] = {"cpu_seconds": seconds, "peak_gb": round(read_memory("VmHWM") / 1e9, 2)}
        return result

    words: list[str] = []
    pipe = note("open", lambda: load_base(base, device="cpu", dtype=dtype, say=words.append))  # pyright: ignore[reportArgumentType]
    adapters = note("load", lambda: load_atoms(pipe, atoms, name="one"))
    note("strength", lambda: adapters.set_strengths({"one": 0.5}))
    exact = note("verify", adapters.verify_base)
    note("clear", adapters.clear)
    return found | {"exact": exact, "chosen": words}
