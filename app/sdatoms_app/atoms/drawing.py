"""Atoms, heat maps and tables as pictures and HTML; numbers come from the library."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from sdatoms.adapters.changes import LayerChange
from sdatoms.files.contents import Budget
from sdatoms.files.likeness import Likeness
from sdatoms.models.families import BLOCK_NAMES

__all__ = [
    "HEAT_STYLE",
    "TILE",
    "draw_budget",
    "draw_heat_map",
    "draw_likeness",
    "draw_sheet",
    "draw_table",
]

TILE = 56
GAP = 6
COLUMNS = 5
NEGATIVE, POSITIVE = (33, 102, 172), (202, 88, 20)
"""Blue and orange stay apart for colour-blind eyes."""
HEAT_STYLE = """
.heat {display: grid; gap: .8rem}
.heat .block {display: grid; gap: .25rem}
.heat .cells {display: flex; flex-wrap: wrap; gap: 3px}
.heat button {width: 26px; height: 26px; border-radius: 4px; cursor: pointer; padding: 0;
  border: 1px solid var(--border-color-primary)}
.heat button:focus-visible, .heat button:hover {outline: 3px solid var(--color-accent)}
.heat .scale {height: .6rem; border-radius: .3rem; max-width: 16rem}
.facts {overflow-x: auto}
.facts table {border-collapse: collapse; border: 0 !important; font-variant-numeric: tabular-nums}
.facts thead, .facts tbody, .facts tr {border: 0 !important}
.facts th, .facts td {padding: .2rem .6rem; text-align: right; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important}
.facts th:first-child, .facts td:first-child {text-align: left; overflow-wrap: anywhere}
"""


def draw_sheet(tiles: np.ndarray, scale: float, *, signed: bool = True) -> Image.Image:
    """Tiles `(m, rows, columns)` in rows of five on a transparent ground.

    Args:
        tiles: numbers.
        scale: the value shown at full strength; the same for all sheets that are to be compared.
        signed: blue below zero, white at zero, orange above; else black to white.
    """
    count, rows, columns = tiles.shape
    pixel = max(1, TILE // max(rows, columns))
    high, wide = rows * pixel, columns * pixel
    across = min(COLUMNS, count)
    down = -(-count // across)
    sheet = Image.new(
        "RGBA", (across * (wide + GAP) - GAP, down * (high + GAP) - GAP), (0, 0, 0, 0)
    )
    for k, tile in enumerate(tiles):
        colours = paint_signed(tile, scale) if signed else paint_grey(tile, scale)
        picture = Image.fromarray(colours).resize((wide, high), Image.Resampling.NEAREST)
        place = ((k % across) * (wide + GAP), k // across * (high + GAP))
        sheet.paste(picture, place)
    return sheet


def paint_signed(tile: np.ndarray, scale: float) -> np.ndarray:
    share = np.clip(tile / max(scale, 1e-30), -1, 1)[..., None]
    ends = np.where(share < 0, np.array(NEGATIVE), np.array(POSITIVE))
    return np.round(255 + (ends - 255) * np.abs(share)).astype(np.uint8)


def paint_grey(tile: np.ndarray, scale: float) -> np.ndarray:
    share = np.clip(tile / max(scale, 1e-30), 0, 1)[..., None]
    return np.round(np.repeat(share * 255, 3, -1)).astype(np.uint8)


def mix(share: float) -> str:
    """A colour from white to orange."""
    r, g, b = (round(255 + (c - 255) * share) for c in POSITIVE)
    return f"rgb({r},{g},{b})"


def draw_heat_map(changes: Sequence[LayerChange]) -> str:
    """One button a layer, by block and in the order of the model; its colour is its change."""
    most = max((c.change for c in changes), default=0.0) or 1.0
    blocks = [*BLOCK_NAMES, *sorted({c.block for c in changes} - set(BLOCK_NAMES))]
    parts = []
    for block in blocks:
        cells = []
        for c in changes:
            if c.block != block:
                continue
            words = html.escape(f"{c.path}: {100 * c.change:.2f} %", quote=True)
            path = html.escape(f"{c.component}.{c.path}", quote=True)
            cells.append(
                f'<button type="button" data-path="{path}" title="{words}" aria-label="{words}" '
                f'style="background:{mix(c.change / most)}"></button>'
            )
        if cells:
            name = html.escape(block)
            parts.append(
                f'<div class="block" role="group" aria-label="{name} block"><strong>{name}</strong>'
                f'<div class="cells">{"".join(cells)}</div></div>'
            )
    scale = f"linear-gradient(90deg,{mix(0)},{mix(1)})"
    legend = (
        f'<div><div class="scale" style="background:{scale}"></div>0 to {100 * most:.2f} % of the '
        "weight's norm; choose a layer to see its atoms</div>"
    )
    return f'<div class="heat">{"".join(parts)}{legend}</div>'


def draw_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text; everything is escaped."""
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="facts">{table}</div>'


def draw_budget(budget: Budget, facts: Mapping[str, str]) -> str:
    """What the file is, and where its bytes go; the rows of bytes add up to the file."""
    told = draw_table(["This file", ""], list(facts.items()))
    size = budget.file
    rows = [
        ("trained numbers", budget.tensors - budget.encoders),
        ("encoders", budget.encoders),
        ("header", budget.header),
        ("length of the header", budget.prefix),
        ("the file", size),
    ]
    table = [(name, f"{count:,}", f"{100 * count / size:.1f} %") for name, count in rows]
    return told + draw_table(["Part", "Bytes", "Share"], table)


def draw_likeness(names: Sequence[str], matrix: Sequence[Sequence[Likeness]]) -> str:
    """Cosines of all pairs, with what must be known to read them."""
    rows = []
    for name, row in zip(names, matrix, strict=True):
        cells = [f"{c.cosine:+.3f}{'' if c.exact == c.common else ' ≈'}" for c in row]
        rows.append([name, *cells])
    pairs = [
        (names[i], names[j], matrix[i][j])
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]
    notes = [f"{a} and {b} share no layer" for a, b, c in pairs if not c.common]
    notes += [f"{a} and {b} are of different bases" for a, b, c in pairs if not c.same_base]
    if any(c.exact < c.common for _, _, c in pairs):
        notes.append("≈: encoders differ, the maps are compared")
    words = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return draw_table(["Cosine of the changes", *names], rows) + words
