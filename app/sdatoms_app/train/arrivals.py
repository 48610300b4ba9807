"""What becomes of files that somebody brings: photos shrink, masks and captions find theirs.

A caption is a `.txt` of its picture's name. A mask goes by its picture's name and an ending, in the
ways that trainers call them; what merely looks like one is a picture as long as nothing bears the
name before the ending.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from sdatoms.pictures import read_picture

__all__ = [
    "CAPTIONS",
    "Arrivals",
    "reduce_photo",
    "shrink_picture",
    "sort_files",
]

CAPTIONS = (".txt", ".caption")
MASKS = (".mask", "-masklabel", "_masklabel", "_mask", "-mask")
"""What follows a picture's name in its mask's."""
LEAST_SIDE = 2048
"""px of the shorter side that is kept of a larger picture: twice what is ever trained on."""
OPENED_PIXELS = 100_000_000
"""Of any picture."""
REDUCED_PIXELS = 400_000_000
"""Of a JPEG, which need not be decoded in full."""


class Arrivals(NamedTuple):
    """Files by what they are; captions and masks with the stem of the picture they belong to."""

    pictures: list[Path]
    captions: list[tuple[Path, str]]
    masks: list[tuple[Path, str]]
    strays: list[Path]
    """Captions and masks of no picture that is here."""


def sort_files(paths: Sequence[Path], known: Collection[str] = ()) -> Arrivals:
    """Tell pictures, captions and masks apart.

    Args:
        paths: files of any kind.
        known: stems of pictures that are here already.
    """
    texts = [path for path in paths if path.suffix.lower() in CAPTIONS]
    others = [path for path in paths if path not in texts]
    stems = {path.stem for path in others} | set(known)
    found = Arrivals([], [], [], [])
    for path in others:
        owner = find_owner(path.stem, stems)
        if owner:
            found.masks.append((path, owner))
        elif path.stem.lower().endswith(MASKS[0]):
            found.strays.append(path)
        else:
            found.pictures.append(path)
    pictures = {path.stem for path in found.pictures} | set(known)
    for path in texts:
        owner = next((s for s in (path.stem, Path(path.stem).stem) if s in pictures), None)
        if owner:
            found.captions.append((path, owner))
        else:
            found.strays.append(path)
    return found


def find_owner(stem: str, stems: Iterable[str]) -> str:
    """The stem of the picture that a mask of that stem is of; empty where it is no mask."""
    endings = (ending for ending in MASKS if stem.lower().endswith(ending))
    return next((s for e in endings if (s := stem[: -len(e)]) in stems), "")


def reduce_photo(path: Path, folder: Path) -> Path:
    """A JPEG of more pixels than are opened, decoded at a fraction of its size, below `folder`; any
    other file is returned as it is."""
    with path.open("rb") as file:
        if file.read(3) != b"\xff\xd8\xff":
            return path
    try:
        with JpegImageFile(path) as photo:  # Image.open refuses it before it can be told a size
            if not OPENED_PIXELS < photo.width * photo.height <= REDUCED_PIXELS:
                return path
            kept = {"exif": photo.getexif(), "icc_profile": photo.info.get("icc_profile")}
            photo.draft("RGB", (2 * LEAST_SIDE, 2 * LEAST_SIDE))
            photo.save(target := folder / path.name, quality=95, subsampling=0, **kept)
    except Exception:  # Pillow raises many kinds for what is no picture; who opens it will say so
        return path
    return target


def shrink_picture(path: Path) -> Image.Image | None:
    """A picture that is larger than any training needs, made smaller; None where it is not.

    Raises:
        AtomError: it cannot be read.
    """
    with Image.open(path) as opened:
        if min(opened.size) <= LEAST_SIDE:
            return None
    picture = read_picture(path)
    share = LEAST_SIDE / min(picture.size)
    size = (round(picture.width * share), round(picture.height * share))
    return picture.resize(size, Image.Resampling.LANCZOS)
