"""Cards of the listed atom files: what each is, whether it fits, and buttons to use it.

Names, triggers and thumbnails come out of files that anybody may have made: every text is escaped,
every thumbnail decoded and encoded anew.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from functools import lru_cache
from html import escape

from PIL import Image

from sdatoms.adapters.plan import Fit
from sdatoms.pictures import make_thumbnail
from sdatoms_app.studio.library import Entry

__all__ = [
    "CARD_SCRIPT",
    "clean_thumbnail",
    "draw_cards",
]

MAX_THUMBNAIL = 1 << 20
VERDICTS = {
    "fits": ("fits", "fits this base"),
    "other base": ("other", "another base"),
    "does not fit": ("not", "does not fit"),
}


CARD_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (button) trigger('click', {action: button.dataset.action, id: button.dataset.id});
});
"""


def draw_cards(entries: Iterable[tuple[Entry, Fit | None]], chosen: Iterable[str]) -> str:
    """One card a file: thumbnail, name, trigger, size, base, whether it fits, and two buttons."""
    picked = set(chosen)
    cards = [draw_card(entry, fit, entry.id in picked) for entry, fit in entries]
    if not cards:
        return '<p class="hint">No atom files yet: drop one here, or train one.</p>'
    return f'<ul class="cards">{"".join(cards)}</ul>'


def draw_card(entry: Entry, fit: Fit | None, picked: bool) -> str:
    name, id = escape(entry.id), escape(entry.id, quote=True)
    tone, verdict = VERDICTS[fit.verdict] if fit else ("unknown", "")
    reason = escape(fit.reason, quote=True) if fit else ""
    source = clean_thumbnail(entry.thumbnail)
    picture = f'<img src="{source}" alt="">' if source else '<span class="blank">◇</span>'
    trigger = (
        f'<button type="button" class="trigger" data-action="trigger" data-id="{id}" '
        f'title="Insert the trigger into the prompt">{escape(entry.trigger)}</button>'
        if entry.trigger
        else '<span class="faint">no trigger</span>'
    )
    base = escape(entry.base_model.rstrip("/").rpartition("/")[2] or "base not told")
    badge = f'<span class="fit {tone}" title="{reason}">{verdict}</span>' if verdict else ""
    numbers = f"{entry.parameters:,} numbers"
    kind = f"LoRA of rank {escape(entry.rank)}, {numbers} · " if entry.rank else ""
    action, word = ("remove", "Remove") if picked else ("add", "Add")
    return (
        f'<li class="card{" picked" if picked else ""}">{picture}'
        f'<div class="about"><strong title="{id}">{name}</strong>{trigger}'
        f'<span class="faint">{kind}{entry.size} · {base}</span>{badge}</div>'
        f'<button type="button" class="pick" data-action="{action}" data-id="{id}" '
        f'aria-label="{word} {id}">{word}</button></li>'
    )


@lru_cache(256)
def clean_thumbnail(uri: str) -> str:
    """An untrusted data URI as a JPEG of our own making; empty where it is no picture."""
    head, _, data = uri.partition(";base64,")
    if not head.startswith("data:image/") or len(data) > MAX_THUMBNAIL:
        return ""
    try:
        raw = io.BytesIO(base64.b64decode(data, validate=True))
        with Image.open(raw, formats=["JPEG", "PNG", "WEBP"]) as opened:
            if opened.width * opened.height > MAX_THUMBNAIL:
                return ""
            return make_thumbnail(opened)
    except Exception:  # Pillow raises many kinds for what is no picture
        return ""
