"""Judge the bundled base: restored and painted pictures, by number and on a sheet for a person.

The picture's own concept has to be among the 10 nearest of all real Noto emoji, by the evaluator's
concept embedding and by plain distance of 32×32 px pictures. The autoencoder is judged by
20·log10(2 / RMSE) on [-1, 1], in dB, on concepts that nothing was trained on.
"""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bundled.base_data import Concept, load_pictures
from bundled.base_export import score_autoencoder, to_pictures
from bundled.base_followed import draw_prompts, score_followed, stack
from bundled.base_stages import Run, paint_held_out
from sdatoms.diffusion.guidance import find_guidance
from sdatoms.diffusion.open import load_base
from sdatoms.diffusion.pipeline import paint
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.probe import load_probe

__all__ = ["draw_sheet", "judge_base", "pick_concepts", "rank_concepts", "rank_own", "shrink"]

NEAREST = 10
SHEET = 64


def judge_base(
    *,
    base_dir: Path,
    evaluator_dir: Path,
    run_dir: Path,
    probe: Path,
    output_dir: Path,
    num_prompts: int,
    per_kind: int,
    batch_size: int,
    seed: int,
    **painting,
) -> dict:
    """Take every measure and draw the sheets; without the probe's file no sentence is judged.

    Args:
        painting: how pictures are painted: `guidance_scale`, `num_inference_steps`, `scheduler`.
    """
    run, pipe = Run(run_dir, base_dir), load_base(str(base_dir))
    _, real = load_pictures(run.packages, "google", [c.key for c in run.concepts])
    hidden = real[torch.tensor([c.held_out for c in run.concepts])]
    found = {
        "autoencoder_held_out_psnr": score_autoencoder(
            pipe.vae, hidden, output_dir / "autoencoder.png"
        ),
        "autoencoder_scenes_psnr": score_autoencoder(
            pipe.vae, paint_held_out(run), output_dir / "autoencoder-scenes.png"
        ),
    }
    pipe.vae.eval()
    if painting.get("guidance_scale") is None:
        painting["guidance_scale"] = find_guidance(pipe)
    draw = partial(paint, pipe, batch_size=batch_size, **painting)
    numbers = pick_concepts(run.concepts, num_prompts, seed)
    began = time.time()
    painted = draw([run.concepts[k].name for k in numbers], range(seed, seed + len(numbers)))
    found["seconds_a_picture"] = round((time.time() - began) / max(1, len(numbers)), 3)
    for name, rank in rank_concepts(painted, numbers, real, evaluator_dir).items():
        found[f"among_{NEAREST}_by_{name}"] = float((rank < NEAREST).float().mean())
    if probe.exists():
        prompts = draw_prompts(run.gallery, per_kind, seed)
        texts = [prompt.text for prompt in prompts]
        painted = draw(texts, range(seed, seed + len(texts)))
        found["followed"] = score_followed(load_probe(probe), run.gallery, prompts, painted)
        shown = random.Random(seed).sample(range(len(texts)), min(SHEET, len(texts)))
        sheet = draw_sheet([painted[i] for i in shown], [texts[i] for i in shown])
        sheet.save(output_dir / "contact-sheet.png")
    return found | {"prompts": len(numbers), "real": len(run.concepts)} | painting


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
