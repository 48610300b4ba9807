"""Personalize the bundled base on a bundled subject, draw before and after, and measure.

The default subject was photographed, so to say, in five scenes; five prompts ask for it in other
ones, and the grid's first row shows the true picture of each.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms.adapters.load import load_atoms
from sdatoms.cli.score_table import draw_scores
from sdatoms.diffusion.open import load_base
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.rows import Row
from sdatoms.evaluation.scores import Scorer
from sdatoms.evaluation.truth import FIVE_KINDS, Truth, choose_prompts, find_truth
from sdatoms.files.reader import read_atoms
from sdatoms.pictures import draw_grid, find_pictures, read_picture, save_image
from sdatoms.storage import read_subject
from sdatoms.training.config import TrainConfig
from sdatoms.training.loop import train
from sdatoms.training.presets import SUBJECT
from sdatoms.training.run_folder import RunDirectory
from sdatoms.training.stopping import StopRequest

__all__ = [
    "SEEDS",
    "DemoResult",
    "describe_result",
    "draw_truth",
    "personalize",
]

SEEDS = (0, 1, 2, 3)
SETTINGS: dict[str, dict[str, Any]] = {
    "coefficients": SUBJECT,
    "full": {"block_size": 2, "learning_rate": 1e-3},
}
"""What the demo gives a variant beside the trainer's defaults: it has 100 steps to be seen in."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured, on prompts not trained on: five times four seeds."""

    parameters: int
    bytes: int
    seconds: float
    """Of the training."""
    rows: list[Row]
    """With the adapter; then the base and the other rows that show how far to believe it."""
    grid: Path
    atoms: Path
    prompts: list[str]
    subject: Path
    """The pictures trained on."""


def personalize(
    subject: str,
    output_dir: str = "outputs/demo",
    max_train_steps: int = 100,
    atom_variant: Any = "coefficients",
    report: Callable[[str], None] = print,
    progress: Callable[[int, int, float], None] | None = None,
    stop: StopRequest | None = None,
    **settings: Any,
) -> DemoResult:
    """Train on `assets/subjects/<subject>`, write the atom file and `before-after.png`, and
    measure. `settings` are further fields of `TrainConfig`.

    Raises:
        TrainingStopped: it was asked to stop; what it had is saved.
    """
    folder, about = read_subject(subject)
    began = time.time()
    config = TrainConfig(
        instance_data_dir=str(folder),
        instance_prompt=about["instance_prompt"],
        output_dir=output_dir,
        max_train_steps=max_train_steps,
        validation_steps=max(1, max_train_steps // 3),
        checkpointing_steps=max(1, max_train_steps),
        **({"atom_variant": atom_variant} | SETTINGS.get(atom_variant, {}) | settings),
    )
    report(
        f"Training {max_train_steps} steps on the {len(find_pictures(folder)[0])} pictures in "
        f"{shorten(folder)} ({about['title'].lower()}), as “{about['instance_prompt']}”."
    )
    for step in train(config, stop=stop):
        if progress:
            progress(step.step, step.total, step.loss)
    trained = time.time() - began
    run = Path(output_dir)
    atoms = run / "atoms.safetensors"
    truth = find_truth(folder)
    prompts = choose_prompts(truth, about["instance_prompt"], FIVE_KINDS)
    report(
        f"Generating {len(prompts)} prompts that it was not trained on, with the base alone and "
        "with the adapter."
    )
    pipe = load_base()
    scorer = Scorer(pipe, load_evaluator(), prompts=prompts, seeds=SEEDS, subject=folder)
    before = scorer.pictures
    adapters = load_atoms(pipe, atoms)
    rows = [scorer.score("adapter", pipe), *scorer.check()]
    adapters.clear()
    grid = run / "before-after.png"
    if truth:
        drawing = draw_truth(folder, truth, prompts, before, scorer.pictures)
    else:
        drawing = draw_before_after(folder, prompts, before, scorer.pictures)
    save_image(drawing, grid)
    file = read_atoms(atoms)
    result = DemoResult(
        file.num_parameters,
        atoms.stat().st_size,
        round(trained, 1),
        rows,
        grid,
        atoms,
        prompts,
        folder,
    )
    facts = vars(result) | {"rows": [asdict(row) for row in rows]}
    RunDirectory(run).write_json(
        "demo.json", {k: str(v) if isinstance(v, Path) else v for k, v in facts.items()}
    )
    return result


def draw_truth(
    folder: Path,
    truth: Truth,
    prompts: list[str],
    before: list[Image.Image],
    after: list[Image.Image],
) -> Image.Image:
    """A column a prompt: its true picture, the base's and the adapter's by two seeds; below them
    the pictures trained on."""
    n = len(SEEDS)
    true = [truth.wishes[k].picture for k in truth.find(prompts) if k is not None]
    rows, labels = [true], ["true picture"]
    for who, pictures in (("before", before), ("after", after)):
        for seed in range(2):
            rows.append(pictures[seed::n])
            labels.append(f"{who}, seed {SEEDS[seed]}")
    given = [read_picture(path) for path in find_pictures(folder)[0]]
    titles = [textwrap.fill(prompt, 18) for prompt in prompts]
    return draw_grid([*rows, given], [*labels, "trained on"], titles, cell=160)


def draw_before_after(
    folder: Path, prompts: list[str], before: list[Image.Image], after: list[Image.Image]
) -> Image.Image:
    """The pictures trained on, then a row a prompt: the base's and the adapter's by seed."""
    instances = [read_picture(path) for path in find_pictures(folder)[0]]
    n = len(SEEDS)
    rows = [before[i : i + n] + after[i : i + n] for i in range(0, len(before), n)]
    titles = [f"{who}, seed {s}" for who in ("before", "after") for s in SEEDS]
    return draw_grid([instances[: 2 * n], *rows], ["trained on", *prompts], titles)


def shorten(path: Path) -> Path:
    """The path as seen from here, where it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def describe_result(result: DemoResult, steps: int) -> str:
    """What happened, how good it is, where the files are, and what to try next."""
    words = result.prompts
    run = result.atoms.parent
    serve = (
        "sdatoms ui" if run.parent == Path("outputs") else f"sdatoms ui --adapters-dir {run.parent}"
    )
    size = f"{result.bytes / 1000:,.0f} kB, {result.parameters:,} trained numbers"
    return f"""
Done: in {steps} steps and {result.seconds:.0f} seconds the base learnt what is in
{shorten(result.subject)}. The base itself is unchanged;
what it learnt is one adapter file ({size}).

Look at it       {result.grid}
The adapter      {result.atoms}
How it went      {run / "samples.png"}, {run / "metrics.jsonl"}

How good is it? On {len(words)} prompts it was not trained on, {len(SEEDS)} seeds each:

{draw_scores(result.rows)}

All figures, and the rows to check them by: {run / "demo.json"}

Next:
  sdatoms generate "{words[-1]}" --atoms {result.atoms} --num_images 4
  {serve}
    uses it in the browser, and trains on your own pictures"""
