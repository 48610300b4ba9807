"""How long loading, re-strengthening and clearing adapters takes on a UNet, and what it holds.

Times are medians of several rounds; every round ends with all weights restored, which is checked.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdatoms.adapters.load import load_atoms
from sdatoms.atoms.config import AtomConfig
from sdatoms.bench.process import read_held, wait_for
from sdatoms.files.reader import read_atoms
from sdatoms.files.writer import save_atoms
from sdatoms.fingerprint import checksum
from sdatoms.layers.inject import inject

__all__ = ["DTYPES", "measure_variant", "time_call"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def time_call(times: list[float], device: torch.device, call: Callable[[], Any]) -> Any:
    """What `call` returns; the seconds it took are appended to `times`."""
    wait_for(device)
    start = time.perf_counter()
    result = call()
    wait_for(device)
    times.append(time.perf_counter() - start)
    return result


def measure_variant(
    model: nn.Module, config: AtomConfig, runs: int, folder: Path
) -> dict[str, Any]:
    """Inject, save, then load, re-strengthen and clear `runs` times; all weights come back, which
    is checked."""
    device = next(model.parameters()).device
    sums = {name: checksum(p) for name, p in model.named_parameters()}
    taken: list[float] = []
    injection = time_call(taken, device, lambda: inject(model, config))
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    path = save_atoms(folder / f"{config.variant}.safetensors", {"unet": injection})
    facts = {
        "parameters": injection.num_parameters,
        "layers": len(injection.layers),
        "file_bytes": path.stat().st_size,
        "inject_seconds": round(taken[0], 3),
    }
    injection.eject()
    del injection
    times: dict[str, list[float]] = {"read": [], "bake": [], "re-strength": [], "clear": []}
    extra = []
    for _ in range(runs):
        before = read_held(device)
        file = time_call(times["read"], device, lambda: read_atoms(path))
        load = lambda file=file: load_atoms(model, file, name="a")
        adapters = time_call(times["bake"], device, load)
        strengthen = lambda a=adapters: a.set_strengths({"a": 0.5})
        time_call(times["re-strength"], device, strengthen)
        extra.append(read_held(device) - before)
        time_call(times["clear"], device, adapters.clear)
    for name, parameter in model.named_parameters():
        assert checksum(parameter) == sums[name], f"{config.variant} did not restore {name}"
    facts |= {f"{what}_seconds": round(statistics.median(t), 3) for what, t in times.items()}
    return facts | {"extra_bytes": int(statistics.median(extra)), "rounds": times}
