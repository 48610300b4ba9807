"""The stages in which the bundled evaluator is made, each from a run directory and back into it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random

import torch
from diffusers.training_utils import EMAModel

from bundled import evaluator_models as models
from bundled import evaluator_styles as styles
from bundled.base_data import (
    Concept,
    fetch_packages,
    load_concepts,
    read_held_out,
    write_caption,
)
from bundled.base_diet import tokenize
from bundled.base_export import load_ema
from bundled.base_stages import settle_precision
from bundled.base_training import drive
from bundled.evaluator_data import VENDORS, Collection
from bundled.evaluator_scenes import SceneDiet, draw_lookalikes, score_captions
from bundled.evaluator_scores import score_concepts, score_pictures, score_vendors
from bundled.gallery import Gallery, load_gallery
from sdatoms.evaluation.evaluator import Evaluator, StyleHead, load_evaluator, save_evaluator

__all__ = ["STAGES", "Run", "copy_tokenizer"]

CARD = """# emoji-clip

A small CLIP for 64 px emoji with a second, style-seeing head: the evaluator behind `sdatoms
evaluate`. `transformers.CLIPModel.from_pretrained` opens it;
`sdatoms.evaluation.evaluator.load_evaluator()` adds the head in `style_head.safetensors`.

Trained from scratch by `scripts/train_evaluator.py` on {pictures:,} pictures of {concepts:,} emoji
by {vendors} vendors, and on scenes of one of them, drawn anew in every step. The {held_out}
concepts in `scripts/bundled/held_out.txt` were left out:

| | found first |
|---|---|
| the same concept by another vendor, among {held_out} | {concept_across_vendors:.1%} |
| the concept by its name, among {held_out} | {concept_by_name:.1%} |
| the vendor, by the nearest mean style | {vendor:.1%} |
| the same picture, from an augmented view, among {gallery} | {same_picture:.1%} |
| the caption of a scene, among 20 that differ in one modifier | {caption_of_20:.1%} |
| the same of things trained on, in scenes that were not | {known_caption_of_20:.1%} |
| the caption of a scene, where the plain thing was not shown first | {unshown_caption_of_20:.1%} |
| the same of things trained on | {known_unshown_caption_of_20:.1%} |

Captions of scenes are found after the evaluator was shown the thing alone, upright and upside down,
as `sdatoms.evaluation.introduction` does with the subject of a truth file.

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


@dataclass(frozen=True)
class Run:
    """One run directory, the export it ends in, and the settings of a stage."""

    run_dir: Path
    output_dir: Path
    packages: Path
    from_export: bool = False
    """Go on from the weights in `output_dir` where the run directory has none."""
    steps: int | None = None
    rate: float | None = None
    blend: float = 1.0
    """Share of the weights just trained in what is exported; the rest is of those gone on from
    (Wortsman et al., "Model soups", 2022, https://arxiv.org/abs/2203.05482)."""
    save_every: int = 200
    seed: int = 0

    @cached_property
    def gallery(self) -> Gallery:
        """What scenes are made of, without the held-out concepts."""
        return self.load_gallery(lambda concept: not concept.held_out)

    @cached_property
    def whole(self) -> Gallery:
        """The same with them."""
        return self.load_gallery(lambda concept: True)

    def load_gallery(self, wanted: Callable[[Concept], bool]) -> Gallery:
        packages = fetch_packages(self.packages)
        concepts = load_concepts(packages, read_held_out())
        return load_gallery(packages, [c for c in concepts if wanted(c)])


