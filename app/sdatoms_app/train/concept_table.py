"""The concepts of a draft as a table that a visitor edits, and what its pictures are taken for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdatoms import AtomError
from sdatoms.errors import clip
from sdatoms_app.train.drafts import Picture

__all__ = [
    "COLUMNS",
    "describe_taken",
    "list_rows",
    "read_rows",
]

COLUMNS = {
    "Concept": "name",
    "Prompt": "instance_prompt",
    "Class": "class_prompt",
    "Repeats": "repeats",
    "Share": "share",
}
"""Heading → what a concept's description calls it."""
MAX_WORDS = 2000
MAX_REPEATS = 1000


def list_rows(described: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """The rows of the table."""
    empty = {"repeats": 1}
    return [
        ["" if (v := (empty | row).get(key)) is None else v for key in COLUMNS.values()]
        for row in described
    ]


def read_rows(rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """What the table says of each concept.

    Raises:
        AtomError: a number does not fit.
    """
    found = []
    for cells in rows:
        given = dict(zip(COLUMNS.values(), cells, strict=False))
        name = str(given.get("name") or "").strip()
        if not name:
            continue
        row: dict[str, Any] = {"name": name}
        for key in ("instance_prompt", "class_prompt"):
            if text := str(given.get(key) or "").strip():
                row[key] = text[:MAX_WORDS]
        if (repeats := read_cell(name, "repeats", given.get("repeats"))) is not None:
            if not 1 <= repeats <= MAX_REPEATS:
                raise AtomError(
                    f"repeats of {clip(name, 40)!r} is {repeats:g}; it takes 1 to {MAX_REPEATS}"
                )
            row["repeats"] = round(repeats)
        if share := read_cell(name, "share", given.get("share")):
            if not 0 < share <= 1e6:
                raise AtomError(
                    f"share of {clip(name, 40)!r} is {share:g}; it takes a number above 0"
                )
            row["share"] = share
        found.append(row)
    return found


def read_cell(name: str, what: str, value: Any) -> float | None:
    if value is None or str(value).strip() in ("", "nan", "None"):
        return None
    try:
        return float(str(value).replace(",", "."))
    except ValueError:
        raise AtomError(
            f"{what} of {clip(name, 40)!r} is {clip(str(value), 40)!r}; it takes a number"
        ) from None


def describe_taken(pictures: Sequence[Picture]) -> list[str]:
    """What the pictures are taken for, one line for each concept; none where they show one thing,
    each under one caption."""
    lines = []
    for name in dict.fromkeys(picture.concept for picture in pictures):
        mine = [picture for picture in pictures if picture.concept == name]
        own = sum(bool(picture.caption) for picture in mine)
        several = sum("\n" in picture.caption for picture in mine)
        masks = sum(picture.mask is not None for picture in mine)
        parts = [f"{own} with captions of their own"] if own else []
        parts += [f"{several} of them with several, one a line"] if several else []
        parts += [f"{masks} masked"] if masks else []
        if name or several:
            label = f"{clip(name, 60)}: " if name else ""
            number = f"{len(mine)} {'picture' if len(mine) == 1 else 'pictures'}"
            lines.append(f"{label}{', '.join([number, *parts])}")
    return lines
