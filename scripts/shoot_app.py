"""Photograph every tab of the app: in the light, in the dark and at a phone's width.

The app is started on a free port over a folder of runs; where that holds none, one is trained first
through the app's own endpoint. `--assets` keeps the two pictures that the README shows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bundled.app_pictures import LOOKS, TABS, keep_pictures, photograph_app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters-dir", default="outputs")
    parser.add_argument("--output", default="outputs/shots", type=Path)
    parser.add_argument("--looks", nargs="+", default=list(LOOKS), choices=list(LOOKS))
    parser.add_argument("--tabs", nargs="+", default=list(TABS), choices=list(TABS))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--assets", action="store_true", help="keep the README's pictures too")
    args = parser.parse_args()
    photograph_app(args.adapters_dir, args.output, args.looks, args.tabs, args.chromium)
    if args.assets:
        keep_pictures(args.output)


if __name__ == "__main__":
    main()
