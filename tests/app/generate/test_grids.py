"""Grids: what they go over, in which order, and that they can be cancelled."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from sdatoms_app.generate.grids import paint_grid, parse_numbers, plan_grid
from sdatoms_app.studio.painting import Cancelled, Job
from tiny.app import read_pixels

from sdatoms import AtomError


def pixels(kept):
    return read_pixels(kept.path)


def test_numbers_of_a_grid():
    assert parse_numbers("0, 0.5 ; -1", float, "strengths") == [0, 0.5, -1]
    assert parse_numbers("1, 3-5", int, "seeds") == [1, 3, 4, 5]
    for text, kind in (("a", float), ("1-999", int), ("1.5", int)):
        with pytest.raises(AtomError):
            parse_numbers(text, kind, "seeds")


def test_a_grid_is_planned_with_the_dearest_change_outermost(order):
    grid = plan_grid(order, [0, 1], [5, 6], ["dog", "dog@100"])
    assert grid.rows == ("dog, seed 5", "dog, seed 6", "dog@100, seed 5", "dog@100, seed 6")
    assert grid.columns == ("strength 0", "strength 1")
    changes = [cell.order.adapters for cell in grid.cells]
    assert sum(a != b for a, b in pairwise(changes)) == 3
    with pytest.raises(AtomError, match="at most 64"):
        plan_grid(order, [0, 1], list(range(40)), ["dog"])
    with pytest.raises(AtomError, match="choose atom files"):
        plan_grid(order, [0, 1], [1], [])


def test_a_grid_is_painted_kept_and_cancelled(studio, paint, order):
    wanted = replace(order, adapters=(("dog", 1.0), ("ink", {"down": 1.0, "mid": 0.0, "up": 0.5})))
    grid = plan_grid(wanted, [0, 0.5], [3], [])
    path, kept = list(paint_grid(studio, grid, Job(lambda _: None)))[-1]
    with Image.open(path) as drawn:
        assert path.parent == studio.outputs / "grids" and drawn.width > 2 * 64
    assert np.array_equal(pixels(kept[0]), pixels(paint()[0]))
    half = paint(
        replace(wanted, adapters=(("dog", 0.5), ("ink", {"down": 0.5, "mid": 0, "up": 0.25})))
    )
    assert np.array_equal(pixels(kept[1]), pixels(half[0]))
    job = Job(lambda _: None)
    cells = paint_grid(studio, plan_grid(wanted, [0, 1, 2], [1], []), job)
    next(cells)
    job.cancel()
    with pytest.raises(Cancelled):
        next(cells)
    assert not studio.lock.locked()
