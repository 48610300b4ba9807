"""Grids of pictures over strength × seed × checkpoint × adapter: planned, painted, drawn, kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sdatoms import AtomError
from sdatoms.atoms.strengths import Strength, scale_strength
from sdatoms.errors import clip
from sdatoms.pictures import draw_grid, save_image
from sdatoms_app.studio.history import Kept
from sdatoms_app.studio.orders import MAX_SEED, Order
from sdatoms_app.studio.painting import Job
from sdatoms_app.studio.studio import Studio

__all__ = [
    "MAX_CELLS",
    "Cell",
    "Grid",
    "paint_grid",
    "parse_numbers",
    "plan_grid",
]

MAX_CELLS = 64


class Cell(NamedTuple):
    """One picture of a grid and where it stands."""

    row: int
    column: int
    order: Order


class Grid(NamedTuple):
    """What is to be painted; cells come in the order that changes weights least often."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]


def parse_numbers(text: str, kind: type, what: str) -> list[float]:
    """Numbers from "0, 0.5, 1"; whole ones also from ranges such as "3-6".

    Raises:
        AtomError: something in it is no number.
    """
    numbers: list[float] = []
    for part in filter(None, (part.strip() for part in text.replace(";", ",").split(","))):
        try:
            low, mark, high = (
                part.partition("-") if kind is int and part[0] != "-" else (part, "", "")
            )
            if mark:
                first, last = int(low), int(high)
                if last - first >= MAX_CELLS:
                    raise AtomError(f"{what} {part!r} is a range of more than {MAX_CELLS}")
                numbers += range(first, last + 1)
            else:
                numbers.append(kind(part))
        except AtomError:
            raise
        except ValueError:
            raise AtomError(
                f"{what} hold {clip(part, 40)!r}, which is no number; write them as 0, 1, 2"
            ) from None
    return numbers


def plan_grid(
    order: Order, strengths: Sequence[float], seeds: Sequence[float], files: Sequence[str]
) -> Grid:
    """Columns are strengths, rows are files (adapters and checkpoints, one at a time) and seeds.

    Args:
        order: all that stays the same. Where `files` is empty its own adapters are painted, each at
            its strength times the column's.
        strengths: empty: 1.
        seeds: empty: the order's.
        files: ids of listed atom files or checkpoints.

    Raises:
        AtomError: there is nothing to vary, or there are too many cells.
    """
    strengths, seeds = list(strengths) or [1.0], [int(s) for s in seeds] or [order.seed]
    if not files and not order.adapters:
        raise AtomError("choose atom files or checkpoints for the grid, or on the Generate tab")
    total = len(strengths) * len(seeds) * max(1, len(files))
    if total > MAX_CELLS:
        raise AtomError(f"the grid has {total} pictures; at most {MAX_CELLS} are generated at once")
    if not all(0 <= seed <= MAX_SEED for seed in seeds):
        raise AtomError(f"a seed goes from 0 to {MAX_SEED}")
    rows: list[str] = []
    cells: list[Cell] = []
    for file in files or [""]:
        first = len(rows)
        rows += [f"{file}, seed {s}" if file else f"seed {s}" for s in seeds]
        for column, strength in enumerate(strengths):
            adapters = ((file, strength),) if file else scale_all(order.adapters, strength)
            for number, seed in enumerate(seeds):
                schedules = {} if file else order.strength_schedules
                changed = replace(
                    order, adapters=adapters, strength_schedules=schedules, seed=seed, batch=1
                )
                cells.append(Cell(first + number, column, changed))
    columns = tuple(f"strength {s:g}" if files else f"strengths x {s:g}" for s in strengths)
    return Grid(tuple(rows), columns, tuple(cells))


def scale_all(
    adapters: Sequence[tuple[str, Strength]], factor: float
) -> tuple[tuple[str, Strength], ...]:
    """Every strength times `factor`."""
    return tuple((id, scale_strength(strength, factor)) for id, strength in adapters)


def paint_grid(studio: Studio, grid: Grid, job: Job) -> Iterator[tuple[Path, list[Kept]]]:
    """Paint cell by cell; after each, the grid so far as one PNG, and the single pictures.

    Raises:
        AtomError: as `Studio.check` for any cell, before the first is painted.
    """
    for cell in grid.cells:
        studio.check(cell.order)
    blank = Image.new("RGB", (8, 8), "#d4d4d4")
    pictures = [[blank for _ in grid.columns] for _ in grid.rows]
    kept: list[Kept] = []
    path = studio.outputs / "grids" / f"{time.time_ns()}.png"
    for number, cell in enumerate(grid.cells):
        for picture in studio.paint(cell.order, CellJob(job, number, len(grid.cells))):
            kept.append(picture)
            with Image.open(picture.path) as opened:
                pictures[cell.row][cell.column] = opened.convert("RGB")
        side = min(256, max(64, max(pictures[cell.row][cell.column].size)))
        save_image(draw_grid(pictures, grid.rows, grid.columns, cell=max(side, 96)), path)
        yield path, kept


class CellJob(Job):
    """A job for one cell, that reports to the grid's and is cancelled with it."""

    def __init__(self, outer: Job, number: int, total: int) -> None:
        super().__init__(lambda _: None)
        self.outer, self.number, self.total = outer, number, total

    def check(self) -> None:
        self.outer.check()

    def wants_preview(self) -> bool:
        return self.outer.wants_preview()

    def tell(self, **changes: object) -> None:
        done, total = changes.pop("done", None), changes.pop("total", None)
        if isinstance(done, int) and isinstance(total, int):
            changes |= {"done": self.number * total + done, "total": self.total * total}
        if "message" in changes:
            changes["message"] = f"cell {self.number + 1} of {self.total}, {changes['message']}"
        self.outer.tell(**changes)
