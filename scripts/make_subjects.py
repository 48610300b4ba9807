"""Make `assets/subjects/` from npm packages: `python scripts/make_subjects.py`.

Needs `npm` and `resvg_py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bundled.subjects import SUBJECTS, read_names, write_subject

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, default=ROOT / "runs" / "base" / "packages")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "assets" / "subjects")
    args = parser.parse_args()
    names = read_names(args.packages)
    for name, subject in SUBJECTS.items():
        write_subject(subject, args.output_dir / name, args.packages, names)


if __name__ == "__main__":
    main()
