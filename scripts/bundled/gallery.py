"""What scenes are made of: trained concepts with their RGBA pictures, and random draws."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from bundled.base_data import Concept
from bundled.captions import describe
from bundled.modifiers import (
    KINDS,
    VALUES,
    Scene,
    find_conflict,
    holds_held_out_pair,
)
from bundled.scenes import recolour, render

__all__ = [
    "WEIGHTS",
    "Example",
    "Gallery",
    "choose_name",
    "draw_scene",
    "find_kinds",
    "find_unseen",
    "load_gallery",
]

WEIGHTS: Mapping[str, float] = {
    "colour": 1.0,
    "background": 0.7,
    "place": 1.1,
    "worn": 2.2,
    "number": 0.9,
    "size": 0.8,
    "relation": 1.6,
    "turned": 1.3,
    "style": 1.6,
}
"""How often each kind of modifier is drawn, relative to the others: the harder, the more."""
COLOUR_WORDS = frozenset(
    (*VALUES["colour"], *VALUES["background"], "white", "grey", "gold", "golden", "coloured")
)
NUMBER_WORDS = frozenset(
    "one two three four five six seven eight nine ten eleven twelve couple pair family "
    "men women people double multiple clock hundred 1 2 3 4 5 6 7 8 9 0".split()
)
TURNED_WORDS = frozenset(("upside", "down", "inverted", "up", "reversed"))
SIZE_WORDS = frozenset("small large big medium tiny giant".split())


@dataclass(frozen=True)
class Example:
    """One picture with its specification and a sentence about it."""

    concept: int
    scene: Scene
    seed: int
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Concepts, and the picture (RGBA, 64 px) of each."""

    concepts: tuple[Concept, ...]
    pictures: tuple[Image.Image, ...]
    open_to: tuple[frozenset[str], ...]
    """Kinds of modifiers that make sense on each concept."""
    unseen: tuple[frozenset[tuple[str, str]], ...]
    """(kind, value) that would hardly change each concept: yellow on what is yellow."""

    @cached_property
    def subjects(self) -> tuple[int, ...]:
        """Numbers of the concepts that may be a scene's subject."""
        return tuple(i for i, kinds in enumerate(self.open_to) if kinds)

    @cached_property
    def shelves(self) -> tuple[tuple[int, ...], ...]:
        """The subjects by category: there are more people than animals, food or things."""
        names = sorted({self.concepts[i].category for i in self.subjects})
        shelf = lambda name: tuple(i for i in self.subjects if self.concepts[i].category == name)
        return tuple(shelf(name) for name in names)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Key → number of each concept."""
        return {concept.key: i for i, concept in enumerate(self.concepts)}

    def find(self, key: str) -> int:
        return self.numbers[key]

    def choose_subject(self, rng: random.Random) -> int:
        """A subject, every category as often."""
        return rng.choice(rng.choice(self.shelves))

    def draw_example(
        self,
        rng: random.Random,
        *,
        kinds: int | None = None,
        weights: Mapping[str, float] = WEIGHTS,
        held_out_pair: bool = False,
    ) -> Example:
        """Draw a subject, a scene that makes sense on it, and a sentence about both."""
        while True:
            concept, second = self.choose_subject(rng), self.choose_subject(rng)
            scene = draw_scene(
                rng,
                kinds=kinds,
                allowed=self.open_to[concept],
                weights=weights,
                second=self.concepts[second].key if second != concept else None,
                held_out_pair=held_out_pair,
            )
            if scene is not None and not self.unseen[concept] & set(scene.modifiers):
                break
        name = choose_name(self.concepts[concept], rng)
        caption = describe(name, scene, rng, choose_name(self.concepts[second], rng))
        return Example(concept, scene, rng.randrange(1 << 16), caption)

    def paint(self, example: Example) -> Image.Image:
        """The true picture of an example."""
        scene = example.scene
        second = self.pictures[self.find(scene.second)] if scene.second else None
        return render(self.pictures[example.concept], scene, example.seed, second)


def draw_scene(
    rng: random.Random,
    *,
    kinds: int | None = None,
    allowed: frozenset[str] = frozenset(KINDS),
    weights: Mapping[str, float] = WEIGHTS,
    second: str | None = None,
    held_out_pair: bool = False,
) -> Scene | None:
    """Draw a scene of one to three modifiers; None where the draw does not go together.

    Args:
        kinds: how many modifiers; 1, 2 or 3 at 40, 40 and 20 % by default.
        second: key of a second thing; no relation is drawn without.
        held_out_pair: draw only scenes that hold a held-out pair, instead of only others.
    """
    count = kinds or rng.choices((1, 2, 3), (0.4, 0.4, 0.2))[0]
    left = {k: weights[k] for k in KINDS if k in allowed and (k != "relation" or second)}
    chosen: list[tuple[str, str | int]] = []
    while len(chosen) < count and left:
        kind = rng.choices(list(left), list(left.values()))[0]
        del left[kind]
        value = (kind, rng.choice(VALUES[kind]))
        if not find_conflict((*chosen, value)):
            chosen.append(value)
    chosen.sort(key=lambda modifier: KINDS.index(modifier[0]))
    if len(chosen) < count or holds_held_out_pair(tuple(chosen)) != held_out_pair:
        return None
    return Scene(**dict(chosen), second=second if dict(chosen).get("relation") else None)


def choose_name(concept: Concept, rng: random.Random) -> str:
    """The concept's name or a short name, of at most four words and no digits where it has one."""
    everything = (concept.name, *concept.short_names)
    names = [n for n in everything if len(n.split()) <= 4 and not re.search(r"\d", n)]
    names = names or [min(everything, key=len)]
    return concept.name if concept.name in names and rng.random() < 0.5 else rng.choice(names)


