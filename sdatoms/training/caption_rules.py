"""What is made of a picture's captions each time it comes: one is drawn, tags move or drop out.

The names are kohya's, and so is the order: prefix and suffix, dropout, one of several captions,
wildcards, tags. A draw depends on the numbers it is given and on nothing else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "PLAIN_RULES",
    "CaptionRules",
    "draw_caption",
    "has_wildcard",
    "list_captions",
]

WILDCARD = re.compile(r"\{([^{}]*\|[^{}]*)\}")
"""`{on grass|in a box}`: one of them is drawn."""
TRIGGER = re.compile(r"\[(?:trigger|name)\]")
"""ai-toolkit's place for the trigger."""


@dataclass(frozen=True)
class CaptionRules:
    """How the captions of one concept's pictures are read."""

    prefix: str = ""
    suffix: str = ""
    shuffle: bool = False
    """Whether the parts between commas change places."""
    keep_tokens: int = 0
    """How many parts at the front stay where they are."""
    tag_dropout: float = 0.0
    """Chance of each further part to be left out."""
    dropout: float = 0.0
    """Chance of the whole caption to be left out."""
    wildcards: bool = False
    """Whether one of `{a|b}` is drawn."""
    trigger: str = ""
    """What stands for `[trigger]` and `[name]`."""


PLAIN_RULES = CaptionRules()


def draw_caption(captions: Sequence[str], rules: CaptionRules, draw: random.Random) -> str:
    """One caption as the base reads it this time.

    Args:
        captions: of one picture, at least one.
        draw: gives the numbers.
    """
    if rules.dropout and draw.random() < rules.dropout:
        return ""
    text = frame_caption(draw.choice(captions) if len(captions) > 1 else captions[0], rules)
    if rules.wildcards:
        text = WILDCARD.sub(lambda found: draw.choice(found[1].split("|")).strip(), text)
    if not rules.shuffle and not rules.tag_dropout:
        return text
    kept, tags = split_tags(text, rules.keep_tokens)
    if rules.shuffle:
        draw.shuffle(tags)
    if rules.tag_dropout:
        tags = [tag for tag in tags if draw.random() >= rules.tag_dropout]
    return ", ".join(kept + tags)


def list_captions(captions: Sequence[str], rules: CaptionRules) -> list[str] | None:
    """All that `draw_caption` can say of a picture; None where that is more than can be listed."""
    framed = [frame_caption(text, rules) for text in captions]
    if any(varies(text, rules) for text in framed):
        return None
    if rules.shuffle or rules.tag_dropout:  # as they are put together again
        framed = [", ".join(split_tags(text, 0)[1]) for text in framed]
    return list(dict.fromkeys(framed + ([""] if rules.dropout else [])))


def varies(text: str, rules: CaptionRules) -> bool:
    if rules.wildcards and WILDCARD.search(text):
        return True
    tags = split_tags(text, rules.keep_tokens)[1]
    return bool(tags and rules.tag_dropout) or (rules.shuffle and len(tags) > 1)


def has_wildcard(text: str) -> bool:
    """Whether a caption holds `{a|b}`."""
    return WILDCARD.search(text) is not None


def frame_caption(text: str, rules: CaptionRules) -> str:
    parts = [part for part in (rules.prefix, text, rules.suffix) if part]
    framed = " ".join(parts) if len(parts) > 1 else text
    return TRIGGER.sub(lambda _: rules.trigger, framed) if rules.trigger else framed


def split_tags(text: str, keep: int) -> tuple[list[str], list[str]]:
    """The parts between commas that stay in front, and the others."""
    tags = [tag for part in text.split(",") if (tag := part.strip())]
    return tags[:keep], tags[keep:]
