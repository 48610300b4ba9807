"""What each setting of the presets does: the row, and the same changed in one point, side by side.

    python scripts/bench_ablations.py --prompts 9 --output_dir outputs/bench

It takes rate and steps that `bench_personalization.py --choose` found in the same folder, trains on
the subjects that choose, and writes `ablations.json` and `ablations.md` there. Every training is
kept; run again, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sdatoms.bench.ablation_rows import PRESETS
from sdatoms.bench.ablations import ablate, list_changed, write_ablations
from sdatoms.bench.judge import Painting
from sdatoms.bench.methods import METHODS
from sdatoms.bench.personalization import Bench, Plan
from sdatoms.errors import AtomError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default=PRESETS[0], choices=list(METHODS), metavar="METHOD")
    parser.add_argument(
        "--changes", nargs="*", metavar="CHANGE", help="all when not given; of none, the row alone"
    )
    parser.add_argument("--tasks", nargs="+", help="all subjects that choose when not given")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--prompts", type=int, help="at most so many of a task; all when not given")
    parser.add_argument("--guidance_scale", type=float, default=Painting.guidance_scale)
    parser.add_argument("--base", help="base model; the bundled one when not given")
    parser.add_argument("--evaluator")
    parser.add_argument("--train_batch_size", type=int, default=4)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    args = parser.parse_args()
    row = METHODS[args.method]
    try:
        changed = list(list_changed(row, args.changes).values())
        plan = Plan(
            args.output_dir,
            methods=(row.name, *(method.name for method in changed)),
            tasks=tuple(args.tasks) if args.tasks else None,
            base=args.base,
            evaluator=args.evaluator,
            seeds=tuple(args.seeds),
            batch_size=args.train_batch_size,
            painting=Painting(prompts=args.prompts, guidance_scale=args.guidance_scale),
        )
        bench = Bench(plan)
        print(write_ablations(bench, row, ablate(bench, row, changed)))
    except AtomError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
