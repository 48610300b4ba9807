"""Atoms on a base in 16 bits, by two ways to add their change, held against float32.

    python scripts/bench_base_dtype.py --output base_dtype.json

One pass of the bundled base on a CPU, at several sizes of the atoms' relative weight change: the
cosine of the atoms' gradient to float32's, the relative error of what they change in the UNet's
output, and processor seconds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from sdatoms.bench.base_dtype import CONFIGS, measure_config
from sdatoms.bench.process import call_apart
from sdatoms.storage import write_whole
from sdatoms.training.report import name_device


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--relative", nargs="+", type=float, default=[1e-3, 1e-2, 3e-2])
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=None, help="JSON file; else only printed")
    args = parser.parse_args()
    facts: dict[str, Any] = {"torch": torch.__version__, "device": name_device()}
    facts |= {"dtype": args.dtype, "threads": args.threads, "methods": {}}
    for method in args.methods:
        rows = facts["methods"][method] = {}
        for relative in args.relative:
            asked = (method, relative, args.dtype)
            rows[f"{relative:g}"] = call_apart(measure_config, *asked, threads=args.threads)
            if args.output:
                write_whole(args.output, (json.dumps(facts, indent=2) + "\n").encode())
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
