"""Which files are masks by their name, as the trainers of this field call them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "is_condition",
    "is_mask_folder",
    "match_masks",
]

SURE = re.compile(r"(?i)^(?P<stem>.+?)(?:\.mask|[-_.]masklabel)$")
"""`dog.mask.png`, ours, and `dog-masklabel.png`, OneTrainer's: always masks."""
LIKELY = re.compile(r"(?i)^(?P<stem>.+?)[-_ .]mask$")
"""`dog_mask.png`: a mask where there is a `dog` beside it, else a picture of some mask."""
FOLDER = re.compile(r"(?i)^[-_.]*masks?[-_.]*(?:labels?)?$")


CONDITION = re.compile(r"(?i)^.+[-_.]condlabel$")
"""`dog-condlabel.png`, OneTrainer's: a picture that another kind of base is conditioned on."""


def is_condition(path: Path) -> bool:
    """Whether a picture by its name is no picture to train on, but one to condition on."""
    return CONDITION.match(path.stem) is not None


def is_mask_folder(name: str) -> bool:
    """Whether a folder beside pictures holds their masks: `mask`, `masks`, `_masks`, …"""
    return FOLDER.match(name) is not None


def match_masks(
    pictures: Iterable[Path], masks: Iterable[Path] = ()
) -> tuple[list[Path], dict[Path, Path], list[Path]]:
    """Tell the pictures of one folder from the masks among them.

    Args:
        pictures: all files of the folder that open as pictures.
        masks: files of a mask folder, called as the pictures, or as masks are.

    Returns:
        The pictures; picture → mask; masks that belong to no picture.
    """
    named: dict[Path, str] = {path: path.stem for path in masks}
    plain: list[Path] = []
    for path in pictures:
        if match := SURE.match(path.stem):
            named[path] = match["stem"]
        else:
            plain.append(path)
    stems = {path.stem.lower() for path in plain}
    for path in list(plain):
        match = LIKELY.match(path.stem)
        if match and match["stem"].lower() in stems:
            named[path] = match["stem"]
            plain.remove(path)
    stems = {path.stem.lower(): path for path in plain}
    names = {path.name.lower(): path for path in plain}
    found, stray = {}, []
    for path, stem in named.items():
        tried = [path.name, stem, *(m["stem"] for p in (SURE, LIKELY) if (m := p.match(stem)))]
        picture = next(
            (p for s in tried if (p := stems.get(s.lower()) or names.get(s.lower()))), None
        )
        if picture is None:
            stray.append(path)
        else:
            found.setdefault(picture, path)
    return plain, found, stray
