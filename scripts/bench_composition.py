"""A subject in a style: two files of atoms mixed, two LoRAs mixed, and both learnt in one training.

    python scripts/bench_composition.py --subjects koala teapot --styles clay ink \\
        --output_dir outputs/bench

Rates and steps are those that `bench_personalization.py --choose` found in the same folder, where
it ran there. Every training is kept; run again, it goes on where it was stopped. It writes
`composition.json`, `composition.md` and a picture a pair.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from sdatoms.bench.composition import WAYS, compare_ways
from sdatoms.bench.composition_report import write_composition
from sdatoms.bench.judge import Painting
from sdatoms.bench.methods import METHODS
from sdatoms.bench.mixing import Mix
from sdatoms.bench.personalization import Bench, Plan
from sdatoms.errors import AtomError

MIXED = ("product b16", "LoRA r4 attention + conv")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subjects", nargs="+", default=["koala", "teapot"])
    parser.add_argument("--styles", nargs="+", default=["clay", "ink"])
    parser.add_argument("--methods", nargs="+", default=list(MIXED), metavar="METHOD")
    parser.add_argument(
        "--style_methods", nargs="+", metavar="METHOD", help="one for each of --methods; the same"
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--base", help="base model; the bundled one when not given")
    parser.add_argument("--evaluator")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400, help="where nothing was chosen")
    parser.add_argument("--prompts", type=int, default=None, help="at most so many a pair")
    parser.add_argument("--train_batch_size", type=int, default=4)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    args = parser.parse_args()
    plan = Plan(
        args.output_dir,
        methods=tuple(args.methods),
        base=args.base,
        evaluator=args.evaluator,
        seeds=tuple(args.seeds),
        steps=(args.steps,),
        batch_size=args.train_batch_size,
        painting=Painting(prompts=args.prompts),
    )
    try:
        others = args.style_methods or args.methods
        if len(others) != len(args.methods):
            raise AtomError(
                f"{len(others)} --style_methods came with {len(args.methods)} --methods; each "
                "takes one"
            )
        bench = Bench(replace(plan, methods=(*args.methods, *others)))
        pairs = zip(args.methods, others, strict=True)
        mixes = [Mix(METHODS[own], METHODS[other]) for own, other in pairs]
        rows = compare_ways(bench, mixes, args.subjects, args.styles, args.ways)
        print(write_composition(bench, mixes, rows, args.subjects, args.styles))
    except AtomError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
