"""How long one waits at the start: for `import sdatoms`, for `sdatoms --help`, for the trainer's
first step, and in the app, from its launch, for the first picture.

    python scripts/bench_start.py --output start.json

Seconds by the clock and processor seconds, each of a process of its own, on the bundled base.
`scripts/bench_app.py` says more of the app, which needs a Chromium.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from sdatoms.bench.app import measure_launch
from sdatoms.bench.start import measure_first_step, measure_help, measure_import
from sdatoms.storage import read_subject, write_whole
from sdatoms.training.report import name_device

PARTS = ("import", "help", "first step", "app")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--times", type=int, default=3, help="processes a median is of")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; else only printed")
    args = parser.parse_args()
    measures = {
        "import": lambda: measure_import(args.times),
        "help": lambda: measure_help(args.times),
        "first step": lambda: measure_first_step(read_subject("octopus")[0]),
        "app": lambda: measure_launch(args.chromium),
    }
    facts: dict[str, Any] = {"device": name_device(), "cores": len(os.sched_getaffinity(0))}
    for part in args.parts:
        facts["load_average"] = os.getloadavg()
        facts[part] = measures[part]()
        if args.output:
            write_whole(args.output, (json.dumps(facts, indent=2) + "\n").encode())
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
