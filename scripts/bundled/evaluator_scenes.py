"""Scenes for the bundled evaluator: what makes it tell a followed prompt from an ignored one.

The hard negatives are captions, and pictures, that differ from a scene in one modifier: another
value of the same kind, one fewer, or one more. A batch holds groups of such scenes of one thing;
the figure is how often the right caption is found among twenty.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bundled.base_diet import paint_examples, to_bytes, tokenize
from bundled.captions import describe
from bundled.gallery import Example, Gallery, choose_name, draw_scene
from bundled.modifiers import KINDS, VALUES, Scene, find_conflict, holds_held_out_pair
from bundled.probe_training import label, show_on_white
from sdatoms.evaluation.evaluator import Evaluator
from sdatoms.evaluation.examiner import stack
from sdatoms.evaluation.introduction import introduce, turn_over
from sdatoms.evaluation.metrics import measure_alignment
from sdatoms.evaluation.standing import fit_plain

__all__ = ["SceneDiet", "Scenes", "draw_lookalikes", "score_captions", "vary_scene"]

CANDIDATES = 20


@dataclass(frozen=True)
class Variant:
    """A scene that differs from another in one modifier, and the kind of that modifier."""

    kind: str
    scene: Scene


def vary_scene(
    gallery: Gallery,
    concept: int,
    scene: Scene,
    count: int,
    rng: random.Random,
    second: str | None = None,
    evenly: bool = False,
) -> list[Variant]:
    """Up to `count` different scenes of the same thing that differ in one modifier and can be told
    from `scene`; up to a half change or drop one, the others add one.

    Scenes with a held-out pair are left out unless `scene` itself has one.

    Args:
        second: key of a second thing, where `scene` has none; drawn when not given.
        evenly: take every kind of modifier as often, where by chance those of many values come.
    """
    own = dict(scene.modifiers)
    second = scene.second or second or gallery.concepts[gallery.choose_subject(rng)].key
    if second == gallery.concepts[concept].key:
        second = None
    hidden = holds_held_out_pair(scene.modifiers)
    changed, added = [], []
    for kind in KINDS:
        if kind not in own and kind not in gallery.open_to[concept]:
            continue
        for value in (None, *VALUES[kind]):
            if value == own.get(kind) or (kind, value) in gallery.unseen[concept]:
                continue
            if kind == "relation" and value and second is None:
                continue
            found = {k: v for k, v in (own | {kind: value}).items() if v is not None}
            modifiers = tuple((k, found[k]) for k in KINDS if k in found)
            if find_conflict(modifiers) or (holds_held_out_pair(modifiers) and not hidden):
                continue
            other = Scene(**found, second=second if "relation" in found else None)
            (changed if kind in own else added).append(Variant(kind, other))
    for variants in (changed, added):
        rng.shuffle(variants)
        if evenly:
            variants[:] = take_turns(variants)
    picked = changed[: -(-count // 2)]
    return picked + added[: count - len(picked)]


def take_turns(variants: Sequence[Variant]) -> list[Variant]:
    """The first of every kind, then the second of every kind, …"""
    seen: Counter[str] = Counter()
    turns = []
    for variant in variants:
        turns.append((seen[variant.kind], variant))
        seen[variant.kind] += 1
    return [variant for _, variant in sorted(turns, key=lambda turn: turn[0])]


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes, and the plain things that they are about."""

    pictures: Tensor
    """`(n, 3, 64, 64)` uint8."""
    words: Tensor
    """The ids of their captions, `(n, 32)`."""
    labels: Mapping[str, Tensor]
    """Kind of modifier → class of each, `(n,)`, as the probe knows them."""
    things: Tensor
    """Which plain thing each shows, `(n,)`."""
    plain: Tensor
    """The things on white, upright and upside down, `(m, 2, 3, 64, 64)` uint8."""
    names: Tensor
    """The ids of their captions, `(m, 2, 32)`."""


@dataclass(frozen=True)
class SceneDiet:
    """Groups of scenes that differ from their first one in one modifier, and pairs of one thing
    upright and upside down, which has to be learnt of every thing by itself; with captions."""

    gallery: Gallery
    tokenizer: object
    groups: int = 5
    size: int = 8
    pairs: int = 12

    def draw(self, rng: random.Random) -> Scenes:
        parts = [self.draw_group(rng) for _ in range(self.groups)]
        parts += [self.draw_pair(rng) for _ in range(self.pairs)]
        examples = [example for part in parts for example in part]
        plain = [show_on_white(self.gallery.pictures[part[0].concept]) for part in parts]
        views = [view for picture in plain for view in (picture, turn_over(picture))]
        names = [choose_name(self.gallery.concepts[part[0].concept], rng) for part in parts]
        said = [
            describe(name, scene, rng)
            for name in names
            for scene in (Scene(), Scene(turned="upside down"))
        ]
        return Scenes(
            paint_examples(self.gallery, examples),
            tokenize(self.tokenizer, [example.caption for example in examples]),
            label([example.scene for example in examples]),
            torch.tensor([n for n, part in enumerate(parts) for _ in part]),
            to_bytes(views).unflatten(0, (-1, 2)),
            tokenize(self.tokenizer, said).unflatten(0, (-1, 2)),
        )

    def draw_pair(self, rng: random.Random) -> list[Example]:
        """One thing upright and upside down, plain or in a scene of one other modifier."""
        gallery = self.gallery
        while True:
            first = gallery.draw_example(rng, kinds=1)
            if "turned" not in gallery.open_to[first.concept]:
                continue
            scene = Scene() if rng.random() < 0.5 else replace(first.scene, turned=None)
            both = (*scene.modifiers, ("turned", "upside down"))
            both = tuple(sorted(both, key=lambda modifier: KINDS.index(modifier[0])))
            if not find_conflict(both) and not holds_held_out_pair(both):
                break
        turned = replace(scene, turned="upside down")
        name = choose_name(gallery.concepts[first.concept], rng)
        return [
            Example(
                first.concept,
                shown,
                rng.randrange(1 << 16),
                describe(name, shown, rng, name_second(gallery, shown, rng)),
            )
            for shown in (scene, turned)
        ]

    def draw_group(self, rng: random.Random) -> list[Example]:
        gallery, first = self.gallery, self.gallery.draw_example(rng)
        variants = vary_scene(gallery, first.concept, first.scene, self.size - 1, rng, evenly=True)
        name = choose_name(gallery.concepts[first.concept], rng)
        return [
            Example(first.concept, scene, rng.randrange(1 << 16), caption)
            for scene in (first.scene, *(variant.scene for variant in variants))
            for caption in [describe(name, scene, rng, name_second(gallery, scene, rng))]
        ]


