"""What a training run leaves on disk, and all that an app needs to show it.

`config.toml` (effective), `metrics.jsonl`, `status.json`, `samples/`, `checkpoints/step-000200/`,
`atoms.safetensors`, `report.json`, `log.txt`. Every file but the two logs is written whole or not
at all.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import math
import os
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from sdatoms.errors import AtomError, check_text, is_finite
from sdatoms.storage import locate, write_whole

__all__ = [
    "RunDirectory",
    "name_step",
    "write_toml",
]

STEP = re.compile(r"^step-(\d{6,})$")
SAMPLE = re.compile(r"^(base|step-\d{6,})-\d+\.png$")
HEARTBEAT_SECONDS = 1.0


def name_step(step: int | None) -> str:
    """What samples, checkpoints and measurements of a step are called; None: of the base."""
    return "base" if step is None else f"step-{step:06d}"


class RunDirectory:
    """Reads and writes one run's files; see the module's docstring for the list."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = path / "samples"
        self.checkpoints = path / "checkpoints"
        self._last_beat = 0.0
        self._stale: list[int] = []

    def create(self) -> None:
        """Make the folder, where there is none.

        Raises:
            AtomError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AtomError(
                f"the output folder {str(self.path)!r} cannot be made: {error.strerror}"
            ) from None

    def clean(self) -> None:
        """Take away what a killed run left half-done."""
        for path in self.checkpoints.glob(".step-*"):
            kept = self.checkpoints / path.name[1:].removesuffix(".old")
            if path.suffix == ".old" and not kept.exists():
                path.rename(kept)
            else:
                shutil.rmtree(path, ignore_errors=True)

    def start_afresh(self) -> None:
        """Forget an earlier run here: its rows now, its checkpoints once there is a new one. Its
        pictures are kept in `earlier/1`, `earlier/2`, …"""
        self.trim_metrics(-1)
        pictures = [p for p in self.samples.rglob("*.png") if SAMPLE.match(p.name)]
        grids = (self.path / name for name in ("samples.png", "before-after.png"))
        pictures += [path for path in grids if path.is_file()]
        numbers = (self.path / "earlier" / str(k) for k in itertools.count(1))
        place = next(path for path in numbers if not path.exists())
        for path in pictures:
            target = place / path.relative_to(self.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
        self._stale = self.list_checkpoints()

    def take_wish(self, name: str) -> bool:
        """Whether there is a file `<name>.now`, by which anybody asks for something; it is gone
        afterwards."""
        path = self.path / f"{name}.now"
        if not os.path.lexists(path):
            return False
        with contextlib.suppress(OSError):  # a folder of that name asks for nothing
            path.unlink()
            return True
        return False

    def log(self, text: str) -> None:
        """Append one line with the time to `log.txt`."""
        stamp = datetime.datetime.now().isoformat(timespec="seconds")
        with (self.path / "log.txt").open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{stamp} {text}\n")

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Append one JSON object to `metrics.jsonl`, flushed."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def trim_metrics(self, step: int) -> None:
        """Drop rows after `step`, which a resumed run will write again, and lines that are none."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_bytes().split(b"\n")
            write_whole(path, b"".join(line + b"\n" for line in lines if read_step(line) <= step))

    def set_status(
        self, phase: str, step: int, total: int, eta_s: float | None, *, force: bool = True
    ) -> None:
        """Rewrite `status.json`; without `force` at most once a second."""
        now = time.time()
        if not force and now - self._last_beat < HEARTBEAT_SECONDS:
            return
        self._last_beat = now
        status = {
            "phase": phase,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "heartbeat": now,
            "step": step,
            "total": total,
            "eta_s": eta_s,
        }
        self.write_json("status.json", status)

    def write_json(self, name: str, value: Any) -> None:
        write_whole(self.path / name, (json.dumps(value, indent=2) + "\n").encode())

    def save_checkpoint(
        self,
        step: int,
        files: dict[str, bytes],
        state: dict[str, Tensor],
        places: str,
        limit: int | None,
    ) -> Path:
        """Write `checkpoints/step-…`, complete or absent, then delete the oldest beyond `limit`.

        Args:
            places: JSON text that says where the tensors of `state` belong.
        """
        target = self.checkpoints / name_step(step)
        staging = self.checkpoints / f".{target.name}.tmp"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        held = {**files, "state.safetensors": save(state, {"step": str(step), "state": places})}
        for name, data in held.items():
            write_whole(staging / name, data)
        if target.exists():
            old = self.checkpoints / f".{target.name}.old"
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        staging.rename(target)
        sync_folder(self.checkpoints)
        shutil.rmtree(self.checkpoints / f".{target.name}.old", ignore_errors=True)
        steps = [s for s in self.list_checkpoints() if s not in self._stale or s == step]
        for old in {*self.list_checkpoints()} - {*(steps[-limit:] if limit else steps)}:
            shutil.rmtree(self.checkpoints / name_step(old))
        self._stale = []
        return target

    def list_checkpoints(self) -> list[int]:
        """Steps of the complete checkpoints, rising."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(m[1]) for p in self.checkpoints.iterdir() if (m := STEP.match(p.name)))

    def find_checkpoint(self, wanted: str) -> tuple[int, Path] | None:
        """`latest`, a step's directory name, or a path to it → its step and directory; None when
        `latest` finds none.

        Raises:
            AtomError: there is no such checkpoint in this run.
        """
        steps = self.list_checkpoints()
        if wanted == "latest":
            return (steps[-1], self.checkpoints / name_step(steps[-1])) if steps else None
        held = ", ".join(map(name_step, steps)) or "none"
        named = Path(wanted)
        match = STEP.match(named.name)
        path = self.checkpoints / named.name
        if len(named.parts) > 1:
            places = {locate(named.parent), locate(self.path / named.parent)}
            if locate(self.checkpoints) not in places:
                raise AtomError(
                    f"the checkpoint {wanted!r} is not one of this run, {str(self.path)!r}, which "
                    f"holds {held}; name the --output_dir it belongs to"
                )
        if not match or not path.is_dir():
            raise AtomError(
                f"there is no checkpoint {wanted!r} in {str(self.checkpoints)!r}; it holds {held}"
            )
        return int(match[1]), path

    def load_state(self, checkpoint: Path) -> tuple[dict[str, Tensor], str]:
        """The tensors and the JSON text that `save_checkpoint` was given.

        Raises:
            AtomError: the checkpoint is of an older version or damaged.
        """
        path = checkpoint / "state.safetensors"
        try:
            with safe_open(path, "pt") as file:
                places = (file.metadata() or {})["state"]
            return load_file(path), places
        except (OSError, SafetensorError, KeyError) as error:
            raise AtomError(f"the checkpoint {checkpoint.name!r} cannot be read: {error}") from None


def sync_folder(path: Path) -> None:
    """Make renames in a folder last through a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_step(line: bytes) -> float:
    """The step of a row of `metrics.jsonl`; infinite where the line is none, as when a kill cut it
    short or the disk is damaged."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return math.inf
    step = row.get("step", 0) if isinstance(row, dict) else None
    return step if is_finite(step) else math.inf


def write_toml(values: dict[str, Any]) -> str:
    """Flat settings as TOML; None is left out, since TOML has no word for it.

    Raises:
        AtomError: a text holds what no text file can, such as half of a character.
    """
    lines = []
    for key, value in values.items():
        if value is None:
            continue
        if isinstance(value, list | tuple):
            text = "[" + ", ".join(write_value(key, v) for v in value) + "]"
        else:
            text = write_value(key, value)
        lines.append(f"{key} = {text}")
    return "\n".join(lines) + "\n"


def write_value(key: str, value: Any) -> str:
    """A text, number or truth as TOML writes it."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else repr(value)  # inf is inf in both
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    check_text(str(value), f"--{key}")
    return text
