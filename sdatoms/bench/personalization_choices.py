"""Which learning rate and number of steps each method is compared at.

Chosen on validation tasks: from five rates a method, and further ones while the best stands at an
edge of what was tried.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdatoms.bench.cells import hold
from sdatoms.bench.methods import METHODS
from sdatoms.bench.personalization import Bench, Entry, average
from sdatoms.bench.rows import Method
from sdatoms.errors import AtomError
from sdatoms.storage import read_table, write_whole

__all__ = [
    "choose_rate",
    "choose_settings",
    "grow_rates",
    "list_between",
    "list_validation",
    "score_values",
]

FINAL = 2
"""How many of a method's rates are tried on every validation task; twice as many are tried on half
of the tasks before."""


def choose_settings(bench: Bench) -> dict[str, dict[str, Any]]:
    """Choose rate and steps of every method for every kind of task, and write `choices.json`:
    kind → method → what was chosen, whether its rate is inside the grid, and all scores.

    A method that another process is at is left to it, and waited for at the end.

    Raises:
        AtomError: the plan has no validation task.
    """
    names = bench.list_tasks("validation")
    if not names:
        raise AtomError("no task of the plan is a validation task; see split.json for those")
    path = bench.plan.output_dir / "choices.json"
    kinds = sorted({bench.kinds[n] for n in (*names, *bench.list_tasks("test"))})
    todo = [(kind, method) for kind in kinds for method in bench.plan.methods]
    for wait in (False, True):
        for kind, method in list(todo):
            own = [n for n in names if bench.kinds[n] == kind] or names
            with hold(path.parent / "cells" / f".{kind} {method}.lock", wait) as free:
                if not free:
                    continue
                chosen = choose_rate(bench, METHODS[method], own)
            todo.remove((kind, method))
            with hold(path.with_name(".choices.lock"), True):
                choices = read_table(path, {})
                choices.setdefault(kind, {})[method] = chosen
                write_whole(path, (json.dumps(choices, indent=1) + "\n").encode())
    return read_table(path, {})


def choose_rate(bench: Bench, method: Method, tasks: Sequence[str]) -> dict[str, Any]:
    """The best rate and number of steps of one method: every rate is tried on the first task, then
    those between the best and its neighbours, the best of them on half of the tasks, and the
    `FINAL` best of those on all."""
    plan, rates, todo = bench.plan, list(method.rates), list(method.rates)
    first: dict[tuple[float, int], float] = {}
    best = rates[0]
    while todo:
        found = score_rates(bench, method, todo, tasks[:1])
        if isinstance(found, str):
            return {"refused": found}
        first |= found
        best = max(first, key=lambda key: first[key])[0]
        further = grow_rates(rates, best) if len(rates) < len(method.rates) + plan.growth else None
        todo = [] if further is None else [further]
        rates += todo
    if plan.growth:
        between = list_between(rates, best)
        found = score_rates(bench, method, between, tasks[:1])
        if isinstance(found, str):
            return {"refused": found}
        rates, first = rates + between, first | found
    scores = first
    for count, own in ((2 * FINAL, tasks[: -(-len(tasks) // 2)]), (FINAL, tasks)):
        known = {rate: max(scores[rate, s] for s in plan.steps) for rate, _ in scores}
        finalists = sorted(known, key=lambda rate: known[rate], reverse=True)[:count]
        found = score_rates(bench, method, finalists, own)
        if isinstance(found, str):
            return {"refused": found}
        scores = found
    best, steps = max(scores, key=lambda key: scores[key])
    return {
        "rate": best,
        "steps": steps,
        "inside": min(rates) < best < max(rates),
        "tasks": list(tasks),
        "prompts": plan.painting.prompts,
        "tried": show_scores(first),
        "tried_on_all": show_scores(scores),
    }


def list_validation(bench: Bench, choices: Mapping[str, Any]) -> list[Entry]:
    """What every choice gave on its validation tasks, as many prompts as it was made by."""
    found = []
    for kind, methods in choices.items():
        for name, chosen in methods.items():
            if "refused" in chosen or name not in bench.plan.methods:
                continue
            rate, marks = chosen["rate"], bench.plan.steps
            prompts = chosen.get("prompts", bench.plan.painting.prompts)
            painting = replace(bench.plan.painting, prompts=prompts)
            for task in chosen["tasks"]:
                for seed in bench.plan.choice_seeds:
                    cell = bench.make_cell(METHODS[name], rate, task, seed, marks)
                    cell = replace(cell, painting=painting)
                    if facts := bench.find(cell):
                        found.append(Entry(cell, kind, facts, chosen["steps"]))
    return found


def score_rates(
    bench: Bench, method: Method, rates: Sequence[float], tasks: Sequence[str]
) -> dict[tuple[float, int], float] | str:
    """(rate, steps) → mean score over tasks and seeds, −∞ where one diverged; or why another
    library refuses."""
    marks, seeds = bench.plan.steps, bench.plan.choice_seeds
    cells = {
        rate: [bench.make_cell(method, rate, t, s, marks) for t in tasks for s in seeds]
        for rate in rates
    }
    bench.share([cell for own in cells.values() for cell in own])
    scores = {}
    for rate, own in cells.items():
        results = [bench.run(cell) for cell in own]
        if refused := next((r["refused"] for r in results if "refused" in r), None):
            return str(refused)
        for steps in marks:
            values = [r["marks"].get(str(steps)) for r in results]
            scores[rate, steps] = statistics.mean(
                -math.inf if found is None else score_values(found) for found in values
            )
    return scores


def score_values(values: dict[str, list[float | None]]) -> float:
    """What rates and steps are chosen by, for every method alike: how well the subject is learnt
    (truth, and where it is not known fidelity and likeness), and half as much each of the figures
    that learning it may cost: followed prompts, diversity, and drift."""
    means = {k: average(v) for k, v in values.items()}
    gained = means["truth"] if "truth" in means else means["fidelity"] + means["likeness"]
    kept = means.get("followed", 0.0) + means.get("diversity", 0.0)
    return gained + (kept - means["drift"]) / 2


def grow_rates(rates: Sequence[float], best: float) -> float | None:
    """The next rate beyond the edge at which the best one stands; None where it is inside."""
    if min(rates) < best < max(rates):
        return None
    steps = [float(f"{m * 10.0**e:g}") for e in range(-9, 3) for m in (1, 3)]
    if best == max(rates):
        return min((s for s in steps if s > best * 1.01), default=None)
    return max((s for s in steps if s < best / 1.01), default=None)


def list_between(rates: Sequence[float], best: float) -> list[float]:
    """The rates halfway, as factors, from the best to the next one below and above."""
    around = [max((r for r in rates if r < best), default=None)]
    around.append(min((r for r in rates if r > best), default=None))
    return [float(f"{math.sqrt(best * rate):.2g}") for rate in around if rate is not None]


def show_scores(scores: Mapping[tuple[float, int], float]) -> dict[str, float | None]:
    """Scores by rate and steps as JSON can hold them: None where a training diverged."""
    named = {f"{rate:g}, {steps} steps": score for (rate, steps), score in sorted(scores.items())}
    return {name: score if math.isfinite(score) else None for name, score in named.items()}
