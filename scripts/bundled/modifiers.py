"""What a scene may add to its subject: nine kinds of modifier, their values, and which go together.

A scene holds at most one value of a kind. Some kinds exclude each other (a thing under water has
no flat background), some styles hide what others would show (line art has no colours). Of all
pairs of values that do go together one in ten, drawn by a fixed seed, is never trained on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from itertools import combinations, product

__all__ = [
    "HELD_OUT_PAIRS",
    "KINDS",
    "VALUES",
    "Scene",
    "find_conflict",
    "holds_held_out_pair",
    "list_pairs",
]

VALUES: dict[str, tuple] = {
    "colour": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"),
    "background": (
        *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "gray"),
    ),
    "place": (
        *("beach", "snow", "grass", "night", "desert", "under water"),
        *("space", "city", "rain", "forest", "sunset", "room"),
    ),
    "worn": (
        *("top hat", "party hat", "santa hat", "straw hat", "graduation cap"),
        *("cap", "bow", "sunglasses", "scarf", "headphones"),
    ),
    "number": (2, 3, 4),
    "size": ("tiny", "big"),
    "relation": ("next to", "above", "below"),
    "turned": ("upside down",),
    "style": (
        *("line art", "black and white", "pixel art"),
        *("sepia", "neon", "silhouette", "blueprint"),
    ),
}
"""Kind of modifier → its values."""

KINDS = tuple(VALUES)

APART = {
    frozenset(pair)
    for pair in (
        ("background", "place"),
        ("worn", "number"),
        ("worn", "size"),
        ("worn", "relation"),
        ("worn", "turned"),
        ("number", "size"),
        ("number", "relation"),
        ("size", "relation"),
    )
}
"""Kinds that share the same room in the picture."""

HIDDEN_BY_STYLE: dict[str, tuple[str, ...]] = {
    "line art": ("colour", "background", "place"),
    "blueprint": ("colour", "background", "place"),
    "neon": ("colour", "background", "place"),
    "black and white": ("colour", "background"),
    "sepia": ("colour", "background"),
    "silhouette": ("colour", "worn"),
    "pixel art": ("worn", "size", "relation"),
}
"""Style → kinds that cannot be seen under it."""

UNSEEN = {
    frozenset(pair)
    for pair in (
        *((("size", "big"), ("place", place)) for place in VALUES["place"]),
        *((("size", "big"), ("background", colour)) for colour in VALUES["background"]),
        *((("colour", colour), ("background", colour)) for colour in VALUES["colour"]),
        (("background", "black"), ("style", "silhouette")),
        (("place", "night"), ("style", "silhouette")),
        (("place", "space"), ("style", "silhouette")),
    )
}
"""Pairs of values of which one hides the other."""


@dataclass(frozen=True)
class Scene:
    """One specification: what is added to the subject, None where nothing is."""

    colour: str | None = None
    background: str | None = None
    place: str | None = None
    worn: str | None = None
    number: int | None = None
    """How many of the subject; None is one."""
    size: str | None = None
    relation: str | None = None
    """Where the subject is, seen from the second thing."""
    turned: str | None = None
    style: str | None = None
    second: str | None = None
    """Key of the second thing's picture, present with `relation`."""

    def __post_init__(self) -> None:
        for kind, value in self.modifiers:
            if value not in VALUES[kind]:
                raise ValueError(f"{kind} {value!r}: one of {', '.join(map(str, VALUES[kind]))}")
        if (self.relation is None) != (self.second is None):
            raise ValueError("a relation needs a second thing, and a second thing a relation")
        if conflict := find_conflict(self.modifiers):
            raise ValueError(f"{conflict[0][1]} and {conflict[1][1]} do not go together")

    @property
    def modifiers(self) -> tuple[tuple[str, str | int], ...]:
        """(kind, value) of everything that is added, in the order of `KINDS`."""
        named = ((f.name, getattr(self, f.name)) for f in fields(self) if f.name != "second")
        return tuple((kind, value) for kind, value in named if value is not None)


def find_conflict(modifiers: tuple[tuple[str, str | int], ...]) -> tuple | None:
    """The first two of these (kind, value) that cannot be seen together."""
    for a, b in combinations(modifiers, 2):
        if a[0] == b[0] or frozenset((a[0], b[0])) in APART or frozenset((a, b)) in UNSEEN:
            return a, b
        for style, other in ((a, b), (b, a)):
            if style[0] == "style" and other[0] in HIDDEN_BY_STYLE[style[1]]:
                return a, b
    return None


def list_pairs() -> list[tuple[tuple[str, str | int], tuple[str, str | int]]]:
    """Every pair of values of two kinds that goes together."""
    return [
        ((a, x), (b, y))
        for a, b in combinations(KINDS, 2)
        for x, y in product(VALUES[a], VALUES[b])
        if not find_conflict(((a, x), (b, y)))
    ]


def draw_held_out_pairs(share: float = 0.1, seed: int = 19) -> frozenset:
    pairs = list_pairs()
    return frozenset(random.Random(seed).sample(pairs, round(share * len(pairs))))


HELD_OUT_PAIRS = draw_held_out_pairs()
"""Pairs of (kind, value) that no training scene holds."""


def holds_held_out_pair(modifiers: tuple[tuple[str, str | int], ...]) -> bool:
    """Whether any two of these (kind, value), in the order of `KINDS`, are a held-out pair."""
    return any(pair in HELD_OUT_PAIRS for pair in combinations(modifiers, 2))
