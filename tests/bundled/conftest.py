"""`scripts/` on the path, as `python scripts/x.py` has it, and a gallery of things drawn here."""

import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from bundled.base_data import Concept
from bundled.gallery import Gallery, find_kinds, find_unseen


def draw_thing(kind: int) -> Image.Image:
    picture = Image.new("RGBA", (64, 64))
    pen = ImageDraw.Draw(picture)
    if kind == 0:
        pen.ellipse((4, 4, 60, 60), fill=(90, 200, 210))
        pen.ellipse((18, 18, 26, 28), fill=(40, 30, 20))
        pen.ellipse((38, 18, 46, 28), fill=(40, 30, 20))
        pen.rectangle((6, 46, 56, 58), fill=(180, 60, 40))
    if kind == 1:
        pen.polygon(((32, 2), (2, 60), (62, 60)), fill=(120, 60, 200))
        pen.rectangle((20, 40, 44, 60), fill=(250, 220, 90))
    if kind == 2:
        pen.rectangle((10, 4, 54, 30), fill=(60, 160, 70))
        pen.rectangle((26, 30, 38, 62), fill=(120, 80, 30))
    return picture


@pytest.fixture(scope="session")
def gallery():
    """A face, a tent and a tree."""
    names = ("cat face", "tent", "tree")
    concepts = tuple(
        Concept(str(i), name, (name,), ("thing",), "objects", False) for i, name in enumerate(names)
    )
    pictures = tuple(draw_thing(i) for i in range(3))
    kinds = tuple(find_kinds(c, p) for c, p in zip(concepts, pictures, strict=True))
    return Gallery(concepts, pictures, kinds, tuple(find_unseen(p) for p in pictures))
