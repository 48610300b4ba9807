"""Masks drawn on the page, and crops that show what of a picture counts."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image

from sdatoms import AtomError
from sdatoms.pictures import read_alpha, read_picture
from sdatoms.training.picture_checks import PictureCheck, dim_unmasked
from sdatoms_app.train.drafts import Picture

__all__ = [
    "cut_shown",
    "read_drawn",
    "show_editor",
]

PAINT, COVER = (255, 64, 64), 153
"""Colour and opacity of a mask on its picture."""
PAINTED = 20
"""Opacity above which a pixel was painted."""
SIDE = 768
"""px of the longer side of a picture that is drawn on."""


def cut_shown(picture: Picture, check: PictureCheck, clear: bool) -> Image.Image | None:
    """A picture's crop, dark where it does not count.

    Args:
        clear: whether a picture without a mask is masked by its own opacity.
    """
    try:
        mask = read_picture(picture.mask) if picture.mask else None
        if mask is None and clear:
            mask = read_alpha(picture.path)
    except AtomError:
        return check.crop
    return dim_unmasked(check, mask) if mask else check.crop


def show_editor(picture: Picture) -> Any:
    """The editor with a picture in it, and its mask as a layer."""
    shown = read_picture(picture.path)
    shown.thumbnail((SIDE, SIDE))
    layers = []
    if picture.mask:
        mask = read_picture(picture.mask).convert("L").resize(shown.size)
        layer = Image.new("RGBA", shown.size, (*PAINT, 0))
        layer.putalpha(mask.point([COVER if level > 127 else 0 for level in range(256)]))
        layers = [layer]
    value: Any = {"background": shown, "layers": layers, "composite": None}
    return gr.ImageEditor(value)


def read_drawn(drawn: Any) -> Image.Image | None:
    """What was painted, white on black; None where nothing was.

    Raises:
        AtomError: no picture was opened.
    """
    background = drawn.get("background") if isinstance(drawn, dict) else None
    if background is None:
        raise AtomError("open a picture in the editor first")
    mask = Image.new("L", background.size, 0)
    for layer in drawn.get("layers") or ():
        opaque = layer.convert("RGBA").getchannel("A").resize(mask.size)
        mask.paste(255, mask=opaque.point([255 if level > PAINTED else 0 for level in range(256)]))
    return mask if mask.getbbox() else None
