"""The demo: personalize the bundled base on a bundled subject through the real trainer, and show
the difference."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms.adapters import load_atoms
from sdatoms.checkpoint import read_atoms
from sdatoms.errors import AtomError
from sdatoms.evaluate import write_prompts
from sdatoms.metrics import gram_similarity
from sdatoms.pictures import draw_grid, find_pictures, read_picture
from sdatoms.pipeline import find_assets, load_base, paint
from sdatoms.run_directory import RunDirectory
from sdatoms.train import train
from sdatoms.train_config import TrainConfig

__all__ = ["DemoResult", "list_subjects", "run_demo"]

SEEDS = (0, 1, 2, 3)
SETTINGS: dict[str, dict[str, Any]] = {"full": {"block_size": 2, "learning_rate": 6e-3}}
"""What the demo gives a variant beside the trainer's defaults: small blocks learn fast."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured; similarities are means over prompts not trained on, five times four
    seeds."""

    parameters: int
    bytes: int
    seconds: float
    base_similarity: float
    atoms_similarity: float
    instances_similarity: float
    """The instance pictures among themselves: what a perfect imitation would score."""
    grid: Path
    atoms: Path


def list_subjects() -> list[str]:
    """Names of the bundled instance sets."""
    return sorted(p.parent.name for p in (find_assets() / "subjects").glob("*/subject.json"))


def read_subject(name: str) -> tuple[Path, dict[str, Any]]:
    folder = find_assets() / "subjects" / name
    if name not in list_subjects():
        raise AtomError(
            f"there is no bundled subject {name!r}; there are {', '.join(list_subjects())}"
        )
    return folder, json.loads((folder / "subject.json").read_text())


def run_demo(
    subject: str = "octopus",
    output_dir: str = "outputs/demo",
    max_train_steps: int = 300,
    atom_variant: Any = "full",
    say: Callable[[str], None] = print,
    progress: Callable[[int, int, float], None] | None = None,
    **settings: Any,
) -> DemoResult:
    """Train on `assets/subjects/<subject>`, write the atom file and `before-after.png`, and
    measure. `settings` are further fields of `TrainConfig`."""
    folder, about = read_subject(subject)
    began = time.time()
    config = TrainConfig(
        instance_data_dir=str(folder),
        instance_prompt=about["instance_prompt"],
        output_dir=output_dir,
        max_train_steps=max_train_steps,
        atom_variant=atom_variant,
        validation_steps=max(1, max_train_steps // 3),
        checkpointing_steps=max(1, max_train_steps),
        **(SETTINGS.get(atom_variant, {}) | settings),
    )
    say(
        f"training {atom_variant} on {len(find_pictures(folder)[0])} pictures of "
        f"{about['title']} for {max_train_steps} steps"
    )
    for step in train(config):
        if progress:
            progress(step.step, step.total, step.loss)
    trained = time.time() - began
    run = Path(output_dir)
    atoms = run / "atoms.safetensors"
    prompts = write_prompts(about["instance_prompt"])
    pipe = load_base()
    jobs = [(prompt, seed) for prompt in prompts for seed in SEEDS]
    words, seeds = [p for p, _ in jobs], [s for _, s in jobs]
    before = paint(pipe, words, seeds, batch_size=8)
    adapters = load_atoms(pipe, atoms)
    after = paint(pipe, words, seeds, batch_size=8)
    adapters.clear()
    pictures, _ = find_pictures(folder)
    instances = [read_picture(p) for p in pictures]
    scores = [compare(pipe.vae, group, instances, before) for group in (before, after, instances)]
    grid = run / "before-after.png"
    rows = [before[i : i + 4] + after[i : i + 4] for i in range(0, len(jobs), 4)]
    titles = [f"base, seed {s}" for s in SEEDS] + [f"atoms, seed {s}" for s in SEEDS]
    draw_grid([instances[:8], *rows], ["pictures given", *prompts], titles).save(grid)
    file = read_atoms(atoms)
    result = DemoResult(
        parameters=file.num_parameters,
        bytes=atoms.stat().st_size,
        seconds=round(trained, 1),
        base_similarity=round(scores[0], 3),
        atoms_similarity=round(scores[1], 3),
        instances_similarity=round(scores[2], 3),
        grid=grid,
        atoms=atoms,
    )
    RunDirectory(run).write_json(
        "demo.json", {k: str(v) if isinstance(v, Path) else v for k, v in vars(result).items()}
    )
    return result


def compare(
    vae: Any, group: list[Image.Image], instances: list[Image.Image], reference: list[Image.Image]
) -> float:
    """Mean similarity to the instance pictures; a picture among the instances is not compared with
    itself."""
    if group is not instances:
        return float(gram_similarity(vae, group, instances, reference).mean())
    rest = [[q for q in instances if q is not p] for p in instances]
    return sum(
        float(gram_similarity(vae, [p], r, reference).mean())
        for p, r in zip(instances, rest, strict=True)
    ) / len(instances)
