"""`python -m sdatoms COMMAND …` and `sdatoms COMMAND …`."""

from sdatoms.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
