"""Time a training pass of one convolution with atoms both ways: by its tuned weight, and by the
input's columns; beside LoRA r = 4 (through PEFT) on it and the frozen convolution alone.

    OMP_NUM_THREADS=1 python scripts/bench_columns.py --output columns.json

Forward and backward, with a gradient for the input, as in a UNet. Prints one JSON object: for every
layer, positions, what `sdatoms.atoms.columns` picks, milliseconds (medians) and the largest
relative difference between the gradients of the two ways; at the end the rule's constant for this
device, as these layers have it.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch

from sdatoms.bench.columns import LAYERS, fit_worth, measure_layer
from sdatoms.storage import write_whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--repeats", type=int, default=5, help="passes a layer and way")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    torch.manual_seed(0)
    result = {
        "machine": platform.processor() or platform.machine(),
        "device": args.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "layers": {
            name: measure_layer(LAYERS[name], args.repeats, args.device) for name in args.layers
        },
    }
    result["fit"] = fit_worth(result["layers"])
    text = json.dumps(result, indent=1)
    if args.output:
        write_whole(args.output, text.encode())
    print(text)


if __name__ == "__main__":
    main()
