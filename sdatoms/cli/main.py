"""The subcommands of `sdatoms`: `add_…` gives one its flags, `run_…` is what it does."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

from sdatoms.cli.demo import add_demo, run_demo
from sdatoms.cli.evaluate import add_evaluate, run_evaluate
from sdatoms.cli.files import (
    add_compose,
    add_export,
    add_inspect,
    run_compose,
    run_export,
    run_inspect,
)
from sdatoms.cli.generate import add_generate, run_generate
from sdatoms.cli.inject import add_inject, run_inject
from sdatoms.cli.parser import LineParser
from sdatoms.cli.train import add_train, run_train
from sdatoms.errors import AtomError
from sdatoms.version import __version__

__all__ = [
    "add_commands",
    "main",
    "run_guarded",
    "train_main",
]


def main(argv: list[str] | None = None) -> None:
    """Run `sdatoms COMMAND …`; ends with exit code 2 and one line where the input is wrong."""
    widen_console()
    parser = LineParser(
        prog="sdatoms", description="Stable Diffusion personalization with filter atoms."
    )
    parser.add_argument("--version", action="version", version=f"sdatoms {__version__}")
    add_commands(parser)
    args = parser.parse_args(argv)
    run_guarded(args.run, args)


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
    widen_console()
    parser = LineParser(prog="train_dreambooth_atoms.py", description=run_train.__doc__)
    add_train(parser)
    run_guarded(run_train, parser.parse_args(argv))


def run_guarded(run: Any, args: argparse.Namespace) -> None:
    """Run a command; wrong input becomes one line and exit code 2, Ctrl-C exit code 130.

    A reader that closes the pipe, as `head` does, ends the command in silence.
    """
    try:
        silence_libraries()
        run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would raise again while Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AtomError as error:
        print(f"sdatoms: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("sdatoms: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def widen_console() -> None:
    """Write what the console's encoding lacks as escapes instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore


def silence_libraries() -> None:
    """Keep the loading bars and advice of diffusers and transformers out of a command's output."""
    # bitsandbytes tells of an optional kernel while diffusers imports it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
