"""Sizes of training pictures: one square, or a bucket near each picture's own proportions.

A picture is scaled until it covers its bucket, then the middle or another part is cut out: nothing
is distorted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from PIL import Image

from sdatoms.errors import AtomError

__all__ = [
    "Cut",
    "Size",
    "center_cut",
    "cut_picture",
    "fit_picture",
    "list_buckets",
    "move_cut",
]

STEEPEST = 2.0
"""Longest side over shortest of the automatic buckets."""


Size = tuple[int, int]
"""Height and width in px."""


class Cut(NamedTuple):
    """How one picture becomes a training picture."""

    original: Size
    scaled: Size
    corner: Size
    """Top and left of the cut, in px of the scaled picture."""
    target: Size

    @property
    def time_ids(self) -> tuple[int, ...]:
        """The six numbers SDXL is told: original size, corner of the cut, target size."""
        return (*self.original, *self.corner, *self.target)


def list_buckets(text: str | None, resolution: int, grid: int, unit: int) -> list[Size]:
    """The sizes that `--aspect_ratio_buckets` asks for; one square when it is None.

    Args:
        grid: px that the base's autoencoder and UNet halve away; sides of the automatic buckets
            are multiples of it, so that no feature map is cut, or of an eighth of the resolution
            where that is less: small bases would have no bucket but the square.
        unit: px of one latent pixel; named sides are multiples of it.

    Raises:
        AtomError: the text is no list of sizes, or a side is no multiple of the unit.
    """
    if resolution % unit:
        raise AtomError(f"--resolution is {resolution}; this base takes multiples of {unit} px")
    if text is None:
        return [(resolution, resolution)]
    if text == "auto":
        grid = max(unit, min(grid, resolution // 8 // unit * unit))
        sides = range(grid, int(resolution * math.sqrt(STEEPEST)) + 1, grid)
        pairs = {(side, resolution**2 // side // grid * grid) for side in sides}
        both = pairs | {(w, h) for h, w in pairs} | {(resolution, resolution)}
        return sorted(
            (h, w) for h, w in both if min(h, w) > 0 and max(h, w) <= STEEPEST * min(h, w)
        )
    try:
        sizes = [tuple(int(side) for side in pair.split(",")) for pair in text.split(";")]
    except ValueError:
        sizes = []
    if not sizes or any(len(size) != 2 for size in sizes):
        raise AtomError(
            f'--aspect_ratio_buckets is {text!r}; it takes "auto" or sizes such as "64,64;48,80"'
        )
    for h, w in sizes:
        if h < unit or w < unit or h % unit or w % unit:
            raise AtomError(
                f"--aspect_ratio_buckets has {h},{w}; this base takes multiples of {unit} px"
            )
    return [(h, w) for h, w in sizes]


def fit_picture(width: int, height: int, buckets: list[Size]) -> Cut:
    """The bucket of the nearest proportions, and how the picture is scaled and cut to it."""
    shape = math.log(height / width)
    target = min(buckets, key=lambda size: (abs(math.log(size[0] / size[1]) - shape), size))
    scale = max(target[0] / height, target[1] / width)
    scaled = (max(target[0], round(height * scale)), max(target[1], round(width * scale)))
    corner = ((scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2)
    return Cut((height, width), scaled, corner, target)


def move_cut(fit: Cut, across: float, down: float) -> Cut:
    """The same cut elsewhere.

    Args:
        fit: the cut in the middle.
        across: of the room there is, from 0 at the left edge to 1 at the right one.
        down: likewise, from the top.
    """
    room = (fit.scaled[0] - fit.target[0], fit.scaled[1] - fit.target[1])
    return fit._replace(corner=(round(room[0] * down), round(room[1] * across)))


def center_cut(fit: Cut, across: float, down: float) -> Cut:
    """The same cut around a point of the picture, as near as the picture's edges let it be.

    Args:
        fit: the cut in the middle.
        across: the point, from 0 at the left edge of the picture to 1 at the right one.
        down: likewise, from the top.
    """
    (h, w), (th, tw) = fit.scaled, fit.target
    top = min(max(0, round(h * down - th / 2)), h - th)
    left = min(max(0, round(w * across - tw / 2)), w - tw)
    return fit._replace(corner=(top, left))


def cut_picture(picture: Image.Image, fit: Cut) -> Image.Image:
    """Scale a picture until it covers its bucket and cut its part out."""
    (h, w), (top, left), (th, tw) = fit.scaled, fit.corner, fit.target
    scaled = picture.resize((w, h), Image.Resampling.LANCZOS)
    return scaled.crop((left, top, left + tw, top + th))
