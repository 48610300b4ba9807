"""The picture to start from, and the part of it to be painted anew, drawn or from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageChops

from sdatoms.diffusion.sizes import fit_proportions
from sdatoms.pictures import read_mask, read_picture
from sdatoms_app.shared.events import QUIET
from sdatoms_app.shared.messages import show_errors
from sdatoms_app.studio.orders import LIMITS, SETTINGS

__all__ = [
    "Canvas",
    "build_canvas",
    "fit_sides",
    "read_drawing",
]

BRUSH = "#ff3b30"
SHOWN = 768
"""Longest side in px of the picture that is drawn on."""


@dataclass(frozen=True)
class Canvas:
    """The widgets that hold pictures."""

    init: gr.Image
    """The picture to start from."""
    drawing: gr.ImageEditor
    """The same, with the part to be painted anew drawn on it."""
    mask: gr.Image
    """Or a mask of its own."""

    @property
    def inputs(self) -> list[Any]:
        """What `read` reads."""
        return [self.init, self.drawing, self.mask]

    def read(
        self, init: str | None, drawing: Any, mask: str | None
    ) -> dict[str, Image.Image | None]:
        """Picture and mask as `make_order` takes them, from the values of `inputs`.

        Raises:
            AtomError: a file is no picture.
        """
        picture = read_picture(Path(init)) if init else None
        given = read_mask(Path(mask)) if mask else None
        drawn = read_drawing(drawing) if picture and not given else None
        return {"init_picture": picture, "mask": given or drawn}


def build_canvas(fields: dict[str, Any]) -> Canvas:
    """Lay the widgets out and add those of settings to `fields`."""
    init = gr.Image(
        label="Picture to start from",
        type="filepath",
        format="png",
        image_mode=None,  # read as all pictures are: upright, transparency over white
        sources=["upload", "clipboard"],
        height=220,
        elem_id="init-picture",
    )
    fields["denoising_strength"] = gr.Slider(
        0.05,
        1,
        value=SETTINGS["denoising_strength"],
        step=0.05,
        label="Denoising strength",
        info="Small keeps the picture, 1 forgets it.",
        elem_id="denoising-strength",
    )
    with gr.Accordion("Inpainting: only a part anew", open=False, elem_id="inpaint"):
        drawing = gr.ImageEditor(
            label="Brush over the part",
            type="pil",
            format="png",
            sources=(),
            transforms=(),
            layers=False,
            brush=gr.Brush(colors=[BRUSH], default_color=BRUSH, color_mode="fixed"),
            height=360,
            elem_id="mask-drawing",
        )
        mask = gr.Image(
            label="Or a mask: white is generated anew",
            type="filepath",
            format="png",
            image_mode=None,
            sources=["upload", "clipboard"],
            height=160,
            elem_id="mask-picture",
        )
        fields["mask_blur"] = gr.Slider(
            *LIMITS["mask_blur"],
            value=SETTINGS["mask_blur"],
            step=1,
            label="Mask blur (px)",
            elem_id="mask-blur",
        )
    init.change(show_errors(shrink_picture), init, drawing, **QUIET)
    return Canvas(init, drawing, mask)


def shrink_picture(path: str | None) -> Image.Image | None:
    """The picture as it is drawn on, no larger than it is shown.

    Raises:
        AtomError: the file is no picture.
    """
    if not path:
        return None
    picture = read_picture(Path(path))
    picture.thumbnail((SHOWN, SHOWN))
    return picture


def fit_sides(path: str, side: int, most: int) -> tuple[int, int]:
    """Width and height in px that a base of that side paints an uploaded picture in.

    Args:
        most: the operator's cap, px.

    Raises:
        AtomError: the file is no picture.
    """
    return fit_proportions(side, read_picture(Path(path)).size, most=most)


def read_drawing(drawing: Any) -> Image.Image | None:
    """What was drawn in an editor as a mask, white on black; None where nothing was."""
    layers = (drawing or {}).get("layers") or []
    mask: Image.Image | None = None
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A")
        mask = alpha if mask is None else ImageChops.lighter(mask, alpha)
    if mask is None or not mask.getbbox():
        return None
    return mask.point([0] * 32 + [255] * 224)
