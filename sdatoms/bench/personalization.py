"""The bundled base personalized by filter atoms and by their peers, side by side, in one run.

Every method sees the same batches, noise and timesteps, the same number of steps and AdamW; each
takes its learning rates from a list, since rates do not carry over between methods. A method's best
rate is the one with the largest sum of fidelity and likeness: of a thing that the base has never
seen, alignment is no guide.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdatoms.atoms.config import AtomConfig
from sdatoms.bench.peers import Peer, tune_all, tune_atoms, tune_lokr, tune_lora, tune_oft
from sdatoms.diffusion.open import load_base
from sdatoms.evaluation.evaluator import load_evaluator
from sdatoms.evaluation.scores import Scorer
from sdatoms.evaluation.truth import FIVE_KINDS, choose_prompts, find_truth
from sdatoms.pictures import draw_grid, find_pictures, read_picture
from sdatoms.storage import read_subject, write_whole
from sdatoms.training.batches import Draw, draw_batches
from sdatoms.training.config import TrainConfig
from sdatoms.training.data import TrainingData
from sdatoms.training.inputs import check_inputs
from sdatoms.training.parts import make_buckets, make_denoising, prepare_data
from sdatoms.training.trainer import choose_attention

__all__ = ["METHODS", "SEEDS", "draw_methods", "measure_methods"]

ATTENTION = r".*(to_q|to_k|to_v|to_out\.0)"
CONVOLUTIONS = r".*(conv1|conv2|conv_shortcut|samplers\.0\.conv|to_q|to_k|to_v|to_out\.0)"
MEASURED = ("fidelity", "likeness", "alignment", "diversity", "drift")
TRUE = ("truth", "error", "followed")
SEEDS = (0, 1, 2, 3)
"""Of the pictures of every prompt, as in `sdatoms demo`."""


@dataclass(frozen=True)
class Method:
    """How a method is put into a UNet, and the learning rates it is tried at."""

    attach: Callable[[nn.Module], Peer]
    rates: tuple[float, ...]


def use_atoms(**settings: Any) -> Callable[[nn.Module], Peer]:
    return lambda unet: tune_atoms(unet, AtomConfig(**settings), "sdatoms/emoji-sd")


METHODS = {
    "full fine-tuning": Method(tune_all, (3e-5, 1e-4)),
    "LoRA r4 attention": Method(lambda unet: tune_lora(unet, ATTENTION), (1e-3, 3e-3)),
    "LoRA r4 attention + conv": Method(lambda unet: tune_lora(unet, CONVOLUTIONS), (1e-3, 3e-3)),
    "LoKr r4 attention + conv": Method(lambda unet: tune_lokr(unet, CONVOLUTIONS), (1e-3, 3e-3)),
    # Its convolutions (PEFT 0.21) unfold without padding, which fails on maps of 2×2.
    "OFT b4 attention": Method(lambda unet: tune_oft(unet, ATTENTION), (1e-3, 3e-3)),
    "atoms": Method(use_atoms(variant="atoms"), (1e-2, 3e-2)),
    "overcomplete": Method(use_atoms(variant="overcomplete"), (3e-3, 1e-2)),
    "coefficients b2": Method(use_atoms(variant="coefficients", block_size=2), (3e-3, 1e-2)),
    "full atoms b2": Method(use_atoms(variant="full", block_size=2), (3e-3, 6e-3)),
}


def measure_methods(
    subject: str,
    methods: Sequence[str],
    output_dir: Path,
    *,
    max_train_steps: int = 300,
    train_batch_size: int = 4,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Method → its row at its best rate.

    `<subject>.json` in `output_dir` holds the rows of all rates, `<subject>/` their pictures; what
    it holds already is not trained again.
    """
    folder, about = read_subject(subject)
    results, pictures_dir = output_dir / f"{subject}.json", output_dir / subject
    pictures_dir.mkdir(parents=True, exist_ok=True)
    prompts = choose_prompts(find_truth(folder), about["instance_prompt"], FIVE_KINDS)
    pipe = load_base()
    config = TrainConfig(
        instance_data_dir=str(folder),
        instance_prompt=about["instance_prompt"],
        train_batch_size=train_batch_size,
        seed=seed,
    )
    data = encode_subject(pipe, config)
    scorer = Scorer(pipe, load_evaluator(), prompts=prompts, seeds=SEEDS, subject=folder)
    save_pictures(pictures_dir / "base", scorer.pictures)
    asked = {"subject": subject, "steps": max_train_steps, "seed": seed}
    asked |= {"train_batch_size": train_batch_size, "prompts": prompts}
    found = json.loads(results.read_text()) if results.is_file() else {}
    rows = found["rows"] if {k: found.get(k) for k in asked} == asked else []
    checks = [asdict(row) for row in scorer.check()]
    for name in methods:
        for rate in METHODS[name].rates:
            if any((row["method"], row["rate"]) == (name, rate) for row in rows):
                continue
            fresh = load_base()
            facts = run_method(fresh, METHODS[name], rate, data, config, max_train_steps)
            measured = asdict(scorer.score(name, fresh))
            folder_name = f"{name} {rate:g}".replace(" ", "-")
            save_pictures(pictures_dir / folder_name, scorer.pictures)
            rows.append({"method": name, "rate": rate, "pictures_dir": folder_name} | facts)
            rows[-1] |= {key: measured[key] for key in MEASURED}
            rows[-1] |= {key: measured[key] for key in TRUE if measured[key] is not None}
            print(json.dumps(rows[-1]), flush=True)
            write_whole(results, json.dumps(asked | {"rows": rows, "checks": checks}).encode())
    return {name: pick_best(rows, name) for name in methods}


