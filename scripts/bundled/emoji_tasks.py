"""Classifiers' tasks of emoji: by category and by vendor.

Emoji come from npm packages (see `bundled.evaluator_data`); all drawings of one concept are in one
split, so that no category is told by having seen the concept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from bundled.base_data import Concept, fetch_packages, load_concepts, load_pictures
from bundled.evaluator_data import VENDORS, load_collection
from sdatoms.classifiers.pictures import Item, Pool
from sdatoms.classifiers.sources import check_classes
from sdatoms.errors import AtomError

__all__ = ["EMOJI", "EMOJI_TASKS", "PACKAGES", "list_emoji_tasks", "read_emoji"]

RUNS = Path(__file__).parents[2] / "runs"
PACKAGES, EMOJI = RUNS / "base" / "packages", RUNS / "evaluator" / "pictures.pt"
"""Where npm packages and drawn emoji are kept unless told otherwise."""
EMOJI_TASKS = ("emoji-category", "emoji-vendor")
BITMAPS = {"noto": "google", "twemoji": "twitter"}
"""Vendor → its name in the packages that hold pictures, not drawings."""


def list_emoji_tasks(
    packages: Path, cache: Path, vendors: Sequence[str] | None = None
) -> dict[str, Callable[[], Pool]]:
    """Task → what reads it; nothing is fetched or drawn before that.

    Args:
        packages: folder of npm packages, fetched as needed.
        cache: where the drawn emoji are kept, made as needed.
        vendors: emoji of these alone; None or none for all.
    """
    wanted = tuple(vendors or ())
    return {name: partial(read_emoji, name, packages, cache, wanted) for name in EMOJI_TASKS}


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
