"""The folders of a folder of pictures: which are read, and what their names say."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdatoms.errors import AtomError, clip
from sdatoms.pictures import list_pictures
from sdatoms.storage import locate
from sdatoms.training.masks import is_mask_folder

__all__ = [
    "Level",
    "list_folders",
    "read_levels",
    "share_repeats",
]

MAX_ROWS = 1_000_000
"""Pictures of a round, each as often as it comes."""
REPEATED = re.compile(r"^(\d{1,5})_(.+)$")
"""kohya's folder: how often its pictures come, and their prompt."""
RUN_FILES = ("metrics.jsonl", "status.json")


@dataclass(frozen=True)
class Level:
    """One folder of the tree."""

    path: Path
    name: str
    """Its path within the whole, empty for the whole itself."""
    pictures: list[Path]
    """Files that open as pictures, masks among them."""
    others: list[Path]
    masks: list[Path]
    """Of mask folders beside the pictures, or of the mask folder that was named."""
    named: bool
    """Whether a mask folder was named, so that masks beside the pictures do not count."""
    repeats: int
    """How often its pictures come in a round."""
    prompt: str
    """What its name says of its pictures, empty where it says nothing."""


def list_folders(folder: Path, skipped: list[str] | None = None) -> Iterator[Path]:
    """The folder and those below it that hold pictures to train on: no hidden folders, mask
    folders, links or run directories.

    Args:
        skipped: takes the names of links and run directories, and what they are.
    """
    yield folder
    if not folder.is_dir():
        return
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if is_mask_folder(path.name):
            continue
        is_run = any((path / name).exists() for name in RUN_FILES)
        if not path.is_symlink() and not is_run:
            yield from list_folders(path, skipped)
        elif skipped is not None:
            kind = "a link" if path.is_symlink() else "a run directory"
            skipped.append(f"{clip(path.name)}, {kind}")


def read_levels(
    folder: Path, mask_dir: Path | None, skipped: list[str] | None = None
) -> list[Level]:
    """The folder and what is read of its subfolders, first the folder itself.

    Raises:
        AtomError: there is no such folder.
    """
    levels = []
    for path in list_folders(folder, skipped):
        if mask_dir and locate(path) == locate(mask_dir):
            continue
        pictures, others = list_pictures(path)
        masks = [p for place in list_mask_folders(path, mask_dir) for p in list_pictures(place)[0]]
        inside = path.relative_to(folder)
        name = clip(inside.as_posix()) if inside.parts else ""
        repeats = split_repeats(inside)
        levels.append(Level(path, name, pictures, others, masks, mask_dir is not None, *repeats))
    return levels


def list_mask_folders(path: Path, mask_dir: Path | None) -> list[Path]:
    if mask_dir:
        return [mask_dir]
    return [p for p in sorted(path.iterdir()) if p.is_dir() and is_mask_folder(p.name)]


def split_repeats(inside: Path) -> tuple[int, str]:
    """`10_sks dog` → 10 and "sks dog"; once, and no prompt, where the name does not say."""
    for name in reversed(inside.parts):
        if match := REPEATED.match(name):
            return max(1, int(match[1])), clip(match[2].replace("_", " ").strip())
    return 1, ""


def share_repeats(repeats: Sequence[int]) -> list[int]:
    """Repeats relative to each other: ten times all is once all.

    Raises:
        AtomError: a round would hold more pictures than any training takes.
    """
    common = math.gcd(*repeats) or 1
    shared = [count // common for count in repeats]
    if sum(shared) > MAX_ROWS:
        raise AtomError(f"repeats ask for {sum(shared)} pictures a round; at most {MAX_ROWS} fit")
    return shared
