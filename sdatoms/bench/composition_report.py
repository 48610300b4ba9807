"""What came of subjects in styles: figures as JSON and a table, and a picture a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from PIL import Image

from sdatoms.bench.composition import MEASURES, WAYS, Pair, list_mixes, make_pair, make_way_cell
from sdatoms.bench.mixing import Mix
from sdatoms.bench.personalization import Bench
from sdatoms.bench.tables import dump_figures, show, write_markdown
from sdatoms.pictures import draw_grid, find_pictures, read_picture, save_image
from sdatoms.storage import write_whole

__all__ = ["write_composition"]

WIDTH = 30
"""Of a row's label, in letters."""


def write_composition(
    bench: Bench,
    mixes: Sequence[Mix],
    rows: Sequence[Mapping[str, Any]],
    subjects: Sequence[str],
    styles: Sequence[str],
) -> str:
    """Write `composition.json`, `composition.md` and a picture a pair; returns the markdown."""
    head = ("way", "method", "kB", *MEASURES)
    lines = [
        [row["way"], row["method"], str(row["bytes"] // 1000), *(show(row[m]) for m in MEASURES)]
        for row in rows
    ]
    markdown = write_markdown(head, lines) + "\n"
    folder = bench.plan.output_dir
    write_whole(folder / "composition.json", dump_figures(list(rows)))
    write_whole(folder / "composition.md", markdown.encode())
    for pair in (make_pair(bench, a, b) for a in subjects for b in styles):
        name = f"composition-{pair.subject.name}-{pair.style.name}.png"
        save_image(draw_pair(bench, mixes, pair), folder / name)
    return markdown


def draw_pair(bench: Bench, mixes: Sequence[Mix], pair: Pair, most: int = 8) -> Image.Image:
    """What was given, and a row a way and method, of the first seed."""
    given = [find_pictures(task.folder)[0] for task in (pair.subject, pair.style)]
    grid, labels = (
        [[read_picture(p) for p in paths][:most] for paths in given],
        ["subject", "style"],
    )
    for way in WAYS:
        for mix in list_mixes(way, mixes):
            cell = make_way_cell(bench, pair, way, mix, bench.plan.seeds[0])
            if pictures := bench.store.read_pictures(cell):
                grid.append(pictures[:most])
                labels.append(f"{way},\n{fill(mix.name, WIDTH)}")
    return draw_grid(grid, labels, cell=96)
