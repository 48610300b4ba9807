r"""Atom files as differences of weights in other tools' forms, with the error of each stated.

- `diff`: `ΔW` of every layer outright, LyCORIS's full difference; exact in float32, and as large as
  the tuned weights.
- `lora`: the best rank-r approximation of every `ΔW`, LoRA for linear layers and LoCon for
  convolutions. The delta of atoms has full rank in general, so the error says what is lost.

Layers go by the names of `names.py`. Some programs skip some of them: `Conversion.readings` says
what that costs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from sdatoms.adapters.changes import walk_deltas
from sdatoms.adapters.headers import describe_export
from sdatoms.adapters.low_rank import factor
from sdatoms.adapters.names import READERS, Client, Names, find_spelling, list_skipped
from sdatoms.adapters.plan import choose_modules, plan_file, warn_of_base
from sdatoms.errors import AtomError, clip
from sdatoms.files.atom_file import AtomFile
from sdatoms.layers.weights import find_weight
from sdatoms.storage import write_whole

__all__ = [
    "Conversion",
    "ErrorTable",
    "Progress",
    "Reading",
    "convert_to_diff",
    "convert_to_lora",
    "measure_diff",
    "measure_lora",
    "walk_change",
]

Progress = Callable[[int, int], None]
"""Told how many layers of how many are done."""
PAIR = ("lora_A", "lora_B")
TEXT_PAIR = ("lora_linear_layer.down", "lora_linear_layer.up")
"""Down and up under diffusers' names; text encoders keep an older spelling."""


@dataclass(frozen=True)
class Reading:
    """What a program loses that does not place every layer of a file."""

    program: str
    skipped: tuple[str, ...]
    """The layers, as `<component>.<module path>`."""
    total_error: float
    """As `Conversion.total_error`, with these layers lost whole."""


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
    readings: tuple[Reading, ...] = ()
    """Programs known to open this form that skip some of its layers."""
    metadata: dict[str, str] = field(default_factory=dict)
    """The header of the file."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a safetensors file whole or not at all."""
        return write_whole(Path(path), save(self.tensors, {"format": "pt"} | self.metadata))

    def reading(self, client: Client) -> Reading:
        """What one program makes of it."""
        same = [reading for reading in self.readings if reading.program == client.title]
        return same[0] if same else Reading(client.title, (), self.total_error)


class ErrorTable:
    """Errors of layers, and of all of them together."""

    def __init__(self) -> None:
        self.layers: dict[str, float] = {}
        self._lost: dict[str, float] = {}
        self._whole: dict[str, float] = {}

    def add(self, layer: str, delta: Tensor, stored: Tensor) -> None:
        """Compare what a layer should change by with what is stored of it."""
        missed, norm = measure(stored.float() - delta), measure(delta)
        self.layers[layer] = missed / norm if norm else 0.0
        self._lost[layer], self._whole[layer] = missed**2, norm**2

    def total(self, skipped: Container[str] = ()) -> float:
        """Over all layers; those that are skipped are lost whole."""
        whole = sum(self._whole.values())
        lost = sum(self._whole[k] if k in skipped else v for k, v in self._lost.items())
        return (lost / whole) ** 0.5 if whole else 0.0

    def read(self, clients: Iterable[Client]) -> tuple[Reading, ...]:
        """What each program loses, of those that skip anything."""
        found = []
        for client in clients:
            if skipped := list_skipped(client, self.layers):
                found.append(Reading(client.title, tuple(skipped), self.total(skipped)))
        return tuple(found)


