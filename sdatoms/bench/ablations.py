"""What each setting of a row does: the row, and the same changed in one point, side by side.

All are trained at the rate and for the steps that were chosen for the row, on the tasks that
choose, so that no test task decides a default. A change may have a better rate of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdatoms.bench.ablation_rows import name_changes
from sdatoms.bench.cells import Cell
from sdatoms.bench.methods import METHODS
from sdatoms.bench.personalization import Bench, Entry
from sdatoms.bench.personalization_matches import GOALS, compare_methods, group_entries, list_rows
from sdatoms.bench.rows import Method
from sdatoms.bench.tables import dump_figures, show, show_gain, write_markdown
from sdatoms.errors import AtomError
from sdatoms.storage import read_table, write_whole

__all__ = ["ablate", "list_changed", "write_ablations"]


def list_changed(row: Method, names: Sequence[str] | None = None) -> dict[str, Method]:
    """Change → the row with it.

    Args:
        names: of the changes; None: all that differ from the row and have a row of their own.

    Raises:
        AtomError: a change is unknown.
    """
    known = {
        name: METHODS[full]
        for name in name_changes(row)
        if (full := f"{row.name}: {name}") in METHODS
    }
    for name in names or ():
        if name not in known:
            fits = ", ".join(known) or "none"
            raise AtomError(f"there is no change {name!r} of {row.name!r}; there are: {fits}")
    return {name: known[name] for name in (known if names is None else names)}


def ablate(bench: Bench, row: Method, changed: Sequence[Method]) -> list[Entry]:
    """Train the row and the changed ones on the plan's validation tasks; returns the entries.

    Raises:
        AtomError: no rate was chosen for the row yet, or the plan has no validation task in scenes.
    """
    choices = read_table(bench.plan.output_dir / "choices.json", {})
    chosen = choices.get("scenes", {}).get(row.name)
    if chosen is None:
        raise AtomError(f"no rate of {row.name!r} is chosen yet; run with --choose first")
    tasks = [n for n in bench.list_tasks("validation") if bench.kinds[n] == "scenes"]
    if not tasks:
        raise AtomError("no task of the plan is a validation task in scenes; see split.json")
    cells: list[Cell] = [
        bench.make_cell(method, chosen["rate"], task, seed, [chosen["steps"]])
        for method in (row, *changed)
        for task in tasks
        for seed in bench.plan.seeds
    ]
    bench.share(cells)
    found = [Entry(cell, "scenes", bench.run(cell)) for cell in cells]
    return [entry for entry in found if "refused" not in entry.facts]


def write_ablations(bench: Bench, row: Method, entries: Sequence[Entry]) -> str:
    """Write `ablations.json` and `ablations.md`; returns the markdown: a row's means, and of every
    change the means and by how much it is better."""
    groups, rows = group_entries(entries), {r["method"]: r for r in list_rows(entries)}
    head = [
        "what is changed",
        "numbers",
        "s a step",
        *GOALS,
        *(f"{goal}, better by" for goal in GOALS),
    ]
    facts: list[dict[str, Any]] = []
    lines: list[list[str]] = []
    for name in sorted(groups, key=lambda name: (name != row.name, name)):
        means, label = rows[name], name.removeprefix(f"{row.name}: ")
        gains = {goal: compare_methods(groups[name], groups[row.name], goal) for goal in GOALS}
        own = name == row.name
        lines.append(
            ["nothing" if own else label, f"{means['numbers']:,}", show(means["seconds_per_step"])]
            + [show(means[goal]) for goal in GOALS]
            + ["" if own else show_gain(gains[goal]) for goal in GOALS]
        )
        facts.append({**means, "gains": None if own else gains})
    tasks = sorted({entry.cell.task for entry in entries})
    cell = entries[0].cell
    note = (
        f"{row.name}: rate {cell.rate:g}, {max(cell.steps)} steps, guidance "
        f"{cell.painting.guidance_scale:g}; {', '.join(tasks)}; seeds "
        f"{', '.join(map(str, bench.plan.seeds))}. 95 % intervals of paired differences, positive "
        "is better, of drift too."
    )
    text = f"{note}\n\n{write_markdown(head, lines)}\n"
    folder = bench.plan.output_dir
    table = {"method": row.name, "tasks": tasks, "rows": facts}
    write_whole(folder / "ablations.json", dump_figures(table))
    write_whole(folder / "ablations.md", text.encode())
    return text
