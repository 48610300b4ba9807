"""What a run would cost, from two real steps in a temporary folder: `--dry_run`."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdatoms.training.concepts import list_classes, list_concepts, write_data_config
from sdatoms.training.config import TrainConfig
from sdatoms.training.inputs import check_inputs
from sdatoms.training.output_folder import check_output_folder
from sdatoms.training.results import describe_trainer
from sdatoms.training.trainer import Trainer

__all__ = [
    "estimate",
]


def estimate(config: TrainConfig) -> dict[str, Any]:
    """Parameters, bytes, memory, steps and minutes of a run, and what is odd about its pictures."""
    check_output_folder(Path(config.output_dir))
    with tempfile.TemporaryDirectory() as folder:
        trial = replace(
            config,
            output_dir=folder,
            resume_from_checkpoint=None,
            validation_steps=0,
            validation_split=None,
            num_validation_pictures=None,
            validation_data_dir=None,
            best_metric=None,
            early_stopping_patience=None,
            report_to=None,
            push_to_hub=False,
        )
        if config.with_prior_preservation and config.prior_preservation_mode == "images":
            trial = give_class_pictures(trial, config, Path(folder))
        trainer = Trainer(trial)
        seconds = [trainer.take_step().seconds for _ in range(2)]
        path = trainer.pack().save(Path(folder) / "atoms.safetensors")
        facts = describe_trainer(trainer, path)
    notes = [*trainer.folder.notes, *trainer.notes]
    return {
        "parameters": facts["parameters"],
        "bytes": facts["bytes"],
        "memory": f"{max(facts['peak_memory_bytes'], facts['peak_gpu_bytes']) / 2**30:.1f} GiB",
        "steps": config.max_train_steps,
        "minutes": f"{config.max_train_steps * min(seconds) / 60:.1f} "
        "(without class pictures and samples)",
        "data": "; ".join(trainer.folder.taken),
        "pictures": "; ".join([f"{len(facts['instance_pictures'])} usable", *notes]),
    }


def give_class_pictures(trial: TrainConfig, config: TrainConfig, folder: Path) -> TrainConfig:
    """The trial with a picture for each class below `folder`, so that none is painted."""
    given = check_inputs(config).sources[0].path
    if config.data_config:
        plain = [replace(concept, class_data_dir=None) for concept in list_concepts(config)]
        path = folder / "data.toml"
        path.write_text(write_data_config(plain), encoding="utf-8")
        trial = replace(trial, data_config=str(path))
    trial = replace(trial, class_data_dir=str(folder / "class_images"), num_class_images=1)
    for place in list_classes(trial, list_concepts(trial)).values():
        place.mkdir(parents=True)
        shutil.copyfile(given, place / f"0{given.suffix}")
    return trial
