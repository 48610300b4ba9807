"""Personalize the bundled base by filter atoms and by their peers, side by side, in one run.

    python scripts/bench_personalization.py --subject octopus --output_dir outputs/bench

Every method sees the same batches, noise and timesteps, the same number of steps and AdamW; each
takes its learning rates from a list, since rates do not carry over between methods. JSON tells for
every method and rate the trained numbers, the bytes of the file, seconds a step, loss, and what
`sdatoms evaluate` measures, on prompts not trained on; a method's best rate is the one with the
largest sum of fidelity and likeness: of a thing that the base has never seen, alignment is no
guide. Run again, it goes on where it was stopped.

A PNG shows the pictures given and one row a method at its best rate; `--strip FILE` writes a
smaller one, for the methods named by `--strip_methods`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sdatoms.bench.personalization import METHODS, SEEDS, draw_methods, measure_methods

STRIP = ("LoRA r4 attention", "LoRA r4 attention + conv", "overcomplete")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subject", default="octopus")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--max_train_steps", type=int, default=300)
    parser.add_argument("--train_batch_size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    parser.add_argument("--strip", type=Path, default=None)
    parser.add_argument("--strip_methods", nargs="*", default=list(STRIP), choices=list(METHODS))
    args = parser.parse_args()
    best = measure_methods(
        args.subject,
        args.methods,
        args.output_dir,
        max_train_steps=args.max_train_steps,
        train_batch_size=args.train_batch_size,
        seed=args.seed,
    )
    grid = draw_methods(args.subject, best.values(), args.output_dir)
    grid.save(args.output_dir / f"{args.subject}.png")
    if args.strip:
        shown = [best[name] for name in args.strip_methods]
        strip = draw_methods(args.subject, shown, args.output_dir, every=len(SEEDS) + 1)
        strip.save(args.strip)


if __name__ == "__main__":
    main()
