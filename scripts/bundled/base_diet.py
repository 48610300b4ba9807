"""What the bundled base is fed: plain emoji and scenes, as pictures and as cached latents.

A third of every batch is plain emoji. Scenes are drawn, painted and encoded ahead, in shards
`latents/scenes-NNN.pt`, each from a seed of its own; their sentences are written anew every time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from bundled.base_data import write_caption
from bundled.base_loops import cast
from bundled.base_models import MAX_TOKENS
from bundled.base_training import write_whole
from bundled.captions import describe
from bundled.gallery import WEIGHTS, Example, Gallery, choose_name
from bundled.modifiers import Scene

__all__ = [
    "Diet",
    "encode",
    "paint_examples",
    "read_diet",
    "to_bytes",
    "tokenize",
    "write_shard",
    "write_turned",
]

PLAIN_SHARE = 1 / 3
TURNED = "every-turned.pt"
FIRST_HARD = 6
"""Number of the first shard that `HARD` draws; those before it follow the gallery's weights."""
HARD: Mapping[str, float] = {
    "colour": 0.7,
    "background": 0.5,
    "place": 0.7,
    "worn": 1.6,
    "number": 0.6,
    "size": 0.7,
    "relation": 3.0,
    "turned": 5.0,
    "style": 1.6,
}
"""Weights of the kinds that a base of 10,000 steps follows least: upside down, relations."""
TURNED_SHARE = 0.2
"""Share of every thing upside down, and nothing else, among the scenes: turned, each has to be
learnt as a picture of its own."""


@dataclass(frozen=True)
class Diet:
    """Latents `(n, 24, 8, 8)` float16 of plain emoji, one a concept, and of scenes."""

    gallery: Gallery
    tokenizer: CLIPTokenizer
    plain: Tensor
    scenes: Tensor
    examples: Sequence[Example]
    batch_size: int = 32
    drop_caption: float = 0.1
    """Share of captions left empty, for classifier-free guidance."""

    def draw_batch(self, generator: torch.Generator, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Latents in float32 and the ids of their captions."""
        few = round(PLAIN_SHARE * self.batch_size) if len(self.examples) else self.batch_size
        plain = torch.randint(len(self.plain), (few,), generator=generator)
        rest = self.batch_size - few
        scenes = torch.randint(max(1, len(self.scenes)), (rest,), generator=generator)
        captions = [write_caption(self.gallery.concepts[i], rng) for i in plain.tolist()]
        captions += [self.describe_again(self.examples[i], rng) for i in scenes.tolist()]
        captions = ["" if rng.random() < self.drop_caption else c for c in captions]
        latents = torch.cat([self.plain[plain], self.scenes[scenes]]).float()
        return latents, tokenize(self.tokenizer, captions)

    def describe_again(self, example: Example, rng: random.Random) -> str:
        concepts, scene = self.gallery.concepts, example.scene
        second = concepts[self.gallery.find(scene.second)] if scene.second else None
        name = choose_name(concepts[example.concept], rng)
        return describe(name, scene, rng, choose_name(second, rng) if second else "")


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    return tokenizer(
        captions,
        padding="max_length",
        max_length=MAX_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def paint_examples(gallery: Gallery, examples: Sequence[Example]) -> Tensor:
    """True pictures as uint8 `(n, 3, 64, 64)`."""
    return to_bytes([gallery.paint(example) for example in examples])


def to_bytes(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size as uint8 `(n, 3, height, width)`."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)


@torch.no_grad()
def encode(
    model: AutoencoderKL, pictures: Tensor, precision: torch.dtype = torch.float32
) -> Tensor:
    """Latent means `(n, 24, 8, 8)` of uint8 pictures, in float32."""
    model.eval().to(memory_format=torch.channels_last)
    parts = []
    for part in pictures.split(64):
        x = (part.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with cast(precision):
            parts.append(model.encode(x).latent_dist.mean.float())
    return torch.cat(parts)


def write_shard(
    folder: Path,
    model: AutoencoderKL,
    gallery: Gallery,
    number: int,
    count: int,
    precision: torch.dtype = torch.float32,
) -> None:
    """Draw, paint and encode `count` scenes from the seed `number`, once; from `FIRST_HARD` on more
    of the kinds that are hard to follow."""
    path = folder / f"scenes-{number:03d}.pt"
    if path.exists():
        return
    rng = random.Random(f"shard {number}")
    weights = HARD if number >= FIRST_HARD else WEIGHTS
    examples = [gallery.draw_example(rng, weights=weights) for _ in range(count)]
    write_scenes(path, model, gallery, examples, precision)


def write_turned(
    folder: Path, model: AutoencoderKL, gallery: Gallery, precision: torch.dtype = torch.float32
) -> None:
    """Paint and encode every thing upside down that can be told from upright, once."""
    path = folder / TURNED
    if path.exists():
        return
    scene = Scene(turned="upside down")
    able = [i for i in gallery.subjects if "turned" in gallery.open_to[i]]
    write_scenes(path, model, gallery, [Example(i, scene, 0, "") for i in able], precision)


def write_scenes(
    path: Path,
    model: AutoencoderKL,
    gallery: Gallery,
    examples: Sequence[Example],
    precision: torch.dtype,
) -> None:
    """Paint and encode `examples` into a file that `read_diet` reads."""
    latents = [
        encode(model, paint_examples(gallery, examples[i : i + 512]), precision).half()
        for i in range(0, len(examples), 512)
    ]
    rows = [
        {"key": gallery.concepts[e.concept].key, "scene": asdict(e.scene), "seed": e.seed}
        for e in examples
    ]
    write_whole(path, {"latents": torch.cat(latents), "examples": rows})


def read_diet(folder: Path, gallery: Gallery, tokenizer: CLIPTokenizer, **settings) -> Diet:
    """Read `plain.pt` and every shard of `folder`, in the order of their names, and what is upside
    down as often as makes its share."""
    plain = torch.load(folder / "plain.pt", weights_only=True)
    shards = [read_scenes(path, gallery) for path in sorted(folder.glob("scenes-*.pt"))]
    if (folder / TURNED).exists() and shards:
        latents, examples = read_scenes(folder / TURNED, gallery)
        others = sum(len(own) for _, own in shards)
        wanted = TURNED_SHARE / (1 - TURNED_SHARE) * others
        shards += [(latents, examples)] * max(1, round(wanted / max(1, len(examples))))
    latents = torch.cat([plain[:0], *(own for own, _ in shards)])
    examples = [example for _, own in shards for example in own]
    return Diet(gallery, tokenizer, plain, latents, examples, **settings)


def read_scenes(path: Path, gallery: Gallery) -> tuple[Tensor, list[Example]]:
    """Latents of a file of scenes, and what they show."""
    shard = torch.load(path, weights_only=True)
    return shard["latents"], [
        Example(gallery.find(row["key"]), Scene(**row["scene"]), row["seed"], "")
        for row in shard["examples"]
    ]
