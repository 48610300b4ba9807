"""Look at a folder of pictures before any model is loaded, and name all that is wrong with it.

Captions come from `metadata.jsonl` (as in Hugging Face's imagefolder), from a `.txt` beside the
picture, or are the prompt that all share, in this order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sdatoms.errors import AtomError
from sdatoms.pictures import (
    CAPTION_LIMIT,
    PICTURE_SUFFIXES,
    find_pictures,
    read_picture,
    read_sidecar,
)

__all__ = [
    "PictureFolder",
    "Source",
    "check_folder",
]


MASK = ".mask"
ALIKE = 3.0
"""Mean difference of two 16×16 thumbnails, in grey levels, below which pictures count as one."""


@dataclass(frozen=True)
class Source:
    """One picture to train on."""

    path: Path
    prompt: str
    mask: Path | None
    size: tuple[int, int]
    """Width and height in px, upright."""


@dataclass(frozen=True)
class PictureFolder:
    """The usable pictures of a folder, and what a person should know about the rest."""

    sources: tuple[Source, ...]
    notes: tuple[str, ...]


def check_folder(
    folder: Path,
    prompt: str,
    *,
    least_side: int = 0,
    caption_column: str = "text",
    mask_dir: Path | None = None,
) -> PictureFolder:
    """Read every picture once; files that are no pictures are ignored with a note.

    Args:
        least_side: px below which a picture's shorter side is noted as tiny.

    Raises:
        AtomError: there is no picture; or some are corrupt, or a caption or mask does not fit: all
            of them are named.
    """
    pictures, others = find_pictures(folder)
    masks = {p.stem.removesuffix(MASK): p for p in pictures if p.stem.endswith(MASK)}
    pictures = [p for p in pictures if not p.stem.endswith(MASK)]
    captions = read_captions(folder, caption_column)
    used = {p.stem for p in pictures}
    notes, problems = [], []
    broken = [p.name for p in others if p.suffix.lower() in PICTURE_SUFFIXES]
    if broken:
        problems.append(f"cannot be read as pictures: {', '.join(broken)}")
    ignored = [
        p.name
        for p in others
        if p.name not in broken
        and p.name != "metadata.jsonl"
        and not (p.suffix == ".txt" and p.stem in used)
    ]
    if ignored:
        notes.append(
            f"ignored {len(ignored)} files that are no pictures in {folder.name}: "
            f"{', '.join(ignored[:10])}"
        )
    if mask_dir:
        if not mask_dir.is_dir():
            raise AtomError(f"--mask_data_dir: there is no folder {str(mask_dir)!r}")
        masks = {p.stem.removesuffix(MASK): p for p in find_pictures(mask_dir)[0]}
    stray = sorted(stem for stem in masks if stem not in used)
    if stray:
        problems.append(f"masks without a picture: {', '.join(masks[s].name for s in stray)}")
    absent = sorted(name for name in captions if name not in {p.name for p in pictures})
    if absent:
        problems.append(f"metadata.jsonl names absent pictures: {', '.join(absent[:10])}")
    sources, tiny, moving = [], [], []
    views: list[tuple[str, str, np.ndarray]] = []
    for path in pictures:
        try:
            picture = read_picture(path)
        except AtomError as error:
            problems.append(str(error))
            continue
        size, mask = picture.size, masks.get(path.stem)
        if mask and (wrong := compare_shapes(size, mask)):
            problems.append(wrong)
        if min(size) < least_side:
            tiny.append(f"{path.name} ({size[0]}×{size[1]} px)")
        if is_animated(path):
            moving.append(path.name)
        views.append((path.name, hash_file(path), shrink(picture)))
        text = captions.get(path.name) or read_sidecar(path) or prompt
        sources.append(Source(path, text, mask, size))
    if problems:
        raise AtomError(f"pictures in {str(folder)!r} cannot be used: {'; '.join(problems)}")
    if not sources:
        raise AtomError(f"the folder {str(folder)!r} holds masks but no picture")
    if tiny:
        notes.append(f"tiny pictures, scaled up a lot to be trained on: {', '.join(tiny)}")
    if moving:
        notes.append(f"animated pictures, only their first frame is used: {', '.join(moving)}")
    notes += name_duplicates(views)
    return PictureFolder(tuple(sources), tuple(notes))


def read_captions(folder: Path, column: str) -> dict[str, str]:
    """File name → caption from `metadata.jsonl`, empty where there is none.

    Raises:
        AtomError: a line is no JSON object with `file_name` and the caption column.
    """
    path = folder / "metadata.jsonl"
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, caption = row["file_name"], row[column]
        except (ValueError, KeyError, TypeError):
            name = caption = None
        if not isinstance(name, str) or not isinstance(caption, str):
            raise AtomError(
                f"line {number} of {str(path)!r} is no JSON object with the texts 'file_name' and "
                f"{column!r}"
            )
        found[name] = caption.strip()[:CAPTION_LIMIT]
    return found


def compare_shapes(size: tuple[int, int], mask: Path) -> str:
    """What is wrong with a mask's proportions, or an empty string."""
    try:
        w, h = read_picture(mask).size
    except AtomError as error:
        return str(error)
    if abs(w / h - size[0] / size[1]) <= 0.02 * size[0] / size[1]:
        return ""
    return f"the mask {mask.name} is {w}×{h} px where its picture is {size[0]}×{size[1]}"


def is_animated(path: Path) -> bool:
    with Image.open(path) as picture:
        return getattr(picture, "n_frames", 1) > 1


def hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shrink(picture: Image.Image) -> np.ndarray:
    """A 16×16 RGB thumbnail as 768 numbers in [0, 255]."""
    small = picture.resize((16, 16), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).reshape(-1)


def name_duplicates(views: Iterable[tuple[str, str, np.ndarray]]) -> list[str]:
    """Notes about files of the same bytes and about pictures that look the same."""
    same, alike = [], []
    seen: list[tuple[str, str, np.ndarray]] = []
    for name, digest, small in views:
        twin = next((n for n, d, _ in seen if d == digest), None)
        near = next((n for n, _, s in seen if np.abs(s - small).mean() < ALIKE), None)
        if twin:
            same.append(f"{name} = {twin}")
        elif near:
            alike.append(f"{name} ≈ {near}")
        seen.append((name, digest, small))
    notes = [f"duplicate pictures: {', '.join(same)}"] if same else []
    return notes + ([f"pictures that look alike: {', '.join(alike)}"] if alike else [])
