"""Places, painted by code at 64 px: a subject is put before them.

What tells a place (horizon, sky, sun) always stands in the same spot; the seed moves only flakes,
stars, blades, drops and bubbles. Painted at twice the size, softened and averaged.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["GROUNDED", "VARIANTS", "paint_place"]

SIDE = 128
SOFTNESS = 2.0
"""Deviation in px of the blur on a place: it lies behind the subject, out of focus."""
VARIANTS = 4
"""Pictures of one place that differ in detail."""

Colour = tuple[int, int, int]
Pen = ImageDraw.ImageDraw


@cache
def paint_place(name: str, variant: int) -> Image.Image:
    """RGBA 64 px. Callers copy it before they draw on it."""
    picture = PAINTERS[name](random.Random(f"{name} {variant % VARIANTS}"))
    picture = picture.filter(ImageFilter.GaussianBlur(SOFTNESS))
    return picture.resize((64, 64), Image.Resampling.BOX).convert("RGBA")


def shade(*stops: tuple[float, Colour]) -> Image.Image:
    """Vertical gradient through (height in [0, 1], colour)."""
    y = (np.arange(SIDE) + 0.5) / SIDE
    heights = [h for h, _ in stops]
    rows = np.stack([np.interp(y, heights, [c[k] for _, c in stops]) for k in range(3)], -1)
    return Image.fromarray(np.repeat(rows.round().astype(np.uint8)[:, None], SIDE, 1))


def fill(pen: Pen, top: float, colour: Colour, bottom: float = 1.0) -> None:
    pen.rectangle((0, top * SIDE, SIDE, bottom * SIDE), fill=colour)


def dot(pen: Pen, x: float, y: float, radius: float, colour: Colour) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def paint_beach(rng: random.Random) -> Image.Image:
    picture = shade((0, (110, 195, 250)), (0.4, (190, 230, 255)), (1, (190, 230, 255)))
    pen = ImageDraw.Draw(picture)
    dot(pen, 20, 20, 13, (255, 225, 70))
    fill(pen, 0.42, (40, 140, 215), 0.66)
    for k in range(3):
        y = 62 + 9 * k + rng.randint(-1, 1)
        pen.line((rng.randint(0, 30), y, rng.randint(70, 127), y), fill=(90, 170, 230), width=3)
    fill(pen, 0.66, (245, 220, 155))
    pen.rectangle((0, 82, SIDE, 86), fill=(255, 255, 255))
    for _ in range(6):
        dot(pen, rng.randint(0, 127), rng.randint(94, 124), 3, (234, 205, 140))
    return picture


def paint_snow(rng: random.Random) -> Image.Image:
    picture = shade((0, (150, 180, 215)), (0.6, (205, 222, 240)), (1, (205, 222, 240)))
    pen = ImageDraw.Draw(picture)
    pen.polygon(((0, 80), (34, 40), (70, 80)), fill=(140, 160, 190))
    pen.polygon(((24, 52), (34, 40), (45, 52)), fill=(255, 255, 255))
    pen.polygon(((60, 80), (98, 30), (140, 80)), fill=(125, 145, 178))
    pen.polygon(((84, 48), (98, 30), (114, 48)), fill=(255, 255, 255))
    pen.ellipse((-40, 70, 168, 190), fill=(248, 251, 255))
    for _ in range(12):
        dot(pen, rng.randint(4, 123), rng.randint(4, 84), 3, (255, 255, 255))
    return picture


def paint_grass(rng: random.Random) -> Image.Image:
    picture = shade((0, (120, 200, 255)), (0.5, (200, 235, 255)), (1, (200, 235, 255)))
    pen = ImageDraw.Draw(picture)
    for x, y in ((22, 22), (96, 16)):
        for dx, r in ((-10, 7), (0, 10), (11, 7)):
            dot(pen, x + dx, y, r, (255, 255, 255))
    fill(pen, 0.56, (105, 190, 70))
    for _ in range(14):
        x, y = rng.randint(2, 125), rng.randint(84, 126)
        pen.line((x, y, x + rng.randint(-2, 2), y - 9), fill=(78, 162, 55), width=4)
    return picture


def paint_night(rng: random.Random) -> Image.Image:
    picture = shade((0, (12, 16, 58)), (1, (44, 50, 110)))
    pen = ImageDraw.Draw(picture)
    for _ in range(11):
        dot(pen, rng.randint(3, 84), rng.randint(3, 80), 2, (225, 225, 205))
    dot(pen, 106, 20, 14, (252, 240, 180))
    dot(pen, 99, 16, 12, (16, 20, 64))
    pen.ellipse((-30, 104, 158, 180), fill=(22, 30, 60))
    return picture


def paint_desert(rng: random.Random) -> Image.Image:
    picture = shade((0, (255, 190, 95)), (0.5, (255, 226, 160)), (1, (255, 226, 160)))
    pen = ImageDraw.Draw(picture)
    dot(pen, 104, 20, 14, (255, 250, 215))
    pen.polygon(((4, 76), (34, 36), (64, 76)), fill=(205, 140, 70))
    pen.polygon(((34, 36), (64, 76), (46, 76)), fill=(165, 105, 50))
    fill(pen, 0.58, (226, 165, 85))
    pen.ellipse((-30, 84, 90, 150), fill=(236, 180, 100))
    for _ in range(5):
        x, y = rng.randint(0, 110), rng.randint(88, 122)
        pen.arc((x, y, x + 26, y + 10), 200, 340, fill=(190, 130, 60), width=2)
    return picture


def paint_under_water(rng: random.Random) -> Image.Image:
    picture = shade((0, (95, 205, 235)), (0.5, (30, 130, 200)), (1, (12, 70, 140)))
    pen = ImageDraw.Draw(picture)
    for x in (18, 58, 98):
        pen.polygon(((x, 0), (x + 14, 0), (x - 2, 70), (x - 12, 70)), fill=(70, 175, 225))
    pen.ellipse((-30, 112, 158, 160), fill=(200, 180, 120))
    for x in (6, 18, 108, 120):
        sway = rng.choice((-4, 4))
        pen.line((x, 124, x + sway, 108, x - sway, 94, x, 80), fill=(30, 130, 80), width=5)
    for _ in range(7):
        dot(pen, rng.randint(6, 122), rng.randint(6, 100), rng.choice((4, 5)), (150, 215, 240))
    return picture


def paint_space(rng: random.Random) -> Image.Image:
    picture = shade((0, (10, 4, 22)), (1, (34, 10, 56)))
    pen = ImageDraw.Draw(picture)
    for _ in range(16):
        dot(pen, rng.randint(3, 124), rng.randint(3, 124), 2, (215, 205, 235))
    dot(pen, 20, 20, 14, (225, 140, 80))
    pen.ellipse((-4, 15, 44, 25), outline=(250, 215, 150), width=3)
    dot(pen, 116, 116, 22, (90, 200, 190))
    return picture


def paint_city(rng: random.Random) -> Image.Image:
    picture = shade((0, (165, 200, 225)), (0.7, (225, 232, 238)), (1, (225, 232, 238)))
    pen = ImageDraw.Draw(picture)
    towers = ((0, 24, 30), (25, 20, 52), (46, 24, 14), (71, 18, 44), (90, 22, 22), (113, 16, 48))
    for k, (x, width, top) in enumerate(towers):
        grey = (96, 104, 122) if k % 2 else (125, 110, 108)
        pen.rectangle((x, top, x + width, 96), fill=grey)
        for wy in range(top + 6, 90, 16):
            for wx in (x + 3, x + width - 9):
                lit = rng.random() < 0.5
                light = (245, 222, 140) if lit else (78, 85, 102)
                pen.rectangle((wx, wy, wx + 6, wy + 8), fill=light)
    fill(pen, 0.75, (70, 72, 78))
    for x in range(4, 128, 32):
        pen.rectangle((x, 112, x + 16, 115), fill=(200, 200, 200))
    return picture


def paint_rain(rng: random.Random) -> Image.Image:
    picture = shade((0, (95, 108, 125)), (0.8, (150, 162, 175)), (1, (120, 130, 145)))
    pen = ImageDraw.Draw(picture)
    for x, y, r in ((10, 8, 16), (34, 4, 18), (62, 8, 17), (90, 4, 18), (116, 8, 16)):
        dot(pen, x, y, r, (62, 70, 84))
    fill(pen, 0.84, (88, 100, 118))
    for _ in range(18):
        x, y = rng.randint(4, 127), rng.randint(24, 114)
        pen.line((x, y, x - 4, y + 14), fill=(172, 202, 232), width=4)
    for _ in range(3):
        x = rng.randint(4, 100)
        pen.ellipse((x, 114, x + 22, 121), outline=(140, 160, 185), width=3)
    return picture


def paint_forest(rng: random.Random) -> Image.Image:
    picture = shade((0, (185, 220, 190)), (0.7, (140, 185, 140)), (1, (140, 185, 140)))
    pen = ImageDraw.Draw(picture)
    fill(pen, 0.74, (92, 108, 52))
    for k, x in enumerate((8, 34, 62, 90, 118)):
        tall = (0, 14)[k % 2] + rng.randint(-2, 2)
        pen.rectangle((x - 4, 72, x + 4, 100), fill=(95, 62, 35))
        green = (24, 92, 48) if k % 2 else (34, 118, 58)
        for top, half in ((6 + tall, 13), (26 + tall, 17), (46 + tall, 21)):
            pen.polygon(((x, top), (x - half, top + 34), (x + half, top + 34)), fill=green)
    return picture


def paint_sunset(rng: random.Random) -> Image.Image:
    picture = shade(
        (0, (85, 40, 120)), (0.3, (225, 80, 110)), (0.58, (255, 165, 70)), (1, (255, 165, 70))
    )
    pen = ImageDraw.Draw(picture)
    dot(pen, 64, 76, 26, (255, 232, 110))
    fill(pen, 0.6, (70, 35, 95))
    for k in range(5):
        half, y = 26 - 3 * k + rng.randint(-3, 3), 82 + 9 * k
        pen.line((64 - half, y, 64 + half, y), fill=(215, 130, 85), width=4)
    return picture


def paint_room(rng: random.Random) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), (238, 205, 190))
    pen = ImageDraw.Draw(picture)
    for x in range(0, 128, 16):
        pen.rectangle((x, 0, x + 6, 92), fill=(228, 186, 170))
    pen.rectangle((8, 10, 48, 56), fill=(255, 255, 255))
    pen.rectangle((12, 14, 44, 52), fill=(150, 210, 250))
    pen.line((28, 14, 28, 52), fill=(255, 255, 255), width=3)
    pen.line((12, 33, 44, 33), fill=(255, 255, 255), width=3)
    pen.rectangle((86, 14, 118, 42), fill=(120, 75, 40))
    pen.rectangle((90, 18, 114, 38), fill=rng.choice(((235, 245, 220), (250, 235, 200))))
    fill(pen, 0.72, (165, 105, 60))
    for y in (100, 112, 122):
        pen.line((0, y, SIDE, y), fill=(145, 92, 52), width=3)
    return picture


PAINTERS: dict[str, Callable[[random.Random], Image.Image]] = {
    "beach": paint_beach,
    "snow": paint_snow,
    "grass": paint_grass,
    "night": paint_night,
    "desert": paint_desert,
    "under water": paint_under_water,
    "space": paint_space,
    "city": paint_city,
    "rain": paint_rain,
    "forest": paint_forest,
    "sunset": paint_sunset,
    "room": paint_room,
}
GROUNDED = frozenset(PAINTERS) - {"under water", "space"}
"""Places where a subject stands on the ground instead of floating."""
