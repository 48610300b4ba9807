"""A base personalized by filter atoms and by their peers, side by side.

Every method sees the same batches, noise and timesteps, the same number of steps and the same
optimizer, and paints by the same sampler. Every training is kept as a cell, so that a run that was
stopped goes on where it was, and several processes share one plan.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from sdatoms.bench.cells import Cell, CellStore
from sdatoms.bench.eye import Eye, open_eye
from sdatoms.bench.judge import Judge, Painting
from sdatoms.bench.methods import METHODS
from sdatoms.bench.rows import BASE, Method
from sdatoms.bench.runs import make_config, read_versions, run_cell
from sdatoms.bench.tasks import Task, list_tasks, open_task, split_tasks
from sdatoms.diffusion.open import load_base
from sdatoms.errors import AtomError
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.introduction import CONSTANTS
from sdatoms.evaluation.probe import load_probe
from sdatoms.evaluation.truth import find_truth
from sdatoms.fingerprint import hash_tensors
from sdatoms.storage import list_subjects, read_subject, read_table

__all__ = [
    "Bench",
    "Entry",
    "Plan",
    "average",
    "shrink",
]

FAST = ("product b16", "atoms", "LoRA r4 attention")


@dataclass(frozen=True)
class Plan:
    """What is compared, and how much of it."""

    output_dir: Path
    methods: tuple[str, ...] = tuple(n for n, m in METHODS.items() if not m.left_out)
    tasks: tuple[str, ...] | None = None
    """None: all that there are."""
    photographs: Path | None = None
    """A folder of DreamBooth subjects, which are tasks too."""
    base: str | None = None
    evaluator: str | None = None
    eye: Path | None = None
    """EfficientNet-Lite0's weights, for likeness by a network that was not trained here."""
    seeds: tuple[int, ...] = (0, 1, 2)
    choice_seeds: tuple[int, ...] = (0,)
    steps: tuple[int, ...] = (200, 400)
    """Numbers of steps that are chosen from."""
    batch_size: int = 4
    painting: Painting = field(default_factory=Painting)
    growth: int = 4
    """How many rates may be tried beyond a method's own."""


def shrink(plan: Plan) -> Plan:
    """The plan in minutes: a few methods, steps, prompts and pictures, on two subjects in scenes.

    It shows that all of it runs; its figures mean nothing.
    """
    split = split_tasks(list_tasks(plan.photographs), plan.output_dir / "split.json")
    scenes = {part: [n for n in split[part] if find_truth(find_folder(n))] for part in split}
    return replace(
        plan,
        methods=FAST if plan.methods == Plan.methods else plan.methods,
        tasks=plan.tasks or tuple(name for names in scenes.values() for name in names[:1]),
        seeds=(0,),
        steps=(2, 4),
        batch_size=2,
        painting=Painting((0, 1), prompts=3, unrelated=2, num_inference_steps=4),
        growth=0,
    )


def find_folder(name: str) -> Path | None:
    return read_subject(name)[0] if name in list_subjects() else None


@dataclass(frozen=True)
class Entry:
    """One training, as it is reported."""

    cell: Cell
    kind: str
    facts: dict[str, Any]
    mark: int | None = None
    """The number of steps after which it is looked at; None: the last."""

    @property
    def values(self) -> dict[str, list[float | None]]:
        """Figure → a value a prompt; none of a training that diverged."""
        return self.facts["marks"].get(str(self.mark or max(self.cell.steps)), {})


