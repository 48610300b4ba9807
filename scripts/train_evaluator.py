"""Train the bundled evaluator: `python scripts/train_evaluator.py` (needs `npm`, and `resvg_py` the
first time).

Seeded and resumable (run it again); logs to `runs/evaluator/evaluator.jsonl`. It ends by writing
`assets/emoji-clip/` and printing, as one JSON object, what that finds among the concepts in
`held_out.txt`, which it has never seen: the same concept by another vendor, the vendor, the same
picture, and the concept by its name.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import evaluator_models as models
import torch
from base_data import write_caption
from base_export import load_ema, to_pictures, train_tokenizer
from diffusers.training_utils import EMAModel
from evaluator_data import VENDORS, Collection, load_collection
from train_base import train

from sdatoms.evaluator import Evaluator, load_evaluator, save_evaluator

HERE = Path(__file__).parent
CARD = """# emoji-clip

A small CLIP for 64 px emoji with a second, style-seeing head: the evaluator behind `sdatoms
evaluate`. `transformers.CLIPModel.from_pretrained` opens it; `sdatoms.evaluator.load_evaluator()`
adds the head in `style_head.safetensors`.

Trained from scratch by `scripts/train_evaluator.py` on {pictures:,} pictures of {concepts:,} emoji
by {vendors} vendors. The {held_out} concepts in `scripts/held_out.txt` were left out; on them:

| | found first |
|---|---|
| the same concept by another vendor, among {held_out} | {concept_across_vendors:.1%} |
| the concept by its name, among {held_out} | {concept_by_name:.1%} |
| the vendor, by the nearest mean style | {vendor:.1%} |
| the same picture, from an augmented view, among {gallery} | {same_picture:.1%} |

Licence: Apache-2.0. It learned from

- Noto Emoji, current and version 1, Copyright Google LLC, Apache License 2.0,
  https://github.com/googlefonts/noto-emoji
- Twemoji, Copyright Twitter, Inc and other contributors, CC-BY 4.0,
  https://github.com/twitter/twemoji
- Fluent Emoji (3D, flat, high contrast), Copyright (c) Microsoft Corporation, MIT License,
  https://github.com/microsoft/fluentui-emoji
- EmojiOne 2 (now EmojiTwo), Copyright Ranks.com Inc. and contributors, CC-BY 4.0,
  https://github.com/EmojiTwo/emojitwo
- names and keywords of emoji-datasource and emojilib, MIT License

None of their pictures are in these files.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = HERE.parent
    parser.add_argument("--run_dir", type=Path, default=root / "runs" / "evaluator")
    parser.add_argument("--packages", type=Path, default=root / "runs" / "base" / "packages")
    parser.add_argument("--output_dir", type=Path, default=root / "assets" / "emoji-clip")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--concepts_per_batch", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--save_every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    everything = load_collection(args.packages, args.run_dir / "pictures.pt")
    shown = everything.take(~everything.held_out)
    concepts = [c for c in everything.concepts if not c.held_out]
    tokenizer = train_tokenizer(concepts, args.run_dir / "tokenizer")
    model, head = models.build_evaluator(len(tokenizer))
    parts = torch.nn.ModuleList([model, head])
    ema = EMAModel(parts.parameters(), decay=0.999, use_ema_warmup=True, inv_gamma=10, power=0.75)
    optimizer = torch.optim.AdamW(
        sort_parameters(parts), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )

    def write_tokens(numbers, rng):
        captions = [write_caption(everything.concepts[c], rng) for c in numbers]
        return tokenizer(
            captions,
            padding="max_length",
            max_length=models.MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).input_ids

    loop = lambda start: models.train_evaluator(
        model,
        head,
        optimizer,
        ema,
        shown,
        write_tokens,
        steps=args.steps,
        start=start,
        concepts_per_batch=args.concepts_per_batch,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    export = lambda folder: save_all(folder, model, head, tokenizer, args.run_dir / "tokenizer")

    def show() -> dict:
        export(args.run_dir / "latest")
        found = score(load_evaluator(str(args.run_dir / "latest")), everything)
        model.train(), head.train()
        return found

    state = args.run_dir / "evaluator.pt"
    train(state, {"model": model, "head": head}, optimizer, ema, loop, show, args.save_every)
    load_ema(parts, state)
    staging = args.output_dir.with_name(args.output_dir.name + ".tmp")
    shutil.rmtree(staging, ignore_errors=True)
    export(staging)
    figures = score(load_evaluator(str(staging)), everything)
    (staging / "README.md").write_text(write_card(figures, everything))
    shutil.rmtree(args.output_dir, ignore_errors=True)
    os.replace(staging, args.output_dir)
    size = sum(p.stat().st_size for p in args.output_dir.rglob("*") if p.is_file())
    print(json.dumps(figures | {"bytes": size, "steps": args.steps}))


def sort_parameters(parts: torch.nn.Module) -> list[dict]:
    """Weight decay for matrices alone."""
    matrices = [p for p in parts.parameters() if p.ndim > 1]
    others = [p for p in parts.parameters() if p.ndim < 2]
    return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]


