"""The transfer benchmark's table and plot: accuracy by method and task, means over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdatoms.classifiers.drawings import draw_plot, write_table
from sdatoms.pictures import save_image
from sdatoms.storage import write_whole

__all__ = ["group", "read_rows", "report"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Runs so far; the first ones were written before they told of batch normalization and of
    draws."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [{"batch_norm": "frozen", "draw": 0, **json.loads(line)} for line in lines]


def group(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    name = lambda row: row["model"] + ("-tuned" if row["batch_norm"] == "tuned" else "")
    for model in dict.fromkeys(map(name, rows)):
        yield model, [row for row in rows if name(row) == model]


def report(
    model: str,
    rows: list[dict[str, Any]],
    folder: Path,
    methods: tuple[str, ...],
    tasks: tuple[str, ...],
) -> None:
    """Write `<model>.md`, `<model>.png` and `<model>.json`: accuracy in percent, mean ± standard
    deviation over the seeds; the mean over tasks has the deviation of the seeds' means. Seconds are
    a run's on a task of many pictures."""
    tasks = tuple(name for name in tasks if any(row["task"] == name for row in rows))
    lines, points = [], []
    for method in (m for m in methods if any(row["method"] == m for row in rows)):
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
    columns = ("method", "parameters", "bytes", "seconds", *tasks, "mean")
    write_whole(folder / f"{model}.md", write_table(lines, columns).encode())
    write_whole(folder / f"{model}.json", (json.dumps(lines, indent=1) + "\n").encode())
    if points:
        plot = draw_plot(points, f"{model}: mean accuracy over {len(tasks)} tasks")
        save_image(plot, folder / f"{model}.png")
    print(f"{model}\n{write_table(lines, columns)}")


def show_spread(values: list[float]) -> str:
    """Mean ± standard deviation; of one seed the value alone, which has none."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {spread(values):.1f}" if len(values) > 1 else mean


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