def average(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else float("nan")


class Bench:
    """The trainings of one plan, kept in its folder.

    Raises:
        AtomError: a method or task is unknown.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.kinds = list_tasks(plan.photographs)
        for what, names, known in (
            ("method", plan.methods, METHODS),
            ("task", plan.tasks or (), self.kinds),
        ):
            for name in names:
                if name not in known:
                    near = get_close_matches(name, known, 3, 0.3) or list(known)[:3]
                    raise AtomError(f"there is no {what} {name!r}; there are {', '.join(near)}, …")
        self.split = split_tasks(self.kinds, plan.output_dir / "split.json")
        self.tasks: dict[str, Task] = {}
        self.judges: dict[tuple[str, Painting], Judge] = {}

    @cached_property
    def pipe(self) -> Any:
        """The base, never trained."""
        return load_base(self.plan.base)

    @cached_property
    def evaluator(self) -> Any:
        return load_evaluator(self.plan.evaluator)

    @cached_property
    def eye(self) -> Eye | None:
        return open_eye(self.plan.eye) if self.plan.eye else None

    @cached_property
    def store(self) -> CellStore:
        parts = [self.pipe.unet, self.pipe.vae, self.pipe.text_encoder]
        judges = [part for part in vars(self.evaluator).values() if isinstance(part, nn.Module)]
        judges += [load_probe(), *([self.eye.model] if self.eye else [])]
        names = [
            hash_text("".join(hash_tensors(m.state_dict()) for m in own)) for own in (parts, judges)
        ]
        names[1] = hash_text(f"{names[1]} {CONSTANTS}")
        return CellStore(self.plan.output_dir / "cells", *names)

    def list_tasks(self, part: str) -> list[str]:
        """Names of the validation or test tasks of the plan."""
        return [n for n in self.split[part] if not self.plan.tasks or n in self.plan.tasks]

    def open(self, name: str) -> Task:
        if name not in self.tasks:
            self.tasks[name] = open_task(name, self.plan.output_dir, self.plan.photographs)
        return self.tasks[name]

    def make_cell(
        self, method: Method, rate: float, task: str, seed: int, steps: Sequence[int]
    ) -> Cell:
        plan = self.plan
        digest = self.open(task).digest()
        return Cell(method, rate, task, seed, tuple(steps), plan.batch_size, plan.painting, digest)

    def judge(self, cell: Cell) -> Judge:
        """Of the cell's task, as it is painted there."""
        key = cell.task, cell.painting
        if key not in self.judges:
            opened = self.open(cell.task)
            self.judges[key] = Judge(opened, self.evaluator, cell.painting, self.pipe, self.eye)
        return self.judges[key]

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """A cell's result; None where it is not there, or a library of another version refused it.
        Where another evaluator measured it, what it painted is measured anew.

        Raises:
            AtomError: it is there, made with another base.
        """
        found = self.store.read(cell, lambda painted: self.judge(cell).measure(painted))
        return found if found and found.get("versions") in (None, read_versions()) else None

    def run(self, cell: Cell) -> dict[str, Any]:
        """A cell's result, trained now where `find` knows none."""
        if found := self.find(cell):
            return found
        judge = self.judge(cell)
        if cell.method is BASE:
            painted = judge.paint_all(self.pipe)
            facts = dict.fromkeys(("numbers", "bytes", "layers"), 0)
            result: dict[str, Any] = {**facts, "marks": {"0": judge.measure(painted)}}
            self.store.write(cell, result, {"0": painted})
            return result
        config = make_config(cell, self.open(cell.task), self.plan.base)
        result, made = run_cell(load_base(self.plan.base), cell, config, judge)
        self.store.write(cell, result, made)
        facts = {k: v for k, v in result.items() if k != "marks"}
        named = {"method": cell.method.name, "rate": cell.rate, "task": cell.task}
        print(json.dumps(named | {"seed": cell.seed} | facts), flush=True)
        return result

    def share(self, cells: Sequence[Cell]) -> None:
        """Make all cells together with other processes that run the same plan: what another one is
        at is left to it, and waited for at the end."""
        for wait in (False, True):
            for cell in cells:
                if self.find(cell) is None:
                    with self.store.claim(cell, wait) as own:
                        if own:
                            self.run(cell)

    def measure_base(self, task: str) -> Entry:
        """What the base paints, untrained."""
        cell = self.make_cell(BASE, 0.0, task, 0, [0])
        return Entry(cell, self.kinds[task], self.run(cell))

    def test(self) -> tuple[list[Entry], dict[str, str]]:
        """Train every method by its choice on every test task and seed. Returns the entries,
        the base's among them, and of each method that another library refuses, why. A training
        that diverged counts as the base: it taught nothing.

        Raises:
            AtomError: nothing was chosen for a method yet.
        """
        choices = read_table(self.plan.output_dir / "choices.json", {})
        refused: dict[str, str] = {}
        cells: list[Cell] = []
        for task in self.list_tasks("test"):
            kind = self.kinds[task]
            cells.append(self.make_cell(BASE, 0.0, task, 0, [0]))
            for name in self.plan.methods:
                chosen = choices.get(kind, {}).get(name)
                if chosen is None:
                    raise AtomError(
                        f"no rate of {name!r} is chosen for {kind} yet; run with --choose first"
                    )
                if "refused" in chosen:
                    refused[name] = chosen["refused"]
                    continue
                rate, marks = chosen["rate"], [chosen["steps"]]
                cells += [
                    self.make_cell(METHODS[name], rate, task, seed, marks)
                    for seed in self.plan.seeds
                ]
        self.share(cells)
        entries, untaught = [], {}
        for cell in cells:
            facts = self.run(cell)
            if cell.method is BASE:
                untaught[cell.task] = facts["marks"]["0"]
            if "diverged" in facts:
                facts = facts | {"marks": {str(max(cell.steps)): untaught[cell.task]}}
            if "refused" not in facts:
                entries.append(Entry(cell, self.kinds[cell.task], facts))
        return entries, refused


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
