"""Finished runs side by side: a table and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sdatoms.classifiers.drawings import draw_plot, write_table
from sdatoms.errors import AtomError
from sdatoms.pictures import save_image
from sdatoms.storage import write_whole

__all__ = ["compare_runs"]

COLUMNS = ("method", "parameters", "bytes", "learning rate", "seconds", "validation %", "test %")


def compare_runs(runs: Sequence[Path], output_dir: Path) -> str:
    """Write `comparison.md` and `comparison.png`; returns the table, in Markdown.

    Args:
        runs: output folders of `finetune_classifier.py`, of one task.

    Raises:
        AtomError: a folder holds no finished run, or the tasks differ.
    """
    rows = []
    for folder in runs:
        path = folder / "result.json"
        if not path.exists():
            raise AtomError(f"the folder {str(folder)!r} holds no result.json of a finished run")
        rows.append(json.loads(path.read_text()))
    if len({row["task"] for row in rows}) > 1:
        raise AtomError(f"the runs are of several tasks: {sorted({row['task'] for row in rows})}")
    lines = [
        {
            "method": row["method"],
            "parameters": row["parameters"],
            "bytes": row["bytes"],
            "learning rate": f"{row['learning_rate']:g}",
            "seconds": row["seconds"],
            "validation %": 100 * row["validation_accuracy"],
            "test %": 100 * row["test_accuracy"],
        }
        for row in rows
    ]
    points = [(line["method"], line["parameters"], line["test %"], 0.0) for line in lines]
    text = write_table(lines, COLUMNS)
    write_whole(output_dir / "comparison.md", text.encode())
    save_image(draw_plot(points, f"{rows[0]['task']}, one seed"), output_dir / "comparison.png")
    return text