def name_second(gallery: Gallery, scene: Scene, rng: random.Random | None = None) -> str:
    if scene.second is None:
        return ""
    concept = gallery.concepts[gallery.find(scene.second)]
    return choose_name(concept, rng) if rng else concept.name


def draw_lookalikes(gallery: Gallery, count: int = 8) -> Callable[[random.Random], Tensor]:
    """Draws `3 · count` pictures `(n, 3, 64, 64)` uint8: a scene, another thing in the same scene,
    and the same thing in a scene that differs in one modifier."""

    def draw(rng: random.Random) -> Tensor:
        examples: list[Example] = []
        while len(examples) < 3 * count:
            first, other = gallery.draw_example(rng), gallery.choose_subject(rng)
            variants = vary_scene(gallery, first.concept, first.scene, 2, rng)
            if other == first.concept or not variants:
                continue
            seed = first.seed
            examples += [first, Example(other, first.scene, seed, "")]
            examples.append(Example(first.concept, rng.choice(variants).scene, seed, ""))
        return paint_examples(gallery, examples)

    return draw


def score_captions(
    evaluator: Evaluator,
    gallery: Gallery,
    count: int = 500,
    seed: int = 0,
    strange: bool = True,
    introduced: bool = True,
) -> dict[str, float | dict[str, float]]:
    """How often the right caption is nearest to a true scene, among twenty that differ from it in
    one modifier; and by kind, how often it is nearer than one that differs in that kind.

    In the plainest wording. The second thing of a scene is one that is not held out: of two unknown
    things nobody could say which is above.

    Args:
        introduced: show the evaluator each plain thing first, as the subject of a truth file is.
        strange: scenes of the held-out things of `gallery`; else of those trained on, in scenes
            that were not. Whether a thing never seen is upside down, or blue by nature, its picture
            does not say.
    """
    rng = random.Random(f"captions {seed}")
    things = [i for i in gallery.subjects if gallery.concepts[i].held_out == strange]
    things = things or list(gallery.subjects)
    known = [i for i in gallery.subjects if not gallery.concepts[i].held_out]
    examples, texts, kinds = [], [], []
    while len(examples) < count:
        concept, second = rng.choice(things), gallery.concepts[rng.choice(known)].key
        if second == gallery.concepts[concept].key:
            continue
        scene = draw_scene(rng, allowed=gallery.open_to[concept], second=second)
        if scene is None or gallery.unseen[concept] & set(scene.modifiers):
            continue
        variants = vary_scene(gallery, concept, scene, CANDIDATES - 1, rng, second)
        if len(variants) < CANDIDATES - 1:
            continue
        example = Example(concept, scene, rng.randrange(1 << 16), "")
        name = gallery.concepts[example.concept].name
        examples.append(example)
        kinds.append([variant.kind for variant in variants])
        for scene in (example.scene, *(variant.scene for variant in variants)):
            texts.append(describe(name, scene, second=name_second(gallery, scene)))
    painted = [gallery.paint(example) for example in examples]
    pictures = evaluator.embed_concepts(painted)
    rows = evaluator.embed_texts(texts)
    own = torch.arange(count).repeat_interleave(CANDIDATES)
    if introduced:
        plain = [show_on_white(gallery.pictures[example.concept]) for example in examples]
        names = [describe(gallery.concepts[e.concept].name, Scene()) for e in examples]
        known = introduce(evaluator, plain, names).take(own)
        fits = fit_plain(stack(painted), stack(plain))
        cosines = known.align(pictures[own], rows, fits[own])
    else:
        cosines = measure_alignment(pictures[own], rows)
    cosines = cosines.unflatten(0, (count, CANDIDATES))
    beaten = cosines[:, :1] > cosines[:, 1:]
    return {
        "caption_of_20": float(beaten.all(1).float().mean()),
        "caption_by_kind": {kind: share_beaten(beaten, kinds, kind) for kind in KINDS},
    }


def share_beaten(beaten: Tensor, kinds: Sequence[Sequence[str]], kind: str) -> float:
    own = torch.tensor([[k == kind for k in row] for row in kinds])
    return float(beaten[own].float().mean())
