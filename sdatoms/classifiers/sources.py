"""Where labelled pictures come from: folders, zips of folders, `datasets` names.

A folder has one subfolder a class, or `train`, `test` and perhaps `validation` with such
subfolders each. A zip holds the same. Zips are read in place, never unpacked: no name in one can
reach the disk, and what it may inflate to is bounded.
"""

from __future__ import annotations

import importlib
import io
import stat
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from sdatoms.classifiers.pictures import Item, Pool
from sdatoms.errors import AtomError, clip, first_line
from sdatoms.pictures import read_picture
from sdatoms.storage import reach_hub

__all__ = [
    "check_classes",
    "read_pool",
]

SPLITS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
MAX_ENTRIES = 1_000_000
MAX_ENTRY_BYTES = 1 << 26
MAX_ZIP_BYTES = 1 << 34
MAX_RATIO = 200
"""Inflated bytes of a zip's entry over its packed ones; pictures are packed already."""


def read_pool(where: str) -> Pool:
    """The labelled pictures of a folder, of a zip of folders, or of a `datasets` name.

    Raises:
        AtomError: there is nothing of that name, fewer than two classes, an empty class, or a zip
            that no honest tool would write.
    """
    path = Path(where)
    if path.is_dir():
        return build_pool(path.name, list_folder(path))
    if path.is_file():
        return build_pool(path.stem, list_zip(path))
    return read_dataset(where)


Found = tuple[tuple[str, ...], Callable[[], Image.Image] | None]
"""A path by its parts, and what opens it; None for a folder."""


def list_folder(folder: Path) -> Iterable[Found]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") for part in parts):
            continue
        if path.is_dir():
            yield parts, None
        elif path.suffix.lower() in SUFFIXES:
            yield parts, lambda path=path: read_picture(path)


def list_zip(path: Path) -> Iterable[Found]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError):
        raise AtomError(f"{path.name!r} is no folder and no zip of class folders") from None
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES or sum(e.file_size for e in entries) > MAX_ZIP_BYTES:
        raise AtomError(
            f"the zip {path.name!r} inflates to more than {MAX_ENTRIES:,} files or "
            f"{MAX_ZIP_BYTES >> 30} GiB; it is not read"
        )
    for entry in entries:
        check_entry(path.name, entry)
    named = {PurePosixPath(e.filename).parts: e for e in entries if not is_hidden(e)}
    # Zips often wrap everything in one folder of the archive's own name.
    tops = {parts[0] for parts in named}
    skip = 1 if len(tops) == 1 and not tops & set(SPLITS) and max(map(len, named)) > 2 else 0
    for parts, entry in sorted(named.items()):
        if entry.is_dir():
            yield parts[skip:], None
        elif parts[-1].lower().endswith(SUFFIXES):
            yield parts[skip:], lambda entry=entry: read_entry(archive, entry)


def is_hidden(entry: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(entry.filename).parts
    return not parts or any(part.startswith(".") or part == "__MACOSX" for part in parts)


def check_entry(name: str, entry: zipfile.ZipInfo) -> None:
    parts = PurePosixPath(entry.filename.replace("\\", "/"))
    shown = f"the zip {name!r} holds {clip(entry.filename, 60)!r}"
    if parts.is_absolute() or ".." in parts.parts or ":" in entry.filename[:2]:
        raise AtomError(f"{shown}, which points outside of it; it is not read")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise AtomError(f"{shown}, a link; it is not read")
    inflated = entry.file_size > MAX_RATIO * max(entry.compress_size, 4096)
    if entry.file_size > MAX_ENTRY_BYTES or inflated:
        raise AtomError(
            f"{shown}, {entry.compress_size:,} bytes that inflate to {entry.file_size:,}; it is "
            "not read"
        )


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Image.Image:
    try:
        with archive.open(entry) as file:
            # The size in a header may lie; no more than the cap is ever inflated.
            data = file.read(MAX_ENTRY_BYTES + 1)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise AtomError(f"{clip(entry.filename, 60)!r} cannot be read: {error}") from None
    return read_picture(NamedBytes(data, entry.filename))


class NamedBytes(io.BytesIO):
    """Bytes with a name for error messages, as files have one."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = clip(name, 60)


def build_pool(name: str, found: Iterable[Found]) -> Pool:
    """Sort what was found into splits and classes.

    Raises:
        AtomError: fewer than two classes, or one without pictures.
    """
    rows = [row for row in found if row[0]]
    with_splits = any(len(parts) > 1 and parts[0] in SPLITS for parts, _ in rows)
    classes: dict[str, set[str]] = {}
    files: list[tuple[str, str, str, Callable[[], Image.Image]]] = []
    for parts, opener in rows:
        split, inner = (SPLITS.get(parts[0]), parts[1:]) if with_splits else ("train", parts)
        if split is None or not inner or (opener is not None and len(inner) < 2):
            continue
        classes.setdefault(inner[0], set())
        if opener is not None:
            classes[inner[0]].add(split)
            files.append((split, inner[0], "/".join(parts), opener))
    names = tuple(sorted(classes))
    check_classes(name, names)
    for title in names:
        if "train" not in classes[title]:
            raise AtomError(f"the class {clip(title, 60)!r} of {name!r} has no training picture")
    items: dict[str, list[Item]] = {}
    for split, title, group, opener in files:
        items.setdefault(split, []).append(Item(opener, names.index(title), group))
    return Pool(name, names, items)


def check_classes(name: str, classes: Sequence[str]) -> None:
    if len(classes) < 2:
        few = f"only the class {clip(classes[0], 60)!r}" if classes else "no class folders"
        raise AtomError(
            f"{name!r} has {few}; a classifier needs at least two folders of pictures, one a class"
        )


def read_dataset(where: str) -> Pool:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise AtomError(
            f"there is no folder, zip or built-in task {clip(where)!r}, and to look for a data set "
            "of that name the package 'datasets' has to be installed"
        ) from None
    try:
        with reach_hub(where):
            found = datasets.load_dataset(where)
    except Exception as error:  # the library raises many kinds for what it cannot find or fetch
        reason = first_line(error)
        raise AtomError(f"the data set {clip(where)!r} cannot be opened: {reason}") from None
    features = found["train"].features if "train" in found else {}
    label = next((k for k, v in features.items() if isinstance(v, datasets.ClassLabel)), None)
    image = next((k for k, v in features.items() if isinstance(v, datasets.Image)), None)
    if label is None or image is None:
        raise AtomError(
            f"the data set {clip(where)!r} has no train split with a picture and a class column"
        )
    names = tuple(features[label].names)
    check_classes(where, names)
    items = {
        SPLITS[split]: [
            Item(lambda r=rows, n=n: r[n][image].convert("RGB"), int(kind), f"{split}/{n}")
            for n, kind in enumerate(rows[label])
            if kind >= 0
        ]
        for split, rows in found.items()
        if split in SPLITS
    }
    return Pool(where, names, items)
