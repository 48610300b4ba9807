"""How long loading, re-strengthening and clearing adapters takes on a UNet, and what it holds.

    python scripts/bench_adapters.py --output adapters.json

Times are medians of `--runs` rounds; every round ends with all weights restored, which is checked.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
from pathlib import Path

import torch

from sdatoms.atoms.config import AtomConfig
from sdatoms.bench.adapters import DTYPES, measure_variant
from sdatoms.models.open import build_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sd15-unet")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    names = ["atoms", "overcomplete", "coefficients", "full"]
    parser.add_argument("--variants", nargs="+", default=names, choices=names)
    parser.add_argument("--output", type=Path, default=None, help="JSON file; else only printed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = build_model(args.model, DTYPES[args.dtype])
    facts = {"model": args.model, "dtype": args.dtype, "threads": args.threads}
    facts |= {"torch": torch.__version__, "load_average": os.getloadavg(), "variants": {}}
    with tempfile.TemporaryDirectory() as folder:
        for variant in args.variants:
            row = measure_variant(model, AtomConfig(variant), args.runs, Path(folder))
            facts["variants"][variant] = row
            print(variant, json.dumps(facts["variants"][variant]), file=sys.stderr)
    facts["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    text = json.dumps(facts, indent=2)
    if args.output:
        args.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
