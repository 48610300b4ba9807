"""What a trainer would make of pictures, said before it starts: a verdict and the crop for each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from sdatoms.diffusion.open import read_resolution
from sdatoms.errors import AtomError
from sdatoms.pictures import read_picture
from sdatoms.training.buckets import fit_picture
from sdatoms.training.encodings import cut_picture

__all__ = [
    "Verdict",
    "check_picture",
    "check_pictures",
    "find_resolution",
]

THUMBNAIL = 16
ALIKE = 3.0
"""Mean difference of two thumbnails, in grey levels, below which pictures count as one."""
EXIF_ORIENTATION = 0x0112


Kind = Literal["fine", "tiny", "duplicate", "corrupt"]


@dataclass(frozen=True)
class Verdict:
    """What is to be said of one picture."""

    path: Path
    kind: Kind
    """Corrupt ones cannot be trained on; tiny ones and duplicates can, for what they are worth."""
    text: str
    """The reason, one line."""
    size: tuple[int, int]
    """Width and height in px as stored; (0, 0) where it cannot be read."""
    crop: Image.Image | None
    """The very pixels the trainer encodes; None where it cannot be read."""
    digest: str
    """SHA-256 of the file."""


def check_pictures(paths: Sequence[Path], resolution: int) -> list[Verdict]:
    """Judge pictures in order; of two alike, the later one is the duplicate.

    Args:
        paths: files.
        resolution: side of the training pictures, px.
    """
    verdicts: list[Verdict] = []
    seen: list[tuple[np.ndarray, str]] = []
    for path in paths:
        verdict = check_picture(path, resolution)
        if verdict.crop is not None:
            small = shrink(verdict.crop)
            twin = next((n for other, n in seen if np.abs(other - small).mean() < ALIKE), None)
            if twin is not None:
                verdict = replace(verdict, kind="duplicate", text=f"looks like {twin}")
            else:
                seen.append((small, path.name))
        verdicts.append(verdict)
    return verdicts


def check_picture(path: Path, resolution: int) -> Verdict:
    """Judge one picture by itself."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    try:
        picture = read_picture(path)
        with Image.open(path) as opened:
            size = opened.size
            turned = opened.getexif().get(EXIF_ORIENTATION, 1) != 1
            clear = opened.has_transparency_data
            frames = getattr(opened, "n_frames", 1)
    except AtomError as error:
        return Verdict(path, "corrupt", str(error), (0, 0), None, digest)
    notes = [f"{size[0]}×{size[1]}"]
    notes += ["turned upright"] if turned else []
    notes += ["transparency on white"] if clear else []
    notes += [f"first of {frames} frames"] if frames > 1 else []
    kind: Kind = "fine"
    if min(picture.size) < resolution:
        kind = "tiny"
        notes.append(f"enlarged {resolution / min(picture.size):.1f} times")
    crop = cut_picture(picture, fit_picture(*picture.size, [(resolution, resolution)]))
    return Verdict(path, kind, ", ".join(notes), size, crop, digest)


def shrink(picture: Image.Image) -> np.ndarray:
    """A thumbnail `(16, 16, 3)` in grey levels."""
    small = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def find_resolution(base: str | None) -> int:
    """The side in px a local base was trained at, from its configuration; 512 where it is not
    known without opening the model."""
    return read_resolution(base)
