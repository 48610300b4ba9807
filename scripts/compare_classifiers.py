"""Table and plot of fine-tuned classifiers: `compare_classifiers.py RUN… --output_dir DIR`.

Every RUN is an `--output_dir` of `finetune_classifier.py`, of one task.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sdatoms.classifiers.compare import compare_runs
from sdatoms.cli.main import run_guarded
from sdatoms.cli.parser import LineParser


def main() -> None:
    parser = LineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output_dir", type=Path, required=True)
    run_guarded(
        lambda args: print(compare_runs(args.runs, args.output_dir), end=""), parser.parse_args()
    )


if __name__ == "__main__":
    main()
