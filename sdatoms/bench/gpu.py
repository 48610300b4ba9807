"""Everything that needs a GPU, in one run of minutes: its parts one after another, and their table.

Every part runs in a process of its own and writes its rows as it goes. A part gets its share of the
time that is left, begins no row after it, and is ended somewhat later; what it has measured by then
stays, and the next part begins.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sdatoms.bench.gpu_parts import PARTS, measure_part
from sdatoms.bench.gpu_rows import Setting
from sdatoms.bench.process import call_apart
from sdatoms.training.report import name_device

__all__ = ["measure_gpu", "tabulate"]

GRACE = 12.0
"""Seconds past its share in which a part may finish the row it is at."""


def measure_gpu(
    names: Sequence[str], folder: Path, seconds: float, setting: Setting, *, apart: bool = True
) -> Iterator[dict[str, Any]]:
    """Facts about the machine, and part → row → figures as far as they are known; once more after
    every part.

    Args:
        folder: where each part writes its own file.
        seconds: for all parts together.
        setting: its `seconds` is set for each part.
        apart: in processes of their own.
    """
    end = time.monotonic() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = describe_machine(setting)
    for k, name in enumerate(names):
        left = end - time.monotonic()
        shares = [PARTS[other].share for other in names[k:]]
        share = max(0.0, left * shares[0] / sum(shares))
        path = folder / f"{name.replace(', ', '-').replace(' ', '-').lower()}.json"
        path.unlink(missing_ok=True)
        asked = (name, str(path), asdict(replace(setting, seconds=share)))
        began, rows = time.monotonic(), {}
        try:
            if apart:
                call_apart(measure_part, *asked, seconds=max(1.0, min(share + GRACE, left)))
            else:
                measure_part(*asked)
        except RuntimeError as error:
            rows["all of it"] = {"failed": str(error)[:300]}
        if path.is_file():
            rows = json.loads(path.read_text(encoding="utf-8")) | rows
        facts["parts"][name] = {"seconds": round(time.monotonic() - began, 1), "rows": rows}
        yield facts


def describe_machine(setting: Setting) -> dict[str, Any]:
    facts: dict[str, Any] = {"device": name_device(), "torch": torch.__version__}
    if setting.place.type == "cuda":
        free, whole = torch.cuda.mem_get_info()
        facts |= {"cuda": torch.version.cuda, "memory_bytes": whole, "free_bytes": free}
    return facts | {"setting": asdict(setting), "parts": {}}


def tabulate(facts: Mapping[str, Any]) -> str:
    """All rows as one table in Markdown."""
    head = f"{facts['device']}, torch {facts['torch']}, bases in {facts['setting']['dtype']}"
    if facts["setting"]["tiny"]:
        head += "; **tiny networks, no measurement**"
    lines = [head + ".", "", "| part | row | figures |", "|---|---|---|"]
    for part, found in facts["parts"].items():
        for name, row in found["rows"].items():
            lines.append(f"| {part} | {name} | {describe_row(row)} |")
    return "\n".join(lines) + "\n"


def describe_row(row: Mapping[str, Any]) -> str:
    """A row's figures in words; every kind of row is known by what it holds."""
    if "failed" in row:
        return str(row["failed"]).replace("|", "/").replace("\n", " ")
    if "worth" in row:
        return (
            f"columns up to {row['worth']:g} positions (times b²) per output channel: "
            f"{row['longer']:g} of the better way's time, by today's rule {row['longer_today']:g}"
        )
    if "seconds_per_step" in row:
        words = f"{row['seconds_per_step']:.4f} s a step, {row['peak_bytes'] / 1e9:.2f} GB"
        if ratios := row.get("to_lora"):
            words += f"; {ratios['seconds_per_step']:.2f} of LoRA r = 4's time, "
            words += f"{ratios['peak_bytes']:.2f} of its memory"
        return words
    if "bake_seconds" in row:
        names = ("inject", "read", "bake", "re-strength", "clear")
        times = ", ".join(f"{name} {row[f'{name}_seconds']:.3f} s" for name in names)
        return f"{times}; {row['extra_bytes'] / 1e9:.2f} GB more, file {row['file_bytes']:,} bytes"
    if "bare_seconds" in row:
        words = f"bare {row['bare_seconds']:.3f} s, loaded {row['baked_seconds']:.3f} s: "
        words += f"{row['ratio']:.3f} ({row['pictures']} pictures)"
        if "compile_seconds" in row:
            words += (
                f"; compiled in {row['compile_seconds']:g} s, anew {row['compiled_anew']} times"
            )
        return words
    ways = ", ".join(
        f"{name} {way['weight_ms']:g} / {way['columns_ms']:g} ({way['picked']})"
        for name, way in row.items()
        if isinstance(way, dict)
    )
    words = f"frozen {row['frozen_ms']:g} ms, LoRA {row['lora_ms']:g}"
    return f"{words}; weight / columns (picked): {ways}"
