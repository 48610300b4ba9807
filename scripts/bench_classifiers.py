"""Atoms in ConvNeXt-B, ViT-B/16 and ResNet-50 at real size: counts, one training step, memory.

    python scripts/bench_classifiers.py --output classifiers.json

Weights are random, shapes are the published ones. Counts stand beside those on paper, which know no
budget: `m·h·w` a k×k convolution for `atoms`, `g·i·m·m1 + m·m1·h·w` for `overcomplete`, `m·p` of
the block view for `coefficients`, the sum for `full`. Every variant runs in a process of its own,
so that the peak of its memory is its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sdatoms.bench.classifiers import COLUMNS, MODELS, measure
from sdatoms.bench.process import call_apart
from sdatoms.classifiers.drawings import write_table
from sdatoms.classifiers.methods import VARIANTS
from sdatoms.storage import write_whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--output", type=Path, default=None, help="JSON file, with every layer")
    args = parser.parse_args()
    pairs = [(model, variant) for model in args.models for variant in args.variants]
    if len(pairs) == 1:
        print(json.dumps(measure(*pairs[0], args.batch)))
        return
    found = []
    for model, variant in pairs:
        found.append(call_apart(measure, model, variant, args.batch))
        print({k: found[-1][k] for k in COLUMNS}, file=sys.stderr, flush=True)
    if args.output:
        write_whole(args.output, (json.dumps(found, indent=1) + "\n").encode())
    print(write_table(found, COLUMNS))


if __name__ == "__main__":
    main()
