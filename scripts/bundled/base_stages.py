"""The stages in which the bundled base is made, each from a run directory and back into it."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from bundled import base_export as export
from bundled.base_data import Concept, fetch_packages, load_concepts, load_pictures, read_held_out
from bundled.base_diet import encode, paint_examples, read_diet, write_shard, write_turned
from bundled.base_loops import choose_precision, train_autoencoder, train_denoiser
from bundled.base_models import (
    build_autoencoder,
    build_text_encoder,
    build_unet,
    standardize_latents,
)
from bundled.base_training import drive, read_state
from bundled.gallery import Gallery, load_gallery

__all__ = ["STAGES", "Run", "paint_held_out", "settle_precision"]

AUTOENCODER_SCENES = 30_000
HELD_OUT_SCENES = 256
SHARD = 10_000


@dataclass(frozen=True)
class Run:
    """One run directory, the export that training goes on from, and the settings of a stage."""

    run_dir: Path
    output_dir: Path
    from_export: bool = False
    steps: int | None = None
    fall: int | None = None
    """Steps of the falling tail; 0 is a constant rate."""
    rate: float | None = None
    shards: int = 10
    state: str = "denoiser"
    """Name of the denoiser's training state; another one starts as a copy of `denoiser`."""
    seed: int = 0

    @cached_property
    def packages(self) -> dict[str, Path]:
        return fetch_packages(self.run_dir / "packages")

    @cached_property
    def concepts(self) -> list[Concept]:
        return load_concepts(self.packages, read_held_out())

    @cached_property
    def gallery(self) -> Gallery:
        """The concepts that may be shown."""
        return load_gallery(self.packages, [c for c in self.concepts if not c.held_out])

    @cached_property
    def hidden(self) -> Gallery:
        """The concepts in `held_out.txt`."""
        return load_gallery(self.packages, [c for c in self.concepts if c.held_out])

    def find_part(self, name: str) -> Path:
        """A part of the pipeline in the run directory, or in the export where that is wished."""
        here = self.run_dir / name
        return self.output_dir / name if self.from_export and not here.exists() else here


def fit_autoencoder_stage(run: Run) -> None:
    model = build_autoencoder()
    if run.from_export:
        exported = AutoencoderKL.from_pretrained(run.output_dir / "vae")
        model.load_state_dict(exported.float().state_dict())
    fit_autoencoder(run, model, run.run_dir / "autoencoder")


def fit_decoder_stage(run: Run) -> None:
    model = AutoencoderKL.from_pretrained(run.find_part("vae")).float()
    for part in (model.encoder, model.quant_conv):
        part.requires_grad_(False)
    fit_autoencoder(run, model, run.run_dir / "decoder")
    export.load_ema(model, run.run_dir / "decoder.pt").save_pretrained(run.run_dir / "vae")


def fit_autoencoder(run: Run, model: AutoencoderKL, path: Path) -> None:
    pictures, held, scenes = show_pictures(run)
    ema = EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True, inv_gamma=10, power=0.75)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=5e-4, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    sample = pictures[:16].float() / 127.5 - 1
    facts = settle_precision(path, model, lambda: (model(sample).sample - sample).square().mean())
    loop = lambda start: train_autoencoder(
        model,
        optimizer,
        ema,
        pictures,
        steps=run.steps or 1500,
        start=start,
        learning_rate=run.rate or 5e-4,
        precision=getattr(torch, facts["precision"]),
        seed=run.seed,
    )

    def show() -> dict:
        return {
            "held_out_psnr": export.score_autoencoder(model, held, path.with_suffix(".png")),
            "scenes_psnr": export.score_autoencoder(
                model, scenes, path.with_name(f"{path.name}-scenes.png")
            ),
        }

    drive(path.with_suffix(".pt"), {"model": model}, optimizer, ema, loop, show, 250, facts=facts)


def show_pictures(run: Run) -> tuple[Tensor, Tensor, Tensor]:
    """Plain pictures of two vendors and twice as many scenes, without the held-out concepts; those
    as Google draws them; and scenes of them."""
    hidden = {c.key for c in run.hidden.concepts}
    plain = []
    for vendor in ("google", "twitter"):
        keys, found = load_pictures(run.packages, vendor)
        keep = [
            i
            for i, key in enumerate(keys)
            if not any(f"{key}-".startswith(f"{h}-") for h in hidden)
        ]
        plain.append(found[keep])
    _, held = load_pictures(run.packages, "google", sorted(hidden))
    plain = torch.cat(plain)
    rng = random.Random(run.seed)
    examples = [run.gallery.draw_example(rng) for _ in range(AUTOENCODER_SCENES)]
    scenes = paint_examples(run.gallery, examples)
    copies = max(1, round(len(scenes) / 2 / len(plain)))
    return torch.cat([plain.repeat(copies, 1, 1, 1), scenes]), held, paint_held_out(run)


