"""Personalize a base by filter atoms and by their peers, side by side.

    python scripts/bench_personalization.py --choose --output_dir outputs/bench
    python scripts/bench_personalization.py --report --output_dir outputs/bench

`--choose` finds each method's rate and steps on validation tasks, `--report` trains by them on test
tasks and writes report.json, .md and .html: all methods beside `--reference`. `--fast` does both,
shortly. Every training is kept; run again, it goes on where it stopped, two terminals share it.
Without any of them the methods are put side by side on one `--subject`, as a PNG beside
`--output_dir`'s cells; `--strip FILE` writes a smaller one, of `--strip_methods`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sdatoms.bench.judge import Painting
from sdatoms.bench.methods import METHODS
from sdatoms.bench.one_subject import SHOWN, show_subject
from sdatoms.bench.personalization import Bench, Plan, shrink
from sdatoms.bench.personalization_choices import choose_settings
from sdatoms.bench.personalization_report import REFERENCE, write_report
from sdatoms.errors import AtomError

STRIP = ("LoRA r4 attention", "LoRA r4 attention + conv", "overcomplete")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("choose", "report", "fast"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--reference", choices=list(METHODS), metavar="METHOD", default=REFERENCE)
    parser.add_argument("--tasks", nargs="*", default=None)
    parser.add_argument("--photographs", type=Path, help="folder of DreamBooth subjects")
    parser.add_argument("--base", help="the bundled one when not given, as the evaluator's")
    parser.add_argument("--evaluator")
    parser.add_argument("--eye", type=Path, help="EfficientNet-Lite0's weights, for `imagenet`")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", nargs="*", type=int, default=[200, 400])
    parser.add_argument("--prompts", type=int, help="at most so many of a task; all when not given")
    parser.add_argument("--guidance_scale", type=float, default=Painting.guidance_scale)
    parser.add_argument("--subject", default="octopus")
    for name, default in (("max_train_steps", 300), ("train_batch_size", 4), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    parser.add_argument("--strip", type=Path, default=None)
    parser.add_argument("--strip_methods", nargs="*", default=list(STRIP), metavar="METHOD")
    args = parser.parse_args()
    whole = args.choose or args.report or args.fast
    plan = Plan(
        args.output_dir,
        methods=tuple(args.methods or (Plan.methods if whole else SHOWN)),
        tasks=tuple(args.tasks) if args.tasks else None,
        photographs=args.photographs,
        base=args.base,
        evaluator=args.evaluator,
        eye=args.eye,
        seeds=tuple(args.seeds) if whole else (args.seed,),
        steps=tuple(sorted(args.steps)) if whole else (args.max_train_steps,),
        batch_size=args.train_batch_size,
        painting=Painting(prompts=args.prompts, guidance_scale=args.guidance_scale),
    )
    try:
        bench = Bench(shrink(plan) if args.fast else plan)
        if args.choose or args.fast:
            choose_settings(bench)
        if args.report or args.fast:
            print(write_report(bench, *bench.test(), args.output_dir, args.reference))
        if not whole:
            show_subject(bench, args.subject, args.strip, args.strip_methods)
    except AtomError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
