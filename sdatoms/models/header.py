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
from typing import Any, BinaryIO, NamedTuple

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from sdatoms.errors import AtomError, clip

__all__ = [
    "UNOPENED",
    "Header",
    "TensorEntry",
    "read_header",
    "read_opening",
]

UNOPENED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    SafetensorError,
    StrictDataclassError,
)
"""What libraries raise for a model that they cannot open: its files may say anything."""
LIMIT = 100_000_000
"""Bytes a header may have, as in the safetensors library."""
MAX_ENTRIES = 100_000
"""The most tensors a header may list."""
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
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start, table = read_opening(file, f"the base model {path.name!r}")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise AtomError(f"the base model {path.name!r} cannot be read: {reason}") from None
    metadata = table.pop("__metadata__", None)
    metadata = metadata if isinstance(metadata, dict) else {}
    tensors = {name: read_entry(path, name, entry) for name, entry in table.items()}
    end = max((entry.end for entry in tensors.values()), default=0)
    if (missing := end - (size - len(start))) > 0:
        raise AtomError(
            f"the base model {path.name!r} is cut off: {missing:,} bytes are missing; copy or "
            "download it again"
        )
    kept = {str(key): str(value) for key, value in metadata.items()}
    return Header(tensors, kept, len(start))


def read_opening(file: BinaryIO, where: str, limit: int = LIMIT) -> tuple[bytes, dict[str, Any]]:
    """The bytes up to the tensors and the JSON table in them, with limits on what it may claim.

    Args:
        file: a safetensors file at its beginning; it is left at its first tensor.
        where: the file, as the subject of a sentence.
        limit: bytes the table may have.

    Raises:
        AtomError: the file is of another kind, is cut off, or claims too much.
    """
    length = file.read(8)
    size = int.from_bytes(length, "little")
    available = os.fstat(file.fileno()).st_size - 8
    first = file.read(1)
    if len(length) < 8 or size > available or first != b"{":
        raise AtomError(
            f"{where} is no safetensors file (or was cut short); no other kind is ever opened"
        )
    if size > limit:
        raise AtomError(f"{where} has a header of {size} bytes; at most {limit} are read")
    text = first + file.read(size - 1)
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        raise AtomError(f"{where} has a header that is not JSON") from None
    if not isinstance(table, dict) or len(table) > MAX_ENTRIES:
        raise AtomError(
            f"{where} has a header of {len(table)} entries; at most {MAX_ENTRIES} are read"
        )
    return length + text, table


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