def save_all(folder: Path, model, head, tokenizer, tokenizer_dir: Path) -> None:
    save_evaluator(folder, model, head, tokenizer, models.SIZE)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tokenizer_dir / name, folder / name)


def score(evaluator: Evaluator, everything: Collection) -> dict[str, float]:
    """What the evaluator finds among held-out concepts; every figure is a share, in [0, 1]."""
    held = everything.take(everything.held_out)
    pictures = show_pictures(held)
    seen = evaluator.embed_concepts(pictures)
    texts = evaluator.embed_texts([everything.concepts[c].name for c in held.concept.unique()])
    styles = evaluator.embed_styles(pictures)
    generator = torch.Generator().manual_seed(0)
    views = models.make_view(held.pictures.float() / 255, generator) * 2 - 1
    again = evaluator.embed_styles(to_pictures(views))
    return {
        "concept_across_vendors": score_across(seen, held),
        "concept_by_name": float(
            ((texts @ seen.T).argmax(0) == held.concept.unique(return_inverse=True)[1])
            .float()
            .mean()
        ),
        "vendor": float((find_vendor(evaluator, everything, styles) == held.vendor).float().mean()),
        "same_picture": float(
            ((again @ styles.T).argmax(1) == torch.arange(len(styles))).float().mean()
        ),
    }


def score_across(seen: torch.Tensor, held: Collection) -> float:
    """For each picture and each other vendor: is that vendor's nearest picture of the same
    concept?"""
    hits = []
    for v in range(len(VENDORS)):
        there = held.vendor == v
        ask = (held.vendor != v) & torch.isin(held.concept, held.concept[there])
        nearest = (seen[ask] @ seen[there].T).argmax(1)
        hits.append(held.concept[there][nearest] == held.concept[ask])
    return float(torch.cat(hits).float().mean())


def find_vendor(evaluator: Evaluator, everything: Collection, styles: torch.Tensor):
    """The vendor whose mean style, over up to 128 pictures trained on, is nearest to each row."""
    shown = everything.take(~everything.held_out)
    means = []
    for v in range(len(VENDORS)):
        own = (shown.vendor == v).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(v))[:128]]
        mask = torch.zeros(len(shown.vendor), dtype=torch.bool)
        mask[own] = True
        means.append(evaluator.embed_styles(show_pictures(shown.take(mask))).mean(0))
    return (styles @ torch.nn.functional.normalize(torch.stack(means), dim=1).T).argmax(1)


def show_pictures(collection: Collection):
    return to_pictures(collection.pictures.float() / 127.5 - 1)


def write_card(figures: dict[str, float], everything: Collection) -> str:
    held = everything.held_out
    return CARD.format(
        pictures=int((~held).sum()),
        concepts=len(everything.concept[~held].unique()),
        vendors=len(VENDORS),
        held_out=len(everything.concept[held].unique()),
        gallery=int(held.sum()),
        **figures,
    )


if __name__ == "__main__":
    main()
