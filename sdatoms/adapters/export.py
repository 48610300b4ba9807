r"""Atom files in other tools' forms, with the error of each stated.

- `pipeline`: the base with the atoms baked in, as a diffusers model directory; exact in float32.
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
import shutil
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sdatoms.adapters.headers import describe_export, describe_pipeline
from sdatoms.adapters.load import AdapterSet, load_atoms
from sdatoms.adapters.low_rank import factor
from sdatoms.adapters.names import READERS, Client, Names, find_spelling, list_skipped
from sdatoms.adapters.plan import choose_modules
from sdatoms.errors import AtomError, clip
from sdatoms.files.atom_file import AtomFile
from sdatoms.layers.weights import find_layer
from sdatoms.models.pipeline_folder import write_known_names
from sdatoms.storage import write_whole

__all__ = [
    "Conversion",
    "Progress",
    "Reading",
    "convert_to_diff",
    "convert_to_lora",
    "measure_diff",
    "measure_lora",
    "measure_pipeline",
    "save_pipeline",
]

Progress = Callable[[int, int], None]
"""Told how many layers of how many are done."""
PAIR = ("lora_A", "lora_B")
TEXT_PAIR = ("lora_linear_layer.down", "lora_linear_layer.up")
"""Down and up under diffusers' names; text encoders keep an older spelling."""
EXPORTED = "(exported)"
"""The name a file is loaded under while it is converted."""


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


@contextmanager
def attach(file: AtomFile, target: Any, strength: float) -> Iterator[AdapterSet]:
    """The file loaded, with all checks and warnings of loading, for the time of a `with` block."""
    adapters = load_atoms(target, file, name=EXPORTED, strength=strength)
    try:
        yield adapters
    finally:
        adapters.remove(EXPORTED)


def walk_deltas(
    file: AtomFile, target: Any, progress: Progress | None = None
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield component, module path and unit-strength `ΔW` (float32, CPU) of every layer."""
    found = list_deltas(file, target)
    if progress is None:
        yield from found
        return
    total = sum(map(len, list_layers(file).values()))
    progress(0, total)
    for done, layer in enumerate(found, 1):
        yield layer
        progress(done, total)


def list_deltas(file: AtomFile, target: Any) -> Iterator[tuple[str, str, Tensor]]:
    with attach(file, target, 0.0) as adapters:
        for component, paths in list_layers(file).items():
            for path in paths:
                where = path if isinstance(target, nn.Module) else f"{component}.{path}"
                yield component, path, adapters.delta(EXPORTED, where).cpu()


def walk_shapes(file: AtomFile, target: Any) -> Iterator[torch.Size]:
    for component, module in choose_modules(target, file, None).items():
        for path in list_layers(file)[component]:
            yield find_layer(module, path).weight.shape


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
    for component, path, delta in walk_deltas(file, target, progress):
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
    for component, path, delta in walk_deltas(file, target, progress):
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


def full_rank(shape: torch.Size) -> int:
    return min(shape[0], math.prod(shape[1:]))


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
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AtomError(f"{str(folder)!r} exists already; a pipeline takes a new or empty folder")
    modules = choose_modules(pipe, file, None)
    errors = ErrorTable()
    for component, path, delta in walk_deltas(file, pipe, progress):
        base = find_layer(modules[component], path).weight.detach().cpu()
        baked = (base + delta).to(base.dtype).to(dtype)
        errors.add(f"{component}.{path}", delta, baked.float() - base.float())
    staging = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with attach(file, pipe, 1.0):
            pipe.save_pretrained(staging, safe_serialization=True)
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


def cast_file(path: Path, dtype: torch.dtype, metadata: dict[str, str]) -> None:
    """Rewrite a safetensors file, its floating-point tensors in a dtype, where that changes it."""
    tensors = load_file(path)
    narrow = any(t.is_floating_point() and t.dtype != dtype for t in tensors.values())
    if narrow or len(metadata) > 1:
        cast = {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}
        write_whole(path, save(cast, {"format": "pt"} | metadata))
