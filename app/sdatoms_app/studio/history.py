"""Pictures kept on disk: one folder a day, every PNG with its recipe inside, searchable."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from sdatoms import AtomError, AtomFile
from sdatoms.diffusion.picture_file import read_recipe, save_picture
from sdatoms.diffusion.recipe import Recipe
from sdatoms.errors import clip

__all__ = [
    "History",
    "Kept",
]

ID = re.compile(r"\d{4}-\d\d-\d\d/\d{1,20}")
MAX_SCANNED = 2000


class Kept(NamedTuple):
    """One kept picture."""

    id: str
    """Day and file name."""
    path: Path
    recipe: Recipe

    @property
    def caption(self) -> str:
        atoms = ", ".join(used.name for used in self.recipe.adapters) or "base"
        return f"{clip(self.recipe.prompt, 60)} · {clip(atoms, 60)} · seed {self.recipe.seed}"


class History:
    """Reads and writes `<outputs>/<day>/<number>.png`."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self._known: dict[tuple[Path, int], Recipe | None] = {}

    def keep(self, picture: Image.Image, recipe: Recipe, embedded: Iterable[AtomFile] = ()) -> Kept:
        """Write a picture with its recipe, and atom files inside it.

        Raises:
            AtomError: the disk refuses, or the embedded files are too large.
        """
        day = datetime.date.today().isoformat()
        path = self.outputs / day / f"{time.time_ns()}.png"
        try:
            save_picture(picture, path, recipe, embedded)
        except OSError as error:
            raise AtomError(f"the picture cannot be kept: {error.strerror or error}") from None
        return Kept(f"{day}/{path.stem}", path, recipe)

    def list(self, search: str = "", limit: int = 48) -> list[Kept]:
        """The newest pictures whose prompt, atom files (name or hash), base or seed hold every word
        of `search`."""
        found: list[Kept] = []
        words = search.lower().split()
        paths = sorted(self.outputs.glob("[0-9]*-[0-9]*-[0-9]*/*.png"), reverse=True)
        for path in paths[:MAX_SCANNED]:
            recipe = self._read(path)
            if recipe is not None and all(word in describe(recipe) for word in words):
                found.append(Kept(f"{path.parent.name}/{path.stem}", path, recipe))
                if len(found) == limit:
                    break
        return found

    def find(self, id: str) -> Kept:
        """The picture of that id.

        Raises:
            AtomError: there is none.
        """
        path = self.outputs / f"{id}.png"
        if ID.fullmatch(id) and path.is_file() and not path.is_symlink():
            recipe = self._read(path)
            if recipe is not None:
                return Kept(id, path, recipe)
        raise AtomError(f"there is no picture {clip(id)!r} in the history")

    def _read(self, path: Path) -> Recipe | None:
        try:
            key = (path, path.stat().st_mtime_ns)
        except OSError:  # deleted since it was listed
            return None
        if key not in self._known:
            try:
                self._known[key] = read_recipe(path)
            except (AtomError, OSError):
                self._known[key] = None
        return self._known[key]


def describe(recipe: Recipe) -> str:
    """What a search looks through."""
    atoms = [f"{used.name} {used.sha256} {used.trigger}" for used in recipe.adapters]
    parts = [recipe.prompt, recipe.negative_prompt, recipe.base_model, str(recipe.seed), *atoms]
    return " ".join(parts).lower()
