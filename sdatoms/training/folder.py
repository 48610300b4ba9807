"""Look at a folder of pictures before any model is loaded, and name all that is wrong with it.

Captions come from `metadata.jsonl` (as in Hugging Face's imagefolder), from a `.txt` beside the
picture, or are the prompt that all share, in this order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdatoms.errors import AtomError
from sdatoms.pictures import (
    CAPTION_LIMIT,
    PICTURE_SUFFIXES,
    find_pictures,
    read_picture,
    read_sidecar,
)
from sdatoms.training.picture_checks import PictureCheck, check_picture, find_twins

__all__ = [
    "PictureFolder",
    "Source",
    "check_folder",
]


MASK = ".mask"


@dataclass(frozen=True)
class Source:
    """One picture to train on."""

    path: Path
    prompt: str
    mask: Path | None
    size: tuple[int, int]
    """Width and height in px, upright."""
    digest: str = ""
    """SHA-256 of the file."""


@dataclass(frozen=True)
class PictureFolder:
    """The usable pictures of a folder, and what a person should know about the rest."""

    sources: tuple[Source, ...]
    notes: tuple[str, ...]


def check_folder(
    folder: Path,
    prompt: str,
    *,
    resolution: int | None = None,
    caption_column: str = "text",
    mask_dir: Path | None = None,
) -> PictureFolder:
    """Read every picture once; files that are no pictures are ignored with a note.

    Args:
        resolution: side of the training pictures, px; what is much smaller is noted as tiny.

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
    sources: list[Source] = []
    checks: list[PictureCheck] = []
    for path in pictures:
        check = check_picture(path, resolution)
        if check.kind == "corrupt":
            problems.append(check.text)
            continue
        mask = masks.get(path.stem)
        if mask and (wrong := compare_shapes(check.size, mask)):
            problems.append(wrong)
        checks.append(check)
        text = captions.get(path.name) or read_sidecar(path) or prompt
        sources.append(Source(path, text, mask, check.size, check.digest))
    if problems:
        raise AtomError(f"pictures in {str(folder)!r} cannot be used: {'; '.join(problems)}")
    if not sources:
        raise AtomError(f"the folder {str(folder)!r} holds masks but no picture")
    notes += describe_checks(checks)
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


def describe_checks(checks: Sequence[PictureCheck]) -> list[str]:
    """Notes about pictures that are tiny, that move, or that are there twice."""
    name = lambda check: check.path.name
    tiny = [f"{name(c)} ({c.size[0]}×{c.size[1]} px)" for c in checks if c.kind == "tiny"]
    moving = [name(check) for check in checks if check.frames > 1]
    twins = [(c, twin) for c, twin in zip(checks, find_twins(checks), strict=True) if twin]
    same = [f"{name(c)} = {name(checks[twin.place])}" for c, twin in twins if twin.same_bytes]
    alike = [f"{name(c)} ≈ {name(checks[twin.place])}" for c, twin in twins if not twin.same_bytes]
    found = (
        ("tiny pictures, scaled up a lot to be trained on", tiny),
        ("animated pictures, only their first frame is used", moving),
        ("duplicate pictures", same),
        ("pictures that look alike", alike),
    )
    return [f"{what}: {', '.join(names)}" for what, names in found if names]
