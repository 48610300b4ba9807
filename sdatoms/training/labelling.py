"""Captions and masks for the pictures of a folder, written only where there are none.

What a person wrote is never lost: a caption that is written over is kept in `.captions.jsonl`, a
mask in `.earlier/`. `dog.png` gets `dog.txt` and `dog.mask.png`, or `dog.png.txt` and
`dog.png.mask.png` where there is a `dog.jpg` too: no file that is written is another's as well.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sdatoms.errors import AtomError, check_text, clip, mark_bytes
from sdatoms.pictures import find_sidecars, read_picture, save_image
from sdatoms.storage import decode_text, write_whole
from sdatoms.training.captions import Captions
from sdatoms.training.folder import place_rows
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
CAPTION = ".txt"
MASK = ".mask.png"


@dataclass(frozen=True)
class Labelled:
    """What became of one picture."""

    path: Path
    number: int
    """From 1."""
    total: int
    text: str
    """Its caption; for a mask, the share of the picture it covers; else why none was made."""
    made: bool
    had: bool = False
    """Whether it had one, which was left alone."""


class Job(NamedTuple):
    """One picture and what is there of it."""

    path: Path
    captions: Captions
    masks: list[Path]
    """First the one that counts."""
    names: Counter[str]
    """What pictures of its folder are called, by stem and in whole → how many are."""

    @property
    def stems(self) -> list[str]:
        """What files that are its alone are called after."""
        own = dict.fromkeys((self.path.stem, self.path.name))
        return [name for name in own if self.names[name.lower()] == 1]

    def is_shared(self, file: Path) -> bool:
        """Whether a caption file of the picture is another's too."""
        return self.names[file.stem.lower()] > 1


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
            `.captions.jsonl`. One that is two pictures' stays.
        caption_column: where a table has its captions.

    Raises:
        AtomError: there is no such folder, or no picture in it; or the trigger is no text.
    """
    trigger = " ".join(check_text(trigger, "--trigger").split())
    jobs = list_jobs(folder, caption_column)
    for path, captions, *_ in jobs if overwrite else ():
        if path in captions.rows:
            raise AtomError(
                f"the caption of {clip(path.name)!r} stands in a table, which counts before text "
                "files; take it out there first"
            )
    for number, job in enumerate(jobs, 1):
        path, left = job.path, partial(Labelled, job.path, number, len(jobs), made=False)
        old = "\n".join(job.captions.find(path, job.captions.rows.get(path, ())))
        if old and not overwrite:
            yield left(old, had=True)
            continue
        beside = find_sidecars(path, path.parent.iterdir())
        shared = [file for file in beside if job.is_shared(file)]
        own = [file for file in beside if file not in shared]
        if held := next((file for file in shared if read_caption(file)), None):
            yield left(
                f"{held.name} is another picture's caption too; name it {path.name}{CAPTION}"
            )
            continue
        target = find_place(job, CAPTION, own)
        if target is None:
            yield left(f"no file would be its caption alone; rename {path.name}")
            continue
        text = " ".join(mark_bytes(put_trigger(trigger, caption(read_picture(path)))).split())
        if not text:
            yield left("the model says nothing of it")
            continue
        for file in own:
            keep_caption(path, file)
        write_whole(target, text.encode())
        for file in own:
            if not file.samefile(target):
                file.unlink()
        yield Labelled(path, number, len(jobs), text, made=True)


def list_jobs(folder: Path, caption_column: str = "text") -> list[Job]:
    """The pictures of a folder and of those below it.

    Raises:
        AtomError: there are none.
    """
    rows: dict[Path, tuple[str, ...]] = {}
    jobs = []
    for level in read_levels(folder, None):
        captions = Captions(level.path, level.others, caption_column)
        # A table may name pictures further down.
        captions.rows = rows = rows | place_rows(captions.rows, folder)
        given = [path for path in level.pictures if not is_condition(path)]
        plain, masks = list_masks(given, level.masks)
        names = Counter(name for p in plain for name in {p.stem.lower(), p.name.lower()})
        jobs += [Job(path, captions, masks.get(path, []), names) for path in plain]
    if not jobs:
        raise AtomError(
            f"the folder {str(folder)!r} holds no picture; it takes files such as PNG, JPEG or WebP"
        )
    return jobs


def list_masks(
    pictures: Sequence[Path], masks: Sequence[Path]
) -> tuple[list[Path], dict[Path, list[Path]]]:
    """The pictures of one folder that are no masks, and all masks of each, of which the first
    counts."""
    plain, found, _ = match_masks(pictures, masks)
    held: dict[Path, list[Path]] = {}
    while found:
        for picture, mask in found.items():
            held.setdefault(picture, []).append(mask)
        taken = set(found.values())
        pictures = [path for path in pictures if path not in taken]
        masks = [path for path in masks if path not in taken]
        found = match_masks(pictures, masks)[1]
    return plain, held


def find_place(job: Job, end: str, own: Collection[Path]) -> Path | None:
    """Where a file goes that is this picture's alone; None where there is no such place.

    Args:
        end: what its name ends in.
        own: files that it may take the place of.
    """
    for stem in job.stems:
        place = job.path.with_name(stem + end)
        if not os.path.lexists(place) or any(is_same(place, file) for file in own):
            return place
    return None


def is_same(place: Path, file: Path) -> bool:
    """Whether two names are one file's, as in folders that do not tell capitals apart."""
    return place == file or (place.exists() and place.samefile(file))


def read_caption(file: Path) -> str:
    return decode_text(file.read_bytes())[0].strip()


def keep_caption(picture: Path, file: Path) -> None:
    """Append a caption that is about to be written over to the folder's history."""
    text = decode_text(file.read_bytes())[0]
    row = {"file_name": picture.name, "text": text, "until": round(time.time())}
    line = json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace")
    with (picture.parent / HISTORY).open("ab") as history:
        history.write(line + b"\n")


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
    for number, job in enumerate(jobs, 1):
        path, left = job.path, partial(Labelled, job.path, number, len(jobs), made=False)
        if job.masks and not overwrite:
            yield left(f"has {job.masks[0].name}", had=True)
            continue
        target = find_place(job, MASK, job.masks)
        if target is None:
            yield left(f"no file would be its mask alone; rename {path.name}")
            continue
        mask = segment(read_picture(path)).convert("L")
        share = sum(mask.histogram()[128:]) / (mask.width * mask.height)
        if not share:
            yield left("nothing was found in it; no mask is written")
            continue
        for old in job.masks:
            keep = old.parent / KEPT_MASKS
            keep.mkdir(exist_ok=True)
            shutil.copy2(old, keep / f"{time.time_ns()}-{old.name}")
        save_image(mask, target)
        for old in job.masks:
            if not old.samefile(target):
                old.unlink()
        yield Labelled(path, number, len(jobs), f"{share:.0%} of it counts", made=True)
