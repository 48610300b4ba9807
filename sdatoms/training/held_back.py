"""Pictures that a run does not learn from, so that its loss on them tells when to stop."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from sdatoms.errors import AtomError
from sdatoms.training.caption_rules import PLAIN_RULES, draw_caption
from sdatoms.training.config import TrainConfig
from sdatoms.training.folder import Source

__all__ = [
    "FEWEST",
    "choose_held",
    "count_held",
    "refuse_shared",
    "suggest_held",
    "take_as_held",
]

FEWEST = 8
"""Pictures a run must have for one to be held back unasked: a subject's first seven are worth more
as lessons than as a test."""
MOST = 8
"""Pictures held back unasked of any number."""


def suggest_held(count: int) -> int:
    """How many of `count` pictures are held back where nobody said: one in eight, none of few."""
    return min(count // FEWEST, MOST)


def count_held(config: TrainConfig, count: int) -> int:
    """How many of `count` pictures the settings hold back.

    Raises:
        AtomError: none would be left to train on.
    """
    held = config.num_validation_pictures or 0
    flag = f"--num_validation_pictures {held}"
    if config.validation_split:
        held = max(1, round(config.validation_split * count))
        flag = f"--validation_split {config.validation_split:g}"
    if held and held >= count:
        raise AtomError(
            f"{flag} would hold back {held} of {count} "
            f"{'picture' if count == 1 else 'pictures'} and leave none to train on; "
            + (f"hold back at most {count - 1}" if count > 1 else "give more pictures")
        )
    return held


def choose_held(
    sources: Sequence[Source], count: int, seed: int
) -> tuple[list[Source], list[Source]]:
    """Pictures to train on and pictures held back, both in the order given.

    The seed and the pictures' bytes choose: more pictures beside them, or another order, leave
    most choices as they were. Equal files go together, and every concept keeps one.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for place, source in enumerate(sources):
        groups.setdefault((source.concept, source.digest or source.name), []).append(place)
    ranked = sorted(groups, key=lambda key: sha256(f"{seed}:{key[1]}".encode()).digest())
    waiting: dict[str, list[tuple[str, str]]] = {}
    for key in ranked:
        waiting.setdefault(key[0], []).append(key)
    held: set[int] = set()
    while len(held) < count:
        concept = max(waiting, key=lambda name: len(waiting[name]))
        if len(waiting[concept]) < 2:
            break
        held |= set(groups[waiting[concept].pop(0)])
    kept = [s for place, s in enumerate(sources) if place not in held]
    return kept, [s for place, s in enumerate(sources) if place in held]


def take_as_held(source: Source) -> Source:
    """A picture as it is measured: once, not mirrored, under one caption that never varies."""
    rules = replace(source.rules, shuffle=False, tag_dropout=0.0, dropout=0.0)
    first = (source.captions or (source.prompt,))[:1]
    return replace(
        source,
        prompt=draw_caption(first, rules, random.Random(source.digest)),
        captions=(),
        rules=PLAIN_RULES,
        repeats=1,
        class_prompt=None,
        share=None,
        flip=False,
    )


def refuse_shared(trained: Sequence[Source], held: Sequence[Source]) -> None:
    """Refuse pictures of `--validation_data_dir` that are trained on too.

    Raises:
        AtomError: names them.
    """
    known = {source.digest for source in trained if source.digest}
    if both := [source.name for source in held if source.digest in known]:
        raise AtomError(
            f"of --validation_data_dir {', '.join(both[:5])}{'…' * (len(both) > 5)} "
            f"{'is' if len(both) == 1 else 'are'} trained on as well, so that the loss there says "
            "nothing; it takes other pictures"
        )
