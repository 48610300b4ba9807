"""The method as one picture: a real weight of the bundled base, its filters, atoms and change."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sdatoms.atoms.decompose import View, fit_encoder, measure_gram

__all__ = ["draw_method"]

CELL, GAP, TOP = 14, 6, 46
SHOWN = 8
"""Filters of the weight that are shown."""
WARM, COLD = np.array([178, 72, 40]), np.array([38, 104, 168])


def paint_grid(values: np.ndarray, cell: int = CELL) -> Image.Image:
    """Numbers as squares: white is 0, warm above, cold below, full at the largest of them."""
    share = np.clip(values / max(1e-12, float(np.abs(values).max())), -1, 1)[..., None]
    colour = np.where(share > 0, WARM, COLD)
    pixels = 255 + np.abs(share) * (colour - 255)
    picture = Image.fromarray(pixels.astype(np.uint8), "RGB")
    return picture.resize(
        (values.shape[1] * cell, values.shape[0] * cell), Image.Resampling.NEAREST
    )


def stack_squares(filters: np.ndarray, columns: int) -> Image.Image:
    """Filters `(n, k, k)` as squares in rows, all on one scale."""
    n, k, _ = filters.shape
    rows = -(-n // columns)
    whole = np.zeros((rows * (k + 1) - 1, columns * (k + 1) - 1))
    for number, own in enumerate(filters):
        y, x = divmod(number, columns)
        whole[y * (k + 1) : y * (k + 1) + k, x * (k + 1) : x * (k + 1) + k] = own
    return paint_grid(whole)


def draw_method(weight: Tensor, delta_atoms: Tensor) -> Image.Image:
    """Draw how a convolution's weight `(o, i, k, k)` is changed by its trained `ΔD (m, k²)`."""
    view = View("spatial", tuple(weight.shape))
    rows, side = view.rows(weight.float()), weight.shape[-1]
    encoder = fit_encoder(measure_gram(weight, view), view.width).float()
    coefficients = rows @ encoder
    change = (coefficients @ delta_atoms.float())[:SHOWN]
    square = lambda x: x.reshape(-1, side, side).numpy()
    parts = [
        ("filters X", f"{len(rows):,} of them", stack_squares(square(rows[:SHOWN]), 2)),
        ("encoder E", "of the filters, in order", stack_squares(square(encoder.T), 3)),
        ("coefficients A = X E", "stay as they are", paint_grid(coefficients[:SHOWN].numpy())),
        (
            "trained atoms dD",
            f"{delta_atoms.numel()} numbers",
            stack_squares(square(delta_atoms), 3),
        ),
        ("change dX = A dD", "of the same filters", stack_squares(square(change), 2)),
    ]
    title, small = ImageFont.load_default(size=17), ImageFont.load_default(size=13)
    widths = [
        max(p.width, int(title.getlength(name)), int(small.getlength(note)))
        for name, note, p in parts
    ]
    height = max(part.height for _, _, part in parts)
    canvas = Image.new("RGB", (sum(widths) + 40 * (len(parts) + 1), TOP + height + 24), "white")
    draw, x = ImageDraw.Draw(canvas), 40
    for (name, note, part), width in zip(parts, widths, strict=True):
        draw.text((x, 6), name, "black", title)
        draw.text((x, 26), note, "#666666", small)
        y = TOP + (height - part.height) // 2
        draw.rectangle((x - 1, y - 1, x + part.width, y + part.height), outline="#bbbbbb")
        canvas.paste(part, (x, y))
        x += width + 40
    return canvas
