"""Train the bundled base model from the emoji packages: `python scripts/train_base.py STAGE
[--steps N]`.

Stages in order: autoencoder, latents, denoiser, export; `decoder` then sharpens the autoencoder's
second half for the latents as they are. With `--from_export`, training goes on from the exported
pipeline where the run directory has no state of its own. Each is seeded, resumable (run it again),
logs to `runs/base/<stage>.jsonl` and paints a grid of samples on the way.

`denoiser --fall 0 --steps 1000000` goes on at a constant rate until it is stopped; it saves every
250 steps. For an export, `denoiser --state tail --fall N --steps M` copies its state and lets the
rate fall over the last N of M steps; `export --state tail --output_dir DIR` writes the pipeline.
`latents --shards N` adds cached scenes, which `denoiser` takes in when it is started again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from bundled.base_stages import STAGES, Run

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=tuple(STAGES))
    parser.add_argument("--run_dir", type=Path, default=ROOT / "runs" / "base")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "assets" / "emoji-sd")
    parser.add_argument("--from_export", action="store_true")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--fall", type=int, default=None, help="steps of the falling tail")
    parser.add_argument("--rate", type=float, default=None, help="the stage's learning rate")
    parser.add_argument("--shards", type=int, default=10, help="of 10,000 scenes, for `latents`")
    parser.add_argument("--state", default="denoiser", help="the denoiser's state to train, export")
    parser.add_argument("--seed", type=int, default=0)
    settings = vars(parser.parse_args())
    stage = settings.pop("stage")
    run = Run(**settings)
    run.run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    pid = run.run_dir / f"{stage}.pid"
    pid.write_text(f"{os.getpid()}\n")
    STAGES[stage](run)
    pid.unlink()


if __name__ == "__main__":
    main()
