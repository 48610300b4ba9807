"""A subject and a style in one picture: learnt apart and mixed, or learnt in one training.

The subject answers to "sks", the style to "zwx". No renderer knows the true picture of such a
prompt, so that likeness to the subject and fidelity to the style's drawings stand in the place of
truth.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdatoms.bench.cells import Cell, hold
from sdatoms.bench.judge import Judge
from sdatoms.bench.mixing import Mix, check_mix, mix_adapters
from sdatoms.bench.personalization import Bench, average
from sdatoms.bench.rows import Method
from sdatoms.bench.runs import Run, make_config
from sdatoms.bench.tasks import Task
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.triggers import clean_prompt
from sdatoms.errors import AtomError
from sdatoms.pictures import find_pictures, read_picture, read_sidecar
from sdatoms.storage import read_table, write_whole

__all__ = [
    "MEASURES",
    "WAYS",
    "Pair",
    "compare_ways",
    "list_mixes",
    "make_pair",
    "make_part_cell",
    "make_way_cell",
    "train_part",
]

SUBJECT, STYLE = "sks", "zwx"
ASKED = ("plain", "place", "worn", "number")
"""Groups of prompts that a drawing style leaves possible."""
WAYS: Mapping[str, tuple[float, float] | None] = {
    "subject alone": (1.0, 0.0),
    "style alone": (0.0, 1.0),
    "mixed": (1.0, 1.0),
    "mixed, 0.7 each": (0.7, 0.7),
    "in one training": None,
}
"""Way → strength of the subject's file and of the style's; None: one file of both."""
MIXED = "0"
"""The one mark of a cell of two files."""
MEASURES = ("likeness", "fidelity", "alignment", "followed", "diversity", "drift")


@dataclass(frozen=True)
class Pair:
    """A subject and a style, as the folders that are trained on."""

    subject: Task
    style: Task
    both: Task
    asked: Task
    """The subject's prompts in that style."""

    @property
    def name(self) -> str:
        return f"{self.subject.name} in {self.style.name}"


def make_pair(bench: Bench, subject: str, style: str) -> Pair:
    """Write the three folders that are trained on.

    Raises:
        AtomError: the subject has no true pictures, or the style is none.
    """
    known = bench.open(subject)
    if not known.wishes or bench.kinds.get(style) != "styles":
        raise AtomError(
            f"{subject!r} and {style!r} make no pair; it takes a subject in scenes and a style"
        )
    root, drawn = bench.plan.output_dir / "pairs" / f"{subject}-{style}", bench.open(style)
    rename = lambda text: text.replace(SUBJECT, STYLE)
    for folder, task, change in (
        ("style", drawn, rename),
        ("both", drawn, rename),
        ("both", known, str),
    ):
        for path in find_pictures(task.folder)[0]:
            caption = change(read_sidecar(path) or task.instance_prompt)
            write_whole(root / folder / path.name, path.read_bytes())
            write_whole((root / folder / path.name).with_suffix(".txt"), caption.encode())
    wishes = tuple(w for w in known.wishes if w.group in ASKED)
    asked = replace(
        known,
        prompts=tuple(f"{w.prompt} in {STYLE} style" for w in wishes),
        wishes=wishes,
        true=(),
    )
    style_task = replace(
        drawn, folder=root / "style", instance_prompt=rename(drawn.instance_prompt)
    )
    return Pair(known, style_task, replace(known, folder=root / "both"), asked)


def train_part(bench: Bench, cell: Cell, task: Task) -> Path:
    """The file of one training, trained now where it is not there."""
    path = bench.plan.output_dir / "parts" / f"{cell.name()}.safetensors"
    with hold(path.with_name(f".{path.name}.lock"), wait=True):
        if path.is_file():
            return path
        run = Run(load_base(bench.plan.base), cell, make_config(cell, task, bench.plan.base))
        for _ in range(max(cell.steps)):
            if (loss := run.take_step()) != loss:
                raise AtomError(f"{cell.method.name} diverged on {task.name} at rate {cell.rate:g}")
        with run.finish():
            write_whole(path, run.peer.save())
    return path


def make_way_cell(bench: Bench, pair: Pair, way: str, mix: Mix, seed: int) -> Cell:
    """Of what is painted."""
    method = mix.subject
    rate, steps = read_choice(bench, method)
    if mix.style is not method:
        style = dict(zip(("rate", "steps"), read_choice(bench, mix.style), strict=True))
        style |= {"style": mix.style.name, **mix.style.describe()}
        method = replace(method, name=mix.name, options={**method.options, "style": style})
    digests = "".join(task.digest() for task in (pair.subject, pair.style, pair.both))
    return Cell(
        method,
        rate,
        f"{pair.name}, {way}",
        seed,
        (steps,),
        bench.plan.batch_size,
        bench.plan.painting,
        hashlib.sha256(digests.encode()).hexdigest()[:16],
    )


