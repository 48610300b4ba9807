"""Personalize the bundled base by filter atoms and by their peers, side by side, in one run.

    python scripts/bench_personalization.py --subject octopus --output_dir outputs/bench

Every method sees the same batches, noise and timesteps, the same number of steps and AdamW; each
takes its learning rates from a list, since rates do not carry over between methods. JSON tells for
every method and rate the trained numbers, the bytes of the file, seconds a step, loss, and what
`sdatoms evaluate` measures, on prompts not trained on; a method's best rate is the one with the
largest sum of fidelity and likeness: of a thing that the base has never seen, alignment is no
guide. Run again, it goes on where it was stopped.

A PNG shows the pictures given and one row a method at its best rate; `--strip FILE` writes a
smaller one, for the methods named by `--strip_methods`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

import sdatoms
from sdatoms.cli.demo import SEEDS
from sdatoms.diffusion.pipeline import load_base
from sdatoms.diffusion.prompts import write_prompts
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.scores import Scorer
from sdatoms.files.writer import pack_atoms
from sdatoms.pictures import draw_grid, find_pictures, read_picture
from sdatoms.storage import read_subject, write_whole
from sdatoms.training.batches import Draw, draw_batches
from sdatoms.training.config import TrainConfig
from sdatoms.training.data import TrainingData
from sdatoms.training.denoising import Denoising
from sdatoms.training.inputs import check_inputs
from sdatoms.training.parts import make_buckets, prepare_data
from sdatoms.training.trainer import choose_attention

ATTENTION = r".*(to_q|to_k|to_v|to_out\.0)"
CONVOLUTIONS = r".*(conv1|conv2|conv_shortcut|samplers\.0\.conv|to_q|to_k|to_v|to_out\.0)"
MEASURED = ("fidelity", "likeness", "alignment", "diversity", "drift")


@dataclass(frozen=True)
class Method:
    """How a method is put into a UNet, and the learning rates it is tried at."""

    attach: Callable[[nn.Module], tuple[list[nn.Parameter], Callable[[], bytes]]]
    """UNet → trained parameters, and what gives the bytes of the saved file."""
    rates: tuple[float, ...]


def use_atoms(**settings: Any) -> Callable[[nn.Module], Any]:
    def attach(unet: nn.Module) -> Any:
        injection = sdatoms.inject(unet, sdatoms.AtomConfig(**settings))

        def save() -> bytes:
            file = pack_atoms({"unet": injection}, trigger="sks", base_model="sdatoms/emoji-sd")
            return save_tensors(file.tensors, file.metadata)

        return list(injection.parameters()), save

    return attach


def use_peft(config: Any) -> Callable[[nn.Module], Any]:
    def attach(unet: nn.Module) -> Any:
        unet.requires_grad_(False)
        inject_adapter_in_model(config, unet)
        save = lambda: save_tensors(
            {k: v.contiguous() for k, v in get_peft_model_state_dict(unet).items()}
        )
        return [p for p in unet.parameters() if p.requires_grad], save

    return attach


def use_full(unet: nn.Module) -> Any:
    unet.requires_grad_(True)
    return list(unet.parameters()), lambda: save_tensors(dict(unet.state_dict()))


METHODS = {
    "full fine-tuning": Method(use_full, (3e-5, 1e-4)),
    "LoRA r4 attention": Method(
        use_peft(LoraConfig(r=4, lora_alpha=4, target_modules=ATTENTION)), (1e-3, 3e-3)
    ),
    "LoRA r4 attention + conv": Method(
        use_peft(LoraConfig(r=4, lora_alpha=4, target_modules=CONVOLUTIONS)), (1e-3, 3e-3)
    ),
    "LoKr r4 attention + conv": Method(
        use_peft(LoKrConfig(r=4, alpha=4, target_modules=CONVOLUTIONS)), (1e-3, 3e-3)
    ),
    # Its convolutions (PEFT 0.21) unfold without padding, which fails on maps of 2×2.
    "OFT b4 attention": Method(
        use_peft(OFTConfig(r=0, oft_block_size=4, target_modules=ATTENTION)), (1e-3, 3e-3)
    ),
    "atoms": Method(use_atoms(variant="atoms"), (1e-2, 3e-2)),
    "overcomplete": Method(use_atoms(variant="overcomplete"), (3e-3, 1e-2)),
    "coefficients b2": Method(use_atoms(variant="coefficients", block_size=2), (3e-3, 1e-2)),
    "full atoms b2": Method(use_atoms(variant="full", block_size=2), (3e-3, 6e-3)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subject", default="octopus")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--max_train_steps", type=int, default=300)
    parser.add_argument("--train_batch_size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    parser.add_argument("--strip", type=Path, default=None)
    parser.add_argument(
        "--strip_methods",
        nargs="*",
        default=["LoRA r4 attention", "LoRA r4 attention + conv", "overcomplete"],
        choices=list(METHODS),
    )
    args = parser.parse_args()
    folder, about = read_subject(args.subject)
    results = args.output_dir / f"{args.subject}.json"
    pictures_dir = args.output_dir / args.subject
    pictures_dir.mkdir(parents=True, exist_ok=True)
    prompts = write_prompts(about["instance_prompt"])
    pipe = load_base()
    data = prepare(pipe, folder, about["instance_prompt"], args)
    scorer = Scorer(pipe, load_evaluator(), prompts=prompts, seeds=SEEDS, subject=folder)
    save_pictures(pictures_dir / "base", scorer.pictures)
    asked = {"subject": args.subject, "steps": args.max_train_steps, "seed": args.seed}
    asked |= {"train_batch_size": args.train_batch_size, "prompts": prompts}
    found = json.loads(results.read_text()) if results.is_file() else {}
    rows = found["rows"] if {k: found.get(k) for k in asked} == asked else []
    checks = [asdict(row) for row in scorer.check()]
    for name in args.methods:
        for rate in METHODS[name].rates:
            if any((row["method"], row["rate"]) == (name, rate) for row in rows):
                continue
            fresh = load_base()
            facts = run_method(fresh, METHODS[name], rate, data, args)
            measured = asdict(scorer.score(name, fresh))
            folder_name = f"{name} {rate:g}".replace(" ", "-")
            save_pictures(pictures_dir / folder_name, scorer.pictures)
            rows.append({"method": name, "rate": rate, "pictures_dir": folder_name} | facts)
            rows[-1] |= {key: measured[key] for key in MEASURED}
            print(json.dumps(rows[-1]), flush=True)
            write_whole(results, json.dumps(asked | {"rows": rows, "checks": checks}).encode())
    best = {name: pick_best(rows, name) for name in args.methods}
    instances = [read_picture(p) for p in find_pictures(folder)[0]]
    draw_rows(pictures_dir, instances, best.values()).save(args.output_dir / f"{args.subject}.png")
    if args.strip:
        shown = [best[name] for name in args.strip_methods]
        draw_rows(pictures_dir, instances, shown, every=len(SEEDS) + 1).save(args.strip)


def prepare(pipe: Any, folder: Path, prompt: str, args: argparse.Namespace) -> TrainingData:
    """The pictures of a subject, encoded as the trainer encodes them."""
    config = TrainConfig(
        instance_data_dir=str(folder),
        instance_prompt=prompt,
        train_batch_size=args.train_batch_size,
        seed=args.seed,
    )
    return prepare_data(pipe, {}, check_inputs(config), make_buckets(pipe, config), config)


def pick_best(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    own = [row for row in rows if row["method"] == name]
    return max(own, key=lambda row: row["fidelity"] + row["likeness"])


def save_pictures(folder: Path, pictures: list[Any]) -> None:
    folder.mkdir(exist_ok=True)
    for k, picture in enumerate(pictures):
        picture.save(folder / f"{k:02d}.png")


def draw_rows(
    pictures_dir: Path, instances: list[Any], rows: Iterable[dict[str, Any]], every: int = 2
) -> Any:
    """The pictures given, the base's, and a row a method with the size of its file."""
    read = lambda name: [read_picture(p) for p in sorted((pictures_dir / name).glob("*.png"))]
    groups, labels = [instances[:10], read("base")[::every]], ["pictures given", "base"]
    for row in rows:
        groups.append(read(row["pictures_dir"])[::every])
        size = row["bytes"]
        shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
        labels.append(f"{row['method']}, {shown}")
    return draw_grid(groups, labels, cell=96)


