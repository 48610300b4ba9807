"""Folders of pictures with what lies in them, as the trainer reads them, taken into a draft."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdatoms import AtomError
from sdatoms.errors import clip
from sdatoms.training.archives import extract_zip
from sdatoms.training.captions import Captions
from sdatoms.training.concepts import Concept, read_data_config
from sdatoms.training.folder_tree import Level, read_levels
from sdatoms.training.masks import is_condition, match_masks
from sdatoms_app.queue.queue import DESCRIPTION
from sdatoms_app.train.drafts import Draft

__all__ = [
    "add_tree",
    "add_zip",
]

MAX_BYTES = 1 << 30
"""Of a zip, unpacked."""


def add_zip(draft: Draft, path: Path) -> list[str]:
    """Take a zip's pictures into a draft; returns a line for everything that was not taken.

    Raises:
        AtomError: it cannot be read, or holds a path that leads out of it.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        passed = extract_zip(path, folder, MAX_BYTES)
        return [f"{text}: it trains nothing" for text in passed] + add_tree(draft, folder)


def add_tree(draft: Draft, folder: Path) -> list[str]:
    """Take a folder's pictures into a draft, with their captions and masks; where it has several
    folders or describes concepts, each is one. Returns a line for everything that was not taken.

    Raises:
        AtomError: its description or a table of captions cannot be read.
    """
    levels = [level for level in read_levels(folder, None) if level.pictures]
    concepts = read_concepts(folder)
    described, refused = {}, []
    rows: dict[Path, tuple[str, ...]] = {}
    for level in read_levels(folder, None):
        captions = Captions(level.path, level.others, "text")
        rows |= captions.rows
        if not level.pictures:
            continue
        concept = name_concept(level, concepts, alone=len(levels) == 1)
        given = [path for path in level.pictures if not is_condition(path)]
        plain, masks, strays = match_masks(given, level.masks)
        texts = {path: "\n".join(captions.find(path, rows.get(path, ()))) for path in plain}
        if concept:
            described.setdefault(concept.name, concept)
        refused += draft.add(
            plain,
            concept=concept.name if concept else "",
            captions={path: text for path, text in texts.items() if text},
            masks=masks,
        )
        refused += [f"{clip(path.name, 80)}: it belongs to no picture here" for path in strays]
        unread = [p for p in level.others if p not in captions.used and p.name != DESCRIPTION]
        refused += [f"{clip(path.name, 80)}: it is no picture" for path in unread]
    draft.describe([describe(concept) for concept in described.values()])
    return refused


def read_concepts(folder: Path) -> dict[Path, Concept]:
    """Folder → its concept, of a description that lies in the folder.

    Raises:
        AtomError: it cannot be read, or names places outside.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return {}
    root, found = folder.resolve(), {}
    for number, concept in enumerate(read_data_config(path)[0]):
        place = Path(concept.instance_data_dir or folder).resolve()
        if concept.dataset_name or not place.is_relative_to(root):
            raise AtomError(f"{DESCRIPTION} names pictures that do not lie beside it")
        name = concept.name or place.name or f"{number}"
        found[place] = replace(concept, name=name)
    return found


def name_concept(level: Level, concepts: dict[Path, Concept], *, alone: bool) -> Concept | None:
    """What the pictures of one folder show; None where they show what all do."""
    place = level.path.resolve()
    for parent in (place, *place.parents):
        if parent in concepts:
            return concepts[parent]
    if alone or not level.name:
        return None
    label = level.prompt or level.name
    return Concept(name=label, instance_prompt=level.prompt, repeats=level.repeats)


def describe(concept: Concept) -> dict[str, Any]:
    """What a draft keeps of a concept: nothing that names places."""
    kept = ("name", "instance_prompt", "class_prompt", "repeats", "share")
    plain = Concept()
    return {"name": concept.name} | {
        key: getattr(concept, key) for key in kept if getattr(concept, key) != getattr(plain, key)
    }