def encode_subject(pipe: Any, config: TrainConfig) -> TrainingData:
    """The pictures of a subject, encoded as the trainer encodes them."""
    return prepare_data(pipe, {}, check_inputs(config), make_buckets(pipe, config), config)


def draw_methods(
    subject: str, rows: Iterable[dict[str, Any]], output_dir: Path, every: int = 2
) -> Any:
    """The pictures given, the base's, and a row a method with the size of its file; one of `every`
    pictures is shown."""
    instances = [read_picture(path) for path in find_pictures(read_subject(subject)[0])[0]]
    read = lambda name: [
        read_picture(p) for p in sorted((output_dir / subject / name).glob("*.png"))
    ]
    groups, labels = [instances[:10], read("base")[::every]], ["pictures given", "base"]
    for row in rows:
        groups.append(read(row["pictures_dir"])[::every])
        size = row["bytes"]
        shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
        labels.append(f"{row['method']}, {shown}")
    return draw_grid(groups, labels, cell=96)


def pick_best(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    own = [row for row in rows if row["method"] == name]
    return max(own, key=lambda row: row["fidelity"] + row["likeness"])


def save_pictures(folder: Path, pictures: list[Any]) -> None:
    folder.mkdir(exist_ok=True)
    for k, picture in enumerate(pictures):
        picture.save(folder / f"{k:02d}.png")


def run_method(
    pipe: Any, method: Method, rate: float, data: TrainingData, config: TrainConfig, steps: int
) -> dict[str, Any]:
    """Train one method at one rate on the pipeline's UNet, in place; returns what was measured."""
    peer = method.attach(pipe.unet)
    optimizer = torch.optim.AdamW(peer.parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    denoising = make_denoising(pipe, config)
    draw = Draw(denoising, config.seed, config.train_batch_size)
    losses, seconds = [], []
    pipe.unet.train()
    for step in range(steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20)
        losses.append(take_step(pipe.unet, data, step, draw))
        nn.utils.clip_grad_norm_(peer.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    pipe.unet.eval()
    return {
        "parameters": sum(p.numel() for p in peer.parameters),
        "bytes": len(peer.save()),
        "seconds_per_step": statistics.median(seconds),
        "loss": statistics.mean(losses[-50:]),
    }


def take_step(unet: nn.Module, data: TrainingData, step: int, draw: Draw) -> float:
    (batch,) = draw_batches(data.instances, None, step, draw)
    noisy = draw.denoising.mix(batch.latents, batch.input_noise, batch.timesteps)
    target = draw.denoising.target(batch.latents, batch.noise, batch.timesteps)
    with choose_attention(torch.device("cpu")):
        condition = data.condition(batch)
        predicted = unet(
            noisy,
            batch.timesteps,
            condition.context,
            encoder_attention_mask=condition.mask,
            return_dict=False,
        )[0]
    loss: Tensor = draw.denoising.error(predicted, target, batch.timesteps).mean()
    loss.backward()
    return float(loss.detach())
