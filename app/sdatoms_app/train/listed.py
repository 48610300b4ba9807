"""Folders of the server whose pictures visitors may train on, and what of them is taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdatoms.errors import clip, mark_bytes
from sdatoms.pictures import SIDECARS
from sdatoms.storage import locate
from sdatoms.training.captions import TABLES
from sdatoms_app.train.arrivals import sort_files

__all__ = [
    "drop_stray_captions",
    "list_files",
    "list_folders",
    "list_passed",
]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ALONGSIDE = (".json", ".jsonl", ".md", "")
"""Suffixes of files that lie beside pictures and are none."""


def list_folders(roots: Sequence[Path]) -> dict[str, Path]:
    """Folders with pictures at or directly below the roots an operator listed, by a name to show.

    Links and hidden folders are passed over; visitors choose among the names.
    """
    found: dict[str, Path] = {}
    for root in roots:
        root = locate(root)  # an operator may list a link
        children = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        for folder in [root, *children]:
            if folder.is_symlink() or folder.name.startswith("."):
                continue
            name = mark_bytes(root.name if folder == root else f"{root.name}/{folder.name}")
            if holds_pictures(folder):
                same = sum(other.partition(" (")[0] == name for other in found)
                found[f"{name} ({same + 1})" if same else name] = folder
    return found


def holds_pictures(folder: Path) -> bool:
    """Whether a file is called like a picture; whether it is one is checked when it is added. What
    may not be read holds none."""
    try:
        return any(p.is_file() and p.suffix.lower() in PICTURE_SUFFIXES for p in folder.iterdir())
    except OSError:
        return False


def list_files(folder: Path) -> list[Path]:
    """The pictures of a folder, with their captions and masks; links are passed over."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.is_symlink())
    files = [p for p in files if p.suffix.lower() not in ALONGSIDE and p.name[0] != "."]
    return drop_stray_captions(files)


def list_passed(folder: Path) -> list[str]:
    """What of a folder is not taken, though the trainer itself would read it."""
    seen = sorted(p for p in folder.iterdir() if p.name[0] != "." and not p.is_symlink())
    tables = [clip(p.name) for p in seen if p.is_file() and p.name.lower() in TABLES]
    below = [clip(p.name) for p in seen if p.is_dir() and holds_pictures(p)]
    found = [("tables of captions", tables), ("subfolders, which are folders of their own", below)]
    return [f"{what}: {', '.join(names[:5])}" for what, names in found if names]


def drop_stray_captions(files: Sequence[Path]) -> list[Path]:
    """The files without the texts that are no picture's caption."""
    strays = sort_files(files).strays
    return [p for p in files if p not in strays or p.suffix.lower() not in SIDECARS]
