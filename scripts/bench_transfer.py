"""Transfer small pre-trained classifiers to other tasks by filter atoms and by their peers.

    python scripts/bench_transfer.py --models resnet20.safetensors resnet56.safetensors \\
        --cifar cifar10-subset.zip --subjects dreambooth --output_dir outputs/transfer

Every method sees the same pictures, batches and number of steps. Its learning rate is chosen on the
validation split of each task, with the first seed: from three or, where the best is at an edge,
four. Other seeds draw other training pictures, other test pictures where a task has no test
split of its own, and another head. One JSON line is appended to `runs.jsonl` a run; run it again to
continue, or with other selections; several processes may share the work by task. `--report` writes
table and plot of what is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from classifier_tasks import read_task
from transfer_report import group, read_rows, report

from sdatoms import AtomConfig
from sdatoms.classifiers.experiment import Experiment, run_experiment
from sdatoms.classifiers.fit import TrainSettings
from sdatoms.classifiers.methods import BLOCKS, VARIANTS, attach, suggest_rates
from sdatoms.classifiers.model import open_classifier
from sdatoms.classifiers.pictures import Task, draw_task
from sdatoms.cli.main import run_guarded
from sdatoms.cli.parser import LineParser
from sdatoms.errors import AtomError

ROOT = Path(__file__).parent.parent
TASKS = ("emoji-category", "emoji-vendor", "cifar-rotation", "subjects")


@dataclass(frozen=True)
class Method:
    """How a classifier is tuned."""

    name: str
    atoms: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)


WIDEN = 1
"""How many rates may be tried beyond the edges of those that suit a method."""
METHODS = {
    "linear probe": Method("linear_probe"),
    "bias": Method("bias"),
    **{f"LoRA r{rank}": Method("lora_conv", options={"rank": rank}) for rank in (1, 4, 16)},
    "full fine-tuning": Method("full_finetune"),
    **{variant: Method(variant) for variant in VARIANTS},
    **{
        f"{variant} + norms": Method(variant, options={"train_norms": True}, ratios={"norm": 1.0})
        for variant in VARIANTS
    },
    **{f"{variant}, sparse": Method(variant, {"decomposition": "sparse"}) for variant in VARIANTS},
    "overcomplete, m1 = 6": Method("overcomplete", {"num_inner_atoms": 6}),
    "full, m1 = 5": Method("full", {"num_inner_atoms": 5}),
    "full, m1 = 1, channel": Method("full", {"num_inner_atoms": 1, "block_view": "channel"}),
    "coefficients, 8x8, few": Method("coefficients", {**BLOCKS, "block_share": 0.008}),
    "coefficients, 8x8": Method("coefficients", BLOCKS),
    "coefficients, 16x16": Method(
        "coefficients", {**BLOCKS, "block_size": 16, "block_share": 0.15}
    ),
    "coefficients, 8x8, sparse": Method("coefficients", {**BLOCKS, "decomposition": "sparse"}),
    "full, 8x8": Method("full", BLOCKS),
    "full, 8x8, spatial x 0.3": Method("full", BLOCKS, ratios={"spatial": 0.3}),
}


def main() -> None:
    parser = LineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], help="as scripts/classifier_models.py")
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
    parser.add_argument("--mixed_precision", default="no", choices=("no", "bf16"))
    parser.add_argument("--cifar", type=Path, default=None, help="pictures for cifar-rotation")
    parser.add_argument(
        "--subjects", type=Path, default=None, help="a folder of pictures a subject"
    )
    parser.add_argument("--packages", type=Path, default=ROOT / "runs" / "base" / "packages")
    parser.add_argument("--emoji", type=Path, default=ROOT / "runs" / "evaluator" / "pictures.pt")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/transfer"))
    parser.add_argument(
        "--report", action="store_true", help="write tables and plots; train nothing"
    )
    run_guarded(bench, parser.parse_args())


def bench(args: argparse.Namespace) -> None:
    """Run the cells that are not done yet, then report."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "runs.jsonl"
    if not args.report:
        check_epochs(read_rows(path), args, path)
        pools = {name: read_pool(name, args) for name in args.tasks}
        for model, seed in itertools.product(args.models, args.seeds):
            tasks: dict[tuple[str, int], Task] = {}
            for name, method, again in list_cells(args):
                key = {"model": Path(model).stem, "task": name, "method": method}
                key["batch_norm"] = args.batch_norm
                own = [row for row in read_rows(path) if match(row, key)]
                if any(match(row, {"seed": seed, "draw": again}) for row in own):
                    continue
                chosen = [row["learning_rate"] for row in own]
                suited = suggest_rates(METHODS[method].name, args.batch_norm == "tuned")
                rates = tuple(chosen[:1]) or suited
                if (name, again) not in tasks:
                    tasks[name, again] = draw(pools[name], seed + 1000 * again, args)
                task = tasks[name, again]
                epochs = count_epochs(name, args)
                row = run_cell(model, task, METHODS[method], rates, seed, epochs, args)
                add_row(path, {**key, "seed": seed, "draw": again, **row})
    for model, rows in group(read_rows(path)):
        report(model, rows, args.output_dir, tuple(METHODS), TASKS)