def load_gallery(
    packages: Mapping[str, Path], concepts: list[Concept], vendor: str = "google"
) -> Gallery:
    """Read the vendor's pictures of `concepts` with their outlines."""
    folder = packages[f"emoji-datasource-{vendor}"] / "img" / vendor / "64"
    pictures = tuple(read_picture(folder / f"{c.key}.png") for c in concepts)
    open_to = tuple(find_kinds(c, p) for c, p in zip(concepts, pictures, strict=True))
    unseen = tuple(find_unseen(p) for p in pictures)
    return Gallery(tuple(concepts), pictures, open_to, unseen)


def read_picture(path: Path) -> Image.Image:
    picture = Image.open(path).convert("RGBA")
    return picture.resize((64, 64), Image.Resampling.LANCZOS)


def find_kinds(concept: Concept, picture: Image.Image) -> frozenset[str]:
    """Which kinds of modifiers show on this concept and do not contradict its name."""
    if concept.category in ("symbols", "flags", "component"):
        return frozenset()
    words = set(re.findall(r"\w+", " ".join((concept.name, *concept.short_names))))
    kinds = set(KINDS)
    x = np.asarray(picture, np.float32) / 255
    x = x[..., :3] * x[..., 3:] + 1 - x[..., 3:]
    if words & COLOUR_WORDS:
        kinds.discard("colour")
    if words & NUMBER_WORDS:
        kinds.discard("number")
    if words & SIZE_WORDS:
        kinds.discard("size")
    if words & TURNED_WORDS or np.abs(x - x[::-1, ::-1]).mean() < 0.06:
        kinds.discard("turned")
    return frozenset(kinds)


def find_unseen(picture: Image.Image) -> frozenset[tuple[str, str]]:
    """Colours and styles that leave the picture nearly as it is, told from 16 × 16 px."""
    small = picture.resize((16, 16), Image.Resampling.BOX)
    x = np.asarray(small, np.float32) / 255
    solid = x[..., 3] > 0.5
    if not solid.any():
        return frozenset()
    x = x[solid][:, :3]
    found = set()
    for name in VALUES["colour"]:
        dyed = np.asarray(recolour(small, name), np.float32)[solid][:, :3] / 255
        if np.abs(dyed - x).mean() < 0.1:
            found.add(("colour", name))
    if (x.max(-1) - x.min(-1)).mean() < 0.12:
        found.add(("style", "black and white"))
    if x.mean() < 0.25:
        found.add(("style", "silhouette"))
    return frozenset(found)