def make_part_cell(bench: Bench, cell: Cell, method: Method, task: Task) -> Cell:
    """Of what is trained for a cell: one method on one task."""
    rate, steps = read_choice(bench, method)
    return replace(
        cell, method=method, rate=rate, steps=(steps,), task=task.name, pictures=task.digest()
    )


def list_mixes(way: str, mixes: Sequence[Mix]) -> list[Mix]:
    """The mixes of one way: in one training, only of what can learn a style."""
    if WAYS[way] is not None:
        return list(mixes)
    return [Mix(style, style) for style in {mix.style.name: mix.style for mix in mixes}.values()]


def measure_way(bench: Bench, pair: Pair, way: str, mix: Mix, seed: int) -> dict[str, Any]:
    """One pair painted in one way by one mix; kept as a cell, with its pictures."""
    cell = make_way_cell(bench, pair, way, mix, seed)
    judge = open_judge(bench, pair)
    if found := bench.store.read(cell, judge.measure):
        return found
    strengths = WAYS[way]
    if strengths is None:
        # As many looks at every picture as two trainings have.
        both = replace(cell, steps=(2 * cell.steps[0],))
        files, weights = [train_part(bench, both, pair.both)], [1.0]
    else:
        files = [
            train_part(bench, make_part_cell(bench, cell, method, task), task)
            for method, task in ((mix.subject, pair.subject), (mix.style, pair.style))
        ]
        weights = list(strengths)
    pipe = load_base(bench.plan.base)
    mix_adapters(pipe, mix, files, weights)
    painted = judge.paint_all(pipe)
    size = sum(path.stat().st_size for path in files)
    result = {"bytes": size, "marks": {MIXED: judge.measure(painted)}}
    bench.store.write(cell, result, {MIXED: painted})
    named = {"pair": pair.name, "way": way, "method": mix.name, "seed": seed}
    print(json.dumps(named), flush=True)
    return result


def read_choice(bench: Bench, method: Method) -> tuple[float, int]:
    """Rate and steps: those chosen on subjects in scenes, else the method's middle rate."""
    choices = read_table(bench.plan.output_dir / "choices.json", {})
    chosen = choices.get("scenes", {}).get(method.name, {})
    middle = method.rates[len(method.rates) // 2]
    return chosen.get("rate", middle), chosen.get("steps", bench.plan.steps[0])


def open_judge(bench: Bench, pair: Pair) -> Judge:
    """A judge whose likeness is to the subject and whose fidelity is to the style's drawings."""
    key = pair.name, bench.plan.painting
    if key not in bench.judges:
        judge = Judge(pair.asked, bench.evaluator, bench.plan.painting, bench.pipe, bench.eye)
        drawings = [read_picture(path) for path in find_pictures(pair.style.folder)[0]]
        judge.styles = bench.evaluator.embed_styles(drawings)
        own = [prompt.replace(f" in {STYLE} style", "") for prompt in judge.prompts]
        judge.texts = bench.evaluator.embed_texts([clean_prompt(prompt) for prompt in own])
        bench.judges[key] = judge
    return bench.judges[key]


def compare_ways(
    bench: Bench,
    mixes: Sequence[Mix],
    subjects: Sequence[str],
    styles: Sequence[str],
    ways: Sequence[str] = tuple(WAYS),
) -> list[dict[str, Any]]:
    """A row a way and mix: mean figures over pairs, prompts and seeds; the base comes first.

    Raises:
        AtomError: a mix of files that cannot be mixed, or of what makes no pair.
    """
    for mix in mixes:
        check_mix(mix)
    pairs = [make_pair(bench, a, b) for a in subjects for b in styles]
    base = []
    for pair in pairs:
        judge = open_judge(bench, pair)
        base.append(judge.measure(judge.paint_all(bench.pipe)))
    rows = [{"way": "base", "method": "", "bytes": 0} | mean_values(base)]
    for way in ways:
        for mix in list_mixes(way, mixes):
            found = [
                measure_way(bench, pair, way, mix, seed)
                for pair in pairs
                for seed in bench.plan.seeds
            ]
            row = {"way": way, "method": mix.name, "bytes": found[0]["bytes"]}
            rows.append(row | mean_values([one["marks"][MIXED] for one in found]))
    return rows


def mean_values(found: Sequence[Mapping[str, Sequence[float | None]]]) -> dict[str, float | None]:
    """Figure → mean over all that it was measured on; None where it was on nothing."""
    known = {
        m: [v for values in found for v in values.get(m, ()) if v is not None] for m in MEASURES
    }
    return {m: average(values) if values else None for m, values in known.items()}
