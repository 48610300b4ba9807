"""The web UI's option `--atoms-dir`: where atom files lie."""

import argparse
import os

from modules import paths  # the web UI's own  # pyright: ignore
from modules.paths_internal import normalized_filepath  # pyright: ignore


def preload(parser: argparse.ArgumentParser) -> None:
    """Called by the web UI before it reads its options."""
    parser.add_argument(
        "--atoms-dir",
        type=normalized_filepath,
        help="Path to directory with atom files.",
        default=os.path.join(paths.models_path, "Atoms"),
    )
