"""A folder of pictures before any model is loaded: what is taken for what, and all that is wrong.

Read are the pictures of the folder and of its subfolders, with their masks and captions, in the
conventions of this field's trainers: `10_sks dog/` holds pictures that come ten times a round and,
where several such folders are there, whose prompt is "sks dog"; `masks/` holds masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from PIL import Image

from sdatoms.errors import AtomError, clip
from sdatoms.pictures import PICTURE_SUFFIXES, read_alpha, read_picture
from sdatoms.storage import locate
from sdatoms.training.caption_rules import PLAIN_RULES, CaptionRules
from sdatoms.training.captions import Captions
from sdatoms.training.folder_tree import Level, read_levels, share_repeats
from sdatoms.training.masks import is_condition, match_masks
from sdatoms.training.picture_checks import PictureCheck, check_picture, find_twins

__all__ = [
    "PictureFolder",
    "Source",
    "check_folder",
    "place_rows",
]

T = TypeVar("T")
SHOWN = 10
"""Names that a note lists."""


@dataclass(frozen=True)
class Source:
    """One picture to train on."""

    path: Path
    prompt: str
    mask: Path | None
    size: tuple[int, int]
    """Width and height in px, upright."""
    name: str = ""
    """Its path within the folder, fit to be shown."""
    digest: str = ""
    """SHA-256 of the file."""
    repeats: int = 1
    """How often it comes in a round."""
    captions: tuple[str, ...] = ()
    """What may be said of it, one of them each time; `prompt` where it is empty."""
    own: bool = False
    """Whether its captions are its own, and no prompt that pictures share."""
    alpha: bool = False
    """Whether its own opacity is its mask."""
    concept: str = ""
    """What it is a picture of, where a run learns several things."""
    rules: CaptionRules = PLAIN_RULES
    class_prompt: str | None = None
    """Of the class it belongs to."""
    share: float | None = None
    """Of all rows, how many are of its concept; None where pictures alone decide."""
    flip: bool | None = None
    """Whether it also comes mirrored; the run's setting where it is None."""


@dataclass(frozen=True)
class PictureFolder:
    """The usable pictures of a folder, and what a person should know about the rest."""

    sources: tuple[Source, ...]
    notes: tuple[str, ...]
    taken: tuple[str, ...] = ()
    """What the pictures are taken for, one line for each concept."""
    held: tuple[Source, ...] = ()
    """Pictures that are measured on and not trained on."""


@dataclass
class Findings:
    """What is found while the levels of a folder are read."""

    sources: list[Source] = field(default_factory=list)
    checks: list[PictureCheck] = field(default_factory=list)
    """One for each source."""
    broken: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    masks: set[Path] = field(default_factory=set)
    strays: set[Path] = field(default_factory=set)
    """Masks that belong to no picture of their level."""
    guessed: list[str] = field(default_factory=list)
    """Captions that are not Unicode."""
    cut: list[str] = field(default_factory=list)
    """Captions that are too long."""
    rows: dict[Path, tuple[str, ...]] = field(default_factory=dict)
    """Picture → captions, of the tables met so far."""
    tables: list[str] = field(default_factory=list)


def check_folder(
    folder: Path,
    prompt: str,
    *,
    resolution: int | None = None,
    caption_column: str = "text",
    mask_dir: Path | None = None,
    alpha_mask: bool = False,
) -> PictureFolder:
    """Read every picture once; files that are no pictures are ignored with a note.

    Args:
        prompt: of pictures without a caption.
        resolution: side of the training pictures, px; what is much smaller is noted as tiny.
        caption_column: where a table of captions has them.
        mask_dir: folder of masks called as the pictures.
        alpha_mask: whether a picture without a mask is masked by its own opacity.

    Raises:
        AtomError: there is no picture; or some are corrupt, or a caption or mask does not fit: all
            of them are named.
    """
    if mask_dir and not mask_dir.is_dir():
        raise AtomError(f"--mask_data_dir: there is no folder {str(mask_dir)!r}")
    skipped: list[str] = []
    levels = read_levels(folder, mask_dir, skipped)
    named = len({level.prompt for level in levels if level.pictures}) > 1
    found = Findings()
    for level in levels:
        shared = (level.prompt if named else "") or prompt
        read_level(found, folder, level, shared, resolution, caption_column)
    if problems := list_problems(found, folder):
        raise AtomError(f"pictures in {str(folder)!r} cannot be used: {'; '.join(problems)}")
    if not found.sources:
        what = "masks but no picture" if found.strays else "no picture"
        raise AtomError(
            f"the folder {str(folder)!r} holds {what}; it takes files such as PNG, JPEG or WebP"
        )
    repeats = share_repeats([source.repeats for source in found.sources])
    sources = [
        replace(s, repeats=n, alpha=alpha_mask and s.mask is None and is_clear(s.path))
        for s, n in zip(found.sources, repeats, strict=True)
    ]
    notes = describe_levels(levels, named)
    notes += [f"not read: {', '.join(skipped[:SHOWN])}"] if skipped else []
    return PictureFolder(tuple(sources), (*notes, *describe_findings(found, folder)))


def is_clear(path: Path) -> bool:
    return read_alpha(path) is not None


