"""Sentences for scenes: every modifier is named, in one of several wordings."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bundled.base_data import TRIGGERS
from bundled.modifiers import Scene

__all__ = ["WORDINGS", "describe", "pluralize"]

WORDINGS: dict[str, dict[str | int, tuple[str, ...]]] = {
    "place": {
        "beach": ("on the beach", "at the beach", "on a sandy beach"),
        "snow": ("in the snow", "in the snow", "in a snowy landscape"),
        "grass": ("on grass", "on the grass", "in a meadow"),
        "night": ("at night", "at night", "under the moon at night"),
        "desert": ("in the desert", "in a desert", "in a sandy desert"),
        "under water": ("under water", "underwater", "under the sea"),
        "space": ("in space", "in outer space", "among the stars in space"),
        "city": ("in the city", "in a city", "on a city street"),
        "rain": ("in the rain", "in the rain", "on a rainy day"),
        "forest": ("in the forest", "in a forest", "in the woods"),
        "sunset": ("at sunset", "at sunset", "in front of a sunset"),
        "room": ("in a room", "in a living room", "inside a room"),
    },
    "style": {
        "line art": ("as line art", "line art", "line art of {}"),
        "black and white": ("in black and white", "black and white", "black and white photo of {}"),
        "pixel art": ("as pixel art", "pixel art", "pixel art of {}"),
        "sepia": ("in sepia", "sepia", "sepia photo of {}"),
        "neon": ("as a neon sign", "neon", "neon sign of {}"),
        "silhouette": ("as a silhouette", "silhouette", "silhouette of {}"),
        "blueprint": ("as a blueprint", "blueprint", "blueprint of {}"),
    },
    "size": {"tiny": ("tiny", "tiny", "small"), "big": ("big", "huge", "giant")},
    "turned": {"upside down": ("upside down",)},
    "number": {2: ("two",), 3: ("three",), 4: ("four",)},
    "relation": {"next to": ("next to", "beside"), "above": ("above",), "below": ("below",)},
}
"""Kind → value → its wordings, the plainest first; `{}` stands for the rest of the sentence."""
WEARING = ("wearing {}", "wearing {}", "with {} on")
BACKING = ("on a {} background", "on a {} background", "with a {} background")
OPENINGS = ("", "", "", "", "a picture of ", "an emoji of ")
UNCOUNTED = ("sunglasses", "headphones")
IRREGULAR = {
    "man": "men",
    "woman": "women",
    "person": "people",
    "child": "children",
    "foot": "feet",
    "tooth": "teeth",
    "mouse": "mice",
    "leaf": "leaves",
    "wolf": "wolves",
    "knife": "knives",
    "octopus": "octopuses",
}


def describe(
    name: str,
    scene: Scene,
    rng: random.Random | None = None,
    second: str = "",
    trigger: str = "",
) -> str:
    """Write the sentence of `scene` about the thing called `name`.

    Args:
        rng: draws the wording; the plainest one without.
        second: name of the scene's second thing.
        trigger: a word to stand before `name`; with `rng` and none given, three in ten captions
            get one that means nothing.
    """
    pick = (lambda options: rng.choice(options)) if rng else (lambda options: options[0])
    draw = lambda share: bool(rng) and rng.random() < share
    style_word = ""
    if not trigger and draw(0.3):
        trigger = rng.choice(TRIGGERS)
        if draw(0.25):
            trigger, style_word = "", f" in {trigger} style"
    trailing = bool(scene.turned) and draw(0.4)
    words = [
        pick(WORDINGS["size"][scene.size]) if scene.size else "",
        "upside down" if scene.turned and not trailing else "",
        scene.colour or "",
        trigger,
        pluralize(name) if scene.number else name,
    ]
    noun = " ".join(w for w in words if w)
    if scene.number:
        noun = f"{WORDINGS['number'][scene.number][0]} {noun}"
    elif not draw(0.15):
        noun = with_article(noun)
    sentence = noun + style_word + "".join(f" {p}" for p in write_tail(scene, second, pick))
    if trailing:
        sentence += ", upside down"
    if scene.style is None:
        return pick(OPENINGS) + sentence
    wording = pick(WORDINGS["style"][scene.style])
    return wording.format(sentence) if "{}" in wording else f"{sentence}, {wording}"


def write_tail(scene: Scene, second: str, pick) -> Sequence[str]:
    """What follows the noun: worn, relation, place or background."""
    tail = []
    if scene.worn:
        thing = scene.worn if scene.worn in UNCOUNTED else with_article(scene.worn)
        tail.append(pick(WEARING).format(thing))
    if scene.relation:
        tail.append(f"{pick(WORDINGS['relation'][scene.relation])} {with_article(second)}")
    if scene.place:
        tail.append(pick(WORDINGS["place"][scene.place]))
    if scene.background:
        tail.append(pick(BACKING).format(scene.background).replace("a orange", "an orange"))
    return tail


def with_article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def pluralize(name: str) -> str:
    """Plural of a thing's name: of the word before `with`, `of`, `in`, … or of the last one."""
    words = name.split()
    stops = ("with", "without", "of", "in", "on", "at", "and", "behind", "for", "holding", "over")
    last = next((i for i, w in enumerate(words) if w in stops and i), len(words)) - 1
    words[last] = make_plural(words[last])
    return " ".join(words)


def make_plural(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word if word.endswith("s") and not word.endswith(("ss", "us")) else word + "es"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + "s"
