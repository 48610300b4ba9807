r"""Atom files in other tools' forms, with the error of each stated.

- `pipeline`: the base with the atoms baked in, as a diffusers model directory; exact in float32.
- `diff`: `ΔW` of every layer outright, LyCORIS's full difference; exact in float32, and as large as
  the tuned weights.
- `lora`: the best rank-r approximation of every `ΔW` by its singular values, LoRA for linear layers
  and LoCon for convolutions, under diffusers' or kohya's key names. The delta of atoms has full
  rank in general, so the error says what is lost.

Reference: Eckart, Young, "The approximation of one matrix by another of lower rank", Psychometrika
1936.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sdatoms.adapters.load import AdapterSet, load_atoms
from sdatoms.adapters.plan import choose_modules
from sdatoms.errors import AtomError, clip
from sdatoms.files.atom_file import AtomFile
from sdatoms.layers.weights import find_weight
from sdatoms.storage import write_whole

__all__ = [
    "Conversion",
    "Names",
    "convert_to_diff",
    "convert_to_lora",
    "measure_diff",
    "measure_lora",
    "measure_pipeline",
    "save_pipeline",
]

Names = Literal["diffusers", "kohya"]


KOHYA_PREFIXES = {
    "unet": "lora_unet",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
    "transformer": "lora_unet",
}
PAIR = ("lora_A", "lora_B")
TEXT_PAIR = ("lora_linear_layer.down", "lora_linear_layer.up")
"""Down and up under diffusers' names; text encoders keep an older spelling."""
EXPORTED = "(exported)"
"""The name a file is loaded under while it is converted."""


@dataclass(frozen=True)
class Conversion:
    """Tensors under another tool's names, and how far they are from the atoms."""

    tensors: dict[str, Tensor]
    errors: dict[str, float]
    """`<component>.<module path>` → ‖ΔW − approximation‖/‖ΔW‖; 0 where exact."""
    total_error: float
    """The same over all layers together."""
    left_out: str = ""
    """A sentence about what the form has no place for; empty where it holds all."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a safetensors file whole or not at all."""
        return write_whole(Path(path), save(self.tensors, {"format": "pt"}))


class ErrorTable:
    """Errors of layers, and of all of them together."""

    def __init__(self) -> None:
        self.layers: dict[str, float] = {}
        self._lost = self._whole = 0.0

    def add(self, layer: str, delta: Tensor, stored: Tensor) -> None:
        """Compare what a layer should change by with what is stored of it."""
        missed, norm = float((stored.float() - delta).norm()), float(delta.norm())
        self.layers[layer] = missed / norm if norm else 0.0
        self._lost, self._whole = self._lost + missed**2, self._whole + norm**2

    @property
    def total(self) -> float:
        return (self._lost / self._whole) ** 0.5 if self._whole else 0.0


@contextmanager
def attach(file: AtomFile, target: Any, strength: float) -> Iterator[AdapterSet]:
    """The file loaded, with all checks and warnings of loading, for the time of a `with` block."""
    adapters = load_atoms(target, file, name=EXPORTED, strength=strength)
    try:
        yield adapters
    finally:
        adapters.remove(EXPORTED)


def walk_deltas(file: AtomFile, target: Any) -> Iterator[tuple[str, str, Tensor]]:
    """Yield component, module path and unit-strength `ΔW` (float32, CPU) of every layer."""
    with attach(file, target, 0.0) as adapters:
        for component, paths in list_layers(file).items():
            for path in paths:
                where = path if isinstance(target, nn.Module) else f"{component}.{path}"
                yield component, path, adapters.delta(EXPORTED, where).cpu()


def walk_shapes(file: AtomFile, target: Any) -> Iterator[torch.Size]:
    for component, module in choose_modules(target, file, None).items():
        for path in list_layers(file)[component]:
            yield find_weight(module, path).weight.shape


def list_layers(file: AtomFile) -> dict[str, list[str]]:
    """Component → module paths."""
    return {component: list(file.maps(component)) for component in file.components}


def name_left_out(file: AtomFile) -> str:
    """What differences of weights cannot say of the file."""
    if not file.embeddings:
        return ""
    return (
        f"the word {clip(file.metadata['tokens'])} is left out: its embedding is no change of a "
        "weight; --format pipeline keeps it, and so does the atom file"
    )


