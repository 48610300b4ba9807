"""What `--data` may name: built-in tasks, pictures from anywhere; CIFAR pictures by rotation."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

from sdatoms.classifiers.pictures import Item, Pool
from sdatoms.classifiers.sources import read_pool
from sdatoms.errors import AtomError

__all__ = ["ROTATION", "Readers", "read_rotations", "read_task"]

ROTATION = "cifar-rotation"
QUARTERS = (0, 90, 180, 270)

Readers = Mapping[str, Callable[[], Pool]]
"""Task → what reads its pictures."""


def read_task(name: str, readers: Readers, cifar: Path | None = None) -> Pool:
    """A task of `readers`, the rotation task, or what `read_pool` makes of another name.

    Args:
        cifar: folder or zip with `train` and `test` folders of upright pictures.

    Raises:
        AtomError: as `read_pool`; or the rotation task has no pictures.
    """
    if name in readers:
        return readers[name]()
    if name == ROTATION:
        if cifar is None:
            raise AtomError(f"the task {ROTATION!r} needs --cifar, a folder or zip of pictures")
        return read_rotations(cifar)
    return read_pool(name)


def read_rotations(cifar: Path) -> Pool:
    """Every picture at one of four quarter turns, drawn once for all."""
    upright = read_pool(str(cifar))
    numbers = random.Random(0)
    items = {}
    for split, found in upright.items.items():
        turned = []
        for item in found:
            turn = numbers.randrange(4)
            opener = lambda item=item, turn=turn: item.open().rotate(QUARTERS[turn])
            turned.append(Item(opener, turn, item.group))
        items[split] = turned
    return Pool(ROTATION, tuple(f"{q} degrees" for q in QUARTERS), items, flips=False)
