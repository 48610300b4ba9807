"""Labelled pictures for fine-tuning classifiers: folders, zips of folders, `datasets` names.

A folder has one subfolder a class, or `train`, `test` and perhaps `validation` with such
subfolders each. A zip holds the same. Zips are read in place, never unpacked: no name in one can
reach the disk, and what it may inflate to is bounded.
"""

from __future__ import annotations

import io
import random
import stat
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdatoms.checkpoint import clip
from sdatoms.errors import AtomError
from sdatoms.pictures import read_picture

__all__ = [
    "Item",
    "Pool",
    "Split",
    "Task",
    "check_classes",
    "draw_task",
    "keep_test",
    "read_pool",
]

SPLITS = {"train": "train", "test": "test", "validation": "validation", "val": "validation"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
TEST_SHARE, VALIDATION_SHARE = 0.4, 0.2
MAX_ENTRIES = 1_000_000
MAX_ENTRY_BYTES = 1 << 26
MAX_ZIP_BYTES = 1 << 34
MAX_RATIO = 200
"""Inflated bytes of a zip's entry over its packed ones; pictures are packed already."""
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
    return read_bytes(data, entry.filename)


def read_bytes(data: bytes, name: str) -> Image.Image:
    class Named(io.BytesIO):
        name = clip(name, 60)

    return read_picture(Named(data))


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
        import datasets
    except ImportError:
        raise AtomError(
            f"there is no folder, zip or built-in task {clip(where)!r}, and to look for a data set "
            "of that name the package 'datasets' has to be installed"
        ) from None
    try:
        found = datasets.load_dataset(where)
    except Exception as error:  # the library raises many kinds for what it cannot find or fetch
        reason = clip(str(error).strip().partition("\n")[0] or type(error).__name__, 200)
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
        picture = item.open()
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        box = (left, top, left + side, top + side)
        small = picture.resize((size, size), Image.Resampling.LANCZOS, box=box)
        pictures[n] = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    return Split(pictures, torch.tensor([item.label for item in items]))
