"""Where an atom file or a LoRA comes from: memory, a local file or folder, or the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdatoms.errors import AtomError, clip, first_line
from sdatoms.files.atom_file import AtomFile
from sdatoms.files.file_checks import check_file
from sdatoms.files.lora_file import LoraFile, is_lora, read_lora
from sdatoms.files.reader import read_atoms, read_header
from sdatoms.storage import reach_hub

__all__ = [
    "fetch_file",
    "read_adapter",
]

HUB_ARGUMENTS = (
    "weight_name",
    "revision",
    "token",
    "cache_dir",
    "local_files_only",
    "subfolder",
)
"""What `load_atoms` hands on to the hub's client."""


def fetch_file(
    path: str | os.PathLike[str] | AtomFile | LoraFile, hub: Mapping[str, Any]
) -> tuple[AtomFile | LoraFile, str]:
    """Read a local file, or one from the hub when `path` is no file but looks like a hub id."""
    for argument in hub:
        if argument not in HUB_ARGUMENTS:
            raise AtomError(f"load_atoms takes no argument {argument!r}")
    if isinstance(path, AtomFile):
        check_file(path, "the atom file")
        return path, clip(path.trigger or "atoms")
    if isinstance(path, LoraFile):
        return path, clip(path.trigger or "lora")
    if not isinstance(path, str | os.PathLike):
        kind = type(path).__name__
        raise AtomError(f"load_atoms takes a path, a hub id or an AtomFile; it was given a {kind}")
    local, filename = Path(path), hub.get("weight_name") or "atoms.safetensors"
    if local.is_dir():
        local = local / (hub.get("subfolder") or "") / filename
    looks_like_hub = hub or str(path).count("/") == 1
    if not local.exists() and looks_like_hub and not str(path).endswith(".safetensors"):
        # Imported here: only hub ids need the client, and `import sdatoms` stays torch and little
        # else.
        from huggingface_hub import hf_hub_download

        rest = {k: v for k, v in hub.items() if k != "weight_name"}
        try:
            with reach_hub(str(path)):
                local = Path(hf_hub_download(str(path), filename, **rest))
        except Exception as error:  # the client raises a dozen kinds; all mean: not to be had
            raise AtomError(
                f"{str(path)!r} is no local file and cannot be had from the hub: "
                f"{first_line(error)}"
            ) from None
    return read_adapter(local), local.stem


def read_adapter(path: str | os.PathLike[str]) -> AtomFile | LoraFile:
    """An atom file, or a LoRA of diffusers' or kohya's spelling, told by its header.

    Raises:
        AtomError: it is neither, as `read_atoms` and `read_lora` say.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            _, header = read_header(file, f"the file {path.name!r}")
    except (AtomError, OSError):
        return read_atoms(path)  # which says what is wrong
    metadata = header.get("__metadata__", {})
    atoms = isinstance(metadata, dict) and str(metadata.get("format")).startswith("sdatoms/")
    return read_lora(path) if not atoms and is_lora(header) else read_atoms(path)
