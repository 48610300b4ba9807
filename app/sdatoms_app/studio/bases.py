"""The base models the app offers.

They are the operator's choice, those of a folder of models, and hub ids where the operator allows
them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sdatoms import AtomError
from sdatoms.diffusion.family import (
    DEFAULT_RESOLUTION,
    describe_base,
    find_base,
    read_resolution,
)
from sdatoms.diffusion.guidance import DEFAULT_GUIDANCE, read_guidance
from sdatoms.errors import clip, mark_bytes

__all__ = [
    "BaseChoice",
    "Bases",
]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
MAX_LISTED = 100


@dataclass(frozen=True)
class BaseChoice:
    """One base that can be picked."""

    id: str
    label: str
    where: str | None
    """A directory, a file or a hub id; None: the bundled base."""
    about: str = ""
    """Family, dtype and size, read from headers; empty where nothing lies here."""


class Bases:
    """Lists what visitors may pick; they name a base by its id, never by a path."""

    def __init__(
        self, default: str | None = None, folder: Path | None = None, *, hub: bool = False
    ) -> None:
        self.default = default
        self.folder = folder
        self.hub = hub

    def list(self) -> list[BaseChoice]:
        """The default first, then the folder's in name order."""
        name = mark_bytes(Path(find_base(self.default)).name)
        label = f"{name} (bundled)" if self.default is None else name
        choices = [BaseChoice(name, label, self.default, describe(Path(find_base(self.default))))]
        if self.default is not None and Path(find_base(None)).is_dir():
            bundled = Path(find_base(None)).name
            about = describe(Path(find_base(None)))
            choices.append(BaseChoice(bundled, f"{bundled} (bundled)", None, about))
        for path in sorted(self.folder.iterdir()) if self.folder and self.folder.is_dir() else []:
            if about := describe(path):
                shown = mark_bytes(path.name)
                choices.append(BaseChoice(f"models/{shown}", shown, str(path), about))
        return choices[:MAX_LISTED]

    def find(self, id: str) -> BaseChoice:
        """The base of that id; an empty id is the default.

        Raises:
            AtomError: nothing of that id is listed, and hub ids are not taken here.
        """
        choices = self.list()
        for choice in choices:
            if choice.id == id or not id:
                return choice
        if self.hub and HUB_ID.fullmatch(id):
            return BaseChoice(id, id, id)
        hub = "" if self.hub else " (hub ids are not taken here)"
        listed = ", ".join(choice.id for choice in choices)
        raise AtomError(f"no base {clip(id)!r} is listed{hub}; listed are {listed}")

    def find_side(self, id: str) -> int:
        """Side in px of the pictures the base was trained on, from its configuration files."""
        try:
            return read_resolution(self.find(id).where)
        except AtomError:
            return DEFAULT_RESOLUTION

    def find_guidance(self, id: str) -> float:
        """The guidance scale of a base's pictures where none is given, from its files."""
        try:
            return read_guidance(self.find(id).where)
        except AtomError:
            return DEFAULT_GUIDANCE


def describe(path: Path) -> str:
    """Family, dtype and size of a base that lies here, such as "Stable Diffusion XL, float16,
    6.9 GB"; empty where there is none that opens by itself."""
    try:
        found = path / "model_index.json" if path.is_dir() else path
        state = found.stat()
    except OSError:
        return ""
    return describe_once(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1024)
def describe_once(path: Path, changed: int, size: int) -> str:
    """`describe`, read anew where the file changed."""
    try:
        facts = describe_base(str(path))
    except (AtomError, OSError):
        return ""
    if facts.missing:
        return ""
    dtype = str(facts.dtype).removeprefix("torch.") if facts.dtype else "no weights"
    amount = f"{facts.bytes / 1e9:.1f} GB" if facts.bytes >= 1e9 else f"{facts.bytes / 1e6:.0f} MB"
    return f"{facts.label}, {dtype}, {amount}"