def paint_held_out(run: Run) -> Tensor:
    """Seeded scenes of the held-out concepts, as no training has seen them."""
    rng = random.Random("held out")
    examples = [run.hidden.draw_example(rng) for _ in range(HELD_OUT_SCENES)]
    return paint_examples(run.hidden, examples)


def settle_precision(path: Path, part: nn.Module, work) -> dict[str, str]:
    """The precision of a state at `path`, or the faster one by measurement."""
    state = read_state(path.with_suffix(".pt"))
    if state is not None and "precision" in state:
        return {"precision": state["precision"]}
    chosen = choose_precision(work)
    part.zero_grad()
    print(f"{path.name}: {chosen} is the faster precision here", flush=True)
    return {"precision": str(chosen).removeprefix("torch.")}


def encode_stage(run: Run) -> None:
    """Encode plain emoji and `shards` × 10,000 scenes; standardize the latents the first time."""
    folder = run.run_dir / "latents"
    folder.mkdir(exist_ok=True)
    _, plain = load_pictures(run.packages, "google", [c.key for c in run.gallery.concepts])
    if not (folder / "plain.pt").exists():
        state = run.run_dir / "autoencoder.pt"
        if state.exists():
            model = export.load_ema(build_autoencoder(), state)
        else:
            model = AutoencoderKL.from_pretrained(run.find_part("vae")).float()
        rng = random.Random(run.seed)
        scenes = paint_examples(run.gallery, [run.gallery.draw_example(rng) for _ in range(2048)])
        standardize_latents(model, encode(model, torch.cat([plain[::2], scenes])))
        latents = encode(model, plain)
        print(f"{tuple(latents.shape)} mean {latents.mean():.4f} deviation {latents.std():.4f}")
        model.save_pretrained(run.run_dir / "vae")
        torch.save(latents.half(), folder / "plain.pt")
    model = AutoencoderKL.from_pretrained(run.run_dir / "vae").float()
    fit = run.run_dir / "autoencoder"
    x = paint_held_out(run)[:16].float() / 127.5 - 1
    facts = settle_precision(fit, model, lambda: model.encode(x).latent_dist.mean.square().mean())
    precision = getattr(torch, facts["precision"])
    write_turned(folder, model, run.gallery, precision)
    for number in range(run.shards):
        write_shard(folder, model, run.gallery, number, SHARD, precision)
        print(f"{number + 1} of {run.shards} shards", flush=True)


def fit_denoiser_stage(run: Run) -> None:
    if not (run.run_dir / "tokenizer").exists() and run.from_export:
        shutil.copytree(run.output_dir / "tokenizer", run.run_dir / "tokenizer")
    tokenizer = export.train_tokenizer(list(run.gallery.concepts), run.run_dir / "tokenizer")
    unet, text_encoder = build_unet(), build_text_encoder(len(tokenizer))
    path, main = run.run_dir / f"{run.state}.pt", run.run_dir / "denoiser.pt"
    if run.from_export and not main.exists():
        for part, name in ((unet, "unet"), (text_encoder, "text_encoder")):
            exported = type(part).from_pretrained(run.output_dir / name)
            part.load_state_dict(exported.float().state_dict())
    parts = {"unet": unet, "text_encoder": text_encoder}
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    ema = EMAModel(
        parameters, decay=0.9995, use_ema_warmup=True, inv_gamma=10, power=0.75, foreach=True
    )
    optimizer = torch.optim.AdamW(
        parameters, lr=4e-4, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
    )
    diet = read_diet(run.run_dir / "latents", run.gallery, tokenizer)
    x, tokens = diet.draw_batch(torch.Generator().manual_seed(0), random.Random(0))
    work = lambda: unet(x, torch.arange(len(x)), text_encoder(tokens)[0]).sample.square().mean()
    facts = settle_precision(main, nn.ModuleDict(parts), work)
    loop = lambda start: train_denoiser(
        unet,
        text_encoder,
        optimizer,
        ema,
        diet.draw_batch,
        steps=run.steps or 8000,
        start=start,
        learning_rate=run.rate or 4e-4,
        fall=run.fall,
        precision=getattr(torch, facts["precision"]),
        seed=run.seed,
    )
    show = lambda: export.paint_samples(run.run_dir, unet, text_encoder, tokenizer)
    drive(path, parts, optimizer, ema, loop, show, 250, start_from=main, facts=facts)


def export_stage(run: Run) -> None:
    concepts = list(run.gallery.concepts)
    total = export.export_pipeline(run.run_dir, run.output_dir, concepts, run.state)
    print(f"{run.output_dir}: {total / 1e6:.2f} MB")


STAGES = {
    "autoencoder": fit_autoencoder_stage,
    "latents": encode_stage,
    "denoiser": fit_denoiser_stage,
    "decoder": fit_decoder_stage,
    "export": export_stage,
}
"""Name → what it does with a run."""
