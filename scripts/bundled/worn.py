"""What a subject may wear, painted by code and placed by the subject's own outline.

Hats sit on the top of the outline, glasses on its upper third, a scarf on its lower part: all from
the alpha channel alone, so that a guitar can wear a hat too. Each thing is painted once, at 128 px
inside its own box, and shrunk to the width it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["put_on"]

SIDE = 128
Pen = ImageDraw.ImageDraw


@dataclass(frozen=True)
class Garment:
    """How one thing looks and where it sits; fractions of the outline's height and width."""

    paint: Callable[[Pen], None]
    """Draws into a box of `SIDE` by `SIDE * ratio`, at twice the size."""
    ratio: float
    """Height of the thing over its width."""
    row: float
    """Where it sits on the outline, 0 at the top, 1 at the bottom."""
    hold: float
    """The part of the thing that sits there: 0 its top edge, 1 its bottom edge."""
    wide: float
    """Its width over the outline's own width about there."""
    least: float = 0.5
    """Its least width over the outline's greatest width."""
    aside: float = 0.0
    """How far it sits to the right of the middle, over its own width."""


def put_on(canvas: Image.Image, subject: Image.Image, x: int, y: int, name: str) -> None:
    """Draw a worn thing onto `canvas`, where `subject` (RGBA) was pasted at `(x, y)`; in place."""
    garment = GARMENTS[name]
    solid = np.asarray(subject)[..., 3] > 100
    rows = np.flatnonzero(solid.any(1))
    if not len(rows):
        return
    everywhere = np.flatnonzero(solid.any(0))
    full = int(everywhere[-1] - everywhere[0] + 1)
    # Of a tall thing the head is looked for: about as high as the thing is wide.
    top, height = int(rows[0]), min(int(rows[-1] - rows[0] + 1), round(1.25 * full))
    band = solid[top + int(max(garment.row - 0.06, 0.04) * height) :][: max(3, height // 6)]
    columns = np.flatnonzero(band.any(0)) if band.any() else everywhere
    width = max(garment.wide * (columns[-1] - columns[0] + 1), garment.least * full)
    width = int(min(max(width, 16), 46))
    thing = shrink_garment(name, width)
    middle = (columns[0] + columns[-1] + 1) / 2 + garment.aside * width
    left = round(x + middle - width / 2)
    upper = round(y + top + garment.row * height - garment.hold * thing.height)
    left = min(max(left, 0), canvas.width - width)
    upper = min(max(upper, 0), canvas.height - thing.height)
    canvas.alpha_composite(thing, (left, upper))


@cache
def shrink_garment(name: str, width: int) -> Image.Image:
    garment = GARMENTS[name]
    big = Image.new("RGBA", (2 * SIDE, round(2 * SIDE * garment.ratio)))
    garment.paint(ImageDraw.Draw(big))
    height = max(3, round(width * garment.ratio))
    return big.resize(
        (width, height), Image.Resampling.BOX if width > 40 else Image.Resampling.LANCZOS
    )


def paint_top_hat(pen: Pen) -> None:
    pen.rounded_rectangle((50, 4, 206, 190), 14, fill=(30, 30, 36, 255))
    pen.rectangle((50, 130, 206, 168), fill=(200, 30, 45, 255))
    pen.rounded_rectangle((2, 166, 254, 212), 20, fill=(30, 30, 36, 255))


def paint_party_hat(pen: Pen) -> None:
    pen.polygon(((128, 30), (30, 284), (226, 284)), fill=(245, 70, 160, 255))
    pen.polygon(((104, 92), (152, 92), (171, 142), (85, 142)), fill=(255, 220, 60, 255))
    pen.polygon(((66, 192), (190, 192), (209, 242), (47, 242)), fill=(60, 190, 240, 255))
    pen.ellipse((96, 0, 160, 62), fill=(255, 235, 90, 255))


def paint_santa_hat(pen: Pen) -> None:
    pen.polygon(((24, 176), (78, 60), (150, 8), (214, 34), (240, 110)), fill=(215, 25, 35, 255))
    pen.polygon(((24, 176), (232, 176), (150, 8)), fill=(215, 25, 35, 255))
    pen.rounded_rectangle(
        (6, 158, 250, 218), 28, fill=(255, 255, 255, 255), outline=(200, 205, 215, 255), width=5
    )
    pen.ellipse(
        (196, 84, 256, 144), fill=(255, 255, 255, 255), outline=(200, 205, 215, 255), width=5
    )


def paint_straw_hat(pen: Pen) -> None:
    pen.pieslice((56, 4, 200, 190), 180, 360, fill=(240, 205, 110, 255))
    pen.rectangle((56, 94, 200, 118), fill=(60, 130, 70, 255))
    pen.ellipse((0, 100, 256, 152), fill=(240, 205, 110, 255), outline=(190, 145, 60, 255), width=6)
    pen.rectangle((58, 88, 198, 114), fill=(60, 130, 70, 255))


def paint_graduation_cap(pen: Pen) -> None:
    pen.polygon(((64, 76), (192, 76), (192, 148), (64, 148)), fill=(38, 42, 66, 255))
    pen.polygon(((128, 4), (254, 66), (128, 126), (2, 66)), fill=(58, 64, 98, 255))
    pen.line((128, 66, 222, 86, 222, 132), fill=(250, 200, 40, 255), width=11)
    pen.ellipse((206, 122, 238, 158), fill=(250, 200, 40, 255))


def paint_cap(pen: Pen) -> None:
    pen.pieslice((20, 8, 196, 220), 180, 360, fill=(35, 110, 225, 255))
    pen.rectangle((20, 112, 196, 138), fill=(35, 110, 225, 255))
    pen.pieslice((120, 100, 256, 170), 180, 360, fill=(15, 65, 160, 255))
    pen.rectangle((20, 118, 254, 140), fill=(15, 65, 160, 255))
    pen.ellipse((94, 0, 122, 24), fill=(15, 65, 160, 255))


def paint_bow(pen: Pen) -> None:
    for corners in (((124, 82), (8, 8), (8, 156)), ((132, 82), (248, 8), (248, 156))):
        pen.polygon(corners, fill=(255, 90, 165, 255), outline=(190, 35, 105, 255), width=8)
    pen.rounded_rectangle((98, 50, 158, 114), 20, fill=(225, 45, 125, 255))


def paint_sunglasses(pen: Pen) -> None:
    for left in (6, 138):
        pen.rounded_rectangle((left, 8, left + 112, 96), 36, fill=(18, 18, 24, 255))
        pen.line((left + 24, 62, left + 58, 26), fill=(150, 165, 195, 255), width=13)
    pen.rectangle((2, 10, 254, 32), fill=(18, 18, 24, 255))


def paint_scarf(pen: Pen) -> None:
    pen.rounded_rectangle((2, 2, 254, 78), 34, fill=(225, 45, 50, 255))
    pen.polygon(((150, 60), (222, 60), (232, 158), (160, 158)), fill=(225, 45, 50, 255))
    for left in (40, 92, 196):
        pen.polygon(
            ((left, 3), (left + 22, 3), (left + 16, 77), (left - 6, 77)), fill=(255, 245, 235, 255)
        )
    for y in (92, 126):
        pen.rectangle((156, y, 228, y + 16), fill=(255, 245, 235, 255))


def paint_headphones(pen: Pen) -> None:
    pen.arc((22, 4, 234, 250), 180, 360, fill=(45, 48, 58, 255), width=26)
    for left in (0, 204):
        pen.rounded_rectangle((left, 100, left + 52, 196), 22, fill=(0, 195, 175, 255))
        pen.rounded_rectangle((left + 14, 112, left + 38, 184), 12, fill=(45, 48, 58, 255))


GARMENTS = {
    "top hat": Garment(paint_top_hat, 0.84, 0.12, 1.0, 0.8, 0.6),
    "party hat": Garment(paint_party_hat, 1.12, 0.12, 1.0, 0.6, 0.5),
    "santa hat": Garment(paint_santa_hat, 0.86, 0.16, 1.0, 0.85, 0.65),
    "straw hat": Garment(paint_straw_hat, 0.6, 0.16, 0.9, 1.1, 0.75),
    "graduation cap": Garment(paint_graduation_cap, 0.63, 0.12, 0.95, 0.95, 0.7),
    "cap": Garment(paint_cap, 0.56, 0.16, 0.95, 0.9, 0.65, 0.08),
    "bow": Garment(paint_bow, 0.65, 0.06, 0.75, 0.7, 0.6),
    "sunglasses": Garment(paint_sunglasses, 0.4, 0.4, 0.5, 0.75, 0.6),
    "scarf": Garment(paint_scarf, 0.64, 0.74, 0.2, 0.95, 0.6),
    "headphones": Garment(paint_headphones, 0.78, 0.02, 0.22, 1.08, 0.9),
}
