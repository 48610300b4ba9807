"""Write Stable Diffusion pipelines of full size with seeded random weights, to try things on.

    python scripts/make_full_size.py sd15 sdxl --form single --output_dir outputs/full-size

Each is written as a directory and as a single file in the original layout, in float16: sd15 2.1 GB
a form, sd21 2.6 GB, sdxl 6.9 GB. The default folder is ignored by git; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from sdatoms import AtomError
from sdatoms.bench.full_size import FULL_SIZES, write_directory, write_single


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=tuple(FULL_SIZES))
    parser.add_argument(
        "--form", nargs="+", choices=("directory", "single"), default=["directory", "single"]
    )
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/full-size"))
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    for name in args.names:
        if "directory" in args.form:
            print(write_directory(name, args.output_dir / name, dtype), flush=True)
        if "single" in args.form:
            path = args.output_dir / f"{name}.safetensors"
            print(write_single(name, path, dtype), flush=True)


if __name__ == "__main__":
    try:
        main()
    except AtomError as error:
        print(f"make_full_size.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
