r"""Atom files as differences of weights in other tools' forms, with the error of each stated.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from sdatoms.adapters.changes import walk_deltas
from sdatoms.adapters.plan import choose_modules, plan_file, warn_of_base
from sdatoms.errors import AtomError, clip
from sdatoms.files.atom_file import AtomFile
from sdatoms.layers.weights import find_weight
from sdatoms.storage import write_whole

__all__ = [
    "Conversion",
    "ErrorTable",
    "Names",
    "convert_to_diff",
    "convert_to_lora",
    "measure_diff",
    "measure_lora",
    "walk_change",
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


def walk_change(file: AtomFile, target: Any) -> Iterator[tuple[str, str, Tensor]]:
    """Yield component, module path and unit-strength `ΔW` (float32, CPU) of every layer, after the
    checks and the warning of `load_atoms`; nothing is loaded."""
    plans = plan_file(file, target)
    warn_of_base(file, [adapter for _, adapter in plans.values()])
    for component, path, delta in walk_deltas(plans):
        yield component, path, delta.cpu()


def walk_shapes(file: AtomFile, target: Any) -> Iterator[tuple[int, ...]]:
    for component, module in choose_modules(target, file, None).items():
        for path in file.maps(component):
            yield find_weight(module, path).shape


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
    return sum(math.prod(shape) * dtype.itemsize for shape in walk_shapes(file, target))


def convert_to_diff(
    file: AtomFile, target: Any, *, dtype: torch.dtype = torch.float32
) -> Conversion:
    """LyCORIS's full difference, `<prefix>_<path with _>.diff`: exact in float32.

    Raises:
        AtomError: as in `load_atoms`, or other tools have no name for a component.
    """
    tensors, errors = {}, ErrorTable()
    for component, path, delta in walk_change(file, target):
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
    for component, path, delta in walk_change(file, target):
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


def full_rank(shape: Sequence[int]) -> int:
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
