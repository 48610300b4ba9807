"""`sdatoms generate`: pictures by any number of atom files."""

from __future__ import annotations

import argparse
import itertools
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdatoms.cli.base import add_base_flags, open_base
from sdatoms.cli.files import (
    split_strength,
)
from sdatoms.errors import AtomError

__all__ = [
    "add_generate",
    "run_generate",
]


def add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to paint; the trigger words of the atoms belong in it")
    parser.add_argument(
        "--atoms",
        action="append",
        default=[],
        metavar="FILE[=STRENGTH]",
        help="an atom file; may be given several times",
    )
    add_base_flags(parser)
    parser.add_argument(
        "--keep_weights",
        choices=("auto", "memory", "file", "attach"),
        default="auto",
        help="where weights without atoms are kept: in memory, in the base's own files, or nowhere "
        "with atoms attached and not baked in, which is slower (default: auto, by free memory)",
    )
    parser.add_argument("--negative_prompt", default=None)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=5.0)
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first picture (default: 0)"
    )
    parser.add_argument(
        "--num_images", type=int, default=1, help="pictures, with rising seeds (default: 1)"
    )
    for name, other in (("height", "width"), ("width", "height")):
        parser.add_argument(
            f"--{name}",
            type=int,
            default=None,
            help=f"px (default: the base's own; with --{other} alone, what makes its area)",
        )
    parser.add_argument(
        "--output_dir",
        default="outputs/generate",
        help="where the PNGs go (default: outputs/generate)",
    )
    parser.add_argument(
        "--embed_atoms",
        action="store_true",
        help="put the atom files inside the PNGs, so that a picture alone can be painted again",
    )


def run_generate(args: argparse.Namespace) -> None:
    """Paint pictures with any number of atom files; each PNG carries its recipe."""
    from sdatoms.adapters.load import load_atoms
    from sdatoms.adapters.plan import fingerprint_base
    from sdatoms.diffusion.family import find_base
    from sdatoms.diffusion.picture_file import save_picture
    from sdatoms.diffusion.pipeline import SCHEDULERS, check_seeds, paint
    from sdatoms.diffusion.recipe import Recipe, UsedAtoms, list_versions
    from sdatoms.files.reader import read_atoms

    if args.num_images < 1:
        raise AtomError(f"--num_images is {args.num_images}; it takes at least 1")
    check_seeds([args.seed, args.seed + args.num_images - 1])
    wanted = [split_strength(text) for text in args.atoms]
    files = [(path, strength, read_atoms(path)) for path, strength in wanted]
    pipe = open_base(args)
    prints = fingerprint_base(pipe)
    for number, (path, strength, file) in enumerate(files):
        name = f"{number}:{Path(path).stem}"
        load_atoms(pipe, file, name=name, strength=strength, keep_weights=args.keep_weights)
    scheduler = type(pipe.scheduler).__name__
    scheduler = next((k for k, v in SCHEDULERS.items() if v == scheduler), scheduler)
    folder = Path(args.output_dir)
    slug = slugify(args.prompt)
    for seed in range(args.seed, args.seed + args.num_images):
        picture = paint(
            pipe,
            [args.prompt],
            [seed],
            negative_prompt=args.negative_prompt,
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            height=args.height,
            width=args.width,
        )[0]
        recipe = Recipe(
            prompt=args.prompt,
            negative_prompt=args.negative_prompt or "",
            seed=seed,
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            scheduler=scheduler,
            width=picture.width,
            height=picture.height,
            base_model=Path(find_base(args.pretrained_model_name_or_path)).name,
            base_fingerprint=prints,
            adapters=tuple(
                UsedAtoms(Path(path).stem, file.sha256, strength, file.trigger or "")
                for path, strength, file in files
            ),
            versions=list_versions(),
        )
        embedded = [file for _, _, file in files] if args.embed_atoms else []
        with claim_name(folder, f"{slug}-{seed}") as path:
            save_picture(picture, path, recipe, embedded)
        print(path, flush=True)


def slugify(prompt: str) -> str:
    """The prompt as part of a file's name: letters and digits of any script, at most 100 bytes."""
    plain = unicodedata.normalize("NFC", prompt.lower())
    words = re.sub(r"[\W_]+", "-", plain).strip("-")[:60]
    return words.encode()[:100].decode(errors="ignore").strip("-") or "picture"


@contextmanager
def claim_name(folder: Path, stem: str) -> Iterator[Path]:
    """A name that no picture bears yet, `stem.png`, else `stem-2.png`, …; it is given back where
    nothing was saved under it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        try:
            yield path
        finally:
            if not path.stat().st_size:
                path.unlink()
        return
