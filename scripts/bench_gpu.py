"""Everything that has to be measured on a GPU, in one run of at most eight minutes.

    bash scripts/bench_gpu.sh

Training steps and peak memory at 512 px (Stable Diffusion 1.5) and 1024 px (SDXL) at batch 1 and 4,
beside LoRA, LoKr, OFT and full fine-tuning; reading, baking and clearing atom files; pictures with
and without atoms, also compiled; and both ways to train a layer, for every shape of layer, from
which the choice between them follows. Bases have published shapes and random weights, in bfloat16:
nothing is downloaded. What fails, for want of memory or time, is a row that says so. One JSON file
and one table in Markdown are written, and a JSON file for each part as it goes.

`--tiny --device cpu` shows on any machine that all of it runs; it measures nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from sdatoms.bench.gpu import measure_gpu, tabulate
from sdatoms.bench.gpu_parts import PARTS
from sdatoms.bench.gpu_rows import Setting
from sdatoms.bench.gpu_training import METHODS
from sdatoms.storage import write_whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seconds", type=float, default=465.0, help="for all parts together")
    parser.add_argument("--rounds", type=int, default=8, help="that a figure is the median of")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="networks of a few thousand numbers")
    parser.add_argument("--dtype", default="bfloat16", help="of the bases")
    parser.add_argument("--compiler", default="inductor", help="backend of torch.compile")
    parser.add_argument("--together", action="store_true", help="all parts in this process")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench_gpu"))
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --tiny --device cpu shows that all of it runs")
    setting = Setting(
        args.device,
        args.tiny,
        methods=tuple(args.methods),
        rounds=args.rounds,
        compiler=args.compiler,
        dtype=args.dtype,
    )
    asked = (args.parts, args.output_dir / "parts", args.seconds, setting)
    for facts in measure_gpu(*asked, apart=not args.together):
        name, found = list(facts["parts"].items())[-1]
        print(f"{name}: {len(found['rows'])} rows in {found['seconds']} s", file=sys.stderr)
        text = json.dumps(facts, indent=2) + "\n"
        write_whole(args.output_dir / "gpu.json", text.encode())
        write_whole(args.output_dir / "gpu.md", tabulate(facts).encode())
    print((args.output_dir / "gpu.md").read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
