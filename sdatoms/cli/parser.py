"""A parser of command lines whose refusals take one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NoReturn

from sdatoms.settings import list_flags

__all__ = [
    "LineParser",
]


OTHER_NAMES = {
    "--lr": "--learning_rate",
    "--batch_size": "--train_batch_size",
    "--steps": "--max_train_steps",
    "--max_steps": "--max_train_steps",
    "--save_steps": "--checkpointing_steps",
    "--save_every_n_steps": "--checkpointing_steps",
    "--train_data_dir": "--instance_data_dir",
    "--dataset_config": "--data_config",
    "--concepts_list": "--data_config",
    "--caption_dropout_rate": "--proportion_empty_prompts",
    "--shuffle_tags": "--shuffle_caption",
    "--random_crop": "--crop_style",
    "--flip_aug": "--random_flip",
    "--reg_data_dir": "--class_data_dir",
    "--min_snr_gamma": "--snr_gamma",
    "--log_with": "--report_to",
}
"""What other trainers call our flags, where the names are not alike."""


class LineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit code 2; flags are never abbreviated."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].split("=")[0]
            chosen = find_command(self, parsed)
            near = find_near(flag, list_flags(chosen))
            hint = f"did you mean {near}?" if near else f"see {chosen.prog} --help"
            hint = "flags come after the command" if near == flag else hint
            chosen.error(f"unknown {'flag' if flag.startswith('-') else 'word'} {flag}; {hint}")
        return parsed

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def find_command(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> Any:
    """The parser of the subcommand that was chosen; the parser itself where it has none."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            name = getattr(parsed, action.dest, None)
            return action.choices.get(name, parser) if name else parser
    return parser


def find_near(flag: str, known: Iterable[str]) -> str | None:
    """The known flag that was meant: of another trainer's name, of the same words in another order,
    or of nearly the same letters."""
    known = sorted(known)
    plain = flag.replace("-", "_").replace("__", "--", 1)
    if OTHER_NAMES.get(plain) in known:
        return OTHER_NAMES[plain]
    words = lambda name: sorted(name.strip("-").replace("-", "_").split("_"))
    same = [name for name in known if words(name) == words(flag)]
    return next(iter(same or get_close_matches(flag, known, 1)), None)
