"""What programs send to the endpoints of Generate and get from them, as the app holds it.

Values come here of the kinds that the endpoints' signatures name. Types are read from signatures,
so this module keeps its annotations as objects.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from PIL import Image

from sdatoms.atoms.strengths import Strength, check_strength
from sdatoms.errors import clip
from sdatoms.pictures import read_picture
from sdatoms_app.shared.references import FileReference, find_upload, refer
from sdatoms_app.studio.history import Kept
from sdatoms_app.studio.studio import Studio

__all__ = [
    "Picture",
    "open_picture",
    "open_upload",
    "read_strengths",
    "show_picture",
]


class Picture(TypedDict):
    """One kept picture."""

    id: str
    seed: int
    file: FileReference
    parameters: dict[str, Any]


def read_strengths(adapters: dict[str, Any] | None) -> tuple[tuple[str, Strength], ...]:
    """Strengths as plain numbers.

    Raises:
        AtomError: a strength is no finite number, or names an unknown block.
    """
    return tuple(
        (id, check_strength(strength, f"the strength of {clip(id)!r}"))
        for id, strength in (adapters or {}).items()
    )


def open_picture(studio: Studio, id: str) -> Image.Image | None:
    """A kept picture by its id, None for an empty one.

    Raises:
        AtomError: there is none of that id, or it cannot be read.
    """
    return read_picture(studio.history.find(id).path) if id else None


def open_upload(upload: Any, read: Callable[[Path], Image.Image]) -> Image.Image | None:
    """An uploaded picture, None for none; Gradio sees that the path is that of an upload.

    Raises:
        AtomError: it is no picture.
    """
    return read(find_upload(upload)) if upload else None


def show_picture(kept: Kept) -> Picture:
    recipe = kept.recipe
    parameters: dict[str, Any] = {
        **recipe.settings,
        "base": recipe.base_model,
        "adapters": {used.name: used.strength for used in recipe.adapters},
        "strength_schedules": {
            used.name: used.schedule for used in recipe.adapters if used.schedule
        },
    }
    return {
        "id": kept.id,
        "seed": recipe.seed,
        "file": refer(kept.path),
        "parameters": parameters,
    }