def fit_clip(run: Run, everything: Collection, tokenizer) -> None:
    model, diet = open_clip(run, tokenizer), SceneDiet(run.gallery, tokenizer)
    heads = models.ModifierHeads()
    x, ids = torch.rand(64, 3, models.PICTURE_SIZE, models.PICTURE_SIZE), diet.draw(Random(0)).words
    work = lambda: (
        model.get_image_features(pixel_values=x).pooler_output.square().mean()
        + model.get_text_features(input_ids=ids).pooler_output.square().mean()
    )
    facts = settle_precision(run.run_dir / "clip", model, work)

    def write_tokens(numbers, rng):
        captions = [write_caption(everything.concepts[c], rng) for c in numbers]
        return tokenize(tokenizer, captions)

    shown = everything.take(~everything.held_out)
    held = everything.take(everything.held_out)
    fit = lambda optimizer, ema, start: models.train_clip(
        model,
        heads,
        optimizer,
        ema,
        shown,
        write_tokens,
        diet.draw,
        steps=run.steps or 6000,
        start=start,
        learning_rate=run.rate or 1e-3,
        precision=getattr(torch, facts["precision"]),
        seed=run.seed,
    )

    def show() -> dict:
        evaluator = make_evaluator(model, StyleHead(), tokenizer, run.run_dir)
        found = score_concepts(evaluator, held, everything)
        found |= score_captions(evaluator, run.whole, 200)
        model.requires_grad_(True).train()
        return found

    fit_part(run, "clip", {"clip": model, "heads": heads}, fit, show, facts)


def fit_instance(run: Run, everything: Collection, tokenizer) -> None:
    head, held = open_styles(run), everything.take(everything.held_out)
    x = torch.rand(64, 3, models.PICTURE_SIZE, models.PICTURE_SIZE)
    facts = settle_precision(
        run.run_dir / "instance", head.instance, lambda: head.instance(x)[:, 0].square().mean()
    )
    fit = lambda optimizer, ema, start: styles.train_instance(
        head.instance,
        optimizer,
        ema,
        everything.take(~everything.held_out),
        draw_lookalikes(run.gallery),
        steps=run.steps or 1600,
        start=start,
        learning_rate=run.rate or 2e-3,
        precision=getattr(torch, facts["precision"]),
        seed=run.seed,
    )

    def show() -> dict:
        found = score_pictures(open_head(run, head, tokenizer), held)
        head.requires_grad_(True).train()
        return {"same_picture": found}

    fit_part(run, "instance", {"instance": head.instance}, fit, show, facts)


def fit_drawing(run: Run, everything: Collection, tokenizer) -> None:
    learner, head = styles.DrawingLearner(), StyleHead()
    head.drawing = learner.net
    shown, held = everything.take(~everything.held_out), everything.take(everything.held_out)
    fit = lambda optimizer, ema, start: styles.train_drawing(
        learner,
        optimizer,
        ema,
        shown,
        steps=run.steps or 6400,
        start=start,
        seed=run.seed,
    )

    def show() -> dict:
        styles.settle(learner.net, shown)
        found = score_vendors(open_head(run, head, tokenizer), held, everything)
        head.requires_grad_(True).train()
        return {"vendor": found}

    fit_part(run, "drawing", {"drawing": learner}, fit, show)


def open_head(run: Run, head: StyleHead, tokenizer) -> Evaluator:
    """An evaluator with this style head, beside a concept side that knows nothing."""
    return make_evaluator(models.build_clip(len(tokenizer)), head, tokenizer, run.run_dir)


