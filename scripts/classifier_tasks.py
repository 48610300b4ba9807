"""Built-in tasks: emoji by category and by vendor, CIFAR pictures by their rotation.

Emoji come from npm packages (see `evaluator_data.py`); all drawings of one concept are in one
split, so that no category is told by having seen the concept.
"""

from __future__ import annotations

import random
from pathlib import Path

from classifier_data import Item, Pool, read_pool
from PIL import Image

from sdatoms.errors import AtomError

__all__ = ["TASKS", "read_task"]

TASKS = ("emoji-category", "emoji-vendor", "cifar-rotation")
QUARTERS = (0, 90, 180, 270)


def read_task(
    name: str,
    *,
    packages: Path,
    emoji: Path,
    cifar: Path | None = None,
    vendors: tuple[str, ...] | None = None,
) -> Pool:
    """A built-in task, or what `classifier_data.read_pool` makes of another name.

    Args:
        packages: folder of npm packages, fetched as needed.
        emoji: where the drawn emoji are kept, made as needed.
        cifar: folder or zip with `train` and `test` folders of upright pictures.
        vendors: emoji of these alone; None for all.

    Raises:
        AtomError: as `read_pool`; or the rotation task has no pictures.
    """
    if name.startswith("emoji-") and name in TASKS:
        return read_emoji(name, packages, emoji, vendors)
    if name == "cifar-rotation":
        if cifar is None:
            raise AtomError("the task 'cifar-rotation' needs --cifar, a folder or zip of pictures")
        return read_rotations(cifar)
    return read_pool(name)


def read_emoji(
    name: str, packages: Path, cache: Path, wanted: tuple[str, ...] | None = None
) -> Pool:
    from evaluator_data import VENDORS, load_collection

    collection = load_collection(packages, cache)
    vendors, concepts = list(VENDORS), collection.concepts
    categories = sorted({concept.category for concept in concepts})
    labels = [categories.index(concept.category) for concept in concepts]
    items = []
    rows = zip(collection.vendor.tolist(), collection.concept.tolist(), strict=True)
    for n, (v, c) in enumerate(rows):
        if wanted and vendors[v] not in wanted:
            continue
        opener = lambda n=n: Image.fromarray(collection.pictures[n].permute(1, 2, 0).numpy())
        label = v if name == "emoji-vendor" else labels[c]
        items.append(Item(opener, label, concepts[c].key))
    classes = vendors if name == "emoji-vendor" else categories
    return Pool(name, tuple(classes), {"train": items})


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
    return Pool("cifar-rotation", tuple(f"{q} degrees" for q in QUARTERS), items, flips=False)
