"""Train the bundled evaluator: `python scripts/train_evaluator.py clip`, `… instance`, `… drawing`
and `… export` (needs `npm`, and `resvg_py` the first time).

The first three may run at the same time. Both are seeded and resumable (run them again) and log
to `runs/evaluator/`. `export` writes `assets/emoji-clip/` and prints, as one JSON object, what that
finds among the concepts in `held_out.txt`, which it has never seen: the same concept by another
vendor, the vendor, the same picture, and the concept by its name.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import evaluator_models as models
import evaluator_styles as styles
import torch
from base_data import write_caption
from base_export import load_ema, to_pictures, train_tokenizer
from diffusers.training_utils import EMAModel
from evaluator_data import VENDORS, Collection, load_collection
from train_base import train

from sdatoms.evaluation.evaluator import Evaluator, StyleHead, load_evaluator, save_evaluator

HERE = Path(__file__).parent
CARD = """# emoji-clip

A small CLIP for 64 px emoji with a second, style-seeing head: the evaluator behind `sdatoms
evaluate`. `transformers.CLIPModel.from_pretrained` opens it;
`sdatoms.evaluation.evaluator.load_evaluator()` adds the head in `style_head.safetensors`.

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
    parser.add_argument("stage", choices=("clip", "instance", "drawing", "export"))
    parser.add_argument("--run_dir", type=Path, default=root / "runs" / "evaluator")
    parser.add_argument("--packages", type=Path, default=root / "runs" / "base" / "packages")
    parser.add_argument("--output_dir", type=Path, default=root / "assets" / "emoji-clip")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--save_every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    everything = load_collection(args.packages, args.run_dir / "pictures.pt")
    concepts = [c for c in everything.concepts if not c.held_out]
    tokenizer = train_tokenizer(concepts, args.run_dir / "tokenizer")
    stage = {
        "clip": run_clip,
        "instance": run_instance,
        "drawing": run_drawing,
        "export": run_export,
    }[args.stage]
    stage(args, everything, tokenizer)


def run_clip(args: argparse.Namespace, everything: Collection, tokenizer) -> None:
    model = models.build_clip(len(tokenizer))

    def write_tokens(numbers, rng):
        captions = [write_caption(everything.concepts[c], rng) for c in numbers]
        return tokenizer(
            captions,
            padding="max_length",
            max_length=models.MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).input_ids

    shown = everything.take(~everything.held_out)
    held = everything.take(everything.held_out)
    fit = lambda optimizer, ema, start: models.train_clip(
        model,
        optimizer,
        ema,
        shown,
        write_tokens,
        steps=args.steps or 2400,
        start=start,
        seed=args.seed,
    )

    def show() -> dict:
        evaluator = make_evaluator(model, StyleHead(), tokenizer, args.run_dir)
        found = score_concepts(evaluator, held, everything)
        model.requires_grad_(True).train()
        return found

    fit_part(args, "clip", model, fit, show)


def run_instance(args: argparse.Namespace, everything: Collection, tokenizer) -> None:
    head, held = StyleHead(), everything.take(everything.held_out)
    fit = lambda optimizer, ema, start: styles.train_instance(
        head.instance,
        optimizer,
        ema,
        everything.take(~everything.held_out),
        steps=args.steps or 800,
        start=start,
        seed=args.seed,
    )

    def show() -> dict:
        found = score_pictures(open_head(args, head, tokenizer), held)
        head.requires_grad_(True).train()
        return {"same_picture": found}

    fit_part(args, "instance", head.instance, fit, show)


def run_drawing(args: argparse.Namespace, everything: Collection, tokenizer) -> None:
    learner, head = styles.DrawingLearner(), StyleHead()
    head.drawing = learner.net
    shown, held = everything.take(~everything.held_out), everything.take(everything.held_out)
    fit = lambda optimizer, ema, start: styles.train_drawing(
        learner,
        optimizer,
        ema,
        shown,
        steps=args.steps or 6400,
        start=start,
        seed=args.seed,
    )

    def show() -> dict:
        styles.settle(learner.net, shown)
        found = score_vendors(open_head(args, head, tokenizer), held, everything)
        head.requires_grad_(True).train()
        return {"vendor": found}

    fit_part(args, "drawing", learner, fit, show)


def open_head(args: argparse.Namespace, head: StyleHead, tokenizer) -> Evaluator:
    """An evaluator with this style head, beside a concept side that knows nothing."""
    return make_evaluator(models.build_clip(len(tokenizer)), head, tokenizer, args.run_dir)


