"""What programs send to the endpoints of Generate and get from them, as the app holds it.

Types of endpoints are read from signatures, so this module keeps its annotations as objects.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from gradio_client.utils import is_file_obj_with_meta
from PIL import Image

from sdatoms import AtomError
from sdatoms.atoms.strengths import Strength, check_strength
from sdatoms.errors import clip
from sdatoms_app.shared.references import FileReference, refer
from sdatoms_app.studio.history import Kept
from sdatoms_app.studio.studio import Studio

__all__ = [
    "Picture",
    "open_picture",
    "open_upload",
    "read_schedules",
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
        (id, check_strength(strength, f"the strength of {id!r}"))
        for id, strength in (adapters or {}).items()
    )


def read_schedules(schedules: dict[str, str] | None) -> dict[str, str]:
    """Schedules as text.

    Raises:
        AtomError: one is no text; `check_order` reads them.
    """
    for id, text in (schedules or {}).items():
        if not isinstance(text, str):
            raise AtomError(f"the schedule of {clip(id)!r} is {clip(repr(text))}; it takes a text")
    return dict(schedules or {})


def open_picture(studio: Studio, id: str) -> Image.Image | None:
    """A kept picture by its id, None for an empty one."""
    if not id:
        return None
    with Image.open(studio.history.find(id).path) as opened:
        return opened.convert("RGB")


def open_upload(upload: Any, read: Callable[[Path], Image.Image]) -> Image.Image | None:
    """An uploaded picture, None for none.

    Gradio sees that the path of what it takes for a file is that of an upload, and looks at nothing
    else.

    Raises:
        AtomError: it is no upload, or no picture.
    """
    if not upload:
        return None
    if not is_file_obj_with_meta(upload):
        raise AtomError("a picture came that is no upload; send it by gradio_client.handle_file")
    return read(Path(upload["path"]))


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
