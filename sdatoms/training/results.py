"""What a finished run leaves: its atom file, the grid of samples, report and model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from sdatoms.diffusion.family import find_base
from sdatoms.pictures import make_thumbnail, save_image
from sdatoms.storage import write_whole
from sdatoms.training.report import describe_run, write_card
from sdatoms.training.run_folder import RunDirectory, name_step
from sdatoms.training.samples import draw_samples
from sdatoms.training.trainer import Trainer

__all__ = [
    "describe_trainer",
    "write_results",
]


def write_results(
    trainer: Trainer,
    directory: RunDirectory,
    tensors: dict[str, Tensor],
    *,
    step: int,
    jobs: Sequence[tuple[str, int]],
    measured: Mapping[str, Mapping[str, float]],
) -> None:
    """Write `atoms.safetensors`, `samples.png`, `report.json` and `README.md`.

    Args:
        tensors: the atoms of `step`, the last or the best.
        jobs: prompt and seed of every sample.
        measured: name of the samples → what was measured on them.
    """
    config = trainer.config
    sample = directory.samples / f"{name_step(step)}-0.png"
    thumbnail = make_thumbnail(Image.open(sample)) if sample.is_file() else None
    file = trainer.pack(tensors, step=step, thumbnail=thumbnail)
    path = file.save(directory.path / "atoms.safetensors")
    grid = draw_samples(directory.samples, jobs) if trainer.data.paints else None
    if grid:
        save_image(grid, directory.path / "samples.png")
    facts = describe_trainer(trainer, path) | {"chosen_step": step, "metrics": measured}
    if trainer.folder.held:
        facts["validation_pictures"] = [source.name for source in trainer.folder.held]
    directory.write_json("report.json", facts)
    card = write_card(
        facts,
        words=config.trigger or config.instance_prompt,
        base=config.pretrained_model_name_or_path,
        variant=config.atom_variant,
        seed=config.seed,
        has_grid=grid is not None,
    )
    write_whole(directory.path / "README.md", card.encode(errors="replace"))


def describe_trainer(trainer: Trainer, path: Path) -> dict[str, Any]:
    """The facts of report.json, for the atom file at `path`."""
    return describe_run(
        path,
        parameters=trainer.num_parameters,
        began=trainer.began,
        steps=trainer.step,
        base=find_base(trainer.config.pretrained_model_name_or_path).rsplit("/", 1)[-1],
        instances=[row.name for row in trainer.data.instances],
        notes=trainer.folder.notes,
        class_pictures=len(trainer.data.classes or ()),
    )
