"""Transfer small pre-trained classifiers to other tasks by filter atoms and by their peers.

    python scripts/bench_transfer.py --models resnet20.safetensors resnet56.safetensors \\
        --cifar cifar10-subset.zip --subjects dreambooth --output_dir outputs/transfer

Every method sees the same pictures, batches and number of steps. Its learning rate is chosen on the
validation split of each task, with the first seed: from three and, where the best is at an edge, up
to `--widen` beyond it. Other seeds draw other training pictures, other test pictures where a task
has no test split of its own, and another head. One JSON line is appended to `runs.jsonl` a run; run
it again to continue, or with other selections; several processes may share the work by task.
`--report` writes table and plot of what is there.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from bundled.emoji_tasks import EMOJI, PACKAGES, list_emoji_tasks

from sdatoms.bench.transfer import METHODS, TASKS, TransferPlan, report_transfer, run_transfer
from sdatoms.classifiers.tasks import read_task
from sdatoms.cli.main import run_guarded
from sdatoms.cli.parser import LineParser


def bench(args: argparse.Namespace) -> None:
    """Run the cells that are not done yet, then report."""
    plan = TransferPlan(**{f.name: getattr(args, f.name) for f in fields(TransferPlan)})
    emoji = list_emoji_tasks(args.packages, args.emoji)
    if not args.report:
        where = {"subjects": str(args.subjects)}
        run_transfer(plan, lambda name: read_task(where.get(name, name), emoji, args.cifar))
    report_transfer(args.output_dir)


def main() -> None:
    parser = LineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], help="as for finetune_classifier.py")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=None,
        choices=list(METHODS),
        help="all that differ: 'tuned' trains norms beside every variant as it is",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_train", type=int, default=1000)
    parser.add_argument("--num_test", type=int, default=1000)
    parser.add_argument("--resolution", type=int, default=32, help="px")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--subject_epochs", type=int, default=60, help="of the few pictures there")
    parser.add_argument(
        "--subject_draws",
        type=int,
        default=3,
        help="splits of the subjects a seed, of which 30 pictures are tested; their mean counts",
    )
    parser.add_argument(
        "--batch_norm",
        default="frozen",
        choices=("frozen", "tuned"),
        help="'tuned' goes on averaging, by every method, and trains the gains and shifts beside "
        "LoRA and atoms, counted with them",
    )
    parser.add_argument("--widen", type=int, default=1, help="most rates beyond an edge")
    parser.add_argument("--mixed_precision", default="no", choices=("no", "bf16"))
    parser.add_argument("--cifar", type=Path, default=None, help="pictures for cifar-rotation")
    parser.add_argument("--subjects", type=Path, default=None, help="a folder a subject")
    parser.add_argument("--packages", type=Path, default=PACKAGES)
    parser.add_argument("--emoji", type=Path, default=EMOJI)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/transfer"))
    parser.add_argument("--report", action="store_true", help="tables and plots; train nothing")
    run_guarded(bench, parser.parse_args())


if __name__ == "__main__":
    main()
