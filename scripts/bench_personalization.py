"""Personalize the bundled base by filter atoms and by their peers, side by side, in one run.

    python scripts/bench_personalization.py --subject ink --output_dir outputs/bench

Every method sees the same batches, noise and timesteps, the same number of steps and AdamW; each
takes its learning rates from a list, since rates do not carry over between methods. Written as
JSON: trained numbers, bytes of the file, seconds a step, loss, style similarity to the pictures
given (on prompts not trained on, with the trigger), and drift of prompts without the trigger. A PNG
shows the pictures, one row a method at its best rate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from sdatoms.checkpoint import pack_atoms, write_whole
from sdatoms.demo import SEEDS, read_subject
from sdatoms.denoising import Denoising
from sdatoms.dreambooth import Draw, draw_batches
from sdatoms.evaluate import write_prompts
from sdatoms.material import Material, check_pictures
from sdatoms.metrics import gram_similarity
from sdatoms.pictures import draw_grid, find_pictures, read_picture
from sdatoms.pipeline import load_base, paint
from sdatoms.train_config import TrainConfig
from sdatoms.trainer import choose_attention

ATTENTION = r".*(to_q|to_k|to_v|to_out\.0)"
CONVOLUTIONS = r".*(conv1|conv2|conv_shortcut|samplers\.0\.conv|to_q|to_k|to_v|to_out\.0)"
DRIFT_PROMPTS = ("cat face", "red apple", "pizza", "house building", "grinning face")


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
    "OFT b4 attention + conv": Method(
        use_peft(OFTConfig(r=0, oft_block_size=4, target_modules=CONVOLUTIONS)), (1e-3, 3e-3)
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
    parser.add_argument("--subject", default="ink")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--max_train_steps", type=int, default=300)
    parser.add_argument("--train_batch_size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bench"))
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    folder, about = read_subject(args.subject)
    prompts = write_prompts(about["instance_prompt"])
    pipe = load_base()
    config = TrainConfig(
        instance_data_dir=str(folder),
        instance_prompt=about["instance_prompt"],
        train_batch_size=args.train_batch_size,
        seed=args.seed,
    )
    material = Material(
        pipe,
        config,
        check_pictures(config),
        args.output_dir / "class_images",
        paints=False,
        wait=lambda: None,
        log=print,
        tell=lambda phase: None,
    )
    instances = [read_picture(p) for p in find_pictures(folder)[0]]
    triggered = [(p, s) for p in prompts for s in SEEDS]
    plain = [(p, s) for p in DRIFT_PROMPTS for s in SEEDS]
    base = {name: paint_all(pipe, jobs) for name, jobs in (("with", triggered), ("without", plain))}
    score = lambda group: float(gram_similarity(pipe.vae, group, instances, base["with"]).mean())
    rows: list[dict[str, Any]] = [
        {"method": "base", "similarity": score(base["with"]), "drift": 0.0, "parameters": 0}
    ]
    pictures = {"base": base["with"]}
    for name in args.methods:
        for rate in METHODS[name].rates:
            fresh = load_base()
            facts = run_method(fresh, METHODS[name], rate, material, args)
            painted = {k: paint_all(fresh, j) for k, j in (("with", triggered), ("without", plain))}
            drift = measure_change(painted["without"], base["without"])
            facts |= {"method": name, "rate": rate, "drift": drift}
            facts["similarity"] = score(painted["with"])
            best = max((r["similarity"] for r in rows if r["method"] == name), default=-2.0)
            if facts["similarity"] > best:
                pictures[name] = painted["with"]
            rows.append(facts)
            print(json.dumps(facts), flush=True)
            result = {"subject": args.subject, "steps": args.max_train_steps, "rows": rows}
            write_whole(args.output_dir / f"{args.subject}.json", json.dumps(result).encode())
    grid = [[group[i] for i in range(0, len(group), 2)] for group in pictures.values()]
    draw_grid([instances, *grid], ["pictures given", *pictures], cell=96).save(
        args.output_dir / f"{args.subject}.png"
    )


def run_method(
    pipe: Any, method: Method, rate: float, material: Material, args: argparse.Namespace
) -> dict[str, Any]:
    """Train one method at one rate on the pipeline's UNet, in place; returns what was measured."""
    parameters, save = method.attach(pipe.unet)
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    denoising = Denoising(pipe.scheduler.config, material.config)
    draw = Draw(denoising, args.seed, args.train_batch_size)
    losses, seconds = [], []
    pipe.unet.train()
    for step in range(args.max_train_steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20)
        losses.append(take_step(pipe.unet, material, step, draw))
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


def take_step(unet: nn.Module, material: Material, step: int, draw: Draw) -> float:
    (batch,) = draw_batches(material.instances, None, step, draw)
    noisy = draw.denoising.mix(batch.latents, batch.input_noise, batch.timesteps)
    target = draw.denoising.target(batch.latents, batch.noise, batch.timesteps)
    with choose_attention(torch.device("cpu")):
        context = material.condition(batch).context
        predicted = unet(noisy, batch.timesteps, context, return_dict=False)[0]
    loss: Tensor = draw.denoising.error(predicted, target, batch.timesteps).mean()
    loss.backward()
    return float(loss.detach())


def paint_all(pipe: Any, jobs: list[tuple[str, int]]) -> list[Any]:
    return paint(pipe, [p for p, _ in jobs], [s for _, s in jobs], batch_size=8)


def measure_change(pictures: list[Any], before: list[Any]) -> float:
    """Root mean square difference of the pixels, in [0, 1], over pairs of the same seed."""
    read = lambda group: torch.stack(
        [torch.frombuffer(bytearray(p.tobytes()), dtype=torch.uint8).float() for p in group]
    )
    return float(((read(pictures) - read(before)) / 255).square().mean().sqrt())


if __name__ == "__main__":
    main()
