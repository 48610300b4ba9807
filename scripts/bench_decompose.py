"""Time the decompositions on Stable Diffusion 1.5's UNet, from its config with random weights:
`python scripts/bench_decompose.py --output decompose.json`.

Parts: `linear`, all 98 convolutions, 3×3 in the spatial view and 1×1 in the channel view; `block`,
the attention projections in the channel view; `sparse`, 9 atoms for each of the 52 convolutions
larger than 1×1, learning and codes. Each is a whole `inject`. Extra memory is the peak of the
resident set (VmHWM, reset before through /proc/self/clear_refs) above what was resident at the
start; `linear` needs less than one weight, `sparse` keeps its codes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from sdatoms.bench.decompose import PARTS, build_unet, measure_parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS)
    parser.add_argument("--repeats", type=int, default=3, help="runs of every part (3)")
    parser.add_argument("--limit", type=int, help="only the first LIMIT layers of every part")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    parser.add_argument("--output", type=Path, help="write the results to this JSON file, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {}
    measured = measure_parts(build_unet(), args.parts or PARTS, args.repeats, args.limit)
    for part, facts in measured:
        results[part] = facts
        print(part, json.dumps(results[part]), flush=True)
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if args.output:
        args.output.write_text(json.dumps(versions | results, indent=2) + "\n")


if __name__ == "__main__":
    main()
