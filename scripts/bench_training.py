"""What a training step costs: every variant, LoRA r = 4 on the same layers, and full fine-tuning.

    python scripts/bench_training.py --output training.json
    python scripts/bench_training.py --rounds 15 --threads 1 --output turns.json
    python scripts/bench_training.py --presets --output sdatoms/training/presets.json

Each method runs in a process of its own: peak memory is that process's, and `seconds_per_step` the
median after the first step, of one UNet with random latents and text in AdamW. Cases are the
bundled base and Stable Diffusion 1.5's UNet (random weights) at 256 px, on a CPU in float32; on a
GPU the latter at 512 px in bfloat16 autocast too. Ratios are to the LoRA on the layers that the
variant tunes. `--rounds` takes the methods in turn in one process and compares processor time:
ratios that hold on a machine that others use. `--presets` trains each on a bundled subject, from
the command to its atom file. `core_seconds` are processor time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from sdatoms.bench.presets import measure_presets, read_presets
from sdatoms.bench.process import call_apart
from sdatoms.bench.training import CASES, METHODS, list_cases, measure_beside, measure_cases
from sdatoms.storage import write_whole
from sdatoms.training.presets import PRESETS
from sdatoms.training.real_presets import REAL_PRESETS
from sdatoms.training.report import name_device


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=list_cases(), choices=list(CASES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    about = "of every method and case; of a preset, whose cost is then scaled to its own steps"
    parser.add_argument("--steps", type=int, default=None, help=about)
    parser.add_argument("--lean", action="store_true", help="bfloat16 base, checkpointing")
    parser.add_argument("--rounds", type=int, default=None, help="of all methods in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--presets", nargs="*", default=None, choices=list(PRESETS))
    parser.add_argument("--evaluator", default=None, help="measures the presets' samples")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; else only printed")
    args = parser.parse_args()
    facts: dict[str, Any] = {"threads": args.threads, "torch": torch.__version__}
    facts |= {"device": name_device()}
    if args.presets is not None:
        known = facts["presets"] = read_presets(facts, args.output)
        names = args.presets or [name for name in PRESETS if name not in REAL_PRESETS]
        for name, row in measure_presets(names, args.steps, args.evaluator, args.threads):
            known[name] = row
            write(facts, args.output)
    elif args.rounds:
        facts["in_turn"] = {}
        for case in args.cases:
            asked = (case, args.methods, args.rounds)
            facts["in_turn"][case] = call_apart(measure_beside, *asked, threads=args.threads)
            write(facts, args.output)
    else:
        asked = (args.cases, args.methods, args.steps, args.threads)
        for cases in measure_cases(*asked, lean=args.lean):
            facts["cases"] = cases
            write(facts, args.output)
    print(json.dumps(facts, indent=2))


def write(facts: dict[str, Any], output: Path | None) -> None:
    """What is known so far; a run that is cut short keeps it."""
    if output:
        write_whole(output, (json.dumps(facts, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
