"""A base personalized by filter atoms and by their peers, side by side.

Every method sees the same batches, noise and timesteps, the same number of steps and the same
optimizer, and paints by the same sampler. Rates and steps are chosen on validation tasks: from five
rates a method, and further ones while the best stands at an edge. Every training is kept as a cell,
so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from sdatoms.bench.cells import Cell, CellStore
from sdatoms.bench.eye import Eye, open_eye
from sdatoms.bench.judge import Judge, Painting
from sdatoms.bench.methods import BASE, METHODS, Method
from sdatoms.bench.runs import make_config, read_versions, run_cell
from sdatoms.bench.tasks import Task, list_tasks, open_task, split_tasks
from sdatoms.diffusion.open import load_base
from sdatoms.errors import AtomError
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.truth import find_truth
from sdatoms.fingerprint import hash_tensors
from sdatoms.storage import list_subjects, read_subject, read_table, write_whole

__all__ = [
    "Bench",
    "Entry",
    "Plan",
    "average",
    "grow_rates",
    "score_values",
    "show_bytes",
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
    """One test training."""

    cell: Cell
    kind: str
    facts: dict[str, Any]

    @property
    def values(self) -> dict[str, list[float | None]]:
        """Figure → a value a prompt; none of a training that diverged."""
        return self.facts["marks"].get(str(max(self.cell.steps)), {})


def score_values(values: dict[str, list[float | None]]) -> float:
    """What rates and steps are chosen by: truth less drift where truth is known, and else fidelity
    and alignment less drift."""
    means = {k: average(v) for k, v in values.items()}
    gained = means["truth"] if "truth" in means else means["fidelity"] + means["alignment"]
    return gained - means["drift"]


def average(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else float("nan")


def grow_rates(rates: Sequence[float], best: float) -> float | None:
    """The next rate beyond the edge at which the best one stands; None where it is inside."""
    if min(rates) < best < max(rates):
        return None
    steps = [float(f"{m * 10.0**e:g}") for e in range(-9, 3) for m in (1, 3)]
    if best == max(rates):
        return min((s for s in steps if s > best * 1.01), default=None)
    return max((s for s in steps if s < best / 1.01), default=None)


class Bench:
    """The trainings of one plan, kept in its folder.

    Raises:
        AtomError: a method or task is unknown.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.kinds = list_tasks(plan.photographs)
        unknown = [m for m in plan.methods if m not in METHODS]
        unknown += [t for t in plan.tasks or () if t not in self.kinds]
        if unknown:
            raise AtomError(
                f"there is no method or task {unknown[0]!r}; tasks are {', '.join(self.kinds)}"
            )
        self.split = split_tasks(self.kinds, plan.output_dir / "split.json")
        self.tasks: dict[str, Task] = {}
        self.judges: dict[str, Judge] = {}

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
        own = [part for part in vars(self.evaluator).values() if isinstance(part, nn.Module)]
        digests = ["".join(hash_tensors(m.state_dict()) for m in group) for group in (parts, own)]
        names = [hash_text(digest) for digest in digests]
        if self.eye:
            names.append(hash_text("".join(hash_tensors(self.eye.model.state_dict()))))
        return CellStore(self.plan.output_dir / "cells", " ".join(names))

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

    def run(self, cell: Cell) -> dict[str, Any]:
        """A cell's result, trained now where it is not there, or where a library of another version
        refused it.

        Raises:
            AtomError: it is there, made with another base.
        """
        found = self.store.read(cell)
        if found is not None and found.get("versions") in (None, read_versions()):
            return found
        task = self.open(cell.task)
        if cell.task not in self.judges:
            self.judges[cell.task] = Judge(
                task, self.evaluator, self.plan.painting, self.pipe, self.eye
            )
        if cell.method is BASE:
            values, pictures = self.judges[cell.task].measure(self.pipe)
            facts = dict.fromkeys(("numbers", "bytes", "layers"), 0)
            result: dict[str, Any] = {**facts, "marks": {"0": values}}
            self.store.write(cell, result, pictures)
            return result
        config = make_config(cell, task, self.plan.base)
        fresh = load_base(self.plan.base)
        result, pictures = run_cell(fresh, cell, config, self.judges[cell.task])
        self.store.write(cell, result, pictures)
        facts = {k: v for k, v in result.items() if k != "marks"}
        named = {"method": cell.method.name, "rate": cell.rate, "task": cell.task}
        print(json.dumps(named | {"seed": cell.seed} | facts), flush=True)
        return result

    def choose(self) -> dict[str, dict[str, Any]]:
        """Choose rate and steps of every method for every kind of task, and write `choices.json`:
        kind → method → what was chosen, whether its rate is inside the grid, and all scores.

        Raises:
            AtomError: the plan has no validation task.
        """
        names = self.list_tasks("validation")
        if not names:
            raise AtomError("no task of the plan is a validation task; see split.json for those")
        path = self.plan.output_dir / "choices.json"
        choices = read_table(path, {})
        kinds = {self.kinds[n] for n in (*names, *self.list_tasks("test"))}
        for kind in sorted(kinds):
            own = [n for n in names if self.kinds[n] == kind] or names
            for method in self.plan.methods:
                chosen = self.choose_rate(METHODS[method], own)
                choices.setdefault(kind, {})[method] = chosen
                write_whole(path, (json.dumps(choices, indent=1) + "\n").encode())
        return choices

    def choose_rate(self, method: Method, tasks: Sequence[str]) -> dict[str, Any]:
        """The best rate and number of steps of one method."""
        plan, scores = self.plan, {}
        rates, todo = list(method.rates), list(method.rates)
        most = len(rates) + plan.growth
        best, steps = rates[0], plan.steps[0]
        while todo:
            for rate in todo:
                found = self.score_rate(method, rate, tasks)
                if isinstance(found, str):
                    return {"refused": found}
                scores |= {(rate, steps): score for steps, score in found.items()}
            best, steps = max(scores, key=lambda key: scores[key])
            further = grow_rates(rates, best) if len(rates) < most else None
            todo = [] if further is None else [further]
            rates += todo
        tried = {f"{r:g}, {s} steps": finite(v) for (r, s), v in sorted(scores.items())}
        inside = min(rates) < best < max(rates)
        return {
            "rate": best,
            "steps": steps,
            "inside": inside,
            "tasks": list(tasks),
            "tried": tried,
        }

    def score_rate(
        self, method: Method, rate: float, tasks: Sequence[str]
    ) -> dict[int, float] | str:
        """Steps → mean score at one rate, −∞ after it diverged; or why another library refuses."""
        rows: list[dict[int, float]] = []
        for task in tasks:
            for seed in self.plan.choice_seeds:
                result = self.run(self.make_cell(method, rate, task, seed, self.plan.steps))
                if "refused" in result:
                    return str(result["refused"])
                marks = result["marks"]
                rows.append(
                    {
                        steps: score_values(marks[str(steps)]) if str(steps) in marks else -math.inf
                        for steps in self.plan.steps
                    }
                )
        return {steps: statistics.mean(r[steps] for r in rows) for steps in self.plan.steps}

    def measure_base(self, task: str) -> Entry:
        """What the base paints, untrained."""
        cell = self.make_cell(BASE, 0.0, task, 0, [0])
        return Entry(cell, self.kinds[task], self.run(cell))

    def test(self) -> tuple[list[Entry], dict[str, str]]:
        """Train every method by its choice on every test task and seed. Returns the entries,
        the base's among them, and of each method that another library refuses, why.

        Raises:
            AtomError: nothing was chosen for a method yet.
        """
        choices = read_table(self.plan.output_dir / "choices.json", {})
        entries, refused = [], {}
        for task in self.list_tasks("test"):
            kind = self.kinds[task]
            entries.append(self.measure_base(task))
            for name in self.plan.methods:
                chosen = choices.get(kind, {}).get(name)
                if chosen is None:
                    raise AtomError(
                        f"no rate of {name!r} is chosen for {kind} yet; run with --choose first"
                    )
                if "refused" in chosen:
                    refused[name] = chosen["refused"]
                    continue
                for seed in self.plan.seeds:
                    cell = self.make_cell(
                        METHODS[name], chosen["rate"], task, seed, [chosen["steps"]]
                    )
                    result = self.run(cell)
                    if "refused" not in result:
                        entries.append(Entry(cell, kind, result))
        return entries, refused


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def show_bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