def run_method(
    pipe: Any, method: Method, rate: float, data: TrainingData, args: argparse.Namespace
) -> dict[str, Any]:
    """Train one method at one rate on the pipeline's UNet, in place; returns what was measured."""
    parameters, save = method.attach(pipe.unet)
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    denoising = Denoising(pipe.scheduler.config)
    draw = Draw(denoising, args.seed, args.train_batch_size)
    losses, seconds = [], []
    pipe.unet.train()
    for step in range(args.max_train_steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20)
        losses.append(take_step(pipe.unet, data, step, draw))
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    pipe.unet.eval()
    return {
        "parameters": sum(p.numel() for p in parameters),
        "bytes": len(save()),
        "seconds_per_step": statistics.median(seconds),
        "loss": statistics.mean(losses[-50:]),
    }


def take_step(unet: nn.Module, data: TrainingData, step: int, draw: Draw) -> float:
    (batch,) = draw_batches(data.instances, None, step, draw)
    noisy = draw.denoising.mix(batch.latents, batch.input_noise, batch.timesteps)
    target = draw.denoising.target(batch.latents, batch.noise, batch.timesteps)
    with choose_attention(torch.device("cpu")):
        context = data.condition(batch).context
        predicted = unet(noisy, batch.timesteps, context, return_dict=False)[0]
    loss: Tensor = draw.denoising.error(predicted, target, batch.timesteps).mean()
    loss.backward()
    return float(loss.detach())


if __name__ == "__main__":
    main()
