"""The base models the app offers.

They are the operator's choice, those of a folder of models, and hub ids where the operator allows
them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sdatoms import AtomError
from sdatoms.diffusion.pipeline import DEFAULT_RESOLUTION, find_base, read_resolution
from sdatoms.errors import clip

__all__ = [
    "BaseChoice",
    "Bases",
]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
MAX_LISTED = 100
MODEL = "model.diffusion_model."
"""What the names of a denoiser begin with in a model that is one file."""


@dataclass(frozen=True)
class BaseChoice:
    """One base that can be picked."""

    id: str
    label: str
    where: str | None
    """A directory, a file or a hub id; None: the bundled base."""


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
        name = Path(find_base(self.default)).name
        label = f"{name} (bundled)" if self.default is None else name
        choices = [BaseChoice(name, label, self.default)]
        if self.default is not None and Path(find_base(None)).is_dir():
            bundled = Path(find_base(None)).name
            choices.append(BaseChoice(bundled, f"{bundled} (bundled)", None))
        for path in sorted(self.folder.iterdir()) if self.folder and self.folder.is_dir() else []:
            pipeline = path.is_dir() and (path / "model_index.json").is_file()
            single = path.is_file() and path.suffix.lower() == ".safetensors"
            if pipeline or (single and is_model_file(path)):
                choices.append(BaseChoice(f"models/{path.name}", path.name, str(path)))
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


def is_model_file(path: Path) -> bool:
    """Whether the file is a whole safetensors file that holds a model, by the names in its header.

    Atom files, LoRAs and single parts are none.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return any(name.startswith(MODEL) for name in file.keys())
    except (SafetensorError, OSError):
        return False
