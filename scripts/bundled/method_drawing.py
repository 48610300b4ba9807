"""The method as one picture: a real weight of the bundled base, its filters, atoms and change."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont
from sdatoms_app.atoms.drawing import draw_sheet
from torch import Tensor

from sdatoms.atoms.decompose import View, fit_encoder, measure_gram

__all__ = ["draw_method"]

TOP, SPACE = 46, 40
SHOWN = 10
"""Filters of the weight that are shown."""


def show(tiles: Tensor) -> Image.Image:
    """Tiles `(m, rows, columns)` as on the Atoms tab, full colour at the largest number."""
    return draw_sheet(tiles.numpy(), float(tiles.abs().max()))


def draw_method(weight: Tensor, delta_atoms: Tensor) -> Image.Image:
    """Draw how a convolution's weight `(o, i, k, k)` is changed by its trained `ΔD (m, k²)`."""
    view = View("spatial", tuple(weight.shape))
    rows, side = view.rows(weight.float()), weight.shape[-1]
    encoder = fit_encoder(measure_gram(weight, view), view.width).float()
    coefficients = rows @ encoder
    change = (coefficients @ delta_atoms.float())[:SHOWN]
    square = lambda filters: show(filters.reshape(-1, side, side))
    parts = [
        ("filters X", f"{len(rows):,} of them", square(rows[:SHOWN])),
        ("encoder E", "of the filters, in order", square(encoder.T)),
        ("coefficients A = X E", "stay as they are", show(coefficients[None, :SHOWN])),
        ("trained atoms dD", f"{delta_atoms.numel()} numbers", square(delta_atoms.float())),
        ("change dX = A dD", "of the same filters", square(change)),
    ]
    title, small = ImageFont.load_default(size=17), ImageFont.load_default(size=13)
    widths = [
        max(p.width, int(title.getlength(name)), int(small.getlength(note)))
        for name, note, p in parts
    ]
    height = max(part.height for _, _, part in parts)
    canvas = Image.new("RGB", (sum(widths) + SPACE * (len(parts) + 1), TOP + height + 24), "white")
    draw, x = ImageDraw.Draw(canvas), SPACE
    for (name, note, part), width in zip(parts, widths, strict=True):
        draw.text((x, 6), name, "black", title)
        draw.text((x, 26), note, "#666666", small)
        y = TOP + (height - part.height) // 2
        canvas.paste(part, (x, y), part)
        x += width + SPACE
    return canvas