def list_cells(args: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Task, method and draw; the few subjects are drawn several times a seed."""
    tuned = args.batch_norm == "tuned"
    differ = [name for name, m in METHODS.items() if not (tuned and "train_norms" in m.options)]
    methods = args.methods or differ
    for name, method in itertools.product(args.tasks, methods):
        for again in range(args.subject_draws if name == "subjects" else 1):
            yield name, method, again


def count_epochs(name: str, args: argparse.Namespace) -> int:
    return args.subject_epochs if name == "subjects" else args.epochs


def check_epochs(rows: list[dict[str, Any]], args: argparse.Namespace, path: Path) -> None:
    """Runs of other lengths do not belong in one table, nor is a learning rate theirs to share."""
    models = {Path(model).stem for model in args.models}
    for row in rows:
        asked = row["model"] in models and row["task"] in args.tasks
        if not asked or row["batch_norm"] != args.batch_norm:
            continue
        if row["epochs"] != (epochs := count_epochs(row["task"], args)):
            raise AtomError(
                f"{str(path)!r} holds runs of {row['method']} on {row['task']} over "
                f"{row['epochs']} epochs, not {epochs}; give another --output_dir"
            )


def read_pool(name: str, args: argparse.Namespace):
    where = str(args.subjects) if name == "subjects" else name
    return read_task(where, packages=args.packages, emoji=args.emoji, cifar=args.cifar)


def draw(pool, seed: int, args: argparse.Namespace) -> Task:
    return draw_task(pool, 32, num_train=args.num_train, num_test=args.num_test, seed=seed)


def run_cell(
    model: str,
    task: Task,
    method: Method,
    rates: tuple[float, ...],
    seed: int,
    epochs: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    classifier = open_classifier(model, len(task.classes), seed=seed, resolution=32)
    options = dict(method.options)
    if args.batch_norm == "tuned":
        options["statistics"] = True
        options["train_norms"] = method.name in (*VARIANTS, "lora_conv")
    tuned = attach(classifier, method.name, AtomConfig(**method.atoms, seed=seed), **options)
    settings = TrainSettings(epochs=epochs, mixed_precision=args.mixed_precision, seed=seed)
    result = run_experiment(
        tuned, task, Experiment(rates, settings, widen=WIDEN, ratios=method.ratios)
    )
    kept = ("learning_rate", "validation_accuracy", "test_accuracy", "trials", "parameters")
    kept += ("head_parameters", "bytes", "head_bytes", "seconds", "pictures", "torch")
    return {key: result[key] for key in kept} | {
        "epochs": settings.epochs,
        "mixed_precision": args.mixed_precision,
        "batch_norm": args.batch_norm,
    }


def match(row: dict[str, Any], key: dict[str, Any]) -> bool:
    return all(row.get(name) == value for name, value in key.items())


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Append one line in one write, so that processes do not tear each other's."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, (json.dumps(row) + "\n").encode())
    os.close(handle)
    shown = {k: row[k] for k in ("model", "task", "method", "seed", "learning_rate", "seconds")}
    print(json.dumps(shown | {"test_accuracy": row["test_accuracy"]}), flush=True)


if __name__ == "__main__":
    main()
