"""Make `assets/subjects/` and `assets/truth/` from npm packages: `python scripts/make_subjects.py`.

Three kinds of task: one character in several scenes, with the true pictures of prompts about it;
one concept as several vendors draw it; one drawing style of several things. Needs `npm`, and but
for the scenes `resvg_py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bundled.scene_subjects import write_scene_subjects
from bundled.subjects import SUBJECTS, read_names, write_subject

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packages", type=Path, default=ROOT / "runs" / "base" / "packages")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "assets")
    parser.add_argument("--scenes_only", action="store_true", help="leave the vendors' drawings")
    args = parser.parse_args()
    write_scene_subjects(args.packages, args.output_dir)
    if args.scenes_only:
        return
    names = read_names(args.packages)
    for name, subject in SUBJECTS.items():
        write_subject(subject, args.output_dir / "subjects" / name, args.packages, names)


if __name__ == "__main__":
    main()
