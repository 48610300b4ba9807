"""`sdatoms demo`: personalize the bundled base on a bundled subject, and draw before and after."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdatoms.adapters.load import load_atoms
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.prompts import write_prompts
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.scores import Row, Scorer
from sdatoms.files.reader import read_atoms
from sdatoms.pictures import draw_grid, find_pictures, read_picture
from sdatoms.storage import read_subject
from sdatoms.training.config import TrainConfig
from sdatoms.training.loop import train
from sdatoms.training.run_folder import RunDirectory
from sdatoms.training.stopping import StopRequest, TrainingStopped

__all__ = [
    "SEEDS",
    "DemoResult",
    "add_demo",
    "personalize",
    "run_demo",
]

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


def personalize(
    subject: str = "octopus",
    output_dir: str = "outputs/demo",
    max_train_steps: int = 300,
    atom_variant: Any = "overcomplete",
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
        atom_variant=atom_variant,
        validation_steps=max(1, max_train_steps // 3),
        checkpointing_steps=max(1, max_train_steps),
        **(SETTINGS.get(atom_variant, {}) | settings),
    )
    report(
        f"training {atom_variant} on {len(find_pictures(folder)[0])} pictures of "
        f"{about['title']} for {max_train_steps} steps"
    )
    for step in train(config, stop=stop):
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


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subject", default="octopus", help="a bundled subject (default: octopus)")
    parser.add_argument(
        "--output_dir", default="outputs/demo", help="run directory (default: outputs/demo)"
    )
    parser.add_argument(
        "--max_train_steps", type=int, default=300, help="optimizer steps (default: 300)"
    )
    parser.add_argument(
        "--atom_variant",
        default="overcomplete",
        choices=("atoms", "overcomplete", "coefficients", "full"),
        help="which tensors are trained (default: overcomplete)",
    )


def run_demo(args: argparse.Namespace) -> None:
    """Personalize the bundled base on a bundled subject and draw a before/after grid."""
    from tqdm import tqdm

    from sdatoms.cli.evaluate import write_table

    stop = StopRequest()
    stop.listen()
    with tqdm(total=args.max_train_steps, unit="step") as bar:

        def show(step: int, total: int, loss: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.3f}")

        try:
            result = personalize(
                args.subject,
                args.output_dir,
                args.max_train_steps,
                args.atom_variant,
                report=tqdm.write,
                progress=show,
                stop=stop,
            )
        except TrainingStopped as stopped:
            bar.close()
            again = f"sdatoms train --config {Path(args.output_dir) / 'config.toml'}"
            print(
                f"stopped at step {stopped.step}; continue with {again} "
                "--resume_from_checkpoint latest",
                file=sys.stderr,
            )
            raise SystemExit(130) from None
    print(f"parameters         {result.parameters:,}")
    print(f"atom file          {result.atoms} ({result.bytes:,} bytes)")
    print(f"training           {result.seconds} seconds, loading and samples included")
    print("\non 5 prompts not trained on, 4 seeds each; of the columns only drift is better low")
    print(write_table(result.rows))
    print(f"before and after   {result.grid}")
