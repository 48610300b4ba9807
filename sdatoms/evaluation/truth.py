"""True pictures: what a prompt about a bundled subject ought to give.

A renderer made the bundled scenes, so it knows the true picture of any sentence about their
subject. `assets/truth/<name>.json` lists prompts, what each asks for and where its picture stands
in `<name>.webp`, a sheet of 64 px pictures without loss. The n-th prompt of every list asks for the
same setting, of another subject; `known` holds the same settings of things that the bundled base
was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms.diffusion.triggers import clean_prompt, has_trigger, write_prompts
from sdatoms.errors import AtomError
from sdatoms.pictures import save_image
from sdatoms.storage import ABOUT, find_assets, write_whole

__all__ = [
    "FIVE_KINDS",
    "KNOWN",
    "Truth",
    "Wish",
    "choose_prompts",
    "find_things",
    "find_truth",
    "list_truths",
    "read_truth",
    "write_truth",
]

SIDE, COLUMNS = 64, 6
KNOWN = "known"
FIVE_KINDS = ("place", "colour", "worn", "number", "style")
"""Groups of prompts that a person sees to be followed or not at a glance."""


@dataclass(frozen=True)
class Wish:
    """A prompt, what it asks for, and the picture that it ought to give."""

    prompt: str
    group: str
    """Its kind of modifier, `pair` for two at once, or `plain`."""
    modifiers: Mapping[str, str | int]
    """Kind of modifier → value."""
    picture: Image.Image
    plain: Image.Image
    """The subject alone, on white."""
    caption: str
    """What that is, without a trigger: `a robot`."""


@dataclass(frozen=True)
class Truth:
    """One subject's prompts and true pictures."""

    name: str
    wishes: tuple[Wish, ...]

    def find(self, prompts: Iterable[str]) -> list[int | None]:
        """The number of the wish that each prompt is, None where the true picture is not known."""
        numbers = {wish.prompt: n for n, wish in enumerate(self.wishes)}
        return [numbers.get(prompt) for prompt in prompts]


def find_things(truth: Truth | None, prompts: Sequence[str]) -> list[Wish | None]:
    """A wish that shows what each prompt is about: its own, or of one with a trigger the plain one;
    None where there is none."""
    if truth is None:
        return [None] * len(prompts)
    own = [None if n is None else truth.wishes[n] for n in truth.find(prompts)]
    return [
        wish or (truth.wishes[0] if has_trigger(prompt) else None)
        for prompt, wish in zip(prompts, own, strict=True)
    ]


def list_truths() -> list[str]:
    """Names of the subjects whose true pictures are bundled."""
    names = {path.stem for path in (find_assets() / "truth").glob("*.json")}
    return sorted(names - {KNOWN})


def read_truth(name: str) -> Truth:
    """The true pictures of a bundled subject, or of `known`.

    Raises:
        AtomError: there are none of that name, or their files are damaged.
    """
    if name not in (*list_truths(), KNOWN):
        raise AtomError(
            f"there are no true pictures of {name!r}; there are of {', '.join(list_truths())}"
        )
    path = find_assets() / "truth" / f"{name}.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        with Image.open(path.with_suffix(".webp")) as opened:
            sheet = opened.convert("RGB")
        wishes = tuple(
            Wish(
                row["prompt"],
                row["group"],
                row["modifiers"],
                cut_cell(sheet, row["cell"]),
                cut_cell(sheet, row["plain"]),
                clean_prompt(row["caption"]),
            )
            for row in rows
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AtomError(f"the true pictures {str(path)!r} cannot be read: {error}") from None
    return Truth(name, wishes)


def write_truth(truth: Truth, folder: Path) -> None:
    """Write `<name>.json` and its sheet; equal pictures stand in the sheet once."""
    cells: dict[bytes, tuple[int, Image.Image]] = {}

    def find_cell(picture: Image.Image) -> int:
        return cells.setdefault(picture.tobytes(), (len(cells), picture))[0]

    rows: list[dict[str, Any]] = [
        {
            "prompt": wish.prompt,
            "group": wish.group,
            "modifiers": dict(wish.modifiers),
            "cell": find_cell(wish.picture),
            "plain": find_cell(wish.plain),
            "caption": wish.caption,
        }
        for wish in truth.wishes
    ]
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(cells) // COLUMNS) * SIDE), "white")
    for n, picture in cells.values():
        sheet.paste(picture, locate_cell(n))
    save_image(sheet, folder / f"{truth.name}.webp", lossless=True, quality=100, method=6)
    text = ",\n".join(f" {json.dumps(row)}" for row in rows)
    write_whole(folder / f"{truth.name}.json", f"[\n{text}\n]\n".encode())


def cut_cell(sheet: Image.Image, number: int) -> Image.Image:
    x, y = locate_cell(number)
    if not (0 <= y and y + SIDE <= sheet.height):
        raise ValueError(f"the sheet has no picture {number}")
    return sheet.crop((x, y, x + SIDE, y + SIDE))


def locate_cell(number: int) -> tuple[int, int]:
    return number % COLUMNS * SIDE, number // COLUMNS * SIDE


def find_truth(folder: Path | None) -> Truth | None:
    """The true pictures of a folder's subject, where its `subject.json` names some that are
    bundled."""
    about = folder / ABOUT if folder else None
    if about is None or not about.is_file():
        return None
    try:
        name = json.loads(about.read_text(encoding="utf-8"))["truth"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return read_truth(name) if name in list_truths() else None


def choose_prompts(truth: Truth | None, trigger: str, groups: Sequence[str] = ()) -> list[str]:
    """Prompts that no training saw: those whose true pictures are known, or else five made from the
    trigger.

    Args:
        groups: take the first prompt of each of these alone.
    """
    wishes = truth.wishes if truth else ()
    if not any(wish.prompt == trigger for wish in wishes):
        return write_prompts(trigger) if trigger else []
    if groups:
        first = {wish.group: wish.prompt for wish in reversed(wishes)}
        return [first[group] for group in groups]
    return [wish.prompt for wish in wishes if wish.modifiers]
