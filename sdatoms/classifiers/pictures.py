"""Labelled pictures for fine-tuning classifiers: which are drawn for which use, decoded."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdatoms.errors import AtomError
from sdatoms.pictures import cut_square

__all__ = [
    "Item",
    "Pool",
    "Split",
    "Task",
    "draw_task",
    "keep_test",
]

TEST_SHARE, VALIDATION_SHARE = 0.4, 0.2
MAX_HELD_BYTES = 1 << 32
"""Pixels are held in memory, decoded; beyond this they are refused."""


@dataclass(frozen=True)
class Item:
    """One labelled picture, not yet decoded."""

    open: Callable[[], Image.Image]
    label: int
    group: str
    """Pictures of one group, such as one concept drawn by several hands, share a split."""


@dataclass(frozen=True)
class Pool:
    """All there is: classes, and items by split; without `test`, one is drawn from `train`."""

    name: str
    classes: tuple[str, ...]
    items: dict[str, list[Item]]
    flips: bool = True
    """Whether a mirrored picture has the same class."""


@dataclass(frozen=True)
class Split:
    """Pictures `(n, 3, size, size)` uint8 and labels `(n,)`."""

    pictures: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def join(self, other: Split) -> Split:
        return Split(
            torch.cat([self.pictures, other.pictures]), torch.cat([self.labels, other.labels])
        )


@dataclass(frozen=True)
class Task:
    """Decoded pictures to train on, to choose by, and to test on once."""

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    flips: bool = True


def draw_task(
    pool: Pool,
    size: int,
    *,
    num_train: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
) -> Task:
    """Draw splits and decode them at `size` px.

    Where the pool has no test split, two fifths of the groups of every class are kept for it. A
    fifth of the training pictures is kept to choose by: `num_train=1000` is VTAB-1k's protocol of
    800 pictures to train on, 200 to choose by and 1,000 for the final run.

    Args:
        num_train: training and validation pictures together, drawn evenly at random; None for all.
        num_test: likewise of the test pictures.
        seed: of all draws.

    Raises:
        AtomError: too few pictures for three splits, or more than memory should hold.
    """
    numbers = random.Random(seed)
    pool = keep_test(pool, seed)
    train, test = (numbers.sample(pool.items[s], len(pool.items[s])) for s in ("train", "test"))
    validation = pool.items.get("validation")
    if num_train is not None:
        train = train[:num_train]
    if validation is None:
        train, validation = part(train, VALIDATION_SHARE, len(pool.classes), numbers)
    elif num_train is not None:
        validation = numbers.sample(validation, len(validation))[: max(1, num_train // 4)]
    test = test[:num_test] if num_test else test
    for items, title in ((train, "train on"), (validation, "choose by"), (test, "test on")):
        if not items:
            raise AtomError(f"{pool.name!r} has too few pictures: none is left to {title}")
    held = (len(train) + len(validation) + len(test)) * 3 * size * size
    if held > MAX_HELD_BYTES:
        raise AtomError(
            f"{pool.name!r} would hold {held / 1e9:.1f} GB of pixels in memory, where "
            f"{MAX_HELD_BYTES / 1e9:.1f} GB are allowed; lower --num_train, --num_test or "
            "--resolution"
        )
    splits = (decode(items, size) for items in (train, validation, test))
    return Task(pool.name, pool.classes, *splits, flips=pool.flips)


def keep_test(pool: Pool, seed: int = 0) -> Pool:
    """The pool with a test split: its own, or one drawn from the training pictures by `seed`."""
    if "test" in pool.items:
        return pool
    kept, test = part(pool.items["train"], TEST_SHARE, len(pool.classes), random.Random(seed))
    return replace(pool, items={**pool.items, "train": kept, "test": test})


def part(
    items: list[Item], share: float, classes: int, numbers: random.Random
) -> tuple[list[Item], list[Item]]:
    """Split by groups, class by class: what stays, and about `share` of it (at least one group a
    class that has two)."""
    taken: set[str] = set()
    for label in range(classes):
        groups = list(dict.fromkeys(item.group for item in items if item.label == label))
        have = sum(group in taken for group in groups)
        want = min(max(1, round(share * len(groups))), len(groups) - 1) - have
        fresh = [group for group in groups if group not in taken]
        taken.update(numbers.sample(fresh, max(0, min(want, len(fresh)))))
    kept = [item for item in items if item.group not in taken]
    return kept, [item for item in items if item.group in taken]


def decode(items: Sequence[Item], size: int) -> Split:
    """The middle square of every picture at `size` px."""
    pictures = torch.empty(len(items), 3, size, size, dtype=torch.uint8)
    for n, item in enumerate(items):
        small = cut_square(item.open(), size, Image.Resampling.LANCZOS)
        pictures[n] = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    return Split(pictures, torch.tensor([item.label for item in items]))
