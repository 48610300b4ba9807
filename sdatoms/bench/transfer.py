"""Small pre-trained classifiers transferred to other tasks by filter atoms and by their peers.

Every method sees the same pictures, batches and number of steps. Its learning rate is chosen on the
validation split of each task, with the first seed: from three and, where the best is at an edge,
more beyond it. Other seeds draw other training pictures, other test pictures where a task has no
test split of its own, and another head.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdatoms.atoms.config import AtomConfig
from sdatoms.bench.transfer_report import group, read_rows, report
from sdatoms.classifiers.experiment import Experiment, run_experiment
from sdatoms.classifiers.fit import TrainSettings
from sdatoms.classifiers.methods import BLOCKS, VARIANTS, attach_method, suggest_rates
from sdatoms.classifiers.model import open_classifier
from sdatoms.classifiers.pictures import Pool, Task, draw_task
from sdatoms.errors import AtomError

__all__ = ["METHODS", "TASKS", "TransferPlan", "report_transfer", "run_transfer"]

TASKS = ("emoji-category", "emoji-vendor", "cifar-rotation", "subjects")


@dataclass(frozen=True)
class Method:
    """How a classifier is tuned."""

    name: str
    atoms: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)


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
    **{
        f"coefficients, product b{side}": Method(
            "coefficients", {"block_form": "product", "block_size": side}
        )
        for side in (8, 16)
    },
    "coefficients, shared r4 each": Method(
        "coefficients", {"block_form": "shared", "block_atoms": 4, "block_factors": "each"}
    ),
    "full, 8x8, spatial x 0.3": Method("full", BLOCKS, ratios={"spatial": 0.3}),
}


@dataclass(frozen=True)
class TransferPlan:
    """Which cells are run, and how."""

    models: Sequence[str]
    """As `open_classifier` takes them."""
    output_dir: Path
    """Where `runs.jsonl`, tables and plots are kept."""
    tasks: Sequence[str] = TASKS
    methods: Sequence[str] | None = None
    """None: all that differ."""
    seeds: Sequence[int] = (0, 1, 2)
    num_train: int = 1000
    num_test: int = 1000
    epochs: int = 12
    subject_epochs: int = 60
    """Of the few pictures there."""
    subject_draws: int = 3
    """Splits of the subjects a seed, of which 30 pictures are tested; their mean counts."""
    resolution: int = 32
    """px; runs of one folder share it."""
    batch_norm: Literal["frozen", "tuned"] = "frozen"
    """`tuned` goes on averaging, by every method, and trains the gains and shifts beside LoRA and
    atoms, counted with them."""
    mixed_precision: Literal["no", "bf16"] = "no"
    widen: int = 1
    """How many rates may be tried beyond the edges of those that suit a method."""

    def list_cells(self) -> Iterator[tuple[str, str, int]]:
        """Task, method and draw; the few subjects are drawn several times a seed."""
        tuned = self.batch_norm == "tuned"
        differ = [name for name, m in METHODS.items() if not (tuned and "train_norms" in m.options)]
        methods = self.methods or differ
        for name, method in itertools.product(self.tasks, methods):
            for again in range(self.subject_draws if name == "subjects" else 1):
                yield name, method, again

    def count_epochs(self, task: str) -> int:
        return self.subject_epochs if task == "subjects" else self.epochs


def run_transfer(plan: TransferPlan, read: Callable[[str], Pool]) -> None:
    """Run the cells that are not done yet; a line of `runs.jsonl` each.

    Args:
        read: task → its pictures.

    Raises:
        AtomError: the folder holds runs of other lengths, or a task has no pictures.
    """
    path = plan.output_dir / "runs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    check_epochs(read_rows(path), plan, path)
    pools = {name: read(name) for name in plan.tasks}
    for model, seed in itertools.product(plan.models, plan.seeds):
        tasks: dict[tuple[str, int], Task] = {}
        for name, method, again in plan.list_cells():
            key = {"model": Path(model).stem, "task": name, "method": method}
            key["batch_norm"] = plan.batch_norm
            own = [row for row in read_rows(path) if match(row, key)]
            if any(match(row, {"seed": seed, "draw": again}) for row in own):
                continue
            chosen = [row["learning_rate"] for row in own]
            suited = suggest_rates(METHODS[method].name, plan.batch_norm == "tuned")
            rates = tuple(chosen[:1]) or suited
            if (name, again) not in tasks:
                tasks[name, again] = draw_task(
                    pools[name],
                    plan.resolution,
                    num_train=plan.num_train,
                    num_test=plan.num_test,
                    seed=seed + 1000 * again,
                )
            row = run_cell(model, tasks[name, again], METHODS[method], rates, seed, name, plan)
            add_row(path, {**key, "seed": seed, "draw": again, **row})


def report_transfer(output_dir: Path) -> None:
    """Write table and plot of what `runs.jsonl` holds, a pair a model, and print them."""
    for model, rows in group(read_rows(output_dir / "runs.jsonl")):
        report(model, rows, output_dir, tuple(METHODS), TASKS)


def check_epochs(rows: list[dict[str, Any]], plan: TransferPlan, path: Path) -> None:
    """Runs of other lengths do not belong in one table, nor is a learning rate theirs to share."""
    models = {Path(model).stem for model in plan.models}
    for row in rows:
        asked = row["model"] in models and row["task"] in plan.tasks
        if not asked or row["batch_norm"] != plan.batch_norm:
            continue
        if (side := row.get("resolution", 32)) != plan.resolution:
            raise AtomError(
                f"{str(path)!r} holds runs of {row['method']} on {row['task']} at {side} px, not "
                f"{plan.resolution}; give another --output_dir"
            )
        if row["epochs"] != (epochs := plan.count_epochs(row["task"])):
            raise AtomError(
                f"{str(path)!r} holds runs of {row['method']} on {row['task']} over "
                f"{row['epochs']} epochs, not {epochs}; give another --output_dir"
            )


def run_cell(
    model: str,
    task: Task,
    method: Method,
    rates: tuple[float, ...],
    seed: int,
    name: str,
    plan: TransferPlan,
) -> dict[str, Any]:
    """One run of one method; of its result, what the table and those who check it need."""
    classifier = open_classifier(model, len(task.classes), seed=seed, resolution=plan.resolution)
    options = dict(method.options)
    if plan.batch_norm == "tuned":
        options["statistics"] = True
        options["train_norms"] = method.name in (*VARIANTS, "lora_conv")
    tuned = attach_method(classifier, method.name, AtomConfig(**method.atoms, seed=seed), **options)
    settings = TrainSettings(
        epochs=plan.count_epochs(name), mixed_precision=plan.mixed_precision, seed=seed
    )
    result = run_experiment(
        tuned, task, Experiment(rates, settings, widen=plan.widen, ratios=method.ratios)
    )
    kept = ("learning_rate", "validation_accuracy", "test_accuracy", "trials", "parameters")
    kept += ("head_parameters", "bytes", "head_bytes", "seconds", "pictures", "torch")
    return {key: result[key] for key in kept} | {
        "epochs": settings.epochs,
        "resolution": plan.resolution,
        "mixed_precision": plan.mixed_precision,
        "batch_norm": plan.batch_norm,
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
