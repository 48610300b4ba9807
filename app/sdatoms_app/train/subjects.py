"""The bundled subjects that a training can be tried with by one click."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from sdatoms.evaluation.truth import FIVE_KINDS, choose_prompts, find_truth
from sdatoms.pictures import find_pictures, make_thumbnail, read_picture
from sdatoms.storage import list_subjects, read_subject

__all__ = [
    "SUBJECT_SCRIPT",
    "ask_known",
    "draw_subjects",
    "find_subject",
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
def list_digests() -> Mapping[str, str]:
    """What a draft calls each picture of the bundled subjects → the subject's name."""
    return {
        hashlib.sha256(path.read_bytes()).hexdigest()[:16]: name
        for name, folder in list_offered().items()
        for path in find_pictures(folder)[0]
    }


def find_subject(ids: Sequence[str]) -> Path | None:
    """The folder of the bundled subject that pictures of these ids all show; None where some are
    another's."""
    names = {list_digests().get(id) for id in ids}
    return list_offered().get(names.pop() or "") if len(names) == 1 else None


def ask_known(settings: Mapping[str, Any], subject: Path | None) -> dict[str, Any]:
    """Settings of a training of a bundled subject, whose samples put it into five settings of which
    the true pictures are known, so that its curves hold `truth` and `followed`; as they are where
    sample prompts are named, or the instance prompt is another than the subject's own."""
    truth, prompt = find_truth(subject), settings["instance_prompt"]
    named = settings.get("validation_prompt") or settings.get("validation_prompts")
    if named or truth is None or truth.find([prompt]) == [None]:
        return dict(settings)
    prompts = choose_prompts(truth, prompt, FIVE_KINDS)
    wanted = settings.get("num_validation_images", len(prompts))
    count = -(-wanted // len(prompts))
    return {**settings, "validation_prompts": prompts, "num_validation_images": count}
