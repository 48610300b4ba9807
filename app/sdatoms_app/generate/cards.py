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
    "find_prompt",
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
  if (!button) return;
  const said = {action: button.dataset.action, id: button.dataset.id};
  trigger(said.action === 'try' ? 'submit' : 'click', said);
});
"""
EMPTY = (
    '<p class="hint">Adapters are small files that teach the base something new: a subject or a '
    "style. There is none here yet. Make one on the Train tab from a handful of pictures, or drop "
    "an atom file or a LoRA below.</p>"
)


def draw_cards(entries: Iterable[tuple[Entry, Fit | None]], chosen: Iterable[str]) -> str:
    """One card a file: thumbnail, name, trigger word, size, base, whether it fits, and buttons;
    those that came with the program in a list of their own."""
    picked = set(chosen)
    own, examples = [], []
    for entry, fit in entries:
        cards = examples if entry.example else own
        cards.append(draw_card(entry, fit, entry.id in picked))
    if not own and not examples:
        return EMPTY
    head = (
        '<p class="hint cards-head">Examples that came with the program. “Try it” fills in the '
        "prompt and generates it without and with the adapter.</p>"
    )
    parts = [f'<ul class="cards">{"".join(own)}</ul>'] if own else []
    parts += [head, f'<ul class="cards examples">{"".join(examples)}</ul>'] if examples else []
    return "".join(parts)


def draw_card(entry: Entry, fit: Fit | None, picked: bool) -> str:
    id = escape(entry.id, quote=True)
    name = escape(entry.id.removeprefix("examples/") if entry.example else entry.id)
    tone, verdict = VERDICTS[fit.verdict] if fit else ("unknown", "")
    reason = escape(fit.reason, quote=True) if fit else ""
    source = clean_thumbnail(entry.thumbnail)
    picture = f'<img src="{source}" alt="">' if source else '<span class="blank">◇</span>'
    trigger = (
        f'<button type="button" class="trigger" data-action="trigger" data-id="{id}" '
        f'title="Insert the trigger word into the prompt">{escape(entry.trigger)}</button>'
        if entry.trigger
        else '<span class="faint">no trigger word</span>'
    )
    base = escape(entry.base_model.rstrip("/").rpartition("/")[2] or "base not told")
    known = entry.example and tone == "fits"  # of an example one takes it for granted
    told = "" if known else verdict
    badge = f'<span class="fit {tone}" title="{reason}">{told}</span>' if told else ""
    numbers = f"{entry.parameters:,} numbers"
    kind = f"LoRA of rank {escape(entry.rank)}, {numbers} · " if entry.rank else ""
    facts = f"example · {entry.size}" if entry.example else f"{kind}{entry.size} · {base}"
    action, word = ("remove", "Remove") if picked else ("add", "Add")
    buttons = draw_button("pick", action, id, word)
    if find_prompt(entry) and tone != "not":
        buttons = draw_button("try", "try", id, "Try it") + buttons
    return (
        f'<li class="card{" picked" if picked else ""}">{picture}'
        f'<div class="about"><strong title="{id}">{name}</strong>{trigger}'
        f'<span class="faint">{facts}</span>{badge}</div>'
        f'<div class="buttons">{buttons}</div></li>'
    )


def draw_button(kind: str, action: str, id: str, word: str) -> str:
    label = f"Try {id}" if action == "try" else f"{word} {id}"
    return (
        f'<button type="button" class="{kind}" data-action="{action}" data-id="{id}" '
        f'aria-label="{label}">{word}</button>'
    )


def find_prompt(entry: Entry) -> str:
    """What to try a file with: the prompt it brings, else its trigger word."""
    return entry.prompt or entry.trigger


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
