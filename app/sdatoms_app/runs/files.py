"""What a run's files say, ready to be drawn: curves, sample strips, log, numbers."""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms import AtomError
from sdatoms.errors import is_finite
from sdatoms.pictures import read_picture
from sdatoms.storage import read_table
from sdatoms_app.queue.training import Training, read_tail
from sdatoms_app.queue.worker import read_whole

__all__ = [
    "Curves",
    "describe_seconds",
    "list_samples",
    "open_samples",
    "pack_run",
    "read_curves",
    "read_memory",
    "smooth",
]

SAMPLE = re.compile(r"(base|step-\d{6,})-(\d{1,3})\.(png|jpg|webp)")
OWN = {"step", "total", "loss", "lr", "seconds"}
"""Entries of a row that are not curves of their own, or have one already."""
PARTS = {"instance_loss", "prior_loss"}
"""Parts of the loss: curves of their own where there are both."""
MAX_POINTS = 400
MAX_ROWS = 64 << 20
"""Bytes of `metrics.jsonl` that are read, from its end."""
MAX_SAMPLES = 120
PACKED = (
    "atoms.safetensors",
    "config.toml",
    "report.json",
    "metrics.jsonl",
    "log.txt",
    "samples.png",
)


@dataclass(frozen=True)
class Curves:
    """Columns of `metrics.jsonl`, thinned out evenly to a few hundred points."""

    steps: list[int]
    loss: list[float]
    smoothed: list[float]
    lr: list[float]
    others: dict[str, list[tuple[int, float]]]
    """Name → step and value, for every further number that was reported."""
    seconds_per_step: float | None
    """Median over the last 50 steps."""


def read_curves(run: Path, smoothing: float = 0.9) -> Curves:
    """The curves of a run; lines cut short by a kill and numbers that are none are passed over."""
    rows = []
    for line in read_tail(run / "metrics.jsonl", 1 << 30, MAX_ROWS).splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and is_number(row.get("step")):
            rows.append(row)
    told = [row for row in rows if is_number(row.get("loss"))]
    loss = smooth([row["loss"] for row in told], smoothing)
    kept = thin(list(range(len(told))))
    names = {key for row in rows for key, value in row.items() if is_number(value)} - OWN
    names -= set() if names >= PARTS else PARTS
    others = {
        name: thin([(int(r["step"]), float(r[name])) for r in rows if is_number(r.get(name))])
        for name in sorted(names)
    }
    last = sorted(row["seconds"] for row in told[-50:] if is_number(row.get("seconds")))
    return Curves(
        steps=[int(told[k]["step"]) for k in kept],
        loss=[float(told[k]["loss"]) for k in kept],
        smoothed=[loss[k] for k in kept],
        lr=[float(lr) if is_number(lr := told[k].get("lr")) else 0.0 for k in kept],
        others=others,
        seconds_per_step=last[len(last) // 2] if last else None,
    )


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and is_finite(value)


def thin(points: list[Any]) -> list[Any]:
    """At most a few hundred of the points, evenly, the last one always."""
    stride = max(1, -(-len(points) // MAX_POINTS))
    return points[(len(points) - 1) % stride :: stride] if points else []


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """An exponential average run forwards and backwards, so that it does not lag.

    Args:
        values: any numbers.
        weight: of what came before, from 0 (as it is) to below 1.
    """
    out = [float(v) for v in values]
    for order in (range(len(out)), range(len(out) - 1, -1, -1)):
        total = share = 0.0
        for k in order:
            total = weight * total + (1 - weight) * out[k]
            share = weight * share + (1 - weight)
            out[k] = total / share
    return out


def list_samples(run: Path) -> list[tuple[Path, str]]:
    """Sample pictures with the step they are of; the base first, then by step."""
    folder = run / "samples"
    found = []
    for path in folder.iterdir() if folder.is_dir() else []:
        match = SAMPLE.fullmatch(path.name)
        if match and path.is_file() and not path.is_symlink():
            step = -1 if match[1] == "base" else int(match[1].removeprefix("step-"))
            found.append((step, int(match[2]), path))
    found.sort()
    base = [row for row in found if row[0] < 0]
    steps = [row for row in found if row[0] >= 0]
    chosen = [*base, *steps[-MAX_SAMPLES:]]
    return [(path, "base" if step < 0 else f"step {step}") for step, _, path in chosen]


def open_samples(run: Path) -> list[tuple[Image.Image, str]]:
    """Sample pictures with their labels; one that is being written just now is passed over."""
    found = []
    for path, label in list_samples(run):
        with contextlib.suppress(AtomError):
            found.append((read_picture(path), label))
    return found


def read_memory(training: Training) -> str:
    """The most memory the trainer took, from its report, or what its process takes now."""
    report = read_table(training.path / "report.json", {})
    peak = max(read_whole(report.get(f"peak_{kind}_bytes")) for kind in ("memory", "gpu"))
    if training.pid:
        import psutil

        try:
            return f"{psutil.Process(training.pid).memory_info().rss / 2**30:.2f} GiB"
        except psutil.Error:
            return ""
    return f"{peak / 2**30:.2f} GiB" if peak else ""


def describe_seconds(seconds: float) -> str:
    """`3725` → `1 h 2 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def pack_run(run: Path) -> bytes:
    """The run's results as a zip: atoms, settings, report, numbers, log, samples."""
    buffer = io.BytesIO()
    samples = [path for path, _ in list_samples(run)]
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in [*(run / name for name in PACKED), *samples]:
            if path.is_file() and not path.is_symlink():
                archive.write(path, f"{run.name}/{path.relative_to(run)}")
    return buffer.getvalue()
