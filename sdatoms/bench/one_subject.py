"""Personalization methods side by side on one subject, as the README shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sdatoms.bench.methods import METHODS
from sdatoms.bench.personalization import Bench, Entry, average
from sdatoms.bench.rows import Method
from sdatoms.bench.tables import show_bytes
from sdatoms.errors import AtomError
from sdatoms.pictures import draw_grid, find_pictures, read_picture, save_image
from sdatoms.storage import write_whole

__all__ = ["SHOWN", "show_subject"]

SHOWN = (
    "full fine-tuning",
    "LoRA r4 attention",
    "LoRA r4 attention + conv",
    "LoKr r4 attention + conv",
    "OFT b4 attention",
    "atoms",
    "overcomplete",
    "coefficients b2",
    "full atoms b2",
)
"""The methods of the figure of one subject."""


def show_subject(
    bench: Bench, subject: str, strip: Path | None = None, strip_methods: Sequence[str] = ()
) -> list[Entry]:
    """Every method of the plan on one subject, at the best of its three middle rates: `<subject>`
    as JSON and PNG in the plan's folder, and a PNG of some of the methods at `strip`.

    A method's best rate is the one with the largest sum of fidelity and likeness: of a thing that
    the base has never seen, alignment is no guide.

    Raises:
        AtomError: there is no such subject, or a method of the strip is not in the plan.
    """
    if subject not in bench.kinds:
        raise AtomError(f"there is no subject {subject!r}; there are {', '.join(bench.kinds)}")
    missing = [name for name in strip_methods if name not in bench.plan.methods]
    if strip and missing:
        raise AtomError(f"--strip_methods has {missing[0]!r}, which --methods leaves out")
    best = [e for name in bench.plan.methods if (e := find_best(bench, subject, METHODS[name]))]
    shown = [bench.measure_base(subject), *best]
    rows = [{"method": e.cell.method.name, "rate": e.cell.rate} | e.facts for e in shown]
    stem = bench.plan.output_dir / subject.replace("/", "-")
    write_whole(stem.with_suffix(".json"), json.dumps({"rows": rows}).encode())
    save_image(draw_entries(bench, subject, best), stem.with_suffix(".png"))
    if strip:
        shown = [e for e in best if e.cell.method.name in strip_methods]
        save_image(draw_entries(bench, subject, shown), strip)
    return best


def find_best(bench: Bench, subject: str, method: Method) -> Entry | None:
    """The entry of the best rate; None where none trains to the end."""
    found, plan = [], bench.plan
    for rate in method.rates[1:-1]:
        cell = bench.make_cell(method, rate, subject, plan.seeds[0], plan.steps)
        entry = Entry(cell, bench.kinds[subject], bench.run(cell))
        if "refused" not in entry.facts and entry.values:
            found.append(entry)
    good = lambda e: average(e.values["fidelity"]) + average(e.values["likeness"])
    return max(found, key=good, default=None)


def draw_entries(bench: Bench, subject: str, entries: Sequence[Entry]) -> Image.Image:
    """The pictures given, and a row a method with the size of its file."""
    rows = [[read_picture(p) for p in find_pictures(bench.open(subject).folder)[0]][:8]]
    labels = ["trained on"]
    for entry in entries:
        rows.append(bench.store.read_pictures(entry.cell)[:8])
        labels.append(f"{entry.cell.method.name}, {show_bytes(entry.facts['bytes'])}")
    return draw_grid(rows, labels, cell=96)
