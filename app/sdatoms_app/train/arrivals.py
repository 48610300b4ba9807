"""What becomes of files that somebody brings: photos shrink, masks and captions find theirs.

Captions and masks are told by their names, by the functions that the trainer tells them by.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from sdatoms.pictures import SIDECARS, read_picture, save_image
from sdatoms.training.masks import match_masks

__all__ = [
    "Arrivals",
    "reduce_photo",
    "shrink_picture",
    "sort_files",
]

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
    """Captions and masks of no picture that is here, or of one that has another."""


def sort_files(paths: Sequence[Path], known: Collection[str] = ()) -> Arrivals:
    """Tell pictures, captions and masks apart, as the trainer does.

    Args:
        paths: files of any kind.
        known: stems of pictures that are here already.
    """
    texts = [path for path in paths if path.suffix.lower() in SIDECARS]
    here = [Path(f"{stem}.png") for stem in known]
    plain, masks, strays = match_masks([*here, *(path for path in paths if path not in texts)])
    stems = {path.stem.lower(): path.stem for path in plain}
    new = lambda files: [path for path in files if path not in here]
    found = Arrivals(new(plain), [], [], new(strays))
    found.masks.extend((mask, picture.stem) for picture, mask in masks.items() if new([mask]))
    for path in texts:
        named = (path.stem.lower(), Path(path.stem).stem.lower())
        if owner := next((stems[name] for name in named if name in stems), None):
            found.captions.append((path, owner))
        else:
            found.strays.append(path)
    used = {*found.pictures, *found.strays, *texts, *masks.values()}
    found.strays.extend(path for path in paths if path not in used)  # a picture's second mask
    return found


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
            target = save_image(photo, folder / path.name, quality=95, subsampling=0, **kept)
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
