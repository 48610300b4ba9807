"""What pipelines of full size take: placements by card, and with --run the commands themselves.

    python scripts/make_full_size.py sd15 --form single
    OMP_NUM_THREADS=1 python scripts/bench_full_size.py sd15 --run outputs/full-size

Prints one JSON object. Placements follow from published shapes; commands run on this machine at the
native size: counting atoms, one training step, a picture of two steps with the file loaded.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

from sdatoms.bench.full_size import FULL_SIZES
from sdatoms.bench.full_size_runs import measure_commands, tabulate_placements
from sdatoms.storage import find_assets, write_whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(FULL_SIZES))
    parser.add_argument("--run", type=Path, default=None, help="folder of make_full_size.py")
    parser.add_argument("--subject", default="octopus", help="bundled pictures to train on")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    found = {name: {"placement": tabulate_placements(name)} for name in args.names}
    for name in args.names if args.run else []:
        base = args.run / f"{name}.safetensors"
        with tempfile.TemporaryDirectory() as work:
            pictures, side = find_assets() / "subjects" / args.subject, FULL_SIZES[name].side
            found[name]["commands"] = measure_commands(base, pictures, Path(work), side)
    text = json.dumps({"machine": platform.processor(), "pipelines": found}, indent=2)
    print(text)
    if args.output:
        write_whole(args.output, text.encode())


if __name__ == "__main__":
    main()
