"""How long one waits at the start: for an import, for help, for the trainer's first step.

Every figure is of a process of its own: seconds by the clock, and processor seconds, which a
machine that others use blurs less.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "Waits",
    "measure_first_step",
    "measure_help",
    "measure_import",
    "read_seconds",
    "take_medians",
    "time_process",
]

Waits = dict[str, float]
"""`seconds` by the clock and `cpu_seconds`."""
USED = ("inject", "load_atoms", "save_atoms")
"""Public names that bring all that personalization without diffusers needs."""


def measure_import(times: int) -> dict[str, Waits]:
    """`import torch`, the same and `import sdatoms`, and with its first names used; medians of
    `times` processes, taken in turn, and what the last two take beyond torch."""
    codes = {
        "torch": "import torch",
        "torch, sdatoms": "import torch, sdatoms",
        "torch, sdatoms, used": f"import torch; from sdatoms import {', '.join(USED)}",
    }
    found: dict[str, list[Waits]] = {name: [] for name in codes}
    for _ in range(times):
        for name, code in codes.items():
            found[name].append(time_process(["-c", code]))
    rows = {name: take_medians(waits) for name, waits in found.items()}
    for name in list(codes)[1:]:
        rows[f"{name}, beyond torch"] = {
            key: round(rows[name][key] - rows["torch"][key], 3) for key in rows[name]
        }
    return rows


def measure_help(times: int) -> Waits:
    """`sdatoms --help`; medians."""
    return take_medians([time_process(["-m", "sdatoms", "--help"]) for _ in range(times)])


def measure_first_step(pictures: Path) -> Waits:
    """From the command to the end of the first training step, on the bundled base with the
    trainer's defaults: pictures of the untouched base are painted and measured before it.

    Raises:
        RuntimeError: the trainer ends before.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "sdatoms", "train", "--instance_data_dir", str(pictures)]
        words += ["--instance_prompt", "a sks subject", "--output_dir", f"{folder}/run"]
        metrics, began = Path(folder) / "run" / "metrics.jsonl", time.monotonic()
        nowhere = subprocess.DEVNULL
        process = subprocess.Popen([sys.executable, *words], stdout=nowhere, stderr=nowhere)
        try:
            while process.poll() is None:
                if metrics.is_file() and '"step": 1,' in metrics.read_text(encoding="utf-8"):
                    taken = time.monotonic() - began
                    return {
                        "seconds": round(taken, 2),
                        "cpu_seconds": round(read_seconds(process.pid), 2),
                    }
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
    raise RuntimeError("the trainer ended before its first step")


def time_process(words: Sequence[str]) -> Waits:
    """Python with these words, until it has ended.

    Raises:
        RuntimeError: it fails.
    """
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"python {' '.join(words)} ended with code {process.returncode}")
    taken = time.perf_counter() - began
    return {"seconds": taken, "cpu_seconds": usage.ru_utime + usage.ru_stime}


def take_medians(waits: Sequence[Waits]) -> Waits:
    return {key: round(statistics.median(wait[key] for wait in waits), 3) for key in waits[0]}


def read_seconds(pid: int) -> float:
    """Processor seconds that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
