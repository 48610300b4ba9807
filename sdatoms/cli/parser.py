"""A parser of command lines whose refusals take one line."""

from __future__ import annotations

import argparse
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

from sdatoms.settings import list_flags

__all__ = [
    "LineParser",
]


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
            near = get_close_matches(flag, sorted(list_flags(self)), 1)
            hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            self.error(f"unknown {'flag' if flag.startswith('-') else 'word'} {flag}; {hint}")
        return parsed

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)
