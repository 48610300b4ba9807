"""A subject and a style in one picture: learnt apart and mixed, or learnt in one training.

Atoms of two files are summed exactly (`AdapterSet`); two LoRAs are mixed by PEFT's
`add_weighted_adapter`. The subject answers to "sks", the style to "zwx". No renderer knows the true
picture of such a prompt, so that likeness to the subject and fidelity to the style's drawings stand
in the place of truth.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file
from torch import nn

from sdatoms.adapters.load import load_atoms
from sdatoms.bench.cells import Cell, hold
from sdatoms.bench.judge import Judge
from sdatoms.bench.methods import METHODS
from sdatoms.bench.personalization import Bench, average
from sdatoms.bench.rows import Method
from sdatoms.bench.runs import Run, make_config
from sdatoms.bench.tasks import Task
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.triggers import clean_prompt
from sdatoms.errors import AtomError
from sdatoms.pictures import draw_grid, find_pictures, read_picture, read_sidecar
from sdatoms.storage import read_table, write_whole

__all__ = ["MEASURES", "WAYS", "compare_ways", "mix_adapters", "write_composition"]

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


def mix_adapters(
    pipe: Any, method: Method, files: Sequence[Path], weights: Sequence[float]
) -> None:
    """Put files of one method into a fresh pipeline, each at its strength.

    Raises:
        AtomError: files of that method cannot be mixed.
    """
    if method.tuner == "atoms":
        for k, (path, weight) in enumerate(zip(files, weights, strict=True)):
            load_atoms(pipe, path, name=f"part{k}", strength=weight)
    elif method.tuner == "LoraConfig":
        mix_loras(pipe.unet, method, files, weights)
    else:
        raise AtomError(f"files of {method.name!r} cannot be mixed; those of atoms and LoRA can")


def mix_loras(
    unet: nn.Module, method: Method, files: Sequence[Path], weights: Sequence[float]
) -> None:
    import peft

    configs = [peft.LoraConfig(**method.options) for _ in files]
    tuner: Any = peft.LoraModel(unet, configs[0], "part0")
    for k, config in enumerate(configs[1:], 1):
        tuner.peft_config[f"part{k}"] = config
        tuner.inject_adapter(unet, f"part{k}")
    for k, path in enumerate(files):
        peft.set_peft_model_state_dict(unet, load_file(path), adapter_name=f"part{k}")
    names = [f"part{k}" for k in range(len(files))]
    tuner.add_weighted_adapter(names, list(weights), "mixed", combination_type="cat")
    tuner.set_adapter("mixed")


def make_way_cell(bench: Bench, pair: Pair, way: str, method: Method, seed: int) -> Cell:
    rate, steps = read_choice(bench, method)
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


def measure_way(bench: Bench, pair: Pair, way: str, method: Method, seed: int) -> dict[str, Any]:
    """One pair painted in one way by one method; kept as a cell, with its pictures."""
    cell = make_way_cell(bench, pair, way, method, seed)
    judge = open_judge(bench, pair)
    found = bench.store.read(cell, judge.measure)
    if found is not None:
        return found
    strengths = WAYS[way]
    if strengths is None:
        # As many looks at every picture as two trainings have.
        both = replace(cell, steps=(2 * cell.steps[0],))
        files, weights = [train_part(bench, both, pair.both)], [1.0]
    else:
        parts = [
            (task, replace(cell, task=task.name, pictures=task.digest()))
            for task in (pair.subject, pair.style)
        ]
        files, weights = [train_part(bench, own, task) for task, own in parts], list(strengths)
    pipe = load_base(bench.plan.base)
    mix_adapters(pipe, method, files, weights)
    painted = judge.paint_all(pipe)
    size = sum(path.stat().st_size for path in files)
    result = {"bytes": size, "marks": {MIXED: judge.measure(painted)}}
    bench.store.write(cell, result, {MIXED: painted})
    print(json.dumps({"pair": pair.name, "way": way, "method": method.name, "seed": seed}))
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
    bench: Bench, subjects: Sequence[str], styles: Sequence[str], ways: Sequence[str] = tuple(WAYS)
) -> list[dict[str, Any]]:
    """A row a way and method: mean figures over pairs, prompts and seeds; the base comes first."""
    pairs = [make_pair(bench, a, b) for a in subjects for b in styles]
    base = []
    for pair in pairs:
        judge = open_judge(bench, pair)
        base.append(judge.measure(judge.paint_all(bench.pipe)))
    rows = [{"way": "base", "method": "", "bytes": 0} | mean_values(base)]
    for way in ways:
        for name in bench.plan.methods:
            found = [
                measure_way(bench, pair, way, METHODS[name], seed)
                for pair in pairs
                for seed in bench.plan.seeds
            ]
            row = {"way": way, "method": name, "bytes": found[0]["bytes"]}
            rows.append(row | mean_values([one["marks"][MIXED] for one in found]))
    return rows


def mean_values(found: Sequence[Mapping[str, Sequence[float | None]]]) -> dict[str, float | None]:
    """Figure → mean over all that it was measured on; None where it was on nothing."""
    known = {
        m: [v for values in found for v in values.get(m, ()) if v is not None] for m in MEASURES
    }
    return {m: average(values) if values else None for m, values in known.items()}


def write_composition(
    bench: Bench, rows: Sequence[Mapping[str, Any]], subjects: Sequence[str], styles: Sequence[str]
) -> str:
    """Write `composition.json`, `composition.md` and a picture a pair; returns the markdown."""
    head = ("way", "method", "kB", *MEASURES)
    lines = [head, ["---"] * len(head)]
    for row in rows:
        figures = ["" if row[m] is None else f"{row[m]:.3f}" for m in MEASURES]
        lines.append((row["way"], row["method"], str(row["bytes"] // 1000), *figures))
    markdown = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    folder = bench.plan.output_dir
    write_whole(folder / "composition.json", (json.dumps(list(rows), indent=1) + "\n").encode())
    write_whole(folder / "composition.md", markdown.encode())
    for pair in (make_pair(bench, a, b) for a in subjects for b in styles):
        buffer = io.BytesIO()
        draw_pair(bench, pair).save(buffer, "PNG")
        name = f"composition-{pair.subject.name}-{pair.style.name}.png"
        write_whole(folder / name, buffer.getvalue())
    return markdown


def draw_pair(bench: Bench, pair: Pair, most: int = 8) -> Image.Image:
    """What was given, and a row a way and method, of the first seed."""
    given = [find_pictures(task.folder)[0] for task in (pair.subject, pair.style)]
    grid, labels = (
        [[read_picture(p) for p in paths][:most] for paths in given],
        ["subject", "style"],
    )
    for way in WAYS:
        for name in bench.plan.methods:
            cell = make_way_cell(bench, pair, way, METHODS[name], bench.plan.seeds[0])
            if pictures := bench.store.read_pictures(cell):
                grid.append(pictures[:most])
                labels.append(f"{way}, {name}")
    return draw_grid(grid, labels, cell=96)
