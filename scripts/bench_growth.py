"""How costs grow with a model's weights, with resolution, batch and the number of adapters.

    OMP_NUM_THREADS=1 python scripts/bench_growth.py --output growth.json

Training steps of atoms, LoRA and full fine-tuning, reading and baking files, other strengths, and
forward passes with and without atoms, on UNets of two levels with random weights; processor
seconds, methods in turn, and the exponent of each cost along each axis. A table in Markdown is
printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from sdatoms.bench.growth import AXES, measure_axis, tabulate_growth
from sdatoms.storage import write_whole
from sdatoms.training.report import name_device


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--rounds", type=int, default=5, help="that are counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=None, help="JSON file; else only the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    facts: dict[str, Any] = {"device": name_device(), "torch": torch.__version__}
    facts |= {"threads": args.threads, "axes": {}}
    for axis in args.axes:
        facts["axes"][axis] = measure_axis(axis, AXES[axis], args.rounds)
        print(axis, "is measured", file=sys.stderr)
        if args.output:
            write_whole(args.output, (json.dumps(facts, indent=2) + "\n").encode())
    print(tabulate_growth(facts["axes"]), end="")


if __name__ == "__main__":
    main()
