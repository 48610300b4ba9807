"""What a training step costs: every variant, LoRA r = 4 on the same layers, and full fine-tuning.

Peak memory is the process's own, so that each method takes one of its own; `seconds_per_step` is
the median after the first step, of one UNet with random latents and text in AdamW. Ratios are to
the LoRA on the layers that the variant tunes.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from sdatoms.atoms.config import AtomConfig, Variant
from sdatoms.bench.peers import Peer, tune_all, tune_atoms, tune_lora
from sdatoms.bench.process import call_apart, forget_peak, limit_memory, read_peak
from sdatoms.diffusion.open import load_base
from sdatoms.layers.inject import inject
from sdatoms.models.open import build_model
from sdatoms.training.trainer import choose_attention

__all__ = ["CASES", "METHODS", "list_cases", "measure_cases", "measure_method"]

SPATIAL, ALL = "LoRA r4 on the layers of atoms", "LoRA r4 on the layers of full"
FULL = "full fine-tuning"
RIVALS = {"atoms": SPATIAL, "overcomplete": SPATIAL, "coefficients": ALL, "full": ALL}
"""Variant → the LoRA that tunes the same layers."""
VARIANTS: tuple[Variant, ...] = get_args(Variant)
METHODS = (*VARIANTS, SPATIAL, ALL, FULL)
TIMES = ("seconds_per_step", "core_seconds_per_step")
"""By the clock, and of all processors together, which a shared machine does not blur."""


@dataclass(frozen=True)
class Case:
    """One model at one size."""

    model: str
    px: int
    batch: int
    steps: int
    device: str = "cpu"


CASES = {
    "bundled": Case("bundled", 64, 4, 8),
    "sd15": Case("sd15-unet", 256, 1, 3),
    "sd15-gpu": Case("sd15-unet", 512, 1, 12, "cuda"),
    "sd15-gpu-4": Case("sd15-unet", 512, 4, 12, "cuda"),
}


def list_cases() -> list[str]:
    """The cases that this machine can run."""
    able = lambda case: case.device == "cpu" or torch.cuda.is_available()
    return [name for name, case in CASES.items() if able(case)]


def measure_cases(
    cases: Sequence[str], methods: Sequence[str], steps: int | None, threads: int
) -> Iterator[dict[str, dict[str, Any]]]:
    """Case → method → what was measured, as far as it is known; once more after every method."""
    found: dict[str, dict[str, Any]] = {}
    for name in cases:
        found[name] = {}
        for method in methods:
            asked = steps or CASES[name].steps
            try:
                row = call_apart(measure_method, name, method, asked, threads=threads)
            except RuntimeError as error:
                row = {"failed": str(error)[:300]}
            print(name, method, json.dumps(row), file=sys.stderr)
            found[name][method] = row
            add_ratios(found[name])
            yield found


def add_ratios(rows: dict[str, dict[str, Any]]) -> None:
    for variant, rival in RIVALS.items():
        row, other = rows.get(variant, {}), rows.get(rival, {})
        if "seconds_per_step" in row and "seconds_per_step" in other:
            row["to_lora"] = {
                key: round(row[key] / other[key], 3)
                for key in ("parameters", "bytes", *TIMES, "peak_bytes")
            }


def measure_method(name: str, method: str, steps: int) -> dict[str, Any]:
    """Train one method for a few steps of a case.

    A method that needs more than the machine's free memory fails by itself, and ends nothing else.
    """
    case = CASES[name]
    if case.device == "cpu":
        limit_memory()
    device = torch.device(case.device)
    bundled = case.model == "bundled"
    unet: Any = load_base(device=device).unet if bundled else build_model(case.model)
    unet = unet.to(device).train()
    peer = put_in(unet, method)
    parameters = peer.parameters
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(device)
    side, channels = case.px // 8, unet.config.in_channels
    forget_peak(device)
    held, seconds, used = read_peak(device), [], []
    for _ in range(steps):
        latents, noise = (draw(case.batch, channels, side, side) for _ in range(2))
        context = draw(case.batch, 77, unet.config.cross_attention_dim)
        timesteps = torch.randint(1000, (case.batch,), generator=generator).to(device)
        began, worked = time.perf_counter(), time.process_time()
        half = torch.autocast("cuda", torch.bfloat16) if case.device == "cuda" else nullcontext()
        with half, choose_attention(device):
            predicted = unet(latents, timesteps, context, return_dict=False)[0]
            (predicted.float() - noise).square().mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if case.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        used.append(time.process_time() - worked)
    return {
        "parameters": sum(p.numel() for p in parameters),
        # a whole UNet's file is its numbers; to make it would take as much memory again
        "bytes": 4 * sum(p.numel() for p in parameters) if method == FULL else len(peer.save()),
        "seconds_per_step": round(statistics.median(seconds[1:] or seconds), 3),
        "core_seconds_per_step": round(statistics.median(used[1:] or used), 3),
        "peak_bytes": read_peak(device),
        "held_before_bytes": held,
        "batch": case.batch,
        "px": case.px,
        "steps": steps,
    }


def put_in(unet: nn.Module, method: str) -> Peer:
    """Give a UNet the method's parameters; a LoRA stands on the layers of the variant it rivals."""
    if method == FULL:
        return tune_all(unet)
    if method in VARIANTS:
        return tune_atoms(unet, AtomConfig(method), "base")
    injection = inject(unet, AtomConfig("atoms" if method == SPATIAL else "full"))
    paths = list(injection.layers)
    injection.eject()
    return tune_lora(unet, paths)
