"""Tables and pictures of what fine-tuned classifiers reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

__all__ = [
    "draw_confusion",
    "draw_plot",
    "write_table",
]

INK, PALE = (20, 24, 32), (222, 226, 232)
HUES = (
    (200, 60, 50), (40, 100, 190), (40, 140, 80), (150, 80, 170), (220, 140, 30), (20, 150, 160),
    (120, 120, 120), (170, 110, 60), (230, 90, 150), (90, 90, 220), (130, 170, 40), (0, 0, 0),
)  # fmt: skip


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Image.Image:
    """Rows are true classes, columns predicted ones; darkness is the share of the row."""
    font, count = ImageFont.load_default(size=12), len(classes)
    names = [name if len(name) < 24 else name[:22] + "…" for name in classes]
    cell = max(12, min(44, 900 // count))
    label = int(max(font.getlength(name) for name in names)) + 16
    image = Image.new("RGB", (label + count * cell + 16, label + count * cell + 16), "white")
    draw = ImageDraw.Draw(image)
    for r, row in enumerate(confusion):
        top, total = label + r * cell, max(1, sum(row))
        draw.text((label - 6, top + cell / 2), names[r], INK, font, anchor="rm")
        for c, number in enumerate(row):
            share, left = number / total, label + c * cell
            shade = tuple(round(255 - share * (255 - dark)) for dark in (30, 70, 140))
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), shade)
            if number and cell >= 22:
                ink = "white" if share > 0.5 else INK
                draw.text((left + cell / 2, top + cell / 2), str(number), ink, font, anchor="mm")
    for c, name in enumerate(names):
        tag = Image.new("RGB", (label - 10, cell), "white")
        ImageDraw.Draw(tag).text((2, cell / 2), name, INK, font, anchor="lm")
        image.paste(tag.rotate(90, expand=True), (label + c * cell, 6))
    return image


def write_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Markdown; numbers are right-aligned, large ones get thousands separators."""
    shown = [[show(row.get(column)) for column in columns] for row in rows]
    numeric = [all(not isinstance(r.get(c), str) or is_figure(r[c]) for r in rows) for c in columns]
    widths = [max(len(line[k]) for line in [list(columns), *shown]) for k in range(len(columns))]
    join = lambda cells: "| " + " | ".join(cells) + " |"
    align = lambda cells: join(
        c.rjust(w) if right else c.ljust(w)
        for c, w, right in zip(cells, widths, numeric, strict=True)
    )
    rule = join(
        "-" * (w - 1) + (":" if right else "-") for w, right in zip(widths, numeric, strict=True)
    )
    return "\n".join([align(columns), rule, *map(align, shown)]) + "\n"


def is_figure(text: str) -> bool:
    return text[:1].isdigit()


def show(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def draw_plot(
    points: Sequence[tuple[str, float, float, float]], title: str, floor: int = 1
) -> Image.Image:
    """Accuracy in percent against trained parameters, on a logarithmic axis.

    Args:
        points: name, parameters (the head's aside; 0 stands at the left edge), accuracy and its
            standard deviation, both in percent.
        floor: least power of ten of the axis.
    """
    width, height, left, top, right, bottom = 900, 540, 64, 44, 260, 56
    font, small = ImageFont.load_default(size=14), ImageFont.load_default(size=12)
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    most = max(2, *(math.ceil(math.log10(max(n, 10))) for _, n, _, _ in points))
    least = min(most - 1, *(math.floor(math.log10(n)) for _, n, _, _ in points if n), most - 1)
    least = max(floor, least) - 0.6
    low = math.floor(min(a - s for _, _, a, s in points) / 5) * 5
    high = min(100, math.ceil(max(a + s for _, _, a, s in points) / 5) * 5)
    high = max(high, low + 5)
    across = lambda n: (
        left + (math.log10(n) - least if n else 0.15) / (most - least) * (width - left - right)
    )
    up = lambda a: top + (high - a) / (high - low) * (height - top - bottom)
    draw.text((left, 14), title, INK, font)
    for power in range(math.ceil(least), most + 1):
        x = across(10**power)
        draw.line((x, top, x, height - bottom), PALE)
        draw.text((x, height - bottom + 8), f"{10**power:,}", INK, small, anchor="ma")
    for a in range(low, high + 1, 5 if high - low > 12 else 1):
        draw.line((left, up(a), width - right, up(a)), PALE)
        draw.text((left - 8, up(a)), f"{a} %", INK, small, anchor="rm")
    draw.text(
        ((left + width - right) / 2, height - 16),
        "trained parameters, head aside",
        INK,
        small,
        anchor="mm",
    )
    for k, (name, n, accuracy, spread) in enumerate(points):
        hue, x, y = HUES[k % len(HUES)], across(n), up(accuracy)
        draw.line((x, up(accuracy - spread), x, up(accuracy + spread)), hue, 2)
        mark(draw, k // len(HUES), x, y, hue)
        row = top + 20 * k
        mark(draw, k // len(HUES), width - right + 20, row + 7, hue)
        draw.text((width - right + 34, row), f"{name}  {accuracy:.1f}", INK, small)
    return image


def mark(draw: ImageDraw.ImageDraw, kind: int, x: float, y: float, hue: Any) -> None:
    """A disc, then a square: names share a hue only across kinds."""
    box = (x - 5, y - 5, x + 5, y + 5)
    draw.rectangle(box, hue) if kind else draw.ellipse(box, hue)
