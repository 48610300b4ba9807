"""Which learning rate and number of steps each method is compared at.

Chosen on validation tasks: from five rates a method, and further ones while the best stands at an
edge of what was tried.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sdatoms.bench.methods import METHODS, Method
from sdatoms.bench.personalization import Bench, average
from sdatoms.errors import AtomError
from sdatoms.storage import read_table, write_whole

__all__ = ["choose_rate", "choose_settings", "grow_rates", "score_values"]

FINAL = 3
"""How many of a method's rates are tried on every validation task, after the first."""


def choose_settings(bench: Bench) -> dict[str, dict[str, Any]]:
    """Choose rate and steps of every method for every kind of task, and write `choices.json`:
    kind → method → what was chosen, whether its rate is inside the grid, and all scores.

    Raises:
        AtomError: the plan has no validation task.
    """
    names = bench.list_tasks("validation")
    if not names:
        raise AtomError("no task of the plan is a validation task; see split.json for those")
    path = bench.plan.output_dir / "choices.json"
    choices = read_table(path, {})
    kinds = {bench.kinds[n] for n in (*names, *bench.list_tasks("test"))}
    for kind in sorted(kinds):
        own = [n for n in names if bench.kinds[n] == kind] or names
        for method in bench.plan.methods:
            chosen = choose_rate(bench, METHODS[method], own)
            choices.setdefault(kind, {})[method] = chosen
            write_whole(path, (json.dumps(choices, indent=1) + "\n").encode())
    return choices


def choose_rate(bench: Bench, method: Method, tasks: Sequence[str]) -> dict[str, Any]:
    """The best rate and number of steps of one method: every rate is tried on the first task,
    and the `FINAL` best of them on all."""
    rates, todo = list(method.rates), list(method.rates)
    most = len(rates) + bench.plan.growth
    first: dict[tuple[float, int], float] = {}
    while todo:
        found = score_rates(bench, method, todo, tasks[:1])
        if isinstance(found, str):
            return {"refused": found}
        first |= found
        best = max(first, key=lambda key: first[key])[0]
        further = grow_rates(rates, best) if len(rates) < most else None
        todo = [] if further is None else [further]
        rates += todo
    score_best = lambda rate: max(first[rate, steps] for steps in bench.plan.steps)
    final = sorted(rates, key=score_best, reverse=True)[:FINAL]
    scores = score_rates(bench, method, final, tasks)
    if isinstance(scores, str):
        return {"refused": scores}
    best, steps = max(scores, key=lambda key: scores[key])
    return {
        "rate": best,
        "steps": steps,
        "inside": min(rates) < best < max(rates),
        "tasks": list(tasks),
        "tried": show_scores(first),
        "tried_on_all": show_scores(scores),
    }


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
    """What rates and steps are chosen by: truth less drift where truth is known, and else fidelity
    and alignment less drift."""
    means = {k: average(v) for k, v in values.items()}
    gained = means["truth"] if "truth" in means else means["fidelity"] + means["alignment"]
    return gained - means["drift"]


def grow_rates(rates: Sequence[float], best: float) -> float | None:
    """The next rate beyond the edge at which the best one stands; None where it is inside."""
    if min(rates) < best < max(rates):
        return None
    steps = [float(f"{m * 10.0**e:g}") for e in range(-9, 3) for m in (1, 3)]
    if best == max(rates):
        return min((s for s in steps if s > best * 1.01), default=None)
    return max((s for s in steps if s < best / 1.01), default=None)


def show_scores(scores: Mapping[tuple[float, int], float]) -> dict[str, float | None]:
    """Scores by rate and steps as JSON can hold them: None where a training diverged."""
    named = {f"{rate:g}, {steps} steps": score for (rate, steps), score in sorted(scores.items())}
    return {name: score if math.isfinite(score) else None for name, score in named.items()}
