"""What a training step of Stable Diffusion's UNets holds at its peak, at their native sizes.

    python scripts/bench_step_memory.py --output step-memory.json

The base lies in bfloat16, activations are computed again in backward, text and latents are encoded
before and their models are away, as in `sdatoms train --base_dtype bfloat16
--gradient_checkpointing`. Nothing is run: the peak is counted from the shapes of all tensors that a
step makes. `card_gb` is the smallest card of 8, 12, 16 and 24 GB that holds it and 0.8 GB for the
device's libraries.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sdatoms.bench.step_memory import SIZES, count_steps
from sdatoms.bench.training import METHODS
from sdatoms.storage import write_whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list(SIZES), help="sd15, sd21, sdxl")
    parser.add_argument("--methods", nargs="+", default=list(METHODS[:-1]), choices=METHODS)
    parser.add_argument("--rival", choices=METHODS, help="(default: LoRA r4 on the same layers)")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    found: dict = {}
    for found in count_steps(args.names, args.methods, args.rival):
        if args.output:
            write_whole(args.output, (json.dumps(found, indent=2) + "\n").encode())
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
