"""The rows of one part of the GPU's bench, and how they are measured.

A row that fails, for want of memory or for another reason, says so and ends nothing.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdatoms.bench.process import forget_peak
from sdatoms.errors import first_line
from sdatoms.storage import write_whole

__all__ = ["SIDES", "Rows", "Setting"]

SIDES = {"sd1": 512, "sdxl": 1024}
"""Family → px."""


@dataclass(frozen=True)
class Setting:
    """How a part is measured; JSON holds it."""

    device: str = "cuda"
    tiny: bool = False
    """Networks of a few thousand numbers, one pass of each kind: to see that all of it runs."""
    seconds: float = 60.0
    """After these no further row is begun."""
    methods: tuple[str, ...] | None = None
    """What is trained; None: all."""
    rounds: int = 8
    """Steps, or pictures, that a figure is the median of."""
    compiler: str = "inductor"
    """Backend of torch.compile."""
    dtype: str = "bfloat16"
    """Of the bases."""

    @property
    def base_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def place(self) -> torch.device:
        return torch.device(self.device)

    def side(self, family: str) -> int:
        return 64 if self.tiny else SIDES[family]


class Rows:
    """Rows of one part, in a file that is written anew with each."""

    def __init__(self, path: Path, setting: Setting) -> None:
        self.path, self.setting = path, setting
        self.end = time.monotonic() + setting.seconds
        self.rows: dict[str, Any] = {}

    def put(self, name: str, row: dict[str, Any]) -> None:
        self.rows[name] = row
        self.write()

    def write(self) -> None:
        write_whole(self.path, (json.dumps(self.rows, indent=2) + "\n").encode())

    def take(self, name: str, call: Callable[[], dict[str, Any] | None]) -> None:
        """Add what `call` returns, unless it adds rows of its own; where it fails, or there is no
        time for it, in one line why."""
        if time.monotonic() > self.end:
            return self.put(name, {"failed": "left out: the time of this part was over"})
        try:
            row = call()
        except Exception as error:
            row = {"failed": f"{type(error).__name__}: {first_line(error)[:200]}"}
        if row is not None:
            self.put(name, row)
            if "failed" in row:
                self.free()

    def free(self) -> None:
        """Give back what earlier rows held."""
        gc.collect()
        if self.setting.place.type == "cuda":
            torch.cuda.empty_cache()
        forget_peak(self.setting.place)