def measure_diff(file: AtomFile, target: Any, *, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of the tensors `convert_to_diff` will make."""
    return sum(shape.numel() * dtype.itemsize for shape in walk_shapes(file, target))


def convert_to_diff(
    file: AtomFile, target: Any, *, dtype: torch.dtype = torch.float32
) -> Conversion:
    """LyCORIS's full difference, `<prefix>_<path with _>.diff`: exact in float32.

    Raises:
        AtomError: as in `load_atoms`, or other tools have no name for a component.
    """
    tensors, errors = {}, ErrorTable()
    for component, path, delta in walk_deltas(file, target):
        stored = delta.to(dtype).contiguous()
        tensors[f"{name_kohya(component, path)}.diff"] = stored
        errors.add(f"{component}.{path}", delta, stored)
    return Conversion(tensors, errors.layers, errors.total, name_left_out(file))


def measure_lora(
    file: AtomFile,
    target: Any,
    rank: int,
    *,
    names: Names = "diffusers",
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes of the tensors `convert_to_lora` will make."""
    check_lora(rank, names)
    shapes = list(walk_shapes(file, target))
    widest = min(rank, max(map(full_rank, shapes)))
    total = 0
    for shape in shapes:
        r = widest if names == "diffusers" else min(rank, full_rank(shape))
        total += r * (shape[0] + math.prod(shape[1:])) * dtype.itemsize
    return total if names == "diffusers" else total + 4 * len(shapes)


def convert_to_lora(
    file: AtomFile,
    target: Any,
    rank: int,
    *,
    names: Names = "diffusers",
    dtype: torch.dtype = torch.float32,
) -> Conversion:
    """The nearest LoRA of rank `rank`, and its error in every layer.

    Convolutions become LoCon pairs: a k×k convolution down to `rank` channels, a 1×1 convolution
    up. A layer of smaller rank takes less of it under kohya's names, which say the rank layer by
    layer, and zeros under diffusers'.

    Raises:
        AtomError: `rank` is below 1, `names` is unknown, other tools have no name for a component,
            or as in `load_atoms`.
    """
    check_lora(rank, names)
    tensors, errors = {}, ErrorTable()
    widest = min(rank, max(map(full_rank, walk_shapes(file, target))))
    for component, path, delta in walk_deltas(file, target):
        matrix = delta.flatten(1)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        r = min(rank, len(s))
        root = s[:r].sqrt()
        up, down = u[:, :r] * root, root[:, None] * v[:r]
        if names == "diffusers":
            up = nn.functional.pad(up, (0, widest - r))
            down = nn.functional.pad(down, (0, 0, 0, widest - r))
        up, down = up.to(dtype).contiguous(), down.to(dtype).contiguous()
        errors.add(f"{component}.{path}", matrix, up.float() @ down.float())
        if delta.dim() > 2:
            up = up.reshape(*up.shape, *[1] * (delta.dim() - 2))
            down = down.reshape(-1, *delta.shape[1:])
        if names == "kohya":
            prefix = name_kohya(component, path)
            tensors |= {f"{prefix}.lora_up.weight": up, f"{prefix}.lora_down.weight": down}
            tensors[f"{prefix}.alpha"] = torch.tensor(float(r))
        else:
            prefix = name_diffusers(component, path)
            text = component.startswith("text_encoder")
            first, second = TEXT_PAIR if text else PAIR
            tensors |= {f"{prefix}.{first}.weight": down, f"{prefix}.{second}.weight": up}
    return Conversion(tensors, errors.layers, errors.total, name_left_out(file))


def check_lora(rank: int, names: str) -> None:
    if rank < 1:
        raise AtomError(f"rank is {rank}; it takes at least 1")
    if names not in ("diffusers", "kohya"):
        raise AtomError(f"names is {names!r}; it takes diffusers | kohya")


def full_rank(shape: torch.Size) -> int:
    return min(shape[0], math.prod(shape[1:]))


def name_diffusers(component: str, path: str) -> str:
    """`<component>.<module path>` as diffusers' LoRA files spell it."""
    if component not in KOHYA_PREFIXES:
        raise AtomError(f"other tools have no names for the component {clip(component)!r}")
    if component.startswith("text_encoder") and not path.startswith("text_model."):
        # transformers 5 dropped a level of modules that the files of other tools go on naming.
        path = f"text_model.{path}"
    return f"{component}.{path}"


def name_kohya(component: str, path: str) -> str:
    """The same as kohya's scripts spell it: a prefix for the component, underscores for dots."""
    path = name_diffusers(component, path).removeprefix(f"{component}.")
    return f"{KOHYA_PREFIXES[component]}_{path.replace('.', '_')}"


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
) -> Conversion:
    """Bake the file into `pipe` and save it as a diffusers model directory, complete or absent.

    The pipeline is as it was afterwards; adapters that are loaded in it are saved with it.

    Returns:
        No tensors, and the share of each layer's change that rounding to the weights' dtype loses.

    Raises:
        AtomError: as in `load_atoms`, or the folder exists and is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AtomError(f"{str(folder)!r} exists already; a pipeline takes a new or empty folder")
    modules = choose_modules(pipe, file, None)
    errors = ErrorTable()
    for component, path, delta in walk_deltas(file, pipe):
        base = find_weight(modules[component], path).weight.detach().cpu()
        baked = (base + delta).to(base.dtype).to(dtype)
        errors.add(f"{component}.{path}", delta, baked.float() - base.float())
    staging = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with attach(file, pipe, 1.0):
            pipe.save_pretrained(staging, safe_serialization=True)
        for weights in staging.rglob("*.safetensors"):
            cast_file(weights, dtype)
        if folder.exists():
            folder.rmdir()
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Conversion({}, errors.layers, errors.total)


def cast_file(path: Path, dtype: torch.dtype) -> None:
    """Rewrite the floating-point tensors of a safetensors file in another dtype."""
    tensors = load_file(path)
    if any(t.is_floating_point() and t.dtype != dtype for t in tensors.values()):
        cast = {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}
        write_whole(path, save(cast, {"format": "pt"}))
