"""Pipelines of full size with seeded random weights, in the forms people have them.

Stable Diffusion 1.5, 2.1 (v, 768 px) and XL as published in shape, as a directory and as a single
file in the original layout. Tensors are made and written one at a time, from their names' own
seeds, so that both forms hold the same numbers and nothing large is ever in memory.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdatoms.errors import AtomError
from sdatoms.models.original_layout import join, lay_out
from sdatoms.models.recognize import FAMILIES
from sdatoms.models.single_file import CONFIGS, build
from sdatoms.models.vocabulary import build_tokenizer
from sdatoms.storage import read_table

__all__ = [
    "FULL_SIZES",
    "FullSize",
    "count_bytes",
    "list_shapes",
    "make_tensor",
    "write_directory",
    "write_single",
]

SPELLINGS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
WEIGHT_FILES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


class FullSize(NamedTuple):
    """One pipeline to make."""

    family: str
    prediction_type: str
    side: int


FULL_SIZES = {
    "sd15": FullSize("sd1", "epsilon", 512),
    "sd21": FullSize("sd2", "v_prediction", 768),
    "sdxl": FullSize("sdxl", "epsilon", 1024),
}
"""Name → what it is; sd21 is the 768-v."""

Entry = tuple[str, tuple[int, ...], Callable[[], Tensor]]
"""Name, shape, and what makes the tensor."""


def make_tensor(part: str, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor of that name: N(0, 1/fan-in) for weights, which keeps activations of order one;
    ones for gains, zeros for biases."""
    if len(shape) < 2:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{part}.{name}".encode()))
    scale = 0.02 if "embedding" in name else math.prod(shape[1:]) ** -0.5
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def list_shapes(family: str, folder: Path = CONFIGS) -> dict[str, dict[str, tuple[int, ...]]]:
    """Component → name → shape, as diffusers and transformers name them."""
    return {
        part: {
            name: tuple(tensor.shape)
            for name, tensor in build(part, folder / family).state_dict().items()
            if not name.endswith("position_ids")
        }
        for part in FAMILIES[family].parts
    }


def count_bytes(name: str, dtype: torch.dtype = torch.float16) -> int:
    """Bytes of one form's weights."""
    shapes = list_shapes(FULL_SIZES[name].family).values()
    return dtype.itemsize * sum(math.prod(shape) for part in shapes for shape in part.values())


def write_directory(name: str, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write the pipeline's directory, as the hub has it.

    Raises:
        AtomError: the disk has too little room.
    """
    made = FULL_SIZES[name]
    check_room(folder, count_bytes(name, dtype))
    for path in sorted((CONFIGS / made.family).rglob("*.json")):
        target = folder / path.relative_to(CONFIGS / made.family)
        target.parent.mkdir(parents=True, exist_ok=True)
        table = read_table(path)
        if path.parent.name == "scheduler":
            table["prediction_type"] = made.prediction_type
        if path.parent.name == "unet":
            table["sample_size"] = made.side // 8
        target.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        if path.parent.name.startswith("tokenizer"):
            build_tokenizer(table["pad_token"]).save_pretrained(str(target.parent))
    for part, shapes in list_shapes(made.family).items():
        entries = [
            (spell(part, key), shape, maker(part, key, shape, dtype))
            for key, shape in shapes.items()
        ]
        stem = WEIGHT_FILES.get(part, "model")
        write_streamed(folder / part / f"{stem}.safetensors", entries, dtype, {"format": "pt"})
    return folder


def spell(part: str, key: str) -> str:
    """A text encoder's tensor as transformers wrote it before 5.6, which all readers know."""
    if not part.startswith("text_encoder") or key.startswith("text_"):
        return key
    return f"text_model.{key}"


def maker(part: str, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: make_tensor(part, key, shape, dtype)


def write_single(name: str, path: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write the single file in the original layout, with what real ones hold beside.

    Raises:
        AtomError: the disk has too little room.
    """
    made = FULL_SIZES[name]
    check_room(path.parent, count_bytes(name, dtype))
    word = "v" if made.prediction_type == "v_prediction" else "epsilon"
    write_streamed(
        path, list(list_single(made.family, dtype)), dtype, {"modelspec.prediction_type": word}
    )
    return path


def list_single(family: str, dtype: torch.dtype) -> Iterator[Entry]:
    for part, shapes in list_shapes(family).items():
        for entry in lay_out(family, part, shapes):

            def make(entry: Any = entry, part: str = part, shapes: Any = shapes) -> Tensor:
                held = {key: make_tensor(part, key, shapes[key], dtype) for key in entry.sources}
                return join(entry, held)

            yield entry.name, entry.shape, make
            if family == "sd2" and ".resblocks.22." in entry.name:  # the layer that is not read
                yield entry.name.replace(".22.", ".23."), entry.shape, make
    if family == "sd2":
        prefix = "cond_stage_model.model."
        yield f"{prefix}text_projection", (1024, 1024), lambda: torch.eye(1024, dtype=dtype)
        yield f"{prefix}logit_scale", (), lambda: torch.ones((), dtype=dtype)


def write_streamed(
    path: Path, entries: list[Entry], dtype: torch.dtype, metadata: dict[str, str]
) -> None:
    """A safetensors file, one tensor in memory at a time; complete or absent."""
    table: dict[str, Any] = {"__metadata__": metadata}
    place = 0
    for name, shape, _ in entries:
        size = math.prod(shape) * dtype.itemsize
        table[name] = {
            "dtype": SPELLINGS[dtype],
            "shape": list(shape),
            "data_offsets": [place, place + size],
        }
        place += size
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for _, _, make in entries:
                raw = make().contiguous().flatten().view(torch.uint8)
                raw.numpy().tofile(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_room(folder: Path, needed: int) -> None:
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if needed > free - (1 << 30):
        raise AtomError(
            f"{str(folder)!r} needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free"
        )
