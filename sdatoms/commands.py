"""The subcommands of `sdatoms`: `add_…` gives one its flags, `run_…` is what it does."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from pathlib import Path
from typing import Any

from sdatoms.commands_evaluate import add_evaluate, run_evaluate
from sdatoms.commands_files import (
    add_compose,
    add_export,
    add_inspect,
    run_compose,
    run_export,
    run_inspect,
    split_strength,
)
from sdatoms.commands_inject import add_inject, run_inject
from sdatoms.commands_train import add_demo, add_train, run_demo, run_train
from sdatoms.errors import AtomError
from sdatoms.options import LineParser

__all__ = ["add_commands", "train_main"]


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Attach every subcommand to the parser of `sdatoms`."""
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=LineParser
    )
    for name, add, run in (
        ("demo", add_demo, run_demo),
        ("train", add_train, run_train),
        ("generate", add_generate, run_generate),
        ("inspect", add_inspect, run_inspect),
        ("inject", add_inject, run_inject),
        ("compose", add_compose, run_compose),
        ("export", add_export, run_export),
        ("evaluate", add_evaluate, run_evaluate),
        ("ui", add_ui, run_ui),
    ):
        text = (run.__doc__ or "").strip()
        command = commands.add_parser(name, help=text.splitlines()[0], description=text)
        add(command)
        command.set_defaults(run=run)


def add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to paint; the trigger words of the atoms belong in it")
    parser.add_argument(
        "--atoms",
        action="append",
        default=[],
        metavar="FILE[=STRENGTH]",
        help="an atom file; may be given several times",
    )
    parser.add_argument(
        "--pretrained_model_name_or_path",
        default=None,
        help="base model; the bundled one by default",
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
    parser.add_argument("--height", type=int, default=None)
    parser.add_argument("--width", type=int, default=None)
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
    from sdatoms.adapters import load_atoms
    from sdatoms.checkpoint import read_atoms
    from sdatoms.compatibility import fingerprint_base
    from sdatoms.pipeline import SCHEDULERS, find_base, load_base, paint
    from sdatoms.recipes import Recipe, UsedAtoms, list_versions, save_picture

    if args.num_images < 1:
        raise AtomError(f"--num_images is {args.num_images}; it takes at least 1")
    wanted = [split_strength(text) for text in args.atoms]
    files = [(path, strength, read_atoms(path)) for path, strength in wanted]
    pipe = load_base(args.pretrained_model_name_or_path)
    prints = fingerprint_base(pipe)
    for number, (path, strength, file) in enumerate(files):
        load_atoms(pipe, file, name=f"{number}:{Path(path).stem}", strength=strength)
    scheduler = type(pipe.scheduler).__name__
    scheduler = next((k for k, v in SCHEDULERS.items() if v == scheduler), scheduler)
    folder = Path(args.output_dir)
    slug = re.sub(r"[^a-z0-9]+", "-", args.prompt.lower()).strip("-")[:60] or "picture"
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
        riders = [file for _, _, file in files] if args.embed_atoms else []
        print(save_picture(picture, folder / f"{slug}-{seed}.png", recipe, riders))


def add_ui(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen", action="store_true", help="serve on all addresses instead of this machine only"
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="port (default: 7860; 0 picks a free one)"
    )
    parser.add_argument(
        "--auth",
        action="append",
        default=[],
        metavar="NAME:PASSWORD",
        help="ask for a password; may be given several times, or as @FILE with one a line",
    )
    parser.add_argument(
        "--share", action="store_true", help="open a public tunnel; refused without --auth"
    )
    parser.add_argument("--offline", action="store_true", help="no request leaves the machine")
    parser.add_argument(
        "--mcp", action="store_true", help="serve the endpoints as Model Context Protocol tools too"
    )
    parser.add_argument(
        "--adapters-dir",
        default="outputs",
        help="folder searched for atom files (default: outputs)",
    )
    parser.add_argument(
        "--outputs-dir",
        default="outputs/app",
        help="where pictures are kept (default: outputs/app)",
    )
    parser.add_argument(
        "--models-dir",
        default=None,
        help="folder of further base models: pipeline folders and single safetensors files",
    )
    parser.add_argument(
        "--pictures-dir",
        action="append",
        default=[],
        help="folder of pictures, or of such folders, to train on; may be given several times",
    )
    parser.add_argument(
        "--pretrained_model_name_or_path",
        default=None,
        help="base model; the bundled one by default",
    )


def run_ui(args: argparse.Namespace) -> None:
    """Start the Gradio app on 127.0.0.1."""
    from sdatoms_app.app import serve

    serve(
        base=args.pretrained_model_name_or_path,
        adapters_dir=Path(args.adapters_dir),
        outputs_dir=Path(args.outputs_dir),
        models_dir=Path(args.models_dir) if args.models_dir else None,
        pictures_dirs=[Path(folder) for folder in args.pictures_dir],
        host="0.0.0.0" if args.listen else "127.0.0.1",
        port=args.port,
        auth=args.auth,
        share=args.share,
        offline=args.offline,
        mcp=args.mcp,
    )


def train_main(argv: list[str] | None = None) -> None:
    """The trainer as a script of its own, for `accelerate launch`."""
    parser = LineParser(prog="train_dreambooth_atoms.py", description=run_train.__doc__)
    add_train(parser)
    run_guarded(run_train, parser.parse_args(argv))


def run_guarded(run: Any, args: argparse.Namespace) -> None:
    """Run a command; wrong input becomes one line and exit code 2, Ctrl-C exit code 130."""
    silence_libraries()
    try:
        run(args)
    except AtomError as error:
        print(f"sdatoms: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("sdatoms: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def silence_libraries() -> None:
    """Keep the loading bars and advice of diffusers and transformers out of a command's output."""
    # bitsandbytes tells of an optional kernel while diffusers imports it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
