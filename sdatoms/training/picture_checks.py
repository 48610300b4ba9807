"""What a trainer would make of single pictures, found before it starts: kind, crop, lookalikes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from sdatoms.errors import AtomError
from sdatoms.pictures import read_picture
from sdatoms.training.buckets import Cut, Size, cut_picture, fit_picture

__all__ = [
    "PictureCheck",
    "check_picture",
    "check_pictures",
    "dim_unmasked",
    "find_twins",
]

THUMBNAIL = 16
ALIKE = 3.0
"""Mean difference of two thumbnails, in grey levels, below which pictures count as one."""
EXIF_ORIENTATION = 0x0112


Kind = Literal["fine", "tiny", "duplicate", "corrupt"]


@dataclass(frozen=True)
class PictureCheck:
    """What is known of one picture before it is trained on."""

    path: Path
    kind: Kind
    """Corrupt ones cannot be trained on; tiny ones and duplicates can, for what they are worth."""
    text: str
    """The reason, one line."""
    size: tuple[int, int]
    """Width and height in px, upright; (0, 0) where it cannot be read."""
    crop: Image.Image | None
    """The very pixels the trainer encodes; None where it cannot be read or no size was asked."""
    digest: str
    """SHA-256 of the file."""
    frames: int = 1
    thumbnail: np.ndarray | None = None
    """`(16, 16, 3)` in grey levels."""
    fit: Cut | None = None
    """How the crop was cut."""


class Twin(NamedTuple):
    """A picture that came before, in other words."""

    place: int
    """The earlier picture's place in the list."""
    same_bytes: bool


def check_pictures(
    paths: Sequence[Path], resolution: int, sizes: list[Size] | None = None
) -> list[PictureCheck]:
    """Check pictures in order; of two alike, the later one is the duplicate.

    Args:
        paths: files.
        resolution: side of the training pictures, px.
        sizes: buckets that pictures are cut to; a square of that side when not given.
    """
    checks = [check_picture(path, resolution, sizes) for path in paths]
    twins = find_twins(checks)
    return [
        replace(check, kind="duplicate", text=f"looks like {paths[twin.place].name}")
        if twin
        else check
        for check, twin in zip(checks, twins, strict=True)
    ]


def check_picture(
    path: Path, resolution: int | None = None, sizes: list[Size] | None = None
) -> PictureCheck:
    """Check one picture by itself; it is tiny where it must be enlarged more than twice.

    Args:
        resolution: side of the training pictures, px; without it, nothing is tiny or cut.
        sizes: buckets that it is cut to; a square of that side when not given.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    try:
        picture = read_picture(path)
        with Image.open(path) as opened:
            stored = opened.size
            turned = opened.getexif().get(EXIF_ORIENTATION, 1) != 1
            clear = opened.has_transparency_data
            frames = getattr(opened, "n_frames", 1)
    except AtomError as error:
        return PictureCheck(path, "corrupt", str(error), (0, 0), None, digest)
    notes = [f"{stored[0]}×{stored[1]}"]
    notes += ["turned upright"] if turned else []
    notes += ["transparency on white"] if clear else []
    notes += [f"first of {frames} frames"] if frames > 1 else []
    kind: Kind = "fine"
    crop, fit, side = None, None, min(picture.size)
    if resolution:
        notes += [f"enlarged {resolution / side:.1f} times"] if side < resolution else []
        fit = fit_picture(*picture.size, sizes or [(resolution, resolution)])
        crop = cut_picture(picture, fit)
        kind = "tiny" if side < resolution // 2 else "fine"
    text, small = ", ".join(notes), shrink(picture)
    return PictureCheck(path, kind, text, picture.size, crop, digest, frames, small, fit)


def dim_unmasked(check: PictureCheck, mask: Image.Image) -> Image.Image | None:
    """The crop with what a mask leaves out made dark; None where there is no crop.

    Args:
        mask: of the whole picture, white where it counts.
    """
    if check.crop is None or check.fit is None:
        return check.crop
    counts = cut_picture(mask.convert("L"), check.fit)
    return Image.composite(check.crop, ImageEnhance.Brightness(check.crop).enhance(0.2), counts)


def shrink(picture: Image.Image) -> np.ndarray:
    """A thumbnail `(16, 16, 3)` in grey levels."""
    small = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def find_twins(checks: Iterable[PictureCheck]) -> list[Twin | None]:
    """For each picture, the first earlier one of the same bytes, or else of the same look."""
    twins: list[Twin | None] = []
    seen: list[PictureCheck] = []
    for check in checks:
        twin = next((Twin(k, True) for k, c in enumerate(seen) if c.digest == check.digest), None)
        if twin is None and check.thumbnail is not None:
            twin = next((Twin(k, False) for k, c in enumerate(seen) if look_alike(c, check)), None)
        twins.append(twin if check.thumbnail is not None else None)
        seen.append(check)
    return twins


def look_alike(a: PictureCheck, b: PictureCheck) -> bool:
    if a.thumbnail is None or b.thumbnail is None:
        return False
    return float(np.abs(a.thumbnail - b.thumbnail).mean()) < ALIKE
