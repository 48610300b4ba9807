"""An atom file as a whole pipeline: the base with the atoms baked in, exact in float32."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from sdatoms.adapters.export import Conversion, ErrorTable, Progress, walk_change
from sdatoms.adapters.headers import describe_pipeline
from sdatoms.adapters.load import load_atoms
from sdatoms.adapters.plan import choose_modules
from sdatoms.errors import AtomError
from sdatoms.files.atom_file import AtomFile
from sdatoms.layers.weights import find_weight
from sdatoms.models.pipeline_folder import write_known_names
from sdatoms.storage import write_whole

__all__ = [
    "check_new_folder",
    "measure_pipeline",
    "save_pipeline",
]

EXPORTED = "(exported)"
"""The name a file is loaded under while the pipeline is written."""


def measure_pipeline(pipe: Any, *, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of the weights `save_pipeline` will write."""
    modules = [m for m in pipe.components.values() if isinstance(m, nn.Module)]
    return sum(
        t.numel() * (dtype.itemsize if t.is_floating_point() else t.element_size())
        for module in modules
        for t in module.state_dict().values()
    )


def save_pipeline(
    file: AtomFile,
    pipe: Any,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Conversion:
    """Bake the file into `pipe` and save it as a diffusers model directory, complete or absent.

    The pipeline is as it was afterwards; adapters that are loaded in it are saved with it. Weights
    and vocabulary are named as older readers know them, too.

    Returns:
        No tensors, and the share of each layer's change that rounding to the weights' dtype loses.

    Raises:
        AtomError: as in `load_atoms`, or the folder exists and is not empty.
    """
    folder = Path(os.path.abspath(folder))
    check_new_folder(folder)
    modules = choose_modules(pipe, file, None)
    errors = ErrorTable()
    for component, path, delta in walk_change(file, pipe, progress):
        base = find_weight(modules[component], path).weight.detach().cpu()
        baked = (base + delta).to(base.dtype).to(dtype)
        errors.add(f"{component}.{path}", delta, baked.float() - base.float())
    staging = folder.with_name(f".{folder.name[:50]}.{secrets.token_hex(4)}.tmp")
    try:
        adapters = load_atoms(pipe, file, name=EXPORTED)
        try:
            pipe.save_pretrained(staging, safe_serialization=True)
        finally:
            adapters.remove(EXPORTED)
        write_known_names(staging)
        header = describe_pipeline(file)
        for weights in staging.rglob("*.safetensors"):
            tuned = weights.parent.name == file.components[0]
            cast_file(weights, dtype, header if tuned else {})
        if folder.exists():
            folder.rmdir()
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Conversion({}, errors.layers, errors.total(), metadata=header)


def check_new_folder(folder: Path) -> None:
    """Refuse a place where no folder can be put.

    Raises:
        AtomError: there is something already, other than an empty folder; or one works in it.
    """
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise AtomError(f"{str(folder)!r} exists already; a pipeline takes a new or empty folder")
    if os.path.abspath(folder) == os.getcwd():
        raise AtomError(f"{str(folder)!r} is the folder you are in; a pipeline takes a new one")


def cast_file(path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
    """Rewrite a safetensors file, its floating-point tensors in a dtype, where that changes it."""
    tensors = load_file(path)
    narrow = any(t.is_floating_point() and t.dtype != dtype for t in tensors.values())
    if narrow or len(metadata) > 1:
        cast = {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}
        write_whole(path, save(cast, {"format": "pt"} | metadata))
