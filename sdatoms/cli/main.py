"""The subcommands of `sdatoms`: `add_…` gives one its flags, `run_…` is what it does."""

from __future__ import annotations

import argparse
import contextlib
import errno
import inspect
import logging
import os
import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from importlib import import_module
from typing import Any

from sdatoms.cli.base import explain_full_memory
from sdatoms.cli.console import lasting_console, stopping_at_signals
from sdatoms.cli.parser import LineParser
from sdatoms.errors import AtomError, clip, is_full_memory
from sdatoms.version import __version__

__all__ = [
    "COMMANDS",
    "build_parser",
    "main",
    "run_guarded",
    "train_main",
]

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals by which a command is asked to end."""
REFUSALS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EISDIR, errno.ENOTDIR),
    *(errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
}
"""What a system answers where a person gave the wrong path, or has no more room."""
COMMANDS = {
    "demo": (
        "demo",
        "Personalize the bundled base on a bundled subject and draw a before/after grid.",
    ),
    "train": ("train", "Train filter atoms on a folder of pictures."),
    "caption": ("caption", "Caption a folder of pictures with a captioning model."),
    "mask": ("caption", "Mask the subject in a folder of pictures with a segmentation model."),
    "generate": (
        "generate",
        "Generate pictures with any number of atom files; each PNG carries its recipe.",
    ),
    "inspect": ("files", "Show what an atom file holds, layer by layer; needs no model."),
    "inject": (
        "inject",
        "Inject atoms into a model and print what every layer got, and the size of the file.",
    ),
    "compose": ("files", "Sum atom files into one file of bounded size; exact, needs no model."),
    "export": (
        "export",
        "Turn an atom file into a baked pipeline, a full difference or a LoRA; says what is lost.",
    ),
    "evaluate": (
        "evaluate",
        "Score atom files: fidelity, alignment, diversity, drift, and rows to check them by.",
    ),
    "ui": ("ui", "Start the Gradio app on 127.0.0.1."),
}
"""Command → the module of this package that has its `add_…` and `run_…`, and what it does in a
line; only the module of the command that is asked for is imported."""


def main(argv: list[str] | None = None) -> None:
    """Run `sdatoms COMMAND …`; ends with exit code 2 and one line where the input is wrong."""
    words = sys.argv[1:] if argv is None else argv
    asked = [word for word in words if not word.startswith("-")][:1]
    # A server is ended from outside; all else stops and says so.
    with guarding(argparse.Namespace(), ENDING[: 1 if asked == ["ui"] else None]) as args:
        build_parser(asked).parse_args(words, args)
        silence_libraries()
        args.run(args)


def build_parser(asked: Collection[str]) -> LineParser:
    """The parser of `sdatoms`: every command by name, and with their flags those asked for."""
    parser = LineParser(
        prog="sdatoms", description="Stable Diffusion personalization with filter atoms."
    )
    parser.add_argument("--version", action="version", version=f"sdatoms {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=LineParser
    )
    for name, (module, line) in COMMANDS.items():
        if name not in asked:
            commands.add_parser(name, help=line)
            continue
        found = import_module(f"sdatoms.cli.{module}")
        run = getattr(found, f"run_{name}")
        command = commands.add_parser(name, help=line, description=inspect.getdoc(run))
        getattr(found, f"add_{name}")(command)
        command.set_defaults(run=run)
    return parser


def train_main(argv: list[str] | None = None) -> None:
    """The trainer as a script of its own, for `accelerate launch`."""
    with guarding(argparse.Namespace()) as args:
        from sdatoms.cli.train import add_train, run_train

        parser = LineParser(prog="train_dreambooth_atoms.py", description=run_train.__doc__)
        add_train(parser)
        parser.parse_args(argv, args)
        silence_libraries()
        run_train(args)


def run_guarded(run: Any, args: argparse.Namespace) -> None:
    """Run a command; wrong input becomes one line and exit code 2, Ctrl-C exit code 130."""
    with guarding(args):
        silence_libraries()
        run(args)


@contextlib.contextmanager
def guarding(
    args: argparse.Namespace, signals: Sequence[int] = ENDING
) -> Iterator[argparse.Namespace]:
    """Around a command from its first import on: wrong input becomes one line and exit code 2,
    signals one line and exit code 130; a reader that goes away, as `head` does, changes nothing.

    Args:
        args: the flags, which may be filled meanwhile.
    """
    silence_imports()
    with lasting_console():
        try:
            with stopping_at_signals(*signals):
                yield args
                sys.stdout.flush()
        except AtomError as error:
            print(f"sdatoms: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except OSError as error:
            print(f"sdatoms: {explain_failure(error)}", file=sys.stderr)
            raise SystemExit(2) from None
        except (MemoryError, RuntimeError) as error:
            if not is_full_memory(error):
                raise
            print(f"sdatoms: {explain_full_memory(args, error)}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("sdatoms: stopped", file=sys.stderr)
            raise SystemExit(130) from None


def explain_failure(error: OSError) -> str:
    """One sentence for what the system refuses: a file that is closed, gone or of another kind, a
    full disk.

    Raises:
        OSError: `error`, where it is of another kind.
    """
    if error.errno not in REFUSALS:
        raise error
    try:
        os.getcwd()
    except OSError:
        return "the current folder is gone; go to another one"
    where = "a file" if error.filename is None else repr(clip(os.fsdecode(error.filename), 300))
    return f"{where} cannot be opened or written: {error.strerror}"


def silence_imports() -> None:
    """Keep what libraries say while they are imported, of optional packages that are missing, out
    of a command's output; a verbosity that the user has set stays."""
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def silence_libraries() -> None:
    """Keep the loading bars and advice of diffusers and transformers out of a command's output."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
