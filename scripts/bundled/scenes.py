"""Render scenes: a subject's picture and a specification give the one true 64 px picture of both.

The layout follows from the specification alone; `seed` moves only the details of the place. So the
true picture of any sentence about any subject is known, also of a subject that no model has seen.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image

from bundled.modifiers import Scene
from bundled.places import GROUNDED, VARIANTS, paint_place
from bundled.styles import restyle
from bundled.worn import put_on

__all__ = ["recolour", "render"]

SIDE = 64
TINTS = {
    "red": (0, 0.88, 0.9),
    "orange": (28, 0.92, 1.0),
    "yellow": (52, 0.88, 1.0),
    "green": (122, 0.72, 0.72),
    "blue": (218, 0.82, 0.95),
    "purple": (278, 0.68, 0.8),
    "pink": (328, 0.48, 1.0),
    "brown": (24, 0.7, 0.52),
}
"""Colour → hue (degrees), saturation, value."""
FLAT = {
    name: tuple(round(255 * c) for c in colorsys.hsv_to_rgb(h / 360, 0.8 * s, v))
    for name, (h, s, v) in TINTS.items()
} | {"black": (22, 22, 24), "gray": (150, 150, 152)}
PLAIN, FRAMED, PLACED, CROWNED, PAIRED = 64, 54, 48, 44, 31
"""Sides of a subject: alone on white, on a colour, in a place, under a hat, beside another."""
TINY, BIG = 22, 88
SPOTS = {
    2: ((1, 17), (32, 17)),
    3: ((17, 1), (1, 32), (32, 32)),
    4: ((1, 1), (32, 1), (1, 32), (32, 32)),
}
RELATED = {
    "next to": ((1, 17), (32, 17)),
    "above": ((17, 1), (17, 32)),
    "below": ((17, 32), (17, 1)),
}
"""Corners of the subject and of the second thing."""


def render(
    subject: Image.Image, scene: Scene, seed: int = 0, second: Image.Image | None = None
) -> Image.Image:
    """Draw `subject` (RGBA, square) under `scene` as RGB of 64 px.

    Args:
        seed: moves details of the place; equal seeds give equal pictures.
        second: picture (RGBA) of the scene's second thing, where it names one.
    """
    if (scene.relation is None) != (second is None):
        raise ValueError(f"relation {scene.relation!r} and second picture: both or neither")
    if scene.colour:
        subject = recolour(subject, scene.colour)
    if scene.turned:
        subject = subject.transpose(Image.Transpose.ROTATE_180)
    canvas = prepare_canvas(scene, seed)
    figure = Image.new("L", canvas.size)
    spots = place_subjects(scene)
    for x, y, side in spots:
        stamp(canvas, figure, subject, x, y, side)
    if scene.worn:
        x, y, side = spots[0]
        put_on(canvas, shrink(subject, side), x, y, scene.worn)
    if second is not None:
        x, y = RELATED[scene.relation][1]
        stamp(canvas, figure, second, x, y + drop(scene), PAIRED)
    picture = canvas.convert("RGB")
    return restyle(picture, figure, scene.style) if scene.style else picture


def prepare_canvas(scene: Scene, seed: int) -> Image.Image:
    if scene.place:
        return paint_place(scene.place, seed % VARIANTS).copy()
    return Image.new("RGBA", (SIDE, SIDE), FLAT.get(scene.background, (255, 255, 255)))


def place_subjects(scene: Scene) -> Sequence[tuple[int, int, int]]:
    """Corner (x, y) and side in px of every copy of the subject."""
    if scene.number:
        return [(x, y + drop(scene), PAIRED) for x, y in SPOTS[scene.number]]
    if scene.relation:
        x, y = RELATED[scene.relation][0]
        return [(x, y + drop(scene), PAIRED)]
    side = PLACED if scene.place else FRAMED if scene.background else PLAIN
    if scene.worn:
        side = CROWNED
    if scene.size:
        side = TINY if scene.size == "tiny" else BIG
    x = (SIDE - side) // 2
    stands = scene.place in GROUNDED or scene.worn
    y = SIDE - side - 1 if stands and side < SIDE else x
    return [(x, y - 6 if stands and scene.size == "tiny" else y, side)]


def drop(scene: Scene) -> int:
    """How far a row of two moves down to stand on the ground."""
    in_row = scene.number == 2 or scene.relation == "next to"
    return 13 if in_row and scene.place in GROUNDED else 0


def stamp(
    canvas: Image.Image, figure: Image.Image, thing: Image.Image, x: int, y: int, side: int
) -> None:
    """Paste `thing` at a side in px onto the canvas and into the figure's mask, in place."""
    thing = shrink(thing, side)
    if x < 0 or y < 0:
        thing, x, y = thing.crop((-x, -y, SIDE - x, SIDE - y)), 0, 0
    canvas.alpha_composite(thing, (x, y))
    alpha = thing.getchannel("A")
    figure.paste(255, (x, y), alpha)


def shrink(thing: Image.Image, side: int) -> Image.Image:
    if thing.size == (side, side):
        return thing
    return thing.resize((side, side), Image.Resampling.BILINEAR)


def recolour(picture: Image.Image, name: str) -> Image.Image:
    """Dye an RGBA picture: its lights and darks stay, its hues become one."""
    h, s, v = TINTS[name]
    dye = np.array(colorsys.hsv_to_rgb(h / 360, s, v), np.float32)
    x = np.asarray(picture, np.float32) / 255
    light = x[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    solid = light[x[..., 3] > 0.5]
    middle = float(np.median(solid)) if len(solid) else 0.5
    t = np.clip(light / max(0.35, middle), 0, 2)[..., None]
    dyed = np.where(t < 1, dye * (0.15 + 0.85 * t), dye + (1 - dye) * (t - 1) * 0.8)
    x = np.concatenate([dyed.clip(0, 1), x[..., 3:]], -1)
    return Image.fromarray((x * 255).astype(np.uint8), "RGBA")
