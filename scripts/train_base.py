"""Train the bundled base model from the emoji packages: `python scripts/train_base.py STAGE
[--steps N]`.

Stages in order: autoencoder, latents, denoiser, export; `decoder` then sharpens the autoencoder's
second half for the latents as they are. With `--from_export`, training goes on from the exported
pipeline where the run directory has no state of its own. Each is seeded, resumable (run it again),
logs to `runs/base/<stage>.jsonl` and paints a grid of samples on the way.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import base_export
import base_models as models
import torch
from base_data import fetch_packages, load_concepts, load_pictures, write_caption
from diffusers import AutoencoderKL
from diffusers.training_utils import EMAModel

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stage", choices=("autoencoder", "latents", "denoiser", "decoder", "export")
    )
    parser.add_argument("--run_dir", type=Path, default=HERE.parent / "runs" / "base")
    parser.add_argument("--output_dir", type=Path, default=HERE.parent / "assets" / "emoji-sd")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from_export", action="store_true")
    args = parser.parse_args()
    args.run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    globals()[f"run_{args.stage}"](args)


def read_data(args):
    packages = fetch_packages(args.run_dir / "packages")
    held_out = set((HERE / "held_out.txt").read_text().split())
    return packages, load_concepts(packages, held_out)


def read_shown(packages, concepts):
    """Pictures of two vendors without the held-out concepts, and Google's held-out ones."""
    hidden = {c.key for c in concepts if c.held_out}
    pictures = []
    for vendor in ("google", "twitter"):
        keys, found = load_pictures(packages, vendor)
        keep = [
            i
            for i, key in enumerate(keys)
            if not any(key == h or key.startswith(h + "-") for h in hidden)
        ]
        pictures.append(found[keep])
    _, held = load_pictures(packages, "google", sorted(hidden))
    return torch.cat(pictures), held


def run_autoencoder(args) -> None:
    pictures, held = read_shown(*read_data(args))
    model = models.build_autoencoder()
    if args.from_export:
        exported = AutoencoderKL.from_pretrained(args.output_dir / "vae")
        model.load_state_dict(exported.float().state_dict())
    fit_autoencoder(args, model, pictures, held, args.run_dir / "autoencoder")


def run_decoder(args) -> None:
    pictures, held = read_shown(*read_data(args))
    model = AutoencoderKL.from_pretrained(find_part(args, "vae")).float()
    for part in (model.encoder, model.quant_conv):
        part.requires_grad_(False)
    fit_autoencoder(args, model, pictures, held, args.run_dir / "decoder")
    base_export.load_ema(model, args.run_dir / "decoder.pt").save_pretrained(args.run_dir / "vae")


def find_part(args, name: str) -> Path:
    """A part of the pipeline in the run directory, or in the export where that is wished."""
    here = args.run_dir / name
    return args.output_dir / name if args.from_export and not here.exists() else here


def fit_autoencoder(args, model, pictures, held, path: Path) -> None:
    ema = EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True, inv_gamma=10, power=0.75)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
    )
    loop = lambda start: models.train_autoencoder(
        model,
        optimizer,
        ema,
        pictures,
        steps=args.steps or 4000,
        start=start,
        seed=args.seed,
    )
    show = lambda: base_export.score_autoencoder(model, held, path.with_suffix(".png"))
    train(path.with_suffix(".pt"), {"model": model}, optimizer, ema, loop, show, every=250)


def run_latents(args) -> None:
    packages, concepts = read_data(args)
    state = args.run_dir / "autoencoder.pt"
    if state.exists():
        model = base_export.load_ema(models.build_autoencoder(), state)
    else:
        model = AutoencoderKL.from_pretrained(find_part(args, "vae")).float()
    _, pictures = load_pictures(packages, "google", [c.key for c in concepts if not c.held_out])
    models.standardize_latents(model, base_export.encode(model, pictures))
    latents = base_export.encode(model, pictures)
    print(f"latents {tuple(latents.shape)} mean {latents.mean():.4f} deviation {latents.std():.4f}")
    model.save_pretrained(args.run_dir / "vae")
    torch.save(latents, args.run_dir / "latents.pt")


def run_denoiser(args) -> None:
    _, concepts = read_data(args)
    concepts = [c for c in concepts if not c.held_out]
    if not (args.run_dir / "tokenizer").exists() and args.from_export:
        shutil.copytree(args.output_dir / "tokenizer", args.run_dir / "tokenizer")
    tokenizer = base_export.train_tokenizer(concepts, args.run_dir / "tokenizer")
    unet, text_encoder = models.build_unet(), models.build_text_encoder(len(tokenizer))
    if args.from_export and not (args.run_dir / "denoiser.pt").exists():
        for part, name in ((unet, "unet"), (text_encoder, "text_encoder")):
            exported = type(part).from_pretrained(args.output_dir / name)
            part.load_state_dict(exported.float().state_dict())
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    ema = EMAModel(parameters, decay=0.9995, use_ema_warmup=True, inv_gamma=10, power=0.75)
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
    )

    def write_tokens(picks, rng, drop):
        captions = ["" if rng.random() < drop else write_caption(concepts[i], rng) for i in picks]
        return tokenizer(
            captions,
            padding="max_length",
            max_length=models.MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).input_ids

    latents = torch.load(args.run_dir / "latents.pt", weights_only=True)
    loop = lambda start: models.train_denoiser(
        unet,
        text_encoder,
        optimizer,
        ema,
        latents,
        write_tokens,
        steps=args.steps or 8000,
        start=start,
        seed=args.seed,
    )
    show = lambda: base_export.paint_samples(args.run_dir, unet, text_encoder, tokenizer)
    train(
        args.run_dir / "denoiser.pt",
        {"unet": unet, "text_encoder": text_encoder},
        optimizer,
        ema,
        loop,
        show,
        400,
    )


def run_export(args) -> None:
    _, concepts = read_data(args)
    total = base_export.export_pipeline(
        args.run_dir, args.output_dir, [c for c in concepts if not c.held_out]
    )
    print(f"{args.output_dir}: {total / 1e6:.2f} MB")


def train(path: Path, parts: dict, optimizer, ema: EMAModel, loop, show, every: int) -> None:
    """Drive a loop: resume from `path`, log every 25 steps, save and show every `every` steps and
    at the end."""
    start = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        start = state["step"]
    began, losses, last = time.time(), [], start

    def save() -> None:
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"optimizer": optimizer.state_dict(), "ema": ema.state_dict(), "step": last}
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
        parameters = [p for part in parts.values() for p in part.parameters()]
        ema.store(parameters)
        ema.copy_to(parameters)
        report(path.with_suffix(".jsonl"), {"step": last, **show()})
        ema.restore(parameters)

    for step in loop(start):
        last = step.step
        losses.append(step.loss)
        if last % 25 == 0:
            rate = (last - start) / (time.time() - began)
            report(
                path.with_suffix(".jsonl"),
                {
                    "step": last,
                    "loss": sum(losses) / len(losses),
                    "lr": step.lr,
                    "steps_per_s": rate,
                },
            )
            losses = []
        if last % every == 0:
            save()
    if last % every or last == start:
        save()


def report(path: Path, row: dict) -> None:
    print(row, flush=True)
    with path.open("a") as log:
        log.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
