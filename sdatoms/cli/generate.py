"""`sdatoms generate`: pictures by any number of atom files."""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdatoms.cli.base import add_base_flags, open_base
from sdatoms.cli.canvas import add_canvas_flags, read_canvas
from sdatoms.cli.files import split_strength
from sdatoms.cli.outputs import check_folder, writing
from sdatoms.cli.sampling import (
    add_sampling_flags,
    add_size_flags,
    check_size,
    read_sampling,
)
from sdatoms.errors import AtomError, clip

__all__ = [
    "add_generate",
    "run_generate",
]


def add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt", help="what the picture shows; the trigger words of the adapters belong in it"
    )
    parser.add_argument(
        "--atoms",
        action="append",
        default=[],
        metavar="FILE[=STRENGTH]",
        help="an atom file or a LoRA; may be given several times; a strength is 0.8, or numbers by "
        "block, module path or pattern: down.1=0.5,mid=0,*attn2*=0.8",
    )
    parser.add_argument(
        "--strength_schedule",
        action="append",
        default=[],
        metavar="[NAME=]SCHEDULE",
        help='how strengths go over the steps, as factors: "0 until 0.2, then 1"; ramps are "0 to '
        '1 until 0.4, then 1"; for the file of that name, or for all',
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
    add_sampling_flags(parser)
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first picture (default: 0)"
    )
    parser.add_argument(
        "--num_images", type=int, default=1, help="pictures, with rising seeds (default: 1)"
    )
    add_size_flags(parser, "in the proportions of --image")
    add_canvas_flags(parser)
    parser.add_argument(
        "--batch_size", type=int, default=1, help="pictures generated at once (default: 1)"
    )
    parser.add_argument(
        "--output_dir",
        default="outputs/generate",
        help="where the PNGs go (default: outputs/generate)",
    )
    parser.add_argument(
        "--embed_atoms",
        action="store_true",
        help="put the atom files, but no LoRAs, inside the PNGs, so that a picture alone can be "
        "generated again",
    )


def run_generate(args: argparse.Namespace) -> None:
    """Generate pictures with any number of atom files; each PNG carries its recipe."""
    from sdatoms.adapters.load import load_atoms
    from sdatoms.adapters.plan import fingerprint_base
    from sdatoms.diffusion.family import find_base
    from sdatoms.diffusion.guidance import find_guidance
    from sdatoms.diffusion.picture_file import save_picture
    from sdatoms.diffusion.pipeline import check_seeds, paint
    from sdatoms.diffusion.recipe import Recipe, UsedAtoms, describe_canvas, list_versions
    from sdatoms.diffusion.samplers import name_scheduler
    from sdatoms.diffusion.sizes import describe_choice, fit_size
    from sdatoms.files.atom_file import AtomFile
    from sdatoms.files.sources import read_adapter

    for name in ("num_images", "batch_size"):
        if getattr(args, name) < 1:
            raise AtomError(f"--{name} is {getattr(args, name)}; it takes at least 1")
    check_seeds([args.seed, args.seed + args.num_images - 1])
    painting = read_sampling(args)
    check_size(args)
    wanted = [split_file(text) for text in args.atoms]
    schedules = read_schedules(args.strength_schedule, [path for path, _ in wanted])
    folder = Path(args.output_dir)
    check_folder(folder)
    files = [(path, strength, read_adapter(path)) for path, strength in wanted]
    canvas = read_canvas(args)
    pipe = open_base(args, inpainting=canvas["mask"] is not None)
    prints = fingerprint_base(pipe)
    stems = [Path(path).stem for path, *_ in files]
    names = [s if stems.count(s) == 1 else f"{n}:{s}" for n, s in enumerate(stems)]
    for name, (_, strength, file) in zip(names, files, strict=True):
        load_atoms(pipe, file, name=name, strength=strength, keep_weights=args.keep_weights)
    own = name_scheduler(pipe.scheduler)
    if painting["guidance_scale"] is None:
        painting["guidance_scale"] = find_guidance(pipe)
    start = canvas["init_picture"]
    width, height = fit_size(pipe, args.width, args.height, start.size if start else None)
    if chosen := describe_choice((args.width, args.height), (width, height)):
        print(chosen, file=sys.stderr, flush=True)
    slug = slugify(args.prompt)
    recipe = Recipe(
        prompt=args.prompt,
        negative_prompt=args.negative_prompt or "",
        num_inference_steps=args.num_inference_steps,
        guidance_scale=painting["guidance_scale"],
        scheduler=painting["scheduler"] or own[0],
        schedule=painting["schedule"] or own[1],
        clip_skip=args.clip_skip,
        guidance_rescale=args.guidance_rescale,
        width=width,
        height=height,
        base_model=Path(find_base(args.pretrained_model_name_or_path)).name,
        base_fingerprint=prints,
        adapters=tuple(
            UsedAtoms(
                Path(path).stem,
                file.sha256,
                strength,
                file.trigger or "",
                str(schedules.get(number, "")),
            )
            for number, (path, strength, file) in enumerate(files)
        ),
        **describe_canvas(canvas),
        versions=list_versions(),
    )
    inside = [file for _, _, file in files if isinstance(file, AtomFile)]
    embedded = inside if args.embed_atoms else []
    end = args.seed + args.num_images
    for first in range(args.seed, end, args.batch_size):
        seeds = range(first, min(first + args.batch_size, end))
        pictures = paint(
            pipe,
            [args.prompt] * len(seeds),
            seeds,
            negative_prompt=args.negative_prompt,
            height=height,
            width=width,
            batch_size=args.batch_size,
            strength_schedules={names[number]: schedule for number, schedule in schedules.items()},
            **painting,
            **canvas,
        )
        for number, (seed, painted) in enumerate(zip(seeds, pictures, strict=True)):
            batch = {"batch_size": len(seeds), "batch_position": number}
            with writing(args.output_dir), claim_name(folder, f"{slug}-{seed}") as path:
                save_picture(painted, path, replace(recipe, seed=seed, **batch), embedded)
            print(path, flush=True)


def split_file(text: str) -> tuple[str, Any]:
    """`dog.safetensors=down.1=0.5,mid=0` → path and strength; 1 where none is given."""
    from sdatoms.atoms.strengths import parse_strength  # after --help has answered

    if os.path.exists(text):
        return text, 1.0
    for place in (found.start() for found in re.finditer("=", text)):
        path = text[:place]
        if os.path.exists(path):
            return path, parse_strength(text[place + 1 :], f"the strength of {path!r}")
    return split_strength(text)


def read_schedules(texts: Sequence[str], paths: Sequence[str]) -> dict[int, Any]:
    """`[NAME=]SCHEDULE`, several times → the schedule of each file that has one, by its place.

    Raises:
        AtomError: no file has that name, or it is no schedule.
    """
    from sdatoms.atoms.schedules import parse_schedule

    found: dict[int, Any] = {}
    for text in texts:
        name, mark, schedule = text.rpartition("=")
        named = (name, name.strip())
        meant = [
            number
            for number, path in enumerate(paths)
            if not mark or path in named or Path(path).stem in named
        ]
        if not meant:
            stems = ", ".join(Path(path).stem for path in paths) or "none"
            raise AtomError(f"--strength_schedule is for {clip(name)!r}; --atoms names {stems}")
        found |= dict.fromkeys(meant, parse_schedule(schedule))
    return found


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
