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
from sdatoms.atoms.config import AtomConfig, Variant
from sdatoms.bench.process import read_memory
from sdatoms.files.reader import read_atoms
from sdatoms.files.writer import save_atoms
from sdatoms.fingerprint import checksum
from sdatoms.layers.inject import inject

__all__ = ["DTYPES", "measure_variant"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def time_call(times: list[float], call: Callable[[], Any]) -> Any:
    """What `call` returns; the seconds it took are appended to `times`."""
    start = time.perf_counter()
    result = call()
    times.append(time.perf_counter() - start)
    return result


def measure_variant(model: nn.Module, variant: Variant, runs: int, folder: Path) -> dict[str, Any]:
    """Inject, save, then load, re-strengthen and clear `runs` times; all weights come back, which
    is checked."""
    sums = {name: checksum(p) for name, p in model.named_parameters()}
    start = time.perf_counter()
    injection = inject(model, AtomConfig(variant))
    seconds = time.perf_counter() - start
    with torch.no_grad():
        for parameter in injection.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    path = save_atoms(folder / f"{variant}.safetensors", {"unet": injection})
    facts = {
        "parameters": injection.num_parameters,
        "layers": len(injection.layers),
        "file_bytes": path.stat().st_size,
        "inject_seconds": round(seconds, 2),
    }
    injection.eject()
    del injection
    file, times, extra = read_atoms(path), {"bake": [], "re-strength": [], "clear": []}, []
    for _ in range(runs):
        before = read_memory("VmRSS")
        adapters = time_call(times["bake"], lambda: load_atoms(model, file, name="a"))
        time_call(times["re-strength"], lambda a=adapters: a.set_strengths({"a": 0.5}))
        extra.append(read_memory("VmRSS") - before)
        time_call(times["clear"], adapters.clear)
    for name, parameter in model.named_parameters():
        assert checksum(parameter) == sums[name], f"{variant} did not restore {name}"
    facts |= {f"{what}_seconds": round(statistics.median(t), 3) for what, t in times.items()}
    return facts | {"extra_bytes": int(statistics.median(extra)), "rounds": times}
