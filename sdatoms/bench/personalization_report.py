"""The report of the personalization benchmark: JSON, a markdown table and one HTML page.

Means are over tasks, prompts and seeds; intervals are of paired differences, see `intervals.py`.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdatoms.bench.judge import MEASURES
from sdatoms.bench.methods import METHODS
from sdatoms.bench.personalization import Bench, Entry
from sdatoms.bench.personalization_choices import list_validation
from sdatoms.bench.personalization_matches import (
    LOSS,
    compare_methods,
    find_best,
    find_matches,
    group_entries,
    list_rows,
    pick_atoms,
)
from sdatoms.bench.plots import Point, draw_pareto
from sdatoms.bench.tables import (
    dump_figures,
    show,
    show_bytes,
    show_gain,
    write_html_table,
    write_markdown,
)
from sdatoms.pictures import draw_grid, find_pictures, read_picture
from sdatoms.storage import read_table, write_whole

__all__ = ["REFERENCE", "write_report"]

REFERENCE = "LoRA r4 attention + conv"
"""What every other method is held against, unless another is named."""
COLUMNS: tuple[str, ...] = (
    "method",
    "numbers",
    "file",
    "layers",
    "rate",
    "steps",
    "s a step",
    *MEASURES,
)
STYLE = (
    "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:75em;padding:0 1em}"
    "table{border-collapse:collapse;font-size:13px}td,th{padding:.2em .6em;border:1px solid #ccc;"
    "text-align:right}td:first-child,th:first-child{text-align:left}.t{overflow-x:auto}"
    "svg{max-width:640px}img{max-width:100%}"
)


def show_row(row: dict[str, Any]) -> list[str]:
    shown = [row["method"] + (f" ({row['diverged']} diverged)" if row["diverged"] else "")]
    shown += [f"{row['numbers']:,}", show_bytes(row["bytes"]), str(row["layers"])]
    shown += [f"{row['rate']:g}", str(row["steps"]), show(row["seconds_per_step"])]
    return shown + [show(row[measure]) for measure in MEASURES]


def show_best(best: Mapping[str, Any]) -> str:
    """Who is best at what is learnt, in a sentence."""
    if not best:
        return "no atoms and peer to compare."
    seconds = best["seconds_per_step"]
    return (
        f"of atoms {best['atoms']} has the most {best['measure']}, of peers {best['peer']}; the "
        f"first is better by {show_gain(best['gain'])}, at {show(seconds[best['atoms']])} and "
        f"{show(seconds[best['peer']])} processor seconds a step."
    )


def show_edges(chosen: Mapping[str, Any]) -> str:
    """Which rates stand at an edge of what was tried."""
    edges = [name for name, choice in chosen.items() if choice.get("inside") is False]
    if not edges:
        return "every rate is inside its grid."
    return f"rates at an edge of their grid: {', '.join(edges)}."


def list_tables(
    kind: str, own: Sequence[Entry], picks: Mapping[str, str], reference: str
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows of each table of one kind of task."""
    rows, groups = list_rows(own), group_entries(own)
    tables: list[tuple[str, list[str], list[list[str]]]] = [
        (f"{kind}: means", list(COLUMNS), [show_row(row) for row in rows])
    ]
    if reference in groups:
        measures = [m for m in MEASURES if any(row[m] is not None for row in rows)]
        lines = [
            [name, *(show_gain(compare_methods(e, groups[reference], m)) for m in measures)]
            for name, e in groups.items()
            if name != reference
        ]
        title = f"{kind}: better than {reference} by (95 % interval; positive is better)"
        tables.append((title, ["method", *measures], lines))
    matches = find_matches(own, picks)
    if matches:
        goals = list(next((m["gains"] for m in matches if m["gains"]), {}))
        lines = [
            [m["peer"], f"{m['numbers']:,}", m["atoms"] or f"none up to {m['most']:,} numbers"]
            + [show_gain(m["gains"].get(goal)) for goal in goals]
            + ["yes" if m["holds"] else "no"]
            for m in matches
        ]
        head = ["peer", "its numbers", "atoms", *goals, f"no loss above {LOSS:g}"]
        tables.append((f"{kind}: atoms held against each peer", head, lines))
    return tables


