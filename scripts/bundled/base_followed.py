"""Does the base follow its prompt: seeded sentences by kind of modifier, judged by the probe.

A picture is right if the probe finds every modifier that the sentence names. The probe was trained
on true scenes alone; how often it is right on true scenes of the same kind is the ceiling.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bundled.base_diet import paint_examples
from bundled.captions import describe
from bundled.gallery import Example, Gallery
from bundled.modifiers import KINDS, VALUES, Scene
from bundled.probe_training import normalize, read_references
from sdatoms.evaluation.probe import Probe, find_modifiers

__all__ = ["Prompt", "draw_prompts", "score_followed", "stack"]

PAIRS = "two at once"
HELD_OUT = "held-out pairs"


@dataclass(frozen=True)
class Prompt:
    """A sentence, what it asks for, and the group that it is counted in."""

    group: str
    """A kind of modifier, two at once, or held-out pairs."""
    example: Example

    @property
    def text(self) -> str:
        return self.example.caption


def draw_prompts(gallery: Gallery, per_kind: int, seed: int = 0) -> list[Prompt]:
    """`per_kind` sentences of one modifier for each kind, its values in turn; twice as many of two
    at once, and of two that are a held-out pair. In the plainest wording."""
    rng = random.Random(seed)
    prompts = []
    for kind in KINDS:
        for i in range(per_kind):
            value = VALUES[kind][i % len(VALUES[kind])]
            prompts.append(Prompt(kind, draw_one(gallery, kind, value, rng)))
    for group in (PAIRS, HELD_OUT):
        for _ in range(2 * per_kind):
            drawn = gallery.draw_example(rng, kinds=2, held_out_pair=group == HELD_OUT)
            prompts.append(Prompt(group, name_plainly(gallery, drawn)))
    return prompts


def draw_one(gallery: Gallery, kind: str, value: str | int, rng: random.Random) -> Example:
    """A subject on which this one modifier shows."""
    while True:
        concept, second = gallery.choose_subject(rng), gallery.choose_subject(rng)
        if concept == second:
            continue
        if kind in gallery.open_to[concept] and (kind, value) not in gallery.unseen[concept]:
            break
    key = gallery.concepts[second].key if kind == "relation" else None
    scene = Scene(**{kind: value}, second=key)
    return name_plainly(gallery, Example(concept, scene, rng.randrange(1 << 16), ""))


def name_plainly(gallery: Gallery, example: Example) -> Example:
    scene, concepts = example.scene, gallery.concepts
    second = concepts[gallery.find(scene.second)].name if scene.second else ""
    text = describe(concepts[example.concept].name, scene, second=second)
    return Example(example.concept, scene, example.seed, text)


def score_followed(
    probe: Probe, gallery: Gallery, prompts: Sequence[Prompt], painted: Sequence[Image.Image]
) -> dict[str, dict[str, float]]:
    """Group → share of right pictures, beside that of the true scenes of the same prompts."""
    examples = [prompt.example for prompt in prompts]
    references = normalize(read_references(gallery)[[e.concept for e in examples]])
    scores: dict[str, dict[str, float]] = {}
    for row, pictures in (
        ("painted", stack(painted)),
        ("true", normalize(paint_examples(gallery, examples))),
    ):
        found = find_modifiers(probe, pictures, references)
        right = [
            all(found[kind][i] == value for kind, value in example.scene.modifiers)
            for i, example in enumerate(examples)
        ]
        for group in dict.fromkeys(prompt.group for prompt in prompts):
            own = [r for r, prompt in zip(right, prompts, strict=True) if prompt.group == group]
            scores.setdefault(group, {})[row] = sum(own) / len(own)
    return scores


def stack(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures as `(n, 3, 64, 64)` on [-1, 1]."""
    arrays = [np.asarray(picture.convert("RGB").resize((64, 64))) for picture in pictures]
    return normalize(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2))
