"""`python -m sdatoms_app` is `sdatoms ui`."""

import sys

from sdatoms.cli.main import main

if __name__ == "__main__":
    main(["ui", *sys.argv[1:]])
