"""The bundled subjects that a training can be tried with by one click."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from html import escape
from pathlib import Path

from sdatoms.pictures import find_pictures, make_thumbnail, read_picture
from sdatoms.storage import list_subjects, read_subject

__all__ = [
    "SUBJECT_SCRIPT",
    "draw_subjects",
    "list_digests",
    "list_offered",
]

SUBJECT_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-subject]');
  if (button) trigger('select', {index: 0, value: button.dataset.subject});
});
"""


def list_offered() -> dict[str, Path]:
    """Name → folder of the bundled subjects that were photographed, so to say, in scenes."""
    found = {name: read_subject(name) for name in list_subjects()}
    return {name: folder for name, (folder, about) in found.items() if about.get("truth")}


@lru_cache(1)
def draw_subjects() -> str:
    """A button a subject, with its first picture; nothing where none is bundled."""
    buttons = []
    for name, folder in list_offered().items():
        thumbnail = make_thumbnail(read_picture(find_pictures(folder)[0][0]))
        word = escape(name, quote=True)
        buttons.append(
            f'<li><button type="button" data-subject="{word}" '
            f'aria-label="Try it with the {word}"><img src="{thumbnail}" alt="">{word}'
            "</button></li>"
        )
    if not buttons:
        return ""
    return (
        '<p class="hint">Three to ten pictures of one thing suffice. None at hand? Try it with the '
        f'hamburger, or another bundled one:</p><ul class="subjects">{"".join(buttons)}</ul>'
    )


@lru_cache(1)
def list_digests() -> frozenset[str]:
    """What a draft calls the pictures of all bundled subjects."""
    paths = [path for folder in list_offered().values() for path in find_pictures(folder)[0]]
    return frozenset(hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths)
