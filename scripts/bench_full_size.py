"""What pipelines of full size take: placements by card, and with --run the commands themselves.

    python scripts/make_full_size.py sd15 --form single
    OMP_NUM_THREADS=1 python scripts/bench_full_size.py sd15 --run outputs/full-size

Prints one JSON object. Placements follow from published shapes; commands run on this machine:
counting atoms, one training step, the life of adapters in Python, and a picture of two steps, with
the file loaded and let in after the first. Where the directory lies beside the single file, it is
opened too, and the same file loaded. `--px` takes another size than the native one, `--dtype
bfloat16` half the memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from sdatoms.bench.full_size import FULL_SIZES
from sdatoms.bench.full_size_runs import measure_commands, tabulate_placements
from sdatoms.storage import find_assets, write_whole

FORMS = {"single file": "{}.safetensors", "directory": "{}"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list(FULL_SIZES))
    parser.add_argument("--run", type=Path, default=None, help="folder of make_full_size.py")
    parser.add_argument("--forms", nargs="+", choices=tuple(FORMS), default=list(FORMS))
    parser.add_argument("--px", type=int, default=None, help="side of pictures; the native one")
    parser.add_argument("--dtype", default="auto", help="of the base, in every command")
    parser.add_argument("--subject", default="octopus", help="bundled pictures to train on")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    found: dict[str, Any] = {}
    facts = {"machine": platform.processor(), "torch": torch.__version__, "pipelines": found}
    for name in args.names:
        side = args.px or FULL_SIZES[name].side
        row = {"placement": tabulate_placements(name), "px": side, "dtype": args.dtype}
        found[name] = row
        bases = {form: args.run / FORMS[form].format(name) for form in args.forms if args.run}
        pictures = find_assets() / "subjects" / args.subject
        with tempfile.TemporaryDirectory(dir=args.run) as work:
            for form, base in bases.items():
                given = (base, pictures, Path(work), side, args.dtype)
                for command, taken in measure_commands(*given) if base.exists() else ():
                    row.setdefault(form, {})[command] = taken
                    if args.output:
                        write_whole(args.output, json.dumps(facts, indent=2).encode())
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
