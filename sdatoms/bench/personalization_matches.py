"""Methods held against each other: means, intervals, and for every peer the atoms to match it.

Which atoms stand for it is chosen on validation tasks, so that the best of many is not found by
looking at the test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdatoms.bench.intervals import Interval, measure_interval
from sdatoms.bench.judge import BETTER_DOWN, MEASURES
from sdatoms.bench.methods import METHODS
from sdatoms.bench.personalization import Entry, average
from sdatoms.bench.rows import BASE

__all__ = [
    "GOALS",
    "LOSS",
    "compare_methods",
    "find_best",
    "find_matches",
    "group_entries",
    "list_rows",
    "pick_atoms",
]

LARGE, SHARE, LOSS = 50_000, 10, 0.01
"""A peer above so many numbers is held against atoms with a tenth of them; a loss up to `LOSS` is
none."""
GOALS = ("truth", "followed", "diversity", "drift")
GOALS_WITHOUT_TRUTH = ("fidelity", "alignment", "diversity", "drift")


def group_entries(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Method → its entries, in the table's order."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.cell.method.name, []).append(entry)
    return {name: found[name] for name in (BASE.name, *METHODS) if name in found}


def stack_values(entries: Sequence[Entry], measure: str) -> dict[tuple[str, int], list[float]]:
    """Task and seed → a value a prompt, NaN where there is none."""
    return {
        (e.cell.task, e.cell.seed): [float("nan") if v is None else v for v in e.values[measure]]
        for e in entries
        if measure in e.values
    }


def compare_methods(first: Sequence[Entry], second: Sequence[Entry], measure: str) -> Interval:
    """By how much the first method is better, over the tasks and seeds that both have; positive is
    better also of figures that are to be low."""
    own, other = stack_values(first, measure), stack_values(second, measure)
    both = [key for key in own if key in other]
    tasks, seeds = sorted({t for t, _ in both}), sorted({s for _, s in both})
    prompts = max((len(own[key]) for key in both), default=0)
    values = np.full((len(tasks), prompts, len(seeds)), np.nan)
    for task, seed in both:
        a, b = own[task, seed], other[task, seed]
        values[tasks.index(task), : len(a), seeds.index(seed)] = np.subtract(a, b)
    return measure_interval(-values if measure in BETTER_DOWN else values)


def list_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """A row a method: its size, what was chosen, and mean figures."""
    rows = []
    for name, own in group_entries(entries).items():
        facts, cell = own[0].facts, own[0].cell
        timed = [e.facts["seconds_per_step"] for e in own if "seconds_per_step" in e.facts]
        row: dict[str, Any] = {"method": name, "group": cell.method.group}
        row |= {key: facts[key] for key in ("numbers", "bytes", "layers")}
        row |= {"rate": cell.rate, "steps": max(cell.steps), "seconds_per_step": average(timed)}
        row["diverged"] = sum("diverged" in e.facts for e in own)
        for measure in MEASURES:
            values = [v for rows in stack_values(own, measure).values() for v in rows if v == v]
            row[measure] = average(values) if values else None
        rows.append(row)
    return rows


def list_goals(entries: Sequence[Entry]) -> tuple[str, ...]:
    return GOALS if any("truth" in e.values for e in entries) else GOALS_WITHOUT_TRUTH


def list_rivals(entries: Sequence[Entry]) -> dict[str, tuple[int, list[str]]]:
    """Peer → how many numbers atoms may have beside it, and those that have no more."""
    rows = list_rows(entries)
    atoms = [row for row in rows if row["group"] in ("atoms", "ablations")]
    found = {}
    for peer in (row for row in rows if row["group"] == "peers"):
        numbers = peer["numbers"]
        most = numbers // SHARE if numbers > LARGE else numbers
        found[peer["method"]] = (most, [r["method"] for r in atoms if r["numbers"] <= most])
    return found


def find_best(entries: Sequence[Entry]) -> dict[str, Any]:
    """The atoms and the peer with the most truth (or fidelity) by their means, by how much those
    atoms are better, and the processor seconds of a step of either."""
    rows, groups = list_rows(entries), group_entries(entries)
    measure = list_goals(entries)[0]
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        side = "peers" if row["group"] == "peers" else "atoms"
        known = row["group"] != "base" and row[measure] is not None
        if known and (side not in best or row[measure] > best[side][measure]):
            best[side] = row
    if len(best) < 2:
        return {}
    own, peer = best["atoms"]["method"], best["peers"]["method"]
    return {
        "measure": measure,
        "atoms": own,
        "peer": peer,
        "gain": compare_methods(groups[own], groups[peer], measure),
        "seconds_per_step": {row["method"]: row["seconds_per_step"] for row in best.values()},
    }


def pick_atoms(entries: Sequence[Entry]) -> dict[str, str]:
    """Peer → the atoms small enough for it that lose least to it on their worst goal, by the means
    over validation tasks."""
    groups, goals = group_entries(entries), list_goals(entries)
    worst = lambda own, peer: min(
        gain.mean
        for goal in goals
        if (gain := compare_methods(groups[own], groups[peer], goal)).mean == gain.mean
    )
    return {
        peer: max(able, key=lambda own, peer=peer: worst(own, peer))
        for peer, (_, able) in list_rivals(entries).items()
        if able
    }


def find_matches(entries: Sequence[Entry], picks: Mapping[str, str]) -> list[dict[str, Any]]:
    """Of every peer the atoms that were picked for it: by how much they are better on each goal,
    and whether none loses more than `LOSS`.

    Args:
        picks: peer → atoms, of `pick_atoms`.
    """
    groups, goals = group_entries(entries), list_goals(entries)
    found = []
    for peer, (most, _) in list_rivals(entries).items():
        own = groups.get(picks.get(peer, ""), [])
        gains = {goal: compare_methods(own, groups[peer], goal) for goal in goals if own}
        known = [gain.low for gain in gains.values() if gain.mean == gain.mean]
        row = {"peer": peer, "numbers": groups[peer][0].facts["numbers"], "most": most}
        row |= {"atoms": picks[peer] if own else "", "gains": gains}
        found.append(row | {"holds": bool(known) and min(known) > -LOSS})
    return found