def fit_part(
    run: Run, name: str, parts: dict[str, torch.nn.Module], fit, show, facts: dict | None = None
) -> None:
    """Train the parts; the first is what is kept, `load_ema` reads it alone."""
    part = torch.nn.ModuleList(parts.values())
    ema = EMAModel(part.parameters(), decay=0.999, use_ema_warmup=True, inv_gamma=10, power=0.75)
    optimizer = torch.optim.AdamW(
        sort_parameters(part), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    loop = lambda start: fit(optimizer, ema, start)
    path = run.run_dir / f"{name}.pt"
    drive(path, parts, optimizer, ema, loop, show, run.save_every, facts=facts)


def open_clip(run: Run, tokenizer) -> torch.nn.Module:
    """A new model, or the exported one to go on from."""
    model = models.build_clip(len(tokenizer))
    if run.from_export:
        exported = load_evaluator(str(run.output_dir)).clip
        model.load_state_dict(exported.state_dict())
    return model


def open_styles(run: Run) -> StyleHead:
    head = StyleHead()
    if run.from_export:
        head.load_state_dict(load_evaluator(str(run.output_dir)).style.state_dict())
    return head


def open_trained(run: Run, everything: Collection, tokenizer) -> tuple[torch.nn.Module, StyleHead]:
    """Model and style head from the run directory; from the export what was not trained there."""
    clip, head = open_clip(run, tokenizer), open_styles(run)
    if not run.from_export or (run.run_dir / "clip.pt").exists():
        load_ema(clip, run.run_dir / "clip.pt")
    if run.blend < 1:
        mix = zip(clip.parameters(), open_clip(run, tokenizer).parameters(), strict=True)
        with torch.no_grad():
            for new, old in mix:
                new.lerp_(old, 1 - run.blend)
    if not run.from_export or (run.run_dir / "instance.pt").exists():
        load_ema(head.instance, run.run_dir / "instance.pt")
    if not run.from_export or (run.run_dir / "drawing.pt").exists():
        learner = load_ema(styles.DrawingLearner(), run.run_dir / "drawing.pt")
        styles.settle(learner.net, everything.take(~everything.held_out))
        head.drawing = learner.net
    return clip, head


def judge_captions(run: Run, everything: Collection, tokenizer) -> dict:
    """How often the right caption of a held-out scene is found, as the weights are now."""
    clip, head = open_trained(run, everything, tokenizer)
    evaluator = make_evaluator(clip, head, tokenizer, run.run_dir)
    return score_both(evaluator, run.whole)


def score_both(evaluator: Evaluator, gallery: Gallery) -> dict:
    """`score_captions` of things never seen, and of things trained on, as `known_…`; where the
    plain thing was not shown first, as `unshown_…`."""
    found = {}
    for introduced, prefix in ((True, ""), (False, "unshown_")):
        for strange, whose in ((True, ""), (False, "known_")):
            own = score_captions(evaluator, gallery, strange=strange, introduced=introduced)
            found |= {f"{whose}{prefix}{key}": value for key, value in own.items()}
    return found


def export_evaluator(run: Run, everything: Collection, tokenizer) -> dict:
    clip, head = open_trained(run, everything, tokenizer)
    staging = run.output_dir.with_name(run.output_dir.name + ".tmp")
    shutil.rmtree(staging, ignore_errors=True)
    evaluator = make_evaluator(clip, head, tokenizer, run.run_dir, staging)
    held = everything.take(everything.held_out)
    figures = score_concepts(evaluator, held, everything) | {
        "vendor": score_vendors(evaluator, held, everything),
        "same_picture": score_pictures(evaluator, held),
        **score_both(evaluator, run.whole),
    }
    (staging / "README.md").write_text(write_card(figures, everything))
    shutil.rmtree(run.output_dir, ignore_errors=True)
    os.replace(staging, run.output_dir)
    size = sum(p.stat().st_size for p in run.output_dir.rglob("*") if p.is_file())
    return figures | {"bytes": size}


def sort_parameters(parts: torch.nn.Module) -> list[dict]:
    """Weight decay for matrices alone."""
    matrices = [p for p in parts.parameters() if p.ndim > 1]
    others = [p for p in parts.parameters() if p.ndim < 2]
    return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]


VOCABULARY = ("vocab.json", "merges.txt")


def copy_tokenizer(export: Path, folder: Path) -> None:
    """Take the export's vocabulary, which its weights belong to, unless there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in VOCABULARY:
        if not (folder / name).exists():
            shutil.copy(export / name, folder / name)


def make_evaluator(clip, head, tokenizer, run_dir: Path, folder: Path | None = None) -> Evaluator:
    """Write both parts to `folder` and open them there, in float16 as they will be used."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = folder or Path(scratch)
        save_evaluator(folder, clip, head, tokenizer, models.PICTURE_SIZE)
        for name in VOCABULARY:
            shutil.copy(run_dir / "tokenizer" / name, folder / name)
        return load_evaluator(str(folder))


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


STAGES = {
    "clip": fit_clip,
    "instance": fit_instance,
    "drawing": fit_drawing,
    "captions": judge_captions,
    "export": export_evaluator,
}
"""Name → what it does with a run, every vendor's pictures and the tokenizer."""
