"""How the probe is trained: on true scenes, blurred and noisy as an autoencoder leaves them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from bundled.base_diet import paint_examples, to_bytes
from bundled.base_loops import Step, cast, scale_lr, set_rate
from bundled.gallery import Example, Gallery
from bundled.modifiers import KINDS, VALUES, Scene
from sdatoms.evaluation.probe import Probe, find_modifiers

__all__ = [
    "draw_examples",
    "label",
    "normalize",
    "read_references",
    "score_probe",
    "show_on_white",
    "sum_errors",
    "train_probe",
]

PLAIN, HELD_OUT_PAIRS = 0.08, 0.12
"""Shares of pictures without a modifier, and of such with a held-out pair."""
EVENLY = dict.fromkeys(KINDS, 1.0)
LESSONS = EVENLY | {"turned": 2.5}
"""What the probe is trained on; upside down is the last that it learns."""


def draw_examples(
    gallery: Gallery, count: int, rng: random.Random, weights: Mapping[str, float] = EVENLY
) -> list[Example]:
    """Scenes with every kind of modifier as often, unless `weights` say otherwise, all pairs among
    them, and plain subjects."""
    examples = []
    for _ in range(count):
        share = rng.random()
        if share < PLAIN:
            examples.append(Example(rng.choice(gallery.subjects), Scene(), 0, ""))
        else:
            hidden = share < PLAIN + HELD_OUT_PAIRS
            kinds = rng.choice((2, 3)) if hidden else None
            examples.append(
                gallery.draw_example(rng, kinds=kinds, weights=weights, held_out_pair=hidden)
            )
    return examples


def read_references(gallery: Gallery) -> Tensor:
    """Every concept's picture on white, uint8 `(n, 3, 64, 64)`."""
    return to_bytes([show_on_white(picture) for picture in gallery.pictures])


def show_on_white(picture: Image.Image) -> Image.Image:
    """The reference of a subject: its own picture (RGBA) on white."""
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    return canvas.convert("RGB")


def label(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Kind → class of each scene, 0 where it adds nothing of the kind."""
    labels = {kind: torch.zeros(len(scenes), dtype=torch.long) for kind in KINDS}
    for i, scene in enumerate(scenes):
        for kind, value in scene.modifiers:
            labels[kind][i] = VALUES[kind].index(value) + 1
    return labels


def sum_errors(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """Sum over the kinds of the mean cross-entropy."""
    return torch.stack([F.cross_entropy(logits[k].float(), labels[k]) for k in KINDS]).sum()


def train_probe(
    probe: Probe,
    optimizer: torch.optim.Optimizer,
    ema,
    gallery: Gallery,
    *,
    steps: int,
    start: int = 0,
    batch_size: int = 32,
    learning_rate: float = 1.5e-3,
    precision: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Iterator[Step]:
    """Fit the probe: the sum of the heads' cross-entropies on scenes that are painted anew."""
    references = read_references(gallery)
    probe.train()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rng = random.Random(seed * 1_000_003 + step)
        examples = draw_examples(gallery, batch_size, rng, LESSONS)
        x = spoil(normalize(paint_examples(gallery, examples)), generator)
        y = normalize(references[[e.concept for e in examples]])
        labels = label([e.scene for e in examples])
        with cast(precision):
            logits = probe(x, y)
        loss = sum_errors(logits, labels)
        lr = set_rate(optimizer, learning_rate * scale_lr(step, steps))
        loss.backward()
        nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(probe.parameters())
        yield Step(step + 1, float(loss.detach()), lr)


def normalize(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1


def spoil(x: Tensor, generator: torch.Generator) -> Tensor:
    """Soften a half of the pictures, move all by up to 2 px, add noise to a quarter."""
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount = (2 * torch.rand(len(x), 1, 1, 1, generator=generator) - 1).clamp(min=0)
    x = x + (soft - x) * amount
    dx, dy = torch.randint(0, 5, (2,), generator=generator).tolist()
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")[..., dy : dy + 64, dx : dx + 64]
    noisy = 0.15 * (torch.rand(len(x), 1, 1, 1, generator=generator) - 0.75).clamp(min=0) / 0.25
    return (x + noisy * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def score_probe(probe: Probe, gallery: Gallery, examples: Sequence[Example]) -> dict[str, float]:
    """Share of true scenes with a modifier of each kind whose value is found, and, as `none`, of
    those kinds that are not there and not found."""
    pictures = normalize(paint_examples(gallery, examples))
    references = normalize(read_references(gallery)[[e.concept for e in examples]])
    found = find_modifiers(probe, pictures, references)
    hits: dict[str, list[bool]] = {kind: [] for kind in (*KINDS, "none")}
    for i, example in enumerate(examples):
        wished = dict(example.scene.modifiers)
        for kind in KINDS:
            hits[kind if kind in wished else "none"].append(found[kind][i] == wished.get(kind))
    return {kind: sum(own) / max(1, len(own)) for kind, own in hits.items()}
