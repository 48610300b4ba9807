"""Two choices of the trainer, by measurement: running averages or live atoms, and the best step.

    python scripts/bench_choices.py --subject hamburger --output choices.json

Every seed trains once. At every mark the live atoms and their running averages, which do not touch
the training, are measured twice: as the trainer measures its samples (the instance prompt, which
is what a choice has to go by), and on prompts and seeds that no choice saw. A table tells what the
averages change, and what each measure of the samples would have chosen.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sdatoms.bench.choices import compare_kinds, compare_rules, measure_choices
from sdatoms.storage import list_subjects
from sdatoms.training.presets import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subject", default="hamburger", choices=list_subjects())
    parser.add_argument("--preset", default="balanced", choices=list(PRESETS))
    parser.add_argument("--marks", nargs="+", type=int, default=[25, 50, 75, 100])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=None, help="JSON; a PNG goes beside it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = measure_choices(args.subject, args.preset, args.marks, args.seeds, args.output)
    print(compare_kinds(rows, args.marks))
    print(compare_rules(rows))


if __name__ == "__main__":
    main()
