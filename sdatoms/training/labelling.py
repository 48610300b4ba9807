"""Captions and masks for the pictures of a folder, written only where there are none.

What a person wrote is never lost: a caption that is written over is kept in `.captions.jsonl`, a
mask in `.earlier/`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sdatoms.errors import AtomError, clip
from sdatoms.pictures import find_sidecars, read_picture, save_image
from sdatoms.storage import decode_text, write_whole
from sdatoms.training.captions import Captions
from sdatoms.training.folder_tree import read_levels
from sdatoms.training.masks import is_condition, match_masks

__all__ = [
    "Labelled",
    "caption_pictures",
    "mask_pictures",
    "put_trigger",
]

HISTORY = ".captions.jsonl"
KEPT_MASKS = ".earlier"


@dataclass(frozen=True)
class Labelled:
    """What became of one picture."""

    path: Path
    number: int
    """From 1."""
    total: int
    text: str
    """Its caption; for a mask, the share of the picture it covers."""
    made: bool
    """False where it had one, which was left alone."""


def caption_pictures(
    folder: Path,
    caption: Callable[[Image.Image], str],
    *,
    trigger: str = "",
    overwrite: bool = False,
    caption_column: str = "text",
) -> Iterator[Labelled]:
    """Caption every picture of a folder and of those below it, in `.txt` files beside them.

    Args:
        caption: says what a picture shows.
        trigger: words to stand in front.
        overwrite: whether captions that are there are written anew; the old ones are kept in
            `.captions.jsonl`.
        caption_column: where a table has its captions.

    Raises:
        AtomError: there is no such folder, or no picture in it.
    """
    jobs = list_jobs(folder, caption_column)
    for path, _, captions in jobs if overwrite else ():
        if path in captions.rows:
            raise AtomError(
                f"the caption of {clip(path.name)!r} stands in a table, which counts before text "
                "files; take it out there first"
            )
    for number, (path, _, captions) in enumerate(jobs, 1):
        old = "\n".join(captions.find(path, captions.rows.get(path, ())))
        if old and not overwrite:
            yield Labelled(path, number, len(jobs), old, made=False)
            continue
        text = put_trigger(trigger, caption(read_picture(path)))
        if not text:
            yield Labelled(path, number, len(jobs), "the model says nothing of it", made=False)
            continue
        target = path.with_suffix(".txt")
        beside = find_sidecars(path, path.parent.iterdir())
        for other in beside:
            keep_caption(path, other)
        write_whole(target, text.encode())
        for other in beside:
            if not other.samefile(target):
                other.unlink()
        yield Labelled(path, number, len(jobs), text, made=True)


class Job(NamedTuple):
    """One picture and what is there of it."""

    path: Path
    mask: Path | None
    captions: Captions


def list_jobs(folder: Path, caption_column: str = "text") -> list[Job]:
    """The pictures of a folder and of those below it.

    Raises:
        AtomError: there are none.
    """
    rows: dict[Path, tuple[str, ...]] = {}
    jobs = []
    for level in read_levels(folder, None):
        captions = Captions(level.path, level.others, caption_column)
        captions.rows = rows = rows | captions.rows  # a table may name pictures further down
        given = [path for path in level.pictures if not is_condition(path)]
        plain, masks, _ = match_masks(given, level.masks)
        jobs += [Job(path, masks.get(path), captions) for path in plain]
    if not jobs:
        raise AtomError(
            f"the folder {str(folder)!r} holds no picture; it takes files such as PNG, JPEG or WebP"
        )
    return jobs


def keep_caption(picture: Path, file: Path) -> None:
    """Append a caption that is about to be written over to the folder's history."""
    text = decode_text(file.read_bytes())[0]
    row = {"file_name": picture.name, "text": text, "until": round(time.time())}
    with (picture.parent / HISTORY).open("a", encoding="utf-8") as history:
        history.write(json.dumps(row, ensure_ascii=False) + "\n")


def put_trigger(trigger: str, text: str) -> str:
    """A caption with the trigger in front, once."""
    if not trigger or text.lower().startswith(trigger.lower()):
        return text
    return f"{trigger}, {text}" if text else trigger


def mask_pictures(
    folder: Path, segment: Callable[[Image.Image], Image.Image], *, overwrite: bool = False
) -> Iterator[Labelled]:
    """Mask every picture of a folder and of those below it, in `.mask.png` files beside them.

    Args:
        segment: gives a picture's mask, as large as the picture.
        overwrite: whether masks that are there are made anew; the old ones are kept in `.earlier`.

    Raises:
        AtomError: there is no such folder, or no picture in it.
    """
    jobs = list_jobs(folder)
    for number, (path, old, _) in enumerate(jobs, 1):
        if old and not overwrite:
            yield Labelled(path, number, len(jobs), f"has {old.name}", made=False)
            continue
        mask = segment(read_picture(path)).convert("L")
        share = sum(mask.histogram()[128:]) / (mask.width * mask.height)
        if not share:
            text = "nothing was found in it; no mask is written"
            yield Labelled(path, number, len(jobs), text, made=False)
            continue
        if old:
            keep = old.parent / KEPT_MASKS
            keep.mkdir(exist_ok=True)
            shutil.move(old, keep / f"{time.time_ns()}-{old.name}")
        save_image(mask, path.with_name(f"{path.stem}.mask.png"))
        yield Labelled(path, number, len(jobs), f"{share:.0%} of it counts", made=True)
