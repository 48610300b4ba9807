"""Pictures of the class that prior preservation keeps: given, or painted with the base."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdatoms.diffusion.pipeline import paint
from sdatoms.errors import AtomError
from sdatoms.pictures import PICTURE_SUFFIXES, save_image
from sdatoms.training.folder import check_folder
from sdatoms.training.folder_tree import list_folders

__all__ = [
    "check_classes",
    "find_class_folder",
    "find_other_class",
    "make_class_pictures",
]

SEEDS = 1 << 64
"""Of a generator."""
PROMPT = "prompt"
"""Key of a class picture's own prompt in its PNG."""


def make_class_pictures(
    pipe: Any,
    folder: Path,
    prompt: str,
    count: int,
    *,
    seed: int,
    batch_size: int,
    log: Callable[[str], None],
    report: Callable[[], None] = lambda: None,
) -> int:
    """Paint class pictures with the base until `folder` holds `count`; returns how many were
    painted."""
    folder.mkdir(parents=True, exist_ok=True)
    present = {p.name for p in list_class_pictures(folder)}
    missing = count - len(present)
    if missing <= 0:
        return 0
    log(f"generating {missing} class pictures of {prompt!r}")
    free = (k for k in itertools.count(seed * 100_003) if name_class_picture(k) not in present)
    seeds = list(itertools.islice(free, missing))
    facts = PngInfo()
    facts.add_itxt(PROMPT, prompt)
    for start in range(0, missing, batch_size):
        report()
        part = seeds[start : start + batch_size]
        pictures = paint(
            pipe,
            [prompt] * len(part),
            [number % SEEDS for number in part],
            batch_size=batch_size,
            callback=lambda *_: report(),
        )
        for number, picture in zip(part, pictures, strict=True):
            save_image(picture, folder / name_class_picture(number), pnginfo=facts)
    return missing


def list_class_pictures(folder: Path) -> list[Path]:
    """Files called like pictures, in the folder and its subfolders."""
    files = [path for place in list_folders(folder) for path in place.iterdir()]
    return [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]


def name_class_picture(number: int) -> str:
    return f"class-{number:09d}.png"


def find_other_class(folder: Path, prompt: str) -> str | None:
    """The prompt of class pictures painted here for another class; None where there is none."""
    for path in sorted(folder.glob("class-*.png")):
        with Image.open(path) as picture:
            found = picture.info.get(PROMPT)
        if isinstance(found, str) and found != prompt:
            return found
    return None


def find_class_folder(class_data_dir: str | None, output_dir: str) -> Path:
    """Where class pictures are, and missing ones are painted."""
    return Path(class_data_dir or Path(output_dir) / "class_images")


def check_classes(folder: Path, prompt: str) -> None:
    """Refuse class pictures that cannot be used, or that an earlier run painted for another class.

    Raises:
        AtomError: names the pictures, or the class they show.
    """
    if not folder.is_dir() or not any(not p.name.startswith(".") for p in folder.iterdir()):
        return
    check_folder(folder, prompt)
    if other := find_other_class(folder, prompt):
        raise AtomError(
            f"the class pictures in {str(folder)!r} were generated for {other!r}, not {prompt!r}; "
            "name another --class_data_dir, or delete them"
        )
