"""Strength by block: a table of sliders, drawn from a text and writing into it.

There is one for every block of a file. The text is what counts, such as `down.1=0.5, mid=0,
*attn2*=0.8`; a slider moved by hand changes one entry of it. Names of blocks come out of files that
anybody may have made, so they are escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from sdatoms import AtomError
from sdatoms.atoms.strengths import ALL, parse_strength, read_strength, write_number, write_strength
from sdatoms.errors import is_finite
from sdatoms_app.shared.html import count

__all__ = [
    "BLOCK_SCRIPT",
    "draw_blocks",
    "set_block",
]

LEAST, MOST = -1.0, 2.0
BLOCK_SCRIPT = """
const find = (event) => event.target.closest('input[data-block]');
element.addEventListener('input', (event) => {
  const input = find(event);
  if (input) input.nextElementSibling.value = Number(input.value);
});
element.addEventListener('change', (event) => {
  const input = find(event);
  if (input) trigger('click', {block: input.dataset.block, number: Number(input.value)});
});
"""


def draw_blocks(blocks: Iterable[tuple[str, int]], text: str) -> str:
    """A row a block: its name, its number of layers, a slider with the factor that `text` gives."""
    table = read_table(text)
    rows = []
    for block, layers in blocks:
        name, number = escape(block, quote=True), read_strength(table, *locate(block))
        shown, many = write_number(round(number, 4)), count(layers, "layer")
        rows.append(
            f'<label class="block"><span>× {name}</span><span class="faint">{many}</span>'
            f'<input type="range" min="{LEAST:g}" max="{MOST:g}" step="0.05" '
            f'value="{min(max(number, LEAST), MOST)!r}" data-block="{name}" '
            f'aria-label="Factor of {name}, {many}"><output>{shown}</output></label>'
        )
    return f'<div class="blocks">{"".join(rows)}</div>'


def set_block(text: str, block: str, number: Any, blocks: Iterable[tuple[str, int]]) -> str:
    """The text with another factor for one block; patterns stay behind it and go on to count.

    Raises:
        AtomError: the block is none of `blocks`, or the number is none from -1 to 2.
    """
    if block not in dict(blocks):
        raise AtomError("the file has no such block; refresh the list")
    if not is_finite(number):
        raise AtomError("the factor of a block is no number")
    number = round(min(max(float(number), LEAST), MOST), 4)
    table = read_table(text)
    if block in table:
        table[block] = number
    else:
        names = [name for name in table if is_pattern(name)]
        behind = {name: table.pop(name) for name in names}
        table |= {block: number, **behind}
    rest = {name: factor for name, factor in table.items() if name != block}
    if read_strength(rest, *locate(block)) == number:
        table = rest
    return write_strength(table) if table else ""


def read_table(text: str) -> dict[str, float]:
    """The text's factors by name; none where it cannot be read, which painting then tells."""
    try:
        given = parse_strength(text, "it") if text.strip() else {}
    except AtomError:
        return {}
    return given if isinstance(given, dict) else {ALL: given}


def is_pattern(name: str) -> bool:
    return name != ALL and any(letter in name for letter in "*?[")


def locate(block: str) -> tuple[str, str]:
    """A path inside the block, and the component it is of."""
    side, _, number = block.partition(".")
    if number:
        return f"{side}_blocks.{number}", "unet"
    return ("mid_block", "unet") if block == "mid" else (block, block)
