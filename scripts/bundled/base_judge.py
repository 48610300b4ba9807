"""Judge the pictures of the bundled base: whose concept they show, beside a sheet for a person.

The picture's own concept has to be among the 10 nearest of all real Noto emoji, by the evaluator's
concept embedding and by plain distance of 32×32 px pictures. The autoencoder is judged by
20·log10(2 / RMSE) on [-1, 1], in dB, on concepts that nothing was trained on.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bundled.base_data import Concept
from bundled.base_export import to_pictures
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.pictures import to_tensor

__all__ = ["NEAREST", "draw_sheet", "pick_concepts", "rank_concepts", "rank_own", "shrink"]

NEAREST = 10


def pick_concepts(concepts: list[Concept], count: int, seed: int) -> list[int]:
    """`count` different trained concepts, by number, in a seeded order."""
    shown = [i for i, concept in enumerate(concepts) if not concept.held_out]
    return random.Random(seed).sample(shown, min(count, len(shown)))


def rank_concepts(
    painted: list[Image.Image], numbers: list[int], real: Tensor, evaluator_dir: Path
) -> dict[str, Tensor]:
    """Measure → how many of `real (n, 3, 64, 64)` uint8 are nearer than the picture's own concept,
    a count a picture. Without the evaluator's folder only the plain distance is taken."""
    distances = {"pixels": -torch.cdist(shrink(stack(painted)), shrink(real.float() / 127.5 - 1))}
    if evaluator_dir.is_dir():
        evaluator = load_evaluator(str(evaluator_dir))
        gallery = evaluator.embed_concepts(to_pictures(real.float() / 127.5 - 1))
        distances["evaluator"] = evaluator.embed_concepts(painted) @ gallery.T
    return {name: rank_own(nearness, numbers) for name, nearness in distances.items()}


def stack(pictures: list[Image.Image]) -> Tensor:
    return torch.stack([to_tensor(picture.convert("RGB")) for picture in pictures])


def shrink(pictures: Tensor) -> Tensor:
    """Pictures `(n, 3, h, w)` as rows of their 32×32 px averages."""
    return F.interpolate(pictures, (32, 32), mode="area").flatten(1)


def rank_own(nearness: Tensor, numbers: list[int]) -> Tensor:
    """How many real pictures are nearer to each painted one than that of its own concept, `(n,)`.

    `nearness (n, real)`: higher is nearer. 0 is the nearest of all.
    """
    own = nearness[torch.arange(len(numbers)), torch.tensor(numbers)]
    return (nearness > own[:, None]).sum(1)


def draw_sheet(pictures: list[Image.Image], labels: list[str], columns: int = 8) -> Image.Image:
    """Pictures in rows at 128 px, each with its prompt below in at most three lines."""
    cell, foot = 128, 46
    font = ImageFont.load_default(size=11)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (cell + 8), rows * (cell + foot)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = i % columns * (cell + 8) + 4, i // columns * (cell + foot)
        sheet.paste(picture.resize((cell, cell), Image.Resampling.LANCZOS), (x, y))
        lines = [""]
        for word in label.split():
            longer = f"{lines[-1]} {word}".strip()
            if font.getlength(longer) > cell and lines[-1]:
                lines.append(word)
            else:
                lines[-1] = longer
        draw.text((x, y + cell + 2), "\n".join(lines[:3]), fill="black", font=font)
    return sheet
