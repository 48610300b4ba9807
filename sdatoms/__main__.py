"""`python -m sdatoms COMMAND …` and `sdatoms COMMAND …`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run `sdatoms COMMAND …`; Ctrl-C is heard from here on."""
    try:
        from sdatoms.cli.main import main as run
    except KeyboardInterrupt:
        print("sdatoms: stopped", file=sys.stderr)
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
