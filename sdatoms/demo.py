"""The demo: personalize the bundled base on a bundled subject through the real trainer, and show
the difference."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms.adapters import load_atoms
from sdatoms.checkpoint import read_atoms
from sdatoms.errors import AtomError
from sdatoms.evaluate import Row, Scorer, write_prompts
from sdatoms.evaluator import load_evaluator
from sdatoms.pictures import draw_grid, find_pictures, read_picture
from sdatoms.pipeline import find_assets, load_base
from sdatoms.run_directory import RunDirectory
from sdatoms.train import train
from sdatoms.train_config import TrainConfig

__all__ = ["DemoResult", "list_subjects", "run_demo"]

SEEDS = (0, 1, 2, 3)
SETTINGS: dict[str, dict[str, Any]] = {
    "overcomplete": {"learning_rate": 1e-2},
    "full": {"block_size": 2, "learning_rate": 6e-3},
}
"""What the demo gives a variant beside the trainer's defaults: it has 300 steps to be seen in."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured, on prompts not trained on: five times four seeds."""

    parameters: int
    bytes: int
    seconds: float
    """Of the training."""
    rows: list[Row]
    """With atoms; then the base and the other rows that show how far to believe it."""
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
    atom_variant: Any = "overcomplete",
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
    scorer = Scorer(pipe, load_evaluator(), prompts=prompts, seeds=SEEDS, subject=folder)
    before = scorer.pictures
    adapters = load_atoms(pipe, atoms)
    rows = [scorer.score("atoms", pipe), *scorer.check()]
    adapters.clear()
    grid = run / "before-after.png"
    draw_before_after(folder, prompts, before, scorer.pictures).save(grid)
    file = read_atoms(atoms)
    result = DemoResult(
        file.num_parameters, atoms.stat().st_size, round(trained, 1), rows, grid, atoms
    )
    facts = vars(result) | {"rows": [asdict(row) for row in rows]}
    RunDirectory(run).write_json(
        "demo.json", {k: str(v) if isinstance(v, Path) else v for k, v in facts.items()}
    )
    return result


def draw_before_after(
    folder: Path, prompts: list[str], before: list[Image.Image], after: list[Image.Image]
) -> Image.Image:
    """The pictures given, then a row a prompt: the base's pictures and the atoms' by seed."""
    instances = [read_picture(path) for path in find_pictures(folder)[0]]
    n = len(SEEDS)
    rows = [before[i : i + n] + after[i : i + n] for i in range(0, len(before), n)]
    titles = [f"{who}, seed {s}" for who in ("base", "atoms") for s in SEEDS]
    return draw_grid([instances[: 2 * n], *rows], ["pictures given", *prompts], titles)
