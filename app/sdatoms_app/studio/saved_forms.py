"""Named settings of the form, one JSON file each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sdatoms import AtomError
from sdatoms.errors import clip
from sdatoms.storage import write_whole

__all__ = [
    "SavedForms",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,39}")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)
MAX_PRESETS = 200
MAX_BYTES = 64 << 10


class SavedForms:
    """Reads and writes `<folder>/<name>.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list(self) -> list[str]:
        """Names in order."""
        return sorted(p.stem for p in self.folder.glob("*.json") if NAME.fullmatch(p.stem))

    def save(self, name: str, settings: dict[str, Any]) -> None:
        """Write a preset; one of the same name is replaced.

        Raises:
            AtomError: the name is no plain name, or there are too many presets.
        """
        path = self._find_path(name)
        if not path.exists() and len(self.list()) >= MAX_PRESETS:
            raise AtomError(f"there are {MAX_PRESETS} presets; delete one first")
        write_whole(path, json.dumps(settings, indent=2, ensure_ascii=False).encode())

    def load(self, name: str) -> dict[str, Any]:
        """The settings of a preset.

        Raises:
            AtomError: there is none of that name, or its file is damaged.
        """
        path = self._find_path(name)
        try:
            if path.is_symlink() or path.stat().st_size > MAX_BYTES:
                raise AtomError(f"the preset {name!r} is no plain file of a preset's size")
            settings = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            listed = ", ".join(self.list()) or "none"
            raise AtomError(f"there is no preset {clip(name)!r}; there are {listed}") from None
        except (OSError, ValueError):
            settings = None
        if not isinstance(settings, dict):
            raise AtomError(f"the preset {clip(name)!r} is damaged")
        return settings

    def delete(self, name: str) -> None:
        """Remove a preset; one that is not there stays so."""
        self._find_path(name).unlink(missing_ok=True)

    def _find_path(self, name: str) -> Path:
        if not isinstance(name, str) or not NAME.fullmatch(name) or RESERVED.fullmatch(name):
            raise AtomError(
                f"a preset cannot be called {clip(str(name), 60)!r}; names are 1 to 40 letters, "
                "digits, spaces, dashes and underscores"
            )
        return self.folder / f"{name}.json"
