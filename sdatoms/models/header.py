"""The header of a safetensors file: names, shapes, dtypes and metadata, without any weight.

Reference: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from sdatoms.errors import AtomError, clip

__all__ = [
    "UNOPENED",
    "Header",
    "TensorEntry",
    "read_header",
]

UNOPENED = (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError)
"""What libraries raise for a model that they cannot open."""
LIMIT = 100_000_000
"""Bytes a header may have, as in the safetensors library."""
BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I64": 64,
    "U64": 64,
    "I32": 32,
    "U32": 32,
    "I16": 16,
    "U16": 16,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
}
"""Name of a dtype in headers → bits a number takes."""


class TensorEntry(NamedTuple):
    """What a header says of one tensor."""

    dtype: str
    """As safetensors spells it, such as F16."""
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the end of the header."""
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    length: int
    """Bytes before the first tensor's."""


def read_header(path: str | os.PathLike[str]) -> Header:
    """Names, shapes and metadata of a safetensors file; no weight is read.

    Raises:
        AtomError: the file cannot be read, is of another kind, or is cut off.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(LIMIT, size - 8):
                raise refuse(path)
            text = file.read(length)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise AtomError(f"the base model {path.name!r} cannot be read: {reason}") from None
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        raise refuse(path) from None
    if not isinstance(table, dict):
        raise refuse(path)
    metadata = table.pop("__metadata__", None)
    metadata = metadata if isinstance(metadata, dict) else {}
    tensors = {name: read_entry(path, name, entry) for name, entry in table.items()}
    end = max((entry.end for entry in tensors.values()), default=0)
    if end > size - 8 - length:
        missing = end - (size - 8 - length)
        raise AtomError(
            f"the base model {path.name!r} is cut off: {missing:,} bytes are missing; copy or "
            "download it again"
        )
    kept = {str(key): str(value) for key, value in metadata.items()}
    return Header(tensors, kept, 8 + length)


def read_entry(path: Path, name: str, entry: Any) -> TensorEntry:
    """One tensor's entry, its numbers checked against each other."""
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        start, end = entry["data_offsets"]
        numbers = (*shape, start, end)
        sound = all(type(number) is int and number >= 0 for number in numbers) and start <= end
        bits = BITS.get(dtype)
        if not sound or (bits and math.prod(shape) * bits != (end - start) * 8):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise AtomError(
            f"the base model {path.name!r} has a damaged header: {clip(name, 60)!r} does not add up"
        ) from None
    return TensorEntry(str(dtype), shape, start, end)


def refuse(path: Path) -> AtomError:
    return AtomError(
        f"the base model {path.name!r} is no safetensors file; other checkpoint files are never "
        "opened"
    )