def draw_task(bench: Bench, task: str, entries: Sequence[Entry], most: int = 10) -> str:
    """A task's pictures as a data URI: those given, the true ones, and a row a method."""
    opened = bench.open(task)
    given = [read_picture(path) for path in find_pictures(opened.folder)[0]][:most]
    groups, labels = [given], ["given"]
    if opened.true:
        numbers = bench.plan.painting.choose(len(opened.prompts))
        groups.append([opened.true[n] for n in numbers][:most])
        labels.append("true")
    for name, own in group_entries(entries).items():
        first = next((e for e in own if e.cell.task == task), None)
        pictures = bench.store.read_pictures(first.cell)[:most] if first else []
        if pictures:
            groups.append(pictures)
            labels.append(name)
    buffer = io.BytesIO()
    draw_grid(groups, labels, cell=64).save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def draw_plots(rows: Sequence[dict[str, Any]]) -> str:
    """Truth, or fidelity where no truth is known, against numbers, drift and seconds."""
    measure = "truth" if any(row["truth"] is not None for row in rows) else "fidelity"
    shown = [row for row in rows if row[measure] is not None]
    plots = []
    for key, label, logarithmic in (
        ("numbers", "trained numbers", True),
        ("drift", "drift", False),
        ("seconds_per_step", "processor seconds a step", False),
    ):
        points = [Point(r["method"], r["group"], r[key], r[measure]) for r in shown]
        plots.append(draw_pareto(points, label, measure, logarithmic=logarithmic))
    return "".join(plots)


def write_report(
    bench: Bench,
    entries: Sequence[Entry],
    refused: dict[str, str],
    folder: Path,
    reference: str = REFERENCE,
) -> str:
    """Write `report.json`, `report.md` and `report.html`; returns the markdown.

    Args:
        reference: the method that every other one is held against.
    """
    names = {entry.cell.method.name for entry in entries}
    tested, chosen = bench.list_tasks("test"), bench.list_tasks("validation")
    notes = [
        f"Rates and steps chosen on {', '.join(chosen) or 'no task'}; reported on "
        f"{', '.join(tested)}; seeds {', '.join(map(str, bench.plan.seeds))}.",
        "Atoms held against a peer were picked on the tasks that choose. "
        "Intervals: 95 %, pigeonhole bootstrap of paired differences over tasks × prompts × seeds. "
        "Seconds are processor time, medians of a training.",
    ]
    missing = [f"{name} does not run here: {why}" for name, why in refused.items()]
    left = {name: m.left_out for name, m in METHODS.items() if m.left_out and name not in names}
    missing += [f"{name} is left out: {why}" for name, why in left.items()]
    missing += [f"{name}: {m.note}" for name, m in METHODS.items() if m.note and name in names]
    kinds = sorted({entry.kind for entry in entries})
    facts: dict[str, Any] = {"split": bench.split, "refused": refused, "kinds": {}}
    text, page = (
        ["# Personalization", *notes, *missing],
        [f"<p>{html.escape(line)}</p>" for line in (*notes, *missing)],
    )
    choices = read_table(bench.plan.output_dir / "choices.json", {})
    known = list_validation(bench, choices)
    for kind in kinds:
        own = [entry for entry in entries if entry.kind == kind]
        picks = pick_atoms([entry for entry in known if entry.kind == kind])
        best, matches = find_best(own), find_matches(own, picks)
        facts["kinds"][kind] = {"rows": list_rows(own), "matches": matches, "best": best}
        page.append(f"<h2>{html.escape(kind)}</h2>")
        for line in (show_best(best), show_edges(choices.get(kind, {}))):
            text.append(f"{kind}: {line}")
            page.append(f"<p>{html.escape(line)}</p>")
        for title, head, rows in list_tables(kind, own, picks, reference):
            text += [f"## {title}", write_markdown(head, rows)]
            page += [f"<h3>{html.escape(title)}</h3>", write_html_table(head, rows)]
        page.append(draw_plots(list_rows(own)))
        for task in sorted({entry.cell.task for entry in own}):
            uri = draw_task(bench, task, own)
            page.append(f'<h3>{html.escape(task)}</h3><img alt="{html.escape(task)}" src="{uri}">')
    markdown = "\n\n".join(text) + "\n"
    head = f"<meta charset=utf-8><title>Personalization</title><style>{STYLE}</style>"
    document = f"<!doctype html><html lang=en><head>{head}</head><body><h1>Personalization</h1>"
    document += "".join(page) + "</body></html>"
    write_whole(folder / "report.json", dump_figures(facts))
    write_whole(folder / "report.md", markdown.encode())
    write_whole(folder / "report.html", document.encode())
    return markdown
