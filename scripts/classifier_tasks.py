"""Built-in tasks: emoji by category and by vendor, CIFAR pictures by their rotation.

Emoji come from npm packages (see `bundled/evaluator_data.py`); all drawings of one concept are in
one split, so that no category is told by having seen the concept.
"""

from __future__ import annotations

import random
from pathlib import Path

from bundled.base_data import Concept, fetch_packages, load_concepts, load_pictures
from bundled.evaluator_data import VENDORS, load_collection
from classifier_data import Item, Pool
from classifier_sources import check_classes, read_pool
from PIL import Image
from torch import Tensor

from sdatoms.errors import AtomError

__all__ = ["TASKS", "read_task"]

TASKS = ("emoji-category", "emoji-vendor", "cifar-rotation")
BITMAPS = {"noto": "google", "twemoji": "twitter"}
"""Vendor → its name in the packages that hold pictures, not drawings."""
QUARTERS = (0, 90, 180, 270)


def read_task(
    name: str,
    *,
    packages: Path,
    emoji: Path,
    cifar: Path | None = None,
    vendors: tuple[str, ...] | None = None,
) -> Pool:
    """A built-in task, or what `classifier_sources.read_pool` makes of another name.

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
    """Emoji by category or by vendor; two vendors come as bitmaps and need no drawing."""
    if wanted and set(wanted) <= set(BITMAPS):
        drawn = read_bitmaps(packages, wanted)
    else:
        drawn = read_collection(packages, cache, wanted)
    categories = sorted({concept.category for _, concept, _ in drawn} - {"component"})
    vendors = [vendor for vendor in VENDORS if not wanted or vendor in wanted]
    items = []
    for vendor, concept, picture in drawn:
        if name == "emoji-category" and concept.category not in categories:
            continue  # five patches of skin colour
        known = vendors if name == "emoji-vendor" else categories
        label = known.index(vendor if name == "emoji-vendor" else concept.category)
        opener = lambda picture=picture: Image.fromarray(picture.permute(1, 2, 0).numpy())
        items.append(Item(opener, label, concept.key))
    classes = vendors if name == "emoji-vendor" else categories
    check_classes(name, classes)
    return Pool(name, tuple(classes), {"train": items})


Drawn = list[tuple[str, Concept, Tensor]]
"""Vendor, concept and picture `(3, 64, 64)` uint8."""


def read_bitmaps(packages: Path, wanted: tuple[str, ...]) -> Drawn:
    folders = fetch_packages(packages)
    concepts = {concept.key: concept for concept in load_concepts(folders, set())}
    drawn = []
    for vendor in wanted:
        keys, pictures = load_pictures(folders, BITMAPS[vendor])
        rows = zip(keys, pictures, strict=True)
        drawn += [(vendor, concepts[key], picture) for key, picture in rows if key in concepts]
    return drawn


def read_collection(packages: Path, cache: Path, wanted: tuple[str, ...] | None) -> Drawn:
    for vendor in wanted or ():
        if vendor not in VENDORS:
            raise AtomError(f"there is no vendor {vendor!r:.60}; known are {', '.join(VENDORS)}")
    collection, names = load_collection(packages, cache), list(VENDORS)
    rows = zip(collection.vendor.tolist(), collection.concept.tolist(), strict=True)
    return [
        (names[v], collection.concepts[c], collection.pictures[n])
        for n, (v, c) in enumerate(rows)
        if not wanted or names[v] in wanted
    ]


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
