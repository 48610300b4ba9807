"""`sdatoms caption` and `sdatoms mask`: captions and masks by a model, for a folder of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sdatoms.cli.progress import Progress
from sdatoms.errors import AtomError, check_text, clip

if TYPE_CHECKING:
    from sdatoms.training.labelling import Labelled

__all__ = [
    "add_caption",
    "add_mask",
    "run_caption",
    "run_mask",
]


def add_caption(parser: argparse.ArgumentParser) -> None:
    add_common(parser, "captions", "BLIP, Florence-2 or another captioning model of transformers")
    parser.add_argument("--trigger", default="", metavar="TEXT", help="words put in front of each")
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="what the model is asked, or how the caption begins, as the model takes it",
    )
    parser.add_argument(
        "--caption_column",
        default="text",
        metavar="TEXT",
        help="key of the captions in a metadata.jsonl that is there (default: text)",
    )
    parser.add_argument(
        "--max_tokens", type=int, default=60, metavar="N", help="longest caption (default: 60)"
    )


def add_mask(parser: argparse.ArgumentParser) -> None:
    add_common(parser, "masks", "CLIPSeg or another segmentation model of transformers")
    parser.add_argument(
        "--subject",
        metavar="TEXT",
        help="what to look for, such as 'dog'; without it, all that is no background",
    )


def add_common(parser: argparse.ArgumentParser, what: str, model: str) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="folder of pictures, with those below it")
    parser.add_argument("--model", required=True, metavar="NAME", help=f"{model}: folder or hub id")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help=f"also make {what} anew that are there; the old ones are kept in a hidden file",
    )
    parser.add_argument("--device", metavar="TEXT", help="cuda, cpu or mps; the best there is")


def run_caption(args: argparse.Namespace) -> None:
    """Caption a folder of pictures with a captioning model.

    Captions are written as .txt files beside pictures that have none, each shown to be looked over.
    """
    check_folder(args.folder)
    check_texts(args, "model", "trigger", "prompt", "caption_column")
    if not 1 <= args.max_tokens <= 1000:
        raise AtomError(f"--max_tokens is {args.max_tokens}; it takes 1 to 1000")
    from sdatoms.diffusion.open import pick_device
    from sdatoms.training.captioners import load_captioner
    from sdatoms.training.labelling import caption_pictures

    caption = load_captioner(
        args.model,
        prompt=args.prompt,
        max_tokens=args.max_tokens,
        device=args.device or pick_device(),
    )
    folder = Path(args.folder)
    rows = caption_pictures(
        folder,
        caption,
        trigger=args.trigger,
        overwrite=args.overwrite,
        caption_column=args.caption_column,
    )
    show(rows, folder, "caption")


def run_mask(args: argparse.Namespace) -> None:
    """Mask the subject in a folder of pictures with a segmentation model.

    Masks are written as .mask.png files beside pictures that have none.
    """
    check_folder(args.folder)
    check_texts(args, "model", "subject")
    from sdatoms.diffusion.open import pick_device
    from sdatoms.training.captioners import load_segmenter
    from sdatoms.training.labelling import mask_pictures

    segment = load_segmenter(args.model, subject=args.subject, device=args.device or pick_device())
    folder = Path(args.folder)
    show(mask_pictures(folder, segment, overwrite=args.overwrite), folder, "mask")


def check_folder(folder: str) -> None:
    if not Path(folder).is_dir():
        raise AtomError(f"there is no folder {folder!r} to read pictures from")


def check_texts(args: argparse.Namespace, *names: str) -> None:
    """Refuse flags whose bytes are no text, before a model is opened."""
    for name in names:
        check_text(getattr(args, name) or "", f"--{name}")


def show(rows: Iterable[Labelled], folder: Path, what: str) -> None:
    """A line on standard output for each picture, with a bar on standard error."""
    progress, made, left = Progress("picture"), 0, 0
    try:
        for row in rows:
            made, left = made + row.made, left + row.had
            mark = "" if row.made else " (as it was)"
            name = clip(row.path.relative_to(folder).as_posix())
            print(f"{name}{mark}: {clip(row.text, 300)}", flush=True)
            progress.show(row.number, row.total)
    finally:
        progress.close()
    kept = f"; {left} had one and were left alone, --overwrite makes them anew" if left else ""
    progress.note(f"wrote {made} {what}{'' if made == 1 else 's'}{kept}; look them over")
