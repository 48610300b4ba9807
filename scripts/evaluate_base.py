"""Judge the bundled base: `python scripts/evaluate_base.py [--evaluator_dir DIR]`.

Three measures, printed as one JSON object and written to `--output_dir`:

- the autoencoder's PSNR on the concepts in `held_out.txt`, 20·log10(2 / RMSE) on [-1, 1], in dB;
- over `--num_prompts` seeded prompts of concepts it was trained on: how often the picture's own
  concept is among the 10 nearest of all real Noto emoji, by the evaluator's concept embedding and
  by plain distance of 32×32 px pictures;
- `contact-sheet.png`, 64 of the pictures with their prompts below, for a person to judge.

Without the evaluator's folder only the plain distance is taken.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from base_data import Concept, fetch_packages, load_concepts, load_pictures
from base_export import score_autoencoder, to_pictures
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sdatoms.diffusion.pipeline import load_base, paint
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.pictures import to_tensor

HERE = Path(__file__).parent
NEAREST = 10
SHEET = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = HERE.parent
    parser.add_argument("--base_dir", type=Path, default=root / "assets" / "emoji-sd")
    parser.add_argument("--evaluator_dir", type=Path, default=root / "assets" / "emoji-clip")
    parser.add_argument("--packages", type=Path, default=root / "runs" / "base" / "packages")
    parser.add_argument("--output_dir", type=Path, default=root / "runs" / "evaluate-base")
    parser.add_argument("--num_prompts", type=int, default=200)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=5.0)
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--scheduler", default=None, help="DDIM, Euler, DPM++ 2M, … (the base's)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    packages = fetch_packages(args.packages)
    concepts = load_concepts(packages, set((HERE / "held_out.txt").read_text().split()))
    _, real = load_pictures(packages, "google", [c.key for c in concepts])
    pipe = load_base(str(args.base_dir))
    hidden = torch.tensor([c.held_out for c in concepts])
    psnr = score_autoencoder(pipe.vae, real[hidden], args.output_dir / "autoencoder.png")
    pipe.vae.eval()

    numbers = pick_concepts(concepts, args.num_prompts, args.seed)
    prompts = [concepts[k].name for k in numbers]
    began = time.time()
    painted = paint(
        pipe,
        prompts,
        [args.seed + i for i in range(len(prompts))],
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        scheduler=args.scheduler,
        batch_size=args.batch_size,
    )
    seconds = time.time() - began
    draw_sheet(painted[:SHEET], prompts[:SHEET]).save(args.output_dir / "contact-sheet.png")

    distances = {"pixels": -torch.cdist(shrink(stack(painted)), shrink(real.float() / 127.5 - 1))}
    if args.evaluator_dir.is_dir():
        evaluator = load_evaluator(str(args.evaluator_dir))
        gallery = evaluator.embed_concepts(to_pictures(real.float() / 127.5 - 1))
        distances["evaluator"] = evaluator.embed_concepts(painted) @ gallery.T
    ranks = {name: rank_own(nearness, numbers) for name, nearness in distances.items()}
    found = {
        **{f"autoencoder_{name}": value for name, value in psnr.items()},
        "prompts": len(prompts),
        "real": len(concepts),
        **{
            f"among_{NEAREST}_by_{name}": float((rank < NEAREST).float().mean())
            for name, rank in ranks.items()
        },
        "guidance_scale": args.guidance_scale,
        "num_inference_steps": args.num_inference_steps,
        "seconds_a_picture": round(seconds / len(prompts), 3),
    }
    rows = [
        {"prompt": prompt, **{name: int(rank[i]) for name, rank in ranks.items()}}
        for i, prompt in enumerate(prompts)
    ]
    text = json.dumps(found | {"ranks": rows}, indent=1)
    (args.output_dir / "report.json").write_text(text + "\n")
    print(json.dumps(found))


def pick_concepts(concepts: list[Concept], count: int, seed: int) -> list[int]:
    """`count` different trained concepts, by number, in a seeded order."""
    shown = [i for i, concept in enumerate(concepts) if not concept.held_out]
    return random.Random(seed).sample(shown, min(count, len(shown)))


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
    """Pictures in rows at 112 px, each with its prompt below in at most two lines."""
    cell, foot = 112, 34
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
        draw.text((x, y + cell + 2), "\n".join(lines[:2]), fill="black", font=font)
    return sheet


if __name__ == "__main__":
    main()
