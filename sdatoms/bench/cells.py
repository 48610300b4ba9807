"""Results of the personalization benchmark, a file a cell, written whole.

A cell is a method with its settings, a rate, a task, a seed, and how it was trained and painted.
Its file is found by a hash of all that, and says which base it was made with: those of others are
refused. All that was painted is kept beside it, so that another evaluator measures it anew without
a training.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms.bench.judge import Painted, Painting, Values
from sdatoms.bench.rows import Method
from sdatoms.errors import AtomError
from sdatoms.pictures import join_squares, save_image
from sdatoms.storage import read_table, write_whole

__all__ = ["Cell", "CellStore", "hold"]


@dataclass(frozen=True)
class Cell:
    """What one training is told."""

    method: Method
    rate: float
    task: str
    seed: int
    steps: tuple[int, ...]
    """Optimizer steps after which it is measured, ascending."""
    batch_size: int
    painting: Painting
    pictures: str
    """Digest of the task's pictures."""

    def key(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "method": self.method.name,
            "settings": self.method.describe(),
            "rate": self.rate,
            "task": self.task,
            "seed": self.seed,
            "steps": list(self.steps),
            "batch_size": self.batch_size,
            "painting": json.loads(json.dumps(asdict(self.painting))),
            "pictures": self.pictures,
        }

    def name(self) -> str:
        """Name of its file, without suffix."""
        digest = hashlib.sha256(json.dumps(self.key(), sort_keys=True).encode()).hexdigest()
        words = f"{self.method.name} {self.task}"
        return f"{re.sub('[^a-z0-9]+', '-', words.lower())[:60]}-{digest[:16]}"


@contextlib.contextmanager
def hold(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether no other process has `path` locked, for the time of a `with` block; the system drops
    the lock with its process.

    Args:
        wait: until it is free.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


class CellStore:
    """The cells in one folder.

    Args:
        base: names the base.
        judge: names what measures: evaluator, probe, and the eye where there is one.
    """

    def __init__(self, folder: Path, base: str, judge: str) -> None:
        self.folder, self.base, self.judge = folder, base, judge

    def claim(self, cell: Cell, wait: bool = False) -> contextlib.AbstractContextManager[bool]:
        """Whether a cell is this process's to make, as long as the `with` block lasts.

        Args:
            wait: until another process that is at it has ended.
        """
        return hold(self.folder / f".{cell.name()}.lock", wait)

    def read(self, cell: Cell, measure: Callable[[Painted], Values]) -> dict[str, Any] | None:
        """The result of a cell; None where it has to be trained.

        Args:
            measure: takes the figures anew of what was painted, where another judge took them.

        Raises:
            AtomError: it was made with another base.
        """
        path = self.folder / f"{cell.name()}.json"
        table = read_table(path, {})
        if table.get("key") != json.loads(json.dumps(cell.key())):
            return None
        if table.get("base") != self.base:
            raise AtomError(
                f"{str(path)!r} was made with the base {table.get('base')!r}, not {self.base!r}; "
                "give another --output_dir"
            )
        result = table["result"]
        if table.get("judge") == self.judge or not result.get("marks"):
            return result
        painted = self.read_painted(cell)
        if list(painted) != list(result["marks"]):
            return None
        marks = {mark: measure(pictures) for mark, pictures in painted.items()}
        self.write(cell, result | {"marks": marks})
        return result | {"marks": marks}

    def write(
        self, cell: Cell, result: dict[str, Any], painted: Mapping[str, Painted] | None = None
    ) -> None:
        """Keep a result and, before it, what was painted at each of its marks, a row a mark."""
        if painted:
            rows = [join_squares([*p.asked, *p.unrelated]) for p in painted.values()]
            sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
            for place, row in enumerate(rows):
                sheet.paste(row, (0, place * row.height))
            save_image(sheet, self.folder / f"{cell.name()}.png")
        table = {"base": self.base, "judge": self.judge, "key": cell.key(), "result": result}
        write_whole(self.folder / f"{cell.name()}.json", json.dumps(table).encode())

    def read_painted(self, cell: Cell) -> dict[str, Painted]:
        """Mark → what was painted there, to the bit; none where it is gone."""
        path = self.folder / f"{cell.name()}.png"
        marks = list(read_table(path.with_suffix(".json"), {}).get("result", {}).get("marks", {}))
        if not path.is_file() or not marks:
            return {}
        with Image.open(path) as opened:
            sheet = opened.convert("RGB")
        side = sheet.height // len(marks)
        found = {}
        for place, mark in enumerate(marks):
            y = place * side
            row = [sheet.crop((x, y, x + side, y + side)) for x in range(0, sheet.width, side)]
            count = len(row) - cell.painting.count_unrelated()
            found[mark] = Painted(row[:count], row[count:])
        return found

    def read_pictures(self, cell: Cell) -> list[Image.Image]:
        """The first picture of every prompt after the last step; none where they are gone."""
        painted = list(self.read_painted(cell).values())
        return painted[-1].asked[:: len(cell.painting.seeds)] if painted else []
