"""Atom files of one folder, by the names that prompts call them."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sdatoms_webui.atoms import FORMAT, Views, read_atoms

__all__ = ["find_files", "read_file", "read_metadata"]

STRANGE = ":<>=\"'&\n\r"
"""What ends a name in a prompt, or would mean something in the web UI's pages."""


def find_files(folder: str) -> dict[str, Path]:
    """Name (the file's, without its ending) → atom file, in subfolders too; what is no atom file,
    or bears a name that a prompt cannot say or a page cannot show, is left out."""
    found: dict[str, Path] = {}
    for path in sorted(Path(folder).rglob("*.safetensors")):
        sayable = not set(str(path.relative_to(folder))) & set(STRANGE) and path.stem.strip()
        if sayable and path.stem not in found and read_metadata(path).get("format") == FORMAT:
            found[path.stem] = path
    return found


def read_metadata(path: Path) -> dict[str, str]:
    """The header's words; none where the file cannot be read."""
    try:
        return read_header(str(path), os.stat(path).st_mtime_ns)
    except (OSError, SafetensorError):
        return {}


def read_file(path: Path) -> tuple[dict[str, Views], dict[str, Any]]:
    """Layers and layouts as `read_atoms` gives them, read again when the file has changed.

    Raises:
        ValueError: the file is no atom file, is damaged, or holds sparse codes' atoms.
    """
    try:
        return read_layers(str(path), os.stat(path).st_mtime_ns)
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"{path.name!r} cannot be read: {error}") from None


@lru_cache(256)
def read_header(path: str, _changed: int) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


@lru_cache(8)
def read_layers(path: str, _changed: int) -> tuple[dict[str, Views], dict[str, Any]]:
    return read_atoms(path)