def measure(tensor: Tensor) -> float:
    """‖·‖_F, summed in float64: float32 sums of millions of squares are off in the fourth digit."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def walk_change(
    file: AtomFile, target: Any, progress: Progress | None = None
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield component, module path and unit-strength `ΔW` (float32, CPU) of every layer, after the
    checks and the warning of `load_atoms`; nothing is loaded."""
    plans = plan_file(file, target)
    warn_of_base(file, [adapter for _, adapter in plans.values()])
    total = sum(len(adapter.maps) for _, adapter in plans.values())
    tell = progress or (lambda done, total: None)
    tell(0, total)
    for done, (component, path, delta) in enumerate(walk_deltas(plans), 1):
        yield component, path, delta.cpu()
        tell(done, total)


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
    file: AtomFile,
    target: Any,
    *,
    names: Names = "kohya",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Conversion:
    """LyCORIS's full difference, `<prefix>_<path with _>.diff`: exact in float32.

    Args:
        names: `kohya`, or `lycoris` for LyCORIS' own loader.
        progress: told how many layers are done.

    Raises:
        AtomError: as in `load_atoms`, other tools have no name for a component, or `names` is
            `diffusers`, which has none for this form.
    """
    spelling = find_spelling(file, target, names)
    if names == "diffusers":
        raise AtomError("names is 'diffusers'; a full difference takes kohya | lycoris")
    tensors, errors = {}, ErrorTable()
    for component, path, delta in walk_change(file, target, progress):
        stored = delta.to(dtype).contiguous()
        tensors[f"{spelling.prefix(component, path)}.diff"] = stored
        errors.add(f"{component}.{path}", delta, stored)
    return Conversion(
        tensors,
        errors.layers,
        errors.total(),
        name_left_out(file),
        errors.read(READERS.get(("diff", names), ())),
        describe_export(file, "diff", tensors),
    )


def measure_lora(
    file: AtomFile,
    target: Any,
    rank: int,
    *,
    names: Names = "diffusers",
    dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes of the tensors `convert_to_lora` will make."""
    check_rank(rank)
    spelling = find_spelling(file, target, names)
    shapes = list(walk_shapes(file, target))
    widest = min(rank, max(map(full_rank, shapes)))
    total = sum(widest * (shape[0] + math.prod(shape[1:])) * dtype.itemsize for shape in shapes)
    return total if spelling.names == "diffusers" else total + 4 * len(shapes)


def convert_to_lora(
    file: AtomFile,
    target: Any,
    rank: int,
    *,
    names: Names = "diffusers",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Conversion:
    """The nearest LoRA of rank `rank`, and its error in every layer.

    Convolutions become LoCon pairs: a k×k convolution down to `rank` channels, a 1×1 convolution
    up. A layer of smaller rank is filled up with zeros: programs that read ranks layer by layer
    mistake its scale.

    Args:
        names: those of `names.py`.
        progress: told how many layers are done.

    Raises:
        AtomError: `rank` is below 1, `names` is unknown, other tools have no name for a component,
            or as in `load_atoms`.
    """
    check_rank(rank)
    spelling = find_spelling(file, target, names)
    tensors, errors = {}, ErrorTable()
    widest = min(rank, max(map(full_rank, walk_shapes(file, target))))
    for component, path, delta in walk_change(file, target, progress):
        matrix = delta.flatten(1)
        up, down = factor(matrix, widest)
        up = nn.functional.pad(up, (0, widest - len(down))).to(dtype).contiguous()
        down = nn.functional.pad(down, (0, 0, 0, widest - len(down))).to(dtype).contiguous()
        errors.add(f"{component}.{path}", matrix, up.float() @ down.float())
        if delta.dim() > 2:
            up = up.reshape(*up.shape, *[1] * (delta.dim() - 2))
            down = down.reshape(-1, *delta.shape[1:])
        prefix = spelling.prefix(component, path)
        if spelling.names == "diffusers":
            text = component.startswith("text_encoder")
            first, second = TEXT_PAIR if text else PAIR
            tensors |= {f"{prefix}.{first}.weight": down, f"{prefix}.{second}.weight": up}
        else:
            tensors |= {f"{prefix}.lora_up.weight": up, f"{prefix}.lora_down.weight": down}
            tensors[f"{prefix}.alpha"] = torch.tensor(float(widest))
    return Conversion(
        tensors,
        errors.layers,
        errors.total(),
        name_left_out(file),
        errors.read(READERS.get(("lora", names), ())),
        describe_export(file, "lora", tensors, widest),
    )


def check_rank(rank: int) -> None:
    if rank < 1:
        raise AtomError(f"rank is {rank}; it takes at least 1")


def full_rank(shape: Sequence[int]) -> int:
    return min(shape[0], math.prod(shape[1:]))
