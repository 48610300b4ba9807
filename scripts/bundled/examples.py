"""Example atom files of the bundled base: each trained on a bundled subject, with its own prompt.

A training lies in a folder of its own that is named by the steps and by the base's weights, so that
an interrupted one goes on, a finished one is not done again, and another base begins anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sdatoms.adapters.load import load_atoms
from sdatoms.diffusion.family import find_base
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.errors import AtomError
from sdatoms.files.atom_file import AtomFile, hash_content
from sdatoms.files.reader import read_atoms
from sdatoms.pictures import join_squares, make_thumbnail
from sdatoms.storage import read_subject
from sdatoms.training.config import TrainConfig
from sdatoms.training.loop import train
from sdatoms.training.presets import PRODUCTS, SUBJECT

__all__ = ["EXAMPLES", "Example", "make_example"]

MAX_BYTES = 700_000
SEED = 0


@dataclass(frozen=True)
class Example:
    """One example atom file."""

    subject: str
    """A folder of `assets/subjects`."""
    title: str
    prompt: str
    """What its card paints."""


EXAMPLES = {
    "hamburger": Example("hamburger", "A hamburger", "a sks hamburger at night"),
    "robot": Example("robot", "A robot", "a sks robot wearing a top hat"),
    "pineapple": Example("pineapple", "A pineapple", "a sks fruit on the beach"),
    "ink": Example("ink", "Ink drawings", "cat face in sks style"),
    "clay": Example("clay", "Soft 3D figures", "rabbit face in sks style"),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "subject": SUBJECT | {"max_train_steps": 100},
    "style": PRODUCTS | {"max_train_steps": 400},
}
"""What examples of a subject and of a style are trained with; in half precision either fits."""


def make_example(
    name: str,
    *,
    base_dir: str | None,
    work_dir: Path,
    output_dir: Path,
    max_train_steps: int | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Train one example, or go on with it, and write `<name>.safetensors` and `<name>.webp`: the
    pictures of its prompt without and with it, side by side.

    Args:
        base_dir: the base; None: the bundled one.
        work_dir: where trainings lie.
        max_train_steps: None: 100 for a subject, 400 for a style.

    Raises:
        AtomError: the file would be larger than an example may be.
    """
    example = EXAMPLES[name]
    folder, about = read_subject(example.subject)
    settings = dict(SETTINGS["style" if "style" in about["instance_prompt"] else "subject"])
    settings["max_train_steps"] = max_train_steps or settings["max_train_steps"]
    run = work_dir / f"{name}-{settings['max_train_steps']}-{hash_base(base_dir)}"
    atoms = run / "atoms.safetensors"
    if not atoms.is_file():
        config = TrainConfig(
            instance_data_dir=str(folder),
            instance_prompt=about["instance_prompt"],
            output_dir=str(run),
            pretrained_model_name_or_path=base_dir,
            resume_from_checkpoint="latest",
            **settings | {"validation_steps": 0, "checkpointing_steps": 50},
        )
        for step in train(config):
            if step.step % 50 == 0:
                report(f"{name}: step {step.step} of {step.total}, loss {step.loss:.3f}")
    file = read_atoms(atoms)
    pipe = load_base(base_dir)
    pictures = paint(pipe, [example.prompt], [SEED])
    adapters = load_atoms(pipe, file)
    pictures += paint(pipe, [example.prompt], [SEED])
    adapters.clear()
    made = pack(file, example, about, pictures[1])
    path = output_dir / f"{name}.safetensors"
    made.save(path)
    if path.stat().st_size > MAX_BYTES:
        size = path.stat().st_size
        path.unlink()
        raise AtomError(f"{path.name} has {size:,} bytes; an example takes at most {MAX_BYTES:,}")
    join_squares(pictures).save(path.with_suffix(".webp"), lossless=True, method=6)
    return path


def pack(file: AtomFile, example: Example, about: dict[str, Any], picture: Image.Image) -> AtomFile:
    """The file in half precision, with what a card shows."""
    tensors = {
        key: tensor if key.endswith("base_atoms") else tensor.to(torch.float16)
        for key, tensor in file.tensors.items()
    }
    header = {
        "base_model": "sdatoms/emoji-sd",
        "modelspec.title": example.title,
        "modelspec.usage_hint": example.prompt,
        "modelspec.license": about["licence"],
        "modelspec.thumbnail": make_thumbnail(picture),
        "modelspec.hash_sha256": hash_content(tensors),
    }
    return replace(file, metadata=file.metadata | header, tensors=tensors)


def hash_base(base_dir: str | None) -> str:
    """A short name for the base's UNet."""
    (weights,) = (Path(find_base(base_dir)) / "unet").glob("*.safetensors")
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
