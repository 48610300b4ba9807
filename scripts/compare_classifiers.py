"""Table and plot of fine-tuned classifiers: `compare_classifiers.py RUN… --output_dir DIR`.

Every RUN is an `--output_dir` of `finetune_classifier.py`, of one task.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sdatoms.classifiers.drawings import draw_plot, write_table
from sdatoms.cli.main import run_guarded
from sdatoms.cli.parser import LineParser
from sdatoms.errors import AtomError
from sdatoms.storage import write_whole

COLUMNS = ("method", "parameters", "bytes", "learning rate", "seconds", "validation %", "test %")


def compare(args: argparse.Namespace) -> None:
    """Write `comparison.md` and `comparison.png`, and print the table."""
    rows = []
    for folder in args.runs:
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
    write_whole(args.output_dir / "comparison.md", text.encode())
    draw_plot(points, f"{rows[0]['task']}, one seed").save(args.output_dir / "comparison.png")
    print(text, end="")


def main() -> None:
    parser = LineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output_dir", type=Path, required=True)
    run_guarded(compare, parser.parse_args())


if __name__ == "__main__":
    main()
