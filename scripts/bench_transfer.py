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
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from classifier_data import Task, draw_task
from classifier_drawings import draw_plot, write_table
from classifier_experiment import Experiment, run_experiment
from classifier_methods import VARIANTS, attach, suggest_rates
from classifier_models import open_classifier
from classifier_tasks import read_task
from classifier_training import TrainSettings

from sdatoms import AtomConfig
from sdatoms.checkpoint import write_whole
from sdatoms.commands import run_guarded
from sdatoms.options import LineParser

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
}
COLUMNS = ("method", "parameters", "bytes", "seconds", *TASKS, "mean")


def main() -> None:
    parser = LineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], help="as scripts/classifier_models.py")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
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
        pools = {name: read_pool(name, args) for name in args.tasks}
        for model, seed in itertools.product(args.models, args.seeds):
            tasks: dict[tuple[str, int], Task] = {}
            for name, method, again in list_cells(args):
                rows = read_rows(path)
                key = {"model": Path(model).stem, "task": name, "method": method}
                key["batch_norm"] = args.batch_norm
                if any(match(row, {**key, "seed": seed, "draw": again}) for row in rows):
                    continue
                chosen = [row["learning_rate"] for row in rows if match(row, key)]
                suited = suggest_rates(METHODS[method].name, args.batch_norm == "tuned")
                rates = tuple(chosen[:1]) or suited
                if (name, again) not in tasks:
                    tasks[name, again] = draw(pools[name], seed + 1000 * again, args)
                task = tasks[name, again]
                row = run_cell(model, task, METHODS[method], rates, seed, name, args)
                add_row(path, {**key, "seed": seed, "draw": again, **row})
    for model, rows in group(read_rows(path)):
        report(model, rows, args.output_dir)


def list_cells(args: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Task, method and draw; the few subjects are drawn several times a seed."""
    for name, method in itertools.product(args.tasks, args.methods):
        for again in range(args.subject_draws if name == "subjects" else 1):
            yield name, method, again


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
    name: str,
    args: argparse.Namespace,
) -> dict[str, Any]:
    classifier = open_classifier(model, len(task.classes), seed=seed, resolution=32)
    options = dict(method.options)
    if args.batch_norm == "tuned":
        options["statistics"] = True
        options["train_norms"] = method.name in (*VARIANTS, "lora_conv")
    tuned = attach(classifier, method.name, AtomConfig(**method.atoms, seed=seed), **options)
    settings = TrainSettings(
        epochs=args.subject_epochs if name == "subjects" else args.epochs,
        mixed_precision=args.mixed_precision,
        seed=seed,
    )
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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Runs so far; the first ones were written before they told of batch normalization and of
    draws."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [{"batch_norm": "frozen", "draw": 0, **json.loads(line)} for line in lines]


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Append one line in one write, so that processes do not tear each other's."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, (json.dumps(row) + "\n").encode())
    os.close(handle)
    shown = {k: row[k] for k in ("model", "task", "method", "seed", "learning_rate", "seconds")}
    print(json.dumps(shown | {"test_accuracy": row["test_accuracy"]}), flush=True)


def group(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    name = lambda row: row["model"] + ("-tuned" if row["batch_norm"] == "tuned" else "")
    for model in dict.fromkeys(map(name, rows)):
        yield model, [row for row in rows if name(row) == model]


def report(model: str, rows: list[dict[str, Any]], folder: Path) -> None:
    """Write `<model>.md`, `<model>.png` and `<model>.json`: accuracy in percent, mean ± standard
    deviation over the seeds; the mean over tasks has the deviation of the seeds' means. Seconds are
    a run's on a task of many pictures."""
    tasks = [name for name in TASKS if any(row["task"] == name for row in rows)]
    lines, points = [], []
    for method in (m for m in METHODS if any(row["method"] == m for row in rows)):
        own = [row for row in rows if row["method"] == method]
        line: dict[str, Any] = {"method": method}
        for name in ("parameters", "bytes"):
            line[name] = max(row[name] for row in own)
        large = [row["seconds"] for row in own if row["task"] != "subjects"]
        line["seconds"] = statistics.mean(large or [row["seconds"] for row in own])
        by_seed: dict[int, list[float]] = {}
        for task in tasks:
            draws: dict[int, list[float]] = {}
            for row in (row for row in own if row["task"] == task):
                draws.setdefault(row["seed"], []).append(100 * row["test_accuracy"])
            found = {seed: statistics.mean(values) for seed, values in draws.items()}
            line[task] = show_spread(list(found.values())) if found else None
            for seed, value in found.items():
                by_seed.setdefault(seed, []).append(value)
        means = [statistics.mean(v) for v in by_seed.values() if len(v) == len(tasks)]
        line["mean"] = show_spread(means) if means else None
        lines.append(line)
        if means:
            points.append((method, line["parameters"], statistics.mean(means), spread(means)))
    columns = [c for c in COLUMNS if c not in TASKS or c in tasks]
    write_whole(folder / f"{model}.md", write_table(lines, columns).encode())
    write_whole(folder / f"{model}.json", (json.dumps(lines, indent=1) + "\n").encode())
    if points:
        draw_plot(points, f"{model}: mean accuracy over {len(tasks)} tasks").save(
            folder / f"{model}.png"
        )
    print(f"{model}\n{write_table(lines, columns)}")


def show_spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {spread(values):.1f}"


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
