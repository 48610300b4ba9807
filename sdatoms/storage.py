"""Files on disk: written whole or not at all; where the bundled assets and subjects lie."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from sdatoms.errors import AtomError

__all__ = [
    "find_assets",
    "list_subjects",
    "read_subject",
    "write_whole",
]


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write to a temporary file beside `path`, flush, rename: `path` is complete or untouched."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def find_assets() -> Path:
    """The directory of bundled files: beside the package in a checkout, inside it in a wheel."""
    here = Path(__file__).resolve().parent
    return next(
        (p for p in (here / "assets", here.parent / "assets") if p.is_dir()), here.parent / "assets"
    )


def list_subjects() -> list[str]:
    """Names of the bundled instance sets."""
    return sorted(p.parent.name for p in (find_assets() / "subjects").glob("*/subject.json"))


def read_subject(name: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a bundled instance set, and what its `subject.json` says.

    Raises:
        AtomError: there is none of that name.
    """
    folder = find_assets() / "subjects" / name
    if name not in list_subjects():
        raise AtomError(
            f"there is no bundled subject {name!r}; there are {', '.join(list_subjects())}"
        )
    return folder, json.loads((folder / "subject.json").read_text())
