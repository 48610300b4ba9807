"""Make `assets/examples/`: five atom files of the bundled base, and their pictures.

    python scripts/make_examples.py                       # all, each trained once
    python scripts/make_examples.py --only robot ink    # some of them
    python scripts/make_examples.py --base_dir runs/base/export

Interrupted, the same command goes on; another base or another number of steps begins anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bundled.examples import EXAMPLES, make_example

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=list(EXAMPLES), choices=list(EXAMPLES))
    parser.add_argument("--base_dir", default=None, help="(default: the bundled base)")
    parser.add_argument(
        "--max_train_steps", type=int, default=None, help="(default: 100; styles: 400)"
    )
    parser.add_argument("--work_dir", type=Path, default=ROOT / "runs" / "examples")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "assets" / "examples")
    args = parser.parse_args()
    for name in args.only:
        path = make_example(
            name,
            base_dir=args.base_dir,
            work_dir=args.work_dir,
            output_dir=args.output_dir,
            max_train_steps=args.max_train_steps,
        )
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
