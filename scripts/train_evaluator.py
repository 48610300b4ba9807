"""Train the bundled evaluator: `python scripts/train_evaluator.py clip`, `… instance`, `… drawing`
and `… export` (needs `npm`, and `resvg_py` the first time).

The first three may run at the same time. They are seeded and resumable (run them again) and log
to `runs/evaluator/`; with `--from_export` they go on from `assets/emoji-clip/`. `captions` prints
how often the right caption of a scene of a held-out concept is found among 20 that differ in one
modifier. `export` writes `assets/emoji-clip/` and prints, as one JSON object, that and what else is
found among the concepts in `bundled/held_out.txt`, which the evaluator has never seen: the same
concept by another vendor, the vendor, the same picture, and the concept by its name.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from bundled.base_export import train_tokenizer
from bundled.evaluator_data import load_collection
from bundled.evaluator_stages import STAGES, Run, copy_tokenizer

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=tuple(STAGES))
    parser.add_argument("--run_dir", type=Path, default=ROOT / "runs" / "evaluator")
    parser.add_argument("--packages", type=Path, default=ROOT / "runs" / "base" / "packages")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "assets" / "emoji-clip")
    parser.add_argument("--from_export", action="store_true", help="go on from --output_dir")
    parser.add_argument(
        "--blend", type=float, default=1.0, help="export's share of weights just trained"
    )
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--rate", type=float, default=None, help="learning rate")
    parser.add_argument("--save_every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    settings = vars(parser.parse_args())
    stage = settings.pop("stage")
    run = Run(**settings)
    run.run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    everything = load_collection(run.packages, run.run_dir / "pictures.pt")
    shown = [c for c in everything.concepts if not c.held_out]
    if run.from_export:
        copy_tokenizer(run.output_dir, run.run_dir / "tokenizer")
    tokenizer = train_tokenizer(shown, run.run_dir / "tokenizer")
    if figures := STAGES[stage](run, everything, tokenizer):
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
