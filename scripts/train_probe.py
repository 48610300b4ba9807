"""Train the probe that says which modifiers a picture shows: `python scripts/train_probe.py`.

On true scenes of the emoji packages, resumable, in `runs/base/probe.pt`; at the end it is written
to `--output`, where the package has it from, and judged, as one JSON object, on 2,000 true scenes
of held-out concepts.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from bundled.base_stages import Run
from bundled.probe_stage import fit_probe, score_held_out

ROOT = Path(__file__).parents[1]
PROBE = ROOT / "assets" / "emoji-probe" / "probe.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run_dir", type=Path, default=ROOT / "runs" / "base")
    parser.add_argument("--output", type=Path, default=PROBE)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    run = Run(args.run_dir, ROOT / "assets" / "emoji-sd", steps=args.steps, seed=args.seed)
    probe = fit_probe(run, args.output)
    print(json.dumps(score_held_out(run, probe, random.Random(args.seed + 1))))


if __name__ == "__main__":
    main()