def fit_part(args: argparse.Namespace, name: str, part: torch.nn.Module, fit, show) -> None:
    ema = EMAModel(part.parameters(), decay=0.999, use_ema_warmup=True, inv_gamma=10, power=0.75)
    optimizer = torch.optim.AdamW(
        sort_parameters(part), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    loop = lambda start: fit(optimizer, ema, start)
    train(args.run_dir / f"{name}.pt", {name: part}, optimizer, ema, loop, show, args.save_every)


def run_export(args: argparse.Namespace, everything: Collection, tokenizer) -> None:
    clip = load_ema(models.build_clip(len(tokenizer)), args.run_dir / "clip.pt")
    head = StyleHead()
    load_ema(head.instance, args.run_dir / "instance.pt")
    learner = load_ema(styles.DrawingLearner(), args.run_dir / "drawing.pt")
    styles.settle(learner.net, everything.take(~everything.held_out))
    head.drawing = learner.net
    staging = args.output_dir.with_name(args.output_dir.name + ".tmp")
    shutil.rmtree(staging, ignore_errors=True)
    evaluator = make_evaluator(clip, head, tokenizer, args.run_dir, staging)
    held = everything.take(everything.held_out)
    figures = score_concepts(evaluator, held, everything) | {
        "vendor": score_vendors(evaluator, held, everything),
        "same_picture": score_pictures(evaluator, held),
    }
    (staging / "README.md").write_text(write_card(figures, everything))
    shutil.rmtree(args.output_dir, ignore_errors=True)
    os.replace(staging, args.output_dir)
    size = sum(p.stat().st_size for p in args.output_dir.rglob("*") if p.is_file())
    print(json.dumps(figures | {"bytes": size}))


def sort_parameters(parts: torch.nn.Module) -> list[dict]:
    """Weight decay for matrices alone."""
    matrices = [p for p in parts.parameters() if p.ndim > 1]
    others = [p for p in parts.parameters() if p.ndim < 2]
    return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]


def make_evaluator(clip, head, tokenizer, run_dir: Path, folder: Path | None = None) -> Evaluator:
    """Write both parts to `folder` and open them there, in float16 as they will be used."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder or Path(scratch)
        save_evaluator(folder, clip, head, tokenizer, models.SIZE)
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(run_dir / "tokenizer" / name, folder / name)
        return load_evaluator(str(folder))


def score_concepts(
    evaluator: Evaluator, held: Collection, everything: Collection
) -> dict[str, float]:
    """What the concept side finds among held-out concepts; shares in [0, 1]."""
    seen = evaluator.embed_concepts(show_pictures(held))
    numbers, own = held.concept.unique(return_inverse=True)
    texts = evaluator.embed_texts([everything.concepts[c].name for c in numbers])
    named = (texts @ seen.T).argmax(0) == own
    return {
        "concept_across_vendors": score_across(seen, held),
        "concept_by_name": float(named.float().mean()),
    }


def score_pictures(evaluator: Evaluator, held: Collection) -> float:
    """How often an augmented view of a picture finds it again, by the embedding's first half."""
    seen = evaluator.embed_styles(show_pictures(held))
    generator = torch.Generator().manual_seed(0)
    views = models.make_view(held.pictures.float() / 255, generator) * 2 - 1
    again = evaluator.embed_styles(to_pictures(views))
    half = seen.shape[1] // 2
    found = (again[:, :half] @ seen[:, :half].T).argmax(1) == torch.arange(len(seen))
    return float(found.float().mean())


def score_vendors(evaluator: Evaluator, held: Collection, everything: Collection) -> float:
    """How often a picture's vendor is found, by the embedding's second half."""
    vendor = find_vendor(evaluator, everything, evaluator.embed_styles(show_pictures(held)))
    return float((vendor == held.vendor).float().mean())


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


def find_vendor(evaluator: Evaluator, everything: Collection, seen: torch.Tensor):
    """The vendor whose mean drawing style, over up to 200 pictures trained on, is nearest to each
    row: by the second half of the embedding."""
    shown = everything.take(~everything.held_out)
    means = []
    for v in range(len(VENDORS)):
        own = (shown.vendor == v).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(v))[:200]]
        mask = torch.zeros(len(shown.vendor), dtype=torch.bool)
        mask[own] = True
        means.append(evaluator.embed_styles(show_pictures(shown.take(mask))).mean(0))
    means, half = torch.stack(means), seen.shape[1] // 2
    return (seen[:, half:] @ torch.nn.functional.normalize(means[:, half:], dim=1).T).argmax(1)


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
