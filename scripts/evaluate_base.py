"""Judge the bundled base: `python scripts/evaluate_base.py [--evaluator_dir DIR]`.

Printed as one JSON object and written to `--output_dir`: how well the autoencoder restores emoji of
the concepts in `bundled/held_out.txt`, and over `--num_prompts` seeded prompts of trained concepts,
how often the picture's own concept is among the 10 nearest of all real ones. `contact-sheet.png`
shows 64 of the pictures with their prompts, for a person to judge.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from bundled.base_data import fetch_packages, load_concepts, load_pictures, read_held_out
from bundled.base_export import score_autoencoder
from bundled.base_judge import NEAREST, draw_sheet, pick_concepts, rank_concepts

from sdatoms.diffusion.pipeline import load_base, paint

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base_dir", type=Path, default=ROOT / "assets" / "emoji-sd")
    parser.add_argument("--evaluator_dir", type=Path, default=ROOT / "assets" / "emoji-clip")
    parser.add_argument("--packages", type=Path, default=ROOT / "runs" / "base" / "packages")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "evaluate-base")
    parser.add_argument("--num_prompts", type=int, default=200)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=5.0)
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--scheduler", default=None, help="DDIM, Euler, DPM++ 2M, … (the base's)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    concepts = load_concepts(packages := fetch_packages(args.packages), read_held_out())
    _, real = load_pictures(packages, "google", [c.key for c in concepts])
    pipe = load_base(str(args.base_dir))
    hidden = torch.tensor([c.held_out for c in concepts])
    psnr = score_autoencoder(pipe.vae, real[hidden], args.output_dir / "autoencoder.png")
    pipe.vae.eval()
    numbers = pick_concepts(concepts, args.num_prompts, args.seed)
    prompts = [concepts[k].name for k in numbers]
    painted = paint(
        pipe,
        prompts,
        [args.seed + i for i in range(len(prompts))],
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        scheduler=args.scheduler,
        batch_size=args.batch_size,
    )
    draw_sheet(painted[:64], prompts[:64]).save(args.output_dir / "contact-sheet.png")
    ranks = rank_concepts(painted, numbers, real, args.evaluator_dir)
    found = {"autoencoder_held_out_psnr": psnr, "prompts": len(prompts), "real": len(concepts)}
    for name, rank in ranks.items():
        found[f"among_{NEAREST}_by_{name}"] = float((rank < NEAREST).float().mean())
    (args.output_dir / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
