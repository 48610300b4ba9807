"""`sdatoms COMMAND …` and `python -m sdatoms COMMAND …`."""

from __future__ import annotations

import sdatoms
from sdatoms.commands import add_commands, run_guarded
from sdatoms.options import LineParser

__all__ = ["main"]


def main(argv: list[str] | None = None) -> None:
    parser = LineParser(
        prog="sdatoms", description="Stable Diffusion personalization with filter atoms."
    )
    parser.add_argument("--version", action="version", version=f"sdatoms {sdatoms.__version__}")
    add_commands(parser)
    args = parser.parse_args(argv)
    run_guarded(args.run, args)


if __name__ == "__main__":
    main()
