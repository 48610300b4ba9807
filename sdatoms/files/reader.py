"""Read an atom file that anybody may have made: judged by content, never by suffix or trust.

The header is read and limited before the tensors are, and nothing is ever unpickled. What the
tensors must be is in `file_checks.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from sdatoms.atoms.config import AtomConfig
from sdatoms.errors import AtomError, clip, first_line
from sdatoms.files.atom_file import FORMAT, MAX_HEADER, AtomFile
from sdatoms.files.file_checks import check_file, parse_entry
from sdatoms.models.header import read_opening

__all__ = [
    "read_atoms",
    "read_header",
]


def read_atoms(path: str | os.PathLike[str]) -> AtomFile:
    """Read and validate an atom file. No model is needed, nothing is unpickled.

    Raises:
        AtomError: the file is missing, truncated, no safetensors file, of another or a future
            format, or its tensors contradict each other.
    """
    path = Path(path)
    where = f"the file {path.name!r}"
    try:
        if not path.is_file():
            raise AtomError(f"there is no file {str(path)!r}")
        with path.open("rb") as file:
            # A checkpoint of gigabytes is refused by its header, before its tensors are read.
            start, header = read_header(file, where)
            metadata = check_metadata(header, where)
            data = start + file.read()
    except OSError as error:
        raise AtomError(f"{where} cannot be read: {error.strerror or error}") from None
    try:
        tensors = load_tensors(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise AtomError(f"{where} is cut short or damaged: {first_line(error)}") from None
    config = parse_entry(metadata, "config", where)
    try:
        parsed = AtomConfig.from_dict(config)
    except (AtomError, TypeError) as error:
        raise AtomError(f"{where} has a config of another kind: {clip(str(error), 300)}") from None
    file = AtomFile(parsed, metadata, dict(sorted(tensors.items())))
    check_file(file, where)
    return file


def read_header(file: BinaryIO, where: str) -> tuple[bytes, dict[str, Any]]:
    """`read_opening` of an atom file, whose header is far smaller than a base's may be."""
    return read_opening(file, where, MAX_HEADER)


def check_metadata(header: Mapping[str, Any], where: str) -> dict[str, str]:
    """The header's text entries, if they are those of an atom file this version reads."""
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise AtomError(f"{where} has a header whose metadata is not plain text")
    came = metadata.get("format", "none")
    if came != FORMAT and came.startswith("sdatoms/"):
        raise AtomError(
            f"{where} is an atom file of format {clip(came)!r} where {FORMAT!r} fits; "
            "a newer sdatoms may read it"
        )
    if came != FORMAT:
        raise AtomError(
            f"{where} is not an atom file: its format is {clip(came)!r} where {FORMAT!r} fits"
        )
    return metadata