def read_level(
    found: Findings,
    folder: Path,
    level: Level,
    prompt: str,
    resolution: int | None,
    caption_column: str,
) -> None:
    """Add the pictures of one level, and what is wrong with them."""
    given = [path for path in level.pictures if not is_condition(path)]
    found.ignored += [clip(p.name) for p in level.pictures if is_condition(p)]
    plain = match_masks(given)[0] if level.named else given
    pictures, masks, strays = match_masks(plain, level.masks)
    captions = Captions(level.path, level.others, caption_column)
    found.rows |= place_rows(captions.rows, folder)
    found.tables += [path.name for path in captions.tables]
    for path in pictures:
        check = check_picture(path, resolution)
        own = captions.find(path, found.rows.pop(path, ()))
        if check.kind == "corrupt":
            found.problems.append(check.text)
            continue
        mask = masks.get(path)
        if mask and (wrong := compare_shapes(check.size, mask)):
            found.problems.append(wrong)
        name = clip(path.relative_to(folder).as_posix())
        found.checks.append(check)
        text = "\n".join(own) or prompt
        several = own if len(own) > 1 else ()
        found.sources.append(
            Source(
                *(path, text, mask, check.size, name, check.digest, level.repeats),
                captions=several,
                own=bool(own),
            )
        )
    found.masks |= set(masks.values())
    found.strays |= set(strays)
    found.guessed += captions.guessed
    found.cut += captions.cut
    for path in level.others:
        if path.suffix.lower() in PICTURE_SUFFIXES:
            found.broken.append(name_broken(path))
        elif path not in captions.used:
            found.ignored.append(clip(path.name))


def name_broken(path: Path) -> str:
    """A picture's name, and why it cannot be read where its size is the reason."""
    try:
        Image.open(path).close()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return f"{clip(path.name)} (more than 100 million pixels)"
    except Exception:  # Pillow raises many kinds for what is no picture
        pass
    return clip(path.name)


def list_problems(found: Findings, folder: Path) -> list[str]:
    """All that keeps a folder from being trained on."""
    problems = []
    if found.broken:
        problems.append(f"cannot be read as pictures: {', '.join(found.broken)}")
    if strays := sorted(clip(path.name) for path in found.strays - found.masks):
        problems.append(f"masks without a picture: {', '.join(strays)}")
    if absent := sorted(name_absent(path, folder) for path in found.rows):
        problems.append(f"{found.tables[0]} names absent pictures: {list_names(absent)}")
    return problems + found.problems


def name_absent(path: Path, folder: Path) -> str:
    inside = path.relative_to(folder) if path.is_relative_to(folder) else path
    return clip(inside.as_posix())


def place_rows(rows: Mapping[Path, T], folder: Path) -> dict[Path, T]:
    """What tables say of pictures, by the paths that the folder lists these under: a table may name
    them by absolute paths, where the folder was named by a relative one or a link."""
    found: dict[Path, T] = {}
    for path, said in rows.items():
        place = path
        if not path.is_relative_to(folder):
            try:
                place = folder / (locate(path.parent) / path.name).relative_to(locate(folder))
            except ValueError:  # it lies elsewhere, or no path is spelled so
                pass
        found.setdefault(place, said)
    return found


def describe_findings(found: Findings, folder: Path) -> list[str]:
    """Notes about what was not taken for a picture or not taken as it is."""
    named = [p.name for p in sorted(found.masks) if not p.stem.lower().endswith(".mask")]
    notes = [
        (
            f"ignored {len(found.ignored)} files that are no pictures in {clip(folder.name)}",
            found.ignored,
        ),
        ("masks, not trained on themselves", [clip(name) for name in named]),
        ("captions that are no Unicode, read as what they seem to be", found.guessed),
        ("captions cut where they are too long", found.cut),
    ]
    shown = [f"{what}: {list_names(names)}" for what, names in notes if names]
    return shown + describe_checks(found)


def describe_levels(levels: Sequence[Level], named: bool) -> list[str]:
    """A note about pictures of subfolders."""
    texts = []
    for level in levels:
        if level.name and level.pictures:
            text = f"{level.name} with {len(level.pictures)} pictures"
            text += f", each {level.repeats} times a round" if level.prompt else ""
            texts.append(text + (f", prompt {level.prompt!r}" if level.prompt and named else ""))
    return [f"subfolders are read too: {'; '.join(texts[:SHOWN])}"] if texts else []


def list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def compare_shapes(size: tuple[int, int], mask: Path) -> str:
    """What is wrong with a mask's proportions, or an empty string."""
    try:
        w, h = read_picture(mask).size
    except AtomError as error:
        return str(error)
    if abs(w / h - size[0] / size[1]) <= 0.02 * size[0] / size[1]:
        return ""
    return f"the mask {clip(mask.name)} is {w}×{h} px where its picture is {size[0]}×{size[1]}"


def describe_checks(found: Findings) -> list[str]:
    """Notes about pictures that are tiny, that move, or that are there twice."""
    names = [source.name for source in found.sources]
    pairs = list(zip(found.checks, names, strict=True))
    tiny = [f"{name} ({c.size[0]}×{c.size[1]} px)" for c, name in pairs if c.kind == "tiny"]
    moving = [name for check, name in pairs if check.frames > 1]
    twins = [(n, t) for n, t in zip(names, find_twins(found.checks), strict=True) if t]
    same = [f"{name} = {names[twin.place]}" for name, twin in twins if twin.same_bytes]
    alike = [f"{name} ≈ {names[twin.place]}" for name, twin in twins if not twin.same_bytes]
    notes = (
        ("tiny pictures, scaled up a lot to be trained on", tiny),
        ("animated pictures, only their first frame is used", moving),
        ("duplicate pictures", same),
        ("pictures that look alike", alike),
    )
    return [f"{what}: {', '.join(held)}" for what, held in notes if held]
